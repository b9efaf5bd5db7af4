"""Servers for the tests, each on a real socket: in this process, or as ``python app.py``."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import app as app_module
from agent import Agent
from app import create_app
from edge.requests import OPENING
from edge.settings import Settings
from runs.registry import Registry
from tests.client import Client
from tests.engines import Postgres, RedisServer
from tests.upstream import Upstream

ROOT = Path(__file__).resolve().parent.parent


async def listen(app: web.Application) -> tuple[web.AppRunner, str]:
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    return runner, f"http://{host}:{port}"


class Server(Client):
    """A client of a server in this process, whose inside can be looked at."""

    runs: Registry


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), cluster=True)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis(redis_server: RedisServer) -> RedisServer:
    """A Redis that has known nothing for long: for so long a run may wait."""
    with redis_server.client() as client:
        client.flushall()
        client.set("chat:since", "")
    return redis_server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.remove()


@pytest.fixture
def postgres(postgres_server: Postgres) -> Postgres:
    """A PostgreSQL that runs; what others left in it stays."""
    postgres_server.start()
    return postgres_server


on_both = pytest.mark.parametrize("log_in", ["memory", "redis"], indirect=True)
"""Run the test with the runs in this process's memory, and with the runs in Redis."""


@pytest.fixture
def log_in(request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings that say where runs are kept: in memory, where a test says nothing else."""
    if getattr(request, "param", "memory") == "memory":
        return {}
    return {"redis_url": request.getfixturevalue("redis").url}


@pytest.fixture
async def start(log_in: dict[str, str]) -> AsyncIterator[Callable[..., Awaitable[Server]]]:
    """Start servers: ``await start(agent, heartbeat_s=…)``."""
    async with AsyncExitStack() as stack:

        async def start(agent: Agent, **settings: Any) -> Server:
            app = create_app(replace(Settings(), **{**log_in, **settings}), agent)
            runner, url = await app_module.listen(app, "127.0.0.1", 0)
            stack.push_async_callback(runner.cleanup)
            server = await stack.enter_async_context(Server(url))
            server.runs = await app[OPENING]
            return server

        yield start


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """A scripted OpenAI-compatible server; ``upstream.url`` is its base URL."""
    upstream = Upstream()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", upstream.complete)
    runner, url = await listen(app)
    upstream.url = f"{url}/v1"
    yield upstream
    await runner.cleanup()


class Process(Client):
    """A client of the real ``python app.py``, and its process."""

    def __init__(self, url: str, process: asyncio.subprocess.Process, log: Path) -> None:
        super().__init__(url)
        self.process = process
        self._log = log

    def log(self) -> str:
        return self._log.read_text()


@asynccontextmanager
async def run_app(log: Path, *arguments: str, **environ: str) -> AsyncIterator[Process]:
    """Run ``python app.py`` on a free port, its standard error in ``log``."""
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(ROOT / "app.py"),
            "--port=0",
            *arguments,
            cwd=log.parent,
            env={"PATH": os.environ["PATH"], "DEMO_TOKENS_PER_S": "0", **environ},
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
        )
    try:
        assert process.stdout
        line = (await process.stdout.readline()).decode()
        served = re.fullmatch(r"Serving .+ on (http://127\.0\.0\.1:\d+); Ctrl-C stops\n", line)
        assert served, line + log.read_text()
        async with Process(served[1], process, log) as client:
            yield client
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture
async def launch(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Process]]]:
    """Start processes: ``await launch(HEARTBEAT_S="1")``."""
    async with AsyncExitStack() as stack:
        count = 0

        async def launch(*arguments: str, **environ: str) -> Process:
            nonlocal count
            count += 1
            log = tmp_path / f"log-{count}"
            return await stack.enter_async_context(run_app(log, *arguments, **environ))

        yield launch


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what was left out, and why."""
    left_out = len(terminalreporter.stats.get("deselected", ()))
    if left_out and config.option.markexpr == "not slow" and not config.option.keyword:
        marker = config.getini("markers")[0].removeprefix("slow: ")
        terminalreporter.write_line(f'{left_out} tests left out: each {marker}; -m "" runs all')
