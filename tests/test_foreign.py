"""Agents that this project did not write, and what holds for any script of a model."""

from __future__ import annotations

import asyncio
import json
import operator
import os
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypedDict

import pytest
from deepagents import create_deep_agent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain.agents.middleware import (
    HumanInTheLoopMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    PIIMiddleware,
    SummarizationMiddleware,
    ToolCallLimitMiddleware,
    ToolRetryMiddleware,
)
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langgraph.func import entrypoint
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.store.base import BaseStore
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command
from langgraph_supervisor import create_supervisor
from langgraph_swarm import create_handoff_tool, create_swarm
from pydantic import BaseModel

from agent import Agent
from edge.settings import Settings
from events import Asked
from runs.registry import AnyRun, MemoryStore, Registry
from tests.client import FRAME, Event, check, kinds
from tests.conftest import Server
from tests.scripted import ScriptedModel, as_openai, call, loop_graph
from tests.test_agent import add, approve, broken, of, picky, report, shout, text_of, usage
from tests.upstream import lacks_a_result

Start = Callable[..., Awaitable[Server]]

HANDLED = "Error: ValueError('secret-sauce')\n Please fix your mistakes."
HANDLED_ODD = HANDLED.replace("ValueError", "RuntimeError")
"""What a ToolNode that handles errors gives its model, and so its reader."""


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


class Appending(TypedDict):
    messages: Annotated[list[Any], operator.add]


@tool
def fragile() -> str:
    """Raises."""
    raise ValueError("secret-sauce")


def handling(
    model: ScriptedModel,
    *tools: Any,
    state: Any = MessagesState,
    begin: Callable[..., str] | None = None,
) -> Agent:
    """An agent whose tools' exceptions are told to its model; ``begin`` routes from the start."""

    async def answer(given: Any) -> Any:
        return {"messages": [await model.ainvoke(given["messages"])]}

    graph = StateGraph(state)
    graph.add_node("model", answer)
    graph.add_node("tools", ToolNode([*tools], handle_tool_errors=True))
    graph.add_conditional_edges(START, begin or (lambda _: "model"), ["model"])
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return Agent(graph.compile(), "x")


async def test_a_graph_that_only_appends_keeps_its_threads_in_order(start: Start) -> None:
    """LangGraph's quickstart has no reducer that knows ids."""
    go = asyncio.Event()
    model = ScriptedModel(
        script=[call("fragile", "{}", "c1"), ["It failed."], ["Half", go], ["Hello."]]
    )
    server = await start(handling(model, fragile, state=Appending))
    assert (await server.run("one", thread_id="t"))[-2]["content"] == "It failed."
    stream = await server.ask("two", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    await stream.until("text_delta")
    await server.call("POST", f"/api/runs/{run_id}/cancel")
    assert (await server.run("three", thread_id="t"))[-2]["content"] == "Hello."
    _, thread = await server.call("GET", "/api/threads/t")
    assert [(m["role"], m.get("content") or m.get("message", "")) for m in thread["messages"]] == [
        *(("user", "one"), ("assistant", ""), ("tool", HANDLED)),
        *(("assistant", "It failed."), ("user", "two"), ("assistant", "Half")),
        *(("user", "three"), ("assistant", "Hello.")),
    ]
    for asked in model.asked:
        assert not lacks_a_result([as_openai(message) for message in asked])


async def test_a_node_that_returns_dicts_answers_each_turn(start: Start) -> None:
    graph = StateGraph(Appending)
    graph.add_node("n", lambda s: {"messages": [{"role": "assistant", "content": f"{len(s)}!"}]})
    graph.add_edge(START, "n")
    server = await start(Agent(graph.compile(), "x"))
    for _ in range(3):
        events = await server.run("hi", thread_id="t")
        assert text_of(events) == events[-2]["content"] == "1!"


@pytest.mark.parametrize("end", ["cancelled", "completed"])
async def test_settling_a_thread_does_not_ask_the_graph_where_to_begin(
    start: Start, end: str
) -> None:
    routed: list[str] = []
    half = ["Half", asyncio.Event()]
    failing = [call("fragile", "{}", "c1"), ["It failed."]]
    script = [half] if end == "cancelled" else failing

    def begin(state: MessagesState) -> str:
        routed.append(state["messages"][-1].type)
        return "model"

    model = ScriptedModel(script=[*script, ["Hello."]])
    server = await start(handling(model, fragile, begin=begin))
    stream = await server.ask("one", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    await stream.until("text_delta")
    if end == "cancelled":
        await server.call("POST", f"/api/runs/{run_id}/cancel")
    assert (await stream.until("done"))["reason"] == end
    assert (await server.run("two", thread_id="t"))[-2]["content"] == "Hello."
    assert routed == ["human", "human"]


class Odd:
    def __str__(self) -> str:
        raise RuntimeError("secret-sauce")


@tool
def odd() -> Any:
    """Returns what has no text."""
    return Odd()


async def test_a_result_that_cannot_be_told_is_a_failure_where_it_happened(start: Start) -> None:
    model = ScriptedModel(script=[call("odd", "{}", "c1"), ["It failed."]])
    server = await start(handling(model, odd))
    events = await server.run("go", thread_id="t")
    assert kinds(events)[2:] == ["tool_call", "tool_result", "text_delta", "final_answer", "done"]
    [result] = of(events, "tool_result")
    assert (result["status"], result["message"]) == ("error", HANDLED_ODD)
    [told] = [
        m
        for m in (await server.call("GET", "/api/threads/t"))[1]["messages"]
        if m["role"] == "tool"
    ]
    assert (told["status"], told["message"]) == ("error", HANDLED_ODD)


async def test_a_call_without_an_id_does_not_break_its_thread(start: Start) -> None:
    nameless = AIMessageChunk(
        content="",
        tool_calls=[{"name": "fragile", "args": {}, "id": None, "type": "tool_call"}],
    )
    model = ScriptedModel(script=[[nameless], ["Hello."]], streams=False)
    graph = loop_graph(model, [fragile])
    server = await start(Agent(graph, "x"))
    await server.run("one", thread_id="t")
    assert (await server.run("two", thread_id="t"))[-2]["content"] == "Hello."


# ------------------------------------------------------------------------------------ middlewares


async def agree(server: Server, thread_id: str, events: list[Event]) -> list[dict[str, Any]]:
    """Hold a run's events against its thread's document: the same answer, the same results."""
    check(events)
    _, thread = await server.call("GET", f"/api/threads/{thread_id}")
    messages: list[dict[str, Any]] = thread["messages"]
    if events[-2]["type"] == "final_answer":
        assert messages[-1]["content"] == events[-2]["content"]
    results = {m["tool_call_id"]: m for m in messages if m["role"] == "tool"}
    for event in of(events, "tool_result"):
        if kept := results.get(event["tool_call_id"]):
            assert {"role": "tool", **event} == {"type": "tool_result", **kept}
    return messages


async def test_a_middleware_that_redacts_changes_the_final_answer_too(start: Start) -> None:
    redact = PIIMiddleware("email", strategy="redact", apply_to_output=True, apply_to_input=False)
    model = ScriptedModel(script=[["Write to ", "a@b.example", "."]])
    server = await start(Agent(create_agent(model, [], middleware=[redact]), "x"))
    stream = await server.ask("hi", thread_id="t")
    events = await stream.events()
    assert "".join(e["content"] for e in of(events, "text_delta")) == "Write to a@b.example."
    assert events[-2]["content"] == "Write to [REDACTED_EMAIL]."
    _, thread = await server.call("GET", "/api/threads/t")
    assert thread["messages"][-1]["content"] == "Write to [REDACTED_EMAIL]."
    _, state = await server.call("GET", f"/api/runs/{events[0]['run_id']}")
    assert state["answer"] == "Write to [REDACTED_EMAIL]."


async def test_a_summary_is_neither_streamed_nor_an_answer(start: Start) -> None:
    summaries = ScriptedModel(script=[["SUMMARY"]] * 3)
    middleware = SummarizationMiddleware(summaries, trigger=("messages", 3), keep=("messages", 2))
    model = ScriptedModel(script=[["one"], ["two"], ["three"]])
    server = await start(Agent(create_agent(model, [], middleware=[middleware]), "x"))
    for text, answer in (("a", "one"), ("b", "two"), ("c", "three")):
        events = await server.run(text, thread_id="t")
        assert text_of(events) == answer
        await agree(server, "t", events)


async def test_a_tool_that_is_tried_again_is_one_call(start: Start) -> None:
    tries = 0

    @tool
    async def flaky() -> str:
        """Fail at first."""
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ValueError("secret")
        return "fine"

    retry = ToolRetryMiddleware(max_retries=2, initial_delay=0, jitter=False)
    model = ScriptedModel(script=[call("flaky", "{}", "c1"), ["ok"]])
    server = await start(Agent(create_agent(model, [flaky], middleware=[retry]), "x"))
    events = await server.run("go", thread_id="t")
    assert kinds(events)[2:] == [
        *("tool_call", "tool_result", "text_delta", "final_answer", "done")
    ]
    await agree(server, "t", events)


async def test_a_model_that_takes_anothers_place_answers(start: Start) -> None:
    class Down(Exception):
        status_code = 503

    second = ScriptedModel(script=[["from the second"]])
    first = ScriptedModel(script=[[Down("secret")]])
    graph = create_agent(first, [], middleware=[ModelFallbackMiddleware(second)])
    server = await start(Agent(graph, "x"))
    events = await server.run("go", thread_id="t")
    assert events[-2]["content"] == "from the second"
    await agree(server, "t", events)


async def test_limits_on_calls_are_answered(start: Start) -> None:
    script = [call("add", '{"a": 1, "b": 1}', "c1"), call("add", '{"a": 1, "b": 1}', "c2"), ["ok"]]
    for limit in (
        ModelCallLimitMiddleware(run_limit=1, exit_behavior="end"),
        ToolCallLimitMiddleware(run_limit=1),
    ):
        model = ScriptedModel(script=script)
        server = await start(Agent(create_agent(model, [add], middleware=[limit]), "x"))
        events = await server.run("go", thread_id="t")
        assert events[-1]["reason"] == "completed"
        await agree(server, "t", events)


async def test_a_rejected_call_is_closed_once(start: Start) -> None:
    model = ScriptedModel(script=[call("add", '{"a": 1, "b": 1}', "c1"), ["As you like."]])
    review = HumanInTheLoopMiddleware(interrupt_on={"add": True})
    server = await start(Agent(create_agent(model, [add], middleware=[review]), "x"))
    await server.run("go", thread_id="t")
    answer = {"decisions": [{"type": "reject", "message": "No."}]}
    events = await server.run(resume=answer, thread_id="t")
    assert kinds(events)[2:] == [
        *("tool_call", "tool_result", "text_delta", "final_answer", "done")
    ]
    await agree(server, "t", events)


# langgraph-supervisor calls what LangGraph has moved.
@pytest.mark.filterwarnings("ignore:create_react_agent has been moved")
async def test_a_supervisor_and_a_swarm_hand_over(start: Start) -> None:
    adder = create_agent(
        ScriptedModel(script=[call("add", '{"a": 1, "b": 1}', "m1"), ["It is 2."]]),
        [add],
        name="adder",
    )
    boss = ScriptedModel(script=[call("transfer_to_adder", "{}", "s1"), ["Final: 2"]])
    server = await start(Agent(create_supervisor([adder], model=boss).compile(), "x"))
    events = await server.run("go", thread_id="t")
    tools = [event["tool"] for event in of(events, "tool_call")]
    assert tools == ["transfer_to_adder", "add", "transfer_back_to_supervisor"]
    assert events[-2]["content"] == "Final: 2"
    await agree(server, "t", events)

    hand_over = create_handoff_tool(agent_name="bob")
    alice = ScriptedModel(script=[call("transfer_to_bob", "{}", "h1")])
    bob = ScriptedModel(script=[["I am Bob."], ["Still Bob."]])
    agents = [create_agent(alice, [hand_over], name="alice"), create_agent(bob, [], name="bob")]
    swarm = create_swarm(agents, default_active_agent="alice").compile()
    server = await start(Agent(swarm, "x"))
    for text, expected in (("hi", "I am Bob."), ("again", "Still Bob.")):
        events = await server.run(text, thread_id="t")
        assert events[-2]["content"] == expected
        await agree(server, "t", events)


async def test_a_function_of_the_functional_api_is_an_agent(start: Start) -> None:
    model = ScriptedModel(script=[["One."], ["Two."]])

    @entrypoint()
    async def answer(given: dict[str, Any]) -> Any:
        return await model.ainvoke(given["messages"])

    server = await start(Agent(answer, "x"))
    for text, expected in (("a", "One."), ("b", "Two.")):
        events = await server.run(text, thread_id="t")
        assert text_of(events) == expected
        await agree(server, "t", events)
    assert [str(m.text) for m in model.asked[1]] == ["a", "One.", "b"]


@pytest.mark.parametrize("tag", ["nostream", "langsmith:nostream"])
async def test_a_message_that_is_not_to_be_streamed_is_in_the_thread_alone(
    start: Start, tag: str
) -> None:
    hidden = ScriptedModel(script=[["hidden words", usage(3)]]).with_config(tags=[tag])
    shown = ScriptedModel(script=[["shown", usage(1)]])

    def node(model: Any) -> Any:
        async def answer(state: MessagesState) -> dict[str, Any]:
            return {"messages": [await model.ainvoke(state["messages"])]}

        return answer

    graph = StateGraph(MessagesState)
    graph.add_node("one", node(hidden))
    graph.add_node("two", node(shown))
    graph.add_edge(START, "one")
    graph.add_edge("one", "two")
    server = await start(Agent(graph.compile(), "x"))
    stream = await server.ask("hi", thread_id="t")
    events = await stream.events()
    assert b"hidden" not in stream.raw
    assert events[-1]["usage"]["total_tokens"] == 8
    messages = await agree(server, "t", events)
    assert [m["content"] for m in messages] == ["hi", "hidden words", "shown"]


class Point(BaseModel):
    x: int = 3


@pytest.mark.parametrize(
    ("output", "text"),
    [({"k": [1]}, '{"k": [1]}'), ([1, 2], "[1, 2]"), (4, "4"), (Point(), '{"x": 3}')],
)
async def test_what_a_runnable_returns_is_sent_and_remembered(
    start: Start, output: Any, text: str
) -> None:
    server = await start(Agent(RunnableLambda(lambda given: output), "x"))
    events = await server.run("hi", thread_id="t")
    assert events[-2]["content"] == text
    await agree(server, "t", events)


async def test_a_string_parser_behind_a_model_says_nothing_twice(start: Start) -> None:
    prompt = ChatPromptTemplate.from_messages([("placeholder", "{messages}")])
    model = ScriptedModel(script=[["a ", "b"], ["c"]])
    server = await start(Agent(prompt | model | StrOutputParser(), "x"))
    for text, expected in (("one", "a b"), ("two", "c")):
        events = await server.run(text, thread_id="t")
        assert text_of(events) == expected
        await agree(server, "t", events)


async def test_a_wrapped_graph_keeps_its_own_store(start: Start) -> None:
    store = InMemoryStore()

    def note(state: MessagesState, *, store: BaseStore) -> dict[str, Any]:
        store.put(("notes",), "last", {"text": str(state["messages"][-1].text)})
        return {"messages": [AIMessage("Noted.")]}

    graph = StateGraph(MessagesState)
    graph.add_node("note", note)
    graph.add_edge(START, "note")
    server = await start(Agent(graph.compile(store=store).with_retry(), "x"))
    assert (await server.run("remember me"))[-2]["content"] == "Noted."
    found = store.get(("notes",), "last")
    assert found
    assert found.value == {"text": "remember me"}


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
        run: AnyRun | None = None
        for pieces, calls, failure in turns:
            steps = [*pieces]
            for index, (name, arguments, call_id) in enumerate(calls):
                steps += call(name, arguments, call_id, index)
            if isinstance(failure, ValueError):
                steps.append(failure)
            elif failure == "stop":
                steps.append(lambda: run and run.stop(reason))
            elif failure == "hang":
                steps += [lambda: run and run.stop(reason), asyncio.Event()]
            script.append(steps)
        model = ScriptedModel(script=[*script, ["over"], ["over"]], streams=streams)
        agent = Agent(loop_graph(model, TOOLS, handle_tool_errors=handled), "x")
        runs = Registry(Settings(), agent, MemoryStore())
        run = await runs.start(Asked("t", "go"))
        await ended(run)
        check(frames(run))
        asked = len(model.asked)
        model.script[asked:] = [["fine"]]
        after = await runs.start(Asked("t", "and now?"))
        await ended(after)
        check(frames(after))
        assert frames(after)[-2]["content"] == "fine"
        assert lacks_a_result([as_openai(message) for message in model.asked[asked]]) is None

    asyncio.run(check_it())


async def ended(run: AnyRun) -> None:
    async with asyncio.timeout(10):
        while not run.log.closed:
            await run.log.wait(run.log.last_id, 10)


def frames(run: AnyRun) -> list[dict[str, Any]]:
    raw, _ = run.log.read(0, 2**30)
    return [json.loads(data) for _, data, _ in FRAME.findall(raw)]
