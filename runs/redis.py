"""Runs that several servers share, in Redis.

A run lives as long as its server, the owner, renews its lease, within three seconds. A run whose
lease ran out is over: the next server that looks at it ends it. In redis-cli, ``KEYS chat:*``:

====================== ====== ================================================================
chat:{RUN}:log         stream Event n is entry n-T, stored at T, a Unix time in ms. Entry 1 has
                              what was asked, too. Expires RUN_TTL_S after the run's end, or
                              `SPARE_S` after the latest possible end if nobody ended it.
chat:{RUN}:owner       string The server that runs it. Expires in 3 s, renewed twice a second.
chat:{RUN}:wish        hash   What other servers want of the owner: stop, room, read:SERVER. The
                              owner takes it with each renewal. Expires in 3 s.
chat:name:{NAME}       string The run that holds a thread or an Idempotency-Key; void if that
                              run has no owner and, for a key, no log. Expires like a log.
chat:since             string When this Redis began to remember, a Unix time in ms.
====================== ====== ================================================================

One script writes the logs, and checks the owner and the length, so all readers of a run read the
same bytes.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from events import EventLog, Unavailable, encode_event
from runs import commands
from runs.commands import Command
from runs.run import Limits, Run
from runs.shared import ASKED, SURE_S, Entry, ForeignRun, OwnLog, has_ended, now

RENEW_S = 0.5
GIVE_UP_S = 2.5
"""How long after the start of its last renewal a run is stopped."""

ANSWER_S = 1.0
"""How long Redis may take to reply, so that a renewal can be tried twice."""

RETRY_S = 0.1
SEND_EVERY_S, URGENT = 0.005, 5
"""Write coalescing: the first events of a run and its end are sent to Redis at once, the others
wait so long for more to come. That halves the cost of a token."""

FOLLOW_S = 0.05
"""How often the logs of other servers' runs are looked at."""

REPEAT_S, VISIT_S = 1.0, 3.0
"""How often a wish is repeated; how long a reader elsewhere counts if its wish is not."""

FLUSH_S = 0.3
SEEN_S, SPARE_S = 1.0, 60.0
"""How long an ended run is kept at least, so that others see its end; how long a run that nobody
ends is kept after its latest possible end."""

logger = logging.getLogger("chat")


def in_ms(seconds: float) -> int:
    return round(1000 * min(seconds, 1e9))  # Redis counts milliseconds in 64 bits.


class RedisStore:
    """The store of several servers: see `runs.registry.Store`.

    Three tasks, each with at most one connection: `deliver` sends what all others want of Redis,
    `renew` keeps the leases, `follow` reads the logs of other servers' runs.
    """

    def __init__(self, redis: Redis, limits: Limits) -> None:
        self.server = f"{socket.gethostname()}/{secrets.token_hex(4)}"
        self._redis: Any = redis  # Its types have every shape that a reply could have.
        self._away = False
        self._kept_ms = in_ms(max(limits.run_ttl_s, SEEN_S))
        self._longest_ms = in_ms(limits.run_timeout_s + limits.run_ttl_s + SPARE_S)
        self._own: dict[str, OwnLog] = {}
        """The logs that this server writes, by run."""
        self._foreign: WeakValueDictionary[str, ForeignRun] = WeakValueDictionary()
        self._followed: set[ForeignRun] = set()
        self._calls: list[tuple[Command, asyncio.Future[Any]]] = []
        self._unsent: dict[OwnLog, None] = {}
        self._work, self._wished = asyncio.Event(), asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def open(self, run: Run) -> EventLog:
        """Return the empty log of a new run; its lease begins."""
        log = OwnLog(run, self._send_soon)
        lease = commands.own(run.id, self.server)
        _, age_ms = await self._call_all(lease, commands.age())
        # A Redis that forgot which threads have runs: those of before may still go on.
        if age_ms < in_ms(SURE_S):
            raise Unavailable
        self._own[run.id] = log
        return log

    async def find(self, run_id: str) -> ForeignRun | None:
        """Return a run of another server, with its log as it is now."""
        if not re.fullmatch("[0-9a-f]{24}", run_id):
            return None
        run = self._foreign.get(run_id)
        if run is None or not run.log.valid:
            run = self._foreign[run_id] = ForeignRun(run_id, self._tell)
        await self._look(run)
        return run if run.log.last_id and run.log.valid else None

    async def claim(self, name: str, run_id: str) -> str:
        """Return the run that holds the name: this one, if no other did."""
        void = ""
        while True:
            claim = commands.claim(name, run_id, void, self._longest_ms)
            holder = str(await self._call(claim), "ascii")
            if holder == run_id or not await self._is_void(name, holder):
                return holder
            void = holder

    async def holder(self, name: str) -> str | None:
        found = await self._call(commands.holder(name))
        holder = str(found or b"", "ascii")
        return holder if holder and not await self._is_void(name, holder) else None

    async def _is_void(self, name: str, holder: str) -> bool:
        owned, newest = await self._call_all(*commands.look_at_end(holder))
        if name.startswith("thread:"):
            return not owned or has_ended(newest)
        return not owned and not newest

    def release(self, name: str, run_id: str) -> None:
        # Nothing waits for the reply: Redis has it before the run's `done`, which is sent later.
        self._post(commands.release(name, run_id))

    def drop(self, run_id: str) -> None:
        """Forget a run that was not started; Redis forgets an ended one, and names, by itself."""
        self._own.pop(run_id, None)
        self._post(commands.disown(run_id, self.server))

    async def check(self) -> None:
        await self._call(commands.check())

    # --------------------------------------------------------------------------------- sending

    def _send_soon(self, log: OwnLog) -> None:
        """Have the log's unsent events sent soon."""
        self._unsent[log] = None
        if log.ending or log.last_id < URGENT:
            self._work.set()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(SEND_EVERY_S, self._work.set)

    def _call(self, command: Command) -> asyncio.Future[Any]:
        """Have a command sent with those of all others, and return the future of its reply."""
        reply = asyncio.get_running_loop().create_future()
        self._calls.append((command, reply))
        self._work.set()
        return reply

    def _call_all(self, *calls: Command) -> asyncio.Future[list[Any]]:
        return asyncio.gather(*map(self._call, calls))

    def _post(self, command: Command) -> None:
        """Have a command sent whose reply nobody needs."""
        self._call(command).add_done_callback(lambda reply: reply.cancelled() or reply.exception())

    async def deliver(self) -> None:
        """Send commands and events, one pipeline at a time.

        If that fails, so do the commands; events are sent again, until their run is given up.
        """
        while True:
            await self._work.wait()
            self._work.clear()
            if self._timer:
                self._timer.cancel()
                self._timer = None
            calls, self._calls = self._calls, []
            logs = [log for log in self._unsent if log.run.id in self._own]
            counts = [len(log.unsent) for log in logs]
            self._unsent.clear()
            try:
                sent = *(command for command, _ in calls), *map(self._append, logs)
                replies = await self._pipeline(*sent)
            except Unavailable as error:
                # What came meanwhile fails, too: nobody waits for Redis twice.
                calls, self._calls = calls + self._calls, []
                replies = [error] * len(calls)
                self._unsent |= dict.fromkeys(logs)
                logs, counts = [], []
                asyncio.get_running_loop().call_later(RETRY_S, self._work.set)
            for (_, future), reply in zip(calls, replies, strict=False):
                if not future.done():
                    if isinstance(reply, Exception):
                        future.set_exception(Unavailable())
                    else:
                        future.set_result(reply)
            for log, count, reply in zip(logs, counts, replies[len(calls) :], strict=True):
                self._delivered(log, count, reply)

    def _append(self, log: OwnLog) -> Command:
        run, asked = log.run, ""
        if not log.last_id:
            about = {name: getattr(run.asked, name) for name in ASKED}
            asked = json.dumps({"before": run.before, "asked": about})
        kept_ms = self._kept_ms if log.ending else self._longest_ms
        position = run.id, self.server, log.last_id
        return commands.append(*position, kept_ms, log.unsent, asked)

    def _delivered(self, log: OwnLog, count: int, reply: Any) -> None:
        if reply != 1:  # Somebody else, or nobody, has the lease; or Redis is full.
            return self._give_up(log)
        log.sent(count)
        if log.closed:
            self._own.pop(log.run.id, None)

    async def flush(self) -> None:
        """Wait a little for the ends of the last runs to reach Redis."""
        ends = now() + FLUSH_S
        while self._own and now() < ends:
            await asyncio.sleep(0.01)

    async def _pipeline(self, *sent: Command) -> list[Any]:
        """Return the replies, errors among them. Raises Unavailable if they do not come in time."""
        if not sent:
            return []
        try:
            async with asyncio.timeout(ANSWER_S):
                replies = await self.send(sent)
                if any(isinstance(reply, NoScriptError) for reply in replies):
                    for text in commands.SCRIPTS:
                        await self._redis.script_load(text)
                    replies = await self.send(sent)
        except Exception as error:
            if not self._away:
                logger.warning("Redis is away: %s", type(error).__name__)
            self._away = True
            raise Unavailable from error
        if self._away:
            logger.warning("Redis is back")
        self._away = False
        return replies

    async def send(self, sent: tuple[Command, ...]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for command in sent:
                pipeline.execute_command(*command)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
            return replies

    # ---------------------------------------------------------------------------------- leases

    async def renew(self) -> None:
        """Renew the leases of all runs, and take the wishes of other servers."""
        pause_s = RENEW_S
        while True:
            await asyncio.sleep(pause_s)
            logs, began, pause_s = [*self._own.values()], now(), RENEW_S
            try:
                renewals = (commands.renew(log.run.id, self.server) for log in logs)
                replies = sound(await self._pipeline(*renewals))
            except Unavailable:
                pause_s = RETRY_S
                for log in logs:
                    if now() > log.renewed + GIVE_UP_S:
                        self._give_up(log)
                continue
            for log, wishes in zip(logs, replies, strict=True):
                if wishes is None:
                    self._give_up(log)
                elif log.run.id in self._own:
                    log.renewed = began
                    self._grant(log, [str(word, "utf-8") for word in wishes])

    def _grant(self, log: OwnLog, words: list[str]) -> None:
        """Do what other servers wish. Their readers count like readers here."""
        run, visits = log.run, log.visits
        wishes = dict(zip(words[::2], words[1::2], strict=True))
        for wish, value in wishes.items():
            if wish.startswith("read:"):
                if wish not in visits:
                    run.join()
                visits[wish] = now() + VISIT_S if value == "1" else 0
        for visit in [visit for visit, until in visits.items() if until < now()]:
            del visits[visit]
            run.leave()
        wanted = {wish.partition(":")[0] for wish, value in wishes.items() if value == "1"}
        if "stop" in wanted or ("room" in wanted and run.left):
            logger.info("run=%s is stopped: a client of another server asked for it", run.id)
            run.stop("cancelled")

    def _give_up(self, log: OwnLog) -> None:
        """Stop a run whose lease has run out, or soon will."""
        if self._own.pop(log.run.id, None):
            logger.warning("run=%s has lost its lease", log.run.id)
            log.cut()
            if log.run.turn:  # It has started, and has not ended.
                log.run.stop("shutdown")

    # -------------------------------------------------------------------- runs of other servers

    def _tell(self, run: ForeignRun, wish: str, wanted: bool) -> None:
        """Tell the owner of a wish, and follow the run as long as there is one."""
        self._post(commands.wish(run.id, f"{wish}:{self.server}", "1" if wanted else "0"))
        self._followed.add(run)
        self._wished.set()

    async def follow(self) -> None:
        """Read what is new in the logs of all runs that are read here, or to be stopped."""
        repeated = now()
        while True:
            await self._wished.wait()
            runs = [r for r in self._followed if r.wishes and r.log.valid and not r.log.closed]
            self._followed = {*runs}
            if not runs:
                self._wished.clear()
                continue
            if now() - repeated > REPEAT_S:
                repeated = now()
                for run in runs:
                    for wish in run.wishes:
                        self._tell(run, wish, True)
            try:
                looks = [c for run in runs for c in commands.look(run.id, run.log.last_id)]
                replies = sound(await self._pipeline(*looks))
                for run, owned, entries in zip(runs, replies[::2], replies[1::2], strict=True):
                    if not saw(run, owned, entries):
                        await self._look(run)
            except Unavailable:
                for run in runs:
                    if now() - run.looked_at > SURE_S:
                        run.log.cut()
            await asyncio.sleep(FOLLOW_S)

    async def _look(self, run: ForeignRun) -> None:
        """Copy what is new in the run's log, and end the run if its owner is gone."""
        for _ in range(3):
            if saw(run, *await self._call_all(*commands.look(run.id, run.log.last_id))):
                return
            await self._end(run)
        # Redis has forgotten the log or a part of it.
        run.log.cut()

    async def _end(self, run: ForeignRun) -> None:
        """End a run without an owner, unless another server did so first."""
        seconds, micros = await self._call(("TIME",))
        if run.log.closed:  # Another look has brought its end meanwhile.
            return
        ref, last_id = secrets.token_hex(4), run.log.last_id
        events = run.closing_events(seconds * 1000 + micros // 1000, ref)
        frames = [encode_event(event, last_id + n) for n, event in enumerate(events, 1)]
        end = commands.append(run.id, "", last_id, self._kept_ms, frames)
        if await self._call(end):
            logger.warning("run=%s is over: its server is gone ref=%s", run.id, ref)


def saw(run: ForeignRun, owned: int, entries: list[Entry]) -> bool:
    """Copy the entries; return whether the run goes on, has ended or does not exist."""
    run.looked_at = now()
    run.take(entries)
    return bool(owned) or run.log.closed or not run.log.last_id


def sound(replies: list[Any]) -> list[Any]:
    """Return the replies. Raises Unavailable if one of them is an error."""
    if any(isinstance(reply, Exception) for reply in replies):
        raise Unavailable
    return replies


@asynccontextmanager
async def open_redis(url: str, limits: Limits) -> AsyncIterator[RedisStore]:
    """Open the store. Raises whatever the redis package raises if Redis does not answer."""
    options: Any = {
        "protocol": 2,
        "socket_timeout": None,  # A pipeline has one time-out of its own.
        "socket_connect_timeout": ANSWER_S,
        "retry": Retry(NoBackoff(), 0),
    }
    async with Redis.from_url(url, **options) as redis:
        store = RedisStore(redis, limits)
        sound(await store.send((commands.start(),)))
        tasks = [asyncio.create_task(t()) for t in (store.deliver, store.renew, store.follow)]
        try:
            yield store
            await store.flush()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
