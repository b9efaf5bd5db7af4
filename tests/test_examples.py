"""The examples, each as the real process runs it from its folder."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.client import check
from tests.conftest import ROOT, Process
from tests.upstream import Upstream, text, tool_call

Launch = Callable[..., Awaitable[Process]]
FOLDER = ROOT / "examples"


def with_examples(name: str, **environ: str) -> dict[str, str]:
    return {"AGENT": f"{name}:graph", "PYTHONPATH": str(FOLDER), **environ}


async def test_echo_answers(launch: Launch) -> None:
    server = await launch(**with_examples("echo"))
    assert (await server.run("hello"))[-2]["content"] == "You said: hello"


async def test_approval_waits_for_a_person(launch: Launch) -> None:
    server = await launch(**with_examples("approval"))
    for answer, expected in (("yes", "Done: clean up"), ("no", "Not done: clean up")):
        events = await server.run("clean up", thread_id=answer)
        assert events[-2]["interrupts"][0]["value"] == "May I do this: clean up?"
        assert (await server.run(resume=answer, thread_id=answer))[-2]["content"] == expected


async def test_own_tools_calls_its_tool(launch: Launch, upstream: Upstream) -> None:
    upstream.replies = [tool_call("price", '{"item": "bread"}'), text("3.20 euros.")]
    environ = {"OPENAI_BASE_URL": upstream.url, "OPENAI_API_KEY": "k"}
    server = await launch(**with_examples("own_tools", **environ))
    events = await server.run("What does bread cost?")
    [result] = [e["result"] for e in events if e["type"] == "tool_result"]
    assert result == {"euros": 3.2}
    assert events[-2]["content"] == "3.20 euros."


async def test_research_asks_its_sub_agent(launch: Launch, upstream: Upstream) -> None:
    upstream.replies = [
        tool_call("research", '{"question": "How long do cats sleep?"}', call_id="r1"),
        tool_call("read_notes", '{"topic": "cats"}', call_id="n1"),
        text("16 hours, say the notes."),
        text("Up to 16 hours."),
    ]
    environ = {"OPENAI_BASE_URL": upstream.url, "OPENAI_API_KEY": "k"}
    server = await launch(**with_examples("research", **environ))
    events = await server.run("How long do cats sleep?")
    check(events)
    assert [e["tool"] for e in events if e["type"] == "tool_call"] == ["research", "read_notes"]
    # The sub-agent's words are the tool's result and no answer text.
    assert "".join(e["content"] for e in events if e["type"] == "text_delta") == "Up to 16 hours."


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 40
