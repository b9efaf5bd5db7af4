"""The built-in agent with ChatOpenAI, against an OpenAI-compatible server on a socket."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent import Agent
from builtin.agent import built_in
from tests.client import check, kinds
from tests.conftest import ROOT, Server
from tests.upstream import CUT, STALL, Upstream, text, tool_call

Start = Callable[..., Awaitable[Server]]
CALCULATE = {"name": "calculate", "arguments": '{"expression": "6 * 7"}'}


def openai_agent(upstream_url: str) -> Agent:
    graph, model = built_in(ROOT / "README.md", 0, "k", upstream_url, "m")
    return Agent(graph, "built-in", model)


async def test_a_tool_call_in_fragments_is_run_and_answered(
    start: Start, upstream: Upstream
) -> None:
    upstream.replies = [
        [
            *tool_call("calculate", '{"expr', 'ession": "6', ' * 7"}'),
            *tool_call("current_time", '{"timezone"', ': "UTC"}', call_id="call_2", index=1),
        ],
        [{"reasoning_content": "Six sevens."}, *text("It is ", "42", "。")],
    ]
    server = await start(openai_agent(upstream.url))
    events = await server.run("6 * 7, and the time?")
    assert kinds(events) == [
        *("start", "thinking", "tool_call", "tool_call", "tool_result", "tool_result"),
        *("reasoning_delta", "text_delta", "final_answer", "done"),
    ]
    assert [e["input"] for e in events if e["type"] == "tool_call"] == [
        {"expression": "6 * 7"},
        {"timezone": "UTC"},
    ]
    assert events[-2]["content"] == "It is 42。"
    assert events[-1]["usage"] == {"input_tokens": 14, "output_tokens": 10, "total_tokens": 24}
    assert upstream.headers[0]["Authorization"] == "Bearer k"
    assert {t["function"]["name"] for t in upstream.requests[0]["tools"]} == {
        *("search_docs", "calculate", "current_time", "wait")
    }


async def test_chunks_that_lack_what_openais_have_are_read(
    start: Start, upstream: Upstream
) -> None:
    bare: list[Any] = [{"choices": [{}]}, {"choices": None}, {"choices": [{"delta": None}]}]
    upstream.replies = [[*text("It is"), *bare, {"choices": [{"delta": {"content": " 42."}}]}]]
    server = await start(openai_agent(upstream.url))
    events = await server.run("6 * 7?")
    check(events)
    assert events[-2]["content"] == "It is 42."


FAILURES = [
    (401, "model_auth", False),
    (403, "model_auth", False),
    (429, "model_rate_limit", True),
    (400, "model_error", False),
    (404, "model_not_found", False),
    (422, "model_error", False),
    (500, "model_error", True),
    (503, "model_error", True),
    ([*text("Hel"), CUT], "model_error", True),
    ([CUT], "model_unreachable", True),
    ([*text("Hel"), {"error": {"message": "secret-of-the-provider"}}], "model_error", True),
    ([{"error": {"message": "secret-of-the-provider"}}], "model_error", True),
    ((429, {"error": {"message": "x", "code": "insufficient_quota"}}), "model_rate_limit", False),
    ((402, {"error": {"message": "Insufficient Balance"}}), "model_rate_limit", False),
    ((400, {"error": {"message": "x", "code": "context_length_exceeded"}}), "model_context", False),
    ([{"error": {"message": "x", "code": 429}}], "model_rate_limit", True),
    ([{"error": {"message": "x", "type": "overloaded_error"}}], "model_error", True),
]


@pytest.mark.parametrize(("reply", "code", "retryable"), FAILURES)
async def test_a_failure_of_the_model_has_a_code_that_a_person_can_act_on(
    start: Start,
    upstream: Upstream,
    caplog: pytest.LogCaptureFixture,
    reply: Any,
    code: str,
    retryable: bool,
) -> None:
    upstream.replies = [reply]
    server = await start(openai_agent(upstream.url))
    stream = await server.ask("hi", thread_id="t")
    events = await stream.events()
    check(events)
    error = events[-2]
    assert (error["code"], error["retryable"]) == (code, retryable)
    assert events[-1]["reason"] == "error"
    assert b"secret" not in stream.raw
    record = next(r for r in caplog.records if error["ref"] in r.getMessage())
    assert record.exc_info
    # What came before the failure is remembered, and the thread goes on.
    upstream.replies = [text("Fine.")]
    assert (await server.run("again", thread_id="t"))[-2]["content"] == "Fine."
    roles = [m["role"] for m in upstream.requests[-1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]


async def test_a_server_that_is_not_there_is_unreachable(start: Start) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}/v1"
        events = await (await start(openai_agent(url))).run("hi")
    assert (events[-2]["code"], events[-2]["retryable"]) == ("model_unreachable", True)


async def leave(server: Server, run_id: str, stream: Any) -> None:
    stream.close()


async def stop(server: Server, run_id: str, stream: Any) -> None:
    status, document = await server.call("POST", f"/api/runs/{run_id}/cancel")
    assert (status, document["status"]) == (202, "cancelled")


async def wait(server: Server, run_id: str, stream: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("how", "settings", "reason"),
    [
        (stop, {}, "cancelled"),
        (wait, {"run_timeout_s": 1}, "timeout"),
        (leave, {"disconnect_grace_s": 0.2}, "cancelled"),
        (leave, {"disconnect_grace_s": 0}, "cancelled"),
    ],
)
@pytest.mark.parametrize("reply", [[STALL], [*text("Hel"), STALL]])
async def test_a_run_that_ends_early_closes_the_models_connection(
    start: Start,
    upstream: Upstream,
    how: Callable[..., Awaitable[None]],
    settings: dict[str, Any],
    reason: str,
    reply: list[Any],
) -> None:
    upstream.replies = [reply]
    server = await start(openai_agent(upstream.url), **settings)
    stream = await server.ask("hi")
    run_id = (await stream.until("start"))["run_id"]
    await asyncio.wait_for(upstream.stalling.wait(), 10)
    await how(server, run_id, stream)
    async with asyncio.timeout(30):
        await upstream.dropped.wait()
    events = await (await server.follow(run_id)).events()
    check(events)
    assert events[-1]["reason"] == reason
    if reason == "timeout":
        assert (events[-2]["code"], events[-2]["retryable"]) == ("timeout", True)


async def test_the_next_turn_works_whatever_stopped_the_last_in_its_tools(
    start: Start, upstream: Upstream
) -> None:
    calls = [
        *tool_call("wait", '{"seconds": 30}'),
        *tool_call("calculate", '{"expression": "1 + 1"}', call_id="call_2", index=1),
    ]
    upstream.replies = [[*text("Let me."), *calls], text("Fine.")]
    server = await start(openai_agent(upstream.url))
    stream = await server.ask("go", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    await stream.until("tool_result")
    await stop(server, run_id, stream)
    assert (await server.run("again", thread_id="t"))[-2]["content"] == "Fine."
    tail = [(m["role"], m["content"]) for m in upstream.requests[-1]["messages"][1:]]
    assert tail[:3] == [
        ("user", "go"),
        ("assistant", "Let me."),
        ("tool", "The run ended before the tool did."),
    ]
    assert tail[3][0] == "tool"
    assert "2" in tail[3][1]


async def test_the_page_is_not_kept_waiting_for_the_models_package() -> None:
    """ChatOpenAI is imported only if it is used."""
    loaded = "import sys, app, builtin.agent; sys.exit('langchain_openai' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", loaded, cwd=ROOT)
    assert await process.wait() == 0


async def test_the_process_uses_the_server_that_the_environment_names(
    launch: Callable[..., Awaitable[Any]], upstream: Upstream, tmp_path: Path
) -> None:
    upstream.replies = [text("From ", "upstream")]
    server = await launch(OPENAI_BASE_URL=upstream.url, OPENAI_MODEL="mine")
    assert (await server.run("hi"))[-2]["content"] == "From upstream"
    assert upstream.requests[0]["model"] == "mine"
    assert (await server.call("GET", "/api/info"))[1]["model"] == "mine"


ODD = {
    "no id": [{"tool_calls": [{"index": 0, "id": None, "function": CALCULATE}]}],
    "the same id twice": [
        *tool_call("calculate", '{"expression": "6 * 7"}', call_id="d"),
        *tool_call("calculate", '{"expression": "6 * 7"}', call_id="d", index=1),
    ],
    "a number beyond 64 bits": tool_call("calculate", f'{{"expression": "6*7", "x": {"9" * 30}}}'),
    "half of a surrogate pair": tool_call("search_docs", '{"query": "\\ud83d"}'),
}


@pytest.mark.parametrize("calls", ODD.values(), ids=ODD.keys())
async def test_an_odd_message_of_a_model_spoils_no_later_turn(
    start: Start, upstream: Upstream, calls: list[Any]
) -> None:
    thought = [{"reasoning_content": half} for half in ("\ud83d", "\ude00 so")]
    upstream.replies = [calls, [*thought, *text("\ud83d", "\ude00 fine")], text("Good.")]
    server = await start(openai_agent(upstream.url))
    events = await server.run("hi", thread_id="t")
    assert events[-1]["reason"] == "completed"
    assert [e["status"] for e in events if e["type"] == "tool_result"].count("ok") > 0
    ids = [e["tool_call_id"] for e in events if e["type"] == "tool_call"]
    assert len(ids) == len(set(ids))
    assert (await server.run("again", thread_id="t"))[-2]["content"] == "Good."
    _, thread = await server.call("GET", "/api/threads/t")
    assert thread["messages"][-3]["content"] == "😀 fine"
    assert thread["messages"][-3]["reasoning"] == "😀 so"
    assert upstream.requests[-1]["messages"][-2]["content"] == "😀 fine"


async def test_the_text_of_a_run_that_broke_off_is_remembered_whole(
    start: Start, upstream: Upstream
) -> None:
    upstream.replies = [[*text("\ud83d", "\ude00 half"), CUT], text("Good.")]
    server = await start(openai_agent(upstream.url))
    assert (await server.run("hi", thread_id="t"))[-1]["reason"] == "error"
    assert (await server.run("again", thread_id="t"))[-1]["reason"] == "completed"
    assert upstream.requests[-1]["messages"][-2]["content"] == "😀 half"


@pytest.mark.parametrize("reply", [text(5), [{"choices": 5}]])  # type: ignore[arg-type]
async def test_an_answer_that_is_none_is_the_models_failure(
    start: Start, upstream: Upstream, reply: list[Any]
) -> None:
    upstream.replies = [reply]
    server = await start(openai_agent(upstream.url))
    failure, done = (await server.run("hi"))[-2:]
    assert (failure["code"], failure["retryable"], done["reason"]) == (
        "model_error",
        True,
        "error",
    )
