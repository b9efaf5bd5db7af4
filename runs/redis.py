"""Runs in Redis, so that any replica of the server serves any run: `events` beyond one process.

A module of its own because one process needs none of it, and only this one knows the redis
package. It has the face of `events.MemoryStore` and knows neither HTTP nor LangGraph.

A run's log is a Redis Stream whose entry ids are the event ids. Each replica that has to do with
a run holds a copy, and readers read the copy alone, so that they see what Redis has and nothing
else: the replica that runs it, its owner, fills its copy with what Redis has taken; another one
follows the stream by blocking reads. All writing is one script, which appends only right behind
the event that the writer believes to be the last. So of two writers the first one wins, and the
other adopts what it finds: a run whose owner died is ended by whoever notices first.

A replica is believed alive while its lease lasts, and its claims with it. The first eight digits of
a run's id name its owner, which has an inbox, a list, for what other replicas ask of its runs.

Each key carries a hash tag and each command touches one key: Redis Cluster can hold them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import secrets
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import Any, Protocol

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as Silent

from events import EventLog, StreamEvent, Unavailable, encode_event

LEASE_S = 3.0
"""How long a replica is believed alive after its last word; its word comes three times as often."""

GIVE_UP_S = 6.0
"""How long a run waits for a Redis that is away before it is stopped and its readers are cut."""

BLOCK_MS = 1000
"""How long a follower waits for the next event before it looks whether the owner is alive."""

SPARE_S = 60
"""How much longer than the longest run its keys live, for what nobody is left to delete."""

ANSWER_S = 2.0
"""How long Redis may take to answer; longer than it blocks by itself."""

COMMANDS_AT_ONCE = 16
FOLLOWED_AT_ONCE = 100_000
"""On how many connections Redis is asked: short commands wait for one of a few, and what waits in
Redis, for each run that is followed, has one of its own. At the package's own limit, 100, a command
fails and does not wait."""

SEND_EVERY_S = 0.005
URGENT = 10
"""The first events of a run go to Redis at once, and so does its end; what is appended in between
waits for so long after the last sending, which is less than its readers wait, and goes together."""

LOGS_AT_ONCE = 128
"""How many logs are sent in one go, whose answers have `ANSWER_S` together."""

SEEN_S = 0.5
"""How long an ended run is kept at least, so that whoever follows it elsewhere sees its end."""

RETRY_S = 0.2
SURE_S = 2.0
"""How long after its last renewal a replica can be sure that nobody believes it dead."""

SURE_AGAIN_S = 0.02
"""How often is looked whether it can be sure again."""

CLAIM_AGAIN_S = 2.5
"""How long nothing is claimed when Redis is back: it may have forgotten who holds what."""

APPEND = """
local size = redis.call('XLEN', KEYS[1])
if size ~= tonumber(ARGV[1]) then return -1 end
local now = redis.call('TIME')
local ms = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
for n = 3, #ARGV do
  redis.call('XADD', KEYS[1], (size + n - 2) .. '-0', 'frame', ARGV[n], 'ms', ms)
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return size
"""
"""Append frames behind the event ARGV[1], all or none; -1 where another event is the last.

A stream is never trimmed, so its length is its last event id.
"""

CLAIM = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[2] then return held end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return ARGV[1]
"""
"""Hold a name for ARGV[1] where nobody does, or where the claim ARGV[2] does, which is void."""

RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"

SCRIPTS = {script: hashlib.sha1(script.encode()).hexdigest() for script in (APPEND, CLAIM, RELEASE)}

GONE = "The server that ran this is gone."

ANY_FAILURE = (Exception,)
"""What asking Redis may raise: errors of the package, of the system, and of the loop's transports,
which each loop has its own of. Whatever it is, those who ask have to go on."""

logger = logging.getLogger("chat")

Command = tuple[Any, ...]
Entry = tuple[bytes, dict[bytes, bytes]]


class Owned(Protocol):
    """A run of this replica, as other replicas have to do with it."""

    def join(self) -> None: ...
    def leave(self) -> None: ...
    def stop(self, reason: str) -> None: ...


def stream_of(run_id: str) -> str:
    return f"chat:run:{{{run_id}}}"


def lease_of(replica: str) -> str:
    return f"chat:lease:{{{replica}}}"


def inbox_of(replica: str) -> str:
    return f"chat:inbox:{{{replica}}}"


def claim_on(name: str) -> str:
    kind, _, rest = name.partition(":")
    return f"chat:{kind}:{{{rest}}}"


class RedisLog(EventLog):
    """A copy of a run's stream. What is appended waits in the outbox until Redis has it."""

    def __init__(self, store: RedisStore, run_id: str, own: bool) -> None:
        super().__init__()
        self.run_id = run_id
        self.own = own
        """Whether the run is this replica's, and nobody else has anything to say of it."""
        self.outbox: list[bytes] = []
        self.stored = 0
        """How many events Redis has; fewer than this copy once Redis has lost some."""
        self.ending = False
        self.began_ms: int | None = None
        self.first_token_ms: int | None = None
        self._store = store

    def append(self, event: StreamEvent, max_bytes: float = float("inf")) -> int:
        """Put the event into the outbox and return its id. Raises as `EventLog.append` does."""
        if self.overtaken:  # What this writer says is void.
            return self.last_id
        if self.ending:
            raise RuntimeError("the log is closed")
        event_id = self.last_id + len(self.outbox) + 1
        frame = encode_event(event, event_id)
        if self.size + len(frame) > max_bytes:
            raise OverflowError(f"the log would exceed {max_bytes} bytes")
        self.outbox.append(frame)
        self.size += len(frame)
        self._store.send(self)
        return event_id

    def close(self) -> None:
        """Say that nothing follows; the log is closed once Redis has it all."""
        self.ending = True
        self._store.send(self)

    async def wait(self, after: int, timeout_s: float) -> bool:
        """Wait as `EventLog.wait` does. Raises Unavailable where the run is given up."""
        if self.lost and self.last_id <= after and not self.closed:
            raise Unavailable
        return await super().wait(after, timeout_s)

    async def flush(self) -> None:
        target = self.last_id + len(self.outbox)
        while not self.closed and (self.ending or self.last_id < target):
            await self.wait(self.last_id, GIVE_UP_S)

    def unsent(self) -> list[bytes]:
        return self._frames[self.stored :] + self.outbox

    def has(self, event_id: int, frame: bytes) -> bool:
        """Whether this copy has the same event under that id."""
        return self._frames[event_id - 1] == frame

    def sent(self, last_id: int) -> None:
        """Note that Redis has the events to this one."""
        new = max(0, last_id - self.last_id)
        self._frames += self.outbox[:new]
        del self.outbox[:new]
        self.stored = max(self.stored, last_id)
        self._grown()

    def adopt(self, entries: list[Entry]) -> None:
        """Take what the stream has; where it differs from the outbox, somebody else wrote it."""
        for entry_id, fields in entries:
            frame = fields[b"frame"]
            if int(entry_id.partition(b"-")[0]) != self.last_id + 1:
                continue  # A second reader of the stream brings what is there already.
            if self.outbox and self.outbox[0] == frame:
                self.outbox.pop(0)
            elif self.outbox or self.own:
                self.overtaken, self.ending = True, False
                self.outbox.clear()
            self._frames.append(frame)
            kind = kind_of(frame)
            if kind == b"start":
                self.began_ms = int(fields[b"ms"])
            elif kind == b"text_delta" and self.first_token_ms is None:
                self.first_token_ms = int(fields[b"ms"])
            self.ending = self.ending or kind == b"done"
            self.stored = max(self.stored, self.last_id)
        self._grown()

    def give_up(self) -> None:
        """Cut who reads: what Redis will have in the end is not known here."""
        self.lost = True
        self._wake()

    def _grown(self) -> None:
        self.lost = False
        self.closed = self.ending and not self.outbox
        self._wake()

    def texts(self) -> dict[str, list[str]]:
        """Return the deltas of each message by its id."""
        texts: dict[str, list[str]] = {}
        for frame in self._frames:
            if kind_of(frame) == b"text_delta":
                event = event_of(frame)
                texts.setdefault(event["message_id"], []).append(event["content"])
        return texts

    def told(self) -> list[dict[str, Any]]:
        """Return the events as objects, but for deltas."""
        return [event_of(frame) for frame in self._frames if not kind_of(frame).endswith(b"delta")]


def kind_of(frame: bytes) -> bytes:
    return frame.split(b"\n", 2)[1].removeprefix(b"event: ")


def event_of(frame: bytes) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(frame.partition(b"\ndata: ")[2])
    return event


class RemoteRun:
    """A run of another replica, with the face of one of this replica's own."""

    def __init__(self, store: RedisStore, run_id: str) -> None:
        self.id = run_id
        self.owner = run_id[:8]
        self.log = RedisLog(store, run_id, own=False)
        self.readers = 0
        self.stopping = False
        self._store = store

    @property
    def thread_id(self) -> str:
        thread_id: str = self.log.told()[0]["thread_id"]
        return thread_id

    def document(self) -> dict[str, Any]:
        """Return the run's state as its JSON document."""
        events = {event["type"]: event for event in self.log.told()}
        return {
            "run_id": self.id,
            "thread_id": events["start"]["thread_id"],
            "status": events.get("done", {}).get("reason", "running"),
            "last_event_id": self.log.last_id,
            "answer": events.get("final_answer", {}).get("content"),
        }

    def join(self) -> None:
        self.readers += 1
        self._store.follow(self)

    def leave(self) -> None:
        self.readers -= 1
        self._store.follow(self)

    def stop(self, reason: str) -> None:
        """Ask the owner to cancel the run, again and again until it has ended."""
        self.stopping = True
        self._store.follow(self)


class RedisStore:
    """What the runs of all replicas share: their logs, claims on names, and who is alive."""

    def __init__(self, redis: Redis, waiting: Redis, longest_s: float, ttl_s: float) -> None:
        self.replica = secrets.token_hex(4)
        self.away = False
        """Whether Redis does not answer."""
        self.owned: Callable[[str], Owned | None] = lambda run_id: None
        """Finds a run of this replica by its id."""
        # Their types have every shape that an answer could have.
        self._redis: Any = redis
        self._waiting: Any = waiting
        # Redis counts milliseconds in 64 bits.
        self._running_ms = min(10**12, round(1000 * (longest_s + ttl_s + SPARE_S)))
        self._ended_ms = min(10**12, round(1000 * max(ttl_s, SEEN_S)))
        self._loop = asyncio.get_running_loop()
        self._back, self._gone = asyncio.Event(), asyncio.Event()
        self._changed = self._loop.time()
        """Since when Redis is away, or is there again."""
        self._settled = self._renewed = self._changed
        self._failing: float | None = None
        """Since when nothing could be delivered."""
        self._work, self._urgent = asyncio.Event(), asyncio.Event()
        self._outgoing: dict[RedisLog, None] = {}
        self._commands: list[tuple[Command, asyncio.Future[None]]] = []
        self._logs: weakref.WeakSet[RedisLog] = weakref.WeakSet()
        self._held: dict[str, str] = {}
        self._inherited: dict[str, str] = {}
        """The run whose dead replica had the claim before, by the claim's name."""
        self._known: weakref.WeakValueDictionary[str, RemoteRun] = weakref.WeakValueDictionary()
        self.following: dict[RemoteRun, asyncio.Task[None]] = {}
        self._visits: dict[tuple[str, str], tuple[Owned, float]] = {}
        """Until when a replica is believed to have readers of a run of this one."""

    @property
    def degraded(self) -> bool:
        """Whether new runs have to wait for Redis, or for all others to find it again."""
        return self.away or self._loop.time() < self._settled

    # ------------------------------------------------------------------------- logs and runs

    def new_id(self) -> str:
        return self.replica + secrets.token_hex(8)

    def log(self, run_id: str) -> RedisLog:
        """Return the empty log of a new run."""
        log = RedisLog(self, run_id, own=True)
        self._logs.add(log)
        return log

    async def find(self, run_id: str) -> RemoteRun | None:
        """Return a run of another replica, its log as long as Redis has it now.

        One whose owner is dead is ended first. Raises Unavailable.
        """
        if not re.fullmatch("[0-9a-f]{24}", run_id):
            return None
        run = self._known.setdefault(run_id, RemoteRun(self, run_id))
        await self._catch_up(run.log)
        if not run.log.last_id:
            if self.degraded:  # Its owner may be about to tell it again.
                raise Unavailable
            return None
        if not run.log.closed and await self._is_dead(run.owner):
            await self._bury(run.log)
        return run

    def follow(self, run: RemoteRun) -> None:
        """Follow the run's stream while it has readers here or is to be stopped."""
        wanted = (run.readers or run.stopping) and not run.log.closed
        if wanted and run not in self.following:
            self.following[run] = asyncio.create_task(self._follow(run))
        elif not wanted and run in self.following:
            self.following.pop(run).cancel()
        self._tell_owner(run)

    async def _follow(self, run: RemoteRun) -> None:
        log, stream, told, missed = run.log, stream_of(run.id), self._loop.time(), 0
        while self.following.get(run) is asyncio.current_task() and not log.closed:
            if self._loop.time() - told > LEASE_S / 3:
                self._tell_owner(run)
                told = self._loop.time()
            try:
                if found := await self._waiting.xread({stream: f"{log.last_id}-0"}, block=BLOCK_MS):
                    log.adopt(found[0][1])
                    missed = 0
                elif await self._is_dead(run.owner):
                    await self._bury(log)
                elif not await self._redis.exists(stream):
                    # It has expired, unless its owner tells it again to a Redis that forgot it.
                    missed += 1
                    if missed * BLOCK_MS > 1000 * LEASE_S:
                        log.give_up()
                        break
            except Unavailable:
                await self._back.wait()
            except ANY_FAILURE:
                # Also where there is no connection more for it: then by short looks.
                try:
                    await self._catch_up(log)
                    if await self._is_dead(run.owner):
                        await self._bury(log)
                    await asyncio.sleep(RETRY_S)
                except Unavailable:
                    await self._back.wait()
        if self.following.get(run) is asyncio.current_task():
            del self.following[run]

    def _tell_owner(self, run: RemoteRun) -> None:
        inbox, word = inbox_of(run.owner), f"{run.id} {self.replica}"
        asked = f"{word} {int(run.readers > 0)} {int(run.stopping)}"
        self._later("RPUSH", inbox, asked)
        self._later("PEXPIRE", inbox, round(1000 * LEASE_S))

    def _hear(self, asked: str) -> None:
        run_id, replica, reads, stops = asked.split()
        if not (run := self.owned(run_id)):
            return
        known = (run_id, replica) in self._visits
        if reads == "1":
            self._visits[run_id, replica] = run, self._loop.time() + LEASE_S
            if not known:
                run.join()
        elif known:
            self._visits.pop((run_id, replica))[0].leave()
        if stops == "1":
            run.stop("cancelled")

    async def _catch_up(self, log: RedisLog) -> None:
        if self.away:
            raise Unavailable
        try:
            log.adopt(await self._redis.xrange(stream_of(log.run_id), f"({log.last_id}-0", "+"))
        except ANY_FAILURE as error:
            raise self._lose(error) from None

    async def _bury(self, log: RedisLog) -> None:
        """End a run whose owner is dead, unless somebody else has."""
        try:
            seconds, micros = await self._redis.time()
        except ANY_FAILURE as error:
            raise self._lose(error) from None
        await self._catch_up(log)
        if log.ending:
            return await log.flush()
        log.overtaken = False  # By an owner that went on then.
        began = log.began_ms or 0
        timings = {"total_ms": seconds * 1000 + micros // 1000 - began}
        if log.first_token_ms is not None:
            timings = {"first_token_ms": log.first_token_ms - began, **timings}
        ref = secrets.token_hex(4)
        for event in closing_events(log.told(), timings, ref):
            log.append(event)
        log.close()
        await log.flush()
        if not log.overtaken:
            logger.warning("run=%s ended for its replica, which is gone ref=%s", log.run_id, ref)

    # -------------------------------------------------------------------------------- claims

    async def claim(self, name: str, claim: str, leased: bool = True) -> str:
        """Return the claim that holds the name: this one, where nobody came before.

        A claim ends with its replica; one that is not ``leased`` not before its run is forgotten.
        The run of a thread whose replica is dead is ended first. Raises Unavailable.
        """
        if self.degraded:
            raise Unavailable
        mine, void = f"{self.replica} {claim}", ""
        while True:
            try:
                held = await self._try_claim(name, mine, void)
            except ANY_FAILURE as error:
                await self.release(name, claim)  # It may have been heard.
                raise self._lose(error) from None
            if held == mine:
                self._held[name] = mine
                if void and leased:
                    self._inherited[name] = void.split()[1]
                return claim
            if not await self._is_void(held, leased):
                return held.partition(" ")[2]
            void = held

    async def inherited(self, name: str) -> dict[str, list[str]]:
        """Return the texts, by message id, of a run that died with this claim."""
        run = await self.find(self._inherited.get(name, ""))
        self._inherited.pop(name, None)
        return run.log.texts() if run else {}

    async def keeps(self, name: str, claim: str) -> bool:
        """Whether this claim holds the name for certain; waits while that cannot be known."""
        while self._loop.time() - self._renewed > SURE_S:
            await asyncio.sleep(SURE_AGAIN_S)
        return self._held.get(name) == f"{self.replica} {claim}"

    async def holder(self, name: str) -> str | None:
        if self.degraded:
            raise Unavailable
        try:
            held = await self._redis.get(claim_on(name))
        except ANY_FAILURE as error:
            raise self._lose(error) from None
        if held is None or await self._is_void(held.decode(), leased=True):
            return None
        holder: str = held.decode().partition(" ")[2]
        return holder

    async def release(self, name: str, claim: str) -> None:
        """Give the name back, if this claim holds it; while Redis is away, once it is back."""
        mine = f"{self.replica} {claim}"
        if self._held.get(name) == mine:
            del self._held[name]
            self._inherited.pop(name, None)
        done = self._later("EVALSHA", SCRIPTS[RELEASE], 1, claim_on(name), mine)
        if not self.away:
            await asyncio.shield(done)

    async def _try_claim(self, name: str, mine: str, void: str) -> str:
        arguments = claim_on(name), mine, void, self._running_ms
        held = await self._redis.evalsha(SCRIPTS[CLAIM], 1, *arguments)
        return str(held, "ascii")

    async def _is_void(self, held: str, leased: bool) -> bool:
        replica, run_id, *_ = held.split()
        if not await self._is_dead(replica):
            # Who is alive gives a thread back before its run ends.
            return leased and replica != self.replica and await self._has_ended(run_id)
        return await self.find(run_id) is None or leased

    async def _has_ended(self, run_id: str) -> bool:
        try:
            newest = await self._redis.xrevrange(stream_of(run_id), count=1)
        except ANY_FAILURE as error:
            raise self._lose(error) from None
        return bool(newest) and kind_of(newest[0][1][b"frame"]) == b"done"

    async def _is_dead(self, replica: str) -> bool:
        # After Redis was away the others, too, have to find it again before they can tell.
        if self.away or replica == self.replica or self._loop.time() - self._changed < LEASE_S:
            return False
        try:
            # Where its own lease is missing, too, Redis has forgotten, and nobody need be dead.
            return not await self._redis.exists(lease_of(replica)) and bool(
                await self._redis.exists(lease_of(self.replica))
            )
        except ANY_FAILURE as error:
            raise self._lose(error) from None

    # ------------------------------------------------------------------------------- sending

    def send(self, log: RedisLog) -> None:
        """Send the log's outbox with those of all others in this turn of the loop."""
        self._outgoing[log] = None
        self._work.set()
        if log.ending or log.last_id < URGENT:
            self._urgent.set()

    def _later(self, *command: Any) -> asyncio.Future[None]:
        done = self._loop.create_future()
        self._commands.append((command, done))
        self._work.set()
        self._urgent.set()
        return done

    async def deliver(self) -> None:
        """Send what is to be sent, all of one turn of the loop in one go, and again where it
        failed: a log's events cannot come twice, and all else does no harm twice."""
        connection: Any = None
        while True:
            await self._work.wait()
            await self._back.wait()
            self._work.clear()
            self._urgent.clear()
            logs = dict(islice(self._outgoing.items(), LOGS_AT_ONCE))
            for log in logs:
                del self._outgoing[log]
            if self._outgoing:
                self._work.set()
                self._urgent.set()
            try:
                # One time-out for each go costs less than one for each call.
                async with asyncio.timeout(ANSWER_S):
                    if connection is None:
                        connection = await self._waiting.connection_pool.get_connection()
                        connection.socket_timeout = None
                    try:
                        await self._send(connection, [*logs])
                    except Disconnected:  # Redis closes what was idle for long.
                        await connection.disconnect()
                        await self._send(connection, [*logs])
            except ANY_FAILURE as error:
                self._outgoing = logs | self._outgoing
                self._work.set()
                self._lose(error)
                with suppress(*ANY_FAILURE):
                    await connection.disconnect()
                await asyncio.sleep(RETRY_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(SEND_EVERY_S):
                    await self._urgent.wait()

    async def _send(self, connection: Any, logs: list[RedisLog]) -> None:
        waiting = self._commands[:]
        commands, ends = [command for command, _ in waiting], []
        for log in logs:
            frames = log.unsent()
            ends.append(log.stored + len(frames))
            ttl_ms = self._ended_ms if log.ending else self._running_ms
            position = stream_of(log.run_id), log.stored, ttl_ms
            commands.append(("EVALSHA", SCRIPTS[APPEND], 1, *position, *frames))
        # On the bare connection, which costs half of what a pipeline of the package does.
        await connection.send_packed_command(connection.pack_commands(commands))
        answers = [await connection.read_response() for _ in commands]
        del self._commands[: len(waiting)]
        self._failing = None
        for _, done in waiting:
            if not done.done():
                done.set_result(None)
        for log, end, answer in zip(logs, ends, answers[len(waiting) :], strict=True):
            if answer >= 0:
                log.sent(end)
            else:
                await self._reconcile(log)

    async def _reconcile(self, log: RedisLog) -> None:
        """Find out what became of a log that is not as long in Redis as was thought.

        Redis has heard more than it could answer; or has forgotten, and is told again; or
        somebody else has ended the run.
        """
        stream = stream_of(log.run_id)
        log.stored = min(await self._redis.xlen(stream), log.last_id)
        if 0 < log.stored < log.last_id:
            newest = await self._redis.xrevrange(stream, count=1)
            if log.has(log.stored, newest[0][1][b"frame"]):
                return self.send(log)
            # Redis has lost the end of it, and somebody else has told another one.
            log.overtaken = True
            log.outbox.clear()
            log.give_up()
            self._known.pop(log.run_id, None)
        elif log.stored == log.last_id:
            log.adopt(await self._redis.xrange(stream, f"({log.last_id}-0", "+"))
        if log.overtaken and (run := self.owned(log.run_id)):
            run.stop("shutdown")
        elif log.unsent():
            self.send(log)

    # -------------------------------------------------------------------------- being there

    def _lose(self, error: BaseException) -> Unavailable:
        """Note that Redis is away, and return what to raise."""
        if not self.away:
            expected = isinstance(error, (RedisError, OSError, TimeoutError))
            ref = secrets.token_hex(4)
            what = "Redis is away: %s ref=%s"
            logger.warning(what, type(error).__name__, ref, exc_info=None if expected else error)
            self.away, self._changed = True, self._loop.time()
            self._failing = self._failing or self._changed
            self._back.clear()
            self._gone.set()
            for _, done in self._commands:
                if not done.done():
                    done.set_result(None)
        return Unavailable()

    async def stay(self) -> None:
        """Renew the lease, find Redis again, and give up what waited for it too long."""
        while True:
            try:
                await self.renew()
            except ANY_FAILURE as error:
                self._lose(error)
            now = self._loop.time()
            if self._failing and now - self._failing > GIVE_UP_S:
                self._give_up()
            for visit, (run, until) in [*self._visits.items()]:
                # Nobody could tell that he is still there while Redis was away.
                if until < now and not self.away and now - self._changed > LEASE_S:
                    del self._visits[visit]
                    run.leave()
            if self.away:
                await asyncio.sleep(RETRY_S)
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._gone.wait(), LEASE_S / 3)

    async def renew(self) -> None:
        lease, lease_ms = lease_of(self.replica), round(1000 * LEASE_S)
        began = self._loop.time()
        if not self.away and await self._redis.pexpire(lease, lease_ms):
            self._renewed = began
            return
        if self.away:  # Old connections may lead to a Redis that is the master no more.
            for redis in (self._redis, self._waiting):
                await redis.connection_pool.disconnect(inuse_connections=False)
        # The first time, and whenever others may have believed this replica dead.
        for script in SCRIPTS:
            await self._redis.script_load(script)
        await self._redis.set(lease, "", px=lease_ms)
        logs = {log.run_id: log for log in self._logs if not log.closed}
        held = [*self._held.items()]
        for first in range(0, len(held), COMMANDS_AT_ONCE):
            some = held[first : first + COMMANDS_AT_ONCE]
            await asyncio.gather(*(self._reclaim(*claim, logs) for claim in some))
        began = self._loop.time()
        await self._redis.set(lease, "", px=lease_ms)
        self._renewed = began
        for log in self._logs:
            if log.last_id:
                self.send(log)
        if self.away:
            logger.warning("Redis is back")
            self._settled = self._loop.time() + CLAIM_AGAIN_S
        self.away, self._changed = False, self._loop.time()
        self._gone.clear()
        self._back.set()
        self._work.set()

    async def _reclaim(self, name: str, mine: str, logs: dict[str, RedisLog]) -> None:
        """Hold a name again that others may have believed free, or stop the run that held it."""
        if self._held.get(name) != mine:
            return
        held = await self._try_claim(name, mine, "")
        if log := logs.get(mine.split()[1]):
            # Who took over ended the run first, and may have given the name back since.
            stream = stream_of(log.run_id)
            log.adopt(await self._redis.xrange(stream, f"({log.last_id}-0", "+"))
            if log.overtaken and held == mine:
                self._later("EVALSHA", SCRIPTS[RELEASE], 1, claim_on(name), mine)
                held = ""
        if self._held.get(name) != mine:  # It was released meanwhile.
            self._later("EVALSHA", SCRIPTS[RELEASE], 1, claim_on(name), mine)
        elif held != mine:
            del self._held[name]
            if run := self.owned(mine.split()[1]):
                run.stop("shutdown")

    async def leave(self) -> None:
        """Let others know at once that nobody is here any more."""
        if not self.away:
            async with asyncio.timeout(RETRY_S):
                await self._redis.delete(lease_of(self.replica))

    def _give_up(self) -> None:
        followed = [run.log for run in self.following]
        for log in [*self._logs, *followed]:
            if not log.closed and not log.lost:
                log.give_up()
                if run := self.owned(log.run_id):
                    run.stop("shutdown")

    async def listen(self) -> None:
        """Hear what other replicas ask of this one's runs."""
        while True:
            await self._back.wait()
            try:
                # Shorter than the time after which a silent connection counts as lost.
                if found := await self._waiting.blpop([inbox_of(self.replica)], timeout=1):
                    self._hear(found[1].decode())
            except Silent:
                continue  # A pause of the machine, or a Redis that is away, as `stay` finds out.
            except ANY_FAILURE as error:
                self._lose(error)


def closing_events(
    told: list[dict[str, Any]], timings: dict[str, int], ref: str
) -> list[StreamEvent]:
    """Return what ends a run whose own replica cannot tell it any more: as it was about to end,
    where that was told already, else with a failure."""
    open_calls: dict[str, str] = {}
    reason = ""
    for event in told:
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
    events = [
        StreamEvent("tool_result", tool=tool, tool_call_id=call_id, status=status, message=GONE)
        for call_id, tool in open_calls.items()
    ]
    if not reason:
        reason, message = "shutdown", f"{GONE} Try again in a moment."
        events.append(StreamEvent("error", code=reason, message=message, retryable=True, ref=ref))
    return [*events, StreamEvent("done", reason=reason, timings=timings)]


@asynccontextmanager
async def open_redis(url: str, longest_s: float, ttl_s: float) -> AsyncIterator[RedisStore]:
    """Open the store for a replica whose runs take ``longest_s`` at most and are kept for
    ``ttl_s``. Raises what the redis package raises where Redis does not answer."""
    options: Any = {
        "socket_timeout": ANSWER_S,
        "socket_connect_timeout": ANSWER_S,
        # With version 3 the package hands out connections that the server has closed.
        "protocol": 2,
        # Nothing is tried again in there, since each command here has its own way to.
        "retry": Retry(NoBackoff(), 0),
    }
    few = BlockingConnectionPool.from_url(
        url, max_connections=COMMANDS_AT_ONCE, timeout=ANSWER_S, **options
    )
    async with (
        Redis.from_pool(few) as redis,
        Redis.from_url(url, max_connections=FOLLOWED_AT_ONCE, **options) as waiting,
    ):
        store = RedisStore(redis, waiting, longest_s, ttl_s)
        await store.renew()
        work = [asyncio.create_task(task()) for task in (store.stay, store.deliver, store.listen)]
        try:
            yield store
        finally:
            left = {*work, *store.following.values()}
            while left:
                for task in left:
                    # Again, since asyncio.wait_for, used by the package, may miss it: Python 3.11.
                    task.cancel()
                _, left = await asyncio.wait(left, timeout=RETRY_S)
            with suppress(*ANY_FAILURE):
                await store.leave()
