"""FastAPI's own Server-Sent Events, with LangGraph's stream modes, under uvicorn."""

from __future__ import annotations

from collections.abc import AsyncIterable

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from tests.bench.peers.events import stream

app = FastAPI()


class ChatRequest(BaseModel):
    message: str


@app.post("/api/chat", response_class=EventSourceResponse)
async def chat(request: ChatRequest) -> AsyncIterable[ServerSentEvent]:
    async for event in stream(request.message):
        yield ServerSentEvent(data=event, event=event["type"])


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}
