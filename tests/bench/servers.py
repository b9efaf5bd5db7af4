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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLAIN = Path(__file__).resolve().parent / ".venv" / "bin" / "python"
"""The interpreter of an environment that has ``requirements.txt`` alone."""

CORES = sorted(os.sched_getaffinity(0))[:2]
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
    ours: bool = False
    redis: bool = False
    """Whether its runs are in Redis, which runs on the core of the load."""


def _uvicorn(module: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "uvicorn", f"tests.bench.peers.{module}:app", f"--port={PORT}")


def _python(module: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"tests.bench.peers.{module}", str(PORT))


def _ours(python: str) -> tuple[str, ...]:
    return (python, "app.py", f"--port={PORT}")


SERVERS = (
    Server("a", "FastAPI, sse-starlette, astream_events", _uvicorn("usual")),
    Server("b", "FastAPI, fastapi.sse, stream modes", _uvicorn("fastapi_sse")),
    Server("c", "aiohttp-sse, stream modes", _python("aiohttp_sse")),
    Server("d", "Starlette, frames by hand, stream modes", _uvicorn("starlette")),
    Server("e", "the model alone, on a socket", _python("floor")),
    Server("ours", "app.py, as requirements.txt installs it", _ours(str(PLAIN)), ours=True),
    Server("ours+", "app.py, and uvloop", _ours(sys.executable), ours=True),
    Server("redis", "app.py, its runs in Redis", _ours(str(PLAIN)), ours=True, redis=True),
)


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

    def __init__(self, server: Server, process: subprocess.Popen[bytes], started_s: float) -> None:
        self.server = server
        self._process = process
        self.started_s = started_s
        """From the start of the process to its first 200."""

    def cpu_us(self) -> float:
        """Return the processor time that the process has used, in user and system mode.

        It is utime + stime of ``/proc/PID/stat``, in nanoseconds instead of hundredths of a
        second. Source: Linux, "clock_getcpuclockid(3)"; the id is that of the process's clock.
        """
        assert not self.children(), "a server is one process"
        return 1e6 * time.clock_gettime(~self._process.pid << 3 | 2)

    def children(self) -> str:
        tasks = Path(f"/proc/{self._process.pid}/task").glob("*/children")
        return "".join(task.read_text() for task in tasks)

    def resident_kib(self) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])


@contextmanager
def running(server: Server, upstream: bool = False) -> Iterator[Process]:
    """Start the server on its core, wait until it answers, and kill it behind the block."""
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environ |= {"PYTHONPATH": str(ROOT)}
    if server.ours:
        # These limits would refuse what the peers cannot refuse.
        environ |= {"MAX_RUNS": "100000"}
        model = {"OPENAI_BASE_URL": UPSTREAM, "OPENAI_MODEL": "bench"}
        environ |= model if upstream else {"AGENT": "tests.bench.graph:graph"}
        environ |= {"REDIS_URL": REDIS_URL} if server.redis else {}
    elif upstream:
        environ |= {"BENCH_UPSTREAM": UPSTREAM}
    with ExitStack() as stack:
        if server.redis:
            stack.enter_context(running_redis())
        process, log = stack.enter_context(spawned(server.command, CORES[0], environ))
        began = time.monotonic()
        while not answers(f"http://127.0.0.1:{PORT}/healthz"):
            if process.poll() is not None or time.monotonic() - began > START_S:
                raise RuntimeError(f"{server.name} did not start:\n{log()}")
            time.sleep(0.005)  # Nothing else tells, and its time to the first answer counts.
        try:
            yield Process(server, process, time.monotonic() - began)
        except Exception as error:
            error.add_note(f"{server.name} had said:\n{log()[-2000:]}")
            raise


@contextmanager
def running_upstream() -> Iterator[None]:
    command = (sys.executable, "-m", "tests.bench.upstream", str(UPSTREAM_PORT))
    with spawned(command, CORES[1], dict(os.environ)):
        wait_for(UPSTREAM_PORT)
        yield


@contextmanager
def running_redis() -> Iterator[None]:
    command = ("redis-server", "--port", str(REDIS_PORT), "--bind", "127.0.0.1", "--save", "")
    with spawned(command, CORES[1], dict(os.environ)):
        wait_for(REDIS_PORT)
        yield


def wait_for(port: int) -> None:
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.01)  # Nothing else tells.


@contextmanager
def spawned(
    command: tuple[str, ...], core: int, environ: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """Run a command on one core; what it says is kept for when it fails."""
    pinned = ("taskset", "--cpu-list", str(core), *command)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            pinned, cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )

        def said() -> str:
            log.seek(0)
            return log.read().decode(errors="replace")

        try:
            yield process, said
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
