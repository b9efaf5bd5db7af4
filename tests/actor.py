"""An agent for the tests of front ends: it does what the question says."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain.tools import ToolRuntime
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.tools import ToolException, tool
from langgraph.types import interrupt

from tests.scripted import call

PACE_S = 0.01

_events: defaultdict[tuple[str, str], asyncio.Event] = defaultdict(asyncio.Event)
"""What has happened in a thread's turn, by the thread and its name."""


def event(runtime: ToolRuntime, name: str) -> asyncio.Event:
    return _events[runtime.config["configurable"]["thread_id"], name]


@tool
async def slow(runtime: ToolRuntime) -> str:
    """Report progress, and end after `quick`."""
    runtime.emit_output_delta("half")
    event(runtime, "slow began").set()
    await event(runtime, "quick ended").wait()
    return "slow"


@tool
async def quick(runtime: ToolRuntime) -> dict[str, Any]:
    """End once `slow` has begun."""
    await event(runtime, "slow began").wait()
    asyncio.get_running_loop().call_soon(event(runtime, "quick ended").set)
    return {"quick": True}


@tool
def broken() -> str:
    """Fail, and let the model know."""
    raise ToolException("no luck")


broken.handle_tool_error = True


@tool
def ask(value: Any) -> str:
    """Ask a person."""
    return json.dumps(interrupt(value))


@tool
def ask_twice() -> str:
    """Ask a person, and then again."""
    return json.dumps([interrupt("first?"), interrupt({"second": "?"})])


@tool(return_direct=True)
def confirm() -> str:
    """Ask a person; nothing follows."""
    return json.dumps(interrupt("sure?"))


@tool(return_direct=True)
def stamp() -> str:
    """End the turn with this tool's result."""
    return "stamped"


@tool
def pay(to: str) -> str:
    """Pay somebody, if a person allows it."""
    return f"paid {to}"


class Actor(BaseChatModel):
    """Streams what the last message asks for."""

    @property
    def _llm_type(self) -> str:
        return "actor"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for step in act(messages):
            if isinstance(step, Exception):
                raise step
            if step is None:
                await asyncio.Event().wait()
            chunk = step if isinstance(step, AIMessageChunk) else AIMessageChunk(str(step))
            yield ChatGenerationChunk(message=chunk)
            await asyncio.sleep(PACE_S if "slowly" in messages[-1].text else 0)


def act(messages: list[BaseMessage]) -> list[Any]:
    """Return what the model does next: pieces of text, chunks, an exception, None to wait."""
    turns = [message.text for message in messages if message.type == "human"]
    if messages[-1].type == "tool":
        since = next(n for n, each in enumerate(reversed(messages)) if each.type == "human")
        results = [each.text for each in messages[-since:] if each.type == "tool"]
        return ["Then: ", *results]
    word, _, rest = turns[-1].partition(" ")
    match word:
        case "tools":
            names = ["slow", "quick", "broken"]
            return ["Let me see.", *many([(name, {}) for name in names])]
        case "think":
            thought = AIMessageChunk("", additional_kwargs={"reasoning_content": "hm"})
            return [thought, thought, "So ", "it ", "is."]
        case "ask":
            return ["I ask.", *many([("ask", {"value": json.loads(rest)})])]
        case "twice":
            return many([("ask_twice", {})])
        case "confirm":
            return many([("confirm", {})])
        case "stamp":
            return many([("stamp", {})])
        case "pay":
            return ["I pay.", *many([("pay", {"to": to}) for to in rest.split()])]
        case "fail":
            return ["Half", ValueError("secret")]
        case "hold":
            return ["Half", None]
        case "split":
            return ["Half \ud83d", None]
        case "write":
            return [f"{n} " for n in range(int(rest.split()[0]))]
    return [f"{len(turns)}: ", turns[-1]]


def many(calls: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    return [
        chunk
        for n, (name, given) in enumerate(calls)
        for chunk in call(name, json.dumps(given), f"call_{name}_{n}", n)
    ]


def agent() -> Any:
    tools = [slow, quick, broken, ask, ask_twice, confirm, stamp, pay]
    review = HumanInTheLoopMiddleware(interrupt_on={"pay": True})
    graph = create_agent(Actor(), tools, middleware=[review])
    return graph
