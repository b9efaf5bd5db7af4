"""The vocabulary that all rooms share: requests, events, frames, and a run's log.

A run is an append-only log of frames; a response reads it from a cursor. This module promises the
exact bytes of a frame, and that all readers of a log read the same ones. It imports the standard
library alone and knows neither HTTP nor LangGraph.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

RETRY = b"retry: 2000\n\n"
"""The block that makes a native EventSource wait so many ms before it connects again."""

HEARTBEAT = b": heartbeat\n\n"
"""A comment: a client's parser skips it.

Source: WHATWG HTML, "Parsing an event stream".
"""


@dataclass(frozen=True)
class Asked:
    """A chat request: it starts a turn with ``message``, or resumes one with ``resume``."""

    thread_id: str
    message: str | None = None
    """The user's text; None if the run answers the thread's interrupt."""
    resume: Any = None
    """The answer to the interrupt: any JSON value."""
    replaces: str | None = None
    """The id of the user message to drop, with all that follows it, before ``message`` is added."""
    context: dict[str, Any] | None = None
    """The graph's runtime context."""
    user: str = ""
    """The user's name from the header that USER_HEADER names; empty if that is not set."""
    key: str | None = None
    """The Idempotency-Key."""
    digest: str = ""
    """A hash of the body, the same for bodies that are equal as JSON."""

    @property
    def thread(self) -> str:
        """The name under which the server keeps the thread: two users may choose the same id."""
        return thread_name(self.user, self.thread_id)


def thread_name(user: str, thread_id: str) -> str:
    """Return the name under which a user's thread is kept; no two users share one."""
    return f"{quote(user, safe='')}:{thread_id}" if user else thread_id


class Refused(Exception):
    """A request that is not served. ``code`` is one of the contract's codes for refusals.

    ``message`` replaces the code's usual sentence. ``details`` are further fields of the ``error``
    object, such as ``run_id``.
    """

    def __init__(self, code: str, message: str = "", **details: str) -> None:
        super().__init__(message or code)
        self.code = code
        self.message = message
        self.details = details


class SettingError(Exception):
    """A setting has a value that cannot be used; the text is one line for a person."""


class Unavailable(ConnectionError):
    """Redis or the database cannot be reached now."""


@dataclass
class StreamEvent:
    """One fact for the reader. ``type`` says which fields it has; all others are None.

    ======================= =====================================================================
    type                    fields
    ======================= =====================================================================
    start                   run_id, thread_id, message_id, heartbeat_s, timeout_s
    thinking                content
    reasoning_delta         content, message_id
    text_delta              content, message_id
    tool_call               tool, tool_call_id, input
    tool_progress           tool, tool_call_id, content
    tool_result             tool, tool_call_id, status, then result if ``ok``, else message
    interrupt               interrupts: ``[{"id", "value"}]``
    final_answer            content, message_id, finish_reason
    error                   code, message, retryable, ref
    done                    reason, timings, usage
    ======================= =====================================================================
    """

    type: str
    run_id: str | None = None
    thread_id: str | None = None
    content: str | None = None
    message_id: str | None = None
    heartbeat_s: float | None = None
    timeout_s: float | None = None
    tool: str | None = None
    tool_call_id: str | None = None
    input: dict[str, Any] | None = None
    status: str | None = None
    result: dict[str, Any] | None = None
    interrupts: list[dict[str, Any]] | None = None
    finish_reason: str | None = None
    code: str | None = None
    message: str | None = None
    retryable: bool | None = None
    ref: str | None = None
    reason: str | None = None
    timings: dict[str, int] | None = None
    usage: dict[str, int] | None = None


_encode_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_quote = json.encoder.encode_basestring


def encode_event(event: StreamEvent, event_id: int) -> bytes:
    """Return the frame of one event: event, data and id lines, then a blank line.

    ``event_id`` counts from 1 within a run; a client gives it back as Last-Event-ID.
    Raises ValueError if the payload holds NaN, which JSON cannot carry.

    Source: WHATWG HTML, "Parsing an event stream".
    """
    # JSON escapes CR and LF, so one data line is always enough. Most values are short texts:
    # quoting them one by one is faster than an encoder for the whole event.
    fields = [
        f'"{name}":{_quote(value) if isinstance(value, str) else _encode_json(value)}'
        for name, value in vars(event).items()
        if value is not None
    ]
    # The id comes last: fetch-event-source remembers an id before it has the whole frame.
    frame = f"event: {event.type}\ndata: {{{','.join(fields)}}}\nid: {event_id}\n\n"
    # Half of a surrogate pair has no UTF-8; its JSON escape joins the other half in the client.
    return frame.encode("utf-8", "backslashreplace")


UNCOUNTED = {"tool_result", "final_answer", "error", "done"}
"""The events that a log's limit does not count, so that a run can always be closed."""


class LogFull(Exception):
    """The event does not fit into the log's limit."""


class EventLog:
    """A run's frames in order, each encoded once, for any number of readers to follow.

    An event's number is its event id. Appending never waits. A reader holds a cursor, the last id
    that it has; it reads what follows the cursor, and waits for the log to grow. Used from one
    event loop.
    """

    def __init__(self) -> None:
        self.size = 0
        """Bytes of all frames that count."""
        self.closed = False
        self._frames: list[bytes] = []
        self._waiting: set[asyncio.Future[bool]] = set()

    @property
    def last_id(self) -> int:
        """The id of the newest event, 0 before the first."""
        return len(self._frames)

    @property
    def valid(self) -> bool:
        """Whether the run is surely this server's own; in memory it always is."""
        return True

    def append(self, event: StreamEvent, max_bytes: float = float("inf")) -> None:
        """Add the event and wake the readers.

        Raises LogFull if the log would exceed ``max_bytes``; then nothing is added. Raises
        ValueError as `encode_event` does, and RuntimeError if the log is closed.
        """
        if self.closed:
            raise RuntimeError("the log is closed")
        self._frames.append(self._encode(event, self.last_id + 1, max_bytes))
        self._wake()

    def _encode(self, event: StreamEvent, event_id: int, max_bytes: float) -> bytes:
        frame = encode_event(event, event_id)
        if event.type not in UNCOUNTED:
            if self.size + len(frame) > max_bytes:
                raise LogFull
            self.size += len(frame)
        return frame

    def close(self) -> None:
        """Mark the end: readers that have every event are done."""
        self.closed = True
        self._wake()

    def read(self, after: int, max_bytes: int) -> tuple[bytes, int]:
        """Return the frames after the cursor as one piece of bytes, and the new cursor.

        It holds as many frames as fit in ``max_bytes``, but at least one if there is one.
        """
        end, size = after, 0
        while end < self.last_id:
            size += len(self._frames[end])
            if size > max_bytes and end > after:
                break
            end += 1
        return b"".join(self._frames[after:end]), end

    def events(self, *types: str) -> Iterator[dict[str, Any]]:
        """Yield the events of these types as objects."""
        heads = tuple(f"event: {type_}\n".encode() for type_ in types)
        for frame in self._frames:
            if frame.startswith(heads):
                yield json.loads(frame.split(b"\n", 2)[1].removeprefix(b"data: "))

    async def wait(self, after: int, timeout_s: float) -> bool:
        """Wait for an event after the cursor or for the end; False if ``timeout_s`` pass first.

        Every reader waits at every token, so a wait makes one future and one timer, but no task.
        """
        if self.last_id > after or self.closed:
            return True
        loop = asyncio.get_running_loop()
        news: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(timeout_s, _resolve, news, False)
        self._waiting.add(news)
        try:
            return await news
        finally:
            timer.cancel()
            self._waiting.discard(news)

    async def ended(self) -> None:
        """Wait until the log is closed."""
        while not self.closed:
            await self.wait(self.last_id, timeout_s=60)

    def _wake(self) -> None:
        for news in self._waiting:
            _resolve(news, True)


def _resolve(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)
