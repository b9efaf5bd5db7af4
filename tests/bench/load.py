"""The load: streams on plain sockets, counted as they come and checked when they have ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from tests.bench.servers import PORT
from tests.bench.upstream import answer_of
from tests.bench.wires import OURS, Wire


class Wrong(Exception):
    """A server's answer is not what was asked for, so the measurement is void."""


class Stream(asyncio.Protocol):
    """One request and its answer, with the times of its first event and token."""

    def __init__(self, wire: Wire, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.asked = time.perf_counter()
        self.sent = 0.0
        self.first_event: float | None = None
        self.first_token: float | None = None
        self.begun: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._wire = wire
        self._request = request
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.sent = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self.first_event is None and self._wire.first in self._received:
            self.first_event = time.perf_counter()
        if self.first_token is None and self._wire.token in self._received:
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
        """Raise Wrong unless every token came once and in order, and the stream's end behind."""
        texts, ended = self._wire.answer(self.body())
        if len(texts) != tokens or "".join(texts) != answer_of(tokens) or not ended:
            raise Wrong(f"{len(texts)} of {tokens} tokens, {ended=}: {self._received[-300:]!r}")


async def start(requests: Sequence[bytes], wire: Wire = OURS) -> list[Stream]:
    """Send each request on a connection of its own, all at once."""
    loop = asyncio.get_running_loop()
    made = (
        loop.create_connection(lambda request=request: Stream(wire, request), "127.0.0.1", PORT)
        for request in requests
    )
    return [stream for _, stream in await asyncio.gather(*made)]


async def whole(requests: Sequence[bytes], tokens: int, wire: Wire = OURS) -> list[Stream]:
    """Send the requests at once, read each answer to its end and check it."""
    streams = await start(requests, wire)
    await asyncio.gather(*(stream.ended for stream in streams))
    for stream in streams:
        stream.check(tokens)
    return streams


async def run(wire: Wire, script: dict[str, Any], count: int = 1) -> list[Stream]:
    """Run the script so many times at once, to the end."""
    return await whole([wire.ask(script) for _ in range(count)], script["tokens"], wire)
