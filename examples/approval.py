"""A graph that asks a person before it acts: AGENT=approval:graph, from this folder. No key."""

from langchain_core.messages import AIMessage
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt


def act(state: MessagesState) -> dict[str, list[AIMessage]]:
    wish = str(state["messages"][-1].text)
    # The run ends here as `interrupted`. The answer comes back as `resume`, and the node starts
    # again from its top.
    answer = interrupt(f"May I do this: {wish}?")
    done = "Done" if answer in (True, "yes") else "Not done"
    return {"messages": [AIMessage(f"{done}: {wish}")]}


graph = StateGraph(MessagesState).add_node(act).add_edge(START, "act").compile()
