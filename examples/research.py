"""An agent with a sub-agent. In this folder:

../.venv/bin/pip install langchain
AGENT=research:graph OPENAI_API_KEY=sk-… ../.venv/bin/python ../app.py
"""

import os

from langchain.agents import create_agent
from langchain_openai import ChatOpenAI

model = ChatOpenAI(model=os.environ.get("OPENAI_MODEL", "gpt-5-mini"))

NOTES = {"cats": "Cats sleep up to 16 hours a day.", "dogs": "Dogs sleep up to 14 hours a day."}


def read_notes(topic: str) -> str:
    """Return the notes on a topic: cats or dogs."""
    return NOTES.get(topic.lower(), "There are no notes on this.")


researcher = create_agent(model, [read_notes], system_prompt="Answer from the notes alone.")


async def research(question: str) -> str:
    """Ask the researcher, who has notes on cats and dogs."""
    found = await researcher.ainvoke({"messages": [("user", question)]})
    return str(found["messages"][-1].text)


graph = create_agent(model, [research], system_prompt="Research before you answer.")
