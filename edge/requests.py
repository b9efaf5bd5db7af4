"""Requests: who may come in, what they ask for, and refusals as JSON."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import math
import re
import secrets
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.typedefs import Handler

from dialects import ai_sdk
from edge.settings import Settings
from events import Asked, EventLog, Refused, SettingError, Unavailable

if TYPE_CHECKING:
    from runs.registry import Registry

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

MESSAGE_CHARS = 32_000
THREAD_ID = "[A-Za-z0-9_-]{1,64}"

SETTINGS = web.AppKey("settings", Settings)
OPENING: web.AppKey[asyncio.Task[Registry]] = web.AppKey("opening")
RUNS: web.RequestKey[Registry] = web.RequestKey("runs")
USER = web.RequestKey("user", str)

logger = logging.getLogger("chat")


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Check who comes in, and turn every failure into a refusal without internals."""
    try:
        if check_access(request):
            return web.Response(status=204, headers=PREFLIGHT)
        if request.path.startswith(("/api/", "/healthz")):
            # Shielded, so that a client that leaves does not cancel the start.
            request[RUNS] = await asyncio.shield(request.app[OPENING])
        return await handler(request)
    except Refused as refused:
        return refuse(request, refused)
    except (Unavailable, SettingError):  # SettingError: the start has failed, the server ends.
        return refuse(request, Refused("unavailable"))
    except web.HTTPException as error:
        if error.status not in HTTP_CODES:
            raise
        response = refuse(request, Refused(HTTP_CODES[error.status]))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except Exception as error:
        if request.path.startswith("/static/"):  # The path is longer than a file's can be.
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
    error = {"code": refused.code, "message": refused.message or sentence, **refused.details}
    response = send_json({"error": error}, status)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if status == 503:
        grace_s = request.app[SETTINGS].shutdown_grace_s if refused.code == "draining" else 0
        response.headers["Retry-After"] = str(RETRY_AFTER_S + math.ceil(grace_s))
    return response


def send_json(value: Any, status: int = 200) -> web.Response:
    """Return a JSON response, with non-ASCII text as itself."""
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return web.Response(body=body, status=status, content_type="application/json", charset="utf-8")


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add what every response carries, streams and refusals alike.

    Source: Fetch, "CORS protocol".
    """
    headers, is_page = response.headers, not request.path.startswith("/api/")
    headers.setdefault("Cache-Control", "no-cache" if is_page else "no-store")
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Vary"] = "Origin"
    # The examples, a folder each, load packages from another host: their HTML has a policy.
    if is_page and not re.match("/static/[^/]+/", request.path):
        headers["Content-Security-Policy"] = PAGE_POLICY
    if is_listed(request):
        headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
        headers["Access-Control-Expose-Headers"] = EXPOSED


# ------------------------------------------------------------------------------ who may come in


def check_access(request: web.Request) -> bool:
    """Check host, origin and token, and note the user; True for a CORS preflight. Raises Refused.

    Source: Fetch, "Origin header" and "CORS-preflight fetch".
    """
    settings, headers = request.app[SETTINGS], request.headers
    host, listed = asked_host(request), is_listed(request)
    # Another name may be one that a web page made point at this machine: DNS rebinding. Health
    # checks use an IP address, and a request without Host does not come from a browser.
    allowed = "*" in settings.hosts or re.sub(r":\d*$", "", host) in settings.hosts
    if host and not allowed and request.path != "/healthz":
        raise Refused("host_not_allowed")
    restricted, own = request.path.startswith("/api/"), f"http://{host}"
    is_own = headers.get("Origin", own).lower() in (own, f"https://{host}")
    if restricted and not listed and not is_own:
        raise Refused("origin_not_allowed")
    if listed and request.method == "OPTIONS" and "Access-Control-Request-Method" in headers:
        return True  # It carries no token.
    if restricted:
        if settings.api_token:
            check_token(headers.get("Authorization", ""), settings.api_token)
        request[USER] = read_user(request)
    return False


def asked_host(request: web.Request) -> str:
    """Return the host and port that the request asks for, in lower case.

    Source: RFC 9112, "Reconstructing the Target URI".
    """
    target = re.match("[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)", request.raw_path)
    return (target[1] if target else request.headers.get("Host", "")).lower()


def is_listed(request: web.Request) -> bool:
    """Whether the page that asks is of an origin in CORS_ORIGINS."""
    listed, origin = request.app[SETTINGS].cors_origins, request.headers.get("Origin")
    return origin is not None and ("*" in listed or origin.lower() in listed)


def check_token(authorization: str, token: str) -> None:
    """Refuse a request without the token; tokens are compared in constant time."""
    scheme, _, given = authorization.partition(" ")
    same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode())
    if not same or scheme.lower() != "bearer":
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


# ----------------------------------------------------------------------------- what is asked for


def _read_int(digits: str) -> int:
    if math.isinf(float(digits)):
        raise ValueError("a number beyond a float")
    return int(digits)


# Made once: to make one takes longer than to use it.
_decode = json.JSONDecoder(parse_int=_read_int).decode
_encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False).encode


async def read_body(request: web.Request) -> tuple[dict[str, Any], str]:
    """Return the request's JSON object and its digest, the same for equal JSON. Raises Refused."""
    coding = request.headers.get("Content-Encoding", "identity").lower()
    if request.content_type != "application/json" or coding != "identity":
        raise Refused("unsupported_media_type")
    if (request.content_length or 0) > request.client_max_size:
        raise Refused("too_large")
    try:
        body = _decode((await request.read()).decode())
        # Refuses NaN, numbers beyond a float and half of a surrogate pair, too. But a front end
        # sends its history, in which a half stays for ever: see `checked`.
        is_foreign = isinstance(body, dict) and ai_sdk.is_request(body)
        canonical = _encode(body).encode(errors="surrogatepass" if is_foreign else "strict")
    except (ValueError, RecursionError, web.RequestPayloadError):
        raise Refused("invalid_json") from None
    if not isinstance(body, dict):
        raise invalid("The body has to be a JSON object.")
    return body, hashlib.sha256(canonical).hexdigest()


def invalid(message: str) -> Refused:
    return Refused("invalid_request", message)


def read_chat(request: web.Request, body: dict[str, Any], digest: str) -> Asked:
    """Return what a body of our own vocabulary asks for. Raises Refused."""
    thread_id, message, replaces = body.get("thread_id"), body.get("message"), body.get("replaces")
    if thread_id is not None:
        check_thread_id("thread_id", thread_id)
    if ("resume" in body) == (message is not None):
        raise invalid("Send either message or resume.")
    if "resume" in body and thread_id is None:
        raise Refused("nothing_to_resume")
    if replaces is not None and not (isinstance(replaces, str) and thread_id and message):
        raise invalid("replaces has to be a string, and needs message and thread_id.")
    asked = Asked(
        thread_id=thread_id or secrets.token_urlsafe(12),
        message=message,
        resume=body.get("resume"),
        replaces=replaces,
        context=body.get("context"),
        user=request[USER],
        key=read_key(request),
        digest=digest,
    )
    return checked(asked)


def checked(asked: Asked) -> Asked:
    """Return what is asked for, in our own vocabulary or another one. Raises Refused."""
    try:
        _encode([asked.message, asked.resume, asked.context]).encode()
    except UnicodeEncodeError:  # Half of a surrogate pair.
        raise Refused("invalid_json") from None
    message, context = asked.message, asked.context
    if message is not None and not (isinstance(message, str) and message.strip()):
        raise invalid("message has to be text that is not blank.")
    if message is not None and len(message) > MESSAGE_CHARS:
        raise invalid(f"message has more than {MESSAGE_CHARS} characters.")
    if context is not None and not isinstance(context, dict):
        raise invalid("context has to be an object.")
    return asked


def check_thread_id(name: str, value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(THREAD_ID, value):
        raise invalid(f"{name} has 1 to 64 characters of A-Z, a-z, 0-9, _ and -.")


def thread_in(request: web.Request, body: dict[str, Any], name: str) -> str:
    """Return the thread that a field of a dialect's body names. Raises Refused."""
    check_thread_id(name, body.get(name))
    return Asked(body[name], user=request[USER]).thread


def read_thread(request: web.Request) -> Asked:
    """Return the thread that the path names. Raises Refused."""
    thread_id = request.match_info["thread_id"]
    if not re.fullmatch(THREAD_ID, thread_id):
        raise Refused("unknown_thread")
    return Asked(thread_id, user=request[USER])


def read_key(request: web.Request) -> str | None:
    """Return the Idempotency-Key, if there is one. Raises Refused."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not re.fullmatch("[!-~]{1,128}", key):
        raise invalid("Idempotency-Key has 1 to 128 visible ASCII characters.")
    return key


def read_cursor(request: web.Request, log: EventLog) -> int:
    """Return the last event id that the reader has of a log, 0 if it has none. Raises Refused.

    Source: WHATWG HTML, "Last-Event-ID".
    """
    query = request.query
    given = request.headers.getall("Last-Event-ID", [])
    given = given or [query.get("last_event_id", query.get("lastEventId", "0"))]
    if len(given) == 1 and re.fullmatch("[0-9]{1,100}", given[0]) and int(given[0]) <= log.last_id:
        return int(given[0])
    allowed = f"Last-Event-ID has to be a whole number from 0 to {log.last_id}."
    raise Refused("invalid_last_event_id", allowed)
