"""HTTP: refusals, cursors, the lifetime of a run, access. On a socket, in this process."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from langchain_core.messages import AIMessage
from langchain_core.tools import tool

from agent import Agent
from edge.settings import Settings, read_settings
from events import SettingError
from tests.client import check, joined, kinds
from tests.conftest import Server, on_both
from tests.scripted import ScriptedModel, call, loop_graph, scripted_agent
from tests.test_agent import graph_of

Start = Callable[..., Awaitable[Server]]

JSON = {"Content-Type": "application/json"}


def echo_agent() -> Agent:
    return Agent(graph_of(say=lambda state: {"messages": [AIMessage("Hello")]}).compile(), "echo")


def waiting_agent(*script: Any) -> tuple[Agent, asyncio.Event]:
    """An agent that says "Hel", waits for the event, and says "lo"."""
    go = asyncio.Event()
    return scripted_agent([["Hel", go, "lo"], *script]), go


# ----------------------------------------------------------------------------------------- refusals

REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("no body", {"headers": JSON}, 400, "invalid_json"),
    ("no JSON", {"data": "{", "headers": JSON}, 400, "invalid_json"),
    ("not UTF-8", {"data": b'{"message":"\xff"}', "headers": JSON}, 400, "invalid_json"),
    ("NaN", {"data": '{"message":NaN}', "headers": JSON}, 400, "invalid_json"),
    ("deep", {"data": "[" * 100_000, "headers": JSON}, 400, "invalid_json"),
    ("huge number", {"data": "9" * 5000, "headers": JSON}, 400, "invalid_json"),
    ("an array", {"json": ["message"]}, 400, "invalid_request"),
    ("null", {"json": None, "headers": JSON, "data": "null"}, 400, "invalid_request"),
    ("no message", {"json": {}}, 400, "invalid_request"),
    ("message null", {"json": {"message": None}}, 400, "invalid_request"),
    ("message a number", {"json": {"message": 1}}, 400, "invalid_request"),
    ("blank", {"json": {"message": " \n\u3000"}}, 400, "invalid_request"),
    ("too long", {"json": {"message": "字" * 32_001}}, 400, "invalid_request"),
    ("half a pair", {"data": '{"message":"\\ud83d"}', "headers": JSON}, 400, "invalid_json"),
    ("thread a number", {"json": {"message": "a", "thread_id": 1}}, 400, "invalid_request"),
    ("thread empty", {"json": {"message": "a", "thread_id": ""}}, 400, "invalid_request"),
    ("thread long", {"json": {"message": "a", "thread_id": "a" * 65}}, 400, "invalid_request"),
    ("thread odd", {"json": {"message": "a", "thread_id": "a/b\n"}}, 400, "invalid_request"),
    ("both", {"json": {"message": "a", "resume": 1}}, 400, "invalid_request"),
    ("resume half", {"data": '{"resume":"\\ud83d"}', "headers": JSON}, 400, "invalid_json"),
    (
        *("replaces alone", {"json": {"message": "a", "replaces": "x"}}),
        *(400, "invalid_request"),
    ),
    (
        "replaces beside resume",
        {"json": {"resume": 1, "thread_id": "t", "replaces": "x"}},
        *(400, "invalid_request"),
    ),
    (
        *("replaces a number", {"json": {"message": "a", "thread_id": "t", "replaces": 1}}),
        *(400, "invalid_request"),
    ),
    (
        "replaces what is not there",
        {"json": {"message": "a", "thread_id": "t", "replaces": "x"}},
        *(404, "unknown_message"),
    ),
    ("context a list", {"json": {"message": "a", "context": []}}, 400, "invalid_request"),
    ("resume nothing", {"json": {"resume": 1}}, 400, "nothing_to_resume"),
    (
        *("resume an idle thread", {"json": {"resume": None, "thread_id": "idle"}}),
        *(400, "nothing_to_resume"),
    ),
    (
        *("key empty", {"json": {"message": "a"}, "headers": {"Idempotency-Key": ""}}),
        *(400, "invalid_request"),
    ),
    (
        *("key long", {"json": {"message": "a"}, "headers": {"Idempotency-Key": "k" * 129}}),
        *(400, "invalid_request"),
    ),
    (
        *("key with a space", {"json": {"message": "a"}, "headers": {"Idempotency-Key": "a b"}}),
        *(400, "invalid_request"),
    ),
    ("a form", {"data": {"message": "a"}}, 415, "unsupported_media_type"),
    (
        "text",
        {"data": "a", "headers": {"Content-Type": "text/plain"}},
        415,
        "unsupported_media_type",
    ),
    (
        "compressed",
        {
            "data": gzip.compress(b'{"message":"a"}'),
            "headers": {**JSON, "Content-Encoding": "gzip"},
        },
        *(415, "unsupported_media_type"),
    ),
    (
        *("of an unknown encoding", {"data": b"{}", "headers": {**JSON, "Content-Encoding": "x"}}),
        *(415, "unsupported_media_type"),
    ),
]


@pytest.mark.parametrize(
    ("options", "status", "code"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
async def test_a_bad_request_is_refused(
    start: Start, options: dict[str, Any], status: int, code: str
) -> None:
    server = await start(echo_agent())
    if "data" in options:
        options = {key: value for key, value in options.items() if key != "json"}
    got, body = await server.call("POST", "/api/chat", **options)
    assert (got, body["error"]["code"]) == (status, code)
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message"}
    assert "Traceback" not in body["error"]["message"]
    assert server.runs.running == 0


async def test_the_limits_themselves_are_allowed(start: Start) -> None:
    server = await start(echo_agent())
    events = await server.run(
        "字" * 32_000, thread_id="A-z_0" + "9" * 59, headers={"Idempotency-Key": "~" * 128}
    )
    assert events[-1]["reason"] == "completed"
    body = b'{"message":"hi","unknown":1,"thread_id":null}'
    async with server.session.post(
        "/api/chat", data=body, headers={**JSON, "Content-Encoding": "identity"}
    ) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/chat", 405, "method_not_allowed"),
        ("HEAD", "/api/chat", 405, None),
        ("PUT", "/api/chat", 405, "method_not_allowed"),
        ("OPTIONS", "/api/chat", 405, "method_not_allowed"),
        ("POST", "/api/info", 405, "method_not_allowed"),
        ("HEAD", "/api/runs/x/events", 405, None),
        ("GET", "/api/runs/x/events", 404, "unknown_run"),
        ("GET", "/api/runs/x", 404, "unknown_run"),
        ("POST", "/api/runs/x/cancel", 404, "unknown_run"),
        ("GET", "/api/threads/x", 404, "unknown_thread"),
        ("DELETE", "/api/threads/x", 404, "unknown_thread"),
        ("GET", "/api/threads/%00", 404, "unknown_thread"),
        ("DELETE", "/api/threads/a%00b", 404, "unknown_thread"),
        ("GET", "/api/nothing", 404, "not_found"),
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/static/", 404, "not_found"),
        ("GET", "/static/../app.py", 404, "not_found"),
        ("GET", "/static/%2e%2e/app.py", 404, "not_found"),
        ("GET", "/static/..%2fapp.py", 404, "not_found"),
        ("GET", "/static//etc/passwd", 404, "not_found"),
    ],
)
async def test_what_is_not_there_is_refused(
    start: Start, method: str, path: str, status: int, code: str | None
) -> None:
    server = await start(echo_agent())
    from yarl import URL

    url = URL(server.url + path, encoded=True)
    async with aiohttp.request(method, url) as response:
        assert response.status == status
        assert response.headers["Content-Type"] == "application/json; charset=utf-8"
        if code:
            assert (await response.json())["error"]["code"] == code
        if status == 405:
            assert response.headers["Allow"]


async def test_an_unforeseen_failure_is_told_by_its_ref_alone(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    agent = echo_agent()

    class Failing(Agent):
        async def saved(self, thread: str) -> Any:
            raise RuntimeError("secret")

    server = await start(Failing(agent.graph, "x"))
    status, body = await server.call("GET", "/api/threads/t")
    assert (status, body["error"]["code"]) == (500, "internal")
    assert "secret" not in str(body)
    assert any(body["error"]["ref"] in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"]
)
async def test_what_is_not_http_gets_a_400(start: Start, garbage: bytes) -> None:
    server = await start(echo_agent())
    reader, writer = await asyncio.open_connection(*server.url.removeprefix("http://").split(":"))
    writer.write(garbage + b"\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 400 Bad Request\r\n", b"HTTP/1.0 400"))
    assert b"Traceback" not in body
    writer.close()
    await writer.wait_closed()
    assert (await server.call("GET", "/healthz"))[0] == 200


# ---------------------------------------------------------------------------------------- streaming


@on_both
async def test_a_stream_has_the_headers_of_the_contract(start: Start) -> None:
    server = await start(echo_agent())
    stream = await server.ask("hi", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    expected = {
        "Content-Type": "text/event-stream; charset=utf-8",
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
        "Location": f"/api/runs/{run_id}/events",
        "Content-Location": f"/api/runs/{run_id}",
    }
    assert {name: stream.headers[name] for name in expected} == expected
    assert "Content-Encoding" not in stream.headers
    await stream.events()
    assert stream.raw.startswith(b"retry: 2000\n\nevent: start\ndata: {")
    again = await server.follow(run_id)
    assert {name: again.headers[name] for name in expected} == expected


@on_both
async def test_the_first_event_tells_the_run(start: Start) -> None:
    server = await start(echo_agent(), heartbeat_s=7, run_timeout_s=2.5)
    first = (await server.run("hi", thread_id="t"))[0]
    assert first.pop("run_id")
    assert first.pop("message_id")
    assert first == {"type": "start", "thread_id": "t", "heartbeat_s": 7, "timeout_s": 2.5}


@on_both
async def test_heartbeats_come_from_the_first_silence_on(start: Start) -> None:
    go = asyncio.Event()
    server = await start(scripted_agent([[go, "x"]]), heartbeat_s=0.05)
    stream = await server.ask("hi")
    async for event in stream:
        if event["type"] == "thinking":
            while not stream.heartbeats >= 3:
                await stream.response.content.readuntil(b": heartbeat\n\n")
                stream.heartbeats += 1
            go.set()
    assert stream.ids == list(range(1, len(stream.ids) + 1))


@on_both
async def test_every_cursor_gives_every_reader_the_same_bytes(start: Start) -> None:
    agent, go = waiting_agent()
    server = await start(agent)
    first = await server.ask("hi")
    run_id = (await first.until("start"))["run_id"]
    await first.until("text_delta")
    live = [await server.follow(run_id, after) for after in (None, 0, 1, 2, 3)]
    go.set()
    await joined(first, *live)
    frames = first.raw.removeprefix(b"retry: 2000\n\n").split(b"\n\n")[:-1]
    late = [await server.follow(run_id, after) for after in range(len(frames))]
    await joined(*late)
    for after, stream in [*zip((0, 0, 1, 2, 3), live, strict=True), *enumerate(late)]:
        expected = [b"retry: 2000", *frames[after:]]
        assert stream.raw == b"".join(frame + b"\n\n" for frame in expected)


@on_both
async def test_at_the_end_of_an_ended_run_there_is_nothing_more(start: Start) -> None:
    server = await start(echo_agent())
    events = await server.run("hi")
    url = f"/api/runs/{events[0]['run_id']}/events"
    last = str(len(events))
    assert (await server.call("GET", url, headers={"Last-Event-ID": last}))[0] == 204
    assert (await server.call("GET", url, headers={"Last-Event-ID": "0" * 40 + last}))[0] == 204
    assert (await server.call("GET", f"{url}?last_event_id={last}"))[0] == 204
    stream = await server.follow(events[0]["run_id"], after=1, query="?last_event_id=x")
    assert len(await stream.events()) == len(events) - 1


@on_both
@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.0", "+1", " 1 2", "99", "٣", "1" * 5000])
async def test_a_cursor_that_is_none_is_refused(start: Start, cursor: str) -> None:
    server = await start(echo_agent())
    run_id = (await server.run("hi"))[0]["run_id"]
    url = f"/api/runs/{run_id}/events"
    status, body = await server.call("GET", url, params={"last_event_id": cursor})
    assert (status, body["error"]["code"]) == (400, "invalid_last_event_id")
    if cursor.isascii():
        status, body = await server.call("GET", url, headers={"Last-Event-ID": cursor})
        assert (status, body["error"]["code"]) == (400, "invalid_last_event_id")


@on_both
async def test_a_run_tells_its_state(start: Start) -> None:
    agent, go = waiting_agent()
    server = await start(agent)
    stream = await server.ask("hi", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    await stream.until("text_delta")
    running = {"run_id": run_id, "thread_id": "t", "status": "running", "answer": None}
    _, state = await server.call("GET", f"/api/runs/{run_id}")
    assert state == running | {"last_event_id": state["last_event_id"]}
    assert (await server.call("GET", "/api/threads/t"))[1]["run_id"] == run_id
    go.set()
    await stream.events()
    _, state = await server.call("GET", f"/api/runs/{run_id}")
    ended = {"status": "completed", "answer": "Hello", "last_event_id": stream.ids[-1]}
    assert state == running | ended


async def test_what_is_not_utf_8_or_beyond_a_float_is_refused(start: Start) -> None:
    server = await start(echo_agent())
    for data in (
        '{"message":"hi"}'.encode("utf-16"),
        b'\xef\xbb\xbf{"message":"hi"}',
        f'{{"message":"hi","x":{"9" * 400}}}'.encode(),
        b'{"message":"hi","x":1e999}',
    ):
        status, body = await server.call("POST", "/api/chat", data=data, headers=JSON)
        assert (status, body["error"]["code"]) == (400, "invalid_json")


async def test_a_joined_run_names_the_thread_that_it_has(start: Start) -> None:
    server = await start(echo_agent())
    headers = {"Prefer": "respond-async", "Idempotency-Key": "k"}
    answers = [
        await server.call("POST", "/api/chat", json={"message": "hi"}, headers=headers)
        for _ in range(2)
    ]
    assert answers[0] == answers[1]


@on_both
async def test_respond_async_names_the_stream_and_starts_the_run(start: Start) -> None:
    server = await start(echo_agent())
    async with server.session.post(
        "/api/chat", json={"message": "hi"}, headers={"Prefer": "wait=5, Respond-Async"}
    ) as response:
        assert response.status == 202
        document = await response.json()
    assert document.keys() == {"run_id", "thread_id", "events"}
    assert response.headers["Location"] == document["events"]
    events = await (await server.follow(document["run_id"])).events()
    check(events)


# ----------------------------------------------------------------------------- life and end of runs


@on_both
async def test_the_same_key_joins_the_run_that_it_started(start: Start) -> None:
    agent, go = waiting_agent()
    server = await start(agent, max_runs=1)
    headers = {"Idempotency-Key": "k"}
    first = await server.ask("hi", headers=headers)
    await first.until("text_delta")
    joining = await server.ask("hi", headers=headers)
    for body in ({"message": "ho"}, {"message": "hi", "thread_id": "t"}):
        status, refusal = await server.call("POST", "/api/chat", json=body, headers=headers)
        assert (status, refusal["error"]["code"]) == (409, "idempotency_conflict")
    go.set()
    await joined(first, joining)
    assert first.raw == joining.raw
    ended = await server.ask("hi", headers=headers)
    await ended.events()
    assert ended.raw == first.raw


@on_both
async def test_the_key_of_a_resume_joins_it_after_the_thread_has_gone_on(start: Start) -> None:
    @tool
    async def ask() -> str:
        """Ask."""
        from langgraph.types import interrupt

        return str(interrupt("?"))

    server = await start(scripted_agent([call("ask", "{}", "c"), ["ok"]], [ask]))
    events = await server.run("go", thread_id="t")
    asked = next(e["interrupts"] for e in events if e["type"] == "interrupt")
    assert (await server.call("GET", "/api/threads/t"))[1]["interrupts"] == asked
    headers = {"Idempotency-Key": "k"}
    streams = [
        await server.ask(resume=True, thread_id="t", headers=headers),
        await server.ask(resume=True, thread_id="t", headers=headers),
    ]
    await joined(*streams)
    again = await server.ask(resume=True, thread_id="t", headers=headers)
    await again.events()
    assert streams[0].raw == streams[1].raw == again.raw
    assert "interrupts" not in (await server.call("GET", "/api/threads/t"))[1]
    status, _ = await server.call(
        "POST", "/api/chat", json={"resume": 1, "thread_id": "t"}, headers=headers
    )
    assert status == 409


@on_both
async def test_one_run_a_thread(start: Start) -> None:
    agent, go = waiting_agent(["next"])
    server = await start(agent)
    stream = await server.ask("hi", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    for body in ({"message": "a"}, {"resume": 1}):
        status, refusal = await server.call("POST", "/api/chat", json={**body, "thread_id": "t"})
        assert (status, refusal["error"]["code"]) == (409, "thread_busy")
        assert refusal["error"]["run_id"] == run_id
    status, refusal = await server.call("DELETE", "/api/threads/t")
    assert (status, refusal["error"]["run_id"]) == (409, run_id)
    go.set()
    await stream.until("done")
    # The thread is free as soon as its reader sees the end.
    assert (await server.run("again", thread_id="t"))[-2]["content"] == "next"


@on_both
async def test_a_second_start_on_a_thread_at_the_same_time_is_refused(start: Start) -> None:
    server = await start(echo_agent())

    async def post() -> int:
        body = {"message": "hi", "thread_id": "t"}
        async with server.session.post("/api/chat", json=body) as response:
            await response.read()
            return response.status

    for _ in range(10):
        statuses = sorted(await asyncio.gather(*(post() for _ in range(5))))
        assert set(statuses) <= {200, 409}
        assert statuses[0] == 200


@on_both
async def test_runs_are_counted_and_refused_beyond_the_limit(start: Start) -> None:
    agent, go = waiting_agent()
    server = await start(agent, max_runs=1)
    stream = await server.ask("hi")
    await stream.until("text_delta")
    async with server.session.post("/api/chat", json={"message": "hi"}) as response:
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "too_many_runs"
        assert int(response.headers["Retry-After"]) > 0
    go.set()
    await stream.events()
    assert (await server.run("hi", thread_id="x"))[-1]["reason"] == "error"  # The script is over.


@on_both
async def test_cancel_answers_when_the_run_has_stopped(start: Start) -> None:
    agent, _ = waiting_agent()
    server = await start(agent)
    stream = await server.ask("hi")
    run_id = (await stream.until("start"))["run_id"]
    await stream.until("text_delta")
    answers = await asyncio.gather(
        *(server.call("POST", f"/api/runs/{run_id}/cancel") for _ in range(3))
    )
    assert {status for status, _ in answers} <= {200, 202}
    assert all(document["status"] == "cancelled" for _, document in answers)
    tail = await stream.events()
    assert [e["type"] for e in tail] == ["done"]
    assert tail[-1]["reason"] == "cancelled"
    status, document = await server.call("POST", f"/api/runs/{run_id}/cancel")
    assert (status, document["last_event_id"]) == (200, stream.ids[-1])


@on_both
async def test_a_question_is_remembered_however_soon_it_was_stopped(start: Start) -> None:
    agent, _ = waiting_agent()
    server = await start(agent)
    for n in range(8):
        body = {"message": f"question {n}", "thread_id": f"t{n}"}
        _, started = await server.call(
            "POST", "/api/chat", json=body, headers={"Prefer": "respond-async"}
        )
        run = await server.runs.get(started["run_id"], "")
        for _ in range(n):
            await asyncio.sleep(0)
        run.stop("cancelled")
        await server.call("POST", f"/api/runs/{run.id}/cancel")
        _, thread = await server.call("GET", f"/api/threads/t{n}")
        assert thread["messages"][0]["content"] == f"question {n}"


@on_both
async def test_a_graph_that_does_not_let_go_is_left_behind(start: Start) -> None:
    released = asyncio.Event()

    async def stubborn(state: Any) -> dict[str, Any]:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue
        return {"messages": [AIMessage("too late")]}

    server = await start(Agent(graph_of(stubborn=stubborn).compile(), "x"), run_timeout_s=0.1)
    events = await server.run("hi", thread_id="t")
    assert events[-1]["reason"] == "timeout"
    released.set()


@on_both
async def test_a_run_goes_on_without_readers_within_the_grace(start: Start) -> None:
    agent, go = waiting_agent()
    server = await start(agent, disconnect_grace_s=30)
    stream = await server.ask("hi")
    run_id = (await stream.until("start"))["run_id"]
    await stream.until("text_delta")
    stream.close()
    go.set()
    events = await (await server.follow(run_id, after=1)).events()
    assert events[-1]["reason"] == "completed"


@on_both
async def test_a_reader_that_comes_back_stops_the_grace(start: Start) -> None:
    agent, go = waiting_agent()
    server = await start(agent, disconnect_grace_s=2, heartbeat_s=0.5)
    stream = await server.ask("hi")
    run_id = (await stream.until("start"))["run_id"]
    stream.close()
    back = await server.follow(run_id, after=1)
    async for _ in back:
        while back.heartbeats < 6:  # Longer than the grace.
            await back.response.content.readuntil(b": heartbeat\n\n")
            back.heartbeats += 1
        go.set()
    assert (await server.call("GET", f"/api/runs/{run_id}"))[1]["status"] == "completed"


@on_both
async def test_an_ended_run_is_kept_for_its_time(start: Start) -> None:
    server = await start(echo_agent(), run_ttl_s=0.1)
    events = await server.run("hi", headers={"Idempotency-Key": "k"})
    run_id = events[0]["run_id"]
    while (await server.call("GET", f"/api/runs/{run_id}"))[0] == 200:
        pass  # Nothing else tells that it has expired.
    again = await server.run("hi", headers={"Idempotency-Key": "k"})
    assert again[0]["run_id"] != run_id


@on_both
async def test_a_run_that_grows_too_large_ends_within_its_bounds(start: Start) -> None:
    server = await start(scripted_agent([["x" * 1000] * 100]), max_run_bytes=20_000)
    stream = await server.ask("hi")
    events = await stream.events()
    check(events)
    assert (events[-2]["code"], events[-2]["retryable"]) == ("too_large", False)
    assert len(stream.raw.partition(b"event: error")[0]) <= 20_000 + len(b"retry: 2000\n\n")


@on_both
async def test_the_oldest_idle_thread_is_forgotten_first(start: Start) -> None:
    go = asyncio.Event()
    script = [[go, "a"], ["b"], ["c"], ["d"]]
    server = await start(scripted_agent(script), max_threads=2)
    running = await server.ask("hi", thread_id="running")
    await running.until("thinking")
    for thread_id in ("b", "c"):
        await server.run("hi", thread_id=thread_id)
    known = [
        thread_id
        for thread_id in ("running", "b", "c")
        if (await server.call("GET", f"/api/threads/{thread_id}"))[0] == 200
    ]
    assert known == ["running", "c"]
    go.set()
    await running.events()


@on_both
async def test_an_ended_server_ends_its_runs(start: Start) -> None:
    agent, _ = waiting_agent()
    server = await start(agent)
    stream = await server.ask("hi")
    await stream.until("text_delta")
    await server.runs.drain(0)
    tail = await stream.events()
    assert [e["type"] for e in tail] == ["error", "done"]
    assert (tail[0]["code"], tail[0]["retryable"]) == ("shutdown", True)
    assert tail[1]["reason"] == "shutdown"
    async with server.session.post("/api/chat", json={"message": "hi"}) as response:
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "draining"
        assert int(response.headers["Retry-After"]) > 0
    assert await server.call("GET", "/healthz") == (503, {"status": "draining"})


# ------------------------------------------------------------------------------------------- access

ALLOWED = "http://localhost:3000"
EXPOSED = "Location, Content-Location, Retry-After"


async def test_a_preflight_from_a_listed_origin_is_answered(start: Start) -> None:
    server = await start(echo_agent(), api_token="t")
    headers = {"Origin": ALLOWED, "Access-Control-Request-Method": "POST"}
    assert (await server.call("OPTIONS", "/healthz", headers=headers))[0] == 204
    asked = {"Access-Control-Request-Method": "POST"}
    assert (await server.call("OPTIONS", "/api/chat", headers=asked))[0] == 401
    async with server.session.options("/api/chat", headers=headers) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == ALLOWED
        assert {"GET", "POST", "DELETE"} <= {
            *response.headers["Access-Control-Allow-Methods"].split(", ")
        }
        assert {
            *["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer"]
        } <= {*response.headers["Access-Control-Allow-Headers"].split(", ")}
        assert int(response.headers["Access-Control-Max-Age"]) > 0
        assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/chat", {"message": "hi"}),
        ("POST", "/api/chat", {}),
        ("GET", "/api/info", None),
        ("GET", "/api/nothing", None),
        ("PUT", "/api/chat", None),
    ],
)
async def test_every_answer_to_a_listed_origin_may_be_read(
    start: Start, method: str, path: str, body: Any
) -> None:
    server = await start(echo_agent())
    async with server.session.request(
        method, path, json=body, headers={"Origin": ALLOWED}
    ) as response:
        assert response.headers["Access-Control-Allow-Origin"] == ALLOWED
        exposed = response.headers["Access-Control-Expose-Headers"].split(", ")
        assert {*EXPOSED.split(", ")} <= {*exposed}
        assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3001"])
async def test_another_origin_is_refused_and_runs_nothing(start: Start, origin: str) -> None:
    server = await start(echo_agent())
    headers = {"Origin": origin}
    for method, path in (("POST", "/api/chat"), ("GET", "/api/nothing"), ("OPTIONS", "/api/chat")):
        preflight = {"Access-Control-Request-Method": "POST"} if method == "OPTIONS" else {}
        async with server.session.request(
            method, path, json={"message": "hi"}, headers=headers | preflight
        ) as response:
            assert response.status == 403
            assert (await response.json())["error"]["code"] == "origin_not_allowed"
            assert "Access-Control-Allow-Origin" not in response.headers
    assert not server.runs._runs


async def test_the_servers_own_origin_and_any_under_a_star_are_let_in(start: Start) -> None:
    server = await start(echo_agent())
    for own in (server.url, server.url.replace("http:", "https:")):
        assert (await server.call("GET", "/api/info", headers={"Origin": own}))[0] == 200
    open_server = await start(echo_agent(), cors_origins=frozenset({"*"}))
    async with open_server.session.get("/api/info", headers={"Origin": "null"}) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "null"


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer wrong", "Basic secret", "Bearer secretx", "Bearer ü"]
)
async def test_without_the_token_everything_below_api_is_refused(
    start: Start, given: str | None
) -> None:
    server = await start(echo_agent(), api_token="secret")
    headers = {} if given is None else {"Authorization": given}
    for method, path in (("POST", "/api/chat"), ("GET", "/api/nothing"), ("PUT", "/api/info")):
        async with server.session.request(method, path, headers=headers) as response:
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert (await response.json())["error"]["code"] == "unauthorized"
    for path in ("/healthz", "/"):
        async with server.session.get(path) as response:
            assert response.status == 200
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} secret"}
        assert (await server.call("GET", "/api/info", headers=headers))[0] == 200


async def test_the_page_is_protected(start: Start) -> None:
    server = await start(echo_agent())
    for path in ("/", "/static/stream.js", "/static/style.css"):
        async with server.session.get(path) as response:
            assert response.status == 200
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'self'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe-inline" not in policy


async def test_info_tells_what_the_page_shows(start: Start) -> None:
    status, info = await (await start(echo_agent())).call("GET", "/api/info")
    assert status == 200
    assert info.keys() == {"agent", "model", "version", "limits"}


# ----------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("PORT", value) for value in ("x", "-1", "65536", "80.5", "８０")),
        *(("HEARTBEAT_S", value) for value in ("0", "-1", "nan", "inf", "x")),
        ("RUN_TIMEOUT_S", "0"),
        ("DISCONNECT_GRACE_S", "-1"),
        ("SHUTDOWN_GRACE_S", "inf"),
        ("MAX_RUNS", "0"),
        ("MAX_BODY_BYTES", "1e6"),
        ("DEMO_TOKENS_PER_S", "-5"),
        ("CORS_ORIGINS", "localhost:3000"),
        ("CORS_ORIGINS", "http://a.example/path"),
        ("API_TOKEN", "with space"),
        *(
            ("OPENAI_BASE_URL", value)
            for value in ("localhost:8080", "http://", "http://h:x", "http://h:99999", "http://[")
        ),
        *(("OPENAI_BASE_URL", value) for value in ("http://h/ x", "http://\x01", "ftp://h")),
        *(("DOCS_DIR", value) for value in ("/no/such/folder", "a" * 5000)),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_setting_is_named_with_what_it_wants(name: str, value: str) -> None:
    with pytest.raises(SettingError) as caught:
        read_settings([], {name: value})
    line = str(caught.value)
    assert line.startswith(f"{name} wants ")
    assert "\n" not in line
    assert (repr(value) in line) == (name != "API_TOKEN")


def test_every_setting_is_a_flag_that_wins_over_its_variable() -> None:
    settings = read_settings(["--heartbeat-s", "5", "--max-runs=3"], {"HEARTBEAT_S": "7"})
    assert (settings.heartbeat_s, settings.max_runs) == (5, 3)
    for arguments, expected in (
        (
            ["--heartbeat-s", "0"],
            "HEARTBEAT_S wants a number of seconds above 0, got '0' (as a flag: --heartbeat-s)",
        ),
        (["--api-token", "with space"], "API_TOKEN wants visible ASCII characters, got something"),
        (["--heart", "5"], "--heart is no setting"),
        (["--api-tokn=secret"], "--api-tokn is no setting"),
        (["--port"], "argument --port: expected one argument"),
    ):
        with pytest.raises(SettingError) as caught:
            read_settings(arguments, {})
        assert str(caught.value).startswith(expected)


def test_settings_are_read_and_empty_ones_count_as_unset() -> None:
    environ = {"PORT": "0", "DISCONNECT_GRACE_S": "inf", "HEARTBEAT_S": "0.5", "API_TOKEN": ""}
    environ["CORS_ORIGINS"] = "https://a.example, http://B.example:8080"
    settings = read_settings([], environ)
    assert (settings.port, settings.disconnect_grace_s) == (0, float("inf"))
    assert settings.heartbeat_s == 0.5
    assert settings.api_token == ""
    assert settings.cors_origins == {"https://a.example", "http://b.example:8080"}
    assert read_settings([], {}) == Settings()


def test_kinds_joins_repeated_deltas_alone() -> None:
    events = [{"type": t} for t in ("text_delta", "text_delta", "tool_call", "tool_call")]
    assert kinds(events) == ["text_delta", "tool_call", "tool_call"]


def test_a_scripted_model_is_a_model() -> None:
    assert loop_graph(ScriptedModel(script=[]), []).name == "LangGraph"
