"""A thousand readers at once; and, as ``python -m tests.test_soak``, what a waiting one costs."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.client import check
from tests.conftest import Process, listen, run_app
from tests.raw import Raw, assert_clean, events_of, id_of, many_sockets, request, resident_kib
from tests.upstream import Upstream, text

pytestmark = pytest.mark.slow

Launch = Callable[..., Awaitable[Process]]

RUNS = 200
READERS_EACH = 5


@pytest.fixture(autouse=True)
def sockets() -> Iterator[None]:
    with many_sockets():
        yield


async def start(server: Process, count: int) -> list[Raw]:
    """Start runs, each with its first reader."""
    asking = (
        Raw.open(server.url, request("POST", "/api/chat", {"message": f"question {n}"}))
        for n in range(count)
    )
    raws = [*await asyncio.gather(*asking)]
    for raw in raws:
        assert await raw.head() == 200
    return raws


async def follow(server: Process, run_id: str, count: int) -> list[Raw]:
    """Let more readers follow one run."""
    data = request("GET", f"/api/runs/{run_id}/events")
    raws = [*await asyncio.gather(*(Raw.open(server.url, data) for _ in range(count)))]
    for raw in raws:
        assert await raw.head() == 200
    return raws


async def test_a_thousand_readers_of_two_hundred_runs_have_all_of_them(
    launch: Launch, upstream: Upstream
) -> None:
    go = asyncio.Event()
    pieces = [f"piece {n} " for n in range(20)]
    upstream.replies = [[*text(*pieces[:10]), go, *text(*pieces[10:])]]
    server = await launch(OPENAI_BASE_URL=upstream.url, MAX_RUNS=str(RUNS), LOG_LEVEL="WARNING")
    by_run = {raw.run_id: [raw] for raw in await start(server, RUNS)}
    for run_id, raws in by_run.items():
        raws += await follow(server, run_id, READERS_EACH - 1)
    assert (await server.call("GET", "/healthz"))[1]["running"] == len(by_run) == RUNS
    # All of them are there, with half of the answer, and none has its end.
    for raws in by_run.values():
        await asyncio.gather(*(raw.read(12) for raw in raws))
    go.set()
    for raws in by_run.values():
        assert all(await asyncio.gather(*(raw.read() for raw in raws)))
        events = events_of(raws[0].frames)
        check(events)
        assert events[-2]["content"] == "".join(pieces)
        assert [id_of(frame) for frame in raws[0].frames] == [*range(1, len(events) + 1)]
        for raw in raws:
            assert raw.frames == raws[0].frames
            raw.cut()
    assert (await server.call("GET", "/healthz"))[1]["running"] == 0
    assert_clean(server.log())


# ------------------------------------------------------------------------------------ measuring


@asynccontextmanager
async def stalling() -> AsyncIterator[Upstream]:
    upstream = Upstream()
    upstream.replies = [[*text("Hel"), asyncio.Event()]]
    app = web.Application()
    app.router.add_post("/v1/chat/completions", upstream.complete)
    runner, url = await listen(app)
    upstream.url = f"{url}/v1"
    try:
        yield upstream
    finally:
        await runner.cleanup()


async def measure(count: int = 1000) -> None:
    """Print the resident memory of runs that wait for their model, and of readers that wait."""
    with many_sockets(), tempfile.TemporaryDirectory() as folder:
        async with (
            stalling() as upstream,
            run_app(
                Path(folder) / "log",
                OPENAI_BASE_URL=upstream.url,
                MAX_RUNS=str(2 * count),
                MAX_THREADS=str(2 * count),
                RUN_TIMEOUT_S="600",
                LOG_LEVEL="WARNING",
            ) as server,
        ):

            def resident() -> int:
                return resident_kib(server.process.pid)

            # What is imported and cached once is no cost of a run.
            raws = await start(server, 20)
            for raw in raws:
                await raw.read(3)
            before = resident()
            print(f"with {len(raws)} runs, a reader each: {before / 1024:.0f} MiB")
            # The model's client has no more than 1,000 connections.
            raws += (more := await start(server, count - len(raws)))
            for raw in more:
                await raw.read(3)
            with_runs = resident()
            print(
                f"with {len(raws)} runs, a reader each: {with_runs / 1024:.0f} MiB,"
                f" {(with_runs - before) / len(more):.0f} KiB a run with its reader"
            )
            raws += (more := await follow(server, more[0].run_id, count))
            for raw in more:
                await raw.read(3)
            with_readers = resident()
            print(
                f"with {count} more readers of one run: {with_readers / 1024:.0f} MiB,"
                f" {(with_readers - with_runs) / count:.0f} KiB a reader"
            )
            for raw in raws:
                raw.cut()


if __name__ == "__main__":
    asyncio.run(measure())
