"""Models that follow a script, and graphs around them: the model is made up, the graph is real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import Field

from agent import Agent

Step = str | AIMessageChunk | BaseException | asyncio.Event | Callable[[], Any]
"""What a scripted model does next: say a piece, fail, wait for an event, or call a function."""


def call(tool: str, args: str, call_id: str, index: int = 0) -> list[AIMessageChunk]:
    """A tool call as a provider streams it: its name first, then its arguments in two pieces."""
    half = len(args) // 2
    parts = [(tool, "", call_id), (None, args[:half], None), (None, args[half:], None)]
    return [
        AIMessageChunk(
            content="",
            tool_call_chunks=[
                {"name": n, "args": a, "id": i, "index": index, "type": "tool_call_chunk"}
            ],
        )
        for n, a, i in parts
    ]


class ScriptedModel(BaseChatModel):
    """Answers the n-th call with the n-th list of steps, and keeps what it was asked."""

    script: list[list[Any]]
    asked: list[list[BaseMessage]] = Field(default_factory=list)
    streams: bool = True

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError

    async def _agenerate(self, messages: list[BaseMessage], *a: Any, **kw: Any) -> ChatResult:
        chunks = [chunk.message async for chunk in self._steps(messages)]
        whole = sum(chunks[1:], chunks[0])
        message = AIMessage(
            whole.content,
            tool_calls=whole.tool_calls,
            invalid_tool_calls=whole.invalid_tool_calls,
            usage_metadata=whole.usage_metadata,
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for chunk in self._steps(messages):
            yield chunk

    def _should_stream(self, *args: Any, **kwargs: Any) -> bool:
        return self.streams

    async def _steps(self, messages: list[BaseMessage]) -> AsyncIterator[ChatGenerationChunk]:
        self.asked.append(messages)
        for step in self.script[len(self.asked) - 1]:
            match step:
                case BaseException():
                    raise step
                case asyncio.Event():
                    await step.wait()
                case str():
                    yield ChatGenerationChunk(message=AIMessageChunk(content=step))
                case AIMessageChunk():
                    yield ChatGenerationChunk(message=step.model_copy())
                case _:
                    step()
            await asyncio.sleep(0)


def loop_graph(
    model: BaseChatModel, tools: Sequence[Any], **options: Any
) -> CompiledStateGraph[Any, Any, Any, Any]:
    """A model that calls tools until it has an answer; ``options`` are the tool node's."""
    bound = model.bind_tools(list(tools))

    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", answer)
    graph.add_node("tools", ToolNode(list(tools), **options))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile()


def scripted_agent(script: list[list[Any]], tools: Sequence[Any] = (), **options: Any) -> Agent:
    return Agent(loop_graph(ScriptedModel(script=script), tools, **options), "scripted")


def as_openai(message: Any) -> dict[str, Any]:
    from langchain_openai.chat_models.base import _convert_message_to_dict

    return {"tool_calls": None, **_convert_message_to_dict(message)}
