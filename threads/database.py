"""Threads in SQLite or PostgreSQL, by LangGraph's own checkpointers: they outlive the server.

A module of its own because one process that may forget needs none of it, and only this one knows
the packages of databases. It knows neither HTTP nor runs.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver

PING_S = 0.5
"""How often a database is asked whether it is there, and how long it may take to answer."""

POOL_SIZE = 10


class Database:
    """Where threads outlive the server, by one of LangGraph's own checkpointers.

    ``prune`` deletes all but the newest checkpoint of a thread, ``ping`` raises where the database
    does not answer.
    """

    def __init__(
        self,
        saver: BaseCheckpointSaver[Any],
        prune: Callable[[str], Awaitable[Any]],
        ping: Callable[[], Coroutine[Any, Any, Any]],
    ) -> None:
        self.saver = saver
        self._prune = prune
        self._ping = ping
        self._answers = True
        self._asked_at = 0.0

    def fence(self, allowed: Callable[[str], Awaitable[None]]) -> None:
        """Await this, which may raise, before a thread is written to."""

        def fenced(write: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def ask_and_write(config: Any, *rest: Any, **options: Any) -> Any:
                await allowed(config["configurable"]["thread_id"])
                return await write(config, *rest, **options)

            return ask_and_write

        saver: Any = self.saver
        saver.aput, saver.aput_writes = fenced(saver.aput), fenced(saver.aput_writes)

    async def prune(self, thread_id: str) -> None:
        """Keep a thread's newest checkpoint alone, save where a graph's channels need more."""
        with suppress(NotImplementedError):
            await self._prune(thread_id)

    async def is_away(self) -> bool:
        """Whether the database does not answer, asked at most every `PING_S`."""
        if (now := time.monotonic()) - self._asked_at > PING_S:
            self._asked_at = now
            asking = asyncio.create_task(self._ping())
            # Not a time-out around it: psycopg waits for seconds more where it is cancelled.
            await asyncio.wait({asking}, timeout=PING_S)
            asking.add_done_callback(lambda task: task.cancelled() or task.exception())
            asking.cancel()
            self._answers = asking.done() and not asking.cancelled() and not asking.exception()
        return not self._answers


def open_database(url: str) -> AbstractAsyncContextManager[Database]:
    """Open the database that a URL names, ``sqlite:///file`` or ``postgresql://…``, set up.

    Raises ImportError without its package, and what that raises where the database is not there.
    """
    return (_open_sqlite if url.startswith("sqlite:") else _open_postgres)(url)


@asynccontextmanager
async def _open_sqlite(url: str) -> AsyncIterator[Database]:
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    async def prune(thread_id: str) -> None:
        # A delta channel's value is spread over its older checkpoints, whose metadata counts them.
        delta = "instr(metadata, 'counters_since_delta_snapshot')"
        spread = f"SELECT 1 FROM checkpoints WHERE thread_id = ? AND {delta}"
        if await (await saver.conn.execute(spread, (thread_id,))).fetchone():
            return
        # What a subgraph kept for one of its calls has a namespace with a task's id.
        newest = "SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = ? AND "
        for table in ("writes", "checkpoints"):
            await saver.conn.execute(
                f"DELETE FROM {table} AS old WHERE thread_id = ? AND (instr(checkpoint_ns, ':') OR "
                f"checkpoint_id < ({newest} checkpoint_ns = old.checkpoint_ns))",
                (thread_id, thread_id),
            )
        await saver.conn.commit()

    async def ping() -> None:
        await saver.conn.execute("SELECT 1")

    path = url.removeprefix("sqlite:///")
    # Where that fails, the package would leave a worker thread behind.
    sqlite3.connect(path).close()
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        await saver.setup()
        yield Database(saver, prune, ping)


@asynccontextmanager
async def _open_postgres(url: str) -> AsyncIterator[Database]:
    from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
    from psycopg import AsyncConnection
    from psycopg.rows import dict_row
    from psycopg_pool import AsyncConnectionPool

    options: Any = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with await AsyncConnection.connect(url, connect_timeout=5, **options) as connection:
        # Replicas that start together would set it up twice. None waits in the database for its
        # turn, since a session that does holds up the setup's concurrent indexes.
        turn = "SELECT pg_try_advisory_lock(hashtext('checkpoint setup')) AS mine"
        while not (await (await connection.execute(turn)).fetchall())[0]["mine"]:
            await asyncio.sleep(0.1)  # nothing tells when it is free
        await AsyncPostgresSaver(connection).setup()
    pool = AsyncConnectionPool(
        url,
        kwargs={**options, "connect_timeout": 2},
        min_size=1,
        max_size=POOL_SIZE,
        open=False,
        # A connection that a restarted database has forgotten would cost somebody their run.
        check=AsyncConnectionPool.check_connection,
        timeout=2,
        reconnect_timeout=2,
    )

    async def prune(thread_id: str) -> None:
        await saver.aprune([thread_id], strategy="keep_latest")

    async def put(config: Any, checkpoint: Any, *rest: Any) -> Any:
        # The package keeps short values as PostgreSQL's JSON, which has no NUL.
        values = checkpoint["channel_values"]
        texts = {k: v.replace("\0", "\ufffd") for k, v in values.items() if isinstance(v, str)}
        return await saved(config, {**checkpoint, "channel_values": {**values, **texts}}, *rest)

    async def ping() -> None:
        async with pool.connection() as connection:
            await connection.execute("SELECT 1")

    saver: Any = AsyncPostgresSaver(pool)  # type: ignore[arg-type]
    # Its own lock is for a single connection; here each user has one of the pool's.
    saver.lock = asyncio.Semaphore(POOL_SIZE)
    saved, saver.aput = saver.aput, put
    await pool.open()
    try:
        yield Database(saver, prune, ping)
    finally:
        await pool.close(timeout=PING_S)
