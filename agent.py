"""LangGraph: one turn of a graph over a thread, translated into events.

`Agent` is a graph with its checkpointer. `Turn` is one pass of the graph over a thread.
`Translator` is the pure step in between: a part of LangGraph's stream in, events out. Nothing in
here knows HTTP or event ids. `threads.repair` repairs threads after a turn; `graphs` reads the many
shapes of messages, failures and Runnables.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast
from uuid import uuid4

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.types import Command

from events import Asked, Refused, StreamEvent
from graphs import messages
from graphs.document import document
from graphs.failures import FAILURES, EmptyAnswer, Failure
from graphs.load import Graph, as_graph, read_context
from graphs.messages import QUESTION, Usage
from graphs.watch import HIDDEN, MODEL_CALL, Watch
from threads import repair
from threads.memory import MAY_WRITE, Memory

JAPANESE = re.compile("[\u3040-\u30ff\u3400-\u9fff]")
"""Kana or kanji: then the question is in Japanese, and so is the first event."""

TOOL_FAILED = "The tool failed."


# ------------------------------------------------------------------------------ agents and turns


class Saved(NamedTuple):
    """What a thread has."""

    messages: list[AnyMessage]
    """Oldest first."""
    pending: dict[str, Any] | None
    """The interrupts that wait for a person, by id. Empty at a static breakpoint, which waits
    without one; None if the thread does not wait."""

    def document(self) -> list[dict[str, Any]]:
        """Return the messages as the contract's thread document has them."""
        return document(self.messages)


class Agent:
    """One graph and its threads. ``name`` and ``model`` are shown to people.

    Another Runnable is wrapped in a graph of one node. A graph with a checkpointer keeps it.
    """

    def __init__(self, runnable: Runnable[Any, Any], name: str, model: str | None = None) -> None:
        self.name = name
        self.model = model
        self.graph: Graph = as_graph(runnable)
        self._has_own_checkpointer = isinstance(self.graph.checkpointer, BaseCheckpointSaver)
        self.keep_threads_in(Memory(max_threads=1000))

    def keep_threads_in(self, saver: BaseCheckpointSaver[Any]) -> None:
        """Use this checkpointer, unless the graph brought its own."""
        if not self._has_own_checkpointer:
            self.graph = self.graph.copy({"checkpointer": saver})

    @property
    def title(self) -> str:
        """What is served, for a person."""
        if self.model is None:
            return self.name
        about = "demo model, no key needed" if self.model == "demo" else self.model
        return f"the {self.name} agent ({about})"

    @property
    def memory(self) -> Memory | None:
        """The server's own memory, if the threads are kept there."""
        saver = self.graph.checkpointer
        return saver if isinstance(saver, Memory) else None

    async def turn(self, asked: Asked) -> Turn:
        """Return the turn that was asked for. Raises Refused if the thread cannot take it."""
        try:
            context = read_context(self.graph, asked.context)
        except ValueError:
            raise Refused("invalid_request", "context does not fit the graph's schema.") from None
        if asked.message is not None and asked.replaces is None:
            return Turn(self, asked, context)
        saved = await self.saved(asked.thread) or Saved([], None)
        if asked.message is None:
            answers = _answers(asked.resume, saved.pending)
            return Turn(self, asked, context, answers, saved.messages)
        if not any(m.type == "human" and m.id == asked.replaces for m in saved.messages):
            raise Refused("unknown_message")
        return Turn(self, asked, context)

    async def saved(self, thread: str) -> Saved | None:
        """Return what a thread has, None if nobody knows it.

        Raises Unavailable if the threads' database is away.
        """
        if self.memory and not self.memory.knows(thread):
            return None
        state = await self.graph.aget_state(repair.config_of(thread))
        if not state.created_at:
            return None
        # A subgraph's interrupt is listed again for its parent; the dict keeps it once.
        pending = {each.id: messages.jsonable(each.value) for each in state.interrupts}
        waits = repair.waits(self.graph, state)
        return Saved(repair.history_of(state), pending if waits else None)

    async def check(self) -> None:
        """Raise Unavailable if the threads' database is away."""
        await self.saved("")

    async def forget(self, thread: str) -> None:
        """Forget the thread, its checkpoints included."""
        saver = cast(BaseCheckpointSaver[Any], self.graph.checkpointer)
        await saver.adelete_thread(thread)


def _answers(resume: Any, pending: dict[str, Any] | None) -> dict[str, Any]:
    """Return one answer for each pending interrupt. Raises Refused if they do not fit."""
    if pending is None:
        raise Refused("nothing_to_resume")
    if isinstance(resume, dict) and pending and resume.keys() == pending.keys():
        return resume
    if len(pending) > 1:
        ids = ", ".join(pending)
        raise Refused("invalid_request", f"resume has to be an object with the keys {ids}.")
    return dict.fromkeys(pending, resume)


class Turn:
    """What one run does for a turn: one pass of the graph over a thread, as events.

    ``context`` is the graph's runtime context. A turn that resumes the thread has ``answers``, the
    answer to each pending interrupt by its id (none at a static breakpoint), and the thread's
    ``history``.
    """

    def __init__(
        self,
        agent: Agent,
        asked: Asked,
        context: Any = None,
        answers: dict[str, Any] | None = None,
        history: Sequence[AnyMessage] = (),
    ) -> None:
        self.question = None
        if asked.message is not None:
            self.question = HumanMessage(asked.message, id=f"{QUESTION}{uuid4()}")
        self.graph = agent.graph
        self.translator = Translator(self.question, history)
        self._memory = agent.memory
        self._asked = asked
        self._context = context
        self._answers = answers
        self._config = repair.config_of(asked.thread)
        if asked.user:
            self._config["configurable"]["user_id"] = asked.user
        self._settled = False
        """Whether the thread is known to need no repair before the graph runs."""
        self._whole = False
        """Whether it needs none after the graph has completed."""

    @property
    def thinking(self) -> StreamEvent:
        """The first event: it says that the turn has begun."""
        japanese = self.question and JAPANESE.search(str(self.question.text))
        return StreamEvent("thinking", content="考え中…" if japanese else "Thinking…")

    def begin(self, may_write: Callable[[], bool]) -> None:
        """Keep the thread in memory until `settle`; a database saves it while ``may_write()``."""
        self._config["configurable"][MAY_WRITE] = may_write
        if self._memory:
            self._settled = self._memory.use(self._asked.thread)

    async def stream(self) -> AsyncGenerator[StreamEvent, None]:
        """Yield the events of the graph's run as they happen, to its end or its next interrupt.

        Raises whatever the graph raises; `failure` says what that means. Closing the generator,
        or cancelling the task that iterates it, stops the graph and its model call.

        Source: LangGraph, "Streaming", stream modes messages, tools, updates and custom.
        """
        translator = self.translator
        given: Any = Command(resume=self._answers) if self._answers else None
        if self.question:
            given = {"messages": [self.question]}
            if not self._settled:
                await repair.settle(self.graph, self._config)
            if self._asked.replaces is not None:
                await repair.rewind(self.graph, self._config, self._asked.replaces)
        config: RunnableConfig = {**self._config, "callbacks": [translator.watch]}
        parts = self.graph.astream(  # type: ignore[call-overload]  # its types lack "tools"
            given,
            config,
            context=self._context,
            stream_mode=["messages", "tools", "updates", "custom"],
            subgraphs=True,
            version="v2",
            # Memory is lost with the process, so one checkpoint at the end is enough.
            durability="exit" if self._memory else "async",
        )
        async with aclosing(parts):
            async for part in parts:
                for event in translator.translate(part):
                    yield event
        history = repair.history_of(await self.graph.aget_state(self._config))
        last = history[-1] if history else None
        answered = last is not None and last.type == "ai" and not repair.is_blank(last)
        self._whole = answered and not repair.unanswered(history)
        for event in translator.finish([*repair.close_calls(history)]):
            yield event

    async def settle(self, reason: str, error: StreamEvent | None = None) -> list[StreamEvent]:
        """Leave the thread ready for its next turn, whatever ended this one.

        Returns the events that tool calls still lack and for which the thread has a result.
        """
        settled = False
        try:
            history = await self._settle(reason, error)
            settled = reason != "interrupted"
        finally:
            if self._memory:
                self._memory.free(self._asked.thread, settled)
        return [*self.translator.settled(history)]

    async def _settle(self, reason: str, error: StreamEvent | None) -> list[AnyMessage]:
        if reason == "interrupted" or (reason == "completed" and self._whole):
            return []
        outputs = self.translator.outputs
        if reason == "completed":  # The graph has saved all that it wants to keep.
            return await repair.settle(self.graph, self._config, outputs=outputs)
        ended: dict[str, Any] = {"reason": reason}
        if error:
            ended["error"] = {"code": error.code, "message": error.message}
        unsaved = self.translator.unsaved
        return await repair.settle(self.graph, self._config, unsaved, outputs, ended)

    def failure(self, error: BaseException | None) -> Failure:
        """Return what to say of the exception that `stream` raised."""
        try:
            return FAILURES[self.translator.watch.kind_of(error, self.translator.began)]
        except Exception:  # noqa: BLE001  # An exception whose own text cannot be read.
            return FAILURES["agent_error"]


# ----------------------------------------------------------------------------------- translation

Namespace = tuple[str, ...]


@dataclass
class _Text:
    """What one model call, or one message of a node, has streamed."""

    message_id: str
    task: str
    """The task of the graph that it belongs to."""
    ids: set[str | None] = field(default_factory=set)
    """All ids of the message: some providers change the id after the first chunk."""
    deltas: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    figures: list[Usage] = field(default_factory=list)
    """The token counts that the model call sent."""

    @property
    def content(self) -> str:
        return "".join(self.deltas)


@dataclass
class _Call:
    """A tool call.

    It is ``asked`` for by an AI message, ``open`` while its tool runs, ``failed`` once that raised
    (the graph may retry it, or handle the error), and ``closed`` with its result.
    """

    ns: Namespace
    id: str
    """The model's own: another model, or the same one later, may give it again."""
    tool: str
    input: dict[str, Any]
    wire_id: str
    """The id that clients see. No other call of the turn has it. If a later run starts the call
    again, the call keeps it."""
    state: str = "asked"
    output: ToolMessage | None = None
    """What the tool returned."""

    def event(self, type_: str, **fields: Any) -> StreamEvent:
        return StreamEvent(type_, tool=self.tool, tool_call_id=self.wire_id, **fields)


class Translator:
    """Turns the parts of one run into events.

    The run's messages follow its ``question`` or, if it answers an interrupt, the ``history``.
    It records the deltas of each message and all tool calls, so that the contract's promises hold
    whatever the graph does: no ``tool_result`` without its call, a ``final_answer`` that equals its
    deltas.
    """

    def __init__(self, question: HumanMessage | None, history: Sequence[AnyMessage]) -> None:
        self.watch = Watch()
        self.interrupted = False
        self._question = question
        before = [question] if question else history
        self._last = next((m.id for m in reversed(before) if m.id is not None), "")
        """The id of the message that those of the run follow."""
        self._texts: dict[str, _Text] = {}
        """By model call, or by message id for a message that no model made."""
        self._calls: list[_Call] = []
        self._asking: set[str | None] = set()
        """The ids of the messages whose tool calls are noted."""
        self._interrupts: dict[str, Any] = {}
        questions = (n for n, m in enumerate(history) if (m.id or "").startswith(QUESTION))
        # Note the turn's calls. Earlier runs have sent these events. This run starts or rejects
        # the calls that have no result yet.
        list(self._results((), history[max(questions, default=0) :]))
        self.shown = False
        """Whether there is anything to show: reasoning, a tool call, or text that is not blank."""

    def translate(self, part: Any) -> Iterator[StreamEvent]:
        """Yield the events of one part of ``astream(version="v2")``."""
        match part:
            case {"type": "messages", "data": (AIMessage() as message, metadata)}:
                yield from self._message(message, metadata)
            case {"type": "tools", "ns": ns, "data": {"tool_call_id": call_id} as call}:
                yield from self._tool(ns, call_id, call)
            case {"type": "updates", "data": {"__interrupt__": interrupts}}:
                self.interrupted = True
                # A subgraph repeats its interrupts for each namespace; the id tells them apart.
                self._interrupts.update((i.id, messages.jsonable(i.value)) for i in interrupts)
            case {"type": "updates", "ns": ns, "data": updates}:
                yield from self._results(ns, self._new([*messages.messages_in(updates)]))
            case {"type": "custom", "data": note}:
                yield StreamEvent("thinking", content=messages.as_text(note))

    def finish(self, history: Sequence[AnyMessage]) -> Iterator[StreamEvent]:
        """Yield what only the end can give: interrupts, messages not yet streamed, the answer.

        ``history`` has the thread's messages. Raises EmptyAnswer if there is nothing to show.
        """
        if self._interrupts:
            pending = [{"id": id_, "value": value} for id_, value in self._interrupts.items()]
            yield StreamEvent("interrupt", interrupts=pending)
        if self.interrupted:
            return
        yield from self.settled(history)
        answers = [m for m in self._kept(history) if isinstance(m, AIMessage)]
        for message in answers:
            yield from self._message(message, {})
        if not self.shown:
            raise EmptyAnswer
        silent = self.watch.silent
        if final := self._final([m for m in answers if m.id not in silent]):
            yield final

    def _new(self, written: Sequence[BaseMessage]) -> Sequence[BaseMessage]:
        """Return the messages that came in this run: a subgraph's update repeats older ones."""
        ids = [message.id for message in written]
        return written[ids.index(self._last) + 1 :] if self._last in ids else written

    def _kept(self, history: Sequence[AnyMessage]) -> Sequence[BaseMessage]:
        """Return the thread's messages that came in this run."""
        new = self._new(history)
        if len(new) < len(history):
            return new
        # The graph has dropped the question. What was streamed is surely new.
        return [m for m in new if isinstance(m, AIMessage) and self._streamed(m)]

    def _final(self, answers: Sequence[AIMessage]) -> StreamEvent | None:
        """Return the answer: the last message that the thread keeps, else the last one streamed."""
        last = next((text for text in reversed(self._texts.values()) if text.content), None)
        content = last.content if last else ""
        for message in reversed(answers):
            if (text := self._streamed(message)) and text.content:
                last, kept = text, messages.text_of(message)
                # A middleware may have changed the message, or emptied it.
                content = kept if kept != messages.whole(text.content) else text.content
                break
        if last is None:
            return None
        id_, reason = last.message_id, last.finish_reason
        return StreamEvent("final_answer", content=content, message_id=id_, finish_reason=reason)

    def settled(self, history: Sequence[AnyMessage]) -> Iterator[StreamEvent]:
        """Yield the events that calls still lack and for which the thread has a result."""
        yield from self._results((), self._kept(history))

    def left_open(self, call_id: str, tool: str, status: str) -> StreamEvent:
        """Return the ``tool_result`` of a call that is still open when the run ends."""
        message = repair.LEFT_OPEN[status]
        if any(call.wire_id == call_id and call.state == "failed" for call in self._calls):
            status, message = "error", TOOL_FAILED
        about: Any = {"tool": tool, "tool_call_id": call_id, "status": status, "message": message}
        return StreamEvent("tool_result", **about)

    @property
    def outputs(self) -> dict[str, ToolMessage]:
        """What finished tools of the root graph returned, by tool call id: of two, the later's."""
        outputs = {call.id: call.output for call in self._calls if not call.ns}
        return {id_: output for id_, output in outputs.items() if output}

    def unsaved(self, known: set[str | None]) -> list[AnyMessage]:
        """Return the question and the streamed texts, those that have none of these ids."""
        question = [self._question] if self._question else []
        unsaved: list[AnyMessage] = [each for each in question if each.id not in known]
        for text in self._texts.values():
            if text.content.strip() and not text.ids & known:
                # Half of a surrogate pair cannot be stored.
                unsaved.append(AIMessage(messages.whole(text.content), id=text.message_id))
        return unsaved

    def began(self, model_call: str) -> bool:
        """Whether this model call has sent a chunk."""
        return model_call in self._texts

    @property
    def usage(self) -> Usage | None:
        """The tokens of all model calls together."""
        calls = [messages.usage_of(text.figures) for text in self._texts.values() if text.figures]
        calls += [each for call, each in self.watch.silent_usage.items() if not self.began(call)]
        if not calls:
            return None
        return {name: sum(each[name] for each in calls) for name in messages.USAGE}

    # ------------------------------------------------------------------------------- messages

    def _message(self, message: AIMessage, metadata: Mapping[str, Any]) -> Iterator[StreamEvent]:
        """Yield the deltas of a model's chunk, or of a whole message."""
        model_call, task = metadata.get(MODEL_CALL), metadata.get("langgraph_checkpoint_ns", "")
        if model_call is None:
            if message.id in self.watch.silent:
                self.shown = True  # The client finds it in the thread.
                return
            if repeated := self._streamed(message, task):
                repeated.ids.add(message.id)
                return
        key = model_call or message.id or str(uuid4())
        text = self._texts.get(key)
        if text is None:
            text = self._texts[key] = _Text(message.id or key, task)
        text.ids.add(message.id)
        if message.usage_metadata and model_call:
            text.figures.append(messages.counts_of(message.usage_metadata))
        if metadata.get(HIDDEN):
            return
        if message.response_metadata:
            text.finish_reason = (
                messages.finish_reason(message.response_metadata) or text.finish_reason
            )
        for type_, content in messages.pieces_of(message):
            if type_ == "text_delta":
                text.deltas.append(content)
            self.shown = self.shown or type_ != "text_delta" or not content.isspace()
            yield StreamEvent(type_, content=content, message_id=text.message_id)

    def _streamed(self, message: AIMessage, task: str = "") -> _Text | None:
        """Find what was streamed of a message: under its id, or the same text in the same task."""
        content = messages.text_of(message)
        for text in reversed(self._texts.values()):
            same = content and text.task == task and text.content == content
            if same or (message.id is not None and message.id in text.ids):
                return text
        return None

    # ----------------------------------------------------------------------------- tool calls

    def _tool(self, ns: Namespace, call_id: str, part: Mapping[str, Any]) -> Iterator[StreamEvent]:
        call = self._find(ns, call_id, "open", "failed")
        match part["event"]:
            case "tool-started" if call and call.state == "failed":
                call.state = "open"  # A retry: its `tool_call` is sent already.
            case "tool-started":
                call = self._find(ns, call_id, "asked") or self._ask(ns, {"id": call_id})
                call.tool, call.input = part["tool_name"], messages.input_of(part.get("input"))
                yield self._opened(call)
            case "tool-output-delta" if call:
                yield call.event("tool_progress", content=messages.as_text(part["delta"]))
            case "tool-finished" if call:
                yield self._closed(call, part["output"])
            case "tool-error" if call:
                # No result yet: if the graph handles the error, its tool message is the result.
                call.state = "failed"
                about = {"name": call.tool, "tool_call_id": call_id}
                call.output = ToolMessage(TOOL_FAILED, **about, status="error")

    def _results(self, ns: Namespace, new: Sequence[BaseMessage]) -> Iterator[StreamEvent]:
        """Yield the events that the calls of these messages still lack.

        These are ``tool_call`` and ``tool_result`` if the call never started, as with an unknown
        tool; the result alone if the call is open; none if it is closed.
        """
        for message in new:
            # A subgraph's messages are emitted again in the update of its parent.
            if message.id is None or message.id not in self._asking:
                self._asking.add(message.id)
                for each in messages.calls_of(message):
                    self._ask(ns, each)
            # Of two calls with the same id, the one that has ended already has this result.
            results = [each.output for each in self._calls]
            if isinstance(message, ToolMessage) and message not in results:
                call = self._find(ns, message.tool_call_id, "asked", "open", "failed")
                if call and call.state == "asked":
                    yield self._opened(call)
                if call:
                    yield self._closed(call, message)

    def _ask(self, ns: Namespace, asked: Mapping[str, Any]) -> _Call:
        given = messages.input_of(asked.get("args"))
        id_ = asked["id"]
        same = sum(call.id == id_ for call in self._calls)
        wire_id = f"{id_}{'+' * same}" if id_ else str(uuid4())
        call = _Call(ns, id_, asked.get("name") or "", given, wire_id)
        self._calls.append(call)
        return call

    def _find(self, ns: Namespace, call_id: str, *states: str) -> _Call | None:
        """Find the first call with this id in one of the states, tried in their order."""
        calls = [each for each in self._calls if each.id == call_id and each.ns == ns]
        return next((each for state in states for each in calls if each.state == state), None)

    def _opened(self, call: _Call) -> StreamEvent:
        call.state = "open"
        self.shown = True
        return call.event("tool_call", input=call.input)

    def _closed(self, call: _Call, output: Any) -> StreamEvent:
        found = (each for each in messages.messages_in(output) if isinstance(each, ToolMessage))
        call.output = next((each for each in found if each.tool_call_id == call.id), None)
        call.state = "closed"
        return call.event("tool_result", **messages.result_of(call.output or output))
