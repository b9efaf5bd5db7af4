"""deploy/Caddyfile, run by Caddy; the tests of deploy/nginx.conf are in test_clients.py."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.client import Client
from tests.conftest import ROOT, Process
from tests.programs import require
from tests.test_clients import ARRIVAL_PACE, read_deltas
from tests.upstream import STALL, Upstream, text

pytestmark = pytest.mark.slow

CADDYFILE = (ROOT / "deploy/Caddyfile").read_text()
WITHOUT_ADMIN = "{\n\tadmin off\n}\n"

Launch = Callable[..., Awaitable[Process]]
Caddy = Callable[..., Awaitable[Client]]


@pytest.fixture
async def caddy(tmp_path: Path) -> AsyncIterator[Caddy]:
    """Start Caddy before a server: ``await caddy(server, {"this": "instead"})``."""
    program = require("caddy")
    async with AsyncExitStack() as stack:

        async def caddy(server: Process, changes: dict[str, str] | None = None) -> Client:
            with socket.create_server(("127.0.0.1", 0)) as free:
                address = "http://{}:{}".format(*free.getsockname())
            site = CADDYFILE
            for old, new in {
                "chat.example.com {": f"{address} {{",
                "127.0.0.1:8000": server.url,
                **(changes or {}),
            }.items():
                assert site.count(old) == 1
                site = site.replace(old, new)
            (tmp_path / "Caddyfile").write_text(WITHOUT_ADMIN + site)
            process = await asyncio.create_subprocess_exec(
                *(program, "run", "--config", str(tmp_path / "Caddyfile")),
                env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
                stderr=asyncio.subprocess.PIPE,
            )
            stack.push_async_callback(process.communicate)
            stack.callback(process.kill)
            assert process.stderr
            log = b""
            while b"serving initial configuration" not in log:
                assert (line := await process.stderr.readline()), log
                log += line
            return await stack.enter_async_context(Client(address))

        yield caddy


async def test_each_event_passes_caddy_as_it_happens_and_uncompressed(
    launch: Launch, caddy: Caddy
) -> None:
    client = await caddy(await launch(DEMO_TOKENS_PER_S=str(ARRIVAL_PACE)))
    stream, alone = await read_deltas(client)
    assert alone > 0.6
    assert "Content-Encoding" not in stream.headers
    # The page is compressed, and of the server's own origin.
    async with client.session.get("/static/main.js", headers={"Accept-Encoding": "gzip"}) as page:
        assert page.headers["Content-Encoding"] == "gzip"
    assert (await client.call("GET", "/api/info", headers={"Origin": client.url}))[0] == 200


async def test_a_caddy_that_compresses_streams_would_be_noticed(
    launch: Launch, caddy: Caddy
) -> None:
    server = await launch(DEMO_TOKENS_PER_S=str(ARRIVAL_PACE))
    compress = {"encode @page zstd gzip": "encode {\n\t\tgzip\n\t\tminimum_length 1\n\t}"}
    stream, alone = await read_deltas(await caddy(server, compress))
    assert stream.headers["Content-Encoding"] == "gzip"
    assert alone < 0.3


async def test_a_reader_that_leaves_caddy_leaves_the_server(
    launch: Launch, upstream: Upstream, caddy: Caddy
) -> None:
    upstream.replies = [[*text("Hel"), STALL]]
    server = await launch(OPENAI_BASE_URL=upstream.url, DISCONNECT_GRACE_S="0", HEARTBEAT_S="60")
    stream = await (await caddy(server)).ask("hi")
    await stream.until("text_delta")
    stream.close()
    async with asyncio.timeout(30):
        await upstream.dropped.wait()
