"""The promises of the README's protocol section, each held against a server over HTTP alone.

Here that is the real process. With BASE_URL, and API_TOKEN where it wants one, it is a deployment,
of which nothing is changed but threads of the checks' own, which they delete:

    BASE_URL=https://chat.example.com pytest tests/test_contract.py
    python -m tests.test_contract https://chat.example.com

What a deployment gives no occasion to see, for want of another setting or model, is not checked.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import os
import re
import secrets
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import pytest
import pytest_asyncio
from yarl import URL

from tests.client import Client, Event, Stream, check, joined
from tests.conftest import run_app

BASE_URL = os.environ.get("BASE_URL", "").rstrip("/")
API_TOKEN = os.environ.get("API_TOKEN", "")

HERE = {"DEMO_TOKENS_PER_S": "50", "HEARTBEAT_S": "0.2", "API_TOKEN": "secret"}
"""Settings of the server that is started here; a check may want others besides."""
HASTY = {
    "RUN_TIMEOUT_S": "8",
    "DISCONNECT_GRACE_S": "0.1",
    "RUN_TTL_S": "5",
    "MAX_RUNS": "1",
    "MAX_RUN_BYTES": "7000",
}
NO_MODEL = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
ASKING = {"AGENT": "tests.test_contract:asking"}

PATIENCE_S = 50  # for one promise
HEARTBEAT = b": heartbeat\n\n"
RETRY = b"retry: 2000\n\n"

SUM = "12 * (3 + 4)"
TWO_TOOLS = "12 * (3 + 4) と東京の時刻は?"
LASTING = "wait 10 seconds"  # as long as a check may take before it cancels
UNLISTED = "https://contract.invalid"
LISTED = "http://localhost:3000"


class NotCheckedError(Exception):
    """This deployment gives no occasion to see whether the promise holds."""


def same(got: Any, wanted: Any, what: str) -> None:
    assert got == wanted, f"{what}: wanted {wanted!r}, got {got!r}"


# ------------------------------------------------------------------------------- the deployment


@dataclass(frozen=True)
class Answer:
    """A whole response; ``body`` is its JSON, else its text."""

    status: int
    headers: Any
    body: Any

    def is_refusal(self, status: int, code: str, **more: Any) -> str:
        """Hold the answer against the shape of a refusal, and return its message."""
        what = f"the refusal {code}"
        same(self.status, status, f"status of {what} ({self.body!r:.200})")
        same(self.headers["Content-Type"], "application/json; charset=utf-8", f"type of {what}")
        same(self.body.keys(), {"error"}, f"fields of {what}")
        error = dict(self.body["error"])
        message = str(error.pop("message"))
        same(error, {"code": code, **more}, what)
        assert message and "Traceback" not in message, f"message of {what}: {message!r}"
        return message


class Deployment(Client):
    """A client of one server, which takes back whatever it began there."""

    def __init__(self, url: str, token: str, local: bool) -> None:
        super().__init__(url)
        self.token = token
        self.local = local
        self._threads: list[str] = []

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        if self.token:
            self.session.headers["Authorization"] = f"Bearer {self.token}"
        return self

    async def __aexit__(self, *error: object) -> None:
        try:
            for thread_id in self._threads:
                await self._forget(thread_id)
        finally:
            await super().__aexit__(*error)

    async def _forget(self, thread_id: str) -> None:
        while (answer := await self.send("DELETE", f"/api/threads/{thread_id}")).status == 409:
            await self.send("POST", f"/api/runs/{answer.body['error']['run_id']}/cancel")
        assert answer.status in (204, 404), f"thread {thread_id} is left there: {answer}"

    def thread(self, thread_id: str = "") -> str:
        """Return the id of a thread that is forgotten in the end, a fresh one by default."""
        self._threads.append(thread_id or f"contract-{secrets.token_hex(8)}")
        return self._threads[-1]

    def stranger(self) -> Deployment:
        """Return the same server as one sees it who has no token."""
        return Deployment(self.url, "", self.local)

    async def send(self, method: str, path: str, **options: Any) -> Answer:
        url = URL(self.url + path, encoded=True)
        async with self.session.request(method, url, **options) as response:
            assert response.content_type != "text/event-stream", f"{method} {path} began a stream"
            body: Any = await response.text()
            if body and response.content_type == "application/json":
                body = json.loads(body)
            return Answer(response.status, response.headers, body)

    async def ask(self, message: str | None = None, /, **fields: Any) -> Stream:
        fields.setdefault("thread_id", self.thread())
        return await super().ask(message, **fields)

    async def whole(self, message: str | None = None, /, **fields: Any) -> Whole:
        """Start a run and return it whole, held against what holds for every run."""
        return await whole(await self.ask(message, **fields))

    async def begin(self, message: str) -> tuple[str, str]:
        """Start a run that nobody reads, and return its id and its thread's."""
        thread_id = self.thread()
        answer = await self.send(
            *("POST", "/api/chat"),
            json={"message": message, "thread_id": thread_id},
            headers={"Prefer": "respond-async"},
        )
        same(answer.status, 202, "status of a start with respond-async")
        return answer.body["run_id"], thread_id

    async def begin_lasting(self) -> tuple[str, str]:
        """Start a run that is still running when it is asked about."""
        about = await self.about()
        if about["agent"] != "built-in":
            raise NotCheckedError("needs a run that lasts, which this agent may not give")
        long = LASTING if about["model"] == "demo" else "Write the numbers to 300 in words."
        return await self.begin(long)

    async def about(self) -> dict[str, Any]:
        answer = await self.send("GET", "/api/info")
        same(answer.status, 200, "status of /api/info")
        return dict(answer.body)

    async def need_demo(self) -> None:
        about = await self.about()
        if (about["agent"], about["model"]) != ("built-in", "demo"):
            raise NotCheckedError("needs the built-in agent with the demo model")


@dataclass(frozen=True)
class Whole:
    """A run that was read to its end."""

    stream: Stream
    events: list[Event]

    @property
    def id(self) -> str:
        return str(self.events[0]["run_id"])

    @property
    def frames(self) -> bytes:
        """The bytes without what is of the one response alone."""
        return frames(self.stream)

    def all(self, type_: str) -> list[Event]:
        return [event for event in self.events if event["type"] == type_]


def frames(stream: Stream) -> bytes:
    return stream.raw.removeprefix(RETRY).replace(HEARTBEAT, b"")


# Fields of each event, those that may be absent in the second place.
FIELDS: dict[str, tuple[set[str], set[str]]] = {
    "start": ({"run_id", "thread_id", "heartbeat_s", "timeout_s"}, set()),
    "thinking": ({"content"}, set()),
    "reasoning_delta": ({"content", "message_id"}, set()),
    "text_delta": ({"content", "message_id"}, set()),
    "tool_call": ({"tool", "tool_call_id", "input"}, set()),
    "tool_progress": ({"tool", "tool_call_id", "content"}, set()),
    "tool_result": ({"tool", "tool_call_id", "status"}, {"result", "message"}),
    "interrupt": ({"interrupts"}, set()),
    "final_answer": ({"content", "message_id"}, set()),
    "error": ({"code", "message", "retryable", "ref"}, set()),
    "done": ({"reason", "timings"}, {"usage"}),
}
TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("heartbeat_s", "timeout_s"), (int, float)),
    **dict.fromkeys(("input", "result", "timings", "usage"), dict),
    **{"interrupts": list, "retryable": bool},
}
ERROR_CODES = {
    *("timeout", "model_auth", "model_rate_limit", "model_unreachable", "model_error"),
    *("agent_error", "too_large", "shutdown"),
}


async def whole(stream: Stream) -> Whole:
    """Read to the end; hold the events against "What always holds" and the table of fields."""
    run = Whole(stream, await stream.events())
    assert run.events, "the stream ended without an event"
    if stream.ids[0] == 1:
        check(run.events)
    for event in run.events:
        given = event.keys() - {"type"}
        wanted, optional = FIELDS[event["type"]]
        assert wanted <= given <= wanted | optional, f"fields of {event}"
        for name in given:
            type_ = TYPES.get(name, str)
            assert isinstance(event[name], type_), f"{name} of {event} is no {type_}"
        if event["type"] == "tool_result":
            assert event["status"] in ("ok", "error", "cancelled", "interrupted"), event
        if event["type"] == "error":
            assert event["code"] in ERROR_CODES, event
    done = run.events[-1]
    spoke = {"first_token_ms"} if run.all("text_delta") else set()
    if stream.ids[0] == 1:
        same(done["timings"].keys(), {"total_ms"} | spoke, "fields of timings")
    tokens = {"input_tokens", "output_tokens", "total_tokens"}
    assert "usage" not in done or done["usage"].keys() == tokens, f"usage of {done}"
    return run


# ----------------------------------------------------------------------------------- the promises

Check = Callable[[Deployment], Awaitable[None]]


@dataclass(frozen=True)
class Promise:
    """A row of the table: words of the README, the check, and the settings that it needs."""

    title: str
    check: Check
    settings: dict[str, str]


PROMISES: list[Promise] = []


def promise(title: str, settings: dict[str, str] | None = None) -> Callable[[Check], Check]:
    """Enter a check into the table."""

    def enter(check: Check) -> Check:
        PROMISES.append(Promise(title, check, settings or {}))
        return check

    return enter


# -------------------------------------------------------------------------------------- streams


@promise("POST /api/chat starts a run and streams it, with the headers of a stream")
async def _(server: Deployment) -> None:
    run = await server.whole(SUM)
    for stream in (run.stream, await server.follow(run.id)):
        wanted = {
            "Content-Type": "text/event-stream; charset=utf-8",
            "Cache-Control": "no-cache, no-transform",
            "X-Accel-Buffering": "no",
            "Location": f"/api/runs/{run.id}/events",
            "Content-Location": f"/api/runs/{run.id}",
        }
        if not server.local and "X-Accel-Buffering" not in stream.headers:
            del wanted["X-Accel-Buffering"]  # An nginx in between reads it, and takes it out.
        same({name: stream.headers.get(name) for name in wanted}, wanted, "headers of a stream")


@promise("A stream is never compressed, though the client offers gzip")
async def _(server: Deployment) -> None:
    offer = {"Accept-Encoding": "gzip, deflate, br"}
    run = await server.whole(SUM, headers=offer)
    path = f"/api/runs/{run.id}/events"
    async with server.session.get(path, headers=offer) as replay:
        for headers in (run.stream.headers, replay.headers):
            encoding = headers.get("Content-Encoding")
            assert encoding is None, f"compressed: Content-Encoding: {encoding}"
        assert run.frames in await replay.read(), "events are missing"


@promise("Nothing in between buffers the stream: each event arrives as it happens")
async def _(server: Deployment) -> None:
    demo = (await server.about())["model"] == "demo"
    stream = await server.ask("What can you do?" + " Answer in five sentences." * (not demo))
    deltas: list[float] = []
    timings = {}
    async for event in stream:
        if event["type"] == "text_delta":
            deltas.append(time.monotonic())
        timings = event.get("timings", {})
    assert timings, "missing events: the stream ended without done"
    spent_s = (timings["total_ms"] - timings.get("first_token_ms", 0)) / 1000
    if len(deltas) < 10 or spent_s < 0.3:
        raise NotCheckedError(f"{len(deltas)} deltas in {spent_s:.1f} s are too few to tell")
    spread_s = deltas[-1] - deltas[0]
    # What comes at less than half of the model's pace apart came together.
    pace_s = spent_s / len(deltas)
    lumps = 1 + sum(b - a > pace_s / 2 for a, b in itertools.pairwise(deltas))
    assert spread_s > spent_s / 2 and lumps * 10 > len(deltas), (
        f"buffered: {len(deltas)} deltas, which the server wrote over {spent_s:.2f} s, "
        f"came within {spread_s:.2f} s in {lumps} lump{'s' * (lumps > 1)}"
    )


@promise("retry: 2000 opens each stream, as a block of its own")
async def _(server: Deployment) -> None:
    run = await server.whole(SUM)
    tail = await server.follow(run.id, after=3)
    await tail.events()
    for stream, first in ((run.stream, 1), (tail, 4)):
        opening = RETRY + f"id: {first}\nevent: ".encode()
        same(stream.raw[: len(opening)], opening, "the first bytes")
        same(stream.raw.count(b"retry:"), 1, "count of retry")


@promise("Event ids are 1, 2, 3 without a gap")
async def _(server: Deployment) -> None:
    run = await server.whole(SUM)
    same(run.stream.ids, [*range(1, len(run.events) + 1)], "ids")


@promise("Reading a run again, from any cursor or beside another reader, gives the same bytes")
async def _(server: Deployment) -> None:
    first = await server.ask(SUM)
    run_id = (await first.until("start"))["run_id"]
    beside = [await server.follow(run_id), await server.follow(run_id, after=1)]
    await joined(first, *beside)
    blocks = re.findall(rb".+?\n\n", frames(first), re.DOTALL)
    same(frames(beside[0]), b"".join(blocks), "bytes of a second reader")
    same(frames(beside[1]), b"".join(blocks[1:]), "bytes of a reader after event 1")
    for after in range(len(blocks)):
        stream = await server.follow(run_id, after)
        await stream.events()
        same(stream.raw, RETRY + b"".join(blocks[after:]), f"bytes after event {after}")


@promise("A stream that was cut is resumed by its last id; Last-Event-ID wins over the query")
async def _(server: Deployment) -> None:
    cut = await server.ask(SUM)
    await cut.until("thinking")
    run_id, last_id = cut.headers["Content-Location"].rpartition("/")[2], cut.ids[-1]
    cut.close()
    rest = await server.follow(run_id, last_id, query="?last_event_id=x")
    run = await whole(rest)
    same(run.stream.ids[0], last_id + 1, "the first id after the cut")
    same(run.events[-1]["reason"], "completed", "reason of done")
    by_query = await server.follow(run_id, query=f"?last_event_id={last_id}")
    await by_query.events()
    same(frames(by_query), run.frames, "bytes by the query's cursor")


@promise("204 at the end of an ended run")
async def _(server: Deployment) -> None:
    run = await server.whole(SUM)
    path, last_id = f"/api/runs/{run.id}/events", str(len(run.events))
    for query, headers in ((f"?last_event_id={last_id}", {}), ("", {"Last-Event-ID": last_id})):
        answer = await server.send("GET", path + query, headers=headers)
        same((answer.status, answer.body), (204, ""), "answer at the end")


@promise("A cursor that is no whole number from 0 to the last id is 400 invalid_last_event_id")
async def _(server: Deployment) -> None:
    run = await server.whole(SUM)
    path = f"/api/runs/{run.id}/events"
    for cursor in ("x", "-1", "1.0", "1e1", str(len(run.events) + 1), "9" * 40):
        by_query = await server.send("GET", f"{path}?last_event_id={cursor}")
        by_header = await server.send("GET", path, headers={"Last-Event-ID": cursor})
        for answer in (by_query, by_header):
            assert "Last-Event-ID" in answer.is_refusal(400, "invalid_last_event_id")


@promise("A silent stream carries a comment, : heartbeat, every HEARTBEAT_S")
async def _(server: Deployment) -> None:
    await server.need_demo()
    heartbeat_s = (await server.about())["limits"]["heartbeat_s"]
    if heartbeat_s >= 1:
        raise NotCheckedError(
            f"needs {heartbeat_s:g} s of silence, and the demo's wait reports every second"
        )
    stream = await server.ask("wait 3 seconds")
    same((await stream.until("start"))["heartbeat_s"], heartbeat_s, "heartbeat_s of start")
    await stream.until("tool_result")
    # From one report of the tool to the next a second passes; of all half of one has to be noticed.
    wanted = max(1, int(0.5 / heartbeat_s))
    heartbeats = stream.heartbeats
    assert heartbeats >= wanted, f"{heartbeats} in seconds of silence, wanted {wanted}"


# --------------------------------------------------------------------------------------- events


@promise("start is first and done last, each once, and each event has its fields")
async def _(server: Deployment) -> None:
    thread_id = server.thread()
    run = await server.whole(SUM, thread_id=thread_id)
    same(run.events[0]["thread_id"], thread_id, "thread_id of start")
    same(run.events[-1]["reason"], "completed", "reason of done")
    limits = (await server.about())["limits"]
    started = run.events[0]["heartbeat_s"], run.events[0]["timeout_s"]
    same(started, (limits["heartbeat_s"], limits["run_timeout_s"]), "heartbeat_s and timeout_s")


@promise("final_answer equals the joined deltas of its message_id")
async def _(server: Deployment) -> None:
    run = await server.whole(SUM)
    same(run.events[-1]["reason"], "completed", "reason of done")
    [final] = run.all("final_answer")
    deltas = [e["content"] for e in run.all("text_delta") if e["message_id"] == final["message_id"]]
    same(final["content"], "".join(deltas), "content of final_answer")


@promise("Every tool_call is closed by exactly one tool_result, of two in parallel too")
async def _(server: Deployment) -> None:
    await server.need_demo()
    run = await server.whole(TWO_TOOLS)
    calls = {e["tool_call_id"]: e["tool"] for e in run.all("tool_call")}
    same(sorted(calls.values()), ["calculate", "current_time"], "tools called")
    results = {e["tool_call_id"]: e["tool"] for e in run.all("tool_result")}
    same(results, calls, "tools closed")
    types = [e["type"] for e in run.events]
    assert types.index("tool_result") > types.index("tool_call") + 1, f"not in parallel: {types}"
    same({e["status"] for e in run.all("tool_result")}, {"ok"}, "status of tool_result")
    assert any(e["result"].get("result") == 84 for e in run.all("tool_result"))
    assert "usage" in run.events[-1], "the demo model tells its usage"


@promise("A tool that fails has status error and a message, and the run goes on")
async def _(server: Deployment) -> None:
    await server.need_demo()
    run = await server.whole("1 / 0")
    [result] = run.all("tool_result")
    same(result["status"], "error", "status of tool_result")
    assert result["message"] and "Traceback" not in result["message"], result
    same(run.events[-1]["reason"], "completed", "reason of done")


@promise("A running tool reports with tool_progress")
async def _(server: Deployment) -> None:
    await server.need_demo()
    run = await server.whole("wait 0.1 seconds")
    [call], [progress] = run.all("tool_call"), run.all("tool_progress")
    for name in ("tool", "tool_call_id"):
        same(progress[name], call[name], f"{name} of tool_progress")


@promise("UTF-8, non-ASCII text as itself")
async def _(server: Deployment) -> None:
    demo = (await server.about())["model"] == "demo"
    run = await server.whole(TWO_TOOLS if demo else "「東京」とだけ答えてください。")
    # Control characters and halves of surrogate pairs alone have to be escaped.
    escapes = re.findall(rb"\\u(?!00[01]|d[89a-f])[0-9a-f]{4}", run.stream.raw)
    same(escapes, [], "escaped characters")
    if demo:
        assert "東京".encode() in run.stream.raw, "東京 is not in the bytes"


@promise(
    "exactly one error comes before done; what went wrong stands in the log, under ref", NO_MODEL
)
async def _(server: Deployment) -> None:
    run = await server.whole("hi")
    [error] = run.all("error")
    same((error["code"], error["retryable"]), ("model_unreachable", True), "error")
    same([e["type"] for e in run.events[-2:]], ["error", "done"], "the last events")
    same(run.events[-1]["reason"], "error", "reason of done")
    assert "127.0.0.1" not in error["message"] and "Error" not in error["message"], error


@promise("interrupt: the graph waits for a person, and resume answers it", ASKING)
async def _(server: Deployment) -> None:
    thread_id = server.thread()
    asked = await server.whole("send it", thread_id=thread_id)
    [interrupt] = asked.all("interrupt")
    [pending] = interrupt["interrupts"]
    same((pending.keys(), pending["value"]), ({"id", "value"}, "Really?"), "the interrupt")
    same(asked.events[-1]["reason"], "interrupted", "reason of done")
    answered = await server.whole(resume=False, thread_id=thread_id)
    same(answered.all("final_answer")[0]["content"], "You said false", "final_answer")
    body = {"resume": True, "thread_id": thread_id}
    answer = await server.send("POST", "/api/chat", json=body)
    answer.is_refusal(400, "nothing_to_resume")


# ------------------------------------------------------------------------------- runs and threads


@promise("GET /api/runs/{run_id} is the run's state, running and ended")
async def _(server: Deployment) -> None:
    fields = {"run_id", "thread_id", "status", "last_event_id", "answer"}
    run = await server.whole(SUM)
    state = (await server.send("GET", f"/api/runs/{run.id}")).body
    ended = {
        **{"run_id": run.id, "thread_id": run.events[0]["thread_id"], "status": "completed"},
        **{"last_event_id": len(run.events), "answer": run.all("final_answer")[0]["content"]},
    }
    same(state, ended, "the state of an ended run")
    run_id, thread_id = await server.begin_lasting()
    state = (await server.send("GET", f"/api/runs/{run_id}")).body
    same(state.keys(), fields, "fields of the state")
    same((state["status"], state["answer"]), ("running", None), "the state of a running run")
    same((state["run_id"], state["thread_id"]), (run_id, thread_id), "its ids")


@promise("POST /api/runs/{run_id}/cancel stops the run, and answers when it has stopped")
async def _(server: Deployment) -> None:
    run_id, _ = await server.begin_lasting()
    answer = await server.send("POST", f"/api/runs/{run_id}/cancel")
    same((answer.status, answer.body["status"]), (202, "cancelled"), "the answer to cancel")
    run = await whole(await server.follow(run_id))
    same(run.events[-1]["reason"], "cancelled", "reason of done")
    same(answer.body["last_event_id"], len(run.events), "last_event_id")
    again = await server.send("POST", f"/api/runs/{run_id}/cancel")
    same((again.status, again.body), (200, answer.body), "the answer to a second cancel")


@promise("A thread that was stopped in the middle of its tools works in its next turn")
async def _(server: Deployment) -> None:
    await server.need_demo()
    stream = await server.ask(LASTING)
    start = await stream.until("start")
    call = await stream.until("tool_call")
    await server.send("POST", f"/api/runs/{start['run_id']}/cancel")
    rest = await stream.events()
    closed = [e for e in rest if e["type"] == "tool_result"]
    same([e["tool_call_id"] for e in closed], [call["tool_call_id"]], "calls closed")
    same(closed[0]["status"], "cancelled", "status of tool_result")
    same(rest[-1].get("reason"), "cancelled", "reason of done")
    run = await server.whole(SUM, thread_id=start["thread_id"])
    same(run.events[-1]["reason"], "completed", "reason of the next turn's done")
    assert "84" in run.all("final_answer")[0]["content"]


@promise("A thread has one run at a time (409 thread_busy)")
async def _(server: Deployment) -> None:
    run_id, thread_id = await server.begin_lasting()
    body = {"message": "hi", "thread_id": thread_id}
    answer = await server.send("POST", "/api/chat", json=body, headers={"Prefer": "respond-async"})
    answer.is_refusal(409, "thread_busy", run_id=run_id)
    answer = await server.send("DELETE", f"/api/threads/{thread_id}")
    answer.is_refusal(409, "thread_busy", run_id=run_id)


@promise("With an Idempotency-Key a repeated POST joins the run that the first one started")
async def _(server: Deployment) -> None:
    thread_id = server.thread()
    key = {"Idempotency-Key": secrets.token_hex(16)}
    first = await server.ask(SUM, thread_id=thread_id, headers=key)
    joining = await server.ask(SUM, thread_id=thread_id, headers=key)
    await joined(first, joining)
    same(frames(joining), frames(first), "bytes of the second POST")
    # Equal as JSON: other order, other spelling.
    spelt = f'{{ "thread_id": "{thread_id}",\n"message": "\\u0031{SUM[1:]}" }}'
    headers = {**key, "Content-Type": "application/json", "Prefer": "respond-async"}
    answer = await server.send("POST", "/api/chat", data=spelt, headers=headers)
    same(answer.status, 202, "status of a POST of the same JSON")
    same(answer.body["run_id"], joining.headers["Content-Location"].rpartition("/")[2], "run_id")
    body = {"message": "another", "thread_id": thread_id}
    answer = await server.send("POST", "/api/chat", json=body, headers=key)
    answer.is_refusal(409, "idempotency_conflict")


@promise("With Prefer: respond-async it answers 202 and the address of the stream")
async def _(server: Deployment) -> None:
    thread_id = server.thread()
    body = {"message": SUM, "thread_id": thread_id}
    headers = {"Prefer": "wait=5, Respond-Async"}
    answer = await server.send("POST", "/api/chat", json=body, headers=headers)
    same(answer.status, 202, "status")
    run_id = answer.body["run_id"]
    events = f"/api/runs/{run_id}/events"
    same(answer.body, {"run_id": run_id, "thread_id": thread_id, "events": events}, "document")
    run = await whole(await server.follow(run_id))
    same((run.id, run.events[-1]["reason"]), (run_id, "completed"), "the run")


@promise("GET /api/threads/{thread_id} is the conversation so far; DELETE forgets it")
async def _(server: Deployment) -> None:
    run = await server.whole(SUM)
    thread_id = run.events[0]["thread_id"]
    path = f"/api/threads/{thread_id}"
    answer = await server.send("GET", path)
    same(answer.status, 200, "status of the thread")
    document = dict(answer.body)
    messages = document.pop("messages")
    same(document, {"thread_id": thread_id, "run_id": None}, "the thread")
    same(messages[0], {"role": "user", "content": SUM}, "the first message")
    final = run.all("final_answer")[0]["content"]
    same(messages[-1], {"role": "assistant", "content": final}, "the last message")
    told = [c for m in messages for c in m.get("tool_calls", ())]
    called = [{k: v for k, v in e.items() if k != "type"} for e in run.all("tool_call")]
    same(told, called, "tool_calls")
    results = [{k: v for k, v in e.items() if k != "type"} for e in run.all("tool_result")]
    same(
        [m for m in messages if m["role"] == "tool"],
        [{"role": "tool"} | r for r in results],
        "tools",
    )
    same((await server.send("DELETE", path)).status, 204, "status of DELETE")
    for method in ("GET", "DELETE"):
        (await server.send(method, path)).is_refusal(404, "unknown_thread")


@promise("A fresh thread is made when thread_id is absent or null; unknown fields are ignored")
async def _(server: Deployment) -> None:
    made = set()
    for body in ({"message": SUM, "more": 1}, {"message": SUM, "thread_id": None}):
        headers = {"Prefer": "respond-async"}
        answer = await server.send("POST", "/api/chat", json=body, headers=headers)
        same(answer.status, 202, f"status of {body}")
        made.add(server.thread(answer.body["thread_id"]))
    same(len(made), 2, "threads made")
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", thread_id) for thread_id in made), made


@promise(
    "When its last reader leaves a run goes on for DISCONNECT_GRACE_S, then it is stopped", HASTY
)
async def _(server: Deployment) -> None:
    stream = await server.ask(LASTING)
    run_id = (await stream.until("start"))["run_id"]
    stream.close()
    state = {"status": "running"}
    while state["status"] == "running":  # Reading the state is no reading of the run.
        state = (await server.send("GET", f"/api/runs/{run_id}")).body
    same(state["status"], "cancelled", "status of a run that its reader left")


@promise("A run that ended is kept for RUN_TTL_S", HASTY)
async def _(server: Deployment) -> None:
    run = await server.whole(SUM)
    ended = time.monotonic()
    again = await server.follow(run.id)
    await again.events()
    same(frames(again), run.frames, "bytes of the kept run")
    while (answer := await server.send("GET", f"/api/runs/{run.id}")).status == 200:
        pass  # Nothing else tells that it has expired.
    answer.is_refusal(404, "unknown_run")
    kept_s = time.monotonic() - ended
    assert 4 < kept_s < 30, f"kept for {kept_s:.2f} s"


@promise("A run past RUN_TIMEOUT_S ends with error timeout", HASTY)
async def _(server: Deployment) -> None:
    run = await server.whole(LASTING)
    same((run.all("error")[0]["code"], run.events[-1]["reason"]), ("timeout",) * 2, "code, reason")
    same([e["status"] for e in run.all("tool_result")], ["cancelled"], "status of tool_result")


@promise("A run past MAX_RUN_BYTES ends with error too_large", HASTY)
async def _(server: Deployment) -> None:
    run = await server.whole("What can you do?")
    same((run.all("error")[0]["code"], run.events[-1]["reason"]), ("too_large", "error"), "ending")
    assert len(run.frames) <= 7000 + 4096, f"{len(run.frames)} bytes"


@promise("503 too_many_runs past MAX_RUNS, with Retry-After; joining is always allowed", HASTY)
async def _(server: Deployment) -> None:
    key = {"Idempotency-Key": secrets.token_hex(16)}
    thread_id = server.thread()
    stream = await server.ask(LASTING, thread_id=thread_id, headers=key)
    run_id = (await stream.until("start"))["run_id"]
    body = {"message": "hi", "thread_id": server.thread()}
    answer = await server.send("POST", "/api/chat", json=body)
    answer.is_refusal(503, "too_many_runs")
    assert int(answer.headers["Retry-After"]) > 0
    joining = await server.ask(LASTING, thread_id=thread_id, headers=key)
    same((await joining.until("start"))["run_id"], run_id, "run_id of the one that joined")


# ------------------------------------------------------------------------------------- refusals

JSON = {"Content-Type": "application/json"}

# The request, how it is refused, and the field at fault.
REFUSED: list[tuple[dict[str, Any], int, str, str]] = [
    ({"data": "{", "headers": JSON}, 400, "invalid_json", ""),
    ({"data": b'{"message":"\xff"}', "headers": JSON}, 400, "invalid_json", ""),
    ({"data": '{"message":NaN}', "headers": JSON}, 400, "invalid_json", ""),
    ({"data": b"{}", "headers": {**JSON, "Content-Encoding": "gzip"}}, 400, "invalid_json", ""),
    ({"json": ["message"]}, 400, "invalid_request", ""),
    ({"json": {}}, 400, "invalid_request", "message"),
    ({"json": {"message": 1}}, 400, "invalid_request", "message"),
    ({"json": {"message": " \n\u3000"}}, 400, "invalid_request", "message"),
    ({"json": {"message": "字" * 32_001}}, 400, "invalid_request", "message"),
    ({"data": '{"message":"\\ud83d"}', "headers": JSON}, 400, "invalid_request", "message"),
    ({"json": {"message": "a", "thread_id": 1}}, 400, "invalid_request", "thread_id"),
    ({"json": {"message": "a", "thread_id": "a/b"}}, 400, "invalid_request", "thread_id"),
    ({"json": {"message": "a", "thread_id": "a" * 65}}, 400, "invalid_request", "thread_id"),
    ({"json": {"message": "a", "resume": 1}}, 400, "invalid_request", "resume"),
    ({"json": {"resume": None}}, 400, "nothing_to_resume", ""),
    (
        {"json": {"message": "a"}, "headers": {"Idempotency-Key": "k" * 129}},
        *(400, "invalid_request", "Idempotency-Key"),
    ),
    ({"data": {"message": "a"}}, 415, "unsupported_media_type", "Content-Type"),
]


@promise("A refusal is {error: {code, message}} with its HTTP status, before any stream begins")
async def _(server: Deployment) -> None:
    for options, status, code, field in REFUSED:
        message = (await server.send("POST", "/api/chat", **options)).is_refusal(status, code)
        assert field in message, f"{message!r} does not name {field}"


@promise("413 too_large counts the bytes after any Content-Encoding")
async def _(server: Deployment) -> None:
    limit = (await server.about())["limits"]["max_body_bytes"]
    if limit >= 2**20:
        raise NotCheckedError("MAX_BODY_BYTES is beyond what a proxy lets pass unless told")
    body = json.dumps({"message": 1, "more": "x" * limit}).encode()
    for data, headers in (
        (body, JSON),
        (gzip.compress(body), {**JSON, "Content-Encoding": "gzip"}),
    ):
        answer = await server.send("POST", "/api/chat", data=data, headers=headers)
        answer.is_refusal(413, "too_large")


@promise("404 for a run, a thread or a path that is not there")
async def _(server: Deployment) -> None:
    for method, path, code in (
        ("GET", "/api/runs/none/events", "unknown_run"),
        ("GET", "/api/runs/none", "unknown_run"),
        ("POST", "/api/runs/none/cancel", "unknown_run"),
        ("GET", f"/api/threads/{server.thread()}", "unknown_thread"),
        ("DELETE", f"/api/threads/{server.thread()}", "unknown_thread"),
        ("GET", "/api/nothing", "not_found"),
        ("GET", "/nothing", "not_found"),
        ("GET", "/static/nothing", "not_found"),
    ):
        (await server.send(method, path)).is_refusal(404, code)


@promise("A known path with another method is 405 with Allow")
async def _(server: Deployment) -> None:
    for method, path, allowed in (
        ("GET", "/api/chat", {"POST"}),
        ("PUT", "/api/chat", {"POST"}),
        ("POST", "/api/runs/none/events", {"GET"}),
        ("DELETE", "/api/runs/none", {"GET"}),
        ("GET", "/api/runs/none/cancel", {"POST"}),
        ("POST", f"/api/threads/{server.thread()}", {"GET", "DELETE"}),
        ("POST", "/api/info", {"GET"}),
        ("POST", "/healthz", {"GET", "HEAD"}),
    ):
        answer = await server.send(method, path)
        answer.is_refusal(405, "method_not_allowed")
        same({*re.split(r", ?", answer.headers["Allow"])}, allowed, f"Allow of {path}")


@promise("HEAD never starts a run or a stream")
async def _(server: Deployment) -> None:
    thread_id = server.thread()
    body = {"message": "hi", "thread_id": thread_id}
    answer = await server.send("HEAD", "/api/chat", json=body)
    same((answer.status, answer.headers["Allow"]), (405, "POST"), "the answer to HEAD /api/chat")
    (await server.send("GET", f"/api/threads/{thread_id}")).is_refusal(404, "unknown_thread")
    run_id, _ = await server.begin(SUM)
    answer = await server.send("HEAD", f"/api/runs/{run_id}/events")
    same(answer.status, 405, "status of HEAD on a stream")
    same((await server.send("HEAD", "/")).status, 200, "status of HEAD /")


# ---------------------------------------------------------------------------------------- access


@promise("An origin that is not listed is refused, its preflight too, and runs nothing")
async def _(server: Deployment) -> None:
    preflight = {"Origin": UNLISTED, "Access-Control-Request-Method": "POST"}
    answer = await server.send("OPTIONS", "/api/chat", headers=preflight)
    if not server.local and answer.headers.get("Access-Control-Allow-Origin") == UNLISTED:
        raise NotCheckedError("it lets every origin in, as with CORS_ORIGINS=*")
    thread_id = server.thread()
    origin = {"Origin": UNLISTED}
    body = {"message": "hi", "thread_id": thread_id}
    for refusal in (
        answer,
        await server.send("POST", "/api/chat", json=body, headers=origin),
        await server.send("POST", "/api/chat", data="{", headers=origin),
        await server.send("GET", "/api/nothing", headers=origin),
        await server.send("GET", "/api/info", headers={"Origin": "null"}),
    ):
        refusal.is_refusal(403, "origin_not_allowed")
        assert "Access-Control-Allow-Origin" not in refusal.headers
    (await server.send("GET", f"/api/threads/{thread_id}")).is_refusal(404, "unknown_thread")


@promise("A listed origin may call, and read every answer, refusals and streams included")
async def _(server: Deployment) -> None:
    preflight = {"Origin": LISTED, "Access-Control-Request-Method": "POST"}
    async with server.stranger() as stranger:  # A preflight brings no token.
        answer = await stranger.send("OPTIONS", "/api/chat", headers=preflight)
    if not server.local and answer.status == 403:
        raise NotCheckedError(f"{LISTED} is not in its CORS_ORIGINS")
    same(answer.status, 204, "status of the preflight")
    allowed = {*answer.headers["Access-Control-Allow-Methods"].split(", ")}
    assert allowed >= {"GET", "POST", "DELETE"}, allowed
    same(
        answer.headers["Access-Control-Allow-Headers"],
        "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Prefer",
        "Access-Control-Allow-Headers",
    )
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    stream = await server.ask(SUM, headers={"Origin": LISTED})
    refusal = await server.send("GET", "/api/nothing", headers={"Origin": LISTED})
    for headers in (answer.headers, stream.headers, refusal.headers):
        same(headers.get("Access-Control-Allow-Origin"), LISTED, "Access-Control-Allow-Origin")
        exposed = headers.get("Access-Control-Expose-Headers")
        same(exposed, "Location, Content-Location, Retry-After", "Access-Control-Expose-Headers")
        assert "Origin" in ", ".join(headers.getall("Vary", [])).split(", "), "no Vary: Origin"


@promise("Pages of the server's own origin may call: Host reaches it with its port")
async def _(server: Deployment) -> None:
    own = str(URL(server.url).origin())
    answer = await server.send("GET", "/api/info", headers={"Origin": own})
    same(answer.status, 200, f"status for a page of {own} ({answer.body!r:.200})")


@promise("With API_TOKEN set, /api/ wants Authorization: Bearer, before everything else")
async def _(server: Deployment) -> None:
    async with server.stranger() as stranger:
        if not server.local and (await stranger.send("GET", "/api/info")).status == 200:
            raise NotCheckedError("it has no API_TOKEN")
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            for method, path in (
                *(("POST", "/api/chat"), ("PUT", "/api/chat"), ("GET", "/api/nothing")),
                *(("GET", "/api/runs/none/events"), ("DELETE", f"/api/threads/{server.thread()}")),
            ):
                answer = await stranger.send(method, path, headers=wrong)
                answer.is_refusal(401, "unauthorized")
                same(answer.headers["WWW-Authenticate"], "Bearer", "WWW-Authenticate")
    same((await server.send("GET", "/api/info")).status, 200, "status with the token")


@promise("GET /healthz is liveness, and never asks for a token")
async def _(server: Deployment) -> None:
    async with server.stranger() as stranger:
        answer = await stranger.send("GET", "/healthz")
    same((answer.status, answer.body["status"]), (200, "ok"), "the answer")


@promise("GET /api/info is what the page shows first: agent, model, version, limits")
async def _(server: Deployment) -> None:
    same((await server.about()).keys(), {"agent", "model", "version", "limits"}, "fields")


@promise("The page has nosniff and a Content-Security-Policy without unsafe-inline")
async def _(server: Deployment) -> None:
    async with server.stranger() as stranger:
        for path in ("/", "/static/stream.js"):
            answer = await stranger.send("GET", path)
            same(answer.status, 200, f"status of {path}")
            same(answer.headers.get("X-Content-Type-Options"), "nosniff", "X-Content-Type-Options")
            policy = answer.headers.get("Content-Security-Policy", "")
            assert "default-src 'self'" in policy and "unsafe-inline" not in policy, policy
        for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py"):
            answer = await stranger.send("GET", path)
            assert answer.status in (400, 404), f"{path} is {answer.status}"


# -------------------------------------------------------------------------------- running the table

Serve = Callable[[Promise], Awaitable[tuple[str, str, bool]]]


@asynccontextmanager
async def servers(url: str, token: str, **engines: str) -> AsyncIterator[Serve]:
    """Give the deployment for a promise: the one at the URL, else one started here."""
    started: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))

        async def serve(promise: Promise) -> tuple[str, str, bool]:
            settings = promise.settings
            if url and settings:
                # Settings that serve several promises together are named in their titles.
                names = [name for name in settings if name in promise.title] or [*settings]
                wanted = ", ".join(f"{name}={settings[name]}" for name in names)
                raise NotCheckedError(f"needs {wanted}, or the like")
            if url:
                return url, token, False
            name = str(settings)
            if name not in started:
                environ = {**HERE, **engines, **settings}
                process = run_app(folder / f"log-{len(started)}", **environ)
                started[name] = (await stack.enter_async_context(process)).url
            return started[name], HERE["API_TOKEN"], True

        yield serve


async def hold(promise: Promise, serve: Serve) -> None:
    """Check one promise. Raises NotCheckedError where it cannot be seen, and else as it fails."""
    async with asyncio.timeout(PATIENCE_S):
        async with Deployment(*await serve(promise)) as server:
            await promise.check(server)


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["there"] if BASE_URL else ["in memory", "in Redis and PostgreSQL"],
)
async def serve(request: pytest.FixtureRequest) -> AsyncIterator[Serve]:
    engines = {}
    if "Redis" in request.param:
        postgres = request.getfixturevalue("postgres_server")
        postgres.start()
        redis = request.getfixturevalue("redis_server")
        engines = {"REDIS_URL": redis.url, "DATABASE_URL": postgres.url}
    async with servers(BASE_URL, API_TOKEN, **engines) as serve:
        yield serve


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.title)
async def test_the_server_keeps_its_promise(serve: Serve, promise: Promise) -> None:
    try:
        await hold(promise, serve)
    except NotCheckedError as why:
        if not BASE_URL:
            raise
        pytest.skip(f"not checked: {why}")


def outcome(error: BaseException | None) -> str:
    match error:
        case None:
            return "ok"
        case NotCheckedError():
            return f"not checked: {error}"
        case TimeoutError():
            return f"FAILS: not done within {PATIENCE_S} s"
    # A bare assertion says nothing, but its line does.
    line = traceback.extract_tb(error.__traceback__)[-1].line
    return f"FAILS: {error or line}" + (
        "" if isinstance(error, AssertionError) else f" ({type(error).__name__})"
    )


async def main(url: str) -> int:
    """Print a line for each promise, and return the exit status."""
    failed = 0
    async with servers(url, API_TOKEN) as serve:
        for promise in PROMISES:
            task = asyncio.create_task(hold(promise, serve))
            await asyncio.wait({task})
            said = outcome(task.exception())
            failed += said.startswith("FAILS")
            print(f"{promise.title}: {said}", flush=True)
    return int(failed > 0)


def asking() -> Any:
    """A graph that asks before it answers: the agent that ASKING names."""
    from langchain_core.messages import AIMessage
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.types import interrupt

    def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(f"You said {json.dumps(interrupt('Really?'))}")]}

    return StateGraph(MessagesState).add_node("ask", ask).add_edge(START, "ask").compile()


if __name__ == "__main__":
    sys.exit(asyncio.run(main((sys.argv[1] if sys.argv[1:] else BASE_URL).rstrip("/"))))
