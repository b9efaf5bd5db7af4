"""One run: its start, what may stop it, and its end, which always comes.

A run belongs to no connection. It appends its events to a log, whether anybody reads it or not.
Nothing in here knows requests, messages or graph state.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Any, Protocol

from agent import Turn
from events import Asked, EventLog, LogFull, StreamEvent
from graphs.failures import FAILURES

STOP_S = 0.5
"""How long a stopped graph may take to end; after that the run ends without it, as the contract
says. At shutdown a thread has as long to be settled."""

SETTLE_S = 5.0
"""How long a thread may take to be settled, except at shutdown: a database may reconnect."""

UNREAD_GRACE_S = 5.0
"""How long a run that nobody has read yet waits for its first reader: see the contract."""

logger = logging.getLogger("chat")


class Limits(Protocol):
    """How long and how large runs may be; times in seconds."""

    heartbeat_s: float
    run_timeout_s: float
    disconnect_grace_s: float
    run_ttl_s: float
    max_runs: int
    max_run_bytes: int


class AnyRun(ABC):
    """A run as its readers need it: of this process, or of another one."""

    id: str
    asked: Asked
    log: EventLog
    before: str | None = None
    """The thread's newest run when this one started."""

    @abstractmethod
    def join(self) -> None:
        """Add a reader."""

    @abstractmethod
    def leave(self) -> None:
        """Remove a reader; after the last one the grace begins."""

    @abstractmethod
    def stop(self, reason: str) -> None:
        """Stop the graph: ``cancelled``, or a code of `FAILURES`. The first reason counts."""

    @abstractmethod
    async def make_room(self) -> bool:
        """Stop the run if its last reader has left it, and wait for its end; else return False."""

    async def cancel(self) -> None:
        """Stop the run because a client asks for it, and wait for its end."""
        logger.info("run=%s is stopped: a client asked for it", self.id)
        self.stop("cancelled")
        await self.log.ended()

    @property
    def question_id(self) -> str | None:
        """The id of the user's message, None if the run answers an interrupt."""
        return next(self.log.events("start"), {}).get("message_id")

    def document(self) -> dict[str, Any]:
        """Return the run's state as its JSON document."""
        return {
            "run_id": self.id,
            "thread_id": self.asked.thread_id,
            "status": next(self.log.events("done"), {}).get("reason", "running"),
            "last_event_id": self.log.last_id,
            "answer": next(self.log.events("final_answer"), {}).get("content"),
        }


class Run(AnyRun):
    """One pass of the graph over a thread, in one task: `drive`."""

    def __init__(self, run_id: str, asked: Asked, limits: Limits) -> None:
        self.id = run_id
        self.asked = asked
        self.log = EventLog()
        self.turn: Turn | None = None
        """None before the start and after the end."""
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._stopped_by: str | None = None
        self._begun = False
        self._ending = False
        self._started = 0.0
        self._first_token: float | None = None
        self._open_calls: dict[str, tuple[str, float]] = {}
        """The tool of each call that has no result yet, and the time of the call, by its id."""
        self._readers = 0
        self._was_read = False
        self._gave_back = False
        self._timers: list[asyncio.TimerHandle] = []
        self._grace: asyncio.TimerHandle | None = None
        self._late_end: asyncio.Task[None] | None = None

    @property
    def left(self) -> bool:
        """Whether the last reader has left."""
        return self._was_read and not self._readers

    def join(self) -> None:
        self._readers += 1
        self._was_read = True
        if self._grace:
            self._grace.cancel()

    def leave(self) -> None:
        self._readers -= 1
        if not self._readers:
            self._wait_for_readers(self._limits.disconnect_grace_s)

    def _wait_for_readers(self, grace_s: float) -> None:
        if not self._ending and not math.isinf(grace_s):
            self._grace = self._loop.call_later(grace_s, self._give_up_readers)

    def _give_up_readers(self) -> None:
        logger.info("run=%s is stopped: its readers left", self.id)
        self.stop("cancelled")

    # ------------------------------------------------------------------------- start and stop

    def start(self, turn: Turn, give_back: Callable[[Run], None]) -> None:
        """Start the run; ``give_back`` is called before ``done``, and gives the thread back."""
        self.turn = turn
        self._started = self._loop.time()
        # A graph that was left behind may not write to the thread of the next run.
        turn.begin(lambda: self.log.valid and not self._gave_back)
        self._give_back = give_back
        limits = self._limits
        self.log.append(
            StreamEvent(
                "start",
                run_id=self.id,
                thread_id=self.asked.thread_id,
                message_id=turn.question.id if turn.question else None,
                heartbeat_s=limits.heartbeat_s,
                timeout_s=limits.run_timeout_s,
            )
        )
        # Before the run's task begins, so that it goes out in one write with `start`: else a second
        # write would come before the first token and make that 3 % later.
        self.log.append(turn.thinking)
        self._wait_for_readers(max(UNREAD_GRACE_S, limits.disconnect_grace_s))
        self._timers.append(self._loop.call_later(limits.run_timeout_s, self.stop, "timeout"))
        self._task = asyncio.create_task(self.drive(turn))

    def stop(self, reason: str) -> None:
        if self._stopped_by or self._ending:
            return
        self._stopped_by = reason
        self._timers.append(self._loop.call_later(STOP_S, self._leave_graph_behind, self.turn))
        # A task that is cancelled before its first step would never run: `drive` looks itself.
        # `_append` stops the run from its own task and then raises LogFull, which ends the stream.
        if self._begun and asyncio.current_task() is not self._task:
            self._task.cancel()

    def _leave_graph_behind(self, turn: Turn | None) -> None:
        if turn and not self._ending:
            logger.warning("run=%s ends without its graph, which does not stop", self.id)
            self._ending = True
            self._late_end = asyncio.create_task(self._end(turn, None))
            self._task.cancel()  # Again: asyncio.wait_for of Python 3.11 may lose the first one.

    async def make_room(self) -> bool:
        if not self.left:
            return False
        logger.info("run=%s is stopped: its thread has a new message", self.id)
        self.stop("cancelled")
        await self.log.ended()
        return True

    async def drive(self, turn: Turn) -> None:
        """Run the graph until it ends or is stopped, then end the run."""
        logger.info("run=%s thread=%s started", self.id, self.asked.thread_id)
        failure: BaseException | None = None
        self._begun = True
        try:
            if self._stopped_by:
                raise asyncio.CancelledError
            # Redis has to have `start` before the graph keeps the event loop busy.
            await self.log.wait(0, STOP_S)
            async with aclosing(turn.stream()) as events:
                async for event in events:
                    if self._ending:
                        break
                    self._append(event)
        except LogFull:
            pass  # `_append` has stopped the run.
        except BaseException as error:  # noqa: BLE001  # A tool may raise SystemExit, too.
            failure = error
        if self._late_end:  # A run's task ends after its `done`.
            await self._late_end
        else:
            self._ending = True
            await self._end(turn, failure)
        failure = None  # Else exception, traceback, local variables and run would be a cycle.

    # --------------------------------------------------------------------------------- the end

    async def _end(self, turn: Turn, failure: BaseException | None) -> None:
        """End the run: settle the thread, close calls, say why, give the thread back, `done`."""
        reason, error = self._outcome(turn, failure)
        # The thread first: its next turn may come as soon as it is given back.
        for event in await self._settle(turn, reason, error):
            with suppress(LogFull):
                self._append(event)
        # Every tool call is closed before `done`: clients wait for its result.
        status = "interrupted" if reason == "interrupted" else "cancelled"
        for call_id, (tool, _) in [*self._open_calls.items()]:
            self._append(turn.translator.left_open(call_id, tool, status))
        if error:
            self._append(error)
        # Before `done`: a client may send its next message as soon as it reads that.
        self._gave_back = True
        self._give_back(self)
        self._append(self._done(turn, reason))
        self.log.close()
        self.turn = None  # An ended run keeps only its log.
        for timer in (*self._timers, self._grace):
            if timer:
                timer.cancel()
        ended = "run=%s ended reason=%s events=%d total_ms=%d"
        logger.info(ended, self.id, reason, self.log.last_id, self._ms(self._loop.time()))

    def _outcome(self, turn: Turn, failure: BaseException | None) -> tuple[str, StreamEvent | None]:
        """Return why the run ended, and the ``error`` event if that is a failure."""
        stopped_by = self._stopped_by
        if stopped_by is None and isinstance(failure, asyncio.CancelledError):
            stopped_by = "shutdown"  # The event loop is being closed.
        if stopped_by == "cancelled":
            return stopped_by, None
        if stopped_by is None and failure is None:
            return ("interrupted" if turn.translator.interrupted else "completed"), None
        found = FAILURES[stopped_by] if stopped_by else turn.failure(failure)
        ref, cause = secrets.token_hex(4), None if stopped_by else failure
        logger.error("run=%s failed code=%s ref=%s", self.id, found.code, ref, exc_info=cause)
        error = StreamEvent("error", **found._asdict(), ref=ref)
        return (found.code if found.code in ("timeout", "shutdown") else "error"), error

    async def _settle(
        self, turn: Turn, reason: str, error: StreamEvent | None
    ) -> list[StreamEvent]:
        try:
            async with asyncio.timeout(STOP_S if reason == "shutdown" else SETTLE_S):
                return await turn.settle(reason, error)
        except Exception as failure:
            ref = secrets.token_hex(4)
            logger.error("run=%s left its thread unsettled ref=%s", self.id, ref, exc_info=failure)
            return []

    def _done(self, turn: Turn, reason: str) -> StreamEvent:
        timings = {"total_ms": self._ms(self._loop.time())}
        if self._first_token is not None:
            timings = {"first_token_ms": self._ms(self._first_token), **timings}
        return StreamEvent("done", reason=reason, timings=timings, usage=turn.translator.usage)

    def _append(self, event: StreamEvent) -> None:
        """Append the event, and note what the run's end needs of it."""
        if event.type == "tool_result" and event.tool_call_id not in self._open_calls:
            return  # The `tool_call` was too large for the log.
        try:
            self.log.append(event, self._limits.max_run_bytes)
        except LogFull:
            self.stop("too_large")
            raise
        now = self._loop.time()
        match event.type:
            case "text_delta" if self._first_token is None:
                self._first_token = now
            case "tool_call":
                self._open_calls[event.tool_call_id or ""] = event.tool or "", now
                logger.info("run=%s tool=%r called id=%r", self.id, event.tool, event.tool_call_id)
                logger.debug("run=%s tool=%r input=%r", self.id, event.tool, event.input)
            case "tool_result":
                _, called = self._open_calls.pop(event.tool_call_id or "")
                about = (self.id, event.tool, event.status, event.tool_call_id)
                logger.info("run=%s tool=%r %s id=%r ms=%d", *about, 1000 * (now - called))
                logger.debug("run=%s tool=%r result=%r", self.id, event.tool, event.result)

    def _ms(self, at: float) -> int:
        return round(1000 * (at - self._started))
