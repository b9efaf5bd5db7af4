"""Clients that others wrote, against the real process: whole, cut at every event, through nginx."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import shutil
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import aiohttp
import httpx
import pytest
from httpx_sse import aconnect_sse
from playwright.async_api import Browser

from tests import test_page
from tests.client import FRAME, Client, Stream, check, kinds
from tests.conftest import ROOT, Process
from tests.engines import free_ports
from tests.programs import install, require
from tests.test_page import Launch
from tests.upstream import CUT, STALL, Upstream, text

Received = list[tuple[int, str, str]]
"""Id, type and data of each event, in the order in which a client handed them out."""
Receive = Callable[[Sequence[str], str], Awaitable[list[Received]]]
"""Send the message to each URL, and return what came from each."""

SLOW = pytest.mark.slow
PROGRAMS = ROOT / "tests/clients"
CONFIGURATION = (ROOT / "deploy/nginx.conf").read_text()
PATIENCE_S = 120

# Under names of their own here, so that an argument does not shadow an import.
chromium = test_page.browser


def frames(raw: bytes) -> Received:
    return [(int(id_), type_.decode(), data.decode()) for type_, data, id_ in FRAME.findall(raw)]


async def kept(server: Client, received: Received) -> Received:
    """Return the run that a client received as the server keeps it, checked to be whole."""
    run_id = json.loads(received[0][2])["run_id"]
    stream = await server.follow(run_id)
    check(await stream.events())
    return frames(stream.raw)


# ------------------------------------------------------------------------------------ clients


async def read_with_curl(url: str, message: str) -> Received:
    curl = await asyncio.create_subprocess_exec(
        *(require("curl"), "-sN", "-H", "Content-Type: application/json"),
        *("-d", json.dumps({"message": message}), f"{url}/api/chat"),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await curl.communicate()
    return frames(out)


async def read_with_httpx_sse(url: str, message: str) -> Received:
    received: Received = []
    request = {"method": "POST", "url": f"{url}/api/chat", "json": {"message": message}}
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        while not received or received[-1][1] != "done":
            with suppress(httpx.TransportError):
                async with aconnect_sse(client, **request) as source:
                    location = source.response.headers["Location"]
                    request = {"method": "GET", "url": f"{url}{location}"}
                    async for sse in source.aiter_sse():
                        # It also yields blocks that dispatch nothing: `retry: 2000`, heartbeats.
                        if sse.data:
                            received.append((int(sse.id), sse.event, sse.data))
            if received:
                request["headers"] = {"Last-Event-ID": str(received[-1][0])}
    return received


async def read_with_aiohttp(url: str, message: str) -> Received:
    received: Received = []
    async with Client(url) as client:
        stream = await client.ask(message)
        run_id = stream.headers["Content-Location"].rpartition("/")[2]
        while True:
            with suppress(aiohttp.ClientPayloadError):
                await stream.events()
            received += frames(stream.raw)
            if received and received[-1][1] == "done":
                return received
            stream = await client.follow(run_id, received[-1][0] if received else None)


async def read_each(
    read: Callable[[str, str], Awaitable[Received]], urls: Sequence[str], message: str
) -> list[Received]:
    return await asyncio.gather(*(read(url, message) for url in urls))


async def read_in_node(program: Path, urls: Sequence[str], message: str) -> list[Received]:
    node = await asyncio.create_subprocess_exec(
        *(require("node"), str(program), message, *urls), stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await node.communicate()
    finally:
        if node.returncode is None:
            node.kill()
            await node.wait()
    assert node.returncode == 0
    return [[(int(i), type_, data) for i, type_, data in run] for run in json.loads(out)]


async def read_in_chromium(browser: Browser, urls: Sequence[str], message: str) -> list[Received]:
    """Read in a page of each URL's own origin, with the EventSource of the browser."""
    _, _, function = (PROGRAMS / "native.mjs").read_text().partition("export default ")
    # One context for all: each of its own would be a process of its own.
    context = await browser.new_context()
    pages = [await context.new_page() for _ in urls]
    await asyncio.gather(*(page.goto(url) for page, url in zip(pages, urls, strict=True)))
    runs = await asyncio.gather(
        *(
            page.evaluate(function, {"url": url, "message": message})
            for page, url in zip(pages, urls, strict=True)
        )
    )
    return [[(int(i), type_, data) for i, type_, data in run] for run in runs]


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs for Node.js, their packages installed beside a copy of them."""
    path = tmp_path_factory.mktemp("clients")
    for file in PROGRAMS.iterdir():
        if file.is_file():
            shutil.copy(file, path)
    install(path)
    return path


@pytest.fixture
def receive(request: pytest.FixtureRequest) -> Receive:
    """One of the clients, chosen by its name."""
    match request.param:
        case "curl":
            receive = partial(read_each, read_with_curl)
        case "httpx-sse":
            receive = partial(read_each, read_with_httpx_sse)
        case "aiohttp":
            receive = partial(read_each, read_with_aiohttp)
        case "chromium":
            receive = partial(read_in_chromium, request.getfixturevalue("chromium"))
        case program:
            path = request.getfixturevalue("programs") / f"{program}.mjs"
            receive = partial(read_in_node, path)
    return lambda urls, message: asyncio.wait_for(receive(urls, message), PATIENCE_S)


def slow(*names: str) -> list[Any]:
    """Return the names of clients that need Node.js or a browser, marked."""
    return [pytest.param(name, marks=SLOW) for name in names]


# What line splitters, decoders and JSON readers are known to stumble over.
AWKWARD = text(
    *("12 × 7 = ", "**84**\n\n", "東京 🗼", "a\r\nb\rc", "\x0b\x0c\x1c\x85", "\u2028\u2029"),
    *("\ufeff", "\ud83d", "|", "data: x\n\n", ": ", " "),
)


@pytest.mark.parametrize(
    "receive",
    [
        "httpx-sse",
        "aiohttp",
        "curl",
        *slow("eventsource", "eventsource-parser", "fetch-event-source", "chromium"),
    ],
    indirect=True,
)
async def test_a_client_receives_each_event_with_its_id_and_its_data(
    launch: Launch, upstream: Upstream, receive: Receive
) -> None:
    # One run that succeeds and one that fails, since `error` is a name that EventSource has taken.
    upstream.replies = [AWKWARD, [*AWKWARD, CUT]]
    server = await launch(OPENAI_BASE_URL=upstream.url)
    runs = await receive([server.url, server.url], "hi 東京")
    for received in runs:
        assert received == await kept(server, received)
    endings = {tuple(type_ for _, type_, _ in received[-2:]) for received in runs}
    assert endings == {("final_answer", "done"), ("error", "done")}


# --------------------------------------------------------------------------------------- cuts


class Proxy:
    """Passes connections on to a server, and cuts its streams, one after the other.

    A cut of 3 closes a stream's connection right after its third frame, one of 2.5 in the middle
    of it. Streams after the last cut pass whole.
    """

    def __init__(self, url: str, cuts: Iterable[float]) -> None:
        self._host, self._port = url.removeprefix("http://").split(":")
        self._tasks: set[asyncio.Task[None] | None] = set()
        self.cuts = list(cuts)
        """Those that are still to come."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.url = "http://{}:{}".format(*self._server.sockets[0].getsockname())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks.copy():
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connect(self, client: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        server, request = await asyncio.open_connection(self._host, self._port)
        passing = asyncio.create_task(self._pass(client, request))
        try:
            # Python 3.11 logs a cancelled connection as an error.
            with suppress(ConnectionError, asyncio.CancelledError):
                await self._answer(server, out)
        finally:
            passing.cancel()
            for writer in (request, out):
                writer.close()
            self._tasks.discard(task)

    async def _pass(self, client: asyncio.StreamReader, request: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await client.read(2**16):
                request.write(data)
        request.close()

    async def _answer(self, server: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        cut = None
        seen = b""
        while data := await server.read(2**16):
            passed = len(seen)
            seen += data
            if cut is None and self.cuts and b"Content-Type: text/event-stream" in seen:
                cut = self.cuts.pop(0)
            end = None if cut is None else place_of(cut, seen)
            out.write(seen[passed:end])
            await out.drain()
            if end is not None:
                return


def place_of(cut: float, seen: bytes) -> int | None:
    """Return the place of a cut in the bytes of a connection, None if it is yet to come."""
    # A frame is never split by a chunk's length, for the server writes whole frames.
    ends = [match.end() for match in FRAME.finditer(seen)]
    whole, torn = divmod(cut, 1)
    if len(ends) < whole + bool(torn):
        return None
    if not torn:
        return ends[int(whole) - 1]
    start = seen.rindex(b"event: ", 0, ends[int(whole)])
    return (start + ends[int(whole)]) // 2


QUESTION = "6 * 7"
PACE = {"DEMO_TOKENS_PER_S": "100"}


async def cut_runs(server: Process, receive: Receive, cuts: Sequence[Sequence[float]]) -> None:
    """Read a run through each of these cut connections, and find it whole."""
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(server.url, each)) for each in cuts]
        runs = await receive([proxy.url for proxy in proxies], QUESTION)
    assert [proxy.cuts for proxy in proxies] == [[]] * len(cuts)
    for received in runs:
        assert received == await kept(server, received)


@pytest.mark.parametrize(
    "receive",
    ["httpx-sse", "aiohttp", *slow("eventsource", "fetch-event-source", "chromium")],
    indirect=True,
)
async def test_a_cut_after_or_within_any_event_loses_and_doubles_nothing(
    launch: Launch, receive: Receive
) -> None:
    server = await launch(**PACE)
    events = await server.run(QUESTION)
    assert {"tool_call", "text_delta", "final_answer"} < set(kinds(events))
    # A connection, and so a run, for each cut: all of them wait for their reconnect at once.
    await cut_runs(server, receive, [[n + part] for n in range(len(events)) for part in (0.5, 1)])


@pytest.mark.parametrize("receive", ["httpx-sse", "aiohttp"], indirect=True)
async def test_a_connection_for_each_event_loses_and_doubles_nothing(
    launch: Launch, receive: Receive
) -> None:
    server = await launch(**PACE)
    events = await server.run(QUESTION)
    await cut_runs(server, receive, [[1] * len(events)])


# -------------------------------------------------------------------------------------- nginx

# Debian's nginx.conf, as far as it concerns a proxied answer.
NGINX = """\
daemon off;
{user}
worker_processes 1;
pid {path}/nginx.pid;
error_log {path}/error.log;
events {{ worker_connections 768; }}
http {{
    sendfile on;
    tcp_nopush on;
    types_hash_max_size 2048;
    default_type application/octet-stream;
    access_log off;
    gzip on;
    {http}
    client_body_temp_path {path}/body;
    proxy_temp_path {path}/proxy;
    fastcgi_temp_path {path}/fastcgi;
    uwsgi_temp_path {path}/uwsgi;
    scgi_temp_path {path}/scgi;
    include {path}/site.conf;
}}
"""
COMPRESS_ALL = "gzip_types *; gzip_proxied any; gzip_min_length 0;"
STREAMING = r"proxy_buffering off;|gzip off;|proxy_http_version 1\.1;"
# Without the lengths of chunks nginx passes on what fills a buffer, unless it is told otherwise.
UNCHUNKED = "proxy_http_version 1.0;"
ARRIVAL_PACE = 20

Nginx = Callable[..., Awaitable[Client]]


@pytest.fixture
async def nginx(tmp_path: Path) -> AsyncIterator[Nginx]:
    """Start nginx before servers: ``await nginx(server, http="…", without="regex of lines")``.

    It runs deploy/nginx.conf, only its addresses replaced and what matches ``without`` taken out.
    """
    program = require("nginx", "/usr/sbin/nginx")
    async with AsyncExitStack() as stack:

        async def nginx(*urls: str, http: str = "", without: str = "(?!)") -> Client:
            # It inherits a socket that already listens: no port to lose, no start to wait for.
            with socket.create_server(("127.0.0.1", 0)) as listening:
                address = "{}:{}".format(*listening.getsockname())
                site = re.sub(without, "", CONFIGURATION)
                for old, new in (
                    ("listen 80;", f"listen {address};"),
                    (
                        "server 127.0.0.1:8000 max_fails=0;",
                        "".join(
                            f"server {url.removeprefix('http://')} max_fails=0;" for url in urls
                        ),
                    ),
                ):
                    assert site.count(old) == 1
                    site = site.replace(old, new)
                (tmp_path / "site.conf").write_text(site)
                user = "user root;" if os.geteuid() == 0 else ""
                config = tmp_path / "nginx.conf"
                config.write_text(NGINX.format(path=tmp_path, user=user, http=http))
                process = await asyncio.create_subprocess_exec(
                    *(program, "-c", str(config), "-e", str(tmp_path / "error.log")),
                    env={"NGINX": f"{listening.fileno()};"},
                    pass_fds=[listening.fileno()],
                )
            stack.push_async_callback(process.wait)
            stack.callback(process.terminate)
            return await stack.enter_async_context(Client(f"http://{address}"))

        yield nginx


async def read_deltas(client: Client) -> tuple[Stream, float]:
    """Return a stream, and which part of its deltas came by themselves, at the server's pace."""
    best = 0.0
    for _ in range(5):  # A pause of the machine collects, too.
        stream = await client.ask(
            "12 * (3 + 4) と東京の時刻は?", headers={"Accept-Encoding": "gzip"}
        )
        times = [time.monotonic() async for event in stream if event["type"] == "text_delta"]
        assert len(times) > 10
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        best = max(best, sum(gap > 0.5 / ARRIVAL_PACE for gap in gaps) / len(gaps))
        if best > 0.6:
            break
    return stream, best


@pytest.mark.parametrize(
    ("http", "without"),
    [
        pytest.param("", "(?!)", id="as given"),
        pytest.param(COMPRESS_ALL, "(?!)", id="where nginx compresses all types"),
        pytest.param(UNCHUNKED, STREAMING, id="by X-Accel-Buffering alone"),
    ],
)
@SLOW
async def test_each_event_passes_nginx_as_it_happens_and_uncompressed(
    launch: Launch, nginx: Nginx, http: str, without: str
) -> None:
    server = await launch(DEMO_TOKENS_PER_S=str(ARRIVAL_PACE))
    stream, alone = await read_deltas(await nginx(server.url, http=http, without=without))
    assert alone > 0.6
    assert "Content-Encoding" not in stream.headers


@SLOW
async def test_an_nginx_that_collects_would_be_noticed(launch: Launch, nginx: Nginx) -> None:
    server = await launch(DEMO_TOKENS_PER_S=str(ARRIVAL_PACE))
    collect = f"{UNCHUNKED} proxy_ignore_headers X-Accel-Buffering;"
    _, alone = await read_deltas(await nginx(server.url, http=collect, without=STREAMING))
    assert alone < 0.3


@SLOW
async def test_heartbeats_pass_nginx_and_outlast_its_patience(
    launch: Launch, upstream: Upstream, nginx: Nginx
) -> None:
    go = asyncio.Event()
    upstream.replies = [[go, *text("Hello")]]
    server = await launch(OPENAI_BASE_URL=upstream.url, HEARTBEAT_S="0.5")
    client = await nginx(
        server.url, http="proxy_read_timeout 3s;", without="proxy_read_timeout 5m;"
    )
    stream = await client.ask("hi")
    await stream.until("thinking")
    for _ in range(10):
        await stream.response.content.readuntil(b": heartbeat\n\n")
    go.set()
    assert (await stream.until("final_answer"))["content"] == "Hello"


@SLOW
async def test_a_run_is_resumed_through_nginx_by_its_location(launch: Launch, nginx: Nginx) -> None:
    client = await nginx((await launch()).url)
    stream = await client.ask(QUESTION)
    events = await stream.events()
    check(events)
    path = f"/api/runs/{events[0]['run_id']}"
    assert stream.headers["Location"] == f"{path}/events"
    assert stream.headers["Content-Location"] == path
    tail = await client.follow(events[0]["run_id"], after=3)
    assert await tail.events() == events[3:]
    assert tail.raw.removeprefix(b"retry: 2000\n\n") in stream.raw
    cursor = {"Last-Event-ID": str(len(events))}
    assert await client.call("GET", f"{path}/events", headers=cursor) == (204, None)


@SLOW
async def test_a_page_from_nginx_is_of_the_servers_own_origin(launch: Launch, nginx: Nginx) -> None:
    client = await nginx((await launch()).url)
    assert (await client.call("GET", "/api/info", headers={"Origin": client.url}))[0] == 200
    status, body = await client.call("GET", "/api/info", headers={"Origin": "http://elsewhere"})
    assert (status, body["error"]["code"]) == (403, "origin_not_allowed")


@SLOW
async def test_a_reader_that_leaves_nginx_leaves_the_server(
    launch: Launch, upstream: Upstream, nginx: Nginx
) -> None:
    upstream.replies = [[*text("Hel"), STALL]]
    server = await launch(OPENAI_BASE_URL=upstream.url, DISCONNECT_GRACE_S="0", HEARTBEAT_S="60")
    stream = await (await nginx(server.url)).ask("hi")
    await stream.until("text_delta")
    stream.close()
    async with asyncio.timeout(30):
        await upstream.dropped.wait()


@SLOW
async def test_nginx_leaves_out_no_replica_that_restarted(launch: Launch, nginx: Nginx) -> None:
    ports = free_ports(2)
    replicas = [await launch("--port", str(port)) for port in ports]
    client = await nginx(*(replica.url for replica in replicas))
    for replica, port in zip(replicas, ports, strict=True):
        replica.process.kill()
        await replica.process.wait()
        answers = [(await client.call("GET", "/healthz"))[0] for _ in range(4)]
        await launch("--port", str(port))
        assert answers == [200] * 4


def test_the_documents_name_lines_of_the_configuration_that_is_tested() -> None:
    documents = "".join(path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")])
    named = re.search(r"The lines that matter are(.*?)\.\s", documents, re.DOTALL)
    assert named
    lines = re.findall(r"`(.*?)`", named[1])
    assert len(lines) >= 3
    assert [line for line in lines if f"    {line};\n" not in CONFIGURATION] == []
