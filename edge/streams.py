"""Streams: a response that follows a run's log, with heartbeats and a time-out for each write."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.http import StreamWriter

from edge.requests import SETTINGS
from events import HEARTBEAT, RETRY

if TYPE_CHECKING:
    from runs.run import AnyRun

WRITE_BYTES = 16_384
"""The size of one write. A reader must take each within SEND_TIMEOUT_S: see the contract."""

WRITE_EVERY_S = 1 / 60
BURST_S = 20 * WRITE_EVERY_S
"""A token bucket for each reader: twenty writes at once, then one for each frame of a screen. What
a fast model makes in between goes out in one write (write coalescing)."""

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    # nginx would otherwise collect the stream before it passes it on.
    "X-Accel-Buffering": "no",
}

logger = logging.getLogger("chat")


def run_headers(run: AnyRun) -> dict[str, str]:
    url = f"/api/runs/{run.id}"
    return {"Location": f"{url}/events", "Content-Location": url}


async def follow(
    request: web.Request,
    turn: Sequence[AnyRun],
    after: int,
    convert: Callable[[bytes], bytes] = bytes,
    headers: Mapping[str, str] | None = None,
) -> web.StreamResponse:
    """Send the frames after the cursor, then each as it comes, to the end of the turn's last run.

    A turn's earlier runs have ended. ``convert`` turns our frames into a dialect's.

    Source: WHATWG HTML, "Server-sent events".
    """
    settings, loop, run = request.app[SETTINGS], asyncio.get_running_loop(), turn[-1]
    if run.log.closed and after == run.log.last_id:
        return web.Response(status=204)
    response = web.StreamResponse(headers={**HEADERS, **run_headers(run), **(headers or {})})
    if request.version < (1, 1):  # Nothing but the connection's end marks the stream's end.
        response.force_close()
    # The head goes out with the first frames: one write less, 5 % of the time to the first event.
    response._send_headers_immediately = False
    run.join()
    try:
        writer = await response.prepare(request)
        assert isinstance(writer, StreamWriter)
        hold_little(request.transport)
        block, due = RETRY, 0.0
        for log in [each.log for each in turn]:
            while True:
                frames, after = log.read(after, WRITE_BYTES)
                if block or frames:
                    await send(request, writer, block + convert(frames), settings.send_timeout_s)
                    block, now = b"", loop.time()
                    due = max(due, now - BURST_S) + WRITE_EVERY_S
                    if due > now and after == log.last_id and not log.closed:
                        await asyncio.sleep(due - now)
                elif log.closed:
                    break
                elif not await log.wait(after, settings.heartbeat_s):
                    block = HEARTBEAT
            after = 0
        async with asyncio.timeout(settings.send_timeout_s):
            await response.write_eof()
    except (TimeoutError, ConnectionError):  # Unavailable is one, too: Redis is away.
        logger.debug("run=%s lost a reader", run.id)
        if request.transport:
            request.transport.abort()
    finally:
        run.leave()
    return response


def hold_little(transport: asyncio.Transport | None) -> None:
    """Keep at most about WRITE_BYTES of a slow reader in the socket; the rest stays in the log.

    By default Linux buffers up to 3.9 MB before a write blocks. With a write buffer of 0 bytes,
    aiohttp pauses writing until the kernel has taken everything.
    """
    if transport is None:
        return
    transport.set_write_buffer_limits(0)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Windows has no such option.
        with suppress(OSError):  # macOS refuses it once the reader is gone.
            transport.get_extra_info("socket").setsockopt(
                socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, WRITE_BYTES
            )


async def send(request: web.Request, writer: StreamWriter, data: bytes, timeout_s: float) -> None:
    """Write in pieces, and wait until the kernel has taken each.

    Raises TimeoutError if the reader does not take a piece in time, ConnectionError if it is gone.
    """
    for start in range(0, len(data), WRITE_BYTES):
        await writer.write(data[start : start + WRITE_BYTES], drain=False)
        if request.protocol.writing_paused:
            async with asyncio.timeout(timeout_s):
                await writer.drain()
