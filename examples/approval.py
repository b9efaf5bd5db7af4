"""A graph that asks a person before it acts. It needs no key. In this folder:

AGENT=approval:graph ../.venv/bin/python ../app.py
"""

from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt


def act(state: MessagesState) -> dict[str, list[AIMessage]]:
    wish = str(state["messages"][-1].text)
    # The run ends here as `interrupted`. The next request has the answer as `resume`. The node then
    # starts again from its first line, and `interrupt` returns the answer.
    answer = interrupt(f"May I do this: {wish}?")
    done = "Done" if answer in (True, "yes") else "Not done"
    return {"messages": [AIMessage(f"{done}: {wish}")]}


graph = StateGraph(MessagesState).add_node(act).add_edge(START, "act").compile()
