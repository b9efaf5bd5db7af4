"""All runs: limits, one run a thread, idempotency keys, and the store of one process.

The store keeps names: of each thread, the run that runs and the newest one; of each key, the run
that it started. The first run that claims a name holds it, and the others get the id of that run.
A run that is gone holds no name.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Protocol

from agent import Agent
from events import Asked, EventLog, Refused, Unavailable, thread_name
from graphs.messages import QUESTION
from runs.run import STOP_S, AnyRun, Limits, Run

CLAIM_POLL_S = 0.02
"""How long to wait before a name is claimed again that its holder will soon release."""

STORED_S = 10.0
"""How long a run may take to be stored: longer than a store takes to give it up."""

DRAIN_S = 2 * STOP_S + 0.2
"""How long shutdown waits for stopped runs: for the graph, for the thread, and 0.2 s to spare."""

logger = logging.getLogger("chat")


class Store(Protocol):
    """What keeps the logs of runs, and their names. Every method may raise Unavailable."""

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

    def release(self, name: str, run_id: str) -> None:
        """Give the name back, if this run holds it. Does not wait."""
        ...

    def drop(self, run_id: str) -> None:
        """Forget the run and its names. Does not wait."""
        ...

    async def check(self) -> None: ...


class MemoryStore:
    """The store of one process alone."""

    def __init__(self) -> None:
        self._holders: dict[str, str] = {}
        self._names: defaultdict[str, set[str]] = defaultdict(set)
        """The names of each run: dropping a run takes no search."""

    async def open(self, run: Run) -> EventLog:
        return EventLog()

    async def find(self, run_id: str) -> AnyRun | None:
        return None

    async def claim(self, name: str, run_id: str) -> str:
        holder = self._holders.setdefault(name, run_id)
        self._names[holder].add(name)
        return holder

    async def holder(self, name: str) -> str | None:
        return self._holders.get(name)

    def release(self, name: str, run_id: str) -> None:
        if self._holders.get(name) == run_id:
            del self._holders[name]
            self._names[run_id].discard(name)

    def drop(self, run_id: str) -> None:
        for name in self._names.pop(run_id, ()):
            del self._holders[name]

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
        self._running: set[str] = set()
        """The ids of the runs that count under ``max_runs``."""

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
            if self.draining:
                raise Refused("draining")
            await self.agent.check()  # Before another run stops.
            await self._take_thread(run)
            turn = await self.agent.turn(asked)
            if not run.log.valid:
                raise Unavailable
            if self.running >= self.limits.max_runs:
                raise Refused("too_many_runs")
            self._running.add(run.id)
            run.before = await self._become_newest(run)
            if self.draining:
                raise Refused("draining")
            self._runs[run.id] = run
            run.start(turn, self._give_back)
            # Wait until the run is stored, so that its client can find it on every server.
            await run.log.wait(0, STORED_S)
            return run

    async def forget(self, asked: Asked) -> None:
        """Forget a thread. Raises Refused if it has a running run, or nobody knows it."""
        thread = asked.thread
        # A run that never starts claims the thread, so that no other run does meanwhile.
        async with self._opened(asked) as run:
            if (holder := await self.store.claim(f"thread:{thread}", run.id)) != run.id:
                raise Refused("thread_busy", run_id=holder)
            if not await self.agent.saved(thread):
                raise Refused("unknown_thread")
            if not run.log.valid:
                raise Unavailable
            await self.agent.forget(thread)
            await self._become_newest(run)  # This run is dropped, and the name with it.

    async def running_of(self, thread: str) -> AnyRun | None:
        """Return the thread's running run, None if there is none."""
        run_id = await self.store.holder(f"thread:{thread}")
        return await self._find(run_id) if run_id else None

    async def newest_turn(self, thread: str) -> list[AnyRun]:
        """Return the runs of the thread's newest turn as `turn_of` does, none if it is gone."""
        run_id = await self.store.holder(f"newest:{thread}")
        run = await self._find(run_id) if run_id else None
        return await self.turn_of(run) if run else []

    async def turn_of(self, run: AnyRun) -> list[AnyRun]:
        """Return the runs of a turn up to this one, oldest first; none if one of them is gone.

        A turn takes a run for its message, and one for each answer to its interrupts.
        """
        runs = [run]
        while run.asked.message is None:
            before = await self._find(run.before) if run.before else None
            if not before:
                return []
            run = before
            runs.insert(0, run)
        return runs

    async def questions(self, thread: str) -> list[str]:
        """Return the ids of the messages that users sent, oldest first, the running one's too."""
        run, saved = await self.running_of(thread), await self.agent.saved(thread)
        ids = [message.id for message in saved.messages] if saved else []
        if run and run.question_id not in ids:
            ids.append(run.question_id)  # The graph has not saved it yet.
        return [id_ for id_ in ids if id_ and id_.startswith(QUESTION)]

    async def check(self) -> None:
        """Raise Unavailable if Redis or the database cannot be reached."""
        await self.store.check()
        await self.agent.check()

    async def drain(self, grace_s: float) -> None:
        """Refuse new runs, let the running ones end within the grace, then stop the others."""
        self.draining = True
        await self._wait_for_runs(grace_s)
        for run in self._runs.values():
            run.stop("shutdown")
        await self._wait_for_runs(DRAIN_S)

    async def _wait_for_runs(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for run in [*self._runs.values()]:
                    with suppress(Unavailable):
                        await run.log.ended()

    async def _find(self, run_id: str) -> AnyRun | None:
        run = self._runs.get(run_id)
        return run if run and run.log.valid else await self.store.find(run_id)

    @asynccontextmanager
    async def _opened(self, asked: Asked) -> AsyncIterator[Run]:
        """Open a run, and drop it if the body does not start it."""
        run = Run(secrets.token_hex(12), asked, self.limits)
        try:
            run.log = await self.store.open(run)
            yield run
        finally:
            if run.id not in self._runs:
                self._drop(run)

    async def _join(self, run: Run) -> AnyRun | None:
        """Claim the key for this run; if another run holds it, return that. Raises Refused."""
        while (run_id := await self.store.claim(_key(run.asked), run.id)) != run.id:
            if found := await self._find(run_id):
                if found.asked.digest != run.asked.digest:
                    raise Refused("idempotency_conflict")
                return found
            # It is being started, or was refused and gives the key back.
            await asyncio.sleep(CLAIM_POLL_S)
        return None

    async def _take_thread(self, run: Run) -> None:
        """Claim the thread for this run. A running run that all readers left is stopped for it.

        Raises Refused if the request is not valid, or the running run is still read.
        """
        asked, name = run.asked, f"thread:{run.asked.thread}"
        while (run_id := await self.store.claim(name, run.id)) != run.id:
            other = await self._find(run_id)
            if asked.message is None or other is None:
                raise Refused("thread_busy", run_id=run_id)
            # Check the request before the other run stops. Its question may not be saved yet.
            is_running = asked.replaces is not None and asked.replaces == other.question_id
            await self.agent.turn(replace(asked, replaces=None) if is_running else asked)
            if not await other.make_room():
                raise Refused("thread_busy", run_id=run_id)

    async def _become_newest(self, run: Run) -> str | None:
        """Let the run hold its thread's ``newest``; return the run that held it, if one did."""
        name, before = f"newest:{run.asked.thread}", None
        while (holder := await self.store.claim(name, run.id)) != run.id:
            before = holder
            self.store.release(name, holder)
        return before

    def _give_back(self, run: Run) -> None:
        self._running.discard(run.id)
        self.store.release(f"thread:{run.asked.thread}", run.id)
        asyncio.get_running_loop().call_later(self.limits.run_ttl_s, self._drop, run)

    def _drop(self, run: Run) -> None:
        self._running.discard(run.id)
        self._runs.pop(run.id, None)
        self.store.drop(run.id)


def _key(asked: Asked) -> str:
    return f"key:{thread_name(asked.user, asked.key or '')}"
