"""From LangGraph's stream modes to events, for the peers that do not use ``astream_events``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from langchain_core.messages import AIMessageChunk, HumanMessage

from tests.bench.graph import graph


async def stream(message: str) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the events of a run, from its start to its end."""
    yield {"type": "start"}
    answer = None
    async for mode, data in graph.astream(
        {"messages": [HumanMessage(message)]}, stream_mode=["messages", "tools", "updates"]
    ):
        if mode == "messages":
            chunk = data[0]
            if isinstance(chunk, AIMessageChunk) and chunk.content:
                yield {"type": "text_delta", "content": chunk.content, "message_id": chunk.id}
        elif mode == "updates":
            answer = data["model"]["messages"][-1] if "model" in data else answer
        elif data["event"] == "tool-started":
            yield {"type": "tool_call", "tool": data["tool_name"], "input": data["input"]}
        elif data["event"] == "tool-finished":
            yield {"type": "tool_result", "result": {"content": str(data["output"])}}
    if answer is not None:
        yield {"type": "final_answer", "content": answer.text, "message_id": answer.id}
    yield {"type": "done"}
