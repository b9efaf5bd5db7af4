"""What a run's failure means, and what is said of it.

Texts of exceptions are read here to find the kind of a failure; they are never sent, since
providers put keys and addresses there.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple

from langchain_core import exceptions as langchain


class EmptyAnswer(Exception):
    """The graph ended with nothing to show."""


class Failure(NamedTuple):
    """An ``error`` event without its ``ref``."""

    code: str
    retryable: bool
    message: str


FAILURES = {
    "timeout": Failure("timeout", True, "The run reached its time limit."),
    "too_large": Failure("too_large", False, "The answer reached its size limit."),
    "shutdown": Failure("shutdown", True, "The server is shutting down. Try again in a moment."),
    "agent_error": Failure("agent_error", False, "The agent failed."),
    "no_key": Failure("model_auth", False, "The model has no API key. Set it and start again."),
    "model_auth": Failure("model_auth", False, "The model's provider rejected the key."),
    "model_rate_limit": Failure(
        "model_rate_limit", True, "The model's provider asks to slow down. Try again in a moment."
    ),
    "quota": Failure("model_rate_limit", False, "The quota at the model's provider is used up."),
    "model_not_found": Failure(
        "model_not_found", False, "The model's provider knows no model of this name."
    ),
    "model_context": Failure("model_context", False, "The conversation is too long for the model."),
    "model_unreachable": Failure("model_unreachable", True, "The model cannot be reached."),
    "model_error": Failure(
        "model_error", True, "The model's provider failed. Try again in a moment."
    ),
    "refused": Failure("model_error", False, "The model's provider refused the request."),
    "broke_off": Failure("model_error", True, "The model's answer broke off. Try again."),
    "empty": Failure("model_error", True, "The model's answer was empty. Try again."),
}
"""By the kind of failure. Several kinds may have one code: the contract lists the codes."""

CLASSES: list[tuple[Any, str]] = [
    (langchain.ContextOverflowError, "model_context"),
    ((langchain.ModelAuthenticationError, langchain.ModelPermissionDeniedError), "model_auth"),
    (langchain.ModelNotFoundError, "model_not_found"),
    (langchain.ModelRateLimitError, "model_rate_limit"),
    (langchain.ModelInvalidRequestError, "refused"),
    (langchain.ModelAPIError, "model_error"),
    ((langchain.ModelConnectionError, langchain.ModelTimeoutError), "model_unreachable"),
]

STATUSES = {
    401: "model_auth",
    402: "quota",
    403: "model_auth",
    404: "model_not_found",
    408: "model_error",
    413: "model_context",
    429: "model_rate_limit",
}

WORDS = [
    (r"context.?(length|window)|maximum context|(prompt|input) is too long", "model_context"),
    (r"insufficient.(quota|balance)|credit balance", "quota"),
    (r"rate.?limit", "model_rate_limit"),
]
"""What providers write into an error, its code and type included. These words say more than its
class and its status, and an error in the middle of a stream has no status."""

TRANSPORTS = {"httpx", "httpx2", "httpcore", "aiohttp"}
"""The packages whose own exceptions say that a connection failed."""


def model_failure(chain: Sequence[BaseException], began: bool) -> str:
    """Return the key of `FAILURES` for what a model call raised, the exception and its causes.

    ``began`` is whether a chunk had come: then a lost connection means that the answer broke off.
    """
    error = chain[0]
    text, status = f"{error} {getattr(error, 'body', '')}", _status(error)
    kind = next((kind for pattern, kind in WORDS if re.search(pattern, text, re.I)), None)
    kind = kind or next((kind for class_, kind in CLASSES if isinstance(error, class_)), None)
    if kind is None and status:
        kind = STATUSES.get(status, "model_error" if status >= 500 else "refused")
    if kind is None and any(map(_is_transport, chain)):
        kind = "model_unreachable"
    if kind == "model_unreachable" and began:
        return "broke_off"
    return kind or ("no_key" if lacks_key(error) else "model_error")


def lacks_key(error: BaseException) -> bool:
    """Whether a model could not be made, or called, since nobody gave it a key."""
    text = str(error)
    missing = re.search(r"missing|must be set|to be set|not set|did not find|required", text, re.I)
    return bool(missing and re.search(r"api.?key", text, re.I))


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an exception carries, itself, on its response or in its body."""
    for place in (error, getattr(error, "response", None), getattr(error, "body", None)):
        for name in ("status_code", "status", "code"):
            found = place.get(name) if isinstance(place, dict) else getattr(place, name, None)
            if str(found).isdecimal() and 400 <= int(str(found)) < 600:
                return int(str(found))
    return None


def _is_transport(error: BaseException) -> bool:
    classes = type(error).__mro__
    foreign = any(each.__module__.partition(".")[0] in TRANSPORTS for each in classes)
    return foreign or isinstance(error, ConnectionError | TimeoutError | socket.gaierror)
