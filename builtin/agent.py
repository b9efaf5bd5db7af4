"""The agent that answers if no other is set: a model that calls tools in a loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, SystemMessage, ToolMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode

from builtin.demo import DemoModel
from builtin.tools import make_tools

SYSTEM = SystemMessage(
    "You are a helpful assistant. Answer in the language of the question. Use a tool where it "
    "knows better than you; call several at once where the question has several parts."
)
NO_OBJECT = "The arguments are not a JSON object, so the tool did not start."


def built_in(
    docs: Path, tokens_per_s: float, api_key: str, base_url: str, model: str
) -> tuple[CompiledStateGraph[Any, Any, Any, Any], str]:
    """Return the graph, without a checkpointer, and the name of its model.

    Without a key and an address it is the demo model, which streams at ``tokens_per_s`` (0: without
    pauses). ``docs`` is the folder or file that the tool ``search_docs`` searches.
    """
    tools = make_tools(docs)
    chat: BaseChatModel = DemoModel(tokens_per_s=tokens_per_s)
    if api_key or base_url:
        # This import takes longer than all others together, and the demo model does not need it.
        from builtin.openai import openai_model

        chat = openai_model(api_key, base_url, model)
    bound = chat.bind_tools(tools)

    async def call_model(state: MessagesState) -> dict[str, list[AnyMessage]]:
        answer = await bound.ainvoke([SYSTEM, *state["messages"]])
        # Providers refuse a history in which a tool call has no result.
        errors = [
            ToolMessage(NO_OBJECT, name=call["name"], tool_call_id=call["id"], status="error")
            for call in answer.invalid_tool_calls
        ]
        return {"messages": [answer, *errors]}

    def next_node(state: MessagesState) -> str:
        answer = next(m for m in reversed(state["messages"]) if isinstance(m, AIMessage))
        if answer.tool_calls:
            return "tools"
        return "model" if answer.invalid_tool_calls else END

    graph = StateGraph(MessagesState).add_node("model", call_model)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "model").add_edge("tools", "model")
    graph.add_conditional_edges("model", next_node, ["model", "tools", END])
    return graph.compile(), model if api_key or base_url else "demo"
