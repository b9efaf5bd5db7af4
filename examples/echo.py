"""A graph without a model: AGENT=echo:graph, from this folder. It needs no key."""

from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph


def answer(state: MessagesState) -> dict[str, list[AIMessage]]:
    said = str(state["messages"][-1].text)
    return {"messages": [AIMessage(f"You said: {said}")]}


graph = StateGraph(MessagesState).add_node(answer).add_edge(START, "answer").compile()
