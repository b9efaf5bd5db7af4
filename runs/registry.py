"""All runs: limits, one run a thread, keys, and what one process shares.

Whose turn a thread has, and which run a key started, are names in the store: the first run to
claim a name holds it, and everybody else learns which run does.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Protocol

from agent import Agent
from events import Asked, EventLog, Refused, Unavailable, thread_name
from runs.run import STOP_S, Limits, Run

CLAIM_POLL_S = 0.02
"""How often a name is looked at again that its holder is about to give back."""

DRAIN_S = 2 * STOP_S + 0.2
"""How long shutdown waits for stopped runs: for the graph, then for the thread, and a little."""

logger = logging.getLogger("chat")


class AnyRun(Protocol):
    """A run as its readers need it: of this process, or of another one."""

    id: str

    @property
    def asked(self) -> Asked: ...
    @property
    def log(self) -> EventLog: ...
    @property
    def question_id(self) -> str | None: ...
    def document(self) -> dict[str, Any]: ...
    def join(self) -> None: ...
    def leave(self) -> None: ...
    def stop(self, reason: str) -> None: ...
    async def make_room(self) -> bool: ...


class Store(Protocol):
    """What keeps the logs of runs, and the names that runs hold. All may raise Unavailable."""

    async def open(self, run: Run) -> EventLog:
        """Return the empty log of a new run."""
        ...

    async def find(self, run_id: str) -> AnyRun | None:
        """Return a run of another process."""
        ...

    async def claim(self, name: str, run_id: str) -> str:
        """Return the run that holds the name: this one, if no other did."""
        ...

    async def holder(self, name: str) -> str | None: ...

    async def release(self, name: str, run_id: str) -> None:
        """Give the name back, if this run holds it."""
        ...

    async def drop(self, run_id: str) -> None:
        """Forget the run."""
        ...

    async def check(self) -> None: ...


class MemoryStore:
    """The store of one process alone."""

    def __init__(self) -> None:
        self._holders: dict[str, str] = {}

    async def open(self, run: Run) -> EventLog:
        return EventLog()

    async def find(self, run_id: str) -> AnyRun | None:
        return None

    async def claim(self, name: str, run_id: str) -> str:
        return self._holders.setdefault(name, run_id)

    async def holder(self, name: str) -> str | None:
        return self._holders.get(name)

    async def release(self, name: str, run_id: str) -> None:
        if self._holders.get(name) == run_id:
            del self._holders[name]

    async def drop(self, run_id: str) -> None:
        pass

    async def check(self) -> None:
        pass


class Registry:
    """The runs of this process, those that ended less than ``run_ttl_s`` ago included."""

    def __init__(self, limits: Limits, agent: Agent, store: Store) -> None:
        self.limits = limits
        self.agent = agent
        self.store = store
        self.draining = False
        self._runs: dict[str, Run] = {}
        """The runs that have started, by id."""
        self._running: dict[str, asyncio.Task[None]] = {}
        """The tasks of running runs, by id."""

    @property
    def running(self) -> int:
        return len(self._running)

    async def get(self, run_id: str, user: str) -> AnyRun:
        """Return a run of this user, of this process or another one. Raises Refused."""
        run = await self._find(run_id)
        if run is None or run.asked.user != user:
            raise Refused("unknown_run")
        return run

    async def start(self, asked: Asked) -> AnyRun:
        """Start a run, or return the one that the same key started. Raises Refused."""
        async with self._opened(asked) as run:
            if asked.key is not None and (joined := await self._join(run)):
                return joined
            await self.agent.check()
            await self._take_thread(run)
            turn = await self.agent.turn(asked)
            if not run.log.valid:
                raise Unavailable
            if self.draining:
                raise Refused("draining")
            if self.running >= self.limits.max_runs:
                raise Refused("too_many_runs")
            self._runs[run.id] = run
            task = self._running[run.id] = run.start(turn, self._give_back)
            task.add_done_callback(partial(self._ended, run))
            # Whoever is told of the run can find it, on every server.
            await run.log.wait(0, self.limits.heartbeat_s)
            return run

    async def forget(self, asked: Asked) -> None:
        """Forget a thread. Raises Refused if it has a running run, or nobody knows it."""
        thread = asked.thread
        # A run that never starts holds the thread meanwhile.
        async with self._opened(asked) as run:
            if (holder := await self.store.claim(f"thread:{thread}", run.id)) != run.id:
                raise Refused("thread_busy", run_id=holder)
            if not await self.agent.knows(thread):
                raise Refused("unknown_thread")
            if not run.log.valid:
                raise Unavailable
            await self.agent.forget(thread)

    async def running_of(self, thread: str) -> AnyRun | None:
        """Return the thread's running run, None if there is none."""
        run_id = await self.store.holder(f"thread:{thread}")
        return await self._find(run_id) if run_id else None

    async def check(self) -> None:
        """Raise Unavailable if what keeps the runs or the threads is away."""
        await self.store.check()
        await self.agent.check()

    async def drain(self, grace_s: float) -> None:
        """Refuse new runs, let the running ones end within the grace, then stop the others."""
        self.draining = True
        for timeout_s in (grace_s, DRAIN_S):
            if tasks := [*self._running.values()]:
                await asyncio.wait(tasks, timeout=timeout_s)
            for run_id in self._running:
                self._runs[run_id].stop("shutdown")

    async def _find(self, run_id: str) -> AnyRun | None:
        run = self._runs.get(run_id)
        return run if run and run.log.valid else await self.store.find(run_id)

    @asynccontextmanager
    async def _opened(self, asked: Asked) -> AsyncIterator[Run]:
        """Give a new run; if it is not started, nothing of it is left."""
        run = Run(secrets.token_hex(12), asked, self.limits)
        try:
            run.log = await self.store.open(run)
            yield run
        finally:
            if run.id not in self._runs:
                await self._give_back(run)
                await self._drop(run)

    async def _join(self, run: Run) -> AnyRun | None:
        """Claim the key for this run; return the run that has it already. Raises Refused."""
        while (run_id := await self.store.claim(_key(run.asked), run.id)) != run.id:
            if found := await self._find(run_id):
                if found.asked.digest != run.asked.digest:
                    raise Refused("idempotency_conflict")
                return found
            # It is being started, or was refused and gives the key back.
            await asyncio.sleep(CLAIM_POLL_S)
        return None

    async def _take_thread(self, run: Run) -> None:
        """Claim the thread for this run, from a run that its readers left too. Raises Refused."""
        asked, name = run.asked, f"thread:{run.asked.thread}"
        while (run_id := await self.store.claim(name, run.id)) != run.id:
            other = await self._find(run_id)
            if asked.message is None or other is None:
                raise Refused("thread_busy", run_id=run_id)
            if asked.replaces is None or asked.replaces != other.question_id:
                await self.agent.turn(asked)  # Refuses what is wrong before the other run stops.
            if not await other.make_room():
                raise Refused("thread_busy", run_id=run_id)

    async def _give_back(self, run: Run) -> None:
        with suppress(Unavailable):
            await self.store.release(f"thread:{run.asked.thread}", run.id)

    async def _drop(self, run: Run) -> None:
        self._runs.pop(run.id, None)
        with suppress(Unavailable):
            if run.asked.key is not None:
                await self.store.release(_key(run.asked), run.id)
            await self.store.drop(run.id)

    def _ended(self, run: Run, _: asyncio.Task[None]) -> None:
        del self._running[run.id]
        loop = asyncio.get_running_loop()
        loop.call_later(self.limits.run_ttl_s, lambda: asyncio.ensure_future(self._drop(run)))


def _key(asked: Asked) -> str:
    return f"key:{thread_name(asked.user, asked.key or '')}"
