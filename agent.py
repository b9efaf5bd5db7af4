"""LangGraph: the graphs that run, their threads, and the translation of a run into events.

`Agent` holds one graph and the threads that it remembers; `Turn` is one pass of it over a
thread, told as `StreamEvent`s; `Translator` is the pure step between LangGraph's words and
ours. Below them stands what runs: the loading of a graph of one's own, and the built-in agent,
whose tools and demo model are in `demo`. Nothing in here knows HTTP, bytes or event ids.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import traceback
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from contextvars import ContextVar, Token
from copy import copy
from dataclasses import dataclass
from itertools import takewhile
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_type_hints
from uuid import UUID, uuid4

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import (
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelError,
    ModelPermissionDeniedError,
    ModelRateLimitError,
    ModelTimeoutError,
)
from langchain_core.language_models import BaseChatModel, chat_models, llms
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolCall,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langgraph.channels import DeltaChannel, LastValue
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphBubbleUp, GraphRecursionError
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.pregel import Pregel
from langgraph.types import Command, Overwrite, StateSnapshot
from pydantic import SecretStr
from pydantic_core import to_jsonable_python

from demo import JAPANESE, DemoModel, make_tools
from events import StreamEvent

if TYPE_CHECKING:
    from database import Database

INSIDE_TOOL = "inside_tool"
"""The metadata key of what a tool ran, a model or a node: its text is not answer text."""

ENDED_BY = "ended_by"
"""The mark of a tool message that this module wrote, for a call that its run left open."""

TOLD = "told"
"""The key of what is told of a tool message instead of its own text."""

TOOL_FAILED = "The tool failed."
MODEL_FILES = {chat_models.__file__, llms.__file__}
"""The code that every call of a model goes through."""

SYSTEM = SystemMessage(
    "You are a helpful assistant. Answer in the language of the question. Use a tool where it "
    "knows better than you; call several at once where the question has several parts."
)
LEFT_OPEN = {
    "interrupted": "The run waits for a person; the tool starts again when it goes on.",
    "cancelled": "The run ended before the tool did.",
    "error": "The model's arguments are not a JSON object, so the tool did not start.",
}


class AgentError(Exception):
    """The setting ``AGENT`` names nothing that can run; the text says what is expected."""


# ---------------------------------------------------------------------- agents, threads, turns


class Agent:
    """One graph, or any other Runnable, and the threads that it remembers.

    A graph without a checkpointer is given one that keeps threads in memory. A Runnable that is
    no graph is given ``{"messages": [...]}`` with the thread's history, which is kept for it.
    ``name`` and ``model`` are what people are told of it.
    """

    def __init__(self, runnable: Runnable[Any, Any], name: str, model: str | None = None) -> None:
        self.name = name
        self.model = model
        self.chain = None if isinstance(runnable, Pregel) else runnable
        graph = runnable if isinstance(runnable, Pregel) else _memory_graph()
        self._memory: Memory | None = None
        self.database: Database | None = None
        if not isinstance(graph.checkpointer, BaseCheckpointSaver):
            self._memory = Memory()
            graph = graph.copy({"checkpointer": self._memory})
        self.graph: Pregel[Any, Any, Any, Any] = graph

    def keep_threads_in(self, database: Database) -> None:
        """Keep the threads there, save those of a graph that brought its own checkpointer."""
        if self._memory is not None:
            self.database, self._memory = database, None
            self.graph = self.graph.copy({"checkpointer": database.saver})

    async def is_away(self) -> bool:
        """Whether the threads' database does not answer."""
        return self.database is not None and await self.database.is_away()

    async def waiting(self, thread_id: str) -> dict[str, Any] | None:
        """Return the thread's pending interrupts by id, None where it waits for nobody.

        At a static breakpoint it waits without an interrupt: the dict is empty.
        """
        state = await self.graph.aget_state(_config(thread_id))
        breaks = [*self.graph.interrupt_before_nodes, *self.graph.interrupt_after_nodes]
        if not state.interrupts and not breaks:
            return None  # Its run died, and nobody has settled it.
        # Subgraphs repeat their interrupts.
        return {i.id: _jsonable(i.value) for i in state.interrupts} if state.next else None

    async def messages(
        self, thread_id: str, unsettled: bool = False
    ) -> list[dict[str, Any]] | None:
        """Return the conversation so far as plain objects, None for a thread unheard of.

        ``unsettled`` is whether a run goes on, here or elsewhere: then what a failed tool said is
        not told, since it is not marked yet whether that was an exception's text.
        """
        state = await self.graph.aget_state(_config(thread_id))
        if not state.values:
            return None
        history = _history_of(state.values)
        marked = _mark_failures(history) if unsettled or state.next else []
        instead = {message.id: message for message in marked}
        tools: dict[str, str] = {}
        documents = []
        for message in history:
            tools.update((call["id"], call["name"]) for call in _calls(message))
            documents.append(_document(instead.get(message.id, message), tools))
        return [document for document in documents if document]

    async def forget(self, thread_id: str) -> None:
        """Forget the thread, its checkpoints included."""
        await cast(BaseCheckpointSaver[Any], self.graph.checkpointer).adelete_thread(thread_id)

    async def settle(
        self,
        thread_id: str,
        turn: Turn | None = None,
        texts: Mapping[str, Sequence[str]] | None = None,
        failed: set[str] | None = None,
    ) -> list[AnyMessage]:
        """Leave the thread so that its next turn works and knows what its user saw.

        A tool call without its result is closed, since every provider refuses a history that has
        one; what the graph did not get to keep is added, the question of ``turn`` and ``texts``;
        what the graph would have done next is dropped. The calls ``failed`` are marked, so that no
        exception's text is told of them; None where that is not known. Returns the messages.
        """
        if turn is None and self._memory is not None and thread_id not in self._memory.storage:
            return []  # A new thread; to ask the graph for it would hold up the first token.
        state = await self.graph.aget_state(_config(thread_id), subgraphs=True)
        if state.created_at is None and turn is None:
            return []
        outputs = turn.translator.outputs if turn else {}
        for task in state.tasks:
            # A subgraph may have a memory of its own, which its next call goes on from.
            if isinstance(task.state, StateSnapshot) and (
                repairs := _close_calls(_history_of(task.state.values), outputs)
            ):
                await self.add(_config(thread_id, task.state.config), repairs)
        if state.tasks:
            # Ends the pending step, and keeps the writes of those of its tasks that had finished.
            await self.graph.aupdate_state(_config(thread_id), None, as_node=END)
        history = await self.history(thread_id) if state.tasks else _history_of(state.values)
        repairs = _close_calls(history, outputs)
        if failed or state.tasks:
            repairs += _mark_failures(history, failed)
        known = {message.id for message in history}
        if turn and turn.question and turn.question.id not in known:
            repairs.append(turn.question)
        for message_id, text in (texts or {}).items():
            if text and message_id not in known:
                repairs.append(AIMessage(_whole("".join(text)), id=message_id))
        if not repairs:
            return history
        await self.add(_config(thread_id), repairs)
        return await self.history(thread_id)

    async def compact(self, thread_id: str) -> None:
        """Keep a settled thread's newest checkpoint alone, where the server keeps it.

        Each older one has the whole conversation, so that memory would grow with its square.
        """
        # A delta channel's value is spread over its older checkpoints; a database sees to that.
        deltas = any(isinstance(c, DeltaChannel) for c in self.graph.channels.values())
        if self.database is not None:
            await self.database.prune(thread_id)
        elif self._memory is not None and not deltas:
            self._memory.keep_newest(thread_id)

    async def add(self, config: RunnableConfig, messages: Sequence[AnyMessage]) -> None:
        """Add messages to a graph's state, as an input that nothing runs on.

        A message of a known id replaces that one, whatever the graph's own reducer does.
        """
        history = _history_of((await self.graph.aget_state(config)).values)
        merged: Any = add_messages(history, [*messages])  # type: ignore[arg-type]
        # The first of START's writers keeps the input; the others choose what runs on it.
        start = copy(self.graph.nodes[START])
        start.writers = start.writers[:1]
        vars(start).pop("flat_writers", None)
        graph = self.graph.copy({"nodes": {**self.graph.nodes, START: start}})
        given = {"messages": Overwrite(merged) if history else merged}
        await graph.aupdate_state(config, given, as_node=START)
        await graph.aupdate_state(config, None, as_node=END)

    async def history(self, thread_id: str) -> list[AnyMessage]:
        return _history_of((await self.graph.aget_state(_config(thread_id))).values)


class Memory(InMemorySaver):
    """LangGraph's own memory, in which to ask for a thread leaves nothing behind, and to forget one
    costs nothing for each of the others."""

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        known = config["configurable"]["thread_id"] in self.storage
        return super().get_tuple(config) if known else None

    def delete_thread(self, thread_id: str) -> None:
        for namespace, checkpoints in self.storage.pop(thread_id, {}).items():
            for id_, (checkpoint, *_) in checkpoints.items():
                self.writes.pop((thread_id, namespace, id_), None)
                versions = self.serde.loads_typed(checkpoint)["channel_versions"]
                for channel, version in versions.items():
                    self.blobs.pop((thread_id, namespace, channel, version), None)

    def keep_newest(self, thread_id: str) -> None:
        """Keep a thread's newest checkpoint alone, unless a subgraph of it remembers more."""
        # A subgraph with a memory of its own has a namespace without a task's id.
        keeps_more = any(ns and ":" not in ns for ns in self.storage.get(thread_id, ()))
        saved = self.get_tuple(config := _config(thread_id))
        if saved and not keeps_more:
            self.delete_thread(thread_id)
            versions = saved.checkpoint["channel_versions"]
            self.put(config, saved.checkpoint, saved.metadata, versions)


class Turn:
    """One pass of the graph over a thread, as events, and how it is closed when it is stopped.

    ``message`` is the user's; without one, ``answers`` are to the thread's pending interrupts, by
    id, empty where it waits at a static breakpoint. ``texts`` are the deltas, by message id, of a
    run that died and that nobody has settled.
    """

    def __init__(
        self,
        agent: Agent,
        thread_id: str,
        message: str | None = None,
        answers: dict[str, Any] | None = None,
        texts: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.translator = Translator(ToolScope())
        self._agent = agent
        self._thread_id = thread_id
        self.question = None if message is None else HumanMessage(message, id=str(uuid4()))
        self._answers = answers
        self._texts = texts
        self._history: list[AnyMessage] = []
        """The conversation as the graph left it."""

    async def stream(self) -> AsyncGenerator[StreamEvent, None]:
        """Yield the events of the graph's run as they happen, to its end or its next interrupt.

        Raises whatever the graph raises; `describe` says what to tell of that. Closing the
        generator, or cancelling the task that iterates it, stops the graph and its model call.
        """
        agent, translator, thread_id = self._agent, self.translator, self._thread_id
        config: RunnableConfig = {**_config(thread_id), "callbacks": [translator.scope]}
        yield StreamEvent("thinking", content=_thinking(self.question))
        given: Any = Command(resume=self._answers) if self._answers else None
        if self.question is None:
            history = await agent.history(thread_id)
            translator.failed = {message.tool_call_id for message in _mark_failures(history)}
        else:
            history = await agent.settle(thread_id, texts=self._texts)
            given = {"messages": [self.question]}
        translator.carry(history)
        translate: Callable[[Any], Iterator[StreamEvent]] = translator.translate
        if agent.chain is None:
            source = stream_parts(agent.graph, given, config)
        else:
            await agent.add(_config(thread_id), given["messages"])
            given = {"messages": await agent.history(thread_id)}
            source = stream_events(agent.chain, given, config)
            translate = translator.translate_event
        async with aclosing(source):
            async for part in source:
                for event in translate(part):
                    yield event
        if agent.chain is not None:
            await self._keep()
        self._history = await agent.history(thread_id)
        for event in translator.finish(self._history):
            yield event

    async def settle(self, reason: str) -> None:
        """Leave the thread ready for its next turn, whatever ended this one."""
        if reason == "interrupted":
            return
        failed = self.translator.failed
        if reason != "completed":
            await self._keep()
        elif failed or any(_unanswered(self._history)):
            await self._agent.settle(self._thread_id, failed=failed)
        await self._agent.compact(self._thread_id)

    async def _keep(self) -> None:
        """Leave the thread in order, with what it did not get to keep of this turn."""
        texts, failed = self.translator.texts, self.translator.failed
        await self._agent.settle(self._thread_id, self, texts, failed)


def stream_parts(graph: Pregel[Any, Any, Any, Any], given: Any, config: RunnableConfig) -> Any:
    """Return a graph's run as its typed stream parts, an async generator."""
    return graph.astream(  # type: ignore[call-overload]  # its types lack "tools"
        given,
        config,
        stream_mode=["messages", "tools", "updates", "custom"],
        subgraphs=True,
        version="v2",
    )


def stream_events(runnable: Runnable[Any, Any], given: Any, config: RunnableConfig) -> Any:
    """Return a Runnable's run as its events, an async generator."""
    return runnable.astream_events(given, config, version="v2")


def _config(thread_id: str, of: RunnableConfig | None = None) -> RunnableConfig:
    """The config of a thread, or of the subgraph in it that another config addresses."""
    namespace = of["configurable"]["checkpoint_ns"] if of else ""
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": namespace}}


def _thinking(question: HumanMessage | None) -> str:
    return "考え中…" if question and JAPANESE.search(str(question.text)) else "Thinking…"


def _memory_graph() -> Pregel[Any, Any, Any, Any]:
    """Return a graph that only remembers messages, for a Runnable that has no state."""
    graph = StateGraph(MessagesState)
    graph.add_node("remember", lambda state: {})
    graph.add_edge(START, "remember")
    return graph.compile()


def _history_of(values: Mapping[str, Any]) -> list[AnyMessage]:
    return cast(list[AnyMessage], convert_to_messages(values.get("messages", [])))


def _calls(message: BaseMessage) -> Sequence[Mapping[str, Any]]:
    """The tool calls of a message, those with broken arguments too: providers count them."""
    if not isinstance(message, AIMessage):
        return ()
    return [*message.tool_calls, *message.invalid_tool_calls]


def _unanswered(history: Sequence[AnyMessage]) -> Iterator[tuple[int, int, list[Any]]]:
    """Yield where each message with open tool calls stands, where its results end, and those calls.

    Results follow their message, so an id that comes again later is another call.
    """
    for position, message in enumerate(history):
        if calls := _calls(message):
            results = [*takewhile(lambda m: isinstance(m, ToolMessage), history[position + 1 :])]
            answered = {result.tool_call_id for result in results}  # type: ignore[union-attr]
            if unanswered := [call for call in calls if call["id"] not in answered]:
                yield position, position + 1 + len(results), unanswered


def _close_calls(
    history: Sequence[AnyMessage], outputs: Mapping[str, ToolMessage]
) -> list[AnyMessage]:
    """Return the messages that give every tool call of the history its result.

    Where other messages came between, the call is taken out instead. A message of the same id
    replaces the one before.
    """
    repairs: list[AnyMessage] = []
    for position, end, unanswered in _unanswered(history):
        message, calls = history[position], _calls(history[position])
        if any(not call["id"] for call in unanswered):  # No result could name it.
            calls = [call for call in calls if call["id"]]
            unanswered = [call for call in unanswered if call["id"]]
            message = _with_calls(message, calls)
            repairs.append(message)
        if end < len(history):
            repairs.append(_with_calls(message, [call for call in calls if call not in unanswered]))
            continue
        if any(isinstance(call["args"], str) for call in calls):
            repairs.append(_with_calls(message, calls))  # Some servers parse old arguments, too.
        repairs += [outputs.get(call["id"]) or _closing_message(call) for call in unanswered]
    return repairs


def _mark_failures(
    history: Sequence[AnyMessage], failed: set[str] | None = None
) -> list[ToolMessage]:
    """Return the messages of failed tools, marked so that their text, which may be an exception's,
    is not told. ``failed`` are call ids; None stands for each failed call since the last question.
    """
    marked = []
    for message in reversed(history):
        if isinstance(message, HumanMessage) and failed is None:
            break
        if (
            isinstance(message, ToolMessage)
            and message.status == "error"
            and not {TOLD, ENDED_BY} & message.additional_kwargs.keys()
            and (failed is None or message.tool_call_id in failed)
        ):
            marks = {**message.additional_kwargs, TOLD: TOOL_FAILED}
            marked.append(message.model_copy(update={"additional_kwargs": marks}))
    return marked


def _with_calls(message: AnyMessage, calls: Sequence[Mapping[str, Any]]) -> AIMessage:
    kept = [ToolCall(name=c["name"], args=_input(c["args"]), id=c["id"]) for c in calls]
    # A message with neither text nor calls is refused, too.
    return AIMessage(message.content or ("" if kept else "…"), id=message.id, tool_calls=kept)


def _closing_message(call: Mapping[str, Any]) -> ToolMessage:
    status = "error" if call["type"] == "invalid_tool_call" else "cancelled"
    return ToolMessage(
        LEFT_OPEN[status],
        name=call["name"],
        tool_call_id=call["id"],
        status="error",
        additional_kwargs={ENDED_BY: status},
    )


def _document(message: AnyMessage, tools: Mapping[str, str]) -> dict[str, Any] | None:
    """Return a message as a thread's document has it, None for one that is not shown."""
    match message:
        case HumanMessage():
            return {"role": "user", "content": str(message.text)}
        case AIMessage():
            document: dict[str, Any] = {"role": "assistant", "content": str(message.text)}
            if calls := _calls(message):
                document["tool_calls"] = [
                    {"tool_call_id": c["id"], "tool": c["name"], "input": _input(c["args"])}
                    for c in calls
                ]
            return document
        case ToolMessage():
            call_id = message.tool_call_id
            event = _result(tools.get(call_id) or message.name or "", call_id, message)
            return {"role": "tool", **{k: v for k, v in event.to_dict().items() if k != "type"}}
    return None


# --------------------------------------------------------------------------------- translation


@dataclass
class _Call:
    """A tool call that an AI message asks for."""

    tool: str
    args: Any
    """An object, the text that was to be one, or its fragments as they arrive."""

    @property
    def input(self) -> dict[str, Any]:
        return _input("".join(self.args) if isinstance(self.args, list) else self.args)

    @property
    def broken(self) -> bool:
        return self.input.keys() == {"arguments"} and not isinstance(self.args, dict)


class Translator:
    """Turns what LangGraph says of one run into events: a part in, events out.

    It remembers what the contract needs told later: the deltas of each message, the tool calls
    asked for and those open, interrupts and usage. So no ``tool_result`` comes without its call
    and ``final_answer`` equals its deltas, whatever the graph does. Calls that are open when the
    run ends are closed by who ends it.
    """

    def __init__(self, scope: ToolScope) -> None:
        self.scope = scope
        self.failed: set[str] = set()
        """The ids of the calls whose tool raised."""
        self.texts: dict[str, list[str]] = {}
        """The deltas of each message outside tools by message id, in the order they began."""
        self.outputs: dict[str, ToolMessage] = {}
        """What finished tools returned, by tool call id."""
        self.usage: dict[str, int] = {}
        self.answering = False
        """Whether a model's message has begun and not ended."""
        self.interrupted = False
        self._interrupts: dict[str, Any] = {}
        self._asked: dict[str, _Call] = {}
        self._carried: dict[str, _Call] = {}
        """What an earlier run asked for and this one has not begun."""
        self._streaming: dict[tuple[str | None, Any], tuple[str, _Call]] = {}
        self._open: dict[str, str] = {}
        self._known: set[str] = set()
        self._nameless = 0
        """How many messages without an id the conversation has from earlier runs."""
        self._streamed: set[str] = set()
        """The model calls that `translate_event` has seen deltas of."""

    def translate(self, part: Any) -> Iterator[StreamEvent]:
        """Yield the events of one part of ``astream(version="v2")``.

        Source: LangGraph, "Streaming", stream modes messages, tools, updates and custom.
        """
        match part:
            case {"type": "messages", "data": (AIMessage() as message, metadata)}:
                yield from self.message(message, inside_tool=INSIDE_TOOL in metadata)
            case {"type": "messages", "data": (ToolMessage() as message, _)}:
                yield from self.tool_message(message)
            case {"type": "tools", "data": {"event": "tool-started"} as call}:
                yield from self.tool_started(
                    call["tool_call_id"], call["tool_name"], call.get("input")
                )
            case {"type": "tools", "data": {"event": "tool-output-delta"} as call}:
                if tool := self._open.get(call["tool_call_id"]):
                    yield StreamEvent(
                        "tool_progress",
                        tool=tool,
                        tool_call_id=call["tool_call_id"],
                        content=_text(call["delta"]),
                    )
            case {"type": "tools", "data": {"event": "tool-finished"} as call}:
                yield from self.tool_finished(call["tool_call_id"], call["output"])
            case {"type": "tools", "data": {"event": "tool-error", "tool_call_id": call_id}}:
                yield from self.tool_failed(call_id)
            case {"type": "updates", "data": {"__interrupt__": interrupts}}:
                self.interrupt(interrupts)
            case {"type": "custom", "data": note}:
                yield StreamEvent("thinking", content=_text(note))

    def translate_event(self, event: Any) -> Iterator[StreamEvent]:
        """Yield the events of one event of ``astream_events(version="v2")``.

        Every Runnable has those, but they know less than a graph's parts do: no ``tool_progress``,
        and of a graph's own notes only those sent by ``adispatch_custom_event``.

        Source: LangChain reference, ``Runnable.astream_events``.
        """
        run_id, data = event["run_id"], event["data"]
        inside_tool = INSIDE_TOOL in event["metadata"]
        match event["event"]:
            case "on_chat_model_stream":
                self._streamed.add(run_id)
                yield from self.message(data["chunk"], inside_tool)
            case "on_chat_model_end" if run_id not in self._streamed:
                yield from self.message(data["output"], inside_tool)
            case "on_tool_start":
                call_id = self.scope.call_ids.get(run_id, run_id)
                yield from self.tool_started(call_id, event["name"], data.get("input"))
            case "on_tool_end":
                call_id = self.scope.call_ids.pop(run_id, run_id)
                yield from self.tool_finished(call_id, data["output"])
            case "on_tool_error" if not isinstance(data["error"], GraphBubbleUp):
                yield from self.tool_failed(self.scope.call_ids.pop(run_id, run_id))
            case "on_custom_event":
                yield StreamEvent("thinking", content=_text(data))
            case "on_chain_stream" if not event["parent_ids"]:
                if isinstance(data["chunk"], Mapping) and "__interrupt__" in data["chunk"]:
                    self.interrupt(data["chunk"]["__interrupt__"])
            case "on_chain_end" if event["name"] == event["metadata"].get("langgraph_node"):
                yield from self.node_messages(data["output"], inside_tool)
            case "on_chain_end" if not event["parent_ids"]:
                yield from self.output(data["output"])

    def message(self, message: AIMessage, inside_tool: bool) -> Iterator[StreamEvent]:
        """Yield the deltas of a model's message or chunk, and note the tools that it asks for."""
        if message.usage_metadata:
            for key in ("input_tokens", "output_tokens", "total_tokens"):
                count = cast(int, message.usage_metadata.get(key) or 0)
                self.usage[key] = self.usage.get(key, 0) + count
        if isinstance(message, AIMessageChunk):
            self.answering = message.chunk_position != "last"
            for fragment in message.tool_call_chunks:
                self._collect(message.id, fragment)
        else:
            self.answering = False
            named = [call for call in _calls(message) if call["id"]]
            self._asked.update((call["id"], _Call(call["name"], call["args"])) for call in named)
        if inside_tool or message.id is None:
            return
        deltas = self.texts.setdefault(message.id, [])
        for type_, content in _pieces(message):
            if type_ == "text_delta":
                deltas.append(content)
            yield StreamEvent(type_, content=content, message_id=message.id)

    def tool_started(self, call_id: str, tool: str, given: Any) -> Iterator[StreamEvent]:
        """Yield the ``tool_call``; where the model's own arguments are broken, they are shown."""
        call = self._asked.pop(call_id, None) or self._carried.get(call_id)
        yield from self._opened(
            call_id, tool, call.input if call and call.broken else _input(given)
        )

    def tool_finished(self, call_id: str, output: Any) -> Iterator[StreamEvent]:
        """Yield the ``tool_result`` of an open call from what its tool returned."""
        message = _tool_message(call_id, output)
        if isinstance(message, ToolMessage):
            self.outputs[call_id] = message
        if tool := self._open.pop(call_id, None):
            yield _result(tool, call_id, output if message is None else message)

    def tool_failed(self, call_id: str) -> Iterator[StreamEvent]:
        """Yield the ``tool_result`` of a call whose tool raised, without the exception's text."""
        self.failed.add(call_id)
        if tool := self._open.get(call_id):
            failed = ToolMessage(TOOL_FAILED, name=tool, tool_call_id=call_id, status="error")
            yield from self.tool_finished(call_id, failed)

    def tool_message(self, message: ToolMessage) -> Iterator[StreamEvent]:
        """Yield what is missing of a tool message's call, nothing where its tool has told it all.

        That happens where the tool does not exist, where something else answered in its place, and
        where what it returned could not be told.
        """
        if message.id in self._known:
            return
        if message.id is not None:
            self._known.add(message.id)
        call_id = message.tool_call_id
        call = self._asked.pop(call_id, None) or self._carried.get(call_id)
        if call_id in self._open:  # What ended it told nobody so.
            ended = self.tool_failed(call_id) if message.status == "error" else None
            yield from ended or self.tool_finished(call_id, message)
        elif call:
            yield from self._opened(call_id, call.tool, call.input)
            yield from self.tool_finished(call_id, message)

    def node_messages(self, output: Any, inside_tool: bool) -> Iterator[StreamEvent]:
        """Yield the events of the messages that a node returned, save those already told."""
        update = output.update if isinstance(output, Command) else output
        messages = update.get("messages", []) if isinstance(update, Mapping) else update
        for message in messages if isinstance(messages, Sequence) else [messages]:
            if isinstance(message, ToolMessage):
                yield from self.tool_message(message)
            elif isinstance(message, AIMessage):
                message.id = message.id or str(uuid4())
                if message.id not in self.texts and message.id not in self._known:
                    yield from self.message(message, inside_tool)

    def output(self, output: Any) -> Iterator[StreamEvent]:
        """Yield the answer of a Runnable that has no chat model to stream it."""
        if not isinstance(output, str):
            yield from self.node_messages(output, inside_tool=False)
        elif output and not self.texts:
            yield from self.message(AIMessage(output, id=str(uuid4())), inside_tool=False)

    def interrupt(self, interrupts: Sequence[Any]) -> None:
        """Note what the graph waits for; a static breakpoint waits with no interrupt."""
        self.interrupted = True
        # A subgraph repeats its interrupts for each namespace; the id tells them apart.
        self._interrupts.update((i.id, _jsonable(i.value)) for i in interrupts)

    def carry(self, history: Sequence[AnyMessage]) -> None:
        """Learn the calls that an earlier run asked for, since a resumed graph starts them."""
        self._known = {message.id for message in history if message.id}
        self._nameless = sum(not message.id for message in history)
        for _, _, calls in _unanswered(history):
            self._carried.update((call["id"], _Call(call["name"], call["args"])) for call in calls)

    def finish(self, history: Sequence[AnyMessage]) -> Iterator[StreamEvent]:
        """Yield what only the end tells: interrupts, messages that the history alone has, the
        answer."""
        if self.interrupted:
            if self._interrupts:
                pending = [{"id": id_, "value": v} for id_, v in self._interrupts.items()]
                yield StreamEvent("interrupt", interrupts=pending)
            return
        # A node that returns plain dicts makes messages that LangGraph does not stream.
        nameless = [message for message in history if not message.id][: self._nameless]
        told = self._known | {id(message) for message in nameless}
        late = [message for message in history if (message.id or id(message)) not in told]
        yield from self.node_messages(late, inside_tool=False)
        # A call that the conversation does not have was for the graph's own use, or given up.
        left = {call["id"] for _, _, calls in _unanswered(history) for call in calls}
        self._asked = {id_: call for id_, call in self._asked.items() if id_ in left}
        # A subgraph may have returned older messages behind its last one.
        message_id = history[-1].id if history and history[-1].id in self.texts else None
        message_id = message_id or next(reversed(self.texts), None)
        if message_id and (content := "".join(self.texts[message_id])):
            yield StreamEvent("final_answer", content=content, message_id=message_id)

    def never_started(self) -> Iterator[StreamEvent]:
        """Yield the ``tool_call`` of each call that was asked for and never started, and what is
        wrong with it where its arguments are broken."""
        for call_id, call in () if self.answering else self._asked.items():
            yield from self._opened(call_id, call.tool, call.input)
            if call.broken:
                yield left_open(self._open.pop(call_id), call_id, "error")

    def _collect(self, message_id: str | None, fragment: Mapping[str, Any]) -> None:
        # Only a call's first fragment has its id and name; the index tells which one goes on.
        key = message_id, fragment["index"]
        call_id, call = self._streaming.get(key, (None, None))
        if call is None or (fragment["id"] and fragment["id"] != call_id):
            call_id, call = fragment["id"] or str(uuid4()), _Call(fragment["name"] or "", [])
            self._streaming[key] = call_id, call
            self._asked[call_id] = call
        call.args.append(fragment["args"] or "")

    def _opened(self, call_id: str, tool: str, given: dict[str, Any]) -> Iterator[StreamEvent]:
        if call_id in self._open:
            yield left_open(self._open[call_id], call_id, "cancelled")
        self._open[call_id] = tool
        self.outputs.pop(call_id, None)
        self._carried.pop(call_id, None)
        yield StreamEvent("tool_call", tool=tool, tool_call_id=call_id, input=given)


def left_open(tool: str, call_id: str, status: str) -> StreamEvent:
    """Return the ``tool_result`` of a call that nothing else closes, by a key of `LEFT_OPEN`."""
    return StreamEvent(
        "tool_result", tool=tool, tool_call_id=call_id, status=status, message=LEFT_OPEN[status]
    )


_inside_tool: ContextVar[bool] = ContextVar("inside_tool", default=False)


class ToolScope(BaseCallbackHandler):
    """Marks the models and nodes that tools run, and knows each tool run's call id.

    LangGraph sends a message chunk of a model inside a tool like any other, and a tool may hand
    the model the config of its node; only the context that the tool runs in tells.
    """

    run_inline = True
    # Calling it for each token would cost as much as translating that.
    ignore_llm = True

    def __init__(self) -> None:
        self.call_ids: dict[str, str] = {}
        self._tokens: dict[UUID, Token[bool]] = {}

    def on_tool_start(
        self, serialized: Any, input_str: str, *, run_id: UUID, **kwargs: Any
    ) -> None:
        self._tokens[run_id] = _inside_tool.set(True)
        if call_id := kwargs.get("tool_call_id"):
            self.call_ids[str(run_id)] = call_id

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        # A tool that ends in another context than it started in leaves nothing to undo.
        with suppress(KeyError, ValueError):
            _inside_tool.reset(self._tokens.pop(run_id))

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self.on_tool_end(None, run_id=run_id)

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        # Whatever is told of this run later has the same dict.
        if _inside_tool.get() and kwargs.get("metadata") is not None:
            kwargs["metadata"][INSIDE_TOOL] = True

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self.on_chain_start(serialized, messages, **kwargs)


def _pieces(message: AIMessage) -> Iterator[tuple[str, str]]:
    """Yield what a message or chunk shows, as pairs of event type and text.

    Content is a string, or blocks that differ by provider; reasoning is a block or, from
    OpenAI-compatible servers, an extra field.
    """
    reasoning = message.additional_kwargs.get("reasoning_content")
    if reasoning and isinstance(reasoning, str):
        yield "reasoning_delta", reasoning
    if isinstance(message.content, str):
        if message.content:
            yield "text_delta", message.content
        return
    for block in message.content:
        match block:
            case str(text) | {"type": "text", "text": str(text)} if text:
                yield "text_delta", text
            case (
                {"type": "reasoning", "reasoning": str(text)}
                | {"type": "thinking", "thinking": str(text)}
                | {"type": "reasoning_content", "reasoning_content": {"text": str(text)}}
            ) if text:
                yield "reasoning_delta", text
            case {"type": "reasoning", "summary": [*summary]}:
                for piece in summary:
                    match piece:
                        case str(text) | {"text": str(text)} if text:
                            yield "reasoning_delta", text


def _tool_message(call_id: str, output: Any) -> ToolMessage | None:
    """Find the tool message in what a tool returned: itself, or in a Command's update."""
    match output:
        case ToolMessage():
            return output
        case Command(update={"messages": [*items]}) | [*items]:
            found = (_tool_message(call_id, item) for item in items)
            return next((each for each in found if each and each.tool_call_id == call_id), None)
    return None


def _result(tool: str, call_id: str, output: Any) -> StreamEvent:
    """Return the ``tool_result`` for a tool's output: an object as itself, else as its text."""
    event = StreamEvent("tool_result", tool=tool, tool_call_id=call_id, status="ok")
    if isinstance(output, ToolMessage):
        if output.status == "error":
            event.status = output.additional_kwargs.get(ENDED_BY, "error")
            event.message = output.additional_kwargs.get(TOLD) or str(output.text)
            return event
        output = str(output.text) if isinstance(output.content, str) else output.content
    try:
        parsed = json.loads(output) if isinstance(output, str) else output
    except (ValueError, RecursionError):
        parsed = output
    shown = _jsonable(parsed) if isinstance(parsed, dict) else None
    event.result = shown if isinstance(shown, dict) else {"content": _text(output)}
    return event


def _input(given: Any) -> dict[str, Any]:
    """Return a call's arguments as an object; ``{"arguments": raw}`` where they are none."""
    if given is None or given == "":
        return {}
    try:
        shown = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        shown = None
    shown = _jsonable(shown)
    return shown if isinstance(shown, dict) else {"arguments": _text(given)}


def _whole(text: str) -> str:
    """Join the halves of surrogate pairs; what is left of one has no UTF-8 and is replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _text(value: Any) -> str:
    """Return text as itself and anything else as its JSON."""
    return value if isinstance(value, str) else json.dumps(_jsonable(value), ensure_ascii=False)


def _jsonable(value: Any) -> Any:
    """Return the value as JSON can carry it: models and dates as their fields, NaN as its name."""
    try:
        return json.loads(json.dumps(value, default=_plain), parse_constant=str)
    except (TypeError, ValueError):  # odd keys, a circle
        return str(value)
    except RecursionError:  # which its text would raise, too
        return f"<{type(value).__name__}>"


def _plain(value: Any) -> Any:
    return to_jsonable_python(value, fallback=str, bytes_mode="base64")


def describe(error: BaseException | None, answering: bool) -> StreamEvent:
    """Return the ``error`` event for what a run raised, without its ``ref``.

    Providers are told apart by langchain-core's model exceptions or, where an integration does
    not raise them, by the HTTP status that its exception carries. ``answering`` is whether a
    model's message had begun: then a lost connection is a failure of the model. Nothing of the
    exception's text is in the event, since providers put keys and addresses there.
    """
    code, message, retryable = "agent_error", "The agent failed.", False
    frames = traceback.walk_tb(error.__traceback__ if error else None)
    of_model = any(frame.f_code.co_filename in MODEL_FILES for frame, _ in frames)
    # A tool's exceptions may have a status, too.
    status = getattr(error, "status_code", None) if of_model else None
    match error:
        case ModelAuthenticationError() | ModelPermissionDeniedError():
            status = 401
        case ModelRateLimitError():
            status = 429
        case ModelAPIError():
            status = 500
        case ModelConnectionError() | ModelTimeoutError() if not answering:
            code, retryable = "model_unreachable", True
            message = "The model cannot be reached."
        case ModelError():
            code, message = "model_error", "The model's answer broke off."
        case GraphRecursionError():
            message = "The agent took more steps than it may."
        # An error inside a stream is openai's bare base class, which is not imported to ask.
        case _ if (openai := sys.modules.get("openai")) and isinstance(error, openai.APIError):
            code, message = "model_error", "The model's provider reported a failure."
    if of_model and code == "agent_error":  # It answered, but not as a model does.
        code, message = "model_error", "The model's provider sent what is no answer."
    match status:
        case 401 | 403:
            code, message = "model_auth", "The model's provider rejected the key."
        case 429:
            code, retryable = "model_rate_limit", True
            message = "The model's provider asks to slow down. Try again in a moment."
        case int() if status >= 500:
            code, retryable = "model_error", True
            message = "The model's provider failed. Try again in a moment."
        case int() if status >= 400:
            code, message = "model_error", "The model's provider refused the request."
    return StreamEvent("error", code=code, message=message, retryable=retryable)


# ---------------------------------------------------------------------------------- what runs


def load_agent(spec: str) -> Agent:
    """Return the agent that ``module:attribute`` names, from the working directory or a package.

    The attribute is a compiled graph with ``messages`` in its state, any other Runnable, or a
    function of no arguments that returns one. Raises AgentError with one line for a person.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise AgentError("it has the form module:attribute")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = attrgetter(attribute)(importlib.import_module(module_name))
        if callable(found) and not isinstance(found, (Runnable, StateGraph)):
            found = found()
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())
        raise AgentError(f"loading it raised {type(error).__name__}: {reason}") from error
    if isinstance(found, StateGraph):
        raise AgentError("the graph is not compiled; call its compile() method")
    if asyncio.iscoroutine(found):
        found.close()
    if not isinstance(found, Runnable):
        raise AgentError(f"it is a {type(found).__name__}, not a graph or another Runnable")
    if asyncio.iscoroutinefunction(found.astream_events):  # of a RemoteGraph
        raise AgentError(f"a {type(found).__name__} has no astream_events to iterate")
    if not isinstance(found, Pregel):
        # In a sequence even a Runnable that tells nothing of itself is told of.
        only_messages = _takes_messages(found)
        found = RunnableLambda(lambda given: given["messages"] if only_messages else given) | found
    if isinstance(found, Pregel) and "messages" not in _input_fields(found):
        raise AgentError("the graph's input has no 'messages', a list of chat messages")
    if isinstance(found, Pregel) and isinstance(found.channels["messages"], LastValue):
        raise AgentError("the graph's 'messages' need a reducer, such as add_messages")
    return Agent(found, name=spec)


def _takes_messages(runnable: Runnable[Any, Any]) -> bool:
    """Whether it is a chat model, or begins with one, however wrapped."""
    with suppress(TypeError):  # of a Runnable that cannot tell
        return bool(runnable.InputType == DemoModel().InputType)
    return False


def _input_fields(graph: Pregel[Any, Any, Any, Any]) -> set[str]:
    builder = getattr(graph, "builder", None)
    if isinstance(builder, StateGraph):
        return set(get_type_hints(builder.input_schema)) & set(graph.channels)
    return set()


def built_in(
    *, docs: Path, tokens_per_s: float, api_key: str = "", base_url: str = "", model: str = ""
) -> Agent:
    """Return the built-in agent: a model that calls tools in a loop.

    With a key or an address the model is ``ChatOpenAI``; without either the demo model, which
    streams at ``tokens_per_s`` (0: as fast as it goes). ``docs`` is what `search_docs` searches.
    """
    tools = make_tools(docs)
    chat: BaseChatModel = DemoModel(tokens_per_s=tokens_per_s)
    if api_key or base_url:
        chat = _openai_model(api_key, base_url, model)
    bound = chat.bind_tools(tools)

    async def answer(state: MessagesState) -> dict[str, Sequence[BaseMessage]]:
        # A call with broken arguments beside good ones has no result yet, and wants one now.
        repairs = _close_calls(state["messages"], {})
        history = cast(list[AnyMessage], add_messages(state["messages"], repairs))  # type: ignore[arg-type]
        return {"messages": [*repairs, _sound(await bound.ainvoke([SYSTEM, *history]))]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", answer)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    name = "demo" if isinstance(chat, DemoModel) else model
    return Agent(graph.compile(), name="built-in", model=name)


def _sound(message: AIMessage) -> AIMessage:
    """Return a model's message as every provider and checkpointer takes it again.

    Each tool call has an id of its own, no text half of a surrogate pair, and no number more than
    64 bits; some servers send what has not.
    """
    calls: list[Any] = [*message.tool_calls, *message.invalid_tool_calls]
    told = json.dumps([message.content, [call["args"] for call in calls]], ensure_ascii=False)
    content, arguments = json.loads(_whole(told), parse_int=_parse_int)
    known: set[str] = set()
    for call, args in zip(calls, arguments, strict=True):
        call["args"] = args
        if not call["id"] or call["id"] in known:
            call["id"] = f"call_{uuid4().hex}"
        known.add(call["id"])
    message.content = content
    return message


def _parse_int(text: str) -> float:
    return number if abs(number := int(text)) < 2**63 else float(number)


def _openai_model(api_key: str, base_url: str, model: str) -> BaseChatModel:
    # Importing them takes longer than all else together, and the demo does without.
    from langchain_openai import ChatOpenAI
    from openai import AsyncStream, DefaultAioHttpClient
    from openai.resources.chat.completions import AsyncCompletions

    class Completions(AsyncCompletions):
        """Streams each chunk as the JSON that it came as, which ChatOpenAI takes as well.

        To build openai's objects, and take them apart again, costs half of a token's time.
        """

        async def create(self, **body: Any) -> Any:
            # `with_raw_response`, which some keys ask for, adds a header.
            if not body.get("stream") or "extra_headers" in body:
                return await super().create(**body)
            stream_cls = AsyncStream[object]
            return await self._post(
                "/chat/completions", body=body, cast_to=object, stream=True, stream_cls=stream_cls
            )

    class ChatModel(ChatOpenAI):
        """ChatOpenAI that keeps the reasoning which OpenAI-compatible servers send."""

        def _convert_chunk_to_generation_chunk(
            self, chunk: dict[str, Any], *args: Any, **kwargs: Any
        ) -> ChatGenerationChunk | None:
            for choice in chunk.get("choices") or ():
                choice.setdefault("delta", None)  # Some servers leave out what OpenAI's has.
            converted = super()._convert_chunk_to_generation_chunk(chunk, *args, **kwargs)
            if converted and chunk.get("choices"):
                delta = chunk["choices"][0].get("delta") or {}
                if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
                    converted.message.additional_kwargs["reasoning_content"] = reasoning
            return converted

    client = None
    with suppress(RuntimeError):  # of an older openai, without the package httpx-aiohttp
        client = DefaultAioHttpClient()
    chat = ChatModel(
        model=model,
        # A server of one's own wants no key, but the client does.
        api_key=SecretStr(api_key or "none"),
        base_url=base_url or None,
        # It costs less a token than the default one.
        http_async_client=client,
        stream_usage=True,
        # The run's own time-out ends a model that stalls.
        stream_chunk_timeout=None,
    )
    chat.async_client = Completions(chat.root_async_client)
    return chat
