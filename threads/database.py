"""Threads in SQLite or PostgreSQL, by LangGraph's own checkpointers: they outlive the server.

`Saver` wraps LangGraph's saver. It promises three things: a run that has lost its lease writes
nothing; a database that does not reply raises Unavailable within `ANSWER_S`; a thread keeps only
the checkpoints of its newest turn. Nothing in here knows runs.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    Checkpoint,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.memory import InMemorySaver

from events import Unavailable
from graphs.serializer import Serializer
from threads.memory import MAY_WRITE

ANSWER_S = 2.0
"""How long the database may take for one operation, to connect included."""

POOL_SIZE = 10
"""Connections of one server, as in HikariCP; SQLAlchemy has 5 to 15. Each is lent for one operation
alone."""

PAUSE_MS = 500
"""How long a transaction may be idle. When a run may no longer write, its lease still lasts a
second: a write that has passed the check is committed or dropped before the lease ends."""

T = TypeVar("T")
AnySaver = BaseCheckpointSaver[Any]
MayWrite = Callable[[], bool]
Lend = Callable[[MayWrite | None], AbstractAsyncContextManager[Any]]
Prune = Callable[[Any, str, str], Awaitable[None]]


def open_database(url: str) -> AbstractAsyncContextManager[AnySaver]:
    """Open the database that a URL names, ``sqlite:///file`` or ``postgresql://…``, set up.

    Raises ImportError without its package, and what that raises if the database is not there.
    """
    return (_open_sqlite if url.startswith("sqlite:") else _open_postgres)(url)


@asynccontextmanager
async def _open_sqlite(url: str) -> AsyncIterator[AnySaver]:
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    import aiosqlite  # isort: skip  # The package above brings it.

    @asynccontextmanager
    async def lend(may_write: MayWrite | None) -> AsyncIterator[AnySaver]:
        if may_write and not may_write():
            raise Unavailable
        yield saver

    path = url.removeprefix("sqlite:///")
    # If that fails, aiosqlite would leave a thread behind.
    sqlite3.connect(path).close()
    async with aiosqlite.connect(path) as connection:
        saver = AsyncSqliteSaver(connection, serde=Serializer())
        await saver.setup()
        yield Saver(lend, _prune_sqlite, (sqlite3.OperationalError,))


async def _prune_sqlite(saver: Any, thread_id: str, first: str) -> None:
    """Drop what is older than the turn's first checkpoint; keep the newest of each namespace."""
    async with saver.lock:
        # A delta channel's value is spread over its older checkpoints, whose metadata counts them.
        delta = "instr(metadata, 'counters_since_delta_snapshot')"
        spread = f"SELECT 1 FROM checkpoints WHERE thread_id = ? AND {delta}"
        if await (await saver.conn.execute(spread, (thread_id,))).fetchone():
            return
        # A subgraph that runs for one task has the task's id in its namespace, after a colon.
        newest = "SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = ? AND"
        for table in ("writes", "checkpoints"):
            await saver.conn.execute(
                f"DELETE FROM {table} AS old WHERE thread_id = ? AND checkpoint_id < ? AND "
                "(instr(checkpoint_ns, ':') OR "
                f"checkpoint_id < ({newest} checkpoint_ns = old.checkpoint_ns))",
                (thread_id, first, thread_id),
            )
        await saver.conn.commit()


@asynccontextmanager
async def _open_postgres(url: str) -> AsyncIterator[AnySaver]:
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
    from psycopg import AsyncConnection, InterfaceError, OperationalError
    from psycopg.errors import IdleInTransactionSessionTimeout
    from psycopg.rows import dict_row
    from psycopg_pool import AsyncConnectionPool

    @asynccontextmanager
    async def lend(may_write: MayWrite | None) -> AsyncIterator[AnySaver]:
        # A saver of its own for each operation: those of one saver take turns.
        async with pool.connection() as connection, AsyncExitStack() as transaction:
            if may_write:
                await transaction.enter_async_context(connection.transaction())
            yield AsyncPostgresSaver(connection, serde=Serializer())
            if may_write:
                # If this server is paused after its check, PostgreSQL drops the transaction.
                # The limit is set after the saver's pipeline: within one it has no effect.
                pause = f"SET LOCAL idle_in_transaction_session_timeout = {PAUSE_MS}"
                await connection.execute(pause)
                if not may_write():
                    raise Unavailable

    options: Any = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    options["connect_timeout"] = round(ANSWER_S)
    async with await AsyncConnection.connect(url, **options) as connection:
        # Servers that start together take turns. They poll: a session that waits for the lock
        # would block the setup of another one, which creates its indexes concurrently.
        turn = "SELECT pg_try_advisory_lock(hashtext('checkpoint setup')) AS mine"
        while not (await (await connection.execute(turn)).fetchall())[0]["mine"]:
            await asyncio.sleep(0.1)
        await AsyncPostgresSaver(connection).setup()
    pool: Any = AsyncConnectionPool(
        url,
        kwargs=options,
        min_size=1,
        max_size=POOL_SIZE,
        open=False,
        # Without the check a restarted database would fail one run for each old connection.
        check=AsyncConnectionPool.check_connection,
        timeout=ANSWER_S,
        reconnect_timeout=ANSWER_S,
    )
    await pool.open()
    away = OperationalError, InterfaceError, IdleInTransactionSessionTimeout
    try:
        yield Saver(lend, lambda saver, thread_id, first: saver.aprune([thread_id]), away)
    finally:
        await pool.close(timeout=ANSWER_S)


class Saver(BaseCheckpointSaver[Any]):
    """LangGraph's saver of a database, guarded.

    ``lend`` gives a saver for one operation. For a write of a run it gets the function that says
    whether the run may still write, and raises Unavailable if not. ``prune`` drops the checkpoints
    of earlier turns. ``away`` are the exceptions that mean that the database is away.
    """

    def __init__(self, lend: Lend, prune: Prune, away: tuple[type[Exception], ...]) -> None:
        super().__init__(serde=Serializer())
        self._lend = lend
        self._prune = prune
        self._away = away
        self._loop = asyncio.get_running_loop()

    async def _use(
        self, action: Callable[[Any], Awaitable[T]], may_write: MayWrite | None = None
    ) -> T:
        async def act() -> T:
            async with self._lend(may_write) as saver:
                return await action(saver)

        acting = asyncio.create_task(act())
        try:
            # Not a time-out around it: psycopg waits for seconds more when it is cancelled.
            await asyncio.wait({acting}, timeout=ANSWER_S)
            if not acting.done():
                raise Unavailable
            return acting.result()
        except self._away as error:
            raise Unavailable from error
        finally:
            acting.cancel()
            acting.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return await self._use(lambda saver: saver.aget_tuple(config))

    async def aput(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: Any, new_versions: Any
    ) -> RunnableConfig:
        # LangGraph keeps short values as PostgreSQL's JSON, which has no NUL.
        values = checkpoint["channel_values"]
        texts = {k: v.replace("\0", "\ufffd") for k, v in values.items() if isinstance(v, str)}
        checkpoint = {**checkpoint, "channel_values": {**values, **texts}}
        configurable = config["configurable"]
        saved: RunnableConfig = await self._use(
            lambda saver: saver.aput(config, checkpoint, metadata, new_versions),
            configurable.get(MAY_WRITE),
        )
        if metadata.get("source") == "input" and not configurable.get("checkpoint_ns"):
            # Of earlier turns, a new turn needs the newest checkpoint alone.
            # A delta channel's value is spread over old checkpoints: PostgreSQL's saver refuses.
            with suppress(Unavailable, NotImplementedError):
                thread_id, first = configurable["thread_id"], checkpoint["id"]
                await self._use(lambda saver: self._prune(saver, thread_id, first))
        return saved

    async def aput_writes(self, config: RunnableConfig, *written: Any) -> None:
        may_write = config["configurable"].get(MAY_WRITE)
        await self._use(lambda saver: saver.aput_writes(config, *written), may_write)

    async def adelete_thread(self, thread_id: str) -> None:
        await self._use(lambda saver: saver.adelete_thread(thread_id))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return await self._use(
            lambda saver: saver.aget_delta_channel_history(config=config, channels=channels)
        )

    # The same in all of LangGraph's savers.
    get_next_version: Any = InMemorySaver.get_next_version

    # A node that is no coroutine runs in a worker thread, and so does a subgraph that it calls.

    def _wait(self, action: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(action, self._loop).result()

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._wait(self.aget_tuple(config))

    def put(self, config: RunnableConfig, *arguments: Any) -> RunnableConfig:
        return self._wait(self.aput(config, *arguments))

    def put_writes(self, config: RunnableConfig, *written: Any) -> None:
        self._wait(self.aput_writes(config, *written))
