"""The vocabulary of the wire: events, the frames that carry them, and a run's log of frames.

A run is an append-only log of frames; a response is a cursor on it. This module promises the
exact bytes of a frame and that everyone who reads a log reads the same ones. `MemoryStore` gives
out the logs, and tells who holds a name; `shared` has another one, for several processes. It
imports the standard library alone and knows neither HTTP nor LangGraph.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

RETRY_MS = 2000
"""How long a native EventSource waits before it connects again."""


@dataclass
class StreamEvent:
    """One fact told to the reader; which fields it has depends on ``type``, all others are None.

    ======================= =====================================================================
    type                    fields
    ======================= =====================================================================
    start                   run_id, thread_id, heartbeat_s, timeout_s
    thinking                content
    reasoning_delta         content, message_id
    text_delta              content, message_id
    tool_call               tool, tool_call_id, input
    tool_progress           tool, tool_call_id, content
    tool_result             tool, tool_call_id, status, then result when ``ok``, else message
    interrupt               interrupts: ``[{"id", "value"}]``
    final_answer            content, message_id
    error                   code, message, retryable, ref
    done                    reason, timings, usage
    ======================= =====================================================================
    """

    type: str
    run_id: str | None = None
    thread_id: str | None = None
    heartbeat_s: float | None = None
    timeout_s: float | None = None
    content: str | None = None
    message_id: str | None = None
    tool: str | None = None
    tool_call_id: str | None = None
    input: dict[str, Any] | None = None
    status: str | None = None
    result: dict[str, Any] | None = None
    interrupts: list[dict[str, Any]] | None = None
    code: str | None = None
    message: str | None = None
    retryable: bool | None = None
    ref: str | None = None
    reason: str | None = None
    timings: dict[str, int] | None = None
    usage: dict[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON will carry it: absent fields left out, not null."""
        return {name: value for name, value in vars(self).items() if value is not None}


_encode_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_quote = json.encoder.encode_basestring


def encode_event(event: StreamEvent, event_id: int) -> bytes:
    """Return the frame of one event: id, event and data lines, then a blank line.

    ``event_id`` counts from 1 within a run; a client gives it back as Last-Event-ID.
    Raises ValueError where the payload holds NaN, which JSON cannot carry.

    Source: WHATWG HTML, "Parsing an event stream".
    """
    # JSON escapes CR and LF, so one data line is always enough. Most values are short texts; to
    # make an encoder for each event would take longer than to quote them.
    fields = [
        f'"{name}":{_quote(value) if isinstance(value, str) else _encode_json(value)}'
        for name, value in vars(event).items()
        if value is not None
    ]
    frame = f"id: {event_id}\nevent: {event.type}\ndata: {{{','.join(fields)}}}\n\n"
    # Half of a surrogate pair has no UTF-8; its JSON escape joins the other half in the client.
    return frame.encode("utf-8", "backslashreplace")


def encode_comment(text: str) -> bytes:
    """Return a comment of one line, which a client's parser skips: a heartbeat is one.

    Raises ValueError where ``text`` has a line end, which would begin a field.

    Source: WHATWG HTML, "Parsing an event stream".
    """
    if "\r" in text or "\n" in text:
        raise ValueError("a comment is one line")
    return f": {text}\n\n".encode("utf-8", "backslashreplace")


def encode_retry() -> bytes:
    """Return the block that tells a client to wait `RETRY_MS` before it reconnects."""
    return f"retry: {RETRY_MS}\n\n".encode()


class EventLog:
    """A run's frames in order, each encoded once, for any number of readers to follow.

    An event's number is its event id. Appending never waits; a reader holds a cursor, the last
    id that it has, reads what follows it, and waits for the log to grow. Used from one event
    loop; nothing in it is bounded, so whoever appends minds ``size``.
    """

    def __init__(self) -> None:
        self.size = 0
        """Bytes of all frames together."""
        self.closed = False
        self.lost = False
        """Whether it cannot be known now how the run goes on."""
        self.overtaken = False
        """Whether somebody else has ended the run."""
        self._frames: list[bytes] = []
        self._waiting: set[asyncio.Future[bool]] = set()

    @property
    def last_id(self) -> int:
        """The id of the newest event, 0 before the first."""
        return len(self._frames)

    def append(self, event: StreamEvent, max_bytes: float = float("inf")) -> int:
        """Add the event, wake the readers and return its id.

        Raises OverflowError, and adds nothing, where the log would exceed ``max_bytes``;
        ValueError as `encode_event` does; RuntimeError where the log is closed.
        """
        if self.closed:
            raise RuntimeError("the log is closed")
        frame = encode_event(event, self.last_id + 1)
        if self.size + len(frame) > max_bytes:
            raise OverflowError(f"the log would exceed {max_bytes} bytes")
        self._frames.append(frame)
        self.size += len(frame)
        self._wake()
        return self.last_id

    def close(self) -> None:
        """Say that nothing follows: readers that have every event are at the end."""
        self.closed = True
        self._wake()

    def read(self, after: int, max_bytes: int) -> tuple[bytes, int]:
        """Return the frames after the cursor as one piece of bytes, and the cursor behind them.

        As many frames as fit in ``max_bytes``, at least one where there is one.
        """
        end, size = after, 0
        while end < self.last_id:
            size += len(self._frames[end])
            if size > max_bytes and end > after:
                break
            end += 1
        return b"".join(self._frames[after:end]), end

    async def wait(self, after: int, timeout_s: float) -> bool:
        """Wait for an event after the cursor or for the end; False when ``timeout_s`` pass first.

        One future and one timer for each wait, no task: this runs for every reader at every token.
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

    async def flush(self) -> None:
        """Wait until all that was appended can be read. Raises Unavailable."""

    def _wake(self) -> None:
        for news in self._waiting:
            _resolve(news, True)


def _resolve(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)


class Unavailable(ConnectionError):
    """What the runs share cannot be reached now; a reader that waits for it is cut like any other
    whose connection fails."""


class MemoryStore:
    """What the runs of one process share: their logs, and claims on names.

    The first to claim a name holds it until it is released; everybody else learns who does.
    """

    degraded = False
    """Whether what is shared cannot be reached, so that nothing new can be claimed."""

    def __init__(self) -> None:
        self._claims: dict[str, str] = {}
        self.owned: Callable[[str], Any] | None = None
        """Finds a run of this process, for other processes: here there are none."""

    def new_id(self) -> str:
        """Return the id of a new run."""
        return secrets.token_hex(12)

    def log(self, run_id: str) -> EventLog:
        """Return the empty log of a new run."""
        return EventLog()

    async def find(self, run_id: str) -> None:
        """Return a run of another process: here there is none."""

    async def claim(self, name: str, claim: str, leased: bool = True) -> str:
        """Return the claim that holds the name: this one, where nobody came before.

        ``leased`` is whether it ends with its process; here all do.
        """
        return self._claims.setdefault(name, claim)

    async def inherited(self, name: str) -> dict[str, list[str]]:
        """Return the texts of a run whose process died with this claim: here there is none."""
        return {}

    async def keeps(self, name: str, claim: str) -> bool:
        """Whether this claim holds the name for certain."""
        return self._claims.get(name) == claim

    async def holder(self, name: str) -> str | None:
        return self._claims.get(name)

    async def release(self, name: str, claim: str) -> None:
        """Give the name back, if this claim holds it."""
        if self._claims.get(name) == claim:
            del self._claims[name]
