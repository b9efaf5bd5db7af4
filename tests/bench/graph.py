"""The graph that every server of the bench runs, and the model in it, which follows a script.

The user's message is the script, as JSON: how many ``tokens``, at how many ``per_s`` (0: as fast as
the server goes), ``after_s`` which pause, and whether to ``hold`` the answer open behind them. With
``BENCH_UPSTREAM`` the model is ``ChatOpenAI`` and the upstream there reads the script.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from tests.bench.upstream import pace


class ScriptedModel(BaseChatModel):
    """Streams what the last message asks for, letting others run at each token."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, Any]:
        return self

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        script = json.loads(str(messages[-1].text))
        async for piece in pace(script):
            yield ChatGenerationChunk(message=AIMessageChunk(content=piece))


def make_model() -> BaseChatModel:
    if upstream := os.environ.get("BENCH_UPSTREAM"):
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(model="bench", base_url=upstream, api_key="none")  # type: ignore[arg-type]
    return ScriptedModel()


def echo(text: str) -> str:
    """Return the text."""
    return text


def make_graph() -> CompiledStateGraph[Any, Any, Any, Any]:
    """Return an agent: a model that may call a tool, in a loop."""
    bound = make_model().bind_tools([echo])

    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", answer)
    graph.add_node("tools", ToolNode([echo]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile()


graph = make_graph()
