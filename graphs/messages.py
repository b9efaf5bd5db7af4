"""What LangChain's messages hold, in one form: text, reasoning, tool calls, results, as JSON.

Providers differ in all of it. Nothing in here knows graphs, threads or events.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langgraph.types import Command
from pydantic_core import to_jsonable_python

USAGE = ("input_tokens", "output_tokens", "total_tokens")
"""The counts that a run reports, as LangChain's usage metadata names them."""

Usage = dict[str, int]

QUESTION = "question-"
"""How the ids of users' messages begin: a graph may add messages of the same type."""

STATUS = "closed_as"
"""The key in a tool message's additional_kwargs for the status of a call that a repair closed."""

ENDED = "turn_ended"
"""The key in an AI message's response_metadata that says why its turn did not complete."""

CLOSING = "closes_turn"
"""The key in the response_metadata of an AI message that stands for a missing answer."""


def counts_of(usage: Mapping[str, Any]) -> Usage:
    """Return the counts of LangChain's usage metadata, 0 for a missing one."""
    return {name: usage.get(name) or 0 for name in USAGE}


def usage_of(figures: Sequence[Usage]) -> Usage:
    """Return a model call's usage: some providers send the sum so far, others differences."""
    counts = {name: [each[name] for each in figures] for name in USAGE}
    only_grow = all(each == sorted(each) for each in counts.values())
    return {name: each[-1] if only_grow else sum(each) for name, each in counts.items()}


def calls_of(message: BaseMessage) -> list[dict[str, Any]]:
    """Return a message's tool calls. Providers want a result for those with bad arguments, too."""
    if not isinstance(message, AIMessage):
        return []
    return [dict(call) for call in (*message.tool_calls, *message.invalid_tool_calls)]


def messages_in(written: Any) -> Iterator[BaseMessage]:
    """Yield the messages in what a node or a tool returned, whatever the state's key is."""
    match written:
        case BaseMessage():
            yield written
        case Command():
            yield from messages_in(written.update)
        case dict():
            yield from messages_in([*written.values()])
        case list() | tuple():
            for each in written:
                yield from messages_in(each)


TEXT = ("text", "output_text", "refusal")
REASONING = ("reasoning", "thinking", "reasoning_content")
"""The types of content blocks that are shown."""


def pieces_of(message: AIMessage) -> Iterator[tuple[str, str]]:
    """Yield what a message or chunk shows, as pairs of event type and text.

    Content is a string, or blocks that differ by provider: `content_blocks` of LangChain knows
    only those of the providers that name themselves in the message. Reasoning is a block or, from
    OpenAI-compatible servers, an extra field; a refusal is the answer's text.
    """
    content, extra = message.content, message.additional_kwargs
    if isinstance(content, str) and not extra:  # Nearly every chunk: a token's cost.
        if content:
            yield "text_delta", content
        return
    reasoning = extra.get("reasoning_content") or extra.get("reasoning")
    shown: list[tuple[str, Any]] = [("reasoning", reasoning), ("refusal", extra.get("refusal"))]
    for block in [content] if isinstance(content, str) else content:
        shown.append(("text" if isinstance(block, str) else block.get("type", ""), block))
    for type_, value in shown:
        if type_ in (*TEXT, *REASONING) and (text := _joined(value)):
            yield "text_delta" if type_ in TEXT else "reasoning_delta", text


def _joined(value: Any) -> str:
    """Return the text in a provider's block: a string, a list of pieces, or an object."""
    match value:
        case str():
            return value
        case list():
            return "".join(map(_joined, value))
        case dict():
            keys = (*REASONING, *TEXT, "summary", "content")
            return next(filter(None, (_joined(value.get(key)) for key in keys)), "")
    return ""


def text_of(message: AIMessage) -> str:
    return "".join(text for type_, text in pieces_of(message) if type_ == "text_delta")


NORMAL_STOPS = {
    *("stop", "end_turn", "stop_sequence", "eos", "eos_token", "complete", "completed"),
    *("tool_calls", "tool_use", "function_call", "pause_turn", "refusal", "finish_reason_stop"),
}
LENGTH = {"length", "max_tokens", "max_output_tokens", "model_length"}


def finish_reason(metadata: Mapping[str, Any]) -> str | None:
    """Return why a model stopped, None for a normal stop."""
    names = ("finish_reason", "stop_reason", "done_reason")
    reason = next((metadata[name] for name in names if metadata.get(name)), None)
    match metadata:
        case {"incomplete_details": {"reason": why}}:
            reason = why
    if not isinstance(reason, str) or reason.lower() in NORMAL_STOPS:
        return None
    return "length" if reason.lower() in LENGTH else reason


def result_of(output: Any) -> dict[str, Any]:
    """Return status and result of a tool's output, status and message of a failed one.

    The result is an object; anything else becomes ``{"content": text}``.
    """
    if isinstance(output, ToolMessage):
        if output.status == "error":
            status = output.additional_kwargs.get(STATUS, "error")
            return {"status": status, "message": str(output.text)}
        output = str(output.text) if isinstance(output.content, str) else output.content
    return {"status": "ok", "result": _as_object(output, "content")}


def input_of(given: Any) -> dict[str, Any]:
    """Return a call's arguments as an object; others become ``{"arguments": text}``."""
    given = given.strip() if isinstance(given, str) else given
    return {} if given is None or given == "" else _as_object(given, "arguments")


def _as_object(value: Any, name: str) -> dict[str, Any]:
    """Return the object that a value or its JSON is; any other value under this name, as text."""
    shown = value
    with suppress(ValueError, RecursionError):
        shown = json.loads(value) if isinstance(value, str) else value
    shown = jsonable(shown)
    return shown if isinstance(shown, dict) else {name: as_text(value)}


def whole(text: str) -> str:
    """Join the halves of surrogate pairs; what is left of one has no UTF-8 and is replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def as_text(value: Any) -> str:
    """Return text as itself and anything else as its JSON."""
    return value if isinstance(value, str) else json.dumps(jsonable(value), ensure_ascii=False)


def jsonable(value: Any) -> Any:
    """Return the value as JSON can carry it: models and dates as their fields, NaN as its name."""
    try:
        return json.loads(json.dumps(value, default=_plain), parse_constant=str)
    except (TypeError, ValueError):  # Keys that are no strings, or a cycle.
        return str(value)
    except RecursionError:  # str() would raise it, too.
        return f"<{type(value).__name__}>"


def _plain(value: Any) -> Any:
    return to_jsonable_python(value, fallback=str, bytes_mode="base64")
