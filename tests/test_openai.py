"""The built-in agent with OpenAI-compatible servers: each test scripts one on a real socket."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from langchain_core.exceptions import ModelAPIError, ModelConnectionError
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph.state import CompiledStateGraph
from openai import APIError, RateLimitError

from builtin.agent import NO_OBJECT, built_in
from tests.upstream import lacks_a_result

ROOT = Path(__file__).resolve().parent.parent
Graph = CompiledStateGraph[Any, Any, Any, Any]
PROXIES = ("OPENAI_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
CUT = "cut"
DONE = b"data: [DONE]\n\n"


def chunk(delta: Any = None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {} if delta is None else delta, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "model": "m", "choices": [choice], **fields}


def text(*pieces: str) -> list[Any]:
    return [chunk({"content": piece}) for piece in pieces]


def calls(*deltas: Any) -> list[Any]:
    """Return an answer of tool calls; each delta is a list of fragments."""
    return [*(chunk({"tool_calls": delta}) for delta in deltas), chunk(finish="tool_calls"), DONE]


def call(arguments: Any = '{"expression": "6 * 7"}', name: Any = "calculate", **fields: Any) -> Any:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **fields}


STOP = [chunk(finish="stop"), DONE]
FINE = [*text("Fine."), *STOP]


class Upstream:
    """Answers each request with the next reply of its script.

    A reply is a list of chunks (dicts, or bytes that are sent as they are; ``CUT`` breaks the
    connection, an ``asyncio.Event`` is waited for), or a tuple of status, body and headers. Like
    OpenAI, the server refuses a history in which a tool call lacks its result.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.replies: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.left = asyncio.Event()
        """Set when a client left before its answer was over."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        reply = self.replies[len(self.requests)]
        self.requests.append(body)
        self.headers.append(request.headers)
        assert not lacks_a_result(body["messages"])
        if isinstance(reply, tuple):
            return web.json_response(reply[1], status=reply[0], headers=reply[2])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for step in reply:
                if isinstance(step, asyncio.Event):
                    await step.wait()
                elif step == CUT:
                    assert request.transport
                    request.transport.abort()
                elif isinstance(step, bytes):
                    await response.write(step)
                else:
                    await response.write(f"data: {json.dumps(step)}\n\n".encode())
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise
        return response


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    app = web.Application()
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    upstream = Upstream("")
    app.router.add_post("/v1/chat/completions", upstream.answer)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    upstream.url = f"http://{host}:{port}/v1"
    yield upstream
    await runner.cleanup()


def graph_of(upstream: Upstream, api_key: str = "") -> Graph:
    graph, name = built_in(ROOT / "README.md", 0, api_key, upstream.url, "m")
    assert name == "m"
    graph.checkpointer = InMemorySaver()
    return graph


async def ask(graph: Graph, question: str = "hi") -> list[BaseMessage]:
    """Return the messages that a turn added, as the checkpointer has them."""
    config: Any = {"configurable": {"thread_id": "t"}}
    before = len((await graph.aget_state(config)).values.get("messages", ()))
    await graph.ainvoke({"messages": [("user", question)]}, config)
    messages: list[BaseMessage] = (await graph.aget_state(config)).values["messages"]
    return messages[before + 1 :]


async def answer_of(upstream: Upstream, *replies: Any) -> AIMessage:
    """Return the first message of the model for the first of these replies."""
    upstream.replies = [*replies]
    answer = (await ask(graph_of(upstream)))[0]
    assert isinstance(answer, AIMessage)
    return answer


async def parts(graph: Graph) -> AsyncIterator[Any]:
    """Yield the message chunks of a turn as they come."""
    config: Any = {"configurable": {"thread_id": "t"}}
    given = {"messages": [("user", "hi")]}
    async for message, _ in graph.astream(given, config, stream_mode="messages"):
        yield message


# ------------------------------------------------------------------------------------ tool calls

SIX = {"expression": "6 * 7"}
TWO = {"expression": "1 + 1"}
ONE_AND_ONE = '{"expression": "1 + 1"}'
THIRDS = ['{"expr', 'ession": ', '"6 * 7"}']

RUNS: dict[str, tuple[list[Any], list[dict[str, Any]]]] = {
    "as OpenAI sends them, interleaved": (
        calls(
            [call("", index=0, id="a")],
            [call("", index=1, id="b")],
            [{"index": 0, "function": {"arguments": '{"expression": "6'}}],
            [{"index": 1, "function": {"arguments": ONE_AND_ONE}}],
            [{"index": 0, "function": {"arguments": ' * 7"}'}}],
        ),
        [SIX, TWO],
    ),
    "no index, one call": (calls([call(id="a")]), [SIX]),
    "no index, two calls in one delta": (
        calls([call(id="a"), call(ONE_AND_ONE, id="b")]),
        [SIX, TWO],
    ),
    "no index, two calls in two deltas": (
        calls([call(id="a")], [call(ONE_AND_ONE, id="b")]),
        [SIX, TWO],
    ),
    "no index and no id, two calls": (calls([call()], [call(ONE_AND_ONE)]), [SIX, TWO]),
    "no index, the same id twice": (
        calls([call(id="a"), call(ONE_AND_ONE, id="a")]),
        [SIX, TWO],
    ),
    "no index, fragments continue the last call": (
        calls(
            [call(THIRDS[0], id="a")],
            *([{"function": {"arguments": part}}] for part in THIRDS[1:]),
            [call('{"expression":', id="b")],
            [{"index": None, "id": None, "function": {"name": None, "arguments": ' "1 + 1"}'}}],
        ),
        [SIX, TWO],
    ),
    "no index, name and id in each fragment": (
        calls(*([call(part, id="a")] for part in THIRDS)),
        [SIX],
    ),
    "no index and no arguments, two calls": (calls([call("", id="a"), call("", id="b")]), [{}, {}]),
    "every index is 0": (
        calls([call(index=0, id="a")], [call(ONE_AND_ONE, index=0, id="b")]),
        [SIX, TWO],
    ),
    "every index is 0, without ids": (
        calls([call(index=0, id="")], [call(ONE_AND_ONE, index=0, id="")]),
        [SIX, TWO],
    ),
    "the name in each fragment": (
        calls(*([call(part, index=0)] for part in THIRDS), [call("", index=0)]),
        [SIX],
    ),
    "name and id in each fragment": (
        calls(*([call(part, index=0, id="a")] for part in THIRDS)),
        [SIX],
    ),
    "the name after the first fragment": (
        calls([{"index": 0, "function": {"arguments": ""}}], [call(index=0, id="a")]),
        [SIX],
    ),
    "an index in the first fragment alone": (
        calls([call(THIRDS[0], index=0)], *([call(part)] for part in THIRDS[1:])),
        [SIX],
    ),
    "nothing in the first fragment": (
        calls([{"index": 0, "id": "a"}], [call(None, index=0)], [call(index=0)]),
        [SIX],
    ),
    "id null": (calls([call(index=0, id=None)]), [SIX]),
    "the same id twice": (
        calls([call(index=0, id="d")], [call(ONE_AND_ONE, index=1, id="d")]),
        [SIX, TWO],
    ),
    "arguments as an object": (calls([call(SIX, index=0, id="a")]), [SIX]),
    "arguments null": (calls([call(None, index=0, id="a")]), [{}]),
    "arguments null as text": (calls([call("null", index=0, id="a")]), [{}]),
    "arguments empty": (calls([call(" ", index=0, id="a")]), [{}]),
    "a line break in a string": (
        calls([call('{"expression": "6 * 7\n"}', index=0, id="a")]),
        [{"expression": "6 * 7\n"}],
    ),
    "a number of more than 64 bits": (
        calls(
            [call(f'{{"expression": "6 * 7", "x": {10**30}, "y": {2**63 + 1}}}', index=0, id="a")]
        ),
        [{**SIX, "x": 1e30, "y": 2**63 + 1}],
    ),
    "half of a surrogate pair": (
        calls([call('{"expression": "6 * 7", "x": "\\ud83d\\ude00 \\ud83d"}', index=0, id="a")]),
        [{**SIX, "x": "😀 \ufffd"}],
    ),
    "a surrogate pair in two fragments": (
        calls(
            [call('{"expression": "6 * 7", "x": "\ud83d', index=0, id="a")],
            [{"index": 0, "function": {"arguments": '\ude00"}'}}],
        ),
        [{**SIX, "x": "😀"}],
    ),
}


@pytest.mark.parametrize(("reply", "arguments"), RUNS.values(), ids=RUNS.keys())
async def test_tool_calls_of_every_dialect_are_run_once(
    upstream: Upstream, reply: list[Any], arguments: list[dict[str, Any]]
) -> None:
    upstream.replies = [reply, FINE]
    asked, *results, answer = await ask(graph_of(upstream))
    assert isinstance(asked, AIMessage)
    assert [c["name"] for c in asked.tool_calls] == ["calculate"] * len(arguments)
    assert [c["args"] for c in asked.tool_calls] == arguments
    assert asked.invalid_tool_calls == []
    ids = [c["id"] for c in asked.tool_calls]
    assert all(ids) and len(set(ids)) == len(ids)
    assert [(r.tool_call_id, r.status) for r in results if isinstance(r, ToolMessage)] == [
        (c["id"], "success" if c["args"] else "error") for c in asked.tool_calls
    ]
    assert answer.text == "Fine."
    sent = upstream.requests[1]["messages"][2]["tool_calls"]
    assert [json.loads(c["function"]["arguments"]) for c in sent] == arguments


async def test_a_call_keeps_its_id_and_a_second_one_of_that_id_gets_another(
    upstream: Upstream,
) -> None:
    rest = {"index": 0, "function": {"arguments": THIRDS[1] + THIRDS[2]}}
    reply = calls(
        [call(THIRDS[0], index=0, id="d")], [rest], [call(index=1, id="d"), call(index=2)]
    )
    first, second, third = (await answer_of(upstream, reply, FINE)).tool_calls
    assert first["id"] == "d"
    for other in (second, third):
        assert (other["id"] or "").startswith("call_") and len(other["id"] or "") > 20


async def test_calls_of_two_tools_without_index_id_and_arguments_are_two(
    upstream: Upstream,
) -> None:
    reply = calls([call("", "calculate")], [call("", "current_time")])
    asked = await answer_of(upstream, reply, FINE)
    assert [(c["name"], c["args"]) for c in asked.tool_calls] == [
        ("calculate", {}),
        ("current_time", {}),
    ]


@pytest.mark.parametrize("name", ["", None])
async def test_a_call_without_a_name_ends_as_an_error_before_the_answer(
    upstream: Upstream, name: str | None
) -> None:
    upstream.replies = [calls([call(name=name, index=0, id="a")]), FINE]
    asked, result, answer = await ask(graph_of(upstream))
    assert isinstance(result, ToolMessage)
    assert (result.tool_call_id, result.status) == ("a", "error")
    assert answer.text == "Fine."
    assert upstream.requests[1]["messages"][2]["tool_calls"][0]["function"]["name"]


UNUSABLE = {
    "prose": ("6 * 7, please", "tool_calls"),
    "a list": ('["6 * 7"]', "tool_calls"),
    "a string": ('"6 * 7"', "tool_calls"),
    "cut": ('{"expression": "6 * 7', "tool_calls"),
    "cut at the token limit": ('{"expression": "6 * 7"', "length"),
    "cut at the token limit before it began": ("", "length"),
    "a number that JSON does not have": ('{"expression": "6 * 7", "x": NaN}', "tool_calls"),
    "a number that no float holds": (
        f'{{"expression": "6 * 7", "x": {"9" * 400}}}',
        "tool_calls",
    ),
    "half of a surrogate pair": ('{"expression": "\ud83d', "tool_calls"),
    "brackets without end": ('{"expression": ' + "[" * 100_000, "tool_calls"),
}


@pytest.mark.parametrize(("arguments", "finish"), UNUSABLE.values(), ids=UNUSABLE.keys())
async def test_unusable_arguments_start_no_tool_and_the_model_is_asked_again(
    upstream: Upstream, arguments: str, finish: str
) -> None:
    reply = [chunk({"tool_calls": [call(arguments, index=0, id="a")]}), chunk(finish=finish), DONE]
    upstream.replies = [reply, FINE]
    asked, result, answer = await ask(graph_of(upstream))
    assert isinstance(asked, AIMessage) and isinstance(result, ToolMessage)
    raw = arguments.replace("\ud83d", "\ufffd")
    assert asked.tool_calls == []
    assert [(c["args"] or "").strip() for c in asked.invalid_tool_calls] == [raw]
    assert (result.text, result.status, result.name) == (NO_OBJECT, "error", "calculate")
    assert answer.text == "Fine."
    [sent] = upstream.requests[1]["messages"][2]["tool_calls"]
    assert json.loads(sent["function"]["arguments"])["arguments"].strip() == raw


@pytest.mark.parametrize("finish", ["tool_calls", "length"])
async def test_a_whole_call_beside_a_cut_one_runs(upstream: Upstream, finish: str) -> None:
    cut = call('{"expression": "1', index=1, id="b")
    reply = [chunk({"tool_calls": [call(index=0, id="a"), cut]}), chunk(finish=finish), DONE]
    upstream.replies = [reply, FINE]
    _, *results, answer = await ask(graph_of(upstream))
    statuses = {r.tool_call_id: r.status for r in results if isinstance(r, ToolMessage)}
    assert statuses == {"a": "success", "b": "error"}
    assert answer.text == "Fine."


async def test_a_call_is_streamed_whole_and_once_after_all_text(upstream: Upstream) -> None:
    reply = [*text("Let "), *calls(*([call(part, id="a")] for part in THIRDS))]
    reply[-2:-2] = text("me.")
    upstream.replies = [reply, FINE]
    seen = [m async for m in parts(graph_of(upstream)) if isinstance(m, AIMessage)]
    shown = [(m.text, [*getattr(m, "tool_call_chunks", ())]) for m in seen]
    whole = {
        "type": "tool_call_chunk",
        "name": "calculate",
        "args": json.dumps(SIX),
        "id": "a",
        "index": 0,
    }
    assert [each for each in shown if any(each)] == [
        ("Let ", []),
        ("me.", []),
        ("", [whole]),
        ("Fine.", []),
    ]


# ------------------------------------------------------------------------- text and reasoning


async def test_each_delta_passes_at_once(upstream: Upstream) -> None:
    gate = asyncio.Event()
    upstream.replies = [[*text("Hel", "lo "), gate, *text("there"), *STOP]]
    stream = parts(graph_of(upstream))
    assert [(await anext(stream)).text for _ in range(2)] == ["Hel", "lo "]
    gate.set()
    assert "".join([m.text async for m in stream]) == "there"


async def test_a_refusal_is_the_answer(upstream: Upstream) -> None:
    deltas = [{"role": "assistant", "content": None, "refusal": ""}, {"refusal": "I cannot "}]
    reply = [*map(chunk, deltas), chunk({"refusal": "help."}), *STOP]
    assert (await answer_of(upstream, reply)).text == "I cannot help."


async def test_text_in_blocks_is_text(upstream: Upstream) -> None:
    blocks = [[{"type": "text", "text": piece}] for piece in ("It is ", "42.")]
    answer = await answer_of(upstream, [*(chunk({"content": each}) for each in blocks), *STOP])
    assert answer.text == "It is 42."


async def test_chunks_that_lack_what_those_of_openai_have_are_read(upstream: Upstream) -> None:
    bare: list[Any] = [
        *(
            {},
            {"choices": []},
            {"choices": None},
            {"choices": [{}]},
            {"choices": [{"delta": None}]},
        ),
        {"choices": [], "prompt_filter_results": []},
        {"choices": [{"delta": {"content": " 42.", "tool_calls": None}}]},
        {"choices": [{"finish_reason": "stop"}]},
    ]
    assert (await answer_of(upstream, [*text("It is"), *bare])).text == "It is 42."


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_is_kept_beside_the_text(upstream: Upstream, field: str) -> None:
    deltas = [{field: "Six "}, {field: "sevens.", "content": "It is "}, {"content": "42."}]
    answer = await answer_of(upstream, [*map(chunk, deltas), *STOP])
    assert answer.content == "It is 42."
    assert answer.additional_kwargs["reasoning_content"] == "Six sevens."


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
async def test_reasoning_goes_back_with_the_tool_calls_that_it_led_to_and_with_nothing_else(
    upstream: Upstream, field: str
) -> None:
    thought = [chunk({field: "I should "}), chunk({field: "calculate."})]
    upstream.replies = [
        [*thought, *calls([call(index=0, id="a")])],
        [chunk({field: "Done."}), *FINE],
        FINE,
    ]
    graph = graph_of(upstream)
    await ask(graph)
    await ask(graph, "again?")
    for request in upstream.requests[1:]:
        sent = {
            i: {key: m[key] for key in m.keys() & {"reasoning_content", "reasoning"}}
            for i, m in enumerate(request["messages"])
        }
        assert {i: kept for i, kept in sent.items() if kept} == {2: {field: "I should calculate."}}


async def test_what_came_with_a_tool_call_goes_back_with_it(upstream: Upstream) -> None:
    signature = {"google": {"thought_signature": "c2ln"}}
    first = call(index=0, id="a", extra_content=signature)
    upstream.replies = [calls([first], [call(index=1, id="b")]), FINE, FINE]
    graph = graph_of(upstream)
    await ask(graph)
    await ask(graph, "again?")
    for request in upstream.requests[1:]:
        sent = request["messages"][2]["tool_calls"]
        assert [c.get("extra_content") for c in sent] == [signature, None]


# ------------------------------------------------------------------------- the end of a stream

NO_ANSWER: dict[str, Any] = {
    "an error": {"error": {"message": "secret", "code": "server_error"}},
    "an error object": {"object": "error", "message": "secret", "code": 400},
    "a detail": {"detail": "Internal Server Error"},
    "an error without choices": {"choices": [], "message": "secret"},
    "a list": [{"error": {"message": "secret"}}],
    "no JSON": b"data: <html>\n\n",
    "no UTF-8": b"data: \xff\n\n",
    "a number for text": chunk({"content": 5}),
    "a number for choices": {"choices": 5},
}


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("bad", NO_ANSWER.values(), ids=NO_ANSWER.keys())
async def test_a_chunk_that_is_no_part_of_an_answer_is_an_error_of_the_provider(
    upstream: Upstream, bad: Any, begun: bool
) -> None:
    upstream.replies = [[*text(*["Hel"] * begun), bad, *FINE]]
    with pytest.raises(APIError) as raised:
        await ask(graph_of(upstream))
    if isinstance(bad, dict) and "choices" not in bad:
        assert raised.value.body == bad.get("error", bad)
        assert raised.value.code == (str(bad["code"]) if "code" in bad else None) or "error" in bad


ROLE = chunk({"role": "assistant", "content": ""})
ENDS: dict[str, tuple[list[Any], type[Exception] | None]] = {
    "nothing": ([], ModelAPIError),
    "nothing but the end mark": ([DONE], ModelAPIError),
    "a role": ([ROLE], ModelAPIError),
    "a role and the end mark": ([ROLE, DONE], ModelAPIError),
    "text": (text("Hel"), ModelConnectionError),
    "reasoning": ([chunk({"reasoning": "Hm"})], ModelConnectionError),
    "a tool call": ([chunk({"tool_calls": [call(index=0)]})], ModelConnectionError),
    "text, and the connection broke": ([*text("Hel"), CUT], ModelConnectionError),
    "text and the end mark": ([*text("Hello"), DONE], None),
    "text and a finish_reason": ([*text("Hello"), chunk(finish="stop")], None),
    "text with a finish_reason": ([chunk({"content": "Hello"}, "stop")], None),
}


@pytest.mark.parametrize(("reply", "error"), ENDS.values(), ids=ENDS.keys())
async def test_a_stream_is_whole_with_a_finish_reason_or_an_end_mark(
    upstream: Upstream, reply: list[Any], error: type[Exception] | None
) -> None:
    upstream.replies = [reply, FINE]
    if error is None:
        assert (await ask(graph_of(upstream)))[-1].text == "Hello"
        return
    with pytest.raises(error):
        await ask(graph_of(upstream))
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter"])
async def test_the_finish_reason_is_kept(upstream: Upstream, reason: str) -> None:
    answer = await answer_of(upstream, [*text("Half"), chunk(finish=reason), chunk(), DONE])
    assert answer.response_metadata["finish_reason"] == reason
    assert answer.response_metadata["model_name"] == "m"


def usage(input_tokens: int, output_tokens: int) -> dict[str, Any]:
    total = input_tokens + output_tokens
    counts = {"prompt_tokens": input_tokens, "completion_tokens": output_tokens}
    return {"usage": {**counts, "total_tokens": total}}


@pytest.mark.parametrize(
    "reply",
    [
        [*FINE[:2], {"choices": [], **usage(100, 5)}, DONE],
        [*text("Fine."), chunk(finish="stop", **usage(100, 5))],
        [chunk({"content": word}, **usage(100, n)) for n, word in enumerate(["Fi", "ne", "."], 3)]
        + STOP,
        [*text("Fine."), chunk(usage=None), {"choices": [], **usage(100, 5)}, chunk(finish="stop")],
    ],
    ids=["last", "with finish_reason", "so far in each chunk", "before the end"],
)
async def test_the_last_usage_of_a_call_counts_once(upstream: Upstream, reply: list[Any]) -> None:
    upstream.replies = [reply]
    graph = graph_of(upstream)
    seen = [m async for m in parts(graph)]
    assert [m.usage_metadata["total_tokens"] for m in seen if m.usage_metadata] == [105]
    stored = (await graph.aget_state({"configurable": {"thread_id": "t"}})).values["messages"][-1]
    counts = stored.usage_metadata
    assert (counts["input_tokens"], counts["output_tokens"], counts["total_tokens"]) == (
        100,
        5,
        105,
    )


async def test_a_turn_that_is_cancelled_closes_the_connection(upstream: Upstream) -> None:
    upstream.replies = [[*text("Hel"), asyncio.Event()]]
    stream = parts(graph_of(upstream))
    assert (await anext(stream)).text == "Hel"
    rest = asyncio.ensure_future(anext(stream))
    rest.cancel()
    await asyncio.wait([rest])
    async with asyncio.timeout(30):
        await upstream.left.wait()


# ---------------------------------------------------------------------- requests and retries

BUSY = {"error": {"message": "busy", "type": "x"}}
RETRIES: list[tuple[dict[str, str], int]] = [
    ({"Retry-After": "0.01"}, 2),
    ({"Retry-After": "6"}, 1),
    ({"Retry-After": "6", "x-should-retry": "true"}, 1),
    ({"Retry-After": formatdate(time.time() + 3600)}, 1),
]


@pytest.mark.parametrize(("headers", "requests"), RETRIES)
async def test_a_busy_provider_is_asked_again_only_if_it_is_soon(
    upstream: Upstream, headers: dict[str, str], requests: int
) -> None:
    upstream.replies = [(429, BUSY, headers), FINE]
    if requests == 2:
        assert (await ask(graph_of(upstream)))[-1].text == "Fine."
    else:
        with pytest.raises(RateLimitError) as raised:
            await ask(graph_of(upstream))
        assert raised.value.body == BUSY["error"]
    assert len(upstream.requests) == requests


@pytest.mark.parametrize(("key", "sent"), [("k", "Bearer k"), ("", "Bearer none")])
async def test_a_server_of_ones_own_needs_no_key(upstream: Upstream, key: str, sent: str) -> None:
    upstream.replies = [FINE]
    await ask(graph_of(upstream, key))
    assert upstream.headers[0]["Authorization"] == sent
    request = upstream.requests[0]
    assert (request["model"], request["stream"]) == ("m", True)
    assert request["stream_options"] == {"include_usage": True}
    assert [m["role"] for m in request["messages"]] == ["system", "user"]
    assert "calculate" in [t["function"]["name"] for t in request["tools"]]


# ---------------------------------------------------------------------------------- proxies


class Proxy:
    """Records the first line of each request, and answers as a model server would."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.asked = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.lines.append(head.splitlines()[0])
        self.asked.set()
        if head.startswith("CONNECT"):
            await reader.read()  # Until the client leaves.
        else:
            body = f"data: {json.dumps(FINE[0])}\n\n".encode() + DONE
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
            writer.write(b"Content-Type: text/event-stream\r\n\r\n" + body)
        writer.close()
        await writer.wait_closed()


@pytest.fixture
async def proxy(caplog: pytest.LogCaptureFixture) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy and its address. Nothing may warn that proxies are ignored."""
    proxy = Proxy()
    async with await asyncio.start_server(proxy.serve, "127.0.0.1", 0) as server:
        yield proxy, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    assert [r for r in caplog.get_records("call") if r.levelname == "WARNING"] == []


@pytest.mark.parametrize("scheme", ["http://", ""])
@pytest.mark.parametrize("name", ["OPENAI_PROXY", "HTTP_PROXY", "ALL_PROXY"])
async def test_the_model_is_asked_through_the_proxy(
    proxy: tuple[Proxy, str], monkeypatch: pytest.MonkeyPatch, name: str, scheme: str
) -> None:
    recorder, address = proxy
    monkeypatch.setenv(name, f"{scheme}{address}")
    graph = graph_of(Upstream("http://model.example/v1"))
    assert (await ask(graph))[-1].text == "Fine."
    assert recorder.lines == ["POST http://model.example/v1/chat/completions HTTP/1.1"]


@pytest.mark.parametrize("name", ["OPENAI_PROXY", "HTTPS_PROXY"])
async def test_a_model_behind_https_is_asked_through_a_tunnel_of_the_proxy(
    proxy: tuple[Proxy, str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recorder, address = proxy
    monkeypatch.setenv(name, f"http://{address}")
    turn = asyncio.ensure_future(ask(graph_of(Upstream("https://model.example/v1"))))
    async with asyncio.timeout(30):
        await recorder.asked.wait()
    turn.cancel()
    await asyncio.wait([turn])
    assert recorder.lines == ["CONNECT model.example:443 HTTP/1.1"]


@pytest.mark.parametrize(
    "environ",
    [
        {"HTTPS_PROXY": "http://{}"},
        {"HTTP_PROXY": "http://{}", "NO_PROXY": "localhost,127.0.0.1"},
        {"ALL_PROXY": "socks5://{}", "NO_PROXY": "127.0.0.1"},
    ],
)
async def test_a_model_on_this_machine_is_asked_without_the_proxy(
    upstream: Upstream,
    proxy: tuple[Proxy, str],
    monkeypatch: pytest.MonkeyPatch,
    environ: dict[str, str],
) -> None:
    recorder, address = proxy
    for name, value in environ.items():
        monkeypatch.setenv(name, value.format(address))
    upstream.replies = [FINE]
    assert (await ask(graph_of(upstream)))[-1].text == "Fine."
    assert recorder.lines == []


# ------------------------------------------------------------------------------ the demo model


async def test_without_key_and_address_the_demo_model_answers() -> None:
    graph, name = built_in(ROOT / "README.md", 0, "", "", "m")
    assert name == "demo"
    messages = (await graph.ainvoke({"messages": [("user", "6 * 7?")]}))["messages"]
    assert "42" in messages[-1].text


async def test_the_demo_model_does_not_wait_for_the_import_of_openai() -> None:
    code = "import sys, builtin.agent; print('langchain_openai' in sys.modules)"
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert (await run.communicate())[0].strip() == b"False"
