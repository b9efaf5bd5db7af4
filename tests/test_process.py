"""The real ``python app.py``: what a server inside the tests would not show."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest
from aiohttp import ClientError, ClientTimeout

from tests.client import Client, Stream, check, kinds
from tests.conftest import ROOT, Process
from tests.engines import free_port
from tests.upstream import STALL, Upstream, text

Launch = Callable[..., Awaitable[Process]]


async def draining(server: Process) -> None:
    """Wait until the server has heard its signal."""
    while (await server.call("GET", "/healthz"))[0] == 200:
        pass


async def test_the_questions_of_the_readme_stream_through_curl(launch: Launch) -> None:
    server = await launch()
    curl = await asyncio.create_subprocess_exec(
        *("curl", "-sN", "-H", "Content-Type: application/json"),
        *("-d", '{"message":"12 * (3 + 4) と東京の時刻は?"}', f"{server.url}/api/chat"),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await curl.communicate()
    lines = out.decode().splitlines()
    types = [{"type": line[7:]} for line in lines if line.startswith("event: ")]
    assert kinds(types) == [
        *("start", "thinking", "tool_call", "tool_call", "tool_result", "tool_result"),
        *("text_delta", "final_answer", "done"),
    ]
    assert "84" in lines[-7]
    assert "東京" in lines[-7]


async def test_events_arrive_as_they_happen(launch: Launch) -> None:
    server = await launch(DEMO_TOKENS_PER_S="20")
    stream = await server.ask("thanks, what time is it in London and Paris?")
    times = [time.monotonic() async for event in stream if event["type"] == "text_delta"]
    spent = times[-1] - times[0]
    assert len(times) > 10
    # A stream that something collected would have come in no time.
    assert spent > 0.5 * (len(times) - 1) / 20


async def test_a_reader_that_leaves_starts_the_grace_at_once(
    launch: Launch, upstream: Upstream
) -> None:
    upstream.replies = [[*text("Hel"), STALL]]
    server = await launch(OPENAI_BASE_URL=upstream.url, DISCONNECT_GRACE_S="0.1", HEARTBEAT_S="60")
    stream = await server.ask("hi")
    run_id = (await stream.until("start"))["run_id"]
    await stream.until("text_delta")
    stream.close()
    async with asyncio.timeout(30):
        await upstream.dropped.wait()
    events = await (await server.follow(run_id)).events()
    check(events)
    assert events[-1]["reason"] == "cancelled"


async def test_heartbeats_come_before_the_first_token(launch: Launch, upstream: Upstream) -> None:
    go = asyncio.Event()
    upstream.replies = [[go, *text("Hello")]]
    server = await launch(OPENAI_BASE_URL=upstream.url, HEARTBEAT_S="0.1")
    stream = await server.ask("hi")
    await stream.until("thinking")
    for _ in range(3):
        await stream.response.content.readuntil(b": heartbeat\n\n")
    go.set()
    assert (await stream.until("final_answer"))["content"] == "Hello"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_streams_with_their_terminal_events(
    launch: Launch, upstream: Upstream, signum: int
) -> None:
    upstream.replies = [[*text("Hel"), STALL]]
    server = await launch(OPENAI_BASE_URL=upstream.url, SHUTDOWN_GRACE_S="3")
    stream = await server.ask("hi")
    start = await stream.until("start")
    await stream.until("text_delta")
    began = time.monotonic()
    server.process.send_signal(signum)
    # Within the grace reads are answered, health says so, and new runs are refused.
    await draining(server)
    assert await server.call("GET", "/healthz") == (503, {"status": "draining"})
    assert (await server.call("GET", f"/api/runs/{start['run_id']}"))[0] == 200
    status, body = await server.call("POST", "/api/chat", json={"message": "hi"})
    assert (status, body["error"]["code"]) == (503, "draining")
    tail = await stream.events()
    assert [e["type"] for e in tail] == ["error", "done"]
    assert tail[0]["code"] == tail[1]["reason"] == "shutdown"
    assert await asyncio.wait_for(server.process.wait(), 30) == 0
    assert time.monotonic() - began < 3 + 10


async def test_a_run_may_finish_within_the_grace(launch: Launch, upstream: Upstream) -> None:
    go = asyncio.Event()
    upstream.replies = [[*text("Hel"), go, *text("lo")]]
    server = await launch(OPENAI_BASE_URL=upstream.url, SHUTDOWN_GRACE_S="30")
    stream = await server.ask("hi")
    await stream.until("text_delta")
    server.process.send_signal(signal.SIGTERM)
    await draining(server)
    go.set()
    assert (await stream.until("done"))["reason"] == "completed"
    assert await asyncio.wait_for(server.process.wait(), 5) == 0


async def test_a_second_interrupt_ends_it_at_once(launch: Launch, upstream: Upstream) -> None:
    upstream.replies = [[STALL]]
    server = await launch(OPENAI_BASE_URL=upstream.url, SHUTDOWN_GRACE_S="60")
    stream = await server.ask("hi")
    await stream.until("thinking")
    server.process.send_signal(signal.SIGINT)
    await draining(server)
    server.process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(server.process.wait(), 30) != 0


class SlowReader:
    """A connection that takes bytes only when told to, with as small a window as there is."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect((host, int(port)))
        self.socket.setblocking(False)

    async def send(self, request: str) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, request.encode())

    async def take(self, size: int) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.socket, size)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.socket.close()


# More than what the kernel holds for a connection.
LARGE = ["x" * 1000] * 8000
LARGE_LIMIT = str(2**25)


async def test_a_reader_that_stalls_holds_up_neither_its_run_nor_shutdown(
    launch: Launch, upstream: Upstream
) -> None:
    upstream.replies = [text(*LARGE)]
    server = await launch(OPENAI_BASE_URL=upstream.url, MAX_RUN_BYTES=LARGE_LIMIT)
    async with SlowReader(server.url) as reader:
        stream = await server.ask("hi")
        await reader.send(f"GET {stream.headers['Location']} HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.take(12)).endswith(b"200")
        # The other reader has it all, and the run is over.
        assert b'"reason":"completed"' in (await stream.response.read())[-1000:]
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(server.process.wait(), 30) == 0
        assert time.monotonic() - began < 10


@pytest.mark.slow
async def test_a_stalled_reader_is_dropped_and_a_slow_one_is_not(
    launch: Launch, upstream: Upstream
) -> None:
    upstream.replies = [text(*LARGE)]
    server = await launch(
        OPENAI_BASE_URL=upstream.url, MAX_RUN_BYTES=LARGE_LIMIT, SEND_TIMEOUT_S="2"
    )
    stream = await server.ask("hi")
    await stream.response.read()
    request = f"GET {stream.headers['Location']} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with SlowReader(server.url) as stalled, SlowReader(server.url) as slow:
        for reader in (stalled, slow):
            await reader.send(request)
        data = b""
        began = time.monotonic()
        # Never silent for long, but behind for much longer than the server is patient.
        while time.monotonic() - began < 6:
            data += await slow.take(4096)
            await asyncio.sleep(0.01)
        while not data.endswith(b"0\r\n\r\n"):
            assert (more := await slow.take(2**20)), "dropped"
            data += more
        assert b"event: done" in data[-1000:]
        rest = b""
        with suppress(ConnectionError):
            while more := await stalled.take(2**20):
                rest += more
        assert b"event: done" not in rest


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"PORT": "x"}, "PORT wants a whole number from 0 to 65535, got 'x'"),
        ({"AGENT": "nothing"}, "AGENT wants module:attribute, got 'nothing'"),
        ({"AGENT": "no_such_module:graph"}, "AGENT wants module:attribute"),
        *(
            ({"HOST": host}, f"HOST and PORT want an address that is free here, got {host[:9]}")
            for host in ("192.0.2.1", "..", "a" * 100)
        ),
    ],
)
def test_a_bad_setting_stops_the_start_with_one_line(environ: dict[str, str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "app.py")],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(words)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_port_in_use_stops_the_start_before_the_agent_is_there(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(
        "import asyncio\n\nasync def graph():\n    await asyncio.Event().wait()\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        done = subprocess.run(
            [sys.executable, str(ROOT / "app.py")],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "PORT": port, "AGENT": "endless:graph"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith("HOST and PORT want an address that is free here")
    assert done.stderr.count("\n") == 1


def test_help_lists_every_setting() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "app.py"), "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    from edge.settings import Settings

    for name in Settings.__dataclass_fields__:
        assert f"--{name.replace('_', '-')} {name.upper()}" in done.stdout


async def test_flags_win_over_the_environment(launch: Launch) -> None:
    server = await launch("--host", "127.0.0.1", PORT="1", HOST="192.0.2.1")
    assert (await server.call("GET", "/healthz"))[0] == 200


@pytest.mark.parametrize("name", ["graph", "factory", "chain", "pydantic", "bare"])
async def test_the_environment_names_an_agent_of_ones_own(launch: Launch, name: str) -> None:
    server = await launch(AGENT=f"agents:{name}", PYTHONPATH=str(ROOT / "tests"))
    events = await server.run("hi", thread_id="t")
    check(events)
    assert events[-2]["content"] == "You said: hi"
    assert (await server.call("GET", "/api/info"))[1]["agent"] == f"agents:{name}"
    _, thread = await server.call("GET", "/api/threads/t")
    assert [m["role"] for m in thread["messages"]] == ["user", "assistant"]


async def test_the_log_tells_a_run_without_its_words(launch: Launch, tmp_path: Path) -> None:
    server = await launch()
    events = await server.run("calculate 6 * 7")
    run_id = events[0]["run_id"]
    log = server.log()
    lines = [line for line in log.splitlines() if f"run={run_id}" in line]
    assert len(lines) == 4
    for line, words in zip(
        lines,
        ("started", "'calculate' called", "'calculate' ok", "ended reason=completed events="),
        strict=True,
    ):
        assert words in line
    assert "6 * 7" not in log
    assert re.search(r"tool='calculate' ok id='\w+' ms=\d+$", lines[2])


async def test_it_serves_soon_after_its_imports() -> None:
    """No more than 0.3 s beyond what the two packages cost, or where those cost more than a second
    as much more; each at the best of its starts, since other work only ever adds."""

    async def spent(*command: str) -> float:
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        assert process.stdout
        await process.stdout.readline()
        took = time.monotonic() - began
        process.kill()
        await process.wait()
        return took

    imports = "import aiohttp.web, langgraph.graph, langgraph.prebuilt; print(1, flush=True)"
    ours = theirs = float("inf")
    for _ in range(15):
        ours = min(ours, await spent("app.py", "--port=0"))
        theirs = min(theirs, await spent("-c", imports))
        if ours - theirs < 0.3 * max(1, theirs):
            return
    raise AssertionError(f"{ours} s, where the imports take {theirs} s")


async def test_what_is_not_http_is_one_line_at_debug(launch: Launch) -> None:
    server = await launch(LOG_LEVEL="DEBUG")
    reader, writer = await asyncio.open_connection(*server.url.removeprefix("http://").split(":"))
    writer.write(b"GET / HTTP/1.1\r\nno colon\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
    writer.close()
    await writer.wait_closed()
    (line,) = server.log().splitlines()
    assert " DEBUG chat a client's connection failed: " in line


async def test_a_heartbeat_never_cuts_an_event(launch: Launch) -> None:
    server = await launch(HEARTBEAT_S="0.001", DEMO_TOKENS_PER_S="200")
    stream: Stream = await server.ask("What can you do?")
    check(await stream.events())
    assert stream.heartbeats


@pytest.mark.parametrize("how", ["exit", "interrupt"])
async def test_a_graph_that_leaves_ends_its_run_and_not_the_server(
    launch: Launch, how: str
) -> None:
    server = await launch(AGENT="agents:exiting", PYTHONPATH=str(ROOT / "tests"))
    events = await server.run(how)
    assert events[-2]["code"] == "agent_error"
    assert (await server.call("GET", "/healthz"))[0] == 200


async def test_a_tool_that_is_slow_to_stop_does_not_hold_up_shutdown(launch: Launch) -> None:
    took = []
    while not took or (min(took) >= 2 and len(took) < 5):  # A pause of the machine adds to it.
        server = await launch(
            AGENT="agents:stubborn", PYTHONPATH=str(ROOT / "tests"), SHUTDOWN_GRACE_S="0"
        )
        stream = await server.ask("hi")
        await stream.until("thinking")
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert (await stream.until("done"))["reason"] == "shutdown"
        assert await asyncio.wait_for(server.process.wait(), 30) == 0
        took.append(time.monotonic() - began)
    assert min(took) < 2


HIDING = """
import asyncio, socket, sys

HIDDEN = {"fcntl", "termios", "resource", "pwd", "grp", "tty", "pty"}

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def refuse(*_):
    raise NotImplementedError

sys.meta_path.insert(0, Hide())
for name in ("TCP_NOTSENT_LOWAT", "SO_REUSEPORT"):
    if hasattr(socket, name):
        delattr(socket, name)
asyncio.SelectorEventLoop.add_signal_handler = refuse
"""
"""A sitecustomize module, which Python imports at its start: what Windows lacks is not there."""


async def test_it_runs_without_what_windows_lacks(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDING)
    server = await launch(PYTHONPATH=str(tmp_path))
    events = await server.run("6 * 7")
    assert "42" in events[-2]["content"]
    server.process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(server.process.wait(), 30) == 0


@pytest.mark.parametrize("version", ["3.8", "3.9", "3.10"])
def test_an_older_python_gets_one_line(version: str) -> None:
    known = [*Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    python = next(map(str, known), None) or shutil.which(f"python{version}")
    # What pyenv puts on the path for a version that is not chosen starts nothing.
    if not python or subprocess.run([python, "-V"], capture_output=True, check=False).returncode:
        pytest.skip(f"Python {version} is not installed")
    done = subprocess.run(
        [python, str(ROOT / "app.py")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert done.stderr.startswith("This server needs Python 3.11 or newer; this is 3.")
    assert done.stderr.count("\n") == 1


async def test_the_start_says_what_is_served(launch: Launch, tmp_path: Path) -> None:
    for environ, expected in (
        ({}, "Serving the built-in agent (demo model, no key needed) on http://127.0.0.1:"),
        (
            {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_MODEL": "mine"},
            "Serving the built-in agent (mine) on ",
        ),
        (
            {"AGENT": "agents:graph", "PYTHONPATH": str(ROOT / "tests")},
            "Serving agents:graph on ",
        ),
    ):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(ROOT / "app.py"), "--port=0"),
            env={"PATH": os.environ["PATH"], "HEARTBEAT": "3", **environ},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout
        assert process.stderr
        line = (await process.stdout.readline()).decode()
        assert line.startswith(expected)
        assert line.endswith("; Ctrl-C stops\n")
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
        said = (await process.stderr.read()).decode()
        assert "the variable HEARTBEAT is no setting; is HEARTBEAT_S meant?" in said


async def test_ctrl_c_says_what_it_waits_for(launch: Launch, upstream: Upstream) -> None:
    upstream.replies = [[*text("Hel"), STALL]]
    server = await launch(OPENAI_BASE_URL=upstream.url, SHUTDOWN_GRACE_S="0.5")
    stream = await server.ask("hi")
    await stream.until("text_delta")
    server.process.send_signal(signal.SIGINT)
    assert server.process.stdout
    line = (await server.process.stdout.readline()).decode()
    assert line == "Waiting up to 0.5 s for running runs (1); Ctrl-C again stops at once\n"
    assert (await stream.until("done"))["reason"] == "shutdown"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signal to one process")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("module", [b"aiohttp", b"langgraph"])
async def test_a_signal_during_the_start_ends_the_process_in_order(
    module: bytes, signum: signal.Signals
) -> None:
    """These two imports take most of the start, so it is cut there; the page is served in the
    second one."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "importtime", str(ROOT / "app.py"), "--port=0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr
    async for line in process.stderr:
        if module in line:
            break
    process.send_signal(signum)
    _, said = await process.communicate()
    assert process.returncode == 0
    assert b"Traceback" not in said


HOLD_LANGGRAPH = """
import sys, time
from pathlib import Path

class Gate:
    def find_spec(self, name, path=None, target=None):
        while name.startswith(("langchain", "langgraph")) and not Path("open").exists():
            time.sleep(0.01)

sys.meta_path.insert(0, Gate())
"""


async def test_the_page_is_served_while_the_agent_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HOLD_LANGGRAPH)
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "app.py"), f"--port={port}"),
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "DEMO_TOKENS_PER_S": "0"},
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        async with Client(f"http://127.0.0.1:{port}") as client:
            page = None
            while page is None:
                with suppress(ClientError):
                    page = await client.session.get("/")
            assert page.status == 200
            with pytest.raises(TimeoutError):  # It leaves, and the start goes on.
                await client.session.get("/api/info", timeout=ClientTimeout(0.2))
            asked = asyncio.create_task(client.run("What can you do?"))
            assert (await client.session.get("/static/main.js")).status == 200
            (tmp_path / "open").touch()
            assert kinds(await asked)[-1] == "done"
    finally:
        process.kill()
        await process.wait()
