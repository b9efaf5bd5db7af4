"""Agents that this project did not write, and the translation's second source."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from deepagents import create_deep_agent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.messages import AIMessageChunk
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command

from agent import Agent, ToolScope, Translator, Turn, stream_events, stream_parts
from app import Asked, Run, Settings
from events import MemoryStore, StreamEvent
from tests.client import check, kinds
from tests.conftest import Server
from tests.scripted import ScriptedModel, as_openai, call, loop_graph
from tests.test_agent import add, approve, broken, of, picky, report, shout, text_of, usage
from tests.upstream import lacks_a_result

Start = Callable[..., Awaitable[Server]]


async def test_create_agent_with_a_person_in_the_loop(start: Start) -> None:
    first, second = (
        [*call("add", '{"a": 1, "b": 2}', f"a{n}"), *call("shout", '{"text": "a"}', f"s{n}", 1)]
        for n in range(2)
    )
    model = ScriptedModel(script=[first, ["Three."], second, ["As you like."]])
    graph = create_agent(
        model, [add, shout], middleware=[HumanInTheLoopMiddleware(interrupt_on={"add": True})]
    )
    server = await start(Agent(graph, "x"))
    events = await server.run("1 + 2?", thread_id="t")
    [pending] = of(events, "interrupt")[0]["interrupts"]
    assert pending["value"]["action_requests"][0]["name"] == "add"
    assert events[-1]["reason"] == "interrupted"
    resumed = await server.run(resume={"decisions": [{"type": "approve"}]}, thread_id="t")
    assert {e["tool"]: e["status"] for e in of(resumed, "tool_result")} == {
        "add": "ok",
        "shout": "ok",
    }
    assert resumed[-2]["content"] == "Three."
    await server.run("again", thread_id="t")
    rejected = await server.run(
        resume={"decisions": [{"type": "reject", "message": "not today"}]}, thread_id="t"
    )
    result = next(e for e in of(rejected, "tool_result") if e["tool"] == "add")
    assert (result["status"], "not today" in result["message"]) == ("error", True)
    assert rejected[-2]["content"] == "As you like."


async def test_a_deep_agent_with_a_sub_agent(start: Start) -> None:
    sub = {
        "name": "adder",
        "description": "Adds.",
        "system_prompt": "Add.",
        "tools": [add],
        "model": ScriptedModel(script=[call("add", '{"a": 1, "b": 2}', "s1"), ["sub says 3"]]),
    }
    task = '{"description": "add 1 and 2", "subagent_type": "adder"}'
    model = ScriptedModel(
        script=[
            call("ls", '{"path": "/"}', "c0"),
            call("task", task, "c1"),
            ["The sum is ", "3."],
        ]
    )
    server = await start(Agent(create_deep_agent(model, subagents=[sub]), "x"))
    events = await server.run("1 + 2?", thread_id="t")
    assert events[-1]["reason"] == "completed"
    assert events[-2]["content"] == text_of(events) == "The sum is 3."
    assert [e["tool"] for e in of(events, "tool_call")] == ["ls", "task", "add"]
    results = {e["tool"]: e["result"] for e in of(events, "tool_result")}
    assert results["add"] == {"sum": 3}
    assert results["task"] == {"content": "sub says 3"}
    assert (await server.call("GET", "/api/threads/t"))[1]["messages"][-1]["content"] == (
        "The sum is 3."
    )


async def test_a_supervisor_of_two_agents(start: Start) -> None:
    adder = loop_graph(
        ScriptedModel(script=[call("add", '{"a": 1, "b": 2}', "a1"), ["It is 3."]]), [add]
    )
    shouter = loop_graph(
        ScriptedModel(script=[call("shout", '{"text": "three"}', "b1"), ["THREE."]]), [shout]
    )

    def supervise(state: MessagesState) -> Command[Any]:
        done = [m for m in state["messages"] if m.type == "ai" and not m.tool_calls]
        return Command(goto=["adder", "shouter", "__end__"][len(done)])

    graph = StateGraph(MessagesState)
    graph.add_node("supervise", supervise, destinations=("adder", "shouter", "__end__"))
    graph.add_node("adder", adder)
    graph.add_node("shouter", shouter)
    graph.add_edge(START, "supervise")
    graph.add_edge("adder", "supervise")
    graph.add_edge("shouter", "supervise")
    events = await (await start(Agent(graph.compile(), "x"))).run("go")
    assert kinds(events)[2:] == [
        *("tool_call", "tool_result", "text_delta", "tool_call", "tool_result", "text_delta"),
        *("final_answer", "done"),
    ]
    assert text_of(events) == "It is 3.THREE."
    assert events[-2]["content"] == "THREE."


# ------------------------------------------------------------------------------------- two sources


def scripts() -> dict[str, tuple[list[list[Any]], list[Any], dict[str, Any]]]:
    thought = AIMessageChunk(content="", additional_kwargs={"reasoning_content": "hm"})
    parallel = [*call("add", '{"a": 1, "b": 2}', "c1"), *call("shout", '{"text": "x"}', "c2", 1)]
    return {
        "text": ([[thought, "a", "b", usage(2)]], [], {}),
        "tools": ([["x", *parallel], ["done"]], [add, shout], {}),
        "unknown": ([call("nope", '{"x": 1}', "c1"), ["ok"]], [add], {}),
        "broken arguments": ([call("shout", "not json", "c1")], [shout], {}),
        "cut arguments": ([call("shout", '{"text":', "c1"), ["ok"]], [shout], {}),
        "refused": ([call("picky", '{"n": 1}', "c1"), ["ok"]], [picky], {}),
        "handled": ([call("broken", "{}", "c1"), ["ok"]], [broken], {"handle_tool_errors": True}),
        "raised": ([call("broken", "{}", "c1")], [broken], {}),
        "progress": ([call("report", "{}", "c1"), ["ok"]], [report], {}),
        "interrupt": ([call("approve", '{"what": "x"}', "c1")], [approve], {}),
    }


ONLY_PARTS = {"tool_progress"}
"""What the second source cannot tell."""


@pytest.mark.parametrize("name", scripts())
@pytest.mark.parametrize("streams", [True, False])
async def test_both_sources_tell_the_same_events(name: str, streams: bool) -> None:
    told = []
    for source in (stream_parts, stream_events):
        script, tools, options = scripts()[name]
        model = ScriptedModel(script=script, streams=streams)
        graph = loop_graph(model, tools, **options).copy({"checkpointer": InMemorySaver()})
        translator = Translator(ToolScope())
        config = {"configurable": {"thread_id": "t"}, "callbacks": [translator.scope]}
        translate = translator.translate if source is stream_parts else translator.translate_event
        events: list[StreamEvent] = []
        try:
            async for part in source(graph, {"messages": [("user", "go")]}, config):
                events += translate(part)
        except RuntimeError:
            assert name == "raised"
        history = (await graph.aget_state(config)).values["messages"]
        if name != "raised":
            events += translator.finish(history)
        events += translator.never_started()
        rows = [event.to_dict() for event in events if event.type not in ONLY_PARTS]
        names: dict[str, int] = {}
        for row in rows:
            if "message_id" in row:
                row["message_id"] = names.setdefault(row["message_id"], len(names))
            for pending in row.get("interrupts", ()):
                del pending["id"]
        told.append((rows, translator.usage, translator.interrupted))
    assert told[0] == told[1]
    assert told[0][0]


# -------------------------------------------------------------------------------------- properties

TOOLS = [add, shout, broken, picky, approve, report]
ARGUMENTS = st.sampled_from(
    ['{"a": 1, "b": 2}', '{"text": "x"}', '{"n": 1}', '{"what": "x"}', "{}", "", "nope", '{"a":']
)
PIECES = st.one_of(
    st.text(max_size=5),
    st.just(AIMessageChunk(content=[{"type": "text", "text": "block"}])),
    st.just(AIMessageChunk(content="", additional_kwargs={"reasoning_content": "hm"})),
    st.just(usage(1)),
)
CALLS = st.lists(
    st.tuples(
        st.sampled_from([*(each.name for each in TOOLS), "nope"]),
        ARGUMENTS,
        st.sampled_from(["c1", "c2", "c3"]),
    ),
    max_size=3,
    unique_by=lambda row: row[2],
)
FAILURES = st.sampled_from([None, None, None, ValueError("secret"), "stop", "hang"])
TURNS = st.lists(st.tuples(st.lists(PIECES, max_size=4), CALLS, FAILURES), min_size=1, max_size=4)


@settings(
    max_examples=int(os.environ.get("EXAMPLES", "150")),
    derandomize="EXAMPLES" not in os.environ,  # by hand: others each time
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    turns=TURNS,
    handled=st.booleans(),
    streams=st.booleans(),
    reason=st.sampled_from(["cancelled", "shutdown", "timeout"]),
)
def test_any_script_keeps_what_always_holds(
    turns: Any, handled: bool, streams: bool, reason: str
) -> None:
    """Also for the next turn, whose history a provider has to accept."""

    async def check_it() -> None:
        script: list[list[Any]] = []
        run: Run | None = None
        for pieces, calls, failure in turns:
            steps = [*pieces]
            for index, (tool, arguments, call_id) in enumerate(calls):
                steps += call(tool, arguments, call_id, index)
            if isinstance(failure, ValueError):
                steps.append(failure)
            elif failure == "stop":
                steps.append(lambda: run and run.stop(reason))
            elif failure == "hang":
                steps += [lambda: run and run.stop(reason), asyncio.Event()]
            script.append(steps)
        model = ScriptedModel(script=[*script, ["over"], ["over"]], streams=streams)
        agent = Agent(loop_graph(model, TOOLS, handle_tool_errors=handled), "x")
        run = Run(Asked("t", "go", None, None, ""), Settings(), MemoryStore())
        run.end(await asyncio.wait_for(run.drive(Turn(agent, "t", "go")), 10))
        check(frames(run))
        asked = len(model.asked)
        model.script[asked:] = [["fine"]]
        after = Run(Asked("t", "and now?", None, None, ""), Settings(), MemoryStore())
        after.end(await asyncio.wait_for(after.drive(Turn(agent, "t", "and now?")), 10))
        check(frames(after))
        assert frames(after)[-2]["content"] == "fine"
        assert lacks_a_result([as_openai(message) for message in model.asked[asked]]) is None

    asyncio.run(check_it())


def frames(run: Run) -> list[dict[str, Any]]:
    import json

    raw, _ = run.log.read(0, 2**30)
    assert b"secret" not in raw
    blocks = raw.decode("utf-8").split("\n\n")[:-1]
    return [json.loads(block.split("\ndata: ")[1]) for block in blocks]
