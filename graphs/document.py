"""A thread's messages as plain objects, as clients see them: the contract's thread document."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage

from graphs.messages import (
    CLOSING,
    ENDED,
    QUESTION,
    calls_of,
    counts_of,
    input_of,
    pieces_of,
    result_of,
    text_of,
)


def document(history: Sequence[AnyMessage]) -> list[dict[str, Any]]:
    """Return a thread's messages as plain objects, as the contract's thread document has them.

    A call has the id that it had in the events: a ``+`` for each earlier call of its turn to which
    the model gave the same id.
    """
    shown = []
    counts: Counter[str] = Counter()
    waiting: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    """The calls that have no result yet, by the id that the model gave them."""
    for message in history:
        if (message.id or "").startswith(QUESTION):
            counts.clear()
        calls = []
        for asked in calls_of(message):
            id_, given = asked["id"], input_of(asked["args"])
            wire_id = id_ and id_ + counts[id_] * "+"
            calls.append({"tool_call_id": wire_id, "tool": asked["name"], "input": given})
            counts[id_] += 1
            waiting[id_].append(calls[-1])
        match message:
            case HumanMessage():
                found = {"role": "user", "id": message.id, "content": str(message.text)}
            case AIMessage():
                found = _assistant(message, calls)
            case ToolMessage(tool_call_id=id_):
                call = waiting[id_].pop(0) if waiting[id_] else {}
                about = {"tool": call.get("tool") or message.name or ""}
                about["tool_call_id"] = call.get("tool_call_id", id_)
                found = {"role": "tool", **about, **result_of(message)}
            case _:
                continue
        shown.append({key: value for key, value in found.items() if value is not None})
    return shown


def _assistant(message: AIMessage, calls: list[dict[str, Any]]) -> dict[str, Any]:
    metadata, usage = message.response_metadata, message.usage_metadata
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
