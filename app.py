"""HTTP: settings, who may come in, routes, streams and heartbeats, start and stop.

The only file that knows aiohttp. What a run is, and how it ends, is the business of `runs`; what a
message means that of `agent`; the bytes of a frame that of `events`.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):
    sys.exit("This server needs Python 3.11 or newer; this is " + sys.version.split()[0] + ".")

import argparse
import asyncio
import gc
import hashlib
import hmac
import json
import logging
import math
import os
import re
import secrets
import signal
import socket
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.http import StreamWriter

from agent import Agent
from events import Asked, Refused, Unavailable, encode_comment, encode_retry
from graphs.load import AgentError, find, make
from runs.registry import AnyRun, MemoryStore, Registry, Store
from runs.run import Run
from threads.document import document
from threads.memory import Memory

VERSION = "0.2.0"
HERE = Path(__file__).resolve().parent

MESSAGE_CHARS = 32_000
THREAD_ID = "[A-Za-z0-9_-]{1,64}"

BODY_S = 30.0
"""How long a request's body may take to arrive; nginx gives 60 s from one read to the next."""

FIELD_BYTES = 33_000
"""How long a header field may be, with 32 KiB for its value: on localhost a browser sends the
cookies of all ports. aiohttp's own limit is 8 KiB."""

WRITE_BYTES = 16_384
"""How many bytes a reader is sent at once, and has SEND_TIMEOUT_S to take: see the contract."""

GARBAGE = 10_000
"""How many objects may be new before the garbage collector looks for cycles. Python's own number,
700 or 2000, is reached every few chunks, and nearly none of their objects is in a cycle."""

BACKLOG = 1024
"""How many connections may wait to be accepted; Linux caps it at its own 4096."""

WRITE_EVERY_S = 1 / 60
BURST_S = 20 * WRITE_EVERY_S
"""A token bucket for each reader: after twenty quick writes it is written to as often as a screen
is drawn, and what comes in between goes out together. A fast model's token costs a fifth less."""

HEARTBEAT = encode_comment("heartbeat")

logger = logging.getLogger("chat")


# ------------------------------------------------------------------------------------- settings


class SettingError(ValueError):
    """A setting has a value that it cannot have; the text is one line for a person."""


class Kind(NamedTuple):
    """A kind of setting: what it wants, in words, and a function that reads its text.

    The function raises ValueError if the text is none of its kind.
    """

    wants: str
    read: Callable[[str], Any]
    secret: bool = False


def _matching(pattern: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return read


def _number(
    lowest: float = 0, highest: float = sys.float_info.max, whole: bool = False
) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = int(text) if whole else float(text)
        # The comparison is false for NaN, too.
        if not text.isascii() or "_" in text or not lowest <= value <= highest:
            raise ValueError
        return int(value) if float(value).is_integer() else value

    return read


def _list_of(pattern: str) -> Callable[[str], frozenset[str]]:
    read = _matching(pattern)
    return lambda text: frozenset(read(part.strip().lower()) for part in text.split(","))


def _path(text: str) -> str:
    if not os.path.exists(text):
        raise ValueError
    return text


def _url(text: str) -> str:
    parts = urlsplit(text)
    if not re.fullmatch("https?://[!-~]+", text) or not parts.hostname or parts.port == 0:
        raise ValueError
    return text


NAME = Kind("a name", str)
SECRET = Kind("visible ASCII characters", _matching("[!-~]+"), secret=True)
PORT = Kind("a whole number from 0 to 65535", _number(0, 65535, whole=True))
COUNT = Kind("a whole number above 0", _number(1, whole=True))
RATE = Kind("a number, 0 or more", _number())
SECONDS = Kind("a number of seconds, 0 or more", _number())
ENDLESS = Kind("a number of seconds, 0 or more, or inf", _number(highest=math.inf))
ABOVE_0 = Kind("a number of seconds above 0", _number(sys.float_info.min))
URL = Kind("an http or https URL", _url)
PATH = Kind("a folder or file that exists", _path)
# A password may stand in the URL of Redis or a database.
REDIS = Kind(
    "a redis, rediss or unix URL", _matching(r"(rediss?://[^\s/]|unix:///)\S*"), secret=True
)
DATABASE = Kind(
    "sqlite:///file or postgresql://…",
    _matching(r"sqlite:///\S+|postgres(ql)?://\S+"),
    secret=True,
)
ORIGINS = Kind(
    "origins such as https://example.com, separated by commas, or *",
    _list_of(r"\*|[a-z][a-z0-9+.-]*://[^/\s?#@]+"),
)
HOSTS = Kind(
    "host names without port, separated by commas, or *",
    _list_of(r"\*|\[[0-9a-f:.]+\]|[a-z0-9._-]+"),
)
HEADER = Kind("the name of a header", _matching("[A-Za-z0-9-]+"))
LEVEL = Kind("DEBUG, INFO, WARNING or ERROR", _matching("(?i)DEBUG|INFO|WARNING|ERROR"))


def setting(default: Any, kind: Kind, about: str) -> Any:
    """Return the dataclass field of a setting."""
    return field(default=default, metadata={"kind": kind, "about": about})


@dataclass
class Settings:
    """All settings: each is an environment variable in capitals, and a flag, which wins."""

    host: str = setting("127.0.0.1", NAME, "address to listen on")
    port: int = setting(8000, PORT, "port to listen on; 0: any free one")
    agent: str = setting("", NAME, "your own graph, module:attribute; empty: the built-in agent")
    openai_api_key: str = setting("", SECRET, "key of the model")
    openai_base_url: str = setting("", URL, "OpenAI-compatible server")
    openai_model: str = setting("gpt-5-mini", NAME, "model to ask for there")
    docs_dir: str = setting("", PATH, "what search_docs searches; empty: the README")
    demo_tokens_per_s: float = setting(50, RATE, "pace of the demo model; 0: no pause")
    cors_origins: frozenset[str] = setting(
        frozenset({"http://localhost:3000"}), ORIGINS, "other origins that may call"
    )
    api_token: str = setting("", SECRET, "bearer token for /api/")
    allowed_hosts: frozenset[str] = setting(
        frozenset(), HOSTS, "names of this server; empty: localhost alone, if HOST is loopback"
    )
    user_header: str = setting("", HEADER, "header in which a proxy says who asks")
    heartbeat_s: float = setting(15, ABOVE_0, "silence before a heartbeat")
    run_timeout_s: float = setting(120, ABOVE_0, "the longest a run may take")
    send_timeout_s: float = setting(30, ABOVE_0, "when a reader that takes nothing is dropped")
    disconnect_grace_s: float = setting(10, ENDLESS, "how long a run goes on without a reader")
    shutdown_grace_s: float = setting(5, SECONDS, "what running runs get at shutdown")
    run_ttl_s: float = setting(120, SECONDS, "how long an ended run is kept")
    max_runs: int = setting(100, COUNT, "runs at once")
    max_run_bytes: int = setting(4194304, COUNT, "bytes of a run's events")
    max_body_bytes: int = setting(4194304, COUNT, "bytes of a request's body")
    max_threads: int = setting(1000, COUNT, "conversations in the server's memory")
    redis_url: str = setting("", REDIS, "Redis that keeps the runs, for several servers")
    database_url: str = setting("", DATABASE, "database that keeps the threads")
    log_level: str = setting("INFO", LEVEL, "how much is logged")

    @property
    def hosts(self) -> frozenset[str]:
        """The host names that a request may ask for; ``*`` for all."""
        local = frozenset({"localhost", "127.0.0.1", "[::1]"})
        loopback = re.fullmatch(r"localhost|127\.[\d.]+|::1", self.host)
        return self.allowed_hosts or (local if loopback else frozenset("*"))


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line each."""

    def error(self, message: str) -> Any:
        raise SettingError(message)


def read_settings(arguments: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Return the settings; an empty value counts as unset, and a flag wins over a variable.

    Raises SettingError with one line that names the setting, what it wants and what it got.
    """
    parser = Parser(
        description="Stream a LangGraph agent's runs as Server-Sent Events. Each flag is also an "
        "environment variable: --max-runs is MAX_RUNS.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=VERSION)
    for each in fields(Settings):
        default = each.default
        shown = ", ".join(default) if isinstance(default, frozenset) else default
        about = f"{each.metadata['about']} [{shown}]" if shown != "" else each.metadata["about"]
        parser.add_argument(_flag(each.name), metavar=each.name.upper(), help=about)
    flags = vars(parser.parse_args(arguments))
    values = {}
    for each in fields(Settings):
        flag, variable = flags[each.name], each.name.upper()
        name = variable if flag is None else _flag(each.name)
        text = environ.get(variable, "") if flag is None else flag
        kind: Kind = each.metadata["kind"]
        if text:
            try:
                values[each.name] = kind.read(text)
            except ValueError:
                got = "something else" if kind.secret else repr(text)
                raise SettingError(f"{name} wants {kind.wants}, got {got}") from None
    return Settings(**values)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


# ----------------------------------------------------------------------------- access, refusals

REFUSALS = {
    "invalid_json": (400, "The body is not JSON in UTF-8."),
    "invalid_request": (400, "The request is not valid."),
    "invalid_last_event_id": (400, "Last-Event-ID is not valid."),
    "nothing_to_resume": (400, "No thread of this thread_id waits for an answer."),
    "unauthorized": (401, "A bearer token is wanted."),
    "origin_not_allowed": (403, "Pages of this origin may not call this server."),
    "host_not_allowed": (403, "This server is not asked for by this host name."),
    "unknown_run": (404, "There is no such run; it may have expired."),
    "unknown_thread": (404, "There is no such thread."),
    "unknown_message": (404, "replaces names no user message of this thread."),
    "not_found": (404, "There is nothing at this path."),
    "method_not_allowed": (405, "This path does not know this method."),
    "thread_busy": (409, "This thread has a running run; follow it or stop it."),
    "idempotency_conflict": (409, "This Idempotency-Key came with another body before."),
    "too_large": (413, "The body is larger than MAX_BODY_BYTES allows."),
    "unsupported_media_type": (415, "The body has to be application/json without compression."),
    "internal": (500, "The server failed."),
    "too_many_runs": (503, "Too many runs at once. Try again in a moment."),
    "draining": (503, "The server is shutting down."),
    "unavailable": (503, "What this server keeps cannot be reached now. Try again in a moment."),
}
"""Status and usual sentence of each code: the contract's table."""

HTTP_CODES = {403: "not_found", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}
"""aiohttp's own refusals; 403 is its answer for a folder of static files."""

RETRY_AFTER_S = 2

PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE",
    "Access-Control-Allow-Headers": (
        "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Prefer"
    ),
    "Access-Control-Max-Age": "600",
}
PAGE_POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

SETTINGS = web.AppKey("settings", Settings)
RUNS = web.AppKey("runs", Registry)
USER = web.RequestKey("user", str)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let in who may come in, and turn every failure into a refusal without internals."""
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
    except ConnectionError:  # The client is gone.
        raise
    except Exception as error:
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
    if not request.content.is_eof():  # The rest of the body may never come.
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
    """Refuse a request for another host: a page whose name was made to point at this machine."""
    hosts = request.app[SETTINGS].hosts
    host = re.sub(r":\d*$", "", asked_host(request))
    # A container's health check asks by an address; a client without Host is no browser.
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
    """Whether a browser asks what a page of a listed origin may send. It brings no token."""
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
    """Return who asks, as the proxy in front says; an empty text if there are no users."""
    name = request.app[SETTINGS].user_header
    if not name:
        return ""
    given = request.headers.getall(name, [])
    if len(given) != 1 or not given[0].strip():
        raise Refused("unauthorized", f"The header {name} is missing: nobody says who asks.")
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
        # The React example loads React from another host; its own policy is in its HTML.
        if not request.path.startswith("/static/react/"):
            headers["Content-Security-Policy"] = PAGE_POLICY
    headers.add("Vary", "Origin")
    if is_listed(request):
        headers["Access-Control-Allow-Origin"] = request.headers["Origin"]
        headers["Access-Control-Expose-Headers"] = "Location, Content-Location, Retry-After"


# ------------------------------------------------------------------------------------- handlers


async def chat(request: web.Request) -> web.StreamResponse:
    """Start a run, or join the one that the same key started, and stream it."""
    asked = await read_chat(request)
    run = await request.app[RUNS].start(asked)
    preferences = ",".join(request.headers.getall("Prefer", []))
    if "respond-async" in re.split(r"[\s,;]+", preferences.lower()):
        headers = {**run_headers(run), "Preference-Applied": "respond-async"}
        about = {"run_id": run.id, "thread_id": asked.thread_id, "events": headers["Location"]}
        return send_json(about, 202, headers)
    joined = run.asked is not asked
    return await follow(request, run, read_cursor(request, run) if joined else 0)


async def run_events(request: web.Request) -> web.StreamResponse:
    """Stream a run from a cursor: replay, then live."""
    run = await find_run(request)
    return await follow(request, run, read_cursor(request, run))


async def run_state(request: web.Request) -> web.StreamResponse:
    return send_json((await find_run(request)).document())


async def cancel(request: web.Request) -> web.StreamResponse:
    """Stop a run and answer when it has stopped."""
    run = await find_run(request)
    if run.log.closed:
        return send_json(run.document())
    logger.info("run=%s is stopped: a client asked for it", run.id)
    run.stop("cancelled")
    while not run.log.closed:
        await run.log.wait(run.log.last_id, request.app[SETTINGS].heartbeat_s)
    return send_json(run.document(), 202)


async def thread_state(request: web.Request) -> web.StreamResponse:
    """Return the conversation so far, and what the thread waits for."""
    runs, asked = request.app[RUNS], read_thread(request)
    run = await runs.running_of(asked.thread)
    history = await runs.agent.history(asked.thread)
    if not run and not await runs.agent.knows(asked.thread):
        raise Refused("unknown_thread")
    if isinstance(run, Run) and run.turn and (question := run.turn.question):
        # The graph may not have saved the question yet.
        history += [question] if all(each.id != question.id for each in history) else []
    about: dict[str, Any] = {
        "thread_id": asked.thread_id,
        "run_id": run.id if run else None,
        "messages": document(history),
    }
    if not run and (pending := await runs.agent.waiting(asked.thread)):
        about["interrupts"] = [{"id": id_, "value": value} for id_, value in pending.items()]
    return send_json(about)


async def delete_thread(request: web.Request) -> web.StreamResponse:
    await request.app[RUNS].forget(read_thread(request))
    return web.Response(status=204)


async def info(request: web.Request) -> web.StreamResponse:
    """Return what the page shows before the first message."""
    settings, agent = request.app[SETTINGS], request.app[RUNS].agent
    names = ("heartbeat_s", "run_timeout_s", "max_runs", "max_run_bytes", "max_body_bytes")
    limits = {"message_chars": MESSAGE_CHARS, **{name: getattr(settings, name) for name in names}}
    about = {"agent": agent.name, "model": agent.model, "version": VERSION, "limits": limits}
    return send_json(about)


async def healthz(request: web.Request) -> web.StreamResponse:
    runs = request.app[RUNS]
    if runs.draining:
        return send_json({"status": "draining"}, 503)
    try:
        await runs.check()
    except Unavailable:
        return send_json({"status": "degraded", "running": runs.running})
    return send_json({"status": "ok", "running": runs.running})


async def page(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(HERE / "static" / "index.html")


# ------------------------------------------------------------------------------ reading requests


def invalid(message: str) -> Refused:
    return Refused("invalid_request", message)


async def read_chat(request: web.Request) -> Asked:
    """Return what the POST asks for. Raises Refused."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not re.fullmatch(r"[\x21-\x7e]{1,128}", key):
        raise invalid("Idempotency-Key has 1 to 128 visible ASCII characters.")
    body, digest = await read_body(request)
    thread_id, message = body.get("thread_id"), body.get("message")
    if thread_id is not None and not (
        isinstance(thread_id, str) and re.fullmatch(THREAD_ID, thread_id)
    ):
        raise invalid("thread_id has 1 to 64 characters of A-Z, a-z, 0-9, _ and -.")
    replaces, context = body.get("replaces"), body.get("context")
    if replaces is not None and (
        not isinstance(replaces, str) or thread_id is None or "resume" in body
    ):
        raise invalid("replaces is the id of a user message, beside message and thread_id.")
    if context is not None and not isinstance(context, dict):
        raise invalid("context has to be an object.")
    if "resume" not in body:
        check_message(message)
    elif message is not None:
        raise invalid("message and resume exclude each other.")
    elif thread_id is None:
        raise Refused("nothing_to_resume")
    return Asked(
        thread_id=thread_id or secrets.token_urlsafe(12),
        message=message,
        resume=body.get("resume"),
        replaces=replaces,
        context=context,
        user=request[USER],
        key=key,
        digest=digest,
    )


async def read_body(request: web.Request) -> tuple[dict[str, Any], str]:
    """Return the request's JSON object and its digest, the same for equal JSON. Raises Refused."""
    if request.content_type != "application/json":
        raise Refused("unsupported_media_type")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refused("unsupported_media_type")
    if (request.content_length or 0) > request.client_max_size:
        raise Refused("too_large")
    try:
        async with asyncio.timeout(BODY_S):
            body = json.loads(await request.read())
        # Refuses NaN, numbers beyond a float and half of a surrogate pair, too.
        canonical = json.dumps(body, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError, web.RequestPayloadError):
        raise Refused("invalid_json") from None
    except TimeoutError:
        raise Refused("invalid_json", "The body did not arrive.") from None
    if not isinstance(body, dict):
        raise invalid("The body has to be a JSON object.")
    return body, hashlib.sha256(canonical).hexdigest()


def check_message(message: Any) -> None:
    if not isinstance(message, str) or not message.strip():
        raise invalid("message has to be text that is not blank.")
    if len(message) > MESSAGE_CHARS:
        raise invalid(f"message has more than {MESSAGE_CHARS} characters.")


async def find_run(request: web.Request) -> AnyRun:
    return await request.app[RUNS].get(request.match_info["run_id"], request[USER])


def read_thread(request: web.Request) -> Asked:
    """Return the thread that the path names, of the user who asks. Raises Refused."""
    thread_id = request.match_info["thread_id"]
    if not re.fullmatch(THREAD_ID, thread_id):
        raise Refused("unknown_thread")
    return Asked(thread_id, user=request[USER])


def read_cursor(request: web.Request, run: AnyRun) -> int:
    """Return the last event id that the reader has, 0 if it has none. Raises Refused.

    Source: WHATWG HTML, "Last-Event-ID".
    """
    query = request.query
    given = request.headers.getall("Last-Event-ID", [])
    given = given or [query.get("last_event_id", query.get("lastEventId", "0"))]
    if len(given) == 1 and re.fullmatch("[0-9]{1,100}", given[0]):
        cursor = int(given[0])
        if cursor <= run.log.last_id:
            return cursor
    allowed = f"Last-Event-ID has to be a whole number from 0 to {run.log.last_id}."
    raise Refused("invalid_last_event_id", allowed)


# --------------------------------------------------------------------------------------- streams


def run_headers(run: AnyRun) -> dict[str, str]:
    url = f"/api/runs/{run.id}"
    return {"Location": f"{url}/events", "Content-Location": url}


async def follow(request: web.Request, run: AnyRun, after: int) -> web.StreamResponse:
    """Send the frames after the cursor, then each as it comes, to the run's end.

    Source: WHATWG HTML, "Server-sent events".
    """
    log, settings, loop = run.log, request.app[SETTINGS], asyncio.get_running_loop()
    if log.closed and after == log.last_id and after:
        return web.Response(status=204)
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache, no-transform",
            # nginx would otherwise collect the stream before it passes it on.
            "X-Accel-Buffering": "no",
            **run_headers(run),
        }
    )
    if request.version < (1, 1):  # Nothing but the connection's end marks the stream's end.
        response.force_close()
    run.join()
    try:
        writer = await response.prepare(request)
        assert isinstance(writer, StreamWriter)
        hold_little(request.transport)
        block, due = encode_retry(), 0.0
        while True:
            frames, after = log.read(after, WRITE_BYTES)
            if block or frames:
                await send(request, writer, block + frames, settings.send_timeout_s)
                block, now = b"", loop.time()
                due = max(due, now - BURST_S) + WRITE_EVERY_S
                if due > now and after == log.last_id and not log.closed:
                    await asyncio.sleep(due - now)
            elif log.closed:
                break
            elif not await log.wait(after, settings.heartbeat_s):
                block = HEARTBEAT
        async with asyncio.timeout(settings.send_timeout_s):
            await response.write_eof()
    except (TimeoutError, ConnectionError):
        logger.debug("run=%s lost a reader", run.id)
        if request.transport:
            request.transport.abort()
    finally:
        run.leave()
    return response


def hold_little(transport: asyncio.Transport | None) -> None:
    """Let what a slow reader has not taken wait in the log, and only a little of it elsewhere.

    Without this Linux takes up to 3.9 MB for a reader before it says that the reader is slow.
    """
    if transport is None:
        return
    transport.set_write_buffer_limits(0)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Windows has no such option.
        with suppress(OSError):  # macOS refuses it once the reader is gone.
            transport.get_extra_info("socket").setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, WRITE_BYTES
            )


async def send(request: web.Request, writer: StreamWriter, data: bytes, timeout_s: float) -> None:
    """Write in pieces, and wait until the kernel has taken each.

    Raises TimeoutError if the reader does not take a piece in time, ConnectionError if it is gone.
    """
    for start in range(0, len(data), WRITE_BYTES):
        await writer.write(data[start : start + WRITE_BYTES], drain=False)
        if request.protocol.writing_paused:
            async with asyncio.timeout(timeout_s):
                await writer.drain()


# ------------------------------------------------------------------------------- start and stop


def create_app(settings: Settings, agent: Agent) -> web.Application:
    """Return the application that serves this agent."""
    app = web.Application(middlewares=[guard], client_max_size=settings.max_body_bytes)
    app[SETTINGS] = settings
    app.cleanup_ctx.append(lambda app: keep_runs(app, agent))
    app.on_response_prepare.append(add_headers)
    for method, path, handler in (
        ("POST", "/api/chat", chat),
        ("GET", "/api/runs/{run_id}/events", run_events),
        ("GET", "/api/runs/{run_id}", run_state),
        ("POST", "/api/runs/{run_id}/cancel", cancel),
        ("GET", "/api/threads/{thread_id}", thread_state),
        ("DELETE", "/api/threads/{thread_id}", delete_thread),
        ("GET", "/api/info", info),
        ("GET", "/healthz", healthz),
        ("HEAD", "/healthz", healthz),
        ("GET", "/", page),
        ("HEAD", "/", page),
    ):
        app.router.add_route(method, path, handler)
    app.router.add_static("/static", HERE / "static")
    return app


async def keep_runs(app: web.Application, agent: Agent) -> AsyncIterator[None]:
    """Open what keeps the threads and the runs, and close it behind the last run."""
    settings = app[SETTINGS]
    async with AsyncExitStack() as engines:
        agent.keep_threads_in(Memory(settings.max_threads))
        if settings.database_url:
            with engine("DATABASE_URL"):
                from threads.database import open_database

                opening = open_database(settings.database_url)
                agent.keep_threads_in(await engines.enter_async_context(opening))
        store: Store = MemoryStore()
        if settings.redis_url:
            with engine("REDIS_URL"):
                from runs.redis import open_redis

                opening_redis = open_redis(settings.redis_url, settings)
                store = await engines.enter_async_context(opening_redis)
        app[RUNS] = Registry(settings, agent, store)
        yield
        await app[RUNS].drain(0)


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Turn what hinders an engine's start into the line that stops the server's."""
    try:
        yield
    except ImportError as error:
        install = f"{sys.executable} -m pip install -r deploy/requirements.txt"
        raise SettingError(f"{name} wants the package of {error.name}: {install}") from error
    except Exception as error:
        # Not the exception's text, which may have the password.
        got = type(error).__name__
        raise SettingError(f"{name} wants an engine that answers, got {got}") from error


async def listen(app: web.Application, host: str, port: int) -> tuple[web.AppRunner, str]:
    """Serve the application until the runner is cleaned up; return that and the URL.

    Raises SettingError if the address cannot be had.
    """
    runner = web.AppRunner(
        app,
        access_log=None,
        # A disconnect has to cancel its handler, or the grace would begin at a failed heartbeat.
        handler_cancellation=True,
        shutdown_timeout=0.2,
        # A compressed body is refused and not unpacked.
        auto_decompress=False,
        max_field_size=FIELD_BYTES,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
    except (OSError, UnicodeError) as error:
        await runner.cleanup()
        why = getattr(error, "strerror", None) or "no such name"
        got = f"{host}:{port}: {why}".encode("unicode_escape").decode()
        raise SettingError(f"HOST and PORT want an address that is free here, got {got}") from None
    address, port = runner.addresses[0][:2]
    return runner, f"http://{f'[{address}]' if ':' in address else address}:{port}"


async def choose_agent(settings: Settings, found: Any) -> Agent:
    """Return the agent: what AGENT names, if it is set, else the built-in one."""
    if settings.agent:
        return Agent(await make(found, settings.agent), settings.agent)
    from builtin.agent import built_in

    graph, model = built_in(
        docs=Path(settings.docs_dir or HERE / "README.md"),
        tokens_per_s=settings.demo_tokens_per_s,
        api_key=settings.openai_api_key,
        base_url=settings.openai_base_url,
        model=settings.openai_model,
    )
    return Agent(graph, "built-in", model)


async def serve(settings: Settings, found: Any) -> None:
    """Serve until SIGTERM or Ctrl-C, then shut down in order; a second signal ends it at once."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_loop_failure)
    # A stopped tool keeps its worker thread until it returns; others must not wait for that.
    loop.set_default_executor(ThreadPoolExecutor(settings.max_runs + 32))
    app = create_app(settings, await choose_agent(settings, found))
    runner, url = await listen(app, settings.host, settings.port)
    stop = asyncio.Event()

    def on_signal(number: int, _: Any) -> None:
        signal.signal(number, lambda *_: os._exit(128 + number))
        loop.call_soon_threadsafe(stop.set)

    # Not loop.add_signal_handler, which Windows does not have.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    # What is loaded by now stays, so the garbage collector need not look at it again.
    gc.freeze()
    gc.set_threshold(GARBAGE)
    print(f"Serving on {url}", flush=True)
    await stop.wait()
    # The server still listens: reads and health checks are answered.
    await app[RUNS].drain(settings.shutdown_grace_s)
    await runner.cleanup()


def log_loop_failure(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what no task awaits; a closed browser tab raises a ConnectionError there on Windows."""
    error = context.get("exception")
    level = logging.DEBUG if isinstance(error, ConnectionError) else logging.ERROR
    logger.log(level, context["message"], exc_info=error)


def main() -> None:
    """Read the settings, find the agent and serve it."""
    try:
        settings = read_settings(sys.argv[1:], os.environ)
        # Only this server's own level: libraries log addresses and texts below WARNING.
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
        logger.setLevel(settings.log_level.upper())
        found = find(settings.agent) if settings.agent else None
        run_to_the_end(serve(settings, found))
    except (SettingError, AgentError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    logging.shutdown()
    sys.stdout.flush()
    # A tool that blocks a worker thread would hold the process until it returns.
    os._exit(0)


def run_to_the_end(serving: Coroutine[Any, Any, None]) -> None:
    """Run the event loop until the server has shut down: uvloop's, if it is installed."""
    loop: asyncio.AbstractEventLoop
    try:
        import uvloop

        loop = uvloop.new_event_loop()  # A token takes less time there.
    except ImportError:
        loop = asyncio.new_event_loop()
    task = loop.create_task(serving)
    while True:
        try:
            return loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt) as error:
            # Before `serve` listens to signals this is Ctrl-C. After that a tool or a node has
            # raised it: asyncio then leaves the loop, which other runs still need.
            if task.done() or signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                raise
            logger.warning("a tool or a node raised %s", type(error).__name__)


if __name__ == "__main__":
    main()
