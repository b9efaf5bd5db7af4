"""A thread always works in its next turn: repair, rewind, and what the memory keeps."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Awaitable, Callable
from contextlib import suppress
from threading import Lock
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import interrupt

from agent import Agent
from graphs.messages import CLOSING, ENDED, STATUS
from tests.agents import only
from tests.client import check, kinds
from tests.conftest import Server
from tests.scripted import ScriptedModel, as_openai, call, scripted_agent
from tests.upstream import lacks_a_result
from threads.memory import MAY_WRITE, Memory
from threads.repair import NO_ANSWER, repair, unanswered

Start = Callable[..., Awaitable[Server]]


def calling(*ids: str | None, text: str = "", **fields: Any) -> AIMessage:
    calls = [{"name": "add", "args": {}, "id": id_, "type": "tool_call"} for id_ in ids]
    return AIMessage(text, tool_calls=calls, **fields)


def shape(history: list[AnyMessage]) -> list[str]:
    return [
        f"tool {m.tool_call_id} {m.additional_kwargs.get(STATUS, m.status)}"
        if isinstance(m, ToolMessage)
        else f"{m.type} {m.text}".strip()
        for m in history
    ]


USER, BYE = HumanMessage("hi", id="q"), AIMessage("Bye", id="a")

REPAIRS: list[tuple[str, list[AnyMessage], list[str]]] = [
    ("nothing", [], []),
    ("a turn that is whole", [USER, BYE], ["human hi", "ai Bye"]),
    ("a question without an answer", [USER], ["human hi", "ai …"]),
    (
        "a call without a result",
        [USER, calling("c1")],
        ["human hi", "ai", "tool c1 cancelled", "ai …"],
    ),
    (
        "one of two calls without a result, in the middle",
        [USER, calling("c1", "c2"), ToolMessage("3", tool_call_id="c2"), HumanMessage("so?"), BYE],
        ["human hi", "ai", "tool c2 success", "tool c1 cancelled", "human so?", "ai Bye"],
    ),
    (
        "two calls of one id with one result",
        [USER, calling("c", "c"), ToolMessage("3", tool_call_id="c")],
        ["human hi", "ai", "tool c success", "tool c cancelled", "ai …"],
    ),
    (
        "an id that came before in another turn",
        [USER, calling("c"), ToolMessage("3", tool_call_id="c"), BYE, USER, calling("c")],
        [
            *("human hi", "ai", "tool c success", "ai Bye"),
            *("human hi", "ai", "tool c cancelled", "ai …"),
        ],
    ),
    (
        "a result as the last message",
        [USER, calling("c"), ToolMessage("3", tool_call_id="c")],
        ["human hi", "ai", "tool c success", "ai …"],
    ),
    ("a blank answer", [USER, AIMessage(" \n", id="b")], ["human hi", "ai …"]),
    ("a system message alone", [SystemMessage("x")], ["system x", "ai …"]),
]


@pytest.mark.parametrize(
    ("history", "expected"), [row[1:] for row in REPAIRS], ids=[row[0] for row in REPAIRS]
)
def test_a_history_is_repaired(history: list[AnyMessage], expected: list[str]) -> None:
    repaired = repair(history)
    assert shape(repaired) == expected
    assert not unanswered(repaired)
    # A repaired history needs nothing more.
    again = repair(repaired)
    assert [*map(id, again)] == [*map(id, repaired)]


def test_what_the_graph_did_not_keep_is_added() -> None:
    half = AIMessage("Half", id="a1")
    repaired = repair([], [USER, half], ended={"reason": "cancelled"})
    assert shape(repaired) == ["human hi", "ai Half"]
    assert repaired[-1].response_metadata[ENDED] == {"reason": "cancelled"}
    assert repair(repaired) == repaired


def test_a_finished_tools_result_is_kept_though_its_graph_did_not_keep_it() -> None:
    output = ToolMessage("3", tool_call_id="c1")
    assert repair([USER, calling("c1", "c2")], outputs={"c1": output})[2] is output


def test_a_turn_without_an_answer_is_closed_and_says_why() -> None:
    error = {"code": "model_auth", "message": "No."}
    [_, closing] = repair([USER], ended={"reason": "error", "error": error})
    assert (closing.text, closing.response_metadata[CLOSING]) == (NO_ANSWER, True)
    assert closing.response_metadata[ENDED]["error"] == error


def test_calls_without_id_or_arguments_become_what_a_provider_takes() -> None:
    broken = {"name": "add", "args": "nope", "id": "c1", "error": None, "type": "invalid_tool_call"}
    message = calling(None, invalid_tool_calls=[broken], id="m")
    repaired = repair([USER, message])
    sound = repaired[1]
    assert isinstance(sound, AIMessage)
    assert sound.id == "m"
    assert not sound.invalid_tool_calls
    assert all(each["id"] and isinstance(each["args"], dict) for each in sound.tool_calls)
    assert lacks_a_result([as_openai(each) for each in repaired]) is None


# ---------------------------------------------------------------------------- any kind of reducer


def rewriting(left: list[Any], right: list[Any]) -> list[Any]:
    """A reducer of one's own: it keeps the last hundred messages."""
    return add_messages(left, right)[-100:]  # type: ignore[arg-type,index,return-value]


class Appending(TypedDict):
    messages: Annotated[list[Any], operator.add]


class Rewriting(TypedDict):
    messages: Annotated[list[Any], rewriting]


def merging(state: list[Any], writes: list[Any]) -> list[Any]:
    for write in writes:
        state = add_messages(state, write)  # type: ignore[assignment]
    return state


class Spread(TypedDict):
    messages: Annotated[list[Any], DeltaChannel(merging)]


STATES = {"add_messages": MessagesState, "operator.add": Appending, "own": Rewriting}


def talking(state: Any, script: list[list[Any]]) -> tuple[Any, ScriptedModel]:
    model = ScriptedModel(script=script)

    async def answer(state: Any) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    return only(answer, state).compile(), model


@pytest.mark.parametrize("state", STATES.values(), ids=STATES.keys())
@pytest.mark.parametrize("own", [False, True], ids=["the server's memory", "its own"])
async def test_a_message_can_be_replaced(start: Start, state: Any, own: bool) -> None:
    graph, model = talking(state, [["One."], ["Two."], ["Three."], ["Four."]])
    if own:
        graph = graph.copy({"checkpointer": InMemorySaver()})
    server = await start(Agent(graph, "x"))
    first = await server.run("first", thread_id="t")
    second = await server.run("second", thread_id="t")
    third = await server.run("instead", thread_id="t", replaces=second[0]["message_id"])
    assert third[-2]["content"] == "Three."
    assert [str(m.text) for m in model.asked[2]] == ["first", "One.", "instead"]
    await server.run("from the start", thread_id="t", replaces=first[0]["message_id"])
    assert [str(m.text) for m in model.asked[3]] == ["from the start"]
    _, thread = await server.call("GET", "/api/threads/t")
    assert [m["content"] for m in thread["messages"]] == ["from the start", "Four."]


async def test_an_unknown_message_is_not_replaced_and_nothing_changes(start: Start) -> None:
    graph, _ = talking(MessagesState, [["One."], ["Two."]])
    server = await start(Agent(graph, "x"))
    [begun, *_, answer, _] = await server.run("first", thread_id="t")
    before = await server.call("GET", "/api/threads/t")
    for thread_id, id_ in (("t", "x"), ("t", answer["message_id"]), ("u", begun["message_id"])):
        body = {"message": "hi", "thread_id": thread_id, "replaces": id_}
        status, refusal = await server.call("POST", "/api/chat", json=body)
        assert (status, refusal["error"]["code"]) == (404, "unknown_message")
    assert await server.call("GET", "/api/threads/t") == before


async def test_what_the_graph_keeps_beside_the_messages_stays(start: Start) -> None:
    class Counting(MessagesState):
        turns: Annotated[int, operator.add]

    def count(state: Counting) -> dict[str, Any]:
        return {"turns": 1, "messages": [AIMessage(f"{state['turns'] + 1}")]}

    server = await start(Agent(only(count, Counting).compile(), "x"))
    first = await server.run("a", thread_id="t")
    again = await server.run("b", thread_id="t", replaces=first[0]["message_id"])
    assert again[-2]["content"] == "2"


async def test_a_pending_question_is_dropped_with_the_message_that_led_to_it(start: Start) -> None:
    def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(f"Answered: {interrupt('May I?')}")]}

    server = await start(Agent(only(ask).compile(), "x"))
    waiting = await server.run("one", thread_id="t")
    assert waiting[-1]["reason"] == "interrupted"
    again = await server.run("two", thread_id="t", replaces=waiting[0]["message_id"])
    assert again[-1]["reason"] == "interrupted"
    done = await server.run(resume="yes", thread_id="t")
    assert done[-2]["content"] == "Answered: yes"
    _, thread = await server.call("GET", "/api/threads/t")
    assert [m["content"] for m in thread["messages"]] == ["two", "Answered: yes"]


async def test_a_thread_whose_channel_is_spread_over_checkpoints_keeps_them(start: Start) -> None:
    graph, model = talking(Spread, [["One."], ["Two."], ["Three."], ["Four."]])
    server = await start(Agent(graph, "x"))
    for text in ("a", "b", "c"):
        [begun, *_] = await server.run(text, thread_id="t")
    assert [str(m.text) for m in model.asked[2]] == ["a", "One.", "b", "Two.", "c"]
    await server.run("d", thread_id="t", replaces=begun["message_id"])
    assert [str(m.text) for m in model.asked[3]] == ["a", "One.", "b", "Two.", "d"]


# ------------------------------------------------------------------------------ what a page shows


async def test_a_thread_says_how_each_turn_ended(start: Start) -> None:
    never = asyncio.Event()

    class Rejected(Exception):
        status_code = 401

    script = [["Hal", never], [Rejected("secret")], ["  \n", never], ["Fine."]]
    server = await start(scripted_agent(script))
    for text, how in (("stopped", "text_delta"), ("failed", ""), ("blank", "text_delta")):
        stream = await server.ask(text, thread_id="t")
        if how:
            run_id = (await stream.until("start"))["run_id"]
            await stream.until(how)
            await server.call("POST", f"/api/runs/{run_id}/cancel")
        await stream.until("done")
    await server.run("whole", thread_id="t")
    _, thread = await server.call("GET", "/api/threads/t")
    rows = [
        (m["content"], m.get("ended"), m.get("error", {}).get("code")) for m in thread["messages"]
    ]
    assert rows == [
        ("stopped", None, None),
        ("Hal", "cancelled", None),
        ("failed", None, None),
        ("", "error", "model_auth"),
        # Blanks are not an answer: Anthropic refuses a history with them.
        ("blank", None, None),
        ("", "cancelled", None),
        ("whole", None, None),
        ("Fine.", None, None),
    ]


class Dying(InMemorySaver):
    """Loses everything after the first step's writes, as if the process had died there."""

    dead = False

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        self.dead = self.dead or metadata["step"] == 0
        return config if self.dead else super().put(config, checkpoint, metadata, new_versions)


async def test_a_turn_that_died_between_a_step_and_its_checkpoint_says_so(start: Start) -> None:
    dying = Dying()
    graph = only(lambda state: {"messages": [AIMessage("Bye")]})
    await (await start(Agent(graph.compile(dying), "x"))).run("hi", thread_id="t")
    saver = InMemorySaver()
    saver.storage, saver.writes, saver.blobs = dying.storage, dying.writes, dying.blobs
    server = await start(Agent(graph.compile(saver), "x"))
    await server.run("again", thread_id="t")
    _, thread = await server.call("GET", "/api/threads/t")
    assert [m["content"] for m in thread["messages"]] == ["hi", "", "again", "Bye"]
    assert thread["messages"][1]["ended"] == "shutdown"


async def test_a_thread_shows_reasoning_and_usage(start: Start) -> None:
    from langchain_core.messages import AIMessageChunk

    counts = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    thought = AIMessageChunk(content="", additional_kwargs={"reasoning_content": "Hm."})
    usage = AIMessageChunk(content="", usage_metadata=counts)
    server = await start(scripted_agent([[thought, "Yes", usage]]))
    await server.run("hi", thread_id="t")
    _, thread = await server.call("GET", "/api/threads/t")
    answer = thread["messages"][-1]
    assert (answer["content"], answer["reasoning"], answer["usage"]) == ("Yes", "Hm.", counts)


async def test_the_question_of_a_running_run_is_among_the_messages(start: Start) -> None:
    go = asyncio.Event()
    server = await start(scripted_agent([["One."], [go, "Two."]]))
    await server.run("first", thread_id="t")
    stream = await server.ask("second", thread_id="t")
    begun = await stream.until("start")
    _, thread = await server.call("GET", "/api/threads/t")
    assert thread["run_id"] == begun["run_id"]
    assert [m["content"] for m in thread["messages"]] == ["first", "One.", "second"]
    assert thread["messages"][-1]["id"] == begun["message_id"]
    go.set()
    check([begun, *await stream.events()])
    _, thread = await server.call("GET", "/api/threads/t")
    assert [m["content"] for m in thread["messages"]] == ["first", "One.", "second", "Two."]


async def test_a_graph_that_was_left_behind_cannot_write_to_the_memory(start: Start) -> None:
    begun, let_go, over = (asyncio.Event() for _ in range(3))

    async def answer(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        if len(state["messages"]) > 1:
            return {"messages": [AIMessage("Fine.")]}
        begun.set()
        while not let_go.is_set():
            with suppress(asyncio.CancelledError):
                await let_go.wait()
        own = {k: v for k, v in config["configurable"].items() if k in ("thread_id", MAY_WRITE)}
        await agent.graph.aupdate_state({"configurable": own}, {"messages": [AIMessage("Late.")]})
        over.set()
        return {"messages": [AIMessage("Late.")]}

    agent = Agent(only(answer).compile(), "x")
    server = await start(agent)
    stream = await server.ask("hi", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    await begun.wait()
    await server.call("POST", f"/api/runs/{run_id}/cancel")
    await server.run("again", thread_id="t")
    let_go.set()
    await over.wait()
    await server.run("last", thread_id="t")
    _, thread = await server.call("GET", "/api/threads/t")
    expected = ["hi", "", "again", "Fine.", "last", "Fine."]
    assert [message["content"] for message in thread["messages"]] == expected


async def test_a_number_that_cannot_be_saved_becomes_a_float(start: Start) -> None:
    @tool
    async def count(n: int) -> str:
        """Count."""
        return "counted"

    script = [call("count", f'{{"n": {10**30}}}', "c1"), ["Done."], ["Bye."]]
    server = await start(scripted_agent(script, [count]))
    events = await server.run("go", thread_id="t")
    assert events[-1]["reason"] == "completed"
    assert (await server.run("bye", thread_id="t"))[-1]["reason"] == "completed"
    _, thread = await server.call("GET", "/api/threads/t")
    assert thread["messages"][1]["tool_calls"][0]["input"] == {"n": 1e30}


async def test_a_text_whose_message_got_another_id_is_in_the_thread_once(start: Start) -> None:
    gate = asyncio.Event()
    model = ScriptedModel(script=[["Hello ", "there."]])

    async def answer(state: MessagesState) -> dict[str, Any]:
        text = (await model.ainvoke(state["messages"])).text
        return {"messages": [AIMessage(str(text), id="own")]}

    async def hang(state: MessagesState) -> None:
        await gate.wait()

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_node("hang", hang)
    graph.add_edge(START, "answer")
    graph.add_edge("answer", "hang")
    server = await start(Agent(graph.compile(), "x"), run_timeout_s=1)
    events = await server.run("hi", thread_id="t")
    assert events[-1]["reason"] == "timeout"
    _, thread = await server.call("GET", "/api/threads/t")
    assert [m["content"] for m in thread["messages"]] == ["hi", "Hello there."]


async def test_an_artifact_that_cannot_be_saved_is_left_out(start: Start) -> None:
    @tool(response_format="content_and_artifact")
    async def read() -> tuple[str, Any]:
        """Read."""
        return "two rows", iter([1, 2])

    server = await start(scripted_agent([call("read", "{}", "c1"), ["Two."], ["Bye."]], [read]))
    events = await server.run("go", thread_id="t")
    assert events[-1]["reason"] == "completed"
    assert (await server.run("bye", thread_id="t"))[-1]["reason"] == "completed"
    _, thread = await server.call("GET", "/api/threads/t")
    assert [m.get("result", m.get("content")) for m in thread["messages"]] == [
        *("go", "", {"content": "two rows"}, "Two.", "bye", "Bye.")
    ]


async def test_what_cannot_be_saved_of_a_state_is_left_out(start: Start) -> None:
    class State(MessagesState):
        lock: Any

    def answer(state: State) -> dict[str, Any]:
        made = AIMessage("Fine.", response_metadata={"lock": Lock(), "kept": 1})
        return {"messages": [made], "lock": Lock()}

    server = await start(Agent(only(answer, State).compile(), "x"))
    for _ in range(2):
        assert (await server.run("go", thread_id="t"))[-1]["reason"] == "completed"
    _, thread = await server.call("GET", "/api/threads/t")
    assert [m["content"] for m in thread["messages"]] == ["go", "Fine."] * 2


async def test_a_blank_answer_after_a_tool_is_closed_as_none(start: Start) -> None:
    @tool
    def look() -> str:
        """Look."""
        return "seen"

    server = await start(scripted_agent([call("look", "{}", "c1"), ["  "], ["Fine."]], [look]))
    await server.run("go", thread_id="t")
    await server.run("again", thread_id="t")
    _, thread = await server.call("GET", "/api/threads/t")
    assert [m.get("content") for m in thread["messages"]] == ["go", "", None, "", "again", "Fine."]


# ------------------------------------------------------------------------------------- the memory


async def test_a_graph_that_was_left_behind_does_not_write_to_the_next_turn(start: Start) -> None:
    begun, let_go, over = (asyncio.Event() for _ in range(3))

    async def answer(state: MessagesState) -> dict[str, Any]:
        text = str(state["messages"][-1].text)
        if text == "stubborn":
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await let_go.wait()
            asyncio.get_running_loop().call_later(0, over.set)
        return {"messages": [AIMessage(f"Answer to {text}")]}

    server = await start(Agent(only(answer).compile(), "x"))
    stream = await server.ask("stubborn", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    await begun.wait()
    await server.call("POST", f"/api/runs/{run_id}/cancel")
    assert (await stream.until("done"))["reason"] == "cancelled"
    await server.run("next", thread_id="t")
    let_go.set()
    await over.wait()
    await server.run("last", thread_id="t")
    _, thread = await server.call("GET", "/api/threads/t")
    assert [m["content"] for m in thread["messages"]] == [
        *("stubborn", "", "next", "Answer to next", "last", "Answer to last")
    ]


async def test_the_memory_keeps_nothing_of_a_thread_that_it_forgets(start: Start) -> None:
    asking = only(lambda state: {"messages": [AIMessage(f"{interrupt('May I?')}")]})
    inner = asking.compile()
    outer = StateGraph(MessagesState)
    outer.add_node("inner", inner)
    outer.add_edge(START, "inner")
    agent = Agent(outer.compile(), "x")
    server = await start(agent)
    memory = agent.memory
    assert isinstance(memory, Memory)
    await server.run("hi", thread_id="t")
    # The subgraph has paused, and its checkpoint is needed to go on.
    assert len(memory.storage["t"]) == 2
    await server.run(resume="yes", thread_id="t")
    assert [*memory.storage["t"]] == [""]
    assert len(memory.storage["t"][""]) == 1
    await server.call("DELETE", "/api/threads/t")
    assert not memory.storage
    assert not memory.blobs
    assert not memory.writes


async def test_a_question_that_is_set_aside_is_settled_before_the_next_turn(start: Start) -> None:
    def ask(state: MessagesState) -> dict[str, Any]:
        text = str(state["messages"][-1].text)
        return {"messages": [AIMessage(interrupt("?") if text == "ask" else f"To {text}")]}

    server = await start(Agent(only(ask).compile(), "x"))
    for text, reason in (("a", "completed"), ("ask", "interrupted"), ("b", "completed")):
        assert (await server.run(text, thread_id="t"))[-1]["reason"] == reason
    _, thread = await server.call("GET", "/api/threads/t")
    assert [m["content"] for m in thread["messages"]] == ["a", "To a", "ask", "", "b", "To b"]


async def test_a_question_that_is_answered_in_the_middle_of_a_wrapped_graph(start: Start) -> None:
    asking = only(lambda state: {"messages": [AIMessage(f"Got {interrupt('May I?')}.")]})
    for wrapped in (asking.compile().with_retry(stop_after_attempt=1), asking.compile() | passing):
        server = await start(Agent(wrapped, "x"))
        assert kinds(await server.run("hi", thread_id="t"))[-2:] == ["interrupt", "done"]
        assert (await server.run(resume="it", thread_id="t"))[-2]["content"] == "Got it."


def passing(state: Any) -> Any:
    return state
