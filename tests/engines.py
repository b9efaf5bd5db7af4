"""Redis and PostgreSQL, from the system's packages, on free ports: stopped, frozen and started."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Self

import psycopg
from redis import Redis
from redis.exceptions import RedisError

from tests.programs import require

PATIENCE_S = 20


def free_ports(number: int) -> list[int]:
    """Return ports that nobody listens at, no two of them the same."""
    with ExitStack() as all_at_once:
        opened = (socket.create_server(("127.0.0.1", 0)) for _ in range(number))
        return [all_at_once.enter_context(each).getsockname()[1] for each in opened]


def free_port() -> int:
    return free_ports(1)[0]


class RedisServer:
    """A Redis. A ``cluster`` of one node refuses commands with keys of two hash tags; a
    ``durable`` one still has its keys when it is started again."""

    def __init__(self, folder: Path, cluster: bool = False, durable: bool = False) -> None:
        self._program = require("redis-server")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._folder = folder
        self._cluster = cluster
        self._options = ["--appendonly", "yes" if durable else "no", "--appendfsync", "always"]
        self._options += ["--cluster-enabled", "yes" if cluster else "no"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
                + ["--dir", str(self._folder), *self._options],
                stdout=log,
                stderr=log,
            )
        self._until(lambda client: client.ping())
        if self._cluster:
            with self.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            self._until(lambda client: client.set("ready", "", px=1))

    def _until(self, answers: Callable[[Any], Any]) -> None:
        ends = time.monotonic() + PATIENCE_S
        while True:
            with suppress(RedisError), self.client() as client:
                if answers(client):
                    return
            assert time.monotonic() < ends, (self._folder / "redis.log").read_text()
            time.sleep(0.01)  # Redis does not tell when it is ready.

    def client(self) -> Any:
        return Redis.from_url(self.url, socket_timeout=5, retry=None)

    def freeze(self) -> None:
        """Keep every connection open and reply to nothing, until it thaws."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


class Postgres:
    """A PostgreSQL with its data in a folder of its own, until `remove`."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        self._bin = Path(require("pg_ctl", *(str(path / "pg_ctl") for path in found))).parent
        # Not one of pytest's folders, which are their owner's alone.
        self._folder = Path(mkdtemp(prefix="postgres-"))
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # It refuses to run as root.
            self._as = {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(self._folder, "postgres", "postgres")
        self._running = False
        self._run("initdb", "-A", "trust", "-U", "postgres", "--no-sync")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._bin / program), "-D", str(self._folder / "data"), *arguments],
            check=True,
            capture_output=True,
            cwd="/",
            timeout=60,
            **self._as,
        )

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k '' -c fsync=off"
        log = str(self._folder / "log")
        if not self._running:
            self._run("pg_ctl", "-w", "-l", log, "-o", options, "start")
        self._running = True

    def freeze(self) -> None:
        """Keep every connection open and reply to nothing, until it thaws."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        server = (self._folder / "data/postmaster.pid").read_text().split()[0]
        os.kill(int(server), number)  # It starts no further processes while it is frozen.
        for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split():
            with suppress(ProcessLookupError):  # One of its workers has just ended.
                os.kill(int(pid), number)

    def stop(self) -> None:
        if self._running:
            self._run("pg_ctl", "-w", "-m", "immediate", "stop")
        self._running = False

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder)


class Relay:
    """A proxy before Redis. While it is closed, connections stay open and nothing passes."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.open = asyncio.Event()
        self.open.set()
        self.loses_reply_to: bytes | None = None
        """What Redis still gets, before the connection breaks and the reply is lost, once."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.open.set()
        self._server.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)

        async def there() -> None:
            with closing(far_writer):
                while data := await reader.read(65536):
                    await self.open.wait()
                    if self.loses_reply_to and self.loses_reply_to in data:
                        self.loses_reply_to = None
                        writer.transport.abort()
                    far_writer.write(data)

        async def back() -> None:
            with closing(writer):
                while data := await far_reader.read(65536):
                    await self.open.wait()
                    writer.write(data)

        await asyncio.gather(there(), back(), return_exceptions=True)


async def until_saved(url: str, thread_id: str) -> None:
    """Poll the database until the thread has the question of its first turn in its state.

    The thread document has a running question earlier.
    """
    count = f"SELECT count(*) FROM checkpoints WHERE thread_id = '{thread_id}'"
    connection: Any
    if file := re.match("sqlite:///(.*)", url):
        connection = sqlite3.connect(file[1])
    else:
        connection = psycopg.connect(url, autocommit=True)
    with closing(connection):
        async with asyncio.timeout(PATIENCE_S):
            # The first checkpoint has the input, the second one the state.
            while connection.execute(count).fetchone()[0] < 2:
                await asyncio.sleep(0.02)
