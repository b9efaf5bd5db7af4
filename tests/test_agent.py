"""What LangGraph says, as events: scripted models in real graphs, through HTTP."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    RemoveMessage,
    ToolMessage,
)
from langchain_core.runnables import RunnableConfig, RunnableLambda
from langchain_core.tools import ToolException, tool
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolRuntime
from langgraph.runtime import Runtime
from langgraph.types import Command, interrupt
from pydantic import BaseModel

from agent import Agent, Translator, Turn
from events import Asked, SettingError
from graphs.load import find, make
from tests.client import Event, check, kinds
from tests.conftest import Server
from tests.scripted import ScriptedModel, as_openai, call, loop_graph, scripted_agent
from tests.upstream import lacks_a_result

Start = Callable[..., Awaitable[Server]]


@tool
async def add(a: int, b: int) -> dict[str, int]:
    """Add."""
    return {"sum": a + b}


@tool
async def shout(text: str) -> str:
    """Shout."""
    return text.upper()


@tool
async def broken() -> str:
    """Break."""
    raise RuntimeError("secret-of-the-tool")


@tool
async def picky(n: int) -> str:
    """Refuse."""
    raise ToolException("n has to be even")


picky.handle_tool_error = True


@tool
async def approve(what: str) -> str:
    """Ask a person."""
    answer = interrupt({"question": f"{what}?"})
    return f"{what}: {answer}"


@tool
async def report(runtime: ToolRuntime) -> str:
    """Report progress."""
    runtime.emit_output_delta("half")
    runtime.emit_output_delta({"done": 1})
    return "reported"


def of(events: list[Event], type_: str) -> list[Event]:
    return [event for event in events if event["type"] == type_]


def text_of(events: list[Event]) -> str:
    return "".join(event["content"] for event in of(events, "text_delta"))


def usage(n: int) -> AIMessageChunk:
    counts = {"input_tokens": n, "output_tokens": n, "total_tokens": 2 * n}
    return AIMessageChunk(content="", usage_metadata=counts)


# ------------------------------------------------------------------------------- text, reasoning


async def test_text_arrives_in_deltas_and_then_whole(start: Start) -> None:
    server = await start(scripted_agent([["Hel", "lo ", "世界", usage(3)]]))
    events = await server.run("hi")
    assert kinds(events) == ["start", "thinking", "text_delta", "final_answer", "done"]
    assert [e["content"] for e in of(events, "text_delta")] == ["Hel", "lo ", "世界"]
    assert events[-2]["content"] == "Hello 世界"
    assert events[-1]["reason"] == "completed"
    assert events[-1]["usage"] == {"input_tokens": 3, "output_tokens": 3, "total_tokens": 6}
    assert events[-1]["timings"].keys() == {"first_token_ms", "total_ms"}


async def test_a_model_that_does_not_stream_answers_in_one_delta(start: Start) -> None:
    model = ScriptedModel(script=[["Hello ", "world", usage(2)]], streams=False)
    server = await start(Agent(loop_graph(model, []), "x"))
    events = await server.run("hi")
    assert [e["content"] for e in of(events, "text_delta")] == ["Hello world"]
    assert events[-1]["usage"]["total_tokens"] == 4


BLOCKS: list[tuple[Any, str, str]] = [
    ([{"type": "text", "text": "a", "index": 0}], "a", ""),
    ([{"type": "reasoning", "reasoning": "r"}, {"type": "text", "text": "a"}], "a", "r"),
    ([{"type": "thinking", "thinking": "r", "index": 0}], "", "r"),
    ([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "r"}]}], "", "r"),
    ([{"type": "reasoning_content", "reasoning_content": {"text": "r"}}], "", "r"),
    (["a", {"type": "tool_use", "name": "x"}, {"type": "image", "url": "u"}], "a", ""),
    ([], "", ""),
]


@pytest.mark.parametrize(("content", "text", "reasoning"), BLOCKS)
async def test_content_blocks_are_text_or_reasoning(
    start: Start, content: Any, text: str, reasoning: str
) -> None:
    server = await start(scripted_agent([[AIMessageChunk(content=content)]]))
    events = await server.run("hi")
    assert text_of(events) == text
    assert "".join(e["content"] for e in of(events, "reasoning_delta")) == reasoning
    assert len(of(events, "final_answer")) == bool(text)


async def test_reasoning_in_an_extra_field_is_told(start: Start) -> None:
    thought = AIMessageChunk(content="", additional_kwargs={"reasoning_content": "Let me see"})
    server = await start(scripted_agent([[thought, "42"]]))
    events = await server.run("hi")
    assert kinds(events)[2:4] == ["reasoning_delta", "text_delta"]
    assert of(events, "reasoning_delta")[0]["content"] == "Let me see"
    assert events[-2]["content"] == "42"


async def test_halves_of_a_surrogate_pair_in_two_deltas_pass(start: Start) -> None:
    server = await start(scripted_agent([["\ud83d", "\ude00"]]))
    stream = await server.ask("hi")
    events = await stream.events()
    assert rb'"content":"\ud83d"' in stream.raw
    assert text_of(events) == "\ud83d\ude00"


# ------------------------------------------------------------------------------------- tool calls


async def test_a_tool_call_and_its_result(start: Start) -> None:
    script = [["Let me see.", *call("add", '{"a": 1, "b": 2}', "c1")], ["3"]]
    events = await (await start(scripted_agent(script, [add]))).run("1 + 2?")
    assert kinds(events)[2:] == [
        *("text_delta", "tool_call", "tool_result", "text_delta", "final_answer", "done")
    ]
    assert of(events, "tool_call")[0] == {
        "type": "tool_call",
        "tool": "add",
        "tool_call_id": "c1",
        "input": {"a": 1, "b": 2},
    }
    assert of(events, "tool_result")[0]["result"] == {"sum": 3}
    assert events[-2]["content"] == "3"


async def test_parallel_calls_of_the_same_tool_keep_their_ids(start: Start) -> None:
    first = [
        *call("add", '{"a": 1, "b": 2}', "c1", 0),
        *call("add", '{"a": 3, "b": 4}', "c2", 1),
        *call("shout", '{"text": "x"}', "c3", 2),
    ]
    events = await (await start(scripted_agent([first, ["ok"]], [add, shout]))).run("go")
    results = {e["tool_call_id"]: e["result"] for e in of(events, "tool_result")}
    assert results == {"c1": {"sum": 3}, "c2": {"sum": 7}, "c3": {"content": "X"}}


@pytest.mark.parametrize(
    ("arguments", "shown", "status"),
    [
        # LangChain completes what was cut, and this is what the tool gets.
        ('{"text":', {}, "error"),
        ('{"text": "a"', {"text": "a"}, "ok"),
        ("not json", {"arguments": "not json"}, "error"),
        ("[1]", {"arguments": "[1]"}, "error"),
        ('"a"', {"arguments": '"a"'}, "error"),
        ('{"text": "a"}', {"text": "a"}, "ok"),
        ('{"text": 1}', {"text": 1}, "error"),
    ],
)
async def test_arguments_are_shown_as_the_tool_gets_them_and_else_raw(
    start: Start, arguments: str, shown: dict[str, Any], status: str
) -> None:
    script = [call("shout", arguments, "c1"), ["ok"]]
    events = await (await start(scripted_agent(script, [shout]))).run("go")
    assert [e["input"] for e in of(events, "tool_call")] == [shown]
    assert [e["status"] for e in of(events, "tool_result")] == [status]


async def test_a_tool_that_does_not_exist_is_called_and_fails(start: Start) -> None:
    script = [call("nope", '{"x": 1}', "c1"), ["ok"]]
    events = await (await start(scripted_agent(script, [add]))).run("go")
    assert of(events, "tool_call")[0]["input"] == {"x": 1}
    result = of(events, "tool_result")[0]
    assert result["status"] == "error"
    assert "nope" in result["message"]
    assert events[-1]["reason"] == "completed"


async def test_a_refusal_of_the_tool_is_told_in_its_own_words(start: Start) -> None:
    script = [call("picky", '{"n": 1}', "c1"), ["ok"]]
    events = await (await start(scripted_agent(script, [picky]))).run("go")
    assert of(events, "tool_result")[0]["message"] == "n has to be even"


async def test_a_tool_that_raises_ends_the_run_without_its_words(start: Start) -> None:
    script = [[*call("broken", "{}", "c1"), *call("shout", '{"text": "a"}', "c2", 1)]]
    server = await start(scripted_agent(script, [broken, shout]))
    stream = await server.ask("go")
    events = await stream.events()
    check(events)
    assert events[-1]["reason"] == "error"
    assert events[-2]["code"] == "agent_error"
    assert events[-2]["retryable"] is False
    assert b"secret" not in stream.raw


async def test_a_failure_that_the_graph_handles_has_the_text_that_its_model_gets(
    start: Start,
) -> None:
    script = [call("broken", "{}", "c1"), ["sorry"]]
    server = await start(scripted_agent(script, [broken], handle_tool_errors=True))
    stream = await server.ask("go", thread_id="t")
    events = await stream.events()
    check(events)
    result = of(events, "tool_result")[0]
    assert result["status"] == "error"
    assert events[-1]["reason"] == "completed"
    status, thread = await server.call("GET", "/api/threads/t")
    assert status == 200
    assert thread["messages"][2] == {"role": "tool"} | {
        key: value for key, value in result.items() if key != "type"
    }
    assert (
        result["message"] == "Error: RuntimeError('secret-of-the-tool')\n Please fix your mistakes."
    )


FIGURES = [
    ("the sum so far", [(100, 1), (100, 3), (100, 5)], (100, 5, 105)),
    ("differences", [(10, 2), (0, 3), (0, 5)], (10, 10, 20)),
    ("one figure", [(7, 5)], (7, 5, 12)),
]


@pytest.mark.parametrize(("sent", "counted"), [r[1:] for r in FIGURES], ids=[r[0] for r in FIGURES])
async def test_tokens_are_counted_once_a_model_call(
    start: Start, sent: list[tuple[int, int]], counted: tuple[int, int, int]
) -> None:
    figures = [
        AIMessageChunk(
            content="a",
            usage_metadata={"input_tokens": i, "output_tokens": o, "total_tokens": i + o},
        )
        for i, o in sent
    ]
    events = await (await start(scripted_agent([figures]))).run("hi")
    assert (*events[-1]["usage"].values(),) == counted


async def test_a_tool_reports_progress(start: Start) -> None:
    events = await (
        await start(scripted_agent([call("report", "{}", "c1"), ["ok"]], [report]))
    ).run("go")
    assert [e["content"] for e in of(events, "tool_progress")] == ["half", '{"done": 1}']


async def test_a_command_from_a_tool_is_its_result(start: Start) -> None:
    @tool
    async def hand_over(runtime: ToolRuntime) -> Command[Any]:
        """Hand over."""
        return Command(
            update={"messages": [ToolMessage("gone", tool_call_id=runtime.tool_call_id)]}
        )

    script = [call("hand_over", "{}", "c1"), ["ok"]]
    events = await (await start(scripted_agent(script, [hand_over]))).run("go")
    assert of(events, "tool_result")[0]["result"] == {"content": "gone"}


async def test_results_that_json_cannot_carry_are_told_all_the_same(start: Start) -> None:
    @tool
    async def odd() -> str:
        """Odd."""
        return '{"x": NaN}'

    script = [call("odd", '{"y": NaN}', "c1"), ["ok"]]
    events = await (await start(scripted_agent(script, [odd]))).run("go")
    assert events[-1]["reason"] == "completed"
    assert of(events, "tool_result")[0]["result"] == {"x": "NaN"}


async def test_text_of_a_model_inside_a_tool_is_not_answer_text(start: Start) -> None:
    inner = ScriptedModel(script=[["inner ", "words", usage(5)]])

    @tool
    async def think(config: RunnableConfig) -> str:
        """Think."""
        return str((await inner.ainvoke("x", config)).text)

    script = [["a", *call("think", "{}", "c1"), usage(1)], ["outer", usage(1)]]
    events = await (await start(scripted_agent(script, [think]))).run("go")
    assert text_of(events) == "aouter"
    assert of(events, "tool_result")[0]["result"] == {"content": "inner words"}
    assert events[-1]["usage"]["total_tokens"] == 14


async def test_an_agent_inside_a_tool_shows_its_tools_and_not_its_text(start: Start) -> None:
    sub = loop_graph(
        ScriptedModel(script=[[*call("add", '{"a": 1, "b": 1}', "s1")], ["sub answer"]]), [add]
    )

    @tool
    async def delegate(task: str) -> str:
        """Delegate."""
        done = await sub.ainvoke({"messages": [HumanMessage(task)]})
        return str(done["messages"][-1].text)

    script = [call("delegate", '{"task": "x"}', "c1"), ["done"]]
    events = await (await start(scripted_agent(script, [delegate]))).run("go")
    assert text_of(events) == "done"
    assert [e["tool"] for e in of(events, "tool_call")] == ["delegate", "add"]
    assert [e["tool"] for e in of(events, "tool_result")] == ["add", "delegate"]


@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_nodes_own_words_inside_a_tool_are_not_answer_text(
    start: Start, wrapped: bool
) -> None:
    sub = graph_of(say=lambda state: {"messages": [AIMessage("inner")]}).compile()

    @tool
    async def delegate() -> str:
        """Delegate."""
        done = await sub.ainvoke({"messages": [HumanMessage("x")]})
        return str(done["messages"][-1].text)

    model = ScriptedModel(script=[call("delegate", "{}", "c1"), ["ok"]])
    graph: Any = loop_graph(model, [delegate])
    chain = RunnableLambda(lambda given: given) | graph
    events = await (await start(Agent(chain if wrapped else graph, "x"))).run("go")
    assert text_of(events) == "ok"
    assert of(events, "tool_result")[0]["result"] == {"content": "inner"}


# ------------------------------------------------------------------------------------------ graphs


def graph_of(**nodes: Any) -> Any:
    """A graph of these nodes, one after the other."""
    graph = StateGraph(MessagesState)
    names = [START, *nodes, END]
    for name, node in nodes.items():
        graph.add_node(name, node)
    for before, after in zip(names, names[1:], strict=False):
        graph.add_edge(before, after)
    return graph


async def test_an_answer_that_the_graph_empties_is_empty(start: Start) -> None:
    model = ScriptedModel(script=[["the ", "secret"]])

    async def say(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    def empty(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage("", id=state["messages"][-1].id)]}

    server = await start(Agent(graph_of(say=say, empty=empty).compile(), "x"))
    events = await (await server.ask("hi", thread_id="t")).events()
    check(events, redacted=True)
    final = events[-2]
    assert (final["type"], final["content"]) == ("final_answer", "")
    _, thread = await server.call("GET", "/api/threads/t")
    assert [m["content"] for m in thread["messages"]] == ["hi", ""]


async def test_halves_of_a_surrogate_pair_in_two_chunks_join_in_the_thread(start: Start) -> None:
    server = await start(scripted_agent([["a\ud83d", "\ude00b"]]))
    await server.run("hi", thread_id="t")
    _, thread = await server.call("GET", "/api/threads/t")
    assert [m["content"] for m in thread["messages"]] == ["hi", "a😀b"]


def test_no_result_of_two_calls_with_one_id_is_lost() -> None:
    """The parts are those of `create_agent`, which gives each call a task and an update."""
    one, two = (ToolMessage(text, tool_call_id="a", name="wait") for text in "12")
    started = {"event": "tool-started", "tool_call_id": "a", "tool_name": "wait", "input": {}}
    finished = {"event": "tool-finished", "tool_call_id": "a"}
    parts = [
        *[{"type": "tools", "ns": (), "data": started}] * 2,
        {"type": "tools", "ns": (), "data": {**finished, "output": two}},
        {"type": "updates", "ns": (), "data": {"tools": {"messages": [two]}}},
        {"type": "tools", "ns": (), "data": {**finished, "output": one}},
        {"type": "updates", "ns": (), "data": {"tools": {"messages": [one]}}},
    ]
    translator = Translator(HumanMessage("go", id="question-1"), [])
    events = [event for part in parts for event in translator.translate(part)]
    results = [event.result for event in events if event.type == "tool_result"]
    assert results == [{"content": "2"}, {"content": "1"}]


async def test_subgraphs_speak_also_one_named_langgraph(start: Start) -> None:
    sub = loop_graph(ScriptedModel(script=[["sub"]]), [])
    assert sub.name == "LangGraph"
    last = ScriptedModel(script=[["root"]])

    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await last.ainvoke(state["messages"])]}

    events = await (await start(Agent(graph_of(sub=sub, answer=answer).compile(), "x"))).run("go")
    assert text_of(events) == "subroot"
    assert events[-2]["content"] == "root"
    assert kinds(events).count("done") == 1


@pytest.mark.parametrize(
    "message",
    [AIMessage("plain", id="m1"), {"role": "assistant", "content": "plain"}, ("ai", "plain")],
)
async def test_a_message_that_no_model_made_is_answer_text(start: Start, message: Any) -> None:
    agent = Agent(graph_of(say=lambda state: {"messages": [message]}).compile(), "x")
    server = await start(agent)
    events = await server.run("go", thread_id="t")
    assert text_of(events) == "plain"
    assert events[-2]["type"] == "final_answer"
    # Not once more in the next turn, whose history has it too.
    again = await server.run("go", thread_id="t")
    assert text_of(again) == "plain" or isinstance(message, AIMessage)


async def test_a_graph_that_drops_the_question_repeats_nothing_of_earlier_turns(
    start: Start,
) -> None:
    model = ScriptedModel(script=[call("nope", "{}", "c1"), ["First."]])

    def moderate(state: MessagesState) -> dict[str, Any]:
        last = state["messages"][-1]
        if last.text != "bad":
            return {}
        return {"messages": [RemoveMessage(id=last.id or ""), AIMessage("I cannot say.")]}

    outer = StateGraph(MessagesState)
    outer.add_node("moderate", moderate)
    outer.add_node("inner", loop_graph(model, [add]))
    outer.add_edge(START, "moderate")
    outer.add_conditional_edges(
        "moderate", lambda state: END if state["messages"][-1].type == "ai" else "inner"
    )
    server = await start(Agent(outer.compile(), "x"))
    first = await server.run("good", thread_id="t")
    assert kinds(first)[2:] == ["tool_call", "tool_result", "text_delta", "final_answer", "done"]
    second = await server.run("bad", thread_id="t")
    assert kinds(second)[2:] == ["text_delta", "final_answer", "done"]
    assert second[-2]["content"] == "I cannot say."


async def test_a_command_update_of_a_node_is_told(start: Start) -> None:
    def say(state: MessagesState) -> Command[Any]:
        return Command(update={"messages": [AIMessage("by command")]})

    events = await (await start(Agent(graph_of(say=say).compile(), "x"))).run("go")
    assert events[-2]["content"] == "by command"


async def test_a_graph_that_ends_with_nothing_to_show_has_failed(start: Start) -> None:
    events = await (await start(Agent(graph_of(noop=lambda state: {}).compile(), "x"))).run("go")
    assert kinds(events) == ["start", "thinking", "error", "done"]
    assert (events[-2]["code"], events[-2]["retryable"]) == ("model_error", True)
    assert "first_token_ms" not in events[-1]["timings"]
    assert "usage" not in events[-1]


async def test_notes_on_the_custom_stream_are_thinking(start: Start) -> None:
    def note(state: MessagesState) -> dict[str, Any]:
        get_stream_writer()("reading")
        get_stream_writer()({"page": 2})
        return {}

    events = await (await start(Agent(graph_of(note=note).compile(), "x"))).run("go")
    assert [e["content"] for e in of(events, "thinking")][1:] == ["reading", '{"page": 2}']


async def test_the_recursion_limit_is_a_failure_of_the_agent(start: Start) -> None:
    script = [call("shout", '{"text": "a"}', f"c{n}") for n in range(20)]
    graph = loop_graph(ScriptedModel(script=script), [shout]).with_config(recursion_limit=5)
    events = await (await start(Agent(graph, "x"))).run("go")
    assert events[-2]["code"] == "agent_error"
    assert events[-1]["reason"] == "error"


async def test_a_node_that_times_out_by_itself_is_not_the_runs_time_out(start: Start) -> None:
    def late(state: MessagesState) -> None:
        raise TimeoutError("secret")

    events = await (await start(Agent(graph_of(late=late).compile(), "x"))).run("go")
    assert events[-2]["code"] == "agent_error"


# -------------------------------------------------------------------------------------- interrupts


async def test_an_interrupt_in_a_node_waits_for_resume(start: Start) -> None:
    def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(f"You said {interrupt({'q': 1})}.")]}

    server = await start(Agent(graph_of(ask=ask).compile(), "x"))
    events = await server.run("go", thread_id="t")
    assert kinds(events) == ["start", "thinking", "interrupt", "done"]
    assert [i["value"] for i in events[-2]["interrupts"]] == [{"q": 1}]
    assert events[-1]["reason"] == "interrupted"
    for answer in (None,):
        resumed = await server.run(resume=answer, thread_id="t")
        assert resumed[-2]["content"] == f"You said {answer}."
    assert await server.call("POST", "/api/chat", json={"resume": 1, "thread_id": "t"}) == (
        400,
        {
            "error": {
                "code": "nothing_to_resume",
                "message": "This thread is not waiting for an answer.",
            }
        },
    )


async def test_an_interrupt_in_a_tool_closes_the_call_and_starts_it_again(start: Start) -> None:
    script = [
        [*call("approve", '{"what": "delete"}', "c1"), *call("shout", '{"text":"a"}', "c2", 1)]
    ]
    server = await start(scripted_agent([*script, ["done"]], [approve, shout]))
    events = await server.run("go", thread_id="t")
    statuses = {e["tool"]: e["status"] for e in of(events, "tool_result")}
    assert statuses == {"shout": "ok", "approve": "interrupted"}
    assert events[-1]["reason"] == "interrupted"
    resumed = await server.run(resume="yes", thread_id="t")
    results = {e["tool"]: e["result"] for e in of(resumed, "tool_result")}
    assert results["approve"] == {"content": "delete: yes"}
    assert resumed[-2]["content"] == "done"


async def test_no_two_calls_of_a_turn_have_the_same_id(start: Start) -> None:
    asks = call("approve", '{"what": "delete"}', "c1")
    adds = call("add", '{"a": 1, "b": 2}', "c1")
    server = await start(
        scripted_agent([adds, asks, asks, ["done"], adds, ["done"]], [add, approve])
    )
    first = await server.run("go", thread_id="t")
    second = await server.run(resume="yes", thread_id="t")
    third = await server.run(resume="yes", thread_id="t")
    ids = [[e["tool_call_id"] for e in of(run, "tool_call")] for run in (first, second, third)]
    # A call that starts again keeps its id.
    assert ids == [["c1", "c1+"], ["c1+", "c1++"], ["c1++"]]
    await server.run("again", thread_id="t")
    _, thread = await server.call("GET", "/api/threads/t")
    messages = thread["messages"]
    asked = [c["tool_call_id"] for m in messages for c in m.get("tool_calls", ())]
    results = [(m["tool"], m["tool_call_id"]) for m in messages if m["role"] == "tool"]
    assert asked == ["c1", "c1+", "c1++", "c1"]
    assert results == [("add", "c1"), ("approve", "c1+"), ("approve", "c1++"), ("add", "c1")]


async def test_a_stopped_call_does_not_get_the_result_of_an_earlier_one(start: Start) -> None:
    @tool
    async def slow() -> str:
        """Never end."""
        await asyncio.Event().wait()
        return ""

    script = [call("add", '{"a": 1, "b": 2}', "c1"), call("slow", "{}", "c1")]
    server = await start(scripted_agent(script, [add, slow]))
    stream = await server.ask("go", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    while (await stream.until("tool_call"))["tool"] != "slow":
        pass
    await server.call("POST", f"/api/runs/{run_id}/cancel")
    _, thread = await server.call("GET", "/api/threads/t")
    results = [m for m in thread["messages"] if m["role"] == "tool"]
    assert [(m["tool"], m["status"]) for m in results] == [("add", "ok"), ("slow", "cancelled")]


async def test_two_interrupts_one_after_the_other(start: Start) -> None:
    def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(f"{interrupt('first')} {interrupt('second')}")]}

    server = await start(Agent(graph_of(ask=ask).compile(), "x"))
    first = await server.run("go", thread_id="t")
    second = await server.run(resume=1, thread_id="t")
    assert [e["interrupts"][0]["value"] for e in (first[-2], second[-2])] == ["first", "second"]
    assert (await server.run(resume=2, thread_id="t"))[-2]["content"] == "1 2"


async def test_two_interrupts_at_once_want_an_answer_each(start: Start) -> None:
    graph = StateGraph(MessagesState)
    for name in ("left", "right"):
        graph.add_node(
            name, lambda state, name=name: {"messages": [AIMessage(f"{name}={interrupt(name)}")]}
        )
        graph.add_edge(START, name)
    server = await start(Agent(graph.compile(), "x"))
    events = await server.run("go", thread_id="t")
    assert kinds(events).count("interrupt") == 1
    ids = {i["value"]: i["id"] for i in events[-2]["interrupts"]}
    assert ids.keys() == {"left", "right"}
    for bad in (1, {}, {ids["left"]: 1}, {**dict.fromkeys(ids.values(), 1), "x": 1}):
        status, body = await server.call(
            "POST", "/api/chat", json={"resume": bad, "thread_id": "t"}
        )
        assert (status, body["error"]["code"]) == (400, "invalid_request")
    resumed = await server.run(resume={ids["left"]: 1, ids["right"]: 2}, thread_id="t")
    assert sorted(e["content"] for e in of(resumed, "text_delta")) == ["left=1", "right=2"]


async def test_an_interrupt_of_a_subgraph_is_told_once(start: Start) -> None:
    sub = graph_of(ask=lambda state: {"messages": [AIMessage(str(interrupt("deep")))]}).compile()
    middle = graph_of(sub=sub).compile()
    server = await start(Agent(graph_of(middle=middle).compile(), "x"))
    events = await server.run("go", thread_id="t")
    assert [len(e["interrupts"]) for e in of(events, "interrupt")] == [1]
    assert (await server.run(resume="up", thread_id="t"))[-2]["content"] == "up"


async def test_a_static_breakpoint_interrupts_without_an_interrupt(start: Start) -> None:
    graph = graph_of(a=lambda state: {}, b=lambda state: {"messages": [AIMessage("b")]})
    server = await start(Agent(graph.compile(interrupt_before=["b"]), "x"))
    events = await server.run("go", thread_id="t")
    assert kinds(events) == ["start", "thinking", "done"]
    assert events[-1]["reason"] == "interrupted"
    assert (await server.run(resume=True, thread_id="t"))[-2]["content"] == "b"


async def test_a_new_message_sets_an_interrupt_aside(start: Start) -> None:
    model = ScriptedModel(script=[call("approve", '{"what": "x"}', "c1"), ["never mind"]])
    server = await start(Agent(loop_graph(model, [approve]), "x"))
    await server.run("go", thread_id="t")
    events = await server.run("forget it", thread_id="t")
    assert events[-2]["content"] == "never mind"
    assert [m.type for m in model.asked[1]] == ["human", "ai", "tool", "ai", "human"]
    status, _ = await server.call("POST", "/api/chat", json={"resume": 1, "thread_id": "t"})
    assert status == 400


# ------------------------------------------------------------------------------------------ threads


async def test_a_thread_remembers_and_its_document_tells_it(start: Start) -> None:
    model = ScriptedModel(script=[call("add", '{"a": 1, "b": 2}', "c1"), ["3"], ["Bye"]])
    server = await start(Agent(loop_graph(model, [add]), "x"))
    runs = [await server.run(text, thread_id="t") for text in ("1 + 2?", "Bye")]
    ids = [event["message_id"] for run in runs for event in (run[0], run[-2])]
    assert [m.type for m in model.asked[2]] == ["human", "ai", "tool", "ai", "human"]
    assert await server.call("GET", "/api/threads/t") == (
        200,
        {
            "thread_id": "t",
            "run_id": None,
            "messages": [
                {"role": "user", "id": ids[0], "content": "1 + 2?"},
                {
                    "role": "assistant",
                    "id": model.asked[1][1].id,
                    "content": "",
                    "tool_calls": [
                        {"tool_call_id": "c1", "tool": "add", "input": {"a": 1, "b": 2}}
                    ],
                },
                {
                    "role": "tool",
                    "tool": "add",
                    "tool_call_id": "c1",
                    "status": "ok",
                    "result": {"sum": 3},
                },
                {"role": "assistant", "id": ids[1], "content": "3"},
                {"role": "user", "id": ids[2], "content": "Bye"},
                {"role": "assistant", "id": ids[3], "content": "Bye"},
            ],
        },
    )


async def test_a_deleted_thread_is_forgotten(start: Start) -> None:
    model = ScriptedModel(script=[["a"], ["b"]])
    server = await start(Agent(loop_graph(model, []), "x"))
    await server.run("one", thread_id="t")
    assert await server.call("DELETE", "/api/threads/t") == (204, None)
    for method in ("GET", "DELETE"):
        status, body = await server.call(method, "/api/threads/t")
        assert (status, body["error"]["code"]) == (404, "unknown_thread")
    await server.run("two", thread_id="t")
    assert [m.text for m in model.asked[1]] == ["two"]


async def test_what_a_stopped_run_left_open_is_closed_and_its_text_remembered(start: Start) -> None:
    never = asyncio.Event()

    @tool
    async def slow() -> str:
        """Never end."""
        await never.wait()
        return ""

    model = ScriptedModel(
        script=[
            ["First.", *call("slow", "{}", "c1"), *call("add", '{"a": 1, "b": 1}', "c2", 1)],
            ["Half an ans", never],
            ["Fine."],
        ]
    )
    server = await start(Agent(loop_graph(model, [slow, add]), "x"))
    stream = await server.ask("one", thread_id="t")
    begun = await stream.until("start")
    await stream.until("tool_result")
    assert (await server.call("POST", f"/api/runs/{begun['run_id']}/cancel"))[0] == 202
    tail = await stream.events()
    assert [e["status"] for e in of(tail, "tool_result")] == ["cancelled"]
    stream = await server.ask("two", thread_id="t")
    begun = await stream.until("start")
    await stream.until("text_delta")
    await server.call("POST", f"/api/runs/{begun['run_id']}/cancel")
    assert (await server.run("three", thread_id="t"))[-2]["content"] == "Fine."
    told = [(m.type, str(m.text)) for m in model.asked[2]]
    assert told == [
        ("human", "one"),
        ("ai", "First."),
        ("tool", "The run ended before the tool did."),
        ("tool", '{"sum": 2}'),
        ("ai", "…"),
        ("human", "two"),
        ("ai", "Half an ans"),
        ("human", "three"),
    ]
    _, thread = await server.call("GET", "/api/threads/t")
    results = [m["status"] for m in thread["messages"] if m["role"] == "tool"]
    assert results == ["cancelled", "ok"]


async def test_a_long_conversation_keeps_one_checkpoint(start: Start) -> None:
    sub = loop_graph(ScriptedModel(script=[["sub"]] * 5), [])
    agent = Agent(graph_of(sub=sub).compile(), "x")
    server = await start(agent)
    for n in range(5):
        await server.run(f"turn {n}", thread_id="t")
    memory = agent.graph.checkpointer
    assert isinstance(memory, InMemorySaver)
    assert {ns: len(kept) for ns, kept in memory.storage["t"].items()} == {"": 1}
    assert len(memory.blobs) < 10
    assert not any(memory.writes.values())
    _, thread = await server.call("GET", "/api/threads/t")
    assert [m["content"] for m in thread["messages"]][-2:] == ["turn 4", "sub"]
    assert len(thread["messages"]) == 10
    assert (await server.call("GET", "/api/threads/unheard-of"))[0] == 404
    assert (await server.call("DELETE", "/api/threads/t"))[0] == 204
    assert not memory.storage
    assert not memory.blobs
    assert not memory.writes


async def test_a_subgraph_with_a_memory_of_its_own_keeps_it(start: Start) -> None:
    class Counter(TypedDict):
        messages: list[Any]
        seen: Annotated[list[str], operator.add]

    def count(state: Counter) -> dict[str, Any]:
        return {"seen": ["x"], "messages": [AIMessage(str(len(state["seen"]) + 1))]}

    sub = StateGraph(Counter)
    sub.add_node("count", count)
    sub.add_edge(START, "count")
    server = await start(Agent(graph_of(sub=sub.compile(checkpointer=True)).compile(), "x"))
    answers = [(await server.run("go", thread_id="t"))[-2]["content"] for _ in range(3)]
    assert answers == ["1", "2", "3"]


async def test_a_call_with_broken_arguments_does_not_wedge_the_thread(start: Start) -> None:
    model = ScriptedModel(script=[call("shout", "not json", "c1"), ["Fine."]])
    server = await start(Agent(loop_graph(model, [shout]), "x"))
    await server.run("one", thread_id="t")
    assert (await server.run("two", thread_id="t"))[-2]["content"] == "Fine."
    assert [m.type for m in model.asked[1]] == ["human", "ai", "tool", "ai", "human"]


# --------------------------------------------------------------------------------- your own agents


async def test_a_runnable_that_is_no_graph_is_given_its_history(start: Start) -> None:
    model = ScriptedModel(script=[["one"], ["two"]])
    chain = RunnableLambda(lambda given: given["messages"]) | model
    server = await start(Agent(chain, "x"))
    assert text_of(await server.run("a", thread_id="t")) == "one"
    events = await server.run("b", thread_id="t")
    assert kinds(events) == ["start", "thinking", "text_delta", "final_answer", "done"]
    assert [m.text for m in model.asked[1]] == ["a", "one", "b"]
    _, thread = await server.call("GET", "/api/threads/t")
    assert [m["content"] for m in thread["messages"]] == ["a", "one", "b", "two"]


@pytest.mark.parametrize(
    "output", ["plain", AIMessage("plain"), {"messages": [AIMessage("plain")]}]
)
async def test_a_runnable_without_a_model_answers_with_its_output(
    start: Start, output: Any
) -> None:
    server = await start(Agent(RunnableLambda(lambda given: output), "x"))
    events = await server.run("a")
    assert kinds(events) == ["start", "thinking", "text_delta", "final_answer", "done"]
    assert events[-2]["content"] == "plain"


async def test_a_graph_keeps_its_own_checkpointer() -> None:
    saver = InMemorySaver()
    own = Agent(graph_of(a=lambda state: {}).compile(checkpointer=saver), "x")
    assert own.graph.checkpointer is saver
    for checkpointer in (None, False):
        compiled = graph_of(a=lambda state: {}).compile(checkpointer=checkpointer)
        assert isinstance(Agent(compiled, "x").graph.checkpointer, InMemorySaver)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("nothing", "module:attribute"),
        ("no_such_module:graph", "No module named"),
        ("tests.agents:missing", "has no attribute"),
        ("tests.agents:failing", "ValueError"),
        ("tests.agents:number", "it is a int"),
        ("tests.agents:uncompiled", "compile()"),
        ("tests.agents:no_messages", "'messages'"),
        ("tests.agents:no_reducer", "reducer"),
    ],
)
async def test_an_agent_that_cannot_run_is_refused_in_one_line(spec: str, expected: str) -> None:
    with pytest.raises(SettingError) as caught:
        await make(find(spec), spec)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------- context, missing key


class Typed(TypedDict):
    tone: str


@dataclass
class Data:
    tone: str


class Checked(BaseModel):
    tone: str


@pytest.mark.parametrize("schema", [Typed, Data, Checked])
async def test_the_graph_gets_its_context_on_this_run_alone(start: Start, schema: Any) -> None:
    def answer(state: MessagesState, runtime: Runtime[Any]) -> dict[str, Any]:
        context = runtime.context
        tone = context and (context["tone"] if isinstance(context, dict) else context.tone)
        return {"messages": [AIMessage(f"In a {tone} tone.")]}

    graph = StateGraph(MessagesState, context_schema=schema)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    server = await start(Agent(graph.compile(), "x"))
    told = [
        (await server.run("hi", thread_id="t", **fields))[-2]["content"]
        for fields in ({"context": {"tone": "dry"}}, {})
    ]
    assert told == ["In a dry tone.", "In a None tone."]
    for bad in ({}, {"tone": 1}):
        body = {"message": "hi", "thread_id": "t", "context": bad}
        status, refusal = await server.call("POST", "/api/chat", json=body)
        assert (status, refusal["error"]["code"]) == (400, "invalid_request")
        assert "context" in refusal["error"]["message"]


async def test_a_graph_without_a_schema_ignores_the_context(start: Start) -> None:
    server = await start(scripted_agent([["Hello"]]))
    assert (await server.run("hi", context={"tone": "dry"}))[-2]["content"] == "Hello"


async def test_a_model_without_a_key_is_named_as_what_is_missing(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    from langchain_openai import ChatOpenAI

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    async def answer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await ChatOpenAI(model="m").ainvoke(state["messages"])]}

    events = await (await start(Agent(graph_of(answer=answer).compile(), "x"))).run("hi")
    assert (events[-2]["code"], events[-2]["retryable"]) == ("model_auth", False)
    assert "key" in events[-2]["message"]


# --------------------------------------------------------------------------------- what broke once


async def test_what_closes_a_run_does_not_count_under_its_limit(start: Start) -> None:
    @tool
    async def flood() -> str:
        """Return much."""
        return "x" * 30_000

    script = [call("flood", "{}", "c1"), ["y" * 6_000]]
    server = await start(scripted_agent(script, [flood]), max_run_bytes=10_000)
    events = await server.run("go")
    assert events[-1]["reason"] == "completed"
    assert events[-2]["content"] == "y" * 6_000


async def test_a_run_too_large_keeps_its_calls_closed_and_its_bounds(start: Start) -> None:
    many = [chunk for n in range(40) for chunk in call("shout", '{"text": "a"}', f"c{n}", n)]
    for script in (
        [call("shout", '{"text": "%s"}' % ("x" * 30_000), "c1"), ["ok"]],
        [call("nope", '{"text": "%s"}' % ("x" * 3_000), "c1"), ["x" * 8000]],
        [[*many, "x" * 12_000], ["ok"]],
        [many, ["x" * 12_000]],
    ):
        server = await start(scripted_agent(script, [shout]), max_run_bytes=10_000)
        stream = await server.ask("go")
        events = await stream.events()
        check(events)
        assert events[-2]["code"] == "too_large"
        before_the_end = stream.raw.partition(b"event: error")[0]
        assert len(before_the_end) <= 10_000 + 400 * len(of(events, "tool_result"))


async def test_a_call_that_the_conversation_does_not_keep_is_not_told_as_cancelled(
    start: Start,
) -> None:
    router = ScriptedModel(script=[call("Route", '{"to": "x"}', "r1")])

    async def route(state: MessagesState) -> dict[str, Any]:
        await router.ainvoke(state["messages"])
        return {"messages": [AIMessage("final")]}

    events = await (await start(Agent(graph_of(route=route).compile(), "x"))).run("go")
    assert kinds(events)[2:] == ["text_delta", "final_answer", "done"]


async def test_a_thread_tells_a_tools_failure_as_its_event_did(start: Start) -> None:
    server = await start(scripted_agent([call("broken", "{}", "c1")], [broken]))
    events = await server.run("go", thread_id="t")
    told = {k: v for k, v in of(events, "tool_result")[0].items() if k != "type"}
    _, thread = await server.call("GET", "/api/threads/t")
    result = thread["messages"][-2]
    assert result["status"] == told["status"] == "error"
    assert result["tool_call_id"] == told["tool_call_id"]


async def test_a_call_with_broken_arguments_has_its_result_in_the_thread(start: Start) -> None:
    server = await start(scripted_agent([call("shout", "not json", "c1")], [shout]))
    events = await server.run("go", thread_id="t")
    told = {k: v for k, v in of(events, "tool_result")[0].items() if k != "type"}
    _, thread = await server.call("GET", "/api/threads/t")
    assert thread["messages"][-2] == {"role": "tool", **told}
    assert thread["messages"][-3]["tool_calls"][0]["input"] == {"arguments": "not json"}


async def test_an_unknown_tool_called_twice_under_one_id_is_told_twice(start: Start) -> None:
    script = [call("nope", "{}", "c1"), call("nope", "{}", "c1"), ["ok"]]
    events = await (await start(scripted_agent(script, [add]))).run("go")
    assert len(of(events, "tool_call")) == len(of(events, "tool_result")) == 2


async def test_an_id_that_comes_again_names_its_own_tool(start: Start) -> None:
    script = [
        *(call("add", '{"a": 1, "b": 1}', "c"), ["2"]),
        *(call("shout", '{"text": "a"}', "c"), ["A"]),
    ]
    server = await start(scripted_agent(script, [add, shout]))
    for _ in range(2):
        await server.run("go", thread_id="t")
    _, thread = await server.call("GET", "/api/threads/t")
    assert [m["tool"] for m in thread["messages"] if m["role"] == "tool"] == ["add", "shout"]


async def test_a_tools_http_error_is_not_the_models(start: Start) -> None:
    class Forbidden(Exception):
        status_code = 403

    @tool
    async def fetch() -> str:
        """Fetch."""
        raise Forbidden("secret")

    events = await (await start(scripted_agent([call("fetch", "{}", "c")], [fetch]))).run("go")
    assert events[-2]["code"] == "agent_error"
    provider = await (await start(scripted_agent([[Forbidden("secret")]]))).run("go")
    assert provider[-2]["code"] == "model_auth"


async def test_a_model_in_a_wrapper_is_given_the_messages(tmp_path: Path) -> None:
    for name in ("retrying", "falling_back", "model"):
        agent = Agent(find(f"tests.agents:{name}"), name)
        events = [event async for event in Turn(agent, Asked("t", "hi")).stream()]
        assert events[-1].content == "Hello"


async def test_a_stopped_subgraph_with_a_memory_of_its_own_does_not_wedge(start: Start) -> None:
    never = asyncio.Event()

    @tool
    async def slow() -> str:
        """Never end."""
        await never.wait()
        return ""

    model = ScriptedModel(script=[call("slow", "{}", "c1"), ["fine"], ["fine"]])
    sub = loop_graph(model, [slow]).copy({"checkpointer": True})
    server = await start(Agent(graph_of(sub=sub).compile(), "x"))
    stream = await server.ask("go", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    await stream.until("tool_call")
    await server.call("POST", f"/api/runs/{run_id}/cancel")
    assert (await server.run("again", thread_id="t"))[-2]["content"] == "fine"
    assert lacks_a_result([as_openai(message) for message in model.asked[1]]) is None
    _, thread = await server.call("GET", "/api/threads/t")
    assert {m.get("ended") for m in thread["messages"]} == {None, "cancelled"}


async def test_a_stopped_subgraph_without_messages_is_left_alone(start: Start) -> None:
    class Count(TypedDict):
        n: int

    async def hang(state: Count) -> None:
        await asyncio.Event().wait()

    inner = StateGraph(Count)
    inner.add_node("hang", hang)
    inner.add_edge(START, "hang")
    sub = inner.compile(checkpointer=True)

    class Both(MessagesState):
        n: int

    outer = StateGraph(Both)
    outer.add_node("sub", sub)
    outer.add_edge(START, "sub")
    server = await start(Agent(outer.compile(), "x"), run_timeout_s=0.2)
    for turn in range(2):
        events = await server.run(f"turn {turn}", thread_id="t")
        assert events[-1]["reason"] == "timeout"
    _, thread = await server.call("GET", "/api/threads/t")
    assert [m["content"] for m in thread["messages"]] == ["turn 0", "", "turn 1", ""]
    assert [m.get("ended") for m in thread["messages"]] == [None, "timeout"] * 2


async def test_a_graph_that_goes_on_after_its_stop_is_heard_no_more(start: Start) -> None:
    answered, reading, let_go, over = (asyncio.Event() for _ in range(4))

    class Saver(InMemorySaver):
        """Misses a cancellation at the run's end, and goes on while the thread is settled."""

        async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
            if reading.is_set():
                let_go.set()
                await over.wait()
            elif answered.is_set():
                reading.set()
                try:
                    with suppress(asyncio.CancelledError):
                        await asyncio.Event().wait()
                    await let_go.wait()
                finally:
                    over.set()
            return await super().aget_tuple(config)

    async def answer(state: MessagesState) -> dict[str, Any]:
        answered.set()
        return {"messages": [AIMessage("Too late.")]}

    agent = Agent(graph_of(answer=answer).compile(Saver()), "x")
    server = await start(agent)
    stream = await server.ask("hi")
    run_id = (await stream.until("start"))["run_id"]
    await reading.wait()
    await server.call("POST", f"/api/runs/{run_id}/cancel")
    events = await stream.events()
    assert "final_answer" not in kinds(events)
    assert events[-1]["reason"] == "cancelled"
