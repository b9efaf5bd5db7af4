"""What the setting AGENT may name, and what it may not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from langchain_core.language_models import BaseChatModel, FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.runtime import Runtime
from langgraph.types import interrupt
from pydantic import BaseModel


def only(node: Any, state: Any = MessagesState) -> Any:
    """A graph of this node alone, not compiled."""
    graph = StateGraph(state)
    graph.add_node("only", node)
    graph.add_edge(START, "only")
    return graph


def echo(state: MessagesState) -> dict[str, Any]:
    return {"messages": [AIMessage(f"You said: {state['messages'][-1].text}")]}


uncompiled = only(echo)

graph = uncompiled.compile()


def factory() -> Any:
    return uncompiled.compile()


def leave(state: MessagesState) -> None:
    raise {"exit": SystemExit, "interrupt": KeyboardInterrupt}[str(state["messages"][-1].text)]


exiting = only(leave).compile()


async def hold_on(state: MessagesState) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()


stubborn = only(hold_on).compile()


class Cat(TypedDict):
    name: str


no_messages = only(lambda state: {}, Cat).compile()


class Unreduced(TypedDict):
    messages: list[Any]


no_reducer = only(lambda state: {}, Unreduced).compile()


class Model(BaseModel):
    messages: Annotated[list[Any], add_messages] = []


pydantic = only(lambda state: echo({"messages": state.messages}), Model).compile()

chain = RunnableLambda(lambda given: f"You said: {given['messages'][-1].text}")


class Bare(Runnable[Any, str]):
    """It can be invoked, and tells nothing of itself."""

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> str:
        return f"You said: {input['messages'][-1].text}"


bare = Bare()

model = FakeListChatModel(responses=["Hello"])
retrying = model.with_retry()
falling_back = model.with_fallbacks([model])

number = 7


def failing() -> None:
    raise ValueError("two\nlines")


def ask(state: MessagesState) -> dict[str, Any]:
    return {"messages": [AIMessage(f"Answered: {interrupt('May I?')}")]}


asking = only(ask).compile()


def ask_what_is_said(state: MessagesState) -> dict[str, Any]:
    answer = interrupt(json.loads(state["messages"][-1].text))
    return {"messages": [AIMessage(f"Answered: {json.dumps(answer)}")]}


asking_anything = only(ask_what_is_said).compile()


class Talk(MessagesState):
    topic: str


def note(state: Talk) -> dict[str, Any]:
    said = str(state["messages"][-1].text)
    return {"topic": said, "messages": [AIMessage(f"Noted: {said}")]}


noting = only(note, Talk).compile()


def reviewed() -> Any:
    """An agent whose one tool call a person reviews."""
    from langchain.agents import create_agent
    from langchain.agents.middleware import HumanInTheLoopMiddleware

    from tests.scripted import ScriptedModel, call

    def double(n: int) -> int:
        """Double a number."""
        return 2 * n

    script = [call("double", '{"n": 2}', "c1"), ["Done."]]
    review = HumanInTheLoopMiddleware(interrupt_on={"double": True})
    return create_agent(ScriptedModel(script=script), [double], middleware=[review])


def dumping() -> Any:
    """An agent whose two tools return 200 KB each: many short lines, and one long line."""
    from langchain.agents import create_agent

    from tests.scripted import ScriptedModel, call

    def dump(kind: str) -> str:
        """Return much."""
        return f"{kind} " * 40_000 if kind == "line" else "A row of text.\n" * 14_000

    calls = call("dump", '{"kind": "rows"}', "c1") + call("dump", '{"kind": "line"}', "c2", 1)
    return create_agent(ScriptedModel(script=[calls, ["Done."]] * 8), [dump])


def ask_one(state: MessagesState) -> dict[str, Any]:
    return {"messages": [AIMessage(f"One: {interrupt('May I do one?')}")]}


def ask_two(state: MessagesState) -> dict[str, Any]:
    return {"messages": [AIMessage(f"Two: {interrupt('May I do two?')}")]}


_asking_twice = StateGraph(MessagesState)
for _name, _node in (("one", ask_one), ("two", ask_two)):
    _asking_twice.add_node(_name, _node)
    _asking_twice.add_edge(START, _name)
asking_twice = _asking_twice.compile()


@dataclass
class Greeting:
    """The runtime context of `greeting`."""

    language: str
    polite: bool = True


class Met(MessagesState):
    met: bool


def greet(state: Met, config: RunnableConfig, runtime: Runtime[Greeting]) -> dict[str, Any]:
    user = config["configurable"].get("user_id")
    again = " again" if state.get("met") else ""
    return {"met": True, "messages": [AIMessage(f"Hello {user}{again}, {runtime.context}")]}


_greeting = StateGraph(Met, context_schema=Greeting)
_greeting.add_node("greet", greet)
_greeting.add_edge(START, "greet")
greeting = _greeting.compile()


class Player(BaseChatModel):
    """Streams the chunks that the question asks for, as JSON; after a tool it says "Done."."""

    @property
    def _llm_type(self) -> str:
        return "player"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        asked = messages[-1]
        for chunk in json.loads(asked.text) if asked.type == "human" else [{"content": "Done."}]:
            if chunk["content"] == "stall":
                await asyncio.Event().wait()
            yield ChatGenerationChunk(message=AIMessageChunk(**chunk))


def playing() -> Any:
    """An agent that plays what the question says, and whose answers have no "hush"."""
    from langchain.agents import create_agent
    from langchain.agents.middleware import after_model

    both = asyncio.Barrier(2)

    async def meet(with_: str) -> str:
        """Wait until two calls of this tool run."""
        await both.wait()
        return f"Met {with_}."

    @after_model
    def redact(state: Any, runtime: Any) -> dict[str, Any] | None:
        answer = state["messages"][-1]
        if "hush" not in answer.text:
            return None
        return {"messages": [AIMessage(answer.text.replace("hush", "***"), id=answer.id)]}

    return create_agent(Player(), [meet], middleware=[redact])
