"""The servers in turn: how each is started, and what its process has used."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which

from tests.bench.wires import AG_UI, OURS, PLATFORM, Wire

ROOT = Path(__file__).resolve().parents[2]
PLAIN = Path(__file__).resolve().parent / ".venv" / "bin" / "python"
"""The interpreter of an environment that has ``requirements.txt`` alone."""

OLD = PLAIN.parents[2] / ".old"
OLD_COMMIT = "663d3a9"
"""The last commit of version 0.1, for its time to start."""

CORES = (min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0)))
"""One for the server, one for the load."""

PORT, UPSTREAM_PORT, REDIS_PORT = 18080, 18081, 18082
UPSTREAM = f"http://127.0.0.1:{UPSTREAM_PORT}/v1"
REDIS_URL = f"redis://127.0.0.1:{REDIS_PORT}"
START_S = 60


@dataclass(frozen=True)
class Server:
    """One that is measured: its short name, what it is, and the command that starts it."""

    name: str
    about: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()
    """The modules without which it is left out."""
    wire: Wire = OURS
    ready: str = "/healthz"
    """What is asked for until it answers 200."""
    most: int = 1_000_000
    """How many runs it can have at once."""
    ours: bool = False
    redis: bool = False
    """Whether its runs are in Redis, which runs on the core of the load."""

    def missing(self) -> str:
        """Return why it cannot be measured here, or nothing."""
        for module in self.needs:
            if not find_spec(module):
                return f"{module} is not installed"
        if self.redis and not which("redis-server"):
            return "redis-server is not installed"
        if self.name == "0.1" and not OLD.exists():
            return "the repository has no commit of version 0.1"
        return ""


def _uvicorn(app: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "uvicorn", f"tests.bench.peers.{app}", f"--port={PORT}")


def _python(module: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"tests.bench.peers.{module}", str(PORT))


def _ours(python: str | Path, folder: Path = ROOT) -> tuple[str, ...]:
    return (str(python), str(folder / "app.py"))


GRANIAN = (sys.executable, "-m", "granian", "--interface=asgi", f"--port={PORT}")
LANGGRAPH = (sys.executable, "-m", "langgraph_cli", "dev", "--no-browser", "--no-reload")
LANGGRAPH_OPTIONS = (
    f"--port={PORT}",
    "--n-jobs-per-worker=100",
    f"--config={ROOT}/tests/bench/peers/langgraph.json",
)

SERVERS = (
    Server(
        "a",
        "FastAPI, sse-starlette, `astream_events`",
        _uvicorn("usual:app"),
        ("uvicorn", "fastapi", "sse_starlette"),
    ),
    Server("b", "FastAPI, its own SSE", _uvicorn("fastapi_sse:app"), ("uvicorn", "fastapi")),
    Server("c", "aiohttp-sse", _python("aiohttp_sse"), ("aiohttp_sse",)),
    Server("d", "Starlette, frames by hand", _uvicorn("starlette:app"), ("uvicorn", "starlette")),
    Server("e", "no graph: the model alone, written to a socket", _python("floor")),
    Server(
        "f",
        "d on Granian",
        (*GRANIAN, "tests.bench.peers.starlette:app"),
        ("granian", "starlette"),
    ),
    Server(
        "g",
        "LangGraph's own server, `langgraph dev`",
        (*LANGGRAPH, *LANGGRAPH_OPTIONS),
        ("langgraph_cli", "langgraph_api"),
        wire=PLATFORM,
        ready="/ok",
        most=100,
    ),
    Server(
        "h",
        "ag-ui-langgraph on FastAPI",
        _uvicorn("h:app"),
        ("uvicorn", "fastapi", "ag_ui_langgraph"),
        wire=AG_UI,
    ),
    Server("ours", "app.py, as requirements.txt installs it", _ours(PLAIN), ready="/", ours=True),
    Server("ours+", "app.py, and uvloop", _ours(sys.executable), ("uvloop",), ready="/", ours=True),
    Server("redis", "ours, its runs in Redis", _ours(PLAIN), ("redis",), ours=True, redis=True),
    Server("0.1", "app.py of version 0.1", _ours(PLAIN, OLD), ready="/", ours=True),
)


def make_old() -> None:
    """Unpack version 0.1, if the repository has it."""
    if OLD.exists():
        return
    with tempfile.TemporaryFile() as packed:
        if not subprocess.run(
            ("git", "archive", OLD_COMMIT), cwd=ROOT, stdout=packed, stderr=subprocess.DEVNULL
        ).returncode:
            packed.seek(0)
            OLD.mkdir()
            subprocess.run(("tar", "x"), cwd=OLD, stdin=packed, check=True)


def make_plain() -> None:
    """Make an environment with what requirements.txt installs, in the versions that we have.

    And with redis, which nothing imports where no REDIS_URL is set.
    """
    required, known = ROOT / "requirements.txt", PLAIN.parents[1] / "versions.txt"
    pip = (sys.executable, "-m", "pip")
    versions = subprocess.check_output([*pip, "freeze"], text=True)
    if known.exists() and known.read_text() == versions:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", PLAIN.parents[1]], check=True)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(versions)
        file.flush()
        install = ("--python", PLAIN, "install", "-q", "-r", required, "redis[hiredis]")
        subprocess.run([*pip, *install, "-c", file.name], check=True)
    known.write_text(versions)


class Process:
    """A running server, alone on its core."""

    def __init__(
        self, server: Server, process: subprocess.Popen[bytes], began: float, started_s: float
    ) -> None:
        self.server = server
        self._process = process
        self.began = began
        self.started_s = started_s
        """From the start of the process to its first 200."""

    def cpu_us(self) -> float:
        """Return the processor time that it has used, in user and system mode.

        It is utime + stime of ``/proc/PID/stat``, in nanoseconds instead of hundredths of a
        second. Source: Linux, "clock_getcpuclockid(3)"; the id is that of the process's clock.
        """
        return 1e6 * sum(time.clock_gettime(~pid << 3 | 2) for pid in self._pids())

    def resident_kib(self) -> int:
        statuses = [Path(f"/proc/{pid}/status").read_text() for pid in self._pids()]
        return sum(int(status.split("VmRSS:")[1].split()[0]) for status in statuses)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def _pids(self) -> list[int]:
        """Return the process and its children: Granian serves in one of those."""
        pids = [self._process.pid]
        for pid in pids:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                pids += map(int, task.read_text().split())
        return pids


@contextmanager
def running(server: Server, model: str = "scripted") -> Iterator[Process]:
    """Start the server on its core, wait until it answers, and kill it behind the block.

    ``model`` is the scripted one, ``upstream`` for ChatOpenAI, or ``demo``: for our server that is
    its built-in agent, so that it is started as anybody starts it.
    """
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environ |= {"PYTHONPATH": str(ROOT)}
    if server.ours:
        # These limits would refuse what the peers cannot refuse.
        environ |= {"MAX_RUNS": "100000", "PORT": str(PORT)}
        environ |= {
            "scripted": {"AGENT": "tests.bench.graph:graph"},
            "upstream": {"OPENAI_BASE_URL": UPSTREAM, "OPENAI_MODEL": "bench"},
            "demo": {"DEMO_TOKENS_PER_S": "0"},
        }[model]
        environ |= {"REDIS_URL": REDIS_URL} if server.redis else {}
    elif model == "upstream":
        environ |= {"BENCH_UPSTREAM": UPSTREAM}
    ends = time.monotonic() + START_S
    while listens(PORT):  # A child of the server before may take a moment to end.
        if time.monotonic() > ends:
            raise RuntimeError(f"another server is at port {PORT}")
        time.sleep(0.01)  # Nothing else tells.
    with ExitStack() as stack:
        if server.redis:
            stack.enter_context(running_redis())
        process, log = stack.enter_context(spawned(server.command, CORES[0], environ))
        began = time.perf_counter()
        while not answers(f"http://127.0.0.1:{PORT}{server.ready}"):
            if process.poll() is not None or time.perf_counter() - began > START_S:
                raise RuntimeError(f"{server.name} did not start:\n{log()}")
            time.sleep(0.002)  # Nothing else tells, and its time to the first answer counts.
        try:
            yield Process(server, process, began, time.perf_counter() - began)
        except Exception as error:
            error.add_note(f"{server.name} had said:\n{log()[-2000:]}")
            raise


@contextmanager
def running_upstream() -> Iterator[None]:
    command = (sys.executable, "-m", "tests.bench.upstream", str(UPSTREAM_PORT))
    with spawned(command, CORES[1], {**os.environ, "PYTHONPATH": str(ROOT)}):
        wait_for(UPSTREAM_PORT)
        yield


@contextmanager
def running_redis() -> Iterator[None]:
    command = ("redis-server", "--port", str(REDIS_PORT), "--bind", "127.0.0.1", "--save", "")
    with spawned(command, CORES[1], dict(os.environ)):
        wait_for(REDIS_PORT)
        yield


def wait_for(port: int) -> None:
    while not listens(port):
        time.sleep(0.01)  # Nothing else tells.


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def spawned(
    command: tuple[str, ...], core: int, environ: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """Run a command on one core, in an empty folder; what it says is kept for when it fails."""
    pinned = ("taskset", "--cpu-list", str(core), *command)
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            pinned,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

        def said() -> str:
            log.seek(0)
            return log.read().decode(errors="replace")

        try:
            yield process, said
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
