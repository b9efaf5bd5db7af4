"""The floor: the model's own stream, written to a socket; no graph, no framework."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from langchain_core.messages import HumanMessage

from tests.bench.graph import make_model

model = make_model()


def frame(**event: Any) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    if head.startswith(b"POST"):
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        message = json.loads(await reader.readexactly(length))["message"]
        writer.write(frame(type="start"))
        text = []
        async for chunk in model.astream([HumanMessage(message)]):
            if chunk.content:
                text.append(str(chunk.content))
                writer.write(frame(type="text_delta", content=chunk.content, message_id=chunk.id))
                await writer.drain()
        writer.write(frame(type="final_answer", content="".join(text)))
        writer.write(frame(type="done"))
    writer.close()


async def main(port: int) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
