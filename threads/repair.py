"""Repair a thread so that its next turn works, and rewind it.

Every model provider refuses a history in which a tool call has no result, and some refuse two
user messages in a row, or a user message right after a tool message. A run that is stopped or fails
leaves such histories behind. `settle` repairs them. Nothing in here knows events or runs.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from operator import is_not
from typing import Any, cast
from uuid import uuid4

from langchain_core.messages import AIMessage, AnyMessage, ToolMessage, convert_to_messages
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START
from langgraph.types import Overwrite, StateSnapshot

from graphs.load import Graph
from graphs.messages import CLOSING, ENDED, STATUS, calls_of, pieces_of

LEFT_OPEN = {
    "interrupted": "The run waits for a person; the tool starts again when the run goes on.",
    "cancelled": "The run ended before the tool did.",
    "error": "The model's arguments are not a JSON object, so the tool did not start.",
}
"""The message of a call that had no result when the run ended, by the call's status."""

NO_ANSWER = "…"
"""The text of the message that closes a turn without an answer: providers refuse an empty text."""


def config_of(thread: str) -> RunnableConfig:
    """Return the config of a thread."""
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}


def history_of(state: StateSnapshot | None) -> list[AnyMessage]:
    """Return the thread's messages, oldest first."""
    saved = state.values.get("messages") if state else None
    return cast(list[AnyMessage], convert_to_messages(saved or []))


def waits(graph: Graph, state: StateSnapshot) -> bool:
    """Whether the thread waits for a person: at an interrupt or at a static breakpoint."""
    breakpoints = [*graph.interrupt_before_nodes, *graph.interrupt_after_nodes]
    return bool(state.next and (state.interrupts or breakpoints))


async def settle(
    graph: Graph,
    config: RunnableConfig,
    unsaved: Callable[[set[str | None]], Sequence[AnyMessage]] = lambda known: (),
    outputs: Mapping[str, ToolMessage] | None = None,
    ended: dict[str, Any] | None = None,
) -> list[AnyMessage]:
    """Leave the thread so that its next turn works, and return its messages.

    The step that the graph would have taken next is dropped. ``unsaved`` is given the ids that the
    thread has, and returns the messages that the user saw and the thread lacks. ``outputs`` is what
    finished tools returned, by tool call id. ``ended`` says why the turn did not complete:
    ``{"reason", "error"}``.
    """
    state = await graph.aget_state(config, subgraphs=True)
    for task in state.tasks:
        # A subgraph with a checkpointer of its own continues from there, so it is settled, too.
        if isinstance(task.state, StateSnapshot) and "messages" in task.state.values:
            namespace = task.state.config["configurable"]["checkpoint_ns"]
            inner = {**config["configurable"], "checkpoint_ns": namespace}
            await settle(graph, {"configurable": inner})
    # Not `next`: it lacks tasks that have ended and whose step has not.
    if state.tasks:
        is_root = not config["configurable"]["checkpoint_ns"]
        if ended is None and is_root and not waits(graph, state):
            # A step is pending and nobody is asked: the process died during the turn.
            ended = {"reason": "shutdown"}
        await graph.aupdate_state(config, None, as_node=END)
        state = await graph.aget_state(config)
    history = history_of(state)
    missing = unsaved({message.id for message in history})
    repaired = repair(history, missing, outputs, ended)
    if len(repaired) != len(history) or any(map(is_not, repaired, history)):
        await write(graph, config, repaired)
    return repaired


async def rewind(graph: Graph, config: RunnableConfig, message_id: str) -> None:
    """Drop a message of a settled thread, and all after it."""
    history = history_of(await graph.aget_state(config))
    await write(graph, config, [*takewhile(lambda message: message.id != message_id, history)])


async def write(graph: Graph, config: RunnableConfig, history: Sequence[AnyMessage]) -> None:
    """Replace the thread's messages, past the graph's reducer and without running a node."""
    node = START
    if not config["configurable"]["checkpoint_ns"]:
        # `aupdate_state` runs the node's conditional edges: START may have some, another node of
        # the root has none. Of a subgraph, `graph.nodes` does not say the nodes.
        branches = getattr(getattr(graph, "builder", None), "branches", {})
        plain = (name for name in graph.nodes if name != START and name not in branches)
        node = next(plain, START)
    await graph.aupdate_state(config, {"messages": Overwrite([*history])}, as_node=node)
    await graph.aupdate_state(config, None, as_node=END)


def repair(
    history: Sequence[AnyMessage],
    missing: Sequence[AnyMessage] = (),
    outputs: Mapping[str, ToolMessage] | None = None,
    ended: dict[str, Any] | None = None,
) -> list[AnyMessage]:
    """Return the history with every call closed and an AI message at its end: see `settle`."""
    questions = [message for message in missing if message.type == "human"]
    answers = [message for message in missing if message.type != "human"]
    repaired = [*close_calls([*history, *questions], outputs), *answers]
    if repaired and is_blank(repaired[-1]):
        repaired.pop()
    if repaired and (repaired[-1].type != "ai" or calls_of(repaired[-1])):
        closing = {CLOSING: True}
        repaired.append(AIMessage(NO_ANSWER, id=str(uuid4()), response_metadata=closing))
    if repaired and ended:
        last = repaired[-1]
        marked = {**last.response_metadata, ENDED: ended}
        repaired[-1] = last.model_copy(update={"response_metadata": marked})
    return repaired


def is_blank(message: AnyMessage) -> bool:
    """Whether an answer has nothing in it: Anthropic refuses a history with blank text."""
    if not isinstance(message, AIMessage) or calls_of(message):
        return False
    return not any(text.strip() for _, text in pieces_of(message))


def unanswered(history: Sequence[AnyMessage]) -> list[dict[str, Any]]:
    """Return the tool calls of the history that have no result."""
    return [call for message, results in _groups(history) for call in _open(message, results)]


def close_calls(
    history: Sequence[AnyMessage], outputs: Mapping[str, ToolMessage] | None = None
) -> Iterator[AnyMessage]:
    """Yield the history with a result for each of its tool calls, right after their message."""
    for message, results in _groups(history):
        message = _sound(message)
        yield message
        yield from results
        for call in _open(message, results):
            yield (outputs or {}).get(call["id"]) or _closing(call)


def _groups(history: Sequence[AnyMessage]) -> Iterator[tuple[AnyMessage, list[AnyMessage]]]:
    """Yield each message; one with tool calls comes with the tool messages after it."""
    rest = deque(history)
    while rest:
        message, results = rest.popleft(), []
        while calls_of(message) and rest and isinstance(rest[0], ToolMessage):
            results.append(rest.popleft())
        yield message, results


def _open(message: AnyMessage, results: Sequence[Any]) -> Iterator[dict[str, Any]]:
    # Count the results of an id: a model may give two calls of one message the same id.
    answered = Counter(result.tool_call_id for result in results)
    for call in calls_of(message):
        if answered[call["id"]]:
            answered[call["id"]] -= 1
        else:
            yield call


def _sound(message: AnyMessage) -> AnyMessage:
    """Return the message with an id for each call and objects for arguments.

    A result has to name its call, and some servers parse the arguments of old calls again.
    """
    calls = calls_of(message)
    if all(call["id"] and isinstance(call["args"], dict) for call in calls):
        return message
    for call in calls:
        call["id"] = call["id"] or f"call_{uuid4().hex}"
        if not isinstance(call["args"], dict):
            call["args"] = {"arguments": call["args"]}
    return message.model_copy(update={"tool_calls": calls, "invalid_tool_calls": []})


def _closing(call: Mapping[str, Any]) -> ToolMessage:
    status = "error" if call["type"] == "invalid_tool_call" else "cancelled"
    return ToolMessage(
        LEFT_OPEN[status],
        id=str(uuid4()),
        name=call["name"],
        tool_call_id=call["id"],
        status="error",
        additional_kwargs={STATUS: status},
    )
