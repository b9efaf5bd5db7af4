"""Access control, and refusals as JSON: the middleware in front of every handler."""

from __future__ import annotations

import hmac
import json
import logging
import math
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from edge.settings import Settings
from events import Refused, Unavailable

logger = logging.getLogger("chat")

REFUSALS = {
    "invalid_json": (400, "The body is not JSON in UTF-8."),
    "invalid_request": (400, "The request is not valid."),
    "invalid_last_event_id": (400, "Last-Event-ID is not valid."),
    "nothing_to_resume": (400, "This thread is not waiting for an answer."),
    "unauthorized": (401, "Send the header Authorization: Bearer … with the server's token."),
    "origin_not_allowed": (403, "Pages of this origin may not call this server."),
    "host_not_allowed": (403, "This host name is not allowed; ALLOWED_HOSTS lists those that are."),
    "unknown_run": (404, "There is no such run; it may have expired."),
    "unknown_thread": (404, "There is no such thread."),
    "unknown_message": (404, "replaces is not the id of a user message of this thread."),
    "not_found": (404, "There is nothing at this path."),
    "method_not_allowed": (405, "This path does not support this method."),
    "thread_busy": (409, "This thread has a running run; follow it or stop it."),
    "idempotency_conflict": (409, "This Idempotency-Key came with another body before."),
    "too_large": (413, "The body is larger than MAX_BODY_BYTES allows."),
    "unsupported_media_type": (415, "The body has to be application/json without compression."),
    "internal": (500, "The server failed."),
    "too_many_runs": (503, "Too many runs at once. Try again in a moment."),
    "draining": (503, "The server is shutting down."),
    "unavailable": (503, "The server's storage cannot be reached now. Try again in a moment."),
}
"""Status and usual sentence of each code: the contract's table."""

HTTP_CODES = {403: "not_found", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}
"""aiohttp's own refusals; it responds with 403 to a request for a folder of static files."""

RETRY_AFTER_S = 2

PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE",
    "Access-Control-Allow-Headers": (
        "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Prefer, User-Agent"
    ),
    "Access-Control-Max-Age": "600",
}
EXPOSED = "Location, Content-Location, Retry-After, X-Vercel-AI-UI-Message-Stream"
PAGE_POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

SETTINGS = web.AppKey("settings", Settings)
USER = web.RequestKey("user", str)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Check each request, and turn every failure into a refusal without internals."""
    try:
        check_host(request)
        restricted = request.path.startswith("/api/")
        if restricted:
            check_origin(request)
        if is_preflight(request):
            return web.Response(status=204, headers=PREFLIGHT)
        if restricted:
            check_token(request)
            request[USER] = read_user(request)
        return await handler(request)
    except Refused as refused:
        return refuse(request, refused)
    except web.HTTPException as error:
        if error.status not in HTTP_CODES:
            raise
        response = refuse(request, Refused(HTTP_CODES[error.status]))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Unavailable:
        return refuse(request, Refused("unavailable"))
    except Exception as error:
        if isinstance(error, ConnectionError) and request.transport is None:
            raise  # The client is gone.
        if request.path.startswith("/static/"):  # The path is no name that a file could have.
            return refuse(request, Refused("not_found"))
        ref = secrets.token_hex(4)
        what = "%s %r failed ref=%s"
        logger.error(what, request.method, request.path, ref, exc_info=error)
        if request.writer.output_size:  # A stream has begun: it can only be cut.
            raise ConnectionResetError from error
        return refuse(request, Refused("internal", ref=ref))


def refuse(request: web.Request, refused: Refused) -> web.Response:
    """Return the JSON response of a refusal."""
    status, sentence = REFUSALS[refused.code]
    message = refused.message or sentence
    error = {"code": refused.code, "message": message, **refused.details}
    response = send_json({"error": error}, status)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if status == 503:
        grace_s = request.app[SETTINGS].shutdown_grace_s if refused.code == "draining" else 0
        response.headers["Retry-After"] = str(RETRY_AFTER_S + math.ceil(grace_s))
    if not request.content.is_eof():  # With an unread body the connection cannot be used again.
        response.force_close()
    return response


def send_json(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a JSON response, with non-ASCII text as itself."""
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return web.Response(
        body=body, status=status, content_type="application/json", charset="utf-8", headers=headers
    )


def asked_host(request: web.Request) -> str:
    """Return the host and port that the request asks for, in lower case.

    Source: RFC 9112, "Reconstructing the Target URI".
    """
    target = re.match("(?i)https?://([^/?#]*)", request.raw_path)
    return (target[1] if target else request.headers.get("Host", "")).lower()


def check_host(request: web.Request) -> None:
    """Refuse a request for another host name: the protection against DNS rebinding."""
    hosts = request.app[SETTINGS].hosts
    host = re.sub(r":\d*$", "", asked_host(request))
    # Health checks use an IP address. A request without Host does not come from a browser.
    if host and "*" not in hosts and host not in hosts and request.path != "/healthz":
        raise Refused("host_not_allowed")


def check_origin(request: web.Request) -> None:
    """Refuse a page of another origin that is not listed. Source: Fetch, "Origin header"."""
    origin = request.headers.get("Origin")
    host = asked_host(request)
    own = (f"http://{host}", f"https://{host}")
    if origin is not None and origin.lower() not in own and not is_listed(request):
        raise Refused("origin_not_allowed")


def is_listed(request: web.Request) -> bool:
    """Whether the page that asks is of an origin in CORS_ORIGINS."""
    listed, origin = request.app[SETTINGS].cors_origins, request.headers.get("Origin")
    return origin is not None and ("*" in listed or origin.lower() in listed)


def is_preflight(request: web.Request) -> bool:
    """Whether this is a CORS preflight from a listed origin. Preflights carry no token."""
    asks = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
    return asks and is_listed(request)


def check_token(request: web.Request) -> None:
    """Refuse a request without the token; tokens are compared in constant time."""
    token = request.app[SETTINGS].api_token
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode())
    if token and not (scheme.lower() == "bearer" and same):
        raise Refused("unauthorized")


def read_user(request: web.Request) -> str:
    """Return the user's name that the proxy in front sends; an empty text if there are no users."""
    name = request.app[SETTINGS].user_header
    if not name:
        return ""
    given = request.headers.getall(name, [])
    if len(given) != 1 or not given[0].strip() or not given[0].isprintable():
        raise Refused("unauthorized", f"The proxy has to send the user's name once, in {name}.")
    return given[0].strip()


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add what every response carries, streams and refusals alike.

    Source: Fetch, "CORS protocol".
    """
    headers = response.headers
    headers["X-Content-Type-Options"] = "nosniff"
    if request.path.startswith("/api/"):
        headers.setdefault("Cache-Control", "no-store")
    else:
        headers.setdefault("Cache-Control", "no-cache")
        headers["Referrer-Policy"] = "no-referrer"
        # The examples, a folder each, load packages from another host: their HTML has a policy.
        if not re.match("/static/[^/]+/", request.path):
            headers["Content-Security-Policy"] = PAGE_POLICY
    headers.add("Vary", "Origin")
    if is_listed(request):
        headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
        headers["Access-Control-Expose-Headers"] = EXPOSED
