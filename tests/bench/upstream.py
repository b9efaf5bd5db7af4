"""An OpenAI-compatible server that streams what the last message asks for, on asyncio alone.

The script itself stands here, so that the upstream imports nothing of LangChain's.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from itertools import cycle, islice
from typing import Any

PIECES = ("The ", "log ", "grows", ", ", "and ", "読み手", "は", "進む", "。", "\n")


def answer_of(tokens: int) -> str:
    """Return the whole text that this many tokens make."""
    return "".join(islice(cycle(PIECES), tokens))


async def pace(script: dict[str, Any]) -> AsyncIterator[str]:
    """Yield the tokens of a script as it says, and let others run before each."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(script.get("after_s", 0))
    start, per_s = loop.time(), script.get("per_s", 0)
    for number, piece in enumerate(islice(cycle(PIECES), script["tokens"])):
        # Against a schedule, so that a late token does not slow the whole.
        due = start + number / per_s if per_s else start
        await asyncio.sleep(max(0, due - loop.time()))
        yield piece
    if script.get("hold"):
        await asyncio.Event().wait()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    data = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "bench",
        "choices": choices,
    }
    return in_chunk(f"data: {json.dumps(data)}\n\n".encode())


def in_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


CHUNKS = {piece: chunk({"content": piece}) for piece in PIECES}
LAST = chunk({}, "stop") + in_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            body = json.loads(await reader.readexactly(length))
            content = body["messages"][-1]["content"]
            writer.write(HEAD + chunk({"role": "assistant", "content": ""}))
            async for piece in pace(json.loads(content)):
                writer.write(CHUNKS[piece])
                await writer.drain()
            writer.write(LAST)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main(port: int) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
