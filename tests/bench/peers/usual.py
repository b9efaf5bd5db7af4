"""What most articles show: FastAPI, sse-starlette, ``astream_events`` version 2; under uvicorn."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from langchain_core.messages import HumanMessage
from pydantic import BaseModel
from sse_starlette.sse import EventSourceResponse

from tests.bench.graph import graph

app = FastAPI()


class ChatRequest(BaseModel):
    message: str


@dataclass
class StreamEvent:
    type: str
    content: str | None = None
    message_id: str | None = None
    tool: str | None = None
    input: dict[str, Any] | None = None
    result: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = {"type": self.type}
        if self.content is not None:
            data["content"] = self.content
        if self.message_id is not None:
            data["message_id"] = self.message_id
        if self.tool is not None:
            data["tool"] = self.tool
        if self.input is not None:
            data["input"] = self.input
        if self.result is not None:
            data["result"] = self.result
        return data


async def stream(message: str) -> AsyncGenerator[StreamEvent, None]:
    initial_state = {"messages": [HumanMessage(content=message)]}
    async for event in graph.astream_events(initial_state, version="v2"):
        event_type = event.get("event")
        event_name = event.get("name", "")
        event_data = event.get("data", {})
        if event_type == "on_chat_model_stream":
            chunk = event_data.get("chunk")
            if chunk and hasattr(chunk, "content") and chunk.content:
                yield StreamEvent("text_delta", content=chunk.content, message_id=chunk.id)
        elif event_type == "on_tool_start":
            yield StreamEvent("tool_call", tool=event_name, input=event_data.get("input", {}))
        elif event_type == "on_tool_end":
            result = {"content": str(event_data.get("output", ""))}
            yield StreamEvent("tool_result", tool=event_name, result=result)
        elif event_type == "on_chain_end" and event_name == "LangGraph":
            answer = event_data["output"]["messages"][-1]
            yield StreamEvent("final_answer", content=answer.text, message_id=answer.id)


@app.post("/api/chat")
async def chat(request: ChatRequest) -> EventSourceResponse:
    async def event_generator() -> AsyncGenerator[dict[str, Any], None]:
        yield {"event": "start", "data": json.dumps({"type": "start"})}
        async for event in stream(request.message):
            yield {"event": event.type, "data": json.dumps(event.to_dict(), ensure_ascii=False)}
        yield {"event": "done", "data": json.dumps({"type": "done"})}

    return EventSourceResponse(event_generator(), media_type="text/event-stream")


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}
