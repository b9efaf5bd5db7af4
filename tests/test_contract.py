"""The promises of the wire contract, each checked against a server over HTTP alone.

By default that server is the real process, started here. With BASE_URL, and API_TOKEN if it needs
one, it is a deployment. The checks change nothing there but threads of their own, and delete those:

    BASE_URL=https://chat.example.com pytest tests/test_contract.py
    python -m tests.test_contract https://chat.example.com

A promise that needs other settings than a deployment has, or another model, is not checked there.
"""

from __future__ import annotations

import asyncio
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
"""Settings of the server that is started here; a promise may need others besides."""
SMALL = {"DISCONNECT_GRACE_S": "0.1", "MAX_RUNS": "1", "MAX_RUN_BYTES": "7000"}
SHORT = {"RUN_TIMEOUT_S": "2", "RUN_TTL_S": "3"}
LEFT = {"DISCONNECT_GRACE_S": "inf", "MAX_RUNS": "1"}
NO_MODEL = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
NAMED = {"ALLOWED_HOSTS": "chat.example.com, [2001:db8::1]"}
ASKING = {"AGENT": "tests.agents:asking"}
ASKING_TWICE = {"AGENT": "tests.agents:asking_twice"}
PLAYING = {"AGENT": "tests.agents:playing"}
GREETING = {"AGENT": "tests.agents:greeting", "USER_HEADER": "X-Forwarded-User"}

PATIENCE_S = 50
"""How long one promise may take."""
HEARTBEAT = b": heartbeat\n\n"
RETRY = b"retry: 2000\n\n"

SUM = "12 * (3 + 4)"
TWO_TOOLS = "12 * (3 + 4) と東京の時刻は?"
LASTING = "wait 10 seconds"
"""It lasts longer than any check looks at it."""
UNLISTED = "https://contract.invalid"
LISTED = "http://localhost:3000"
JSON = {"Content-Type": "application/json"}
ASYNC = {"Prefer": "respond-async"}
SLOW = pytest.mark.slow


class NotCheckedError(Exception):
    """This deployment gives no occasion to check the promise."""


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
        """Check that this is the refusal, in the shape of all refusals; return its message."""
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
    """A client of one server, which deletes every thread that it began there."""

    def __init__(self, url: str, token: str, local: bool, user: str = "") -> None:
        super().__init__(url)
        self.token = token
        self.local = local
        self.user = user
        self._threads: list[str] = []

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        if self.token:
            self.session.headers["Authorization"] = f"Bearer {self.token}"
        if self.user:
            self.session.headers[GREETING["USER_HEADER"]] = self.user
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
        """Return the id of a thread that is deleted in the end, a fresh one by default."""
        self._threads.append(thread_id or f"contract-{secrets.token_hex(8)}")
        return self._threads[-1]

    def stranger(self) -> Deployment:
        """Return a client of the same server that has no token."""
        return Deployment(self.url, "", self.local)

    def as_user(self, user: str) -> Deployment:
        """Return a client of the same server that comes as this user."""
        return Deployment(self.url, self.token, self.local, user)

    async def send(self, method: str, path: str, **options: Any) -> Answer:
        url = URL(self.url + path, encoded=True)
        async with self.session.request(method, url, **options) as response:
            assert response.content_type != "text/event-stream", f"{method} {path} began a stream"
            body: Any = await response.text()
            if body and response.content_type == "application/json":
                body = json.loads(body)
            return Answer(response.status, response.headers, body)

    async def post(self, **body: Any) -> Answer:
        """Send a POST that is refused, or that starts a run which nobody reads."""
        return await self.send("POST", "/api/chat", json=body, headers=ASYNC)

    @asynccontextmanager
    async def raw(self, *lines: str, body: bytes = b"") -> AsyncIterator[asyncio.StreamReader]:
        """Send a request of these lines on a connection of its own, and read what comes back."""
        url = URL(self.url)
        tls = True if url.scheme == "https" else None
        reader, writer = await asyncio.open_connection(url.host, url.port, ssl=tls)
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            yield reader
        finally:
            writer.close()

    async def status(self, target: str, host: str) -> tuple[int, str]:
        """Return the status of a GET of this target from this Host, and what its body begins with.

        Without a token, so that 401 says that the host is let in.
        """
        lines = f"GET {target} HTTP/1.1", f"Host: {host}", "Connection: close"
        async with self.raw(*lines) as reader:
            head, _, content = (await reader.read()).decode().partition("\r\n\r\n")
        return int(head.split()[1]), content

    async def ask(self, message: str | None = None, /, **fields: Any) -> Stream:
        fields.setdefault("thread_id", self.thread())
        return await super().ask(message, **fields)

    async def whole(self, message: str | None = None, /, **fields: Any) -> Whole:
        """Start a run and return it whole, checked against what holds for every run."""
        return await whole(await self.ask(message, **fields))

    async def begin(self, message: str) -> tuple[str, str]:
        """Start a run that nobody reads, and return its id and its thread's."""
        thread_id = self.thread()
        answer = await self.post(message=message, thread_id=thread_id)
        same(answer.status, 202, "status of a start with respond-async")
        return answer.body["run_id"], thread_id

    async def begin_lasting(self) -> tuple[str, str, str]:
        """Start a run that goes on while it is looked at; return its id, thread and question."""
        about = await self.about()
        if about["agent"] != "built-in":
            raise NotCheckedError("needs a run that lasts, which this agent may not give")
        long = LASTING if about["model"] == "demo" else "Write the numbers to 300 in words."
        return *(await self.begin(long)), long

    async def state(self, run_id: str) -> dict[str, Any]:
        """Return a run's state document."""
        answer = await self.send("GET", f"/api/runs/{run_id}")
        same(answer.status, 200, f"status of the run's state ({answer.body!r:.200})")
        return dict(answer.body)

    async def conversation(self, thread_id: str) -> dict[str, Any]:
        """Return a thread's document, its messages checked against the table of their fields."""
        answer = await self.send("GET", f"/api/threads/{thread_id}")
        same(answer.status, 200, f"status of the thread ({answer.body!r:.200})")
        document = dict(answer.body)
        same(document.keys() - {"interrupts"}, {"thread_id", "run_id", "messages"}, "its fields")
        for message in document["messages"]:
            wanted, optional = MESSAGE_FIELDS[message["role"]]
            given = message.keys() - {"role"}
            assert wanted <= given <= wanted | optional, f"fields of {message}"
            assert "ended" in message or "error" not in message, message
            assert message.get("ended") not in ("completed", "interrupted"), message
        ids = [message["id"] for message in document["messages"] if "id" in message]
        assert all(ids) and len({*ids}) == len(ids), f"ids of messages: {ids}"
        return document

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
    def thread_id(self) -> str:
        return str(self.events[0]["thread_id"])

    @property
    def reason(self) -> str:
        return str(self.events[-1]["reason"])

    @property
    def answer(self) -> str:
        [final] = self.all("final_answer")
        return str(final["content"])

    @property
    def frames(self) -> bytes:
        """The bytes of the run: without what belongs to this one response."""
        return frames(self.stream)

    def all(self, type_: str) -> list[Event]:
        return [event for event in self.events if event["type"] == type_]


def frames(stream: Stream) -> bytes:
    return stream.raw.removeprefix(RETRY).replace(HEARTBEAT, b"")


Fields = dict[str, tuple[set[str], set[str]]]

FIELDS: Fields = {
    "start": ({"run_id", "thread_id", "heartbeat_s", "timeout_s"}, {"message_id"}),
    "thinking": ({"content"}, set()),
    "reasoning_delta": ({"content", "message_id"}, set()),
    "text_delta": ({"content", "message_id"}, set()),
    "tool_call": ({"tool", "tool_call_id", "input"}, set()),
    "tool_progress": ({"tool", "tool_call_id", "content"}, set()),
    "tool_result": ({"tool", "tool_call_id", "status"}, {"result", "message"}),
    "interrupt": ({"interrupts"}, set()),
    "final_answer": ({"content", "message_id"}, {"finish_reason"}),
    "error": ({"code", "message", "retryable", "ref"}, set()),
    "done": ({"reason", "timings"}, {"usage"}),
}
"""The fields of each event, then those that may be absent."""
MESSAGE_FIELDS: Fields = {
    "user": ({"id", "content"}, set()),
    "assistant": ({"id", "content"}, {"tool_calls", "reasoning", "usage", "ended", "error"}),
    "tool": ({"tool", "tool_call_id", "status"}, {"result", "message"}),
}
"""The same for the messages of a thread, by role."""
TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("heartbeat_s", "timeout_s"), (int, float)),
    **dict.fromkeys(("input", "result", "timings", "usage"), dict),
    **{"interrupts": list, "retryable": bool},
}
ERROR_CODES = {
    *("timeout", "model_auth", "model_rate_limit", "model_not_found", "model_context"),
    *("model_unreachable", "model_error", "agent_error", "too_large", "shutdown"),
}


async def whole(stream: Stream, redacted: bool = False) -> Whole:
    """Read to the end; check the events against "What always holds" and the table of fields."""
    run = Whole(stream, await stream.events())
    assert run.events, "the stream ended without an event"
    if stream.ids[0] == 1:
        check(run.events, redacted)
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
    """A row of the table: words of the contract, the check, and the settings that it needs."""

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
        assert stream.raw.startswith(RETRY + b"event: "), stream.raw[:40]
        same(stream.ids[0], first, "the first id")
        same(stream.raw.count(b"retry:"), 1, "count of retry")


@promise("A frame is event, one data line, id and a blank line; ids are 1, 2, 3 without a gap")
async def _(server: Deployment) -> None:
    run = await server.whole(SUM)
    blocks = re.findall(rb"event: \w+\ndata: \{[^\r\n]*\}\nid: (\d+)\n\n", run.frames)
    same([int(id_) for id_ in blocks], [*range(1, len(run.events) + 1)], "ids of frames")
    same(len(run.frames.split(b"\n\n")), len(run.events) + 1, "blocks that are not heartbeats")
    assert b"\r" not in run.stream.raw, "a line ends with CR"


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


CURSORS = "last_event_id", "lastEventId"
"""The query's names for Last-Event-ID; the second is that of event-source-polyfill."""


@promise("A stream that was cut is resumed by its last id; Last-Event-ID wins over the query")
async def _(server: Deployment) -> None:
    cut = await server.ask(SUM)
    await cut.until("thinking")
    run_id, last_id = cut.headers["Content-Location"].rpartition("/")[2], cut.ids[-1]
    cut.close()
    run = await whole(await server.follow(run_id, last_id, query="?last_event_id=x&lastEventId=x"))
    same(run.stream.ids[0], last_id + 1, "the first id after the cut")
    same(run.reason, "completed", "reason of done")
    for name in CURSORS:
        by_query = await server.follow(run_id, query=f"?{name}={last_id}")
        await by_query.events()
        same(frames(by_query), run.frames, f"bytes by the cursor of ?{name}=")


@promise("204 at the end of an ended run")
async def _(server: Deployment) -> None:
    run = await server.whole(SUM)
    path, last_id = f"/api/runs/{run.id}/events", str(len(run.events))
    answers = [await server.send("GET", f"{path}?{name}={last_id}") for name in CURSORS]
    answers.append(await server.send("GET", path, headers={"Last-Event-ID": last_id}))
    for answer in answers:
        same((answer.status, answer.body), (204, ""), "answer at the end")


@promise("A cursor that is no whole number from 0 to the last id is 400 invalid_last_event_id")
async def _(server: Deployment) -> None:
    run = await server.whole(SUM)
    path = f"/api/runs/{run.id}/events"
    for cursor in ("x", "-1", "1.0", "1e1", str(len(run.events) + 1), "9" * 40):
        answers = [await server.send("GET", f"{path}?{name}={cursor}") for name in CURSORS]
        answers.append(await server.send("GET", path, headers={"Last-Event-ID": cursor}))
        for answer in answers:
            assert "Last-Event-ID" in answer.is_refusal(400, "invalid_last_event_id")
    twice = [("Last-Event-ID", "1"), ("Last-Event-ID", "1")]
    answer = await server.send("GET", path, headers=twice)
    answer.is_refusal(400, "invalid_last_event_id")


@promise("To a client of HTTP/1.0 the end of a stream is the end of the connection")
async def _(server: Deployment) -> None:
    if not server.local:
        raise NotCheckedError("a proxy in between answers a client of HTTP/1.0 by itself")
    body = json.dumps({"message": SUM, "thread_id": server.thread()}).encode()
    lines = "POST /api/chat HTTP/1.0", f"Authorization: Bearer {server.token}"
    more = "Content-Type: application/json", f"Content-Length: {len(body)}"
    async with server.raw(*lines, *more, "Connection: keep-alive", body=body) as reader:
        head, _, content = (await reader.read()).partition(b"\r\n\r\n")
    assert b" 200 " in head.splitlines()[0], head
    assert b"chunked" not in head and b"keep-alive" not in head.lower(), head
    assert content.startswith(RETRY + b"event: start\n"), content[:40]
    last = content.split(b"\n\n")[-2]
    assert last.startswith(b"event: done\n") and content.endswith(b"\n\n"), content[-80:]


@promise("A silent stream carries a comment, : heartbeat, every HEARTBEAT_S")
async def _(server: Deployment) -> None:
    await server.need_demo()
    heartbeat_s = (await server.about())["limits"]["heartbeat_s"]
    if heartbeat_s >= 1:
        raise NotCheckedError(
            f"needs {heartbeat_s:g} s of silence, and the demo's wait reports every second"
        )
    stream = await server.ask("wait 2 seconds")
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
    same(run.thread_id, thread_id, "thread_id of start")
    same(run.reason, "completed", "reason of done")
    limits = (await server.about())["limits"]
    started = run.events[0]["heartbeat_s"], run.events[0]["timeout_s"]
    same(started, (limits["heartbeat_s"], limits["run_timeout_s"]), "heartbeat_s and timeout_s")
    question = (await server.conversation(thread_id))["messages"][0]
    same(run.events[0]["message_id"], question["id"], "message_id of start")


@promise("final_answer equals the joined deltas of its message_id")
async def _(server: Deployment) -> None:
    run = await server.whole(SUM)
    same(run.reason, "completed", "reason of done")
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
    assert "usage" in run.events[-1], "the demo model counts its tokens"


@promise("A tool that fails has status error and a message, and the run goes on")
async def _(server: Deployment) -> None:
    await server.need_demo()
    run = await server.whole("1 / 0")
    [result] = run.all("tool_result")
    same(result["status"], "error", "status of tool_result")
    assert result["message"] and "Traceback" not in result["message"], result
    same(run.reason, "completed", "reason of done")


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
    same(run.reason, "error", "reason of done")
    assert "127.0.0.1" not in error["message"] and "Error" not in error["message"], error


STALL = {"content": "stall"}
"""A step of the agent of PLAYING that never ends."""


def said(*chunks: Any, **fields: Any) -> str:
    """Return the message that makes the agent of PLAYING stream these texts or chunks.

    ``fields`` are the last chunk's.
    """
    steps = [{"content": each} if isinstance(each, str) else each for each in chunks]
    return json.dumps([*steps, {"content": "", **fields}] if fields else steps)


@promise("A run with nothing to show ends as model_error, not as a blank success", PLAYING)
async def _(server: Deployment) -> None:
    for nothing in ((), ("",), (" \n", "\u3000")):
        run = await server.whole(said(*nothing))
        same([e["code"] for e in run.all("error")], ["model_error"], f"error after {nothing}")
        same((run.reason, run.all("final_answer")), ("error", []), f"the end after {nothing}")
        assert run.all("error")[0]["retryable"], run.events
    # Reasoning alone is something to show.
    run = await server.whole(said({"content": [{"type": "reasoning", "reasoning": "Hm."}]}))
    same([e["content"] for e in run.all("reasoning_delta")], ["Hm."], "reasoning")
    same(run.reason, "completed", "reason of done after reasoning alone")


@promise("final_answer has finish_reason if the model stopped otherwise than usual", PLAYING)
async def _(server: Deployment) -> None:
    for given, wanted in (
        ({"finish_reason": "stop"}, None),
        ({"stop_reason": "end_turn"}, None),
        ({"finish_reason": "STOP"}, None),
        ({"finish_reason": "length"}, "length"),
        ({"stop_reason": "max_tokens"}, "length"),
        ({"finish_reason": "MAX_TOKENS"}, "length"),
        ({"finish_reason": "content_filter"}, "content_filter"),
        ({"finish_reason": "RECITATION"}, "RECITATION"),
    ):
        run = await server.whole(said("Half an ans", response_metadata=given))
        same(run.all("final_answer")[0].get("finish_reason"), wanted, f"finish_reason for {given}")


@promise("What the graph makes of a message after its deltas is the final_answer", PLAYING)
async def _(server: Deployment) -> None:
    run = await whole(await server.ask(said("The word is ", "hush.")), redacted=True)
    same("".join(e["content"] for e in run.all("text_delta")), "The word is hush.", "the deltas")
    same(run.answer, "The word is ***.", "content of final_answer")
    last = (await server.conversation(run.thread_id))["messages"][-1]
    same(last["content"], run.answer, "the answer in the thread")


@promise(
    "Calls that are open at once have different ids, also if the model's are the same", PLAYING
)
async def _(server: Deployment) -> None:
    call = {"name": "meet", "args": '{"with_": "a friend"}', "id": "c1", "type": "tool_call_chunk"}
    calls = [{**call, "index": index} for index in range(2)]
    run = await server.whole(said({"content": "", "tool_call_chunks": calls}))
    ids = [e["tool_call_id"] for e in run.all("tool_call")]
    same(len({*ids}), 2, f"different ids of two calls, {ids}")
    same({e["tool_call_id"] for e in run.all("tool_result")}, {*ids}, "ids of the results")
    same((run.answer, run.reason), ("Done.", "completed"), "the answer, and the reason of done")
    again = await server.whole(said("Fine."), thread_id=run.thread_id)
    same((again.answer, again.reason), ("Fine.", "completed"), "the next turn")


@promise("interrupt: the graph waits for a person, and resume answers it", ASKING)
async def _(server: Deployment) -> None:
    thread_id = server.thread()
    for resume, answer in (
        (False, "Answered: False"),
        (None, "Answered: None"),
        ({"x": 1}, "Answered: {'x': 1}"),
        ("by its id", "Answered: by its id"),
    ):
        asked = await server.whole("send it", thread_id=thread_id)
        [interrupt] = asked.all("interrupt")
        [pending] = interrupt["interrupts"]
        same((pending.keys(), pending["value"]), ({"id", "value"}, "May I?"), "the interrupt")
        same(asked.reason, "interrupted", "reason of done")
        waiting = await server.conversation(thread_id)
        same(waiting["interrupts"], interrupt["interrupts"], "interrupts of the thread")
        given = {pending["id"]: resume} if resume == "by its id" else resume
        answered = await server.whole(resume=given, thread_id=thread_id)
        same(answered.answer, answer, "final_answer")
        assert "message_id" not in answered.events[0], answered.events[0]
        assert "interrupts" not in await server.conversation(thread_id)
    (await server.post(resume=True, thread_id=thread_id)).is_refusal(400, "nothing_to_resume")


@promise("With several interrupts pending, resume answers each by its id", ASKING_TWICE)
async def _(server: Deployment) -> None:
    asked = await server.whole("send it")
    [interrupt] = asked.all("interrupt")
    ids = {each["value"]: each["id"] for each in interrupt["interrupts"]}
    same(ids.keys(), {"May I do one?", "May I do two?"}, "values of the interrupts")
    one, two = ids["May I do one?"], ids["May I do two?"]
    for wrong in (True, {one: 1}, {one: 1, two: 2, "x": 3}, {"x": 1, "y": 2}):
        answer = await server.post(resume=wrong, thread_id=asked.thread_id)
        assert "resume" in answer.is_refusal(400, "invalid_request"), answer.body
    answered = await server.whole(resume={two: "no", one: "yes"}, thread_id=asked.thread_id)
    same(answered.reason, "completed", "reason of done")
    messages = (await server.conversation(asked.thread_id))["messages"]
    told = sorted(m["content"] for m in messages if m["role"] == "assistant")
    same(told, ["One: yes", "Two: no"], "the answers")


@promise(
    "context reaches the graph on its run alone; what does not fit the schema is 400", GREETING
)
async def _(server: Deployment) -> None:
    async with server.as_user("ann") as ann:
        for context, wanted in (
            ({"language": "ja"}, "Greeting(language='ja', polite=True)"),
            ({"language": "de", "polite": False}, "Greeting(language='de', polite=False)"),
        ):
            run = await ann.whole("hi", context=context)
            same(run.answer, f"Hello ann, {wanted}", f"answer with the context {context}")
            run = await ann.whole("hi", thread_id=run.thread_id)
            same(run.answer, "Hello ann again, None", "answer to the next run, without one")
        thread_id = ann.thread()
        for wrong in ([], "ja", 1, {}, {"language": []}, {"language": "ja", "polite": "perhaps"}):
            answer = await ann.post(message="hi", thread_id=thread_id, context=wrong)
            assert "context" in answer.is_refusal(400, "invalid_request"), answer.body
        answer = await ann.send("GET", f"/api/threads/{thread_id}")
        answer.is_refusal(404, "unknown_thread")


@promise("A graph without a schema ignores the context")
async def _(server: Deployment) -> None:
    same((await server.whole(SUM, context={"x": [1]})).reason, "completed", "reason of done")


# ------------------------------------------------------------------------------- runs and threads


@promise("GET /api/runs/{run_id} is the run's state, running and ended")
async def _(server: Deployment) -> None:
    fields = {"run_id", "thread_id", "status", "last_event_id", "answer"}
    run = await server.whole(SUM)
    ended = {
        **{"run_id": run.id, "thread_id": run.thread_id, "status": "completed"},
        **{"last_event_id": len(run.events), "answer": run.answer},
    }
    same(await server.state(run.id), ended, "the state of an ended run")
    run_id, thread_id, _ = await server.begin_lasting()
    state = await server.state(run_id)
    same(state.keys(), fields, "fields of the state")
    same((state["status"], state["answer"]), ("running", None), "the state of a running run")
    same((state["run_id"], state["thread_id"]), (run_id, thread_id), "its ids")


@promise("POST /api/runs/{run_id}/cancel stops the run, and answers when it has stopped")
async def _(server: Deployment) -> None:
    run_id, _, _ = await server.begin_lasting()
    answer = await server.send("POST", f"/api/runs/{run_id}/cancel")
    same((answer.status, answer.body["status"]), (202, "cancelled"), "the answer to cancel")
    run = await whole(await server.follow(run_id))
    same(run.reason, "cancelled", "reason of done")
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
    same(run.reason, "completed", "reason of the next turn's done")
    assert "84" in run.answer, run.answer
    messages = (await server.conversation(start["thread_id"]))["messages"]
    same(
        [m["role"] for m in messages][:5],
        ["user", "assistant", "tool", "assistant", "user"],
        "roles",
    )
    same(messages[2]["status"], "cancelled", "status of the stopped tool in the thread")
    same(
        (messages[3]["content"], messages[3]["ended"]), ("", "cancelled"), "the stopped turn's end"
    )


@promise("A stopped answer is in the thread as far as it was seen, and as stopped", PLAYING)
async def _(server: Deployment) -> None:
    stream = await server.ask(said("Half ", "an answer", STALL))
    start = await stream.until("start")
    seen = [await stream.until("text_delta") for _ in range(2)]
    await server.send("POST", f"/api/runs/{start['run_id']}/cancel")
    same((await stream.events())[-1]["reason"], "cancelled", "reason of done")
    last = (await server.conversation(start["thread_id"]))["messages"][-1]
    shown = {"role": "assistant", "id": seen[0]["message_id"], "content": "Half an answer"}
    same(last, {**shown, "ended": "cancelled"}, "the last message")


@promise("A failed turn is closed in the thread by its error, and the roles alternate", NO_MODEL)
async def _(server: Deployment) -> None:
    thread_id = server.thread()
    errors = []
    for _ in range(2):
        errors += (await server.whole("hi", thread_id=thread_id)).all("error")
    messages = (await server.conversation(thread_id))["messages"]
    same([m["role"] for m in messages], ["user", "assistant"] * 2, "roles")
    for message, error in zip(messages[1::2], errors, strict=True):
        same((message["content"], message["ended"]), ("", "error"), "content and ended")
        told = {"code": error["code"], "message": error["message"]}
        same(message["error"], told, "error of the message")


@promise("The thread shows what a model thought, what it used, and that an answer failed", PLAYING)
async def _(server: Deployment) -> None:
    used = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}
    thought = {"content": [{"type": "reasoning", "reasoning": "Hm."}]}
    answered = await server.whole(said(thought, "Hello", usage_metadata=used))
    same(answered.events[-1]["usage"], used, "usage of done")
    failed = await server.whole(said(" "), thread_id=answered.thread_id)
    [error] = failed.all("error")
    messages = (await server.conversation(answered.thread_id))["messages"]
    same([m["role"] for m in messages], ["user", "assistant"] * 2, "roles")
    first, second = ({k: v for k, v in m.items() if k != "id"} for m in messages[1::2])
    thinking = {"content": "Hello", "reasoning": "Hm.", "usage": used}
    same(first, {"role": "assistant", **thinking}, "the answered turn")
    ended = {"ended": "error", "error": {"code": error["code"], "message": error["message"]}}
    same(second, {"role": "assistant", "content": "", **ended}, "the turn that failed")


@promise("While a run goes on its question is among the messages of its thread")
async def _(server: Deployment) -> None:
    run = await server.whole(SUM)
    before = (await server.conversation(run.thread_id))["messages"]
    same((await server.conversation(run.thread_id))["run_id"], None, "run_id of an idle thread")
    await server.need_demo()
    stream = await server.ask(LASTING, thread_id=run.thread_id)
    start = await stream.until("start")
    document = await server.conversation(run.thread_id)
    same(document["run_id"], start["run_id"], "run_id of the thread")
    question = {"role": "user", "id": start["message_id"], "content": LASTING}
    same(document["messages"][: len(before) + 1], [*before, question], "messages")


@promise("A thread has one run at a time (409 thread_busy)")
async def _(server: Deployment) -> None:
    run_id, thread_id, _ = await server.begin_lasting()
    # Nobody has read it yet, so nobody has left it.
    for body in ({"message": "hi"}, {"resume": True}):
        answer = await server.post(**body, thread_id=thread_id)
        answer.is_refusal(409, "thread_busy", run_id=run_id)
    answer = await server.send("DELETE", f"/api/threads/{thread_id}")
    answer.is_refusal(409, "thread_busy", run_id=run_id)


@promise("A POST takes the place of a run that its last reader has left, under MAX_RUNS too", LEFT)
async def _(server: Deployment) -> None:
    stream = await server.ask(LASTING)
    start = await stream.until("start")
    run_id, path = start["run_id"], f"/api/threads/{start['thread_id']}"
    thread = {"thread_id": start["thread_id"]}
    answer = await server.post(message=SUM, **thread)
    answer.is_refusal(409, "thread_busy", run_id=run_id)
    stream.close()
    # What is refused stops nothing; nor does what does not take over.
    wrong = await server.post(message=SUM, replaces="none", **thread)
    wrong.is_refusal(404, "unknown_message")
    busy = await server.post(resume=True, **thread), await server.send("DELETE", path)
    for answer in busy:
        answer.is_refusal(409, "thread_busy", run_id=run_id)
    same((await server.state(run_id))["status"], "running", "status of the run that was left")
    while (answer := await server.post(message=SUM, **thread)).status == 409:
        pass  # The server has yet to notice that the reader is gone.
    same(answer.status, 202, f"status of the POST that takes over ({answer.body!r:.200})")
    same((await server.state(run_id))["status"], "cancelled", "status of the run that made room")
    run = await whole(await server.follow(answer.body["run_id"]))
    same(run.reason, "completed", "reason of the new run's done")
    messages = (await server.conversation(run.thread_id))["messages"]
    asked = [m["content"] for m in messages if m["role"] == "user"]
    same(asked, [LASTING, SUM], "the questions in the thread")


@promise("replaces drops a message and everything after it, and asks the new one in its place")
async def _(server: Deployment) -> None:
    first = await server.whole(SUM)
    thread = {"thread_id": first.thread_id}
    kept = (await server.conversation(first.thread_id))["messages"]
    second = await server.whole("2 + 2", **thread)
    await server.whole("3 + 3", **thread)
    edited = await server.whole("4 + 4", **thread, replaces=second.events[0]["message_id"])
    messages = (await server.conversation(first.thread_id))["messages"]
    question = {"role": "user", "id": edited.events[0]["message_id"], "content": "4 + 4"}
    same(messages[: len(kept) + 1], [*kept, question], "what is kept, and the new question")
    same([m["content"] for m in messages if m["role"] == "user"], [SUM, "4 + 4"], "questions")
    same(messages[-1]["content"], edited.answer, "the last message")
    # What is no user message of the thread changes nothing.
    dropped = second.events[0]["message_id"]
    for wrong in ("none", "", dropped, messages[-1]["id"]):
        answer = await server.post(message="hi", **thread, replaces=wrong)
        answer.is_refusal(404, "unknown_message")
    answer = await server.post(message="hi", thread_id=server.thread(), replaces=question["id"])
    answer.is_refusal(404, "unknown_message")
    same((await server.conversation(first.thread_id))["messages"], messages, "messages after that")
    # The first message can be replaced, too.
    again = await server.whole(SUM, **thread, replaces=first.events[0]["message_id"])
    messages = (await server.conversation(first.thread_id))["messages"]
    asked = [m["id"] for m in messages if m["role"] == "user"]
    same(asked, [again.events[0]["message_id"]], "ids of the questions")


@promise("replaces leaves the state that the graph keeps beside its messages", GREETING)
async def _(server: Deployment) -> None:
    async with server.as_user("ann") as ann:
        first = await ann.whole("I am Ann")
        again = await ann.whole(
            "I am Anne", thread_id=first.thread_id, replaces=first.events[0]["message_id"]
        )
        same(again.answer, "Hello ann again, None", "the answer, which knows of the first turn")
        same(len((await ann.conversation(first.thread_id))["messages"]), 2, "messages")


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


@promise("A repeated POST with its Idempotency-Key and a Last-Event-ID goes on after that event")
async def _(server: Deployment) -> None:
    body = {"message": SUM, "thread_id": server.thread()}
    key = {"Idempotency-Key": secrets.token_hex(16)}
    cut = await server.ask(**body, headers=key)
    run_id = (await cut.until("start"))["run_id"]
    await cut.until("thinking")
    last_id = cut.ids[-1]
    cut.close()
    run = await whole(await server.ask(**body, headers={**key, "Last-Event-ID": str(last_id)}))
    same(run.stream.ids[0], last_id + 1, "the first id after the cut")
    same(run.reason, "completed", "reason of done")
    kept = await whole(await server.follow(run_id))
    assert kept.frames.endswith(run.frames), "other bytes than those of the run"
    count = len(kept.events)
    for cursor, status in ((str(count), 204), (str(count + 1), 400), ("x", 400)):
        headers = {**key, "Last-Event-ID": cursor}
        answer = await server.send("POST", "/api/chat", json=body, headers=headers)
        same(answer.status, status, f"status for the cursor {cursor} of {count}")


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
    same((run.id, run.reason), (run_id, "completed"), "the run")


@promise("GET /api/threads/{thread_id} is the conversation so far; DELETE forgets it")
async def _(server: Deployment) -> None:
    run = await server.whole(SUM)
    path = f"/api/threads/{run.thread_id}"
    document = await server.conversation(run.thread_id)
    messages = document.pop("messages")
    same(document, {"thread_id": run.thread_id, "run_id": None}, "the thread")
    question = {"role": "user", "id": run.events[0]["message_id"], "content": SUM}
    same(messages[0], question, "the first message")
    [final] = run.all("final_answer")
    last = {name: messages[-1][name] for name in ("role", "id", "content")}
    shown = {"id": final["message_id"], "content": final["content"]}
    same(last, {"role": "assistant", **shown}, "the last message")
    used = [m["usage"] for m in messages if "usage" in m]
    if usage := run.events[-1].get("usage"):
        summed = {name: sum(each[name] for each in used) for name in usage}
        same(summed, usage, "usage of the messages together")
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
    "When its last reader leaves a run goes on for DISCONNECT_GRACE_S, then it is stopped", SMALL
)
async def _(server: Deployment) -> None:
    stream = await server.ask(LASTING)
    run_id = (await stream.until("start"))["run_id"]
    stream.close()
    state = {"status": "running"}
    while state["status"] == "running":  # To read the state is not to read the run.
        state = await server.state(run_id)
    same(state["status"], "cancelled", "status of a run that its reader left")


@promise("A run that ended is kept for RUN_TTL_S", SHORT)
async def _(server: Deployment) -> None:
    run = await server.whole(SUM)
    ended = time.monotonic()
    again = await server.follow(run.id)
    await again.events()
    same(frames(again), run.frames, "bytes of the kept run")
    while (answer := await server.send("GET", f"/api/runs/{run.id}")).status == 200:
        pass  # Nothing else shows that it has expired.
    answer.is_refusal(404, "unknown_run")
    kept_s = time.monotonic() - ended
    assert 2 < kept_s < 30, f"kept for {kept_s:.2f} s"


@promise("A run past RUN_TIMEOUT_S ends with error timeout", SHORT)
async def _(server: Deployment) -> None:
    run = await server.whole(LASTING)
    [error] = run.all("error")
    same((error["code"], run.reason), ("timeout", "timeout"), "code, reason")
    same([e["status"] for e in run.all("tool_result")], ["cancelled"], "status of tool_result")
    last = (await server.conversation(run.thread_id))["messages"][-1]
    told = {"code": error["code"], "message": error["message"]}
    same((last["ended"], last["error"]), ("timeout", told), "the last message's end")


@promise("A run past MAX_RUN_BYTES ends with error too_large", SMALL)
async def _(server: Deployment) -> None:
    run = await server.whole("What can you do?")
    same((run.all("error")[0]["code"], run.reason), ("too_large", "error"), "the end")
    assert len(run.frames) <= 7000 + 4096, f"{len(run.frames)} bytes"


@promise("503 too_many_runs past MAX_RUNS, with Retry-After; joining is always allowed", SMALL)
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

# The request, how it is refused, and the field at fault.
REFUSED: list[tuple[dict[str, Any], int, str, str]] = [
    ({"data": "{", "headers": JSON}, 400, "invalid_json", ""),
    ({"data": b'{"message":"\xff"}', "headers": JSON}, 400, "invalid_json", ""),
    ({"data": '{"message":NaN}', "headers": JSON}, 400, "invalid_json", ""),
    ({"data": '{"resume":1e999,"thread_id":"t"}', "headers": JSON}, 400, "invalid_json", ""),
    ({"data": '{"message":"\\ud83d"}', "headers": JSON}, 400, "invalid_json", ""),
    ({"data": "[" * 100_000 + "]" * 100_000, "headers": JSON}, 400, "invalid_json", ""),
    ({"json": ["message"]}, 400, "invalid_request", ""),
    ({"json": {}}, 400, "invalid_request", "message"),
    ({"json": {"message": 1}}, 400, "invalid_request", "message"),
    ({"json": {"message": " \n\u3000"}}, 400, "invalid_request", "message"),
    ({"json": {"message": "字" * 32_001}}, 400, "invalid_request", "message"),
    ({"json": {"message": "a", "thread_id": 1}}, 400, "invalid_request", "thread_id"),
    ({"json": {"message": "a", "thread_id": "a/b"}}, 400, "invalid_request", "thread_id"),
    ({"json": {"message": "a", "thread_id": "a" * 65}}, 400, "invalid_request", "thread_id"),
    ({"json": {"message": "a", "resume": 1}}, 400, "invalid_request", "resume"),
    ({"json": {"message": "a", "replaces": "x"}}, 400, "invalid_request", "replaces"),
    (
        {"json": {"message": "a", "thread_id": "t", "replaces": 1}},
        *(400, "invalid_request", "replaces"),
    ),
    (
        {"json": {"resume": 1, "thread_id": "t", "replaces": "x"}},
        *(400, "invalid_request", "replaces"),
    ),
    ({"json": {"message": "a", "context": [1]}}, 400, "invalid_request", "context"),
    ({"json": {"resume": None}}, 400, "nothing_to_resume", ""),
    (
        {"json": {"message": "a"}, "headers": {"Idempotency-Key": "k" * 129}},
        *(400, "invalid_request", "Idempotency-Key"),
    ),
    ({"data": {"message": "a"}}, 415, "unsupported_media_type", ""),
    (
        {"data": b"{}", "headers": {**JSON, "Content-Encoding": "gzip"}},
        *(415, "unsupported_media_type", ""),
    ),
]


@promise("A refusal is {error: {code, message}} with its HTTP status, before any stream begins")
async def _(server: Deployment) -> None:
    for options, status, code, field in REFUSED:
        message = (await server.send("POST", "/api/chat", **options)).is_refusal(status, code)
        assert field in message, f"{message!r} does not name {field}"


@promise("A body larger than MAX_BODY_BYTES is 413, at once if Content-Length says so")
async def _(server: Deployment) -> None:
    limit = (await server.about())["limits"]["max_body_bytes"]
    if not server.local and limit >= 2**20:
        raise NotCheckedError("MAX_BODY_BYTES is more than proxies let through by default")

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(limit // 1000 + 1):
            yield b" " * 1000

    answer = await server.send("POST", "/api/chat", data=pieces(), headers=JSON)
    answer.is_refusal(413, "too_large")
    lines = "POST /api/chat HTTP/1.1", "Host: " + URL(server.url).authority
    more = f"Authorization: Bearer {server.token}", "Content-Type: application/json"
    # The body does not come, so nothing but the header can have been refused.
    async with server.raw(*lines, *more, f"Content-Length: {limit + 1}") as reader:
        head = await reader.readuntil(b"\r\n\r\n")
    assert b" 413 " in head.splitlines()[0], head


@promise("Header fields may have 32 KiB each")
async def _(server: Deployment) -> None:
    if not server.local:
        raise NotCheckedError("proxies allow less by default")
    headers = {"Cookie": "c=" + "x" * (2**15 - 2), "X-Other": "y" * 2**15}
    answer = await server.send("GET", "/api/info", headers=headers)
    same(answer.status, 200, f"status with header fields of 32 KiB ({answer.body!r:.200})")


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
    ):
        (await server.send(method, path)).is_refusal(404, code)
    same((await server.send("GET", "/static/nothing")).status, 404, "status of a missing file")


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
    allowed = {*answer.headers["Access-Control-Allow-Headers"].split(", ")}
    wanted = {"Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer"}
    assert allowed >= wanted, allowed
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    stream = await server.ask(SUM, headers={"Origin": LISTED})
    refusal = await server.send("GET", "/api/nothing", headers={"Origin": LISTED})
    for headers in (answer.headers, stream.headers, refusal.headers):
        same(headers.get("Access-Control-Allow-Origin"), LISTED, "Access-Control-Allow-Origin")
        exposed = {*headers.get("Access-Control-Expose-Headers", "").split(", ")}
        assert exposed >= {"Location", "Content-Location", "Retry-After"}, exposed
        assert "Origin" in ", ".join(headers.getall("Vary", [])).split(", "), "no Vary: Origin"


@promise("Pages of the server's own origin may call: Host reaches it with its port")
async def _(server: Deployment) -> None:
    own = str(URL(server.url).origin())
    answer = await server.send("GET", "/api/info", headers={"Origin": own})
    same(answer.status, 200, f"status for a page of {own} ({answer.body!r:.200})")


@promise("A request for another host is 403 host_not_allowed, the page included, /healthz not")
async def _(server: Deployment) -> None:
    own = URL(server.url)
    if not server.local:
        raise NotCheckedError("a deployment has its own ALLOWED_HOSTS")
    for host in (f"localhost:{own.port}", "LOCALHOST", "127.0.0.1", f"[::1]:{own.port}"):
        for path, status in (("/", 200), ("/static/stream.js", 200), ("/api/info", 401)):
            same((await server.status(path, host))[0], status, f"status of {path} at {host}")
    for host in ("evil.example", f"evil.example:{own.port}", "localhost.evil.example", "127.0.0.2"):
        for path in ("/", "/static/stream.js", "/api/info", "/api/nothing"):
            status, content = await server.status(path, host)
            same(status, 403, f"status of {path} at {host}")
            same(json.loads(content)["error"]["code"], "host_not_allowed", "code of the refusal")
        same((await server.status("/healthz", host))[0], 200, f"status of /healthz at {host}")
    # The host of an absolute target goes before the header.
    there, here = "http://evil.example/api/info", f"{server.url}/api/info"
    same((await server.status(there, f"localhost:{own.port}"))[0], 403, f"status of {there}")
    same((await server.status(here, "evil.example"))[0], 401, f"status of {here}")


@promise("ALLOWED_HOSTS names the hosts that a request may be for", NAMED)
async def _(server: Deployment) -> None:
    for host in ("chat.example.com", "Chat.Example.com:8443", "[2001:db8::1]:80"):
        same((await server.status("/", host))[0], 200, f"status at {host}")
    for host in ("example.com", "www.chat.example.com", "localhost", "[::1]"):
        same((await server.status("/", host))[0], 403, f"status at {host}")


ENDPOINTS = [
    ("POST", "/api/chat", None),
    ("GET", "/api/runs/{run_id}/events", "unknown_run"),
    ("GET", "/api/runs/{run_id}", "unknown_run"),
    ("POST", "/api/runs/{run_id}/cancel", "unknown_run"),
    ("GET", "/api/threads/{thread_id}", "unknown_thread"),
    ("DELETE", "/api/threads/{thread_id}", "unknown_thread"),
    ("GET", "/api/info", None),
]
"""Each endpoint below /api/, and how another user's run or thread is refused there."""


@promise("With USER_HEADER set, a user's runs, threads and keys are unknown to others", GREETING)
async def _(server: Deployment) -> None:
    key = {"Idempotency-Key": secrets.token_hex(16)}
    async with server.as_user("ann") as ann, server.as_user("bob") as bob:
        thread = {"thread_id": ann.thread(bob.thread())}
        run = await ann.whole("hi", **thread, headers=key)
        same(run.answer, "Hello ann, None", "the answer, which has the user's name")
        names = {"run_id": run.id, **thread}
        for method, path, code in ENDPOINTS:
            path = path.format(**names)
            (await server.send(method, path)).is_refusal(401, "unauthorized")
            if code:
                (await bob.send(method, path)).is_refusal(404, code)
        replaces = run.events[0]["message_id"]
        answer = await bob.post(message="hi", **thread, replaces=replaces)
        answer.is_refusal(404, "unknown_message")
        (await bob.post(resume=1, **thread)).is_refusal(400, "nothing_to_resume")
        # The same key and the same thread's name, and yet another run on another thread.
        other = await bob.whole("hi", **thread, headers=key)
        same(other.answer, "Hello bob, None", "the answer to another user")
        assert other.id != run.id, "the key joined another user's run"
        for user, name in ((ann, "ann"), (bob, "bob")):
            messages = (await user.conversation(thread["thread_id"]))["messages"]
            same([m["content"] for m in messages], ["hi", f"Hello {name}, None"], "messages")
        same(
            (await bob.send("DELETE", f"/api/threads/{thread['thread_id']}")).status, 204, "DELETE"
        )
        assert (await ann.conversation(thread["thread_id"]))["messages"], "it was ann's, too"
    async with server.as_user(" ") as nobody:
        (await nobody.send("GET", "/api/info")).is_refusal(401, "unauthorized")
    for path in ("/", "/healthz"):
        same((await server.send("GET", path)).status, 200, f"status of {path} without a user")


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
                same(answer.headers["X-Content-Type-Options"], "nosniff", "X-Content-Type-Options")
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
                # If settings serve several promises, a title names the one that it is about.
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
    """Check one promise. Raises NotCheckedError if there is no occasion, else as the check does."""
    async with asyncio.timeout(PATIENCE_S):
        async with Deployment(*await serve(promise)) as server:
            await promise.check(server)


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["there"] if BASE_URL else ["in memory", pytest.param("in Redis", marks=SLOW)],
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


if __name__ == "__main__":
    sys.exit(asyncio.run(main((sys.argv[1] if sys.argv[1:] else BASE_URL).rstrip("/"))))
