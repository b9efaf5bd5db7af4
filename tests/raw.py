"""Readers on bare sockets: they take a stream's bytes as they like, or leave in the middle.

Also what the server's log may hold, and how much memory its process has.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FRAME = re.compile(rb"event: \w+\ndata: (.*)\nid: (\d+)\n\n")

SEED = os.environ.get("CHAOS_SEED", "1")


def seconds(default: float) -> float:
    """How long the random tests go on: ``CHAOS_SECONDS``, else the test's own default."""
    return float(os.environ.get("CHAOS_SECONDS") or default)


def request(method: str, target: str, body: Any = None, **headers: str) -> bytes:
    """The bytes of a request; ``headers`` have _ for -."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "", ""]).encode() + content


class Raw:
    """One connection with one request on it, and what came back so far."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.frames: list[bytes] = []
        self._block = b""
        self._chunk = 0
        self._over = False

    @classmethod
    async def open(cls, url: str, data: bytes, window: int = 0) -> Raw:
        """Connect and send; with ``window`` the kernel takes no more bytes than about that."""
        host, port = url.removeprefix("http://").split(":")
        sock = socket.socket()
        if window:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        raw = cls(*await asyncio.open_connection(sock=sock, limit=window or 2**16))
        raw._writer.write(data)
        return raw

    async def head(self) -> int:
        """Read status and headers, and return the status."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.splitlines()
        self.status = int(first.split()[1])
        self.headers = {
            n.lower(): v for n, _, v in (line.partition(": ") for line in lines if line)
        }
        return self.status

    async def json(self) -> Any:
        """Read a body that has its length told; None where there is none."""
        body = await self._reader.readexactly(int(self.headers.get("content-length", 0)))
        return json.loads(body) if body else None

    @property
    def run_id(self) -> str:
        return self.headers["content-location"].rpartition("/")[2]

    async def read(self, events: float = float("inf"), bytewise: int = 0) -> bool:
        """Read until there are so many frames; True at the stream's proper end.

        ``bytewise`` is how many bytes are taken one by one at first. Raises IncompleteReadError
        or ConnectionError where the stream was cut.
        """
        while not self._over and len(self.frames) < events:
            if not self._chunk:
                self._chunk = int(await self._reader.readuntil(b"\r\n"), 16)
                if not self._chunk:
                    assert await self._reader.readexactly(2) == b"\r\n"
                    assert not self._block, self._block
                    self._over = True
                    break
            data = await self._reader.read(1 if bytewise > 0 else self._chunk)
            if not data:
                raise asyncio.IncompleteReadError(data, self._chunk)
            bytewise -= 1
            self._chunk -= len(data)
            if not self._chunk:
                await self._reader.readexactly(2)
            self._block += data
            *blocks, self._block = self._block.split(b"\n\n")
            for block in blocks:
                if block.startswith(b"event"):
                    self.frames.append(block + b"\n\n")
                    assert FRAME.fullmatch(self.frames[-1]), block
                else:
                    assert block in (b"retry: 2000", b": heartbeat"), block
        return self._over

    async def all(self, after: int = 0) -> list[bytes]:
        """Read to the end, and return the frames, whose ids go on after the cursor."""
        assert await self.head() == 200, (self.status, await self.json())
        await self.read()
        ids = [id_of(frame) for frame in self.frames]
        assert ids == [*range(after + 1, after + 1 + len(ids))]
        return self.frames

    def cut(self) -> None:
        """Leave without a word, as a lost connection does."""
        self._writer.transport.abort()


def id_of(frame: bytes) -> int:
    match = FRAME.fullmatch(frame)
    assert match, frame
    return int(match[2])


def events_of(frames: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(FRAME.fullmatch(frame)[1]) for frame in frames]


@contextmanager
def many_sockets(wanted: int = 8192) -> Iterator[None]:
    """Allow this process and those it starts so many sockets, where the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, allowed), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_kib(pid: int) -> int:
    """VmRSS. Source: Linux, "proc_pid_status(5)"."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def records(log: str) -> list[str]:
    """The log's records, a traceback with the line that it belongs to."""
    return re.split(r"\n(?=\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,)", log.strip("\n"))


FORGOTTEN = "never retrieved", "was destroyed but", "never awaited", "Exception ignored", "Warning:"


def assert_clean(log: str) -> None:
    """Every traceback has its ref, and no task, coroutine or exception was left lying."""
    for record in records(log):
        first = record.partition("\n")[0]
        assert "Traceback" not in record or " ref=" in first, record
        assert not any(words in record for words in FORGOTTEN), record
