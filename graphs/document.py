"""A thread's messages as plain objects, as clients see them: the contract's thread document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage

from graphs.messages import (
    CLOSING,
    ENDED,
    calls_of,
    counts_of,
    input_of,
    pieces_of,
    result_of,
    text_of,
)


def document(history: Sequence[AnyMessage]) -> list[dict[str, Any]]:
    """Return a thread's messages as plain objects, as the contract's thread document has them."""
    shown = []
    tools: dict[str, str] = {}
    for message in history:
        # An id may come again in a later turn, for another tool.
        tools.update((call["id"], call["name"]) for call in calls_of(message))
        match message:
            case HumanMessage():
                found = {"role": "user", "id": message.id, "content": str(message.text)}
            case AIMessage():
                found = _assistant(message)
            case ToolMessage(tool_call_id=id_):
                tool = tools.get(id_) or message.name or ""
                found = {"role": "tool", "tool": tool, "tool_call_id": id_, **result_of(message)}
            case _:
                continue
        shown.append({key: value for key, value in found.items() if value is not None})
    return shown


def _assistant(message: AIMessage) -> dict[str, Any]:
    metadata, usage = message.response_metadata, message.usage_metadata
    calls = [
        {"tool_call_id": call["id"], "tool": call["name"], "input": input_of(call["args"])}
        for call in calls_of(message)
    ]
    reasoning = [text for type_, text in pieces_of(message) if type_ == "reasoning_delta"]
    return {
        "role": "assistant",
        "id": message.id,
        "content": "" if metadata.get(CLOSING) else text_of(message),
        "tool_calls": calls or None,
        "reasoning": "".join(reasoning) or None,
        "usage": counts_of(usage) if usage else None,
        "ended": metadata.get(ENDED, {}).get("reason"),
        "error": metadata.get(ENDED, {}).get("error"),
    }
