"""Runs that several servers share, in Redis: one lease for each run.

A run lives as long as its server, the owner, renews its lease, within three seconds. A run whose
lease ran out is over: the owner has stopped it before, and the next server that looks at it ends
its log. In redis-cli, ``KEYS chat:*``:

====================== ====== ================================================================
chat:{RUN}:owner       string The lease: its value is the server. Renewed twice a second, expires
                              in 3 s, deleted at the run's end.
chat:{RUN}:log         stream Event n is entry n-T, stored at T, a Unix time in ms. Entry 1 has
                              what was asked, too. Expires RUN_TTL_S after the run's end, or
                              `SPARE_S` after the latest possible end if nobody ended it.
chat:{RUN}:wish        hash   What each other server wants of the owner: some of the words read,
                              stop and room. Repeated each second, expires in 3 s.
chat:name:{NAME}       string The run that holds a thread or an Idempotency-Key; void if that run
                              has no owner and, for a key, no log. Expires like a log.
chat:since             string Set in a Redis that knows nothing: its TTL says how long ago.
====================== ====== ================================================================

One script appends to logs, and compares owner and length: all readers of a run read the same bytes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from itertools import chain, count, islice
from typing import Any
from weakref import WeakValueDictionary

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from events import EventLog, Unavailable
from runs.redis_runs import LOST, RENEW_S, ForeignRun, OwnLog, is_a, now
from runs.run import Limits, Run

LEASE_MS = 3000
RETRY_S = 0.1
ANSWER_S = 1.0
"""How long Redis may take to reply, so that a renewal can be tried twice in time."""

FOLLOW_S, REPEAT = 0.05, 20
"""How often the logs of other servers' runs are looked at; wishes are repeated every 20th time."""

SEEN_S, SPARE_S = 1.0, 60.0
"""How long an ended run is kept at least, so that others see its end; how long a run that nobody
ends is kept after its latest possible end."""

AGES_MS = 10**12
SINCE = ("SET", "chat:since", "", "PX", AGES_MS, "NX")
"""Mark the beginning of Redis's memory, once. What is left of the 30 years says how old it is."""

APPEND = """
local owned, length = redis.call('EXISTS', KEYS[2]), redis.call('XLEN', KEYS[1])
local had = tonumber(ARGV[2])
if owned ~= tonumber(ARGV[1]) or length < had or (owned == 0 and length > had) then return 0 end
for n = length + 1, had + #ARGV - 5 do
  local asked = n == 1 and ARGV[5] or ''
  redis.call('XADD', KEYS[1], n .. '-' .. ARGV[3], 'frame', ARGV[5 + n - had], 'asked', asked)
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
if string.sub(ARGV[#ARGV], 1, 11) == 'event: done' then redis.call('DEL', KEYS[2]) end
return 1
"""
"""Append the frames that follow the first ``ARGV[2]``, and return 1 if the log has them now.

Only if the run has ``ARGV[1]`` owners. An owner may send frames that the log has: it alone writes.
"""

RELEASE = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('DEL', KEYS[1])"

Command = tuple[Any, ...]

logger = logging.getLogger("chat")


class RedisStore:
    """The store of several servers: see `runs.registry.Store`.

    `deliver` alone talks to Redis, over one connection: it sends what all others want, in order.
    `renew` keeps the leases, `follow` reads the logs of other servers' runs.
    """

    def __init__(self, redis: Redis, limits: Limits) -> None:
        self._redis: Any = redis  # Its types have every shape that a reply could have.
        self._server = f"{socket.gethostname()}/{secrets.token_hex(4)}"
        self._kept_ms = in_ms(max(limits.run_ttl_s, SEEN_S))
        self._longest_ms = in_ms(limits.run_timeout_s + limits.run_ttl_s + SPARE_S)
        self._own: dict[str, OwnLog] = {}
        """The logs that this server writes, by run."""
        self._foreign: WeakValueDictionary[str, ForeignRun] = WeakValueDictionary()
        self._followed: set[ForeignRun] = set()
        self._changed: set[ForeignRun] = set()
        """The runs whose wishes have to be told."""
        self._queued: list[tuple[tuple[Command, ...], asyncio.Future[Any]]] = []
        self._work = asyncio.Event()

    # --------------------------------------------------------------------------- the store

    async def open(self, run: Run) -> EventLog:
        log = OwnLog(run, self._work.set)
        lease = ("SET", key(run.id, "owner"), self._server, "PX", LEASE_MS)
        *_, left_ms = await self.call(lease, SINCE, ("PTTL", "chat:since"))
        self._own[run.id] = log
        # If Redis has just forgotten which threads have runs, those may still go on for a moment.
        await asyncio.sleep((LEASE_MS - (AGES_MS - left_ms)) / 1000)
        return log

    async def find(self, run_id: str) -> ForeignRun | None:
        if not re.fullmatch("[0-9a-f]{24}", run_id):
            return None
        run = self._foreign.get(run_id)
        if run is None or not run.log.valid:
            run = self._foreign[run_id] = ForeignRun(run_id, self._changed.add)
        await self._look(run)
        if not run.log.valid:
            raise Unavailable
        return run if run.log.last_id else None

    async def claim(self, name: str, run_id: str) -> str:
        claim = ("SET", name_of(name), run_id, "PX", self._longest_ms, "NX")
        while True:
            claimed, lives = await self.call(claim, life_of(run_id, name))
            if not lives:  # Redis has forgotten this run.
                raise Unavailable
            holder = run_id if claimed else await self.holder(name)
            if holder:
                return holder

    async def holder(self, name: str) -> str | None:
        (found,) = await self.call(("GET", name_of(name)))
        if not found:
            return None
        run_id = str(found, "ascii")
        (lives,) = await self.call(life_of(run_id, name))
        if not lives:
            self.release(name, run_id)
        return run_id if lives else None

    def release(self, name: str, run_id: str) -> None:
        # It comes before the run's `done`. If it is lost, the end of the lease voids the name.
        self._queue(("EVAL", RELEASE, 1, name_of(name), run_id))

    def drop(self, run_id: str) -> None:
        log = self._own.get(run_id)
        # Redis forgets a run that has started by itself, and it may not have all of its end yet.
        if log and not log.last_id and not log.unsent:
            del self._own[run_id]
            self._queue(("DEL", key(run_id, "owner")))

    async def check(self) -> None:
        await self.call(SINCE)  # A Redis that is full refuses it.

    # ----------------------------------------------------------------------------- sending

    def _queue(self, *commands: Command) -> asyncio.Future[Any]:
        """Have commands sent after all earlier ones; the future gets their replies or an error."""
        reply = asyncio.get_running_loop().create_future()
        self._queued.append((commands, reply))
        self._work.set()
        return reply

    async def call(self, *commands: Command) -> list[Any]:
        """Return the replies. Raises Unavailable if one is an error, or none comes in time."""
        replies: Any = await self._queue(*commands) if commands else []
        if isinstance(replies, Exception):
            raise Unavailable(type(replies).__name__) from replies
        return [*replies]

    async def deliver(self) -> None:
        """Send queued commands and the events of own runs, one pipeline at a time.

        If that fails, events are sent again with the next command: a renewal, at the latest.
        """
        while True:
            await self._work.wait()
            self._work.clear()
            queued, self._queued = self._queued, []
            logs = [(log, [*log.unsent]) for log in self._own.values() if log.unsent]
            appends = (self._append(log.run, frames, owners=1) for log, frames in logs)
            commands = chain(*(each for each, _ in queued))
            try:
                rest = iter(await self.send(*commands, *appends))
            except Exception as error:  # noqa: BLE001  # Whatever it is, nobody waits for ever.
                for _, reply in queued:
                    if not reply.cancelled():
                        reply.set_result(error)
                continue
            for each, reply in queued:
                replies = [*islice(rest, len(each))]
                if not reply.cancelled():
                    reply.set_result(replies)
            for (log, frames), stored in zip(logs, rest, strict=True):
                if stored:
                    del log.unsent[: len(frames)]
                    log.add(frames)
                else:
                    self._give_up(log)
                if log.closed:
                    self._own.pop(log.run.id, None)

    def _append(self, run: Run | ForeignRun, frames: list[bytes], owners: int) -> Command:
        """Append frames to a run's log if it has so many owners: one, or none."""
        asked = ""
        if run.log.last_id == 0:  # Its context is for its graph alone, and may be large.
            asked = json.dumps([run.before, vars(replace(run.asked, context=None))])
        kept_ms = self._kept_ms if is_a(frames[-1], "done") else self._longest_ms
        stored_ms = round(1000 * time.time())
        arguments = owners, run.log.last_id, stored_ms, kept_ms, asked, *frames
        return ("EVAL", APPEND, 2, key(run.id, "log"), key(run.id, "owner"), *arguments)

    async def send(self, *commands: Command) -> list[Any]:
        async with asyncio.timeout(ANSWER_S), self._redis.pipeline(False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            replies: list[Any] = await pipeline.execute()
            return replies

    # -------------------------------------------------------------------------- own runs

    async def renew(self) -> None:
        """Renew the leases of own runs, and grant the wishes of other servers."""
        pause_s = RENEW_S
        while True:
            await asyncio.sleep(pause_s)
            logs, began = [*self._own.values()], now()
            ids = [log.run.id for log in logs]
            # Not PEXPIRE: a full Redis refuses SET, so no run outlives one that takes no events.
            leases = [("SET", key(i, "owner"), self._server, "PX", LEASE_MS, "XX") for i in ids]
            wishes = [("HGETALL", key(i, "wish")) for i in ids]
            try:
                _, *replies = await self.call(SINCE, *leases, *wishes)
                if pause_s == RETRY_S:
                    logger.warning("Redis is back")
                pause_s = RENEW_S
            except Unavailable as error:
                if pause_s == RENEW_S:
                    logger.warning("Redis is away: %s", error)
                pause_s, replies = RETRY_S, []
            for log, owned, wished in zip(logs, replies, replies[len(logs) :], strict=False):
                if not owned:
                    log.seen_at = LOST
                elif log.run.id in self._own:
                    log.seen_at = began
                    log.grant(wished)
            for log in logs:
                if not log.valid:
                    self._give_up(log)

    def _give_up(self, log: OwnLog) -> None:
        """Stop a run whose lease has run out, or soon will."""
        log.seen_at = LOST
        if self._own.pop(log.run.id, None):
            logger.warning("run=%s has lost its lease", log.run.id)
            log.run.stop("shutdown")

    # ------------------------------------------------------------------ runs of other servers

    async def follow(self) -> None:
        """Read what is new in the logs of all runs that are read here, or to be stopped."""
        for number in count():
            await asyncio.sleep(FOLLOW_S)
            self._followed |= self._changed
            changed = {*(self._changed if number % REPEAT else self._followed)}
            self._changed.clear()
            self._followed = {r for r in self._followed if r.wishes and not r.log.closed}
            wishes = [
                ("HSET", key(r.id, "wish"), self._server, " ".join(r.wishes)) for r in changed
            ]
            expiry = [("PEXPIRE", key(run.id, "wish"), LEASE_MS) for run in changed]
            with suppress(Unavailable):
                await self.call(*wishes, *expiry)
                await self._look(*self._followed)

    async def _look(self, *runs: ForeignRun) -> None:
        """Copy what is new in the runs' logs, and end each run that has no owner."""
        dead, ref = await self._copy(*runs), secrets.token_hex(4)
        ends = (self._append(run, run.closing_frames(ref), owners=0) for run in dead)
        for run, ended in zip(dead, await self.call(*ends), strict=True):
            if ended:
                logger.warning("run=%s is over: its server is gone ref=%s", run.id, ref)
        for run in await self._copy(*dead):  # Redis has forgotten the log, or a part of it.
            run.log.seen_at = LOST
            run.wishes.clear()

    async def _copy(self, *runs: ForeignRun) -> list[ForeignRun]:
        """Copy what is new in the runs' logs; return the runs with neither an owner nor an end."""
        began = now()
        # In this order: a log without an owner has everything that its owner wrote.
        leases = [("EXISTS", key(run.id, "owner")) for run in runs]
        news = [("XRANGE", key(run.id, "log"), run.log.last_id + 1, "+") for run in runs]
        replies = await self.call(*leases, *news)
        dead = []
        for run, owned, entries in zip(runs, replies, replies[len(runs) :], strict=False):
            run.copy(entries)
            if owned or run.log.closed:
                run.log.seen_at = began
            elif run.log.last_id:
                dead.append(run)
        return dead


def key(run_id: str, name: str) -> str:
    return f"chat:{{{run_id}}}:{name}"


def name_of(name: str) -> str:
    return f"chat:name:{{{name}}}"


def life_of(run_id: str, name: str) -> Command:
    """Whether the run may hold the name."""
    # A thread is free at its run's end; a key joins the run as long as its log is kept.
    log = () if name.startswith("thread:") else (key(run_id, "log"),)
    return ("EXISTS", key(run_id, "owner"), *log)


def in_ms(seconds: float) -> int:
    return round(1000 * min(seconds, 1e9))  # Redis counts milliseconds in 64 bits.


@asynccontextmanager
async def open_redis(url: str, limits: Limits) -> AsyncIterator[RedisStore]:
    """Open the store. Raises whatever the redis package raises if Redis does not answer."""
    options: Any = {
        "protocol": 2,
        "socket_timeout": None,  # A pipeline has one time-out of its own.
        "retry": Retry(NoBackoff(), 0),
    }
    async with Redis.from_url(url, **options) as redis:
        store = RedisStore(redis, limits)
        await store.send(SINCE)
        tasks = [asyncio.create_task(t()) for t in (store.deliver, store.renew, store.follow)]
        try:
            yield store
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
