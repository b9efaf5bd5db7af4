"""A run that several servers share: the owner's log, and the run as all other servers have it.

This module knows no network: `runs.redis` carries frames and wishes to and fro.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from events import Asked, EventLog, LogFull, StreamEvent, Unavailable, encode_event
from graphs.failures import FAILURES
from runs.run import Run
from threads.repair import LEFT_OPEN

SURE_S = 2.0
"""How long after the start of a renewal a run may write to its thread. The lease is a second
longer, for writes that are on their way."""

ROOM_S = 1.5
"""How long the owner has to make room: to see the wish, to stop the run, to settle its thread."""

ASKED = "thread_id", "message", "resume", "user", "digest"
"""What other servers have to know of what was asked."""

Entry = tuple[bytes, dict[bytes, bytes]]
"""An entry of the log: its id ``n-T`` for event n, stored at T, in ms; then its fields."""

# Not the loop's clock: uvloop's stands still within a round of the loop, so that a process that
# was paused would take an old lease for valid.
now = time.monotonic


class Copy(EventLog):
    """What this server has of a log that is kept elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self._cut = False

    @property
    def valid(self) -> bool:
        return not self._cut

    def cut(self) -> None:
        """Cut the readers: how the log goes on does not become known here."""
        self._cut = True
        self._wake()

    def add(self, frames: Sequence[bytes]) -> None:
        """Add frames that the log has, and wake the readers."""
        self._frames += frames
        self._wake()

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the events as objects, all but deltas."""
        for frame in self._frames:
            if not is_a(frame, b"text_delta") and not is_a(frame, b"reasoning_delta"):
                yield json.loads(frame.split(b"\n", 2)[1].removeprefix(b"data: "))

    async def wait(self, after: int, timeout_s: float) -> bool:
        """Wait as `EventLog.wait` does. Raises Unavailable if the readers are cut."""
        if self._cut and self.last_id <= after and not self.closed:
            raise Unavailable
        return await super().wait(after, timeout_s)


class OwnLog(Copy):
    """The log of a run of this server. Its events can be read as soon as Redis has them."""

    def __init__(self, run: Run, send: Callable[[OwnLog], None]) -> None:
        super().__init__()
        self.run = run
        self.renewed = now()
        """When the last successful renewal began."""
        self.ending = False
        self.unsent: list[bytes] = []
        self.visits: dict[str, float] = {}
        """Until when each other server is believed to have readers of the run."""
        self._send = send

    @property
    def valid(self) -> bool:
        return self.closed or (not self._cut and now() < self.renewed + SURE_S)

    def append(self, event: StreamEvent, max_bytes: float = float("inf")) -> None:
        """Add the event as `EventLog.append` does, unless the readers are cut."""
        if self.ending:
            raise RuntimeError("the log is closed")
        frame = encode_event(event, self.last_id + len(self.unsent) + 1)
        if self.size + len(frame) > max_bytes:
            raise LogFull
        if not self._cut:
            self.size += len(frame)
            self.unsent.append(frame)
            self._send(self)

    def close(self) -> None:
        """Mark the end; the log is closed once Redis has all of it."""
        self.ending = True
        self._send(self)

    def sent(self, count: int) -> None:
        """Note that Redis has so many of the unsent events."""
        self.add(self.unsent[:count])
        del self.unsent[:count]
        if self.ending and not self.unsent:
            super().close()


class ForeignRun:
    """A run of another server, with the face of one of this server's own.

    ``tell`` tells the owner of a wish, or that it is none any more.
    """

    def __init__(self, run_id: str, tell: Callable[[ForeignRun, str, bool], None]) -> None:
        self.id = run_id
        self.log = Copy()
        self.wishes: set[str] = set()
        self.looked_at = now()
        self.started_ms = 0
        self._first_token_ms = 0
        self._asked: dict[str, Any] = {}
        self._tell = tell
        self._readers = 0

    def take(self, entries: Sequence[Entry]) -> None:
        """Add the entries that follow the copy's last event."""
        log = self.log
        for entry_id, fields in entries:
            frame = fields[b"frame"]
            event_id, stored_ms = map(int, entry_id.split(b"-"))
            if event_id != log.last_id + 1:
                continue  # Two looks at once bring the same entries.
            if event_id == 1:
                self.started_ms, self._asked = stored_ms, json.loads(fields[b"asked"])
            if not self._first_token_ms and is_a(frame, b"text_delta"):
                self._first_token_ms = stored_ms
            log.size += len(frame)
            log.add([frame])
        if has_ended(entries):
            log.close()

    @property
    def asked(self) -> Asked:
        return Asked(**self._asked["asked"])

    @property
    def before(self) -> str | None:
        before: str | None = self._asked["before"]
        return before

    @property
    def question_id(self) -> str | None:
        return next(self.log.events()).get("message_id")

    def document(self) -> dict[str, Any]:
        """Return the run's state as its JSON document."""
        events = {event["type"]: event for event in self.log.events()}
        return {
            "run_id": self.id,
            "thread_id": self.asked.thread_id,
            "status": events.get("done", {}).get("reason", "running"),
            "last_event_id": self.log.last_id,
            "answer": events.get("final_answer", {}).get("content"),
        }

    def join(self) -> None:
        self._readers += 1
        self._wish("read")

    def leave(self) -> None:
        self._readers -= 1
        if not self._readers:
            self._wish("read", False)

    def stop(self, reason: str) -> None:
        """Have the owner cancel the run."""
        self._wish("stop")

    async def make_room(self) -> bool:
        """Have the owner stop the run if its readers left it; False if it goes on."""
        if self._readers:
            return False
        self._wish("room")
        try:
            async with asyncio.timeout(ROOM_S):
                await self.log.ended()
        except TimeoutError:
            pass
        finally:
            self._wish("room", False)
        return self.log.closed

    def _wish(self, wish: str, wanted: bool = True) -> None:
        (self.wishes.add if wanted else self.wishes.discard)(wish)
        self._tell(self, wish, wanted)

    def closing_events(self, now_ms: int, ref: str) -> list[StreamEvent]:
        """Return the events that end the run in its owner's place.

        It is a failure, unless its last events have said already how it ends.
        """
        open_calls: dict[str, str] = {}
        reason = ""
        for event in self.log.events():
            match event:
                case {"type": "tool_call", "tool_call_id": call_id, "tool": tool}:
                    open_calls[call_id] = tool
                case {"type": "tool_result", "tool_call_id": call_id}:
                    del open_calls[call_id]
                case {"type": "interrupt"}:
                    reason = "interrupted"
                case {"type": "final_answer"}:
                    reason = "completed"
                case {"type": "error", "code": code}:
                    reason = code if code in ("timeout", "shutdown") else "error"
        status = "interrupted" if reason == "interrupted" else "cancelled"
        message = LEFT_OPEN[status]
        events = [
            StreamEvent("tool_result", tool=tool, tool_call_id=id_, status=status, message=message)
            for id_, tool in open_calls.items()
        ]
        if not reason:
            reason = "shutdown"
            events.append(StreamEvent("error", **FAILURES[reason]._asdict(), ref=ref))
        timings = {"total_ms": now_ms - self.started_ms}
        if self._first_token_ms:
            timings = {"first_token_ms": self._first_token_ms - self.started_ms, **timings}
        return [*events, StreamEvent("done", reason=reason, timings=timings)]


def is_a(frame: bytes, type_: bytes) -> bool:
    return frame.startswith(b"event: " + type_ + b"\n")


def has_ended(entries: Sequence[Entry]) -> bool:
    """Whether the last of the entries is a run's last."""
    return bool(entries) and is_a(entries[-1][1][b"frame"], b"done")
