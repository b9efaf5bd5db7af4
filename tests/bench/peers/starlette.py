"""The leanest: Starlette's StreamingResponse and frames made by hand, under uvicorn."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from tests.bench.peers.events import stream


async def frames(message: str) -> AsyncIterator[str]:
    async for event in stream(message):
        yield f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"


async def chat(request: Request) -> StreamingResponse:
    message = (await request.json())["message"]
    return StreamingResponse(frames(message), media_type="text/event-stream")


async def healthz(request: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


app = Starlette(
    routes=[Route("/api/chat", chat, methods=["POST"]), Route("/healthz", healthz)],
)
