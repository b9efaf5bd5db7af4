"""The load: streams on plain sockets, counted as they come and checked when they have ended."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from tests.bench.servers import PORT
from tests.bench.upstream import answer_of

FIRST, TOKEN, DONE = b"event: start", b"event: text_delta", b"event: done"


class Wrong(Exception):
    """A server's answer is not what was asked for, so the measurement is void."""


class Stream(asyncio.Protocol):
    """One request and its answer, with the times of its first event and token."""

    def __init__(self, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.asked = time.perf_counter()
        self.first_event: float | None = None
        self.first_token: float | None = None
        self.begun: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._request = request
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self.first_event is None and FIRST in self._received:
            self.first_event = time.perf_counter()
        if self.first_token is None and TOKEN in self._received:
            self.first_token = time.perf_counter()
            self.begun.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.begun.done():
            self.begun.set_result(None)
        self.ended.set_result(None)

    def cut(self) -> None:
        if self._transport:
            self._transport.abort()

    def header(self, name: str) -> str:
        head = self._received.partition(b"\r\n\r\n")[0].decode()
        return head.split(f"\r\n{name}: ")[1].split("\r\n")[0]

    def body(self) -> bytes:
        """Return the body of the answer, taken out of its chunks."""
        head, _, rest = bytes(self._received).partition(b"\r\n\r\n")
        if b"chunked" not in head.lower():
            return rest
        pieces, at = [], 0
        while at < len(rest):
            end = rest.index(b"\r\n", at)
            size = int(rest[at:end], 16)
            pieces.append(rest[end + 2 : end + 2 + size])
            at = end + 4 + size
        return b"".join(pieces)

    def check(self, tokens: int) -> None:
        """Raise Wrong unless every token came once and in order, and ``done`` behind them."""
        lines = self.body().decode().replace("\r\n", "\n").split("\n")
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
        deltas = [event for event in events if event["type"] == "text_delta"]
        text = "".join(event["content"] for event in deltas)
        last = events[-1]["type"] if events else None
        if len(deltas) != tokens or text != answer_of(tokens) or last != "done":
            raise Wrong(f"{len(deltas)} of {tokens} tokens, then {last}: {self._received[-300:]!r}")
        if not all(event["message_id"] for event in deltas):
            raise Wrong("a delta has no message_id")


def post(script: dict[str, Any], *headers: str) -> bytes:
    """Return the request that starts a run of this script."""
    body = json.dumps({"message": json.dumps(script)})
    head = (
        "POST /api/chat HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    )
    return ("\r\n".join(head) + "\r\n\r\n" + body).encode()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()


async def start(request: bytes, count: int = 1) -> list[Stream]:
    """Send the request on so many connections at once."""
    loop = asyncio.get_running_loop()
    made = (
        loop.create_connection(lambda: Stream(request), "127.0.0.1", PORT) for _ in range(count)
    )
    return [stream for _, stream in await asyncio.gather(*made)]


async def whole(request: bytes, count: int, tokens: int) -> list[Stream]:
    """Send the request on so many connections, read each answer to its end and check it."""
    streams = await start(request, count)
    await asyncio.gather(*(stream.ended for stream in streams))
    for stream in streams:
        stream.check(tokens)
    return streams
