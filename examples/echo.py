"""A graph without a model. It needs no key. In this folder:

AGENT=echo:graph ../.venv/bin/python ../app.py
"""

from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph


def answer(state: MessagesState) -> dict[str, list[AIMessage]]:
    said = str(state["messages"][-1].text)
    return {"messages": [AIMessage(f"You said: {said}")]}


graph = StateGraph(MessagesState).add_node(answer).add_edge(START, "answer").compile()
