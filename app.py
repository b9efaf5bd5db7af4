"""HTTP: settings, runs and their readers, routes, access, shutdown.

A run belongs to no connection. It appends its events to a log; a response is a cursor on that
log, and any number of them may follow, leave and come back. What a run means, messages, chunks
and graph state, is the business of `agent`; the bytes of a frame are that of `events`.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
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
import sys
import termios
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, closing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.http import HttpVersion11, StreamWriter
from aiohttp.web_exceptions import HTTPException

from agent import Agent, AgentError, Turn, built_in, describe, left_open, load_agent
from events import MemoryStore, StreamEvent, Unavailable, encode_comment, encode_retry

if TYPE_CHECKING:
    from shared import RedisStore, RemoteRun

    Store: TypeAlias = MemoryStore | RedisStore
    AnyRun: TypeAlias = "Run | RemoteRun"

VERSION = "0.1.0"
HERE = Path(__file__).resolve().parent

MESSAGE_CHARS = 32_000
MAX_NESTING = 100
THREAD_ID = "[A-Za-z0-9_-]{1,64}"

BODY_S = 30.0
"""How long a request's body may take to arrive."""

WRITE_BYTES = 65_536
"""How many bytes a reader is handed at once: one that stalls holds no more, or one event."""

WRITE_EVERY_S = 1 / 60
WRITES_AT_ONCE = 20
"""A reader is written to as often as a screen is drawn, after some writes at once: what a fast
model makes meanwhile goes out in one write."""

CLOSING_BYTES = 4096
"""How far a run's closing events may go beyond its limit."""

CLOSING_EACH = 400
"""What one of them takes at most, without the names in it."""

STOP_S = 0.5
"""How long a stopped graph may take to let go, and at shutdown its thread to be settled, before the
run ends without it."""

SETTLE_S = 5.0
"""How long a thread may take to be settled at any other time."""

DRAIN_S = 2 * STOP_S + 0.2
"""How long shutdown waits for a graph that is stopped, the thread and the store together."""

GARBAGE = 10_000
"""How many objects may be new before the garbage collector looks for cycles; Python's own number is
700, or 2000."""

BACKLOG = 1024
"""How many connections may wait to be accepted; one too many is a second late."""

UNREAD_GRACE_S = 5.0
"""How long a run that nobody has read yet waits for its first reader, at least."""

FORGETTING = "forgetting"
"""The first word of a claim on a thread that is being forgotten, where a run's is its id."""

CLAIM_POLL_S = 0.02
"""How often a name is asked for that its holder is about to give back."""

HEARTBEAT = encode_comment("heartbeat")

logger = logging.getLogger("chat")
T = TypeVar("T")


# ----------------------------------------------------------------------------------- settings


class SettingError(ValueError):
    """A setting has a value that it cannot have; the text is one line for a person."""


def _matching(pattern: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return parse


def _number(
    lowest: float = 0, highest: float = sys.float_info.max, whole: bool = False
) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = int(text) if whole else float(text)
        # False for NaN, too.
        if not text.isascii() or "_" in text or not lowest <= value <= highest:
            raise ValueError
        return int(value) if float(value).is_integer() else value

    return parse


def _origins(text: str) -> frozenset[str]:
    parse = _matching(r"\*|[a-z][a-z0-9+.-]*://[^/\s?#@]+")
    return frozenset(parse(part.strip().lower()) for part in text.split(",") if part.strip())


def _path(text: str) -> str:
    if not os.path.exists(text):
        raise ValueError
    return text


def _url(text: str) -> str:
    parts = urlsplit(text)
    if not re.fullmatch("https?://[!-~]+", text) or not parts.hostname or parts.port == 0:
        raise ValueError
    return text


def _setting(default: Any, wants: str, parse: Callable[[str], Any], about: str) -> Any:
    return field(default=default, metadata={"wants": wants, "parse": parse, "about": about})


NAME = "a name", str
SECRET = "visible ASCII characters", _matching("[!-~]+")
PORT = "a whole number from 0 to 65535", _number(0, 65535, whole=True)
COUNT = "a whole number above 0", _number(1, whole=True)
RATE = "a number, 0 or more", _number()
SECONDS = "a number of seconds, 0 or more", _number()
ENDLESS = "a number of seconds, 0 or more, or inf", _number(highest=math.inf)
ABOVE_0 = "a number of seconds above 0", _number(sys.float_info.min)
URL = "an http or https URL", _url
PATH = "a folder or file that exists", _path
REDIS = "a redis, rediss or unix URL", _matching(r"(rediss?://[^\s/]|unix:///)\S*")
DATABASE = "sqlite:///file or postgresql://…", _matching(r"sqlite:///\S+|postgres(ql)?://\S+")
ORIGINS = "origins such as https://example.com, separated by commas, or *", _origins
LEVEL = "DEBUG, INFO, WARNING or ERROR", _matching("(?i)DEBUG|INFO|WARNING|ERROR")


SECRETS = {"OPENAI_API_KEY", "API_TOKEN", "REDIS_URL", "DATABASE_URL"}
"""What is not shown; an engine's URL may have a password in it."""


@dataclass(frozen=True)
class Settings:
    """What the environment sets, each variable named as its field in capitals."""

    host: str = _setting("127.0.0.1", *NAME, "address to listen on")
    port: int = _setting(8000, *PORT, "port to listen on; 0: any free one")
    agent: str = _setting("", *NAME, "your own graph, module:attribute; empty: the built-in agent")
    openai_api_key: str = _setting("", *SECRET, "key of the model")
    openai_base_url: str = _setting("", *URL, "OpenAI-compatible server")
    openai_model: str = _setting("gpt-5-mini", *NAME, "model to ask for there")
    docs_dir: str = _setting("", *PATH, "what search_docs searches; empty: the README")
    demo_tokens_per_s: float = _setting(50, *RATE, "pace of the demo model; 0: no pause")
    cors_origins: frozenset[str] = _setting(
        frozenset({"http://localhost:3000"}), *ORIGINS, "other origins that may call"
    )
    api_token: str = _setting("", *SECRET, "bearer token for /api/")
    heartbeat_s: float = _setting(15, *ABOVE_0, "silence before a heartbeat")
    run_timeout_s: float = _setting(120, *ABOVE_0, "the longest a run may take")
    send_timeout_s: float = _setting(30, *ABOVE_0, "when a reader that takes no byte is dropped")
    disconnect_grace_s: float = _setting(10, *ENDLESS, "how long a run goes on without a reader")
    shutdown_grace_s: float = _setting(5, *SECONDS, "what running runs get at shutdown")
    run_ttl_s: float = _setting(120, *SECONDS, "how long an ended run is kept")
    max_runs: int = _setting(100, *COUNT, "runs at once")
    max_run_bytes: int = _setting(4194304, *COUNT, "bytes of a run's events")
    max_body_bytes: int = _setting(262144, *COUNT, "bytes of a request's body")
    max_threads: int = _setting(1000, *COUNT, "remembered conversations")
    redis_url: str = _setting("", *REDIS, "Redis that keeps the runs, for several replicas")
    database_url: str = _setting("", *DATABASE, "database that keeps the threads")
    log_level: str = _setting("INFO", *LEVEL, "how much is logged")


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Return the settings that the environment gives; an empty value counts as unset.

    Raises SettingError with one line that names the variable, what it wants and what it got.
    """
    values = {}
    for setting in fields(Settings):
        name, parse = setting.name.upper(), setting.metadata["parse"]
        if text := environ.get(name, ""):
            try:
                values[setting.name] = parse(text)
            except ValueError:
                got = "something else" if name in SECRETS else repr(text)
                raise SettingError(f"{name} wants {setting.metadata['wants']}, got {got}") from None
    return Settings(**values)


# ---------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Asked:
    """What a POST asks for, checked: to answer a message, or to go on with ``resume``."""

    thread_id: str
    message: str | None
    """None where the run answers the thread's interrupt."""
    resume: Any
    """The answer to it."""
    key: str | None
    digest: str | None
    """Where there is a key, the same for bodies that are equal as JSON."""


class Run:
    """One pass of the graph over a thread: it fills a log, whoever reads it or not."""

    def __init__(self, asked: Asked, settings: Settings, store: Store) -> None:
        self.id = store.new_id()
        self.asked = asked
        self.log = store.log(self.id)
        self.status = "running"
        self.answer: str | None = None
        self._settings = settings
        self._store = store
        self._loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = self._loop.create_future()
        """Fails where the run is refused."""
        self._stop: asyncio.Future[str] = self._loop.create_future()
        self._started = self._loop.time()
        self._first_token: float | None = None
        self._open: dict[str, tuple[str, float]] = {}
        """The tool, and when it started, of each open tool call."""
        self._full = False
        self._left_behind = False
        """Whether the graph did not let go in time when it was stopped."""
        self._readers = 0
        self._grace: asyncio.TimerHandle | None = None

    @property
    def thread_id(self) -> str:
        return self.asked.thread_id

    def document(self) -> dict[str, Any]:
        """Return the run's state as its JSON document."""
        return {
            "run_id": self.id,
            "thread_id": self.thread_id,
            "status": self.status if self.log.closed else "running",
            "last_event_id": self.log.last_id,
            "answer": self.answer,
        }

    def stop(self, reason: str) -> None:
        """Ask the run to end with this reason; the first to ask is heard."""
        if not self._stop.done():
            self._stop.set_result(reason)

    def join(self) -> None:
        """Count a reader in."""
        self._readers += 1
        if self._grace:
            self._grace.cancel()

    def leave(self) -> None:
        """Count a reader out; after the last the grace runs."""
        self._readers -= 1
        if not self._readers:
            self._wait_for_readers(self._settings.disconnect_grace_s)

    def _wait_for_readers(self, grace_s: float) -> None:
        if self.status == "running" and not math.isinf(grace_s):
            self._grace = self._loop.call_later(grace_s, self.stop, "cancelled")

    async def drive(self, turn: Turn) -> str:
        """Run the graph to its end, whatever ends it, leave its thread in order, and return the
        reason; `end` then tells it."""
        self._turn = turn
        timeout_s = self._settings.run_timeout_s
        heartbeat_s = self._settings.heartbeat_s
        self._append(StreamEvent("start", self.id, self.thread_id, heartbeat_s, timeout_s))
        await self.log.flush()
        if not self._readers:  # One may be there already, on another replica.
            self._wait_for_readers(max(UNREAD_GRACE_S, self._settings.disconnect_grace_s))
        self.begun.set_result(None)
        for _ in range(6):  # In so many steps of the loop the response is on its way.
            await asyncio.sleep(0)
        logger.info("run=%s thread=%s started", self.id, self.thread_id)
        work = asyncio.create_task(self._work())
        try:
            async with asyncio.timeout(timeout_s):
                ended: set[asyncio.Future[Any]] = {work, self._stop}
                await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            self.stop("timeout")
        if not work.done():
            work.cancel()
            await asyncio.wait({work}, timeout=STOP_S)
        if not work.done():
            self._left_behind = True
            work.cancel()  # Again, since asyncio.wait_for may miss the first: Python 3.11.
        reason, error = self._outcome(work)
        await self._settle(reason)
        self._close(reason, error)
        return reason

    def fail(self, failure: Exception) -> None:
        """End a run that could not go on though its graph might have."""
        reason, error = "error", describe(failure, answering=False)
        if isinstance(failure, Unavailable):
            reason, error = "shutdown", _error("shutdown")
        error.ref = log_failure(f"run={self.id} failed code={error.code}", failure)
        self._close(reason, error)
        self.end(reason)

    def _close(self, reason: str, error: StreamEvent | None) -> None:
        """Tell what the run leaves open, and why it ended."""
        with suppress(OverflowError):
            for event in self._turn.translator.never_started():
                self._append(event, self._limit(event))
        status = "interrupted" if reason == "interrupted" else "cancelled"
        for call_id, (tool, _) in [*self._open.items()]:
            self._append(left_open(tool, call_id, status))
        if error:
            self._append(error)

    def end(self, reason: str) -> None:
        """Tell ``done``, and close the log behind it."""
        timings = {"total_ms": self._ms(self._loop.time())}
        if self._first_token is not None:
            timings = {"first_token_ms": self._ms(self._first_token), **timings}
        usage = self._turn.translator.usage or None
        self._append(StreamEvent("done", reason=reason, timings=timings, usage=usage))
        self.status = reason
        self.log.close()
        if self._grace:
            self._grace.cancel()
        ended = "run=%s ended reason=%s events=%d first_token_ms=%s total_ms=%d"
        first_token_ms, total_ms = timings.get("first_token_ms"), timings["total_ms"]
        logger.info(ended, self.id, reason, self.log.last_id, first_token_ms, total_ms)

    async def _work(self) -> None:
        async with aclosing(self._turn.stream()) as events:
            async for event in events:
                if self._left_behind:
                    return
                self._append(event, self._limit(event))

    def _limit(self, event: StreamEvent) -> int:
        """How large the log may be with this event for what ends the run to fit in behind it."""
        if not self._open and event.type != "tool_call":
            return self._settings.max_run_bytes
        names = [call_id + tool for call_id, (tool, _) in self._open.items()]
        if event.type == "tool_call":
            names.append(f"{event.tool_call_id}{event.tool}")
        closing = CLOSING_EACH * (len(names) + 2) + 4 * sum(map(len, names))
        return self._settings.max_run_bytes - max(0, closing - CLOSING_BYTES)

    def _outcome(self, work: asyncio.Task[None]) -> tuple[str, StreamEvent | None]:
        """Return why the run ended, and the ``error`` event where that is a failure."""
        failure = None
        if work.done() and not work.cancelled():
            failure = work.exception()
            if failure is None:
                return ("interrupted" if self._turn.translator.interrupted else "completed"), None
        if self._stop.done():
            reason = self._stop.result()
            if reason == "cancelled":
                return reason, None
            error = _error(reason)
        elif self._full:
            reason, error = "error", _error("too_large")
        else:
            reason = "error"
            error = describe(failure, self._turn.translator.answering)
        error.ref = log_failure(f"run={self.id} failed code={error.code}", failure)
        return reason, error

    async def _settle(self, reason: str) -> None:
        """Leave the thread in order, unless the run was believed dead and it has its next turn.

        Where the store is away, that is known once it is back, and nothing can be told before.
        """
        try:
            if await self._store.keeps(_thread(self.thread_id), self.id):
                timeout_s = STOP_S if reason == "shutdown" else SETTLE_S
                await within(timeout_s, self._turn.settle(reason))
        except Exception as error:  # noqa: BLE001  # a checkpointer may raise anything
            log_failure(f"run={self.id} left its thread unsettled", error)

    def _append(self, event: StreamEvent, max_bytes: float = math.inf) -> None:
        """Append the event, note what the run's end needs of it, and log tool calls."""
        try:
            self.log.append(event, max_bytes)
        except OverflowError:
            self._full = True
            raise
        match event.type:
            case "text_delta" if self._first_token is None:
                self._first_token = self._loop.time()
            case "final_answer":
                self.answer = event.content
            case "tool_call":
                call_id, tool = event.tool_call_id or "", event.tool or ""
                self._open[call_id] = tool, self._loop.time()
                logger.info("run=%s tool=%r called id=%r", self.id, tool, call_id)
                logger.debug("run=%s tool=%r input=%r", self.id, tool, event.input)
            case "tool_result":
                call_id = event.tool_call_id or ""
                tool, started = self._open.pop(call_id)
                ms = 1000 * (self._loop.time() - started)
                ended = "run=%s tool=%r %s id=%r ms=%d"
                logger.info(ended, self.id, tool, event.status, call_id, ms)
                logger.debug("run=%s tool=%r result=%r", self.id, tool, event.result)

    def _ms(self, at: float) -> int:
        return round(1000 * (at - self._started))


FAILURES = {
    "timeout": "The run took longer than it may.",
    "too_large": "The answer is larger than a run may be.",
    "shutdown": "The server is shutting down. Try again in a moment.",
}


def _error(code: str) -> StreamEvent:
    retryable = code != "too_large"
    return StreamEvent("error", code=code, message=FAILURES[code], retryable=retryable)


def log_failure(what: str, error: BaseException | None) -> str:
    """Log a failure with its traceback and return the ``ref`` that finds it in the log."""
    ref = secrets.token_hex(4)
    logger.error("%s ref=%s", what, ref, exc_info=error)
    return ref


async def within(timeout_s: float, work: Coroutine[Any, Any, T]) -> T:
    """Await the work for so long, then cancel it and wait no more. Raises TimeoutError."""
    task = in_background(work)
    await asyncio.wait({task}, timeout=timeout_s)
    if not task.done():
        task.cancel()
        raise TimeoutError
    return task.result()


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await what is done whole or not at all, also where the client leaves meanwhile."""
    return await asyncio.shield(in_background(work))


def in_background(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start it as a task whose failure nobody need ask for."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    return task


class LostTurn(Exception):
    """The run was believed dead, and its thread may have its next one."""


WRITER: ContextVar[str] = ContextVar("writer", default="")
"""The id of the run whose graph writes to a thread."""


class Runs:
    """The runs of this process, and the threads that it has seen.

    Whose turn a thread has and which run a key started are claims in the store: the first to
    claim a name holds it, and everybody else learns who does.
    """

    def __init__(self, settings: Settings, agent: Agent, store: Store) -> None:
        self.settings = settings
        self.agent = agent
        self.store = store
        self.draining = False
        self._kept: dict[str, Run] = {}
        store.owned = self._kept.get
        self._driving: dict[Run, asyncio.Task[None]] = {}
        self._threads: OrderedDict[str, None] = OrderedDict()
        """The threads that had a turn here and that DATABASE_URL does not keep, the one whose last
        turn is longest ago first."""
        self._forgetting: set[asyncio.Task[None]] = set()
        if agent.database:
            agent.database.fence(self._may_write)

    async def degraded(self) -> bool:
        """Whether an engine that this server keeps its runs or threads in is away."""
        return self.store.degraded or await self.agent.is_away()

    @property
    def running(self) -> int:
        return len(self._driving)

    async def get(self, run_id: str) -> AnyRun:
        """Return a run that runs or is kept, here or elsewhere. Raises Refusal, Unavailable."""
        if run := self._kept_run(run_id) or await self.store.find(run_id):
            if run.log.lost:
                raise Unavailable
            return run
        raise Refusal(404, "unknown_run", f"There is no run {run_id!r}; it may have expired.")

    def _kept_run(self, run_id: str) -> Run | None:
        run = self._kept.get(run_id)
        return run if run and run.begun.done() and not run.log.overtaken else None

    async def start(self, asked: Asked) -> AnyRun:
        """Start a run, or return the one that the same key started. Raises Refusal, Unavailable."""
        run = Run(asked, self.settings, self.store)
        if asked.key is not None and (joined := await self._claim_key(run)):
            return joined
        self._kept[run.id] = run
        try:
            self._check_limits()
            self._driving[run] = asyncio.create_task(self._drive(run))
            await asyncio.shield(run.begun)
        except Exception:
            await self._drop(run)
            raise
        return run

    async def forget(self, thread_id: str) -> None:
        """Forget a thread. Raises Refusal where it is running or unheard of, Unavailable."""
        claim = f"{FORGETTING} {secrets.token_hex(12)}"
        await self._claim_thread(thread_id, claim)
        try:
            if thread_id not in self._threads and await self.agent.messages(thread_id) is None:
                raise unknown_thread(thread_id)
            self._threads.pop(thread_id, None)
            await self.agent.forget(thread_id)
        finally:
            await self.store.release(_thread(thread_id), claim)

    async def running_of(self, thread_id: str) -> str | None:
        """Return the id of the thread's running run, None where none runs. Raises Unavailable."""
        holder = await self.store.holder(_thread(thread_id))
        return None if holder is None or holder.startswith(FORGETTING) else holder

    async def _may_write(self, thread_id: str) -> None:
        """Wait until it is certain whose turn the thread has. Raises LostTurn."""
        if (run_id := WRITER.get()) and not await self.store.keeps(_thread(thread_id), run_id):
            raise LostTurn(f"run={run_id}")

    async def drain(self, grace_s: float) -> None:
        """Refuse new runs, let the running ones finish within the grace, and end the rest."""
        self.draining = True
        if self._driving and grace_s:
            await asyncio.wait({*self._driving.values()}, timeout=grace_s)
        for run in self._driving:
            run.stop("shutdown")
        if tasks := {*self._driving.values(), *self._forgetting}:
            _, late = await asyncio.wait(tasks, timeout=DRAIN_S)
            for task in late:
                task.cancel()

    def _check_limits(self) -> None:
        if self.draining:
            after = {"Retry-After": str(math.ceil(self.settings.shutdown_grace_s) + 1)}
            raise Refusal(503, "draining", "The server is shutting down.", after)
        if self.store.degraded:
            raise Unavailable
        if self.running >= self.settings.max_runs:
            raise Refusal(503, "too_many_runs", "Too many runs at once.", {"Retry-After": "2"})

    async def _claim_key(self, run: Run) -> AnyRun | None:
        """Take the key for this run; where another has it, return that. Raises Refusal."""
        asked = run.asked
        while True:
            claim = f"{run.id} {asked.digest}"
            run_id, digest = (await self.store.claim(_key(asked), claim, leased=False)).split()
            if run_id == run.id:
                return None
            if digest != asked.digest:
                message = "This Idempotency-Key came with another body before."
                raise Refusal(409, "idempotency_conflict", message)
            if other := self._kept.get(run_id):
                await asyncio.shield(other.begun)
            if joined := self._kept_run(run_id) or await self.store.find(run_id):
                return joined
            # It is starting elsewhere, or was refused there and gives the key back.
            await asyncio.sleep(CLAIM_POLL_S)

    async def _claim_thread(self, thread_id: str, claim: str) -> None:
        """Take the thread's turn, behind who forgets it. Raises Refusal where a run has it."""
        while (holder := await self.store.claim(_thread(thread_id), claim)) != claim:
            if not holder.startswith(FORGETTING):
                message = "This thread has a running run; follow it or stop it."
                raise Refusal(409, "thread_busy", message, run_id=holder)
            await asyncio.sleep(CLAIM_POLL_S)

    async def _drive(self, run: Run) -> None:
        asked, thread_id = run.asked, run.thread_id
        WRITER.set(run.id)
        try:
            await self._claim_thread(thread_id, run.id)
            try:
                answers = None if asked.message else await self._answers(asked)
                if not self.agent.database:
                    self._threads[thread_id] = None
                    self._threads.move_to_end(thread_id)
                texts = await self.store.inherited(_thread(thread_id))
                turn = Turn(self.agent, thread_id, asked.message, answers, texts)
                reason = await run.drive(turn)
            finally:
                # Before `done` is told, since whoever reads it may send the next turn at once.
                await self.store.release(_thread(thread_id), run.id)
            run.end(reason)
            with suppress(Unavailable):
                await run.log.flush()
        except Exception as error:  # noqa: BLE001  # its own, or a refusal
            # Its start may have been heard: so is its end, then.
            if run.log.size and run.status == "running":
                run.fail(error)
            if not run.begun.done():
                run.begun.set_exception(error)
                return
        finally:
            del self._driving[run]
        self._forget_oldest()
        loop = asyncio.get_running_loop()
        loop.call_later(self.settings.run_ttl_s, lambda: in_background(self._drop(run)))

    async def _answers(self, asked: Asked) -> dict[str, Any]:
        """Return one answer for each pending interrupt. Raises Refusal where they do not fit."""
        pending = await within(SETTLE_S, self.agent.waiting(asked.thread_id))
        if pending is None:
            raise nothing_to_resume()
        if len(pending) < 2:
            return dict.fromkeys(pending, asked.resume)
        if not isinstance(asked.resume, dict) or asked.resume.keys() != pending.keys():
            raise invalid(f"resume has to be an object with an answer for each of {list(pending)}.")
        return asked.resume

    async def _drop(self, run: Run) -> None:
        self._kept.pop(run.id, None)
        if run.asked.key is not None:
            await self.store.release(_key(run.asked), f"{run.id} {run.asked.digest}")

    def _forget_oldest(self) -> None:
        excess = len(self._threads) - self.settings.max_threads
        if excess > 0:
            running = {run.thread_id for run in self._driving}
            idle = (thread_id for thread_id in self._threads if thread_id not in running)
            for thread_id in [*islice(idle, excess)]:
                task = asyncio.create_task(self._forget(thread_id))
                self._forgetting.add(task)
                task.add_done_callback(self._forgetting.discard)

    async def _forget(self, thread_id: str) -> None:
        # It has a turn again, or is tried again at the next run's end.
        with suppress(Refusal, Unavailable):
            await self.forget(thread_id)


def _thread(thread_id: str) -> str:
    return f"thread:{thread_id}"


def _key(asked: Asked) -> str:
    return f"key:{asked.key}"


# ---------------------------------------------------------------------------- access, refusals


class Refusal(Exception):
    """A request that is not served: status, code, a message for a person, and what else helps."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: Mapping[str, str] | None = None,
        **details: str,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.error = {"code": code, "message": message, **details}

    def response(self) -> web.Response:
        return send_json({"error": self.error}, self.status, self.headers)


def send_json(
    document: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a JSON response, with non-ASCII text as itself."""
    body = json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return web.Response(
        body=body, status=status, content_type="application/json", charset="utf-8", headers=headers
    )


def internal_failure(request: web.BaseRequest, error: BaseException | None) -> Refusal:
    ref = log_failure(f"{request.method} {request.path!r} failed", error)
    return Refusal(500, "internal", "The server failed.", ref=ref)


def unknown_thread(thread_id: str) -> Refusal:
    return Refusal(404, "unknown_thread", f"There is no thread {thread_id!r}.")


def unavailable() -> Refusal:
    message = "What this server keeps cannot be reached now. Try again in a moment."
    return Refusal(503, "unavailable", message, {"Retry-After": "2"})


def nothing_to_resume() -> Refusal:
    return Refusal(400, "nothing_to_resume", "No thread of this thread_id waits for an answer.")


SETTINGS = web.AppKey("settings", Settings)
RUNS = web.AppKey("runs", Runs)

HTTP_REFUSALS = {
    404: ("not_found", "There is nothing at this path."),
    405: ("method_not_allowed", "This path does not know this method."),
    413: ("too_large", "The body is larger than MAX_BODY_BYTES allows."),
}
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE",
    "Access-Control-Allow-Headers": (
        "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Prefer"
    ),
    "Access-Control-Max-Age": "600",
}
PAGE_POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
REACT_POLICY = (
    f"{PAGE_POLICY}; script-src 'self' https://esm.sh "
    "'sha256-Z3xvkVwroTPsJ6r3QypFFpj8Fl3fqhdCo4abkIvrwXY='"
)
"""React comes from where the page's import map says; the hash is that of the map."""


@web.middleware
async def guard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Let in who may come in, and turn every failure into a refusal that tells no internals."""
    try:
        restricted = request.path.startswith("/api/")
        if restricted:
            check_origin(request)
        if is_preflight(request):
            return web.Response(status=204, headers=PREFLIGHT)
        if restricted:
            check_token(request)
        return await handler(request)
    except Refusal as refusal:
        response = refusal.response()
        if request.content.exception():  # Where the next request would begin nobody knows.
            response.force_close()
        return response
    except HTTPException as error:
        if error.status < 400:
            raise
        code, message = HTTP_REFUSALS.get(error.status, ("invalid_request", error.reason))
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
        return Refusal(error.status, code, message, allow).response()
    except Unavailable:
        return unavailable().response()
    except ConnectionError:  # The client is gone.
        raise
    except Exception as error:
        failed = internal_failure(request, error)
        if request.writer.output_size:  # A stream has begun: it can only be cut.
            raise ConnectionResetError from error
        if await request.app[RUNS].degraded():
            return unavailable().response()
        return failed.response()


def check_origin(request: web.Request) -> None:
    """Refuse a page of another origin that is not listed. Source: Fetch, "Origin header"."""
    origin = request.headers.get("Origin")
    if origin is not None and not is_own(request, origin) and not is_listed(request, origin):
        raise Refusal(403, "origin_not_allowed", "Pages of this origin may not call this server.")


def is_own(request: web.Request, origin: str) -> bool:
    host = request.headers.get("Host", "").lower()
    return origin.lower() in (f"http://{host}", f"https://{host}")


def is_listed(request: web.Request, origin: str) -> bool:
    listed = request.app[SETTINGS].cors_origins
    return "*" in listed or origin.lower() in listed


def is_preflight(request: web.Request) -> bool:
    """Whether a browser asks what a page of a listed origin may send. It brings no token."""
    origin = request.headers.get("Origin")
    asked = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
    return asked and origin is not None and is_listed(request, origin)


def check_token(request: web.Request) -> None:
    """Refuse who does not bring the token, compared in constant time."""
    token = request.app[SETTINGS].api_token
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if token and not (
        scheme.lower() == "bearer"
        and hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode())
    ):
        raise Refusal(
            401, "unauthorized", "A bearer token is wanted.", {"WWW-Authenticate": "Bearer"}
        )


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add what every answer carries, streams and refusals alike. Source: Fetch, "CORS protocol"."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    if request.path.startswith("/api/"):
        response.headers.setdefault("Cache-Control", "no-store")
    else:
        response.headers.setdefault("Cache-Control", "no-cache")
        response.headers.setdefault("Content-Security-Policy", PAGE_POLICY)
        response.headers["Referrer-Policy"] = "no-referrer"
    response.headers.add("Vary", "Origin")
    origin = request.headers.get("Origin")
    if origin is not None and is_listed(request, origin):
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = (
            "Location, Content-Location, Retry-After"
        )


# ------------------------------------------------------------------------------------ handlers


async def chat(request: web.Request) -> web.StreamResponse:
    """Start a run, or join the one that the same key started, and stream it."""
    asked = await read_chat(request)
    run = await to_its_end(request.app[RUNS].start(asked))
    preferences = ",".join(request.headers.getall("Prefer", []))
    if "respond-async" in re.split(r"[\s,;]+", preferences.lower()):
        headers = {**run_headers(run), "Preference-Applied": "respond-async"}
        document = {"run_id": run.id, "thread_id": run.thread_id, "events": headers["Location"]}
        return send_json(document, 202, headers)
    return await follow(request, run, after=0)


async def expect(request: web.Request) -> None:
    """Let a client send the body that it announced; other expectations are ignored."""
    if request.headers["Expect"].lower() == "100-continue" and request.version == HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # That was no answer yet.


async def run_events(request: web.Request) -> web.StreamResponse:
    """Stream a run from a cursor: replay, then live."""
    run = await request.app[RUNS].get(request.match_info["run_id"])
    after = await read_cursor(request, run)
    if run.log.closed and after == run.log.last_id:
        return web.Response(status=204)
    return await follow(request, run, after)


async def run_state(request: web.Request) -> web.StreamResponse:
    run = await request.app[RUNS].get(request.match_info["run_id"])
    await run.log.flush()
    return send_json(run.document())


async def cancel(request: web.Request) -> web.StreamResponse:
    """Stop a run and answer when it has stopped."""
    run = await request.app[RUNS].get(request.match_info["run_id"])
    if run.log.closed:
        return send_json(run.document())
    run.stop("cancelled")
    while not run.log.closed:
        await run.log.wait(run.log.last_id, math.inf)
    return send_json(run.document(), 202)


async def thread_state(request: web.Request) -> web.StreamResponse:
    runs, thread_id = request.app[RUNS], read_thread_id(request)
    run_id = await runs.running_of(thread_id)
    unsettled = run_id is not None
    messages = await within(SETTLE_S, runs.agent.messages(thread_id, unsettled))
    if messages is None and not run_id:
        raise unknown_thread(thread_id)
    document = {"thread_id": thread_id, "run_id": run_id, "messages": messages or []}
    if not run_id and (pending := await within(SETTLE_S, runs.agent.waiting(thread_id))):
        # What a page asks again that comes back after the run was dropped.
        document["interrupts"] = [{"id": id_, "value": value} for id_, value in pending.items()]
    return send_json(document)


async def delete_thread(request: web.Request) -> web.StreamResponse:
    await to_its_end(request.app[RUNS].forget(read_thread_id(request)))
    return web.Response(status=204)


def read_thread_id(request: web.Request) -> str:
    """Return the path's thread id. Raises Refusal for one that no thread can have."""
    thread_id = request.match_info["thread_id"]
    if not re.fullmatch(THREAD_ID, thread_id):
        raise unknown_thread(thread_id)
    return thread_id


async def info(request: web.Request) -> web.StreamResponse:
    """Tell what the page shows before the first message."""
    settings, agent = request.app[SETTINGS], request.app[RUNS].agent
    limits = ("heartbeat_s", "run_timeout_s", "max_runs", "max_run_bytes", "max_body_bytes")
    return send_json(
        {
            "agent": agent.name,
            "model": agent.model,
            "version": VERSION,
            "limits": {
                "message_chars": MESSAGE_CHARS,
                **{name: getattr(settings, name) for name in limits},
            },
        }
    )


async def healthz(request: web.Request) -> web.StreamResponse:
    runs = request.app[RUNS]
    if runs.draining:
        return send_json({"status": "draining"}, 503)
    status = "degraded" if await runs.degraded() else "ok"
    return send_json({"status": status, "running": runs.running})


async def page(request: web.Request) -> web.StreamResponse:
    """Return the chat page or a file of it."""
    folder = HERE / "static"
    try:
        path = (folder / request.match_info.get("name", "index.html")).resolve()
        found = path.is_relative_to(folder) and path.is_file()
    except (OSError, ValueError):  # no name that a file could have
        found = False
    if not found:
        raise web.HTTPNotFound
    response = web.FileResponse(path)
    if path.parent.name == "react":
        response.headers["Content-Security-Policy"] = REACT_POLICY
    return response


# ------------------------------------------------------------------------------ reading requests


def invalid(message: str) -> Refusal:
    return Refusal(400, "invalid_request", message)


def too_deep() -> Refusal:
    return Refusal(400, "invalid_json", "The body is nested too deeply.")


async def read_chat(request: web.Request) -> Asked:
    """Return what the POST asks for. Raises Refusal."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not re.fullmatch(r"[\x21-\x7e]{1,128}", key):
        raise invalid("Idempotency-Key has 1 to 128 visible ASCII characters.")
    body = await read_body(request)
    thread_id, resume, message = body.get("thread_id"), body.get("resume"), None
    if thread_id is not None and not (
        isinstance(thread_id, str) and re.fullmatch(THREAD_ID, thread_id)
    ):
        raise invalid("thread_id has 1 to 64 characters of A-Z, a-z, 0-9, _ and -.")
    if "resume" not in body:
        message = read_message(body)
    elif body.get("message") is not None:
        raise invalid("message and resume exclude each other.")
    elif is_nested(resume, MAX_NESTING):  # Checkpointers take little more.
        raise invalid(f"resume is nested more than {MAX_NESTING} levels deep.")
    elif has_lone_surrogate(json.dumps(resume, ensure_ascii=False)):
        raise invalid("resume has half of a surrogate pair.")
    elif thread_id is None:
        raise nothing_to_resume()
    digest = fingerprint(body) if key is not None else None
    return Asked(thread_id or secrets.token_urlsafe(12), message, resume, key, digest)


ENCODINGS = {"identity", "gzip", "deflate"}


async def read_body(request: web.Request) -> dict[str, Any]:
    """Return the request's JSON object. Raises Refusal."""
    if request.content_type != "application/json":
        raise Refusal(415, "unsupported_media_type", "Content-Type has to be application/json.")
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ENCODINGS:
        raise Refusal(400, "invalid_json", "The body's encoding is not known.")
    try:
        async with asyncio.timeout(BODY_S):
            data = await request.read()
        if encoding != "identity":
            data = unpack(data, request.client_max_size)
        body = _decode_json(data.decode())
    except (ValueError, zlib.error, web.RequestPayloadError):
        raise Refusal(400, "invalid_json", "The body is not JSON in UTF-8.") from None
    except RecursionError:
        raise too_deep() from None
    except TimeoutError:
        raise Refusal(400, "invalid_json", "The body did not arrive.") from None
    if not isinstance(body, dict):
        raise invalid("The body has to be a JSON object.")
    return body


def unpack(data: bytes, max_bytes: int) -> bytes:
    """Return what gzip or deflate packed; raises zlib.error or ValueError where that is damaged.

    Not aiohttp's own unpacking, which takes a gzip that is cut, and answers before a middleware
    where it knows no encoding. Source: RFC 9110, "Content Codings".
    """
    # What should have zlib's head and has none is met, too.
    raw = data[:1] != b"\x1f" and (data[:1] or b"\0")[0] & 15 != 8
    unpacking = zlib.decompressobj(-15 if raw else 47)
    unpacked = unpacking.decompress(data, max_bytes + 1)
    if len(unpacked) > max_bytes:
        raise web.HTTPRequestEntityTooLarge(max_bytes, len(unpacked))
    if not unpacking.eof or unpacking.unused_data:
        raise ValueError("it is cut, or goes on behind its end")
    return unpacked


def _read_number(text: str) -> float:
    """Return a JSON number: 1.0 as 1, and what has no place in 64 bits as browsers do, a float."""
    number = float(text)
    if abs(number) >= 2**63 or not number.is_integer():
        return number
    return int(text) if text.lstrip("-").isdecimal() else int(number)


# NaN and its like are Python's own, not JSON's: int refuses them.
_decode_json = json.JSONDecoder(
    parse_constant=int, parse_int=_read_number, parse_float=_read_number
).decode


def fingerprint(body: dict[str, Any]) -> str:
    """Return the same for bodies that are equal as JSON. Raises Refusal."""
    try:
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    except RecursionError:
        raise too_deep() from None


def read_message(body: Mapping[str, Any]) -> str:
    message = body.get("message")
    if not isinstance(message, str) or not message.strip():
        raise invalid("message has to be text that is not blank.")
    if len(message) > MESSAGE_CHARS:
        raise invalid(f"message has more than {MESSAGE_CHARS} characters.")
    if has_lone_surrogate(message):
        raise invalid("message has half of a surrogate pair.")
    return message


def is_nested(value: Any, levels: int) -> bool:
    """Whether more arrays and objects than that stand in each other."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(is_nested(each, levels - 1) for each in inner)


def has_lone_surrogate(text: str) -> bool:
    return re.search("[\ud800-\udfff]", text) is not None


async def read_cursor(request: web.Request, run: AnyRun) -> int:
    """Return the last event id that the reader has. Raises Refusal, Unavailable.

    Source: WHATWG HTML, "Last-Event-ID".
    """
    cursor = request.headers.get("Last-Event-ID", request.query.get("last_event_id", "0"))
    if re.fullmatch(r"[0-9]{1,100}", cursor):
        if (after := int(cursor)) > run.log.last_id:
            await run.log.flush()  # Readers elsewhere may be ahead of this copy.
        if after <= run.log.last_id:
            return after
        if request.app[RUNS].store.degraded:
            raise Unavailable
    message = f"Last-Event-ID has to be a whole number from 0 to {run.log.last_id}."
    raise Refusal(400, "invalid_last_event_id", message)


# ------------------------------------------------------------------------------------- streams


def run_headers(run: AnyRun) -> dict[str, str]:
    url = f"/api/runs/{run.id}"
    return {"Location": f"{url}/events", "Content-Location": url}


async def follow(request: web.Request, run: AnyRun, after: int) -> web.StreamResponse:
    """Send the frames after the cursor, then each as it comes, to the run's end.

    Source: WHATWG HTML, "Server-sent events".
    """
    settings, loop = request.app[SETTINGS], asyncio.get_running_loop()
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache, no-transform",
            # nginx would otherwise collect the stream before it passes it on.
            "X-Accel-Buffering": "no",
            **run_headers(run),
        }
    )
    run.join()
    try:
        writer = await response.prepare(request)
        assert isinstance(writer, StreamWriter)
        reader = Reader(request, writer, settings.send_timeout_s)
        # A block that is none of the log's, and when the next write is due.
        block, due = encode_retry(), 0.0
        while True:
            frames, after = run.log.read(after, WRITE_BYTES)
            if block or frames:
                await reader.write(block + frames)
                block = b""
                now = loop.time()
                due = max(due, now - WRITES_AT_ONCE * WRITE_EVERY_S) + WRITE_EVERY_S
                if due > now and after == run.log.last_id and not run.log.closed:
                    await asyncio.sleep(due - now)
            elif run.log.closed:
                break
            elif not await run.log.wait(after, settings.heartbeat_s):
                block = HEARTBEAT
        await reader.wait_for(response.write_eof())
    except (TimeoutError, ConnectionError):
        logger.debug("run=%s lost a reader", run.id)
        if request.transport:
            request.transport.abort()
    finally:
        run.leave()
    return response


class Reader:
    """The connection of one response, and the patience with it."""

    def __init__(self, request: web.Request, writer: StreamWriter, timeout_s: float) -> None:
        self._protocol = request.protocol
        self._writer = writer
        self._timeout_s = timeout_s
        if transport := self._protocol.transport:
            # What a slow reader has not taken waits in the log, and only a little of it here or
            # in the kernel, which would otherwise take megabytes for each reader.
            transport.set_write_buffer_limits(0)
            transport.get_extra_info("socket").setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, WRITE_BYTES
            )

    async def write(self, data: bytes) -> None:
        """Write, and wait until the kernel has taken it all. Raises as `wait_for` does."""
        await self._writer.write(data, drain=False)
        if self._protocol.writing_paused:
            await self.wait_for(self._writer.drain())

    async def wait_for(self, sending: Coroutine[Any, Any, None]) -> None:
        """Wait until this is sent, however slow the reader.

        Raises TimeoutError where it takes not one byte in time, ConnectionError where it is gone.
        """
        task = asyncio.ensure_future(sending)
        try:
            while not task.done() and (transport := self._protocol.transport):
                left = bytes_left(transport)
                try:
                    # Shielded, since aiohttp's writer cannot wait again once it was cancelled.
                    async with asyncio.timeout(self._timeout_s):
                        await asyncio.shield(task)
                except TimeoutError:
                    if bytes_left(transport) == left:
                        raise
        finally:
            task.cancel()


def bytes_left(transport: asyncio.Transport) -> int:
    """Return how many bytes the other side has not acknowledged. Source: Linux, "tcp(7)"."""
    queued = fcntl.ioctl(transport.get_extra_info("socket"), termios.TIOCOUTQ, bytes(4))
    return transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)


# ----------------------------------------------------------------------------- the application


def create_app(settings: Settings, agent: Agent) -> web.Application:
    """Return the application that serves this agent."""
    app = web.Application(middlewares=[guard], client_max_size=settings.max_body_bytes)
    app[SETTINGS] = settings
    app.cleanup_ctx.append(runs_context(agent))
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
        ("GET", "/", page),
        ("GET", "/static/{name:.*}", page),
    ):
        app.router.add_route(method, path, handler, expect_handler=expect)
        if not path.startswith("/api/"):
            app.router.add_head(path, handler, expect_handler=expect)
    return app


def runs_context(agent: Agent) -> Callable[[web.Application], AsyncIterator[None]]:
    async def context(app: web.Application) -> AsyncIterator[None]:
        settings = app[SETTINGS]
        async with AsyncExitStack() as engines:
            if settings.database_url:
                with engine("DATABASE_URL"):
                    from database import open_database

                    opening = open_database(settings.database_url)
                    agent.keep_threads_in(await engines.enter_async_context(opening))
            store: Store = MemoryStore()
            if settings.redis_url:
                with engine("REDIS_URL"):
                    from shared import open_redis

                    opening_redis = open_redis(
                        settings.redis_url, settings.run_timeout_s, settings.run_ttl_s
                    )
                    store = await engines.enter_async_context(opening_redis)
            app[RUNS] = Runs(settings, agent, store)
            yield
            await app[RUNS].drain(0)

    return context


PACKAGES = {
    "langgraph.checkpoint.sqlite": "langgraph-checkpoint-sqlite",
    "langgraph.checkpoint.postgres": "langgraph-checkpoint-postgres",
    "psycopg": "psycopg[binary,pool]",
    "psycopg_pool": "psycopg[binary,pool]",
}
"""Where a module is not named as its package."""


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Turn what hinders an engine's start into the line that stops the server's."""
    try:
        yield
    except ImportError as error:
        package = PACKAGES.get(error.name or "", error.name)
        raise SettingError(
            f"{name} wants the package {package}: pip install -r deploy/requirements.txt"
        ) from error
    except Exception as error:
        # Not its text, which may have the password.
        got = type(error).__name__
        raise SettingError(f"{name} wants an engine that answers, got {got}") from error


class Connection(web.RequestHandler):
    """One connection; what is not HTTP on it is refused without a word of how it was read."""

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Log what a client's bytes raise in aiohttp as what it is: no failure of the server's."""
        self.logger.debug(*args, **kwargs)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        response = web.Response(status=status)
        if status == 500:
            response = internal_failure(request, exc).response()
        response.force_close()
        return response


async def enter(
    handle: Callable[[web.Request], Awaitable[web.StreamResponse]], request: web.Request
) -> web.StreamResponse:
    """Refuse also what aiohttp refuses before a middleware sees it: an unknown Expect, or one that
    has no UTF-8, where no route is."""
    try:
        return await handle(request)
    except (web.HTTPExpectationFailed, UnicodeEncodeError):
        return await guard(request, request.match_info.handler)


async def listen(
    app: web.Application, host: str, port: int
) -> tuple[web.AppRunner, asyncio.Server]:
    """Serve the application until the listener is closed and the runner cleaned up.

    Raises OSError where the address cannot be had.
    """
    # A disconnect has to cancel its handler, or the grace would begin with a failed heartbeat.
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.2)
    await runner.setup()
    assert runner.server
    runner.server.request_handler = partial(enter, runner.server.request_handler)
    loop = asyncio.get_running_loop()
    quiet: Any = None
    options: Any = {"loop": loop, "access_log": quiet, "auto_decompress": False}
    connect = partial(Connection, runner.server, **options)
    return runner, await loop.create_server(connect, host, port, backlog=BACKLOG)


async def serve(settings: Settings, agent: Agent) -> None:
    """Serve until SIGTERM or Ctrl-C, then shut down in order; a second signal ends it at once."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(
        lambda _, context: logger.error(context["message"], exc_info=context.get("exception"))
    )
    # A stopped tool keeps its worker thread until it returns; others must not wait for that.
    loop.set_default_executor(ThreadPoolExecutor(settings.max_runs + 32))
    app = create_app(settings, agent)
    try:
        runner, listener = await listen(app, settings.host, settings.port)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", "no such name")
        got = f"{settings.host}:{settings.port}: {why}".encode("unicode_escape").decode()
        raise SettingError(f"HOST and PORT want an address that is free here, got {got}") from None
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    # What is loaded by now stays, so the garbage collector need not walk it while runs go on. It
    # need not look often, either: nearly nothing of a chunk's dozens of objects is in a cycle.
    gc.freeze()
    gc.set_threshold(GARBAGE)
    host, port = listener.sockets[0].getsockname()[:2]
    print(f"Serving on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    await stop.wait()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(signum)
        # Not SIG_DFL, which process 1 of a container ignores.
        signal.signal(signum, lambda signum, _: os._exit(128 + signum))
    # The listener stays open until then: reads and health checks are answered.
    await app[RUNS].drain(settings.shutdown_grace_s)
    listener.close()
    await runner.cleanup()


def add_ref(record: logging.LogRecord) -> bool:
    """Give every traceback in the log its ref, whoever logs it."""
    if record.exc_info and " ref=" not in record.getMessage():
        record.msg, record.args = f"{record.getMessage()} ref={secrets.token_hex(4)}", None
    return True


def parse_arguments() -> dict[str, str]:
    """Return the environment with the command line's flags over it."""
    rows = []
    for s in fields(Settings):
        default = ", ".join(s.default) if isinstance(s.default, frozenset) else s.default
        rows.append(f"  {s.name.upper():<20} {s.metadata['about']} [{default}]")
    parser = argparse.ArgumentParser(
        description="Stream a LangGraph agent's runs as Server-Sent Events.",
        epilog="Environment variables, with their defaults:\n\n" + "\n".join(rows),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", help="wins over HOST")
    parser.add_argument("--port", help="wins over PORT")
    parser.add_argument("--version", action="version", version=VERSION)
    flags = {k.upper(): v for k, v in vars(parser.parse_args()).items() if v is not None}
    return {**os.environ, **flags}


def choose_agent(settings: Settings) -> Agent:
    """Return the agent that the settings name. Raises SettingError."""
    if not settings.agent:
        return built_in(
            docs=Path(settings.docs_dir or HERE / "README.md"),
            tokens_per_s=settings.demo_tokens_per_s,
            api_key=settings.openai_api_key,
            base_url=settings.openai_base_url,
            model=settings.openai_model,
        )
    try:
        return load_agent(settings.agent)
    except AgentError as error:
        raise SettingError(
            f"AGENT wants module:attribute, got {settings.agent!r}: {error}"
        ) from error


def main() -> None:
    """Read the settings, choose the agent and serve it."""
    try:
        settings = read_settings(parse_arguments())
        # Only this server's own level: libraries log addresses and texts below WARNING.
        logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
        logging.getLogger().handlers[0].addFilter(add_ref)
        logger.setLevel(settings.log_level.upper())
        run_to_the_end(serve(settings, choose_agent(settings)))
    except SettingError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    logging.shutdown()
    sys.stdout.flush()
    # A tool that blocks a worker thread would hold the process until it returns.
    os._exit(0)


def run_to_the_end(serving: Coroutine[Any, Any, None]) -> None:
    """Run the loop until the server has shut down: uvloop's, where it is installed."""
    loop: asyncio.AbstractEventLoop
    try:
        import uvloop

        loop = uvloop.new_event_loop()  # It takes less time for each token.
    except ImportError:
        loop = asyncio.new_event_loop()
    with closing(loop):
        task = loop.create_task(serving)
        while True:
            try:
                return loop.run_until_complete(task)
            except (SystemExit, KeyboardInterrupt) as error:
                # Ctrl-C before the server listens to it; later it is none of Python's exceptions.
                if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                    raise
                # A tool raised it: that ends its run, and would end the loop, too.
                logger.warning("a tool or a node raised %s", type(error).__name__)


if __name__ == "__main__":
    main()
