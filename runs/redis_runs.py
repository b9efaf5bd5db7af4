"""A run that several servers share: its log as one server knows it, and a run of another server.

`runs.redis` carries frames and wishes between the servers. Nothing in here talks to Redis.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from events import Asked, EventLog, StreamEvent, Unavailable, encode_event
from graphs.failures import FAILURES
from runs.run import AnyRun, Run
from threads.repair import LEFT_OPEN

RENEW_S = 0.5
"""How often an owner renews the leases of its runs."""

SURE_S = 2.0
"""How long after the start of its last renewal a run goes on and may write to its thread. The lease
is a second longer, for writes that are on their way."""

ROOM_S = 1.5
"""How long the owner has to make room: to see the wish, to stop the run, to settle its thread."""

LOST = float("-inf")
"""The time of the last look at a lease that has run out."""

logger = logging.getLogger("chat")

# Not the loop's clock: uvloop's stands still within a round of the loop, so that a process that
# was paused would take an old lease for valid.
now = time.monotonic


class SharedLog(EventLog):
    """A log that Redis keeps, as far as this server knows it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen_at = now()
        """When the last successful look at the run's lease began."""

    @property
    def valid(self) -> bool:
        return self.closed or now() < self.seen_at + SURE_S

    def add(self, frames: list[bytes]) -> None:
        """Add frames that Redis has; the last one may be the run's end."""
        self._frames += frames
        if frames and is_a(frames[-1], "done"):
            super().close()
        self._wake()

    async def wait(self, after: int, timeout_s: float) -> bool:
        """Wait as `EventLog.wait` does. Raises Unavailable if the log is not valid any more."""
        ends = now() + timeout_s
        while self.last_id <= after and not self.closed:
            if not self.valid:
                raise Unavailable
            if now() >= ends:
                return False
            await super().wait(after, min(RENEW_S, ends - now()))
        return True


class OwnLog(SharedLog):
    """The log of a run of this server. Its events can be read as soon as Redis has them."""

    def __init__(self, run: Run, send: Callable[[], None]) -> None:
        super().__init__()
        self.run = run
        self.unsent: list[bytes] = []
        """What Redis does not have yet."""
        self._send = send
        self._read_elsewhere = False

    def append(self, event: StreamEvent, max_bytes: float = float("inf")) -> None:
        event_id = self.last_id + len(self.unsent) + 1
        self.unsent.append(self._encode(event, event_id, max_bytes))
        self._send()

    def close(self) -> None:
        """Do nothing: the log is closed as soon as Redis has ``done``."""

    def grant(self, wishes: dict[bytes, bytes]) -> None:
        """Do what other servers wish. All their readers count like one reader here."""
        words = b" ".join(wishes.values()).split()
        is_read = b"read" in words
        if is_read != self._read_elsewhere:
            self._read_elsewhere = is_read
            (self.run.join if is_read else self.run.leave)()
        if b"stop" in words or (b"room" in words and self.run.left):
            logger.info("run=%s is stopped: a client of another server asked for it", self.run.id)
            self.run.stop("cancelled")


class ForeignRun(AnyRun):
    """A run of another server, with the face of one of this server's own.

    ``tell`` has the owner told when ``wishes`` have changed.
    """

    def __init__(self, run_id: str, tell: Callable[[ForeignRun], None]) -> None:
        self.id = run_id
        self.log: SharedLog = SharedLog()
        self.asked = Asked("")
        self.wishes: set[str] = set()
        self._tell = tell
        self._readers = 0
        self._started_ms = 0
        self._timings: dict[str, int] = {}

    def copy(self, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
        """Copy the entries that follow the copy's last event."""
        frames: list[bytes] = []
        for entry_id, fields in entries:
            event_id, stored_ms = map(int, entry_id.split(b"-"))
            if event_id != self.log.last_id + len(frames) + 1:
                continue  # Two looks at once bring the same entries.
            if event_id == 1:
                self._started_ms = stored_ms
                self.before, asked = json.loads(fields[b"asked"])
                self.asked = Asked(**asked)
            frames.append(fields[b"frame"])
            self._timings["total_ms"] = stored_ms - self._started_ms
            if is_a(frames[-1], "text_delta"):
                self._timings.setdefault("first_token_ms", stored_ms - self._started_ms)
        self.log.add(frames)

    def join(self) -> None:
        self._readers += 1
        self._wish("read", True)

    def leave(self) -> None:
        self._readers -= 1
        self._wish("read", self._readers > 0)

    def stop(self, reason: str) -> None:
        """Have the owner cancel the run."""
        self._wish("stop", True)

    async def make_room(self) -> bool:
        """Have the owner stop the run if its readers left it; False if it goes on."""
        self._wish("room", True)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(ROOM_S):
                    await self.log.ended()
        finally:
            self._wish("room", False)
        return self.log.closed

    def _wish(self, word: str, wanted: bool) -> None:
        (self.wishes.add if wanted else self.wishes.discard)(word)
        self._tell(self)

    def closing_frames(self, ref: str) -> list[bytes]:
        """Return what ends the log in its owner's place.

        That is a failure, unless the owner has said already how the run ends.
        """
        open_calls: dict[str, str] = {}
        for event in self.log.events("tool_call", "tool_result"):
            if event["type"] == "tool_call":
                open_calls[event["tool_call_id"]] = event["tool"]
            else:
                del open_calls[event["tool_call_id"]]
        status, message = "cancelled", LEFT_OPEN["cancelled"]
        events = [
            StreamEvent("tool_result", tool=tool, tool_call_id=id_, status=status, message=message)
            for id_, tool in open_calls.items()
        ]
        reason = "shutdown"
        if any(self.log.events("final_answer")):
            reason = "completed"
        elif error := next(self.log.events("error"), None):
            reason = error["code"] if error["code"] in ("timeout", "shutdown") else "error"
        else:
            events.append(StreamEvent("error", **FAILURES[reason]._asdict(), ref=ref))
        events.append(StreamEvent("done", reason=reason, timings=self._timings))
        return [encode_event(event, self.log.last_id + n) for n, event in enumerate(events, 1)]


def is_a(frame: bytes, type_: str) -> bool:
    return frame.startswith(f"event: {type_}\n".encode())
