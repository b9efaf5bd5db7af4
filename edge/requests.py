"""Read and check a request: its body, its thread, its cursor."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import secrets
from typing import Any

from aiohttp import web

from edge.access import USER
from events import Asked, Refused

MESSAGE_CHARS = 32_000
THREAD_ID = "[A-Za-z0-9_-]{1,64}"

BODY_S = 30.0
"""How long a request's body may take to arrive; nginx gives 60 s from one read to the next."""


def invalid(message: str) -> Refused:
    return Refused("invalid_request", message)


def read_chat(request: web.Request, body: dict[str, Any], digest: str) -> Asked:
    """Return what the POST asks for. Raises Refused."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not re.fullmatch(r"[\x21-\x7e]{1,128}", key):
        raise invalid("Idempotency-Key has 1 to 128 visible ASCII characters.")
    thread_id, message = body.get("thread_id"), body.get("message")
    if thread_id is not None:
        check_thread_id("thread_id", thread_id)
    replaces, context = body.get("replaces"), body.get("context")
    if replaces is not None and (
        not isinstance(replaces, str) or thread_id is None or "resume" in body
    ):
        raise invalid("replaces has to be a string, and needs message and thread_id.")
    check_context(context)
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
            body = json.loads((await request.read()).decode(), parse_int=_read_int)
        # Refuses NaN, numbers beyond a float and half of a surrogate pair, too.
        canonical = json.dumps(body, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError, web.RequestPayloadError):
        raise Refused("invalid_json") from None
    except TimeoutError:
        raise Refused("invalid_json", "The body did not arrive.") from None
    if not isinstance(body, dict):
        raise invalid("The body has to be a JSON object.")
    return body, hashlib.sha256(canonical).hexdigest()


def check_thread_id(name: str, value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(THREAD_ID, value):
        raise invalid(f"{name} has 1 to 64 characters of A-Z, a-z, 0-9, _ and -.")


def check_asked(asked: Asked) -> Asked:
    """Return what a dialect read, if `read_chat` would take it. Raises Refused."""
    if asked.message is not None:
        check_message(asked.message)
    check_context(asked.context)
    return asked


def check_context(context: Any) -> None:
    if context is not None and not isinstance(context, dict):
        raise invalid("context has to be an object.")


def _read_int(digits: str) -> int:
    if math.isinf(float(digits)):
        raise ValueError("a number beyond a float")
    return int(digits)


def check_message(message: Any) -> None:
    if not isinstance(message, str) or not message.strip():
        raise invalid("message has to be text that is not blank.")
    if len(message) > MESSAGE_CHARS:
        raise invalid(f"message has more than {MESSAGE_CHARS} characters.")


def read_thread(request: web.Request) -> Asked:
    """Return the thread that the path names, of the user who asks. Raises Refused."""
    thread_id = request.match_info["thread_id"]
    if not re.fullmatch(THREAD_ID, thread_id):
        raise Refused("unknown_thread")
    return Asked(thread_id, user=request[USER])


def read_cursor(request: web.Request, last_id: int) -> int:
    """Return the last event id that the reader has, 0 if it has none. Raises Refused.

    ``last_id`` is the id of the run's newest event.

    Source: WHATWG HTML, "Last-Event-ID".
    """
    query = request.query
    given = request.headers.getall("Last-Event-ID", [])
    given = given or [query.get("last_event_id", query.get("lastEventId", "0"))]
    if len(given) == 1 and re.fullmatch("[0-9]{1,100}", given[0]):
        cursor = int(given[0])
        if cursor <= last_id:
            return cursor
    allowed = f"Last-Event-ID has to be a whole number from 0 to {last_id}."
    raise Refused("invalid_last_event_id", allowed)
