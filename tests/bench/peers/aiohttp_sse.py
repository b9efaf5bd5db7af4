"""aiohttp with aiohttp-sse, and LangGraph's stream modes."""

from __future__ import annotations

import json
import sys

from aiohttp import web
from aiohttp_sse import EventSourceResponse, sse_response

from tests.bench.peers.events import stream


async def chat(request: web.Request) -> EventSourceResponse:
    message = (await request.json())["message"]
    async with sse_response(request, allow_all_methods=True) as response:
        async for event in stream(message):
            await response.send(json.dumps(event, ensure_ascii=False), event=event["type"])
    return response


async def healthz(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


if __name__ == "__main__":
    app = web.Application()
    app.router.add_post("/api/chat", chat)
    app.router.add_get("/healthz", healthz)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]))
