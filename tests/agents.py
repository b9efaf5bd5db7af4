"""What the setting AGENT may name, and what it may not."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, TypedDict

from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.pregel.remote import RemoteGraph
from langgraph.types import interrupt
from pydantic import BaseModel


def echo(state: MessagesState) -> dict[str, Any]:
    return {"messages": [AIMessage(f"You said: {state['messages'][-1].text}")]}


uncompiled = StateGraph(MessagesState)
uncompiled.add_node("echo", echo)
uncompiled.add_edge(START, "echo")

graph = uncompiled.compile()


def factory() -> Any:
    return uncompiled.compile()


def leave(state: MessagesState) -> None:
    raise {"exit": SystemExit, "interrupt": KeyboardInterrupt}[str(state["messages"][-1].text)]


_exiting = StateGraph(MessagesState)
_exiting.add_node("leave", leave)
_exiting.add_edge(START, "leave")
exiting = _exiting.compile()


async def hold_on(state: MessagesState) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()


_stubborn = StateGraph(MessagesState)
_stubborn.add_node("hold_on", hold_on)
_stubborn.add_edge(START, "hold_on")
stubborn = _stubborn.compile()


class Cat(TypedDict):
    name: str


_cats = StateGraph(Cat)
_cats.add_node("purr", lambda state: {})
_cats.add_edge(START, "purr")
no_messages = _cats.compile()


class Unreduced(TypedDict):
    messages: list[Any]


_unreduced = StateGraph(Unreduced)
_unreduced.add_node("say", lambda state: {})
_unreduced.add_edge(START, "say")
no_reducer = _unreduced.compile()


class Model(BaseModel):
    messages: Annotated[list[Any], add_messages] = []


_model = StateGraph(Model)
_model.add_node("echo", lambda state: echo({"messages": state.messages}))
_model.add_edge(START, "echo")
pydantic = _model.compile()

chain = RunnableLambda(lambda given: f"You said: {given['messages'][-1].text}")


class Bare(Runnable[Any, str]):
    """It can be invoked, and tells nothing of itself."""

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> str:
        return f"You said: {input['messages'][-1].text}"


bare = Bare()
remote = RemoteGraph("agent", url="http://127.0.0.1:9")

model = FakeListChatModel(responses=["Hello"])
retrying = model.with_retry()
falling_back = model.with_fallbacks([model])

number = 7


def failing() -> None:
    raise ValueError("two\nlines")


def ask(state: MessagesState) -> dict[str, Any]:
    return {"messages": [AIMessage(f"Answered: {interrupt('May I?')}")]}


_asking = StateGraph(MessagesState)
_asking.add_node("ask", ask)
_asking.add_edge(START, "ask")
asking = _asking.compile()


def ask_what_is_said(state: MessagesState) -> dict[str, Any]:
    answer = interrupt(json.loads(state["messages"][-1].text))
    return {"messages": [AIMessage(f"Answered: {json.dumps(answer)}")]}


_asking_anything = StateGraph(MessagesState)
_asking_anything.add_node("ask", ask_what_is_said)
_asking_anything.add_edge(START, "ask")
asking_anything = _asking_anything.compile()


class Talk(MessagesState):
    topic: str


def note(state: Talk) -> dict[str, Any]:
    said = str(state["messages"][-1].text)
    return {"topic": said, "messages": [AIMessage(f"Noted: {said}")]}


_noting = StateGraph(Talk)
_noting.add_node("note", note)
_noting.add_edge(START, "note")
noting = _noting.compile()


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


def ask_one(state: MessagesState) -> dict[str, Any]:
    return {"messages": [AIMessage(f"One: {interrupt('May I do one?')}")]}


def ask_two(state: MessagesState) -> dict[str, Any]:
    return {"messages": [AIMessage(f"Two: {interrupt('May I do two?')}")]}


_asking_twice = StateGraph(MessagesState)
for _name, _node in (("one", ask_one), ("two", ask_two)):
    _asking_twice.add_node(_name, _node)
    _asking_twice.add_edge(START, _name)
asking_twice = _asking_twice.compile()
