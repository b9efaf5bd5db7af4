"""A model with your own tool. In this folder:

AGENT=own_tools:graph OPENAI_API_KEY=sk-… ../.venv/bin/python ../app.py
"""

import os

from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition


def price(item: str) -> dict[str, float]:
    """Return the price of an item in euros: apple, bread or cheese."""
    return {"euros": {"apple": 0.4, "bread": 3.2, "cheese": 5.5}[item]}


model = ChatOpenAI(model=os.environ.get("OPENAI_MODEL", "gpt-5-mini")).bind_tools([price])


async def answer(state: MessagesState):
    return {"messages": [await model.ainvoke(state["messages"])]}


builder = StateGraph(MessagesState).add_node("model", answer).add_node(ToolNode([price]))
builder.add_edge(START, "model").add_conditional_edges("model", tools_condition)
graph = builder.add_edge("tools", "model").compile()
