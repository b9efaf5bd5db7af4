"""Front ends that others wrote: Vercel's AI SDK, assistant-ui, AG-UI and CopilotKit, from npm."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from aiohttp import ClientError, web
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.async_api import Browser, Page, Route, expect

from runs.registry import AnyRun
from tests.client import Client, whole
from tests.conftest import ROOT, listen
from tests.engines import Postgres, RedisServer, free_ports
from tests.programs import install, require
from tests.test_dialects import TURNS, play, shown_by, translated
from tests.test_foreign import frames
from tests.test_page import Launch, browser  # noqa: F401

pytestmark = pytest.mark.slow

FRONTENDS = ROOT / "tests/clients/frontends"
PATIENCE_S = 120

Chat = dict[str, Any]
Talk = Callable[..., Awaitable[list[Any]]]
"""``await talk(server.url, chat, …)``: what each of these chats shows after each of its steps."""


@pytest.fixture(scope="session")
def packages() -> Path:
    """The folder of the programs for Node.js, with their packages, which stay there."""
    wanted = hashlib.sha256((FRONTENDS / "package.json").read_bytes()).hexdigest()
    stamp = FRONTENDS / "node_modules/.installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        install(FRONTENDS)
        stamp.write_text(wanted)
    return FRONTENDS


async def node(program: Path, *arguments: str, stdin: Any = None) -> Any:
    """Run a program, with ``stdin`` as its standard input, and return its output; both are JSON."""
    process = await asyncio.create_subprocess_exec(
        *(require("node"), str(program), *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            out, errors = await process.communicate(json.dumps(stdin).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    return json.loads(out)


@pytest.fixture(params=["6", "7"])
def ai_sdk(request: pytest.FixtureRequest, packages: Path) -> Talk:
    """Chats of one version of Vercel's AI SDK."""
    program = packages / "ai-sdk.mjs"
    return lambda url, *chats: node(program, request.param, url, stdin=chats)


@pytest.fixture(params=["0.0.59", "1.0"])
def ag_ui(request: pytest.FixtureRequest, packages: Path) -> Talk:
    """Chats of one version of AG-UI's client."""
    program = packages / "ag-ui.mjs"
    return lambda url, *chats: node(program, request.param, url, stdin=chats)


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of one server for all tests that need no other settings."""
    path = tmp_path_factory.mktemp("actor")
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "AGENT": "tests.actor:agent"}
    with (path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "app.py"), "--port=0"],
            cwd=path,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout
    found = re.search(r"http://[\d.:]+", process.stdout.readline())
    assert found, (path / "log").read_text()
    yield found[0]
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture
async def server(actor: str) -> AsyncIterator[Client]:
    async with Client(actor) as client:
        yield client


@pytest.fixture
def thread() -> str:
    """The id of a thread that nobody has used yet."""
    return secrets.token_hex(8)


def shape(message: Any) -> list[Any]:
    """Return what a message of the AI SDK shows, without ids and steps."""
    shown: list[Any] = []
    for part in message["parts"]:
        match part:
            case {"type": ("text" | "reasoning") as type_, "text": text}:
                shown.append((type_, text))
            case {"type": str(type_), "state": state} if type_.startswith("tool-"):
                ended = part.get("output", part.get("errorText"))
                shown.append((type_.removeprefix("tool-"), state, part["input"], ended))
    return ordered(shown)


def ordered(shown: list[Any]) -> list[Any]:
    """Return it with the tools between two texts by name: they begin in any order."""
    said = ("text", "reasoning", "assistant")
    groups = itertools.groupby(shown, lambda each: each[0] in said)
    return [
        each
        for is_text, group in groups
        for each in (group if is_text else sorted(group, key=lambda each: (each[0], len(each))))
    ]


def last(shown: Any) -> list[Any]:
    return shape(shown["messages"][-1])


# ------------------------------------------------------------------------------------------ AI SDK

TOOLS = [
    ("text", "Let me see."),
    ("broken", "output-error", {}, "no luck"),
    ("quick", "output-available", {}, {"quick": True}),
    ("slow", "output-available", {}, {"content": "slow"}),
    ("text", 'Then: slow{"quick": true}no luck'),
]


async def test_ai_sdk_shows_text_reasoning_and_tools(
    server: Client, thread: str, ai_sdk: Talk
) -> None:
    steps = [
        *({"send": "tools"}, {"send": "stamp"}, {"send": "think"}, {"send": "hi"}),
        {"resume": True},
    ]
    (chat,) = await ai_sdk(server.url, {"id": thread, "steps": steps})
    tools, stamped, thought, said, resumed = chat["shown"]
    assert last(tools) == TOOLS
    assert last(stamped) == [("stamp", "output-available", {}, {"content": "stamped"})]
    assert last(thought) == [("reasoning", "hmhm"), ("text", "So it is.")]
    assert last(said) == [("text", "4: hi")]
    # A replay of an answer that has ended leaves everything as it was.
    assert resumed["messages"] == said["messages"]
    # No answer is sent again by itself, though the tools have ended.
    assert [each["sent"] for each in chat["shown"]] == [1, 1, 1, 1, 0]
    assert {each["status"] for each in chat["shown"]} == {"ready"}
    metadata = said["messages"][-1]["metadata"]
    assert (metadata["reason"], metadata["thread_id"]) == ("completed", thread)
    assert chat["notes"][0]["data"] == {"content": "Thinking…"}
    assert chat["progress"] == [{"content": "half"}]


async def test_ai_sdk_answers_interrupts(server: Client, thread: str, ai_sdk: Talk) -> None:
    value, answer = {"a": [1, None]}, {"b": "é😀"}
    steps = [
        *({"send": f"ask {json.dumps(value)}"}, {"answers": [answer]}),
        *({"send": "twice"}, {"answers": ["one"]}, {"answers": [False]}),
        *({"send": "confirm"}, {"answers": [None]}, {"send": "hi"}),
    ]
    (chat,) = await ai_sdk(server.url, {"id": thread, "steps": steps})
    asked, answered, _, once, twice, _, confirmed, said = chat["shown"]
    call, said_answer = {"value": value}, json.dumps(answer)
    assert last(asked) == [
        *(("text", "I ask."), ("ask", "input-available", call, None)),
        ("interrupt", "input-available", value, None),
    ]
    assert last(answered) == [
        *(("text", "I ask."), ("ask", "output-available", call, answer)),
        *(("interrupt", "output-available", value, answer), ("text", f"Then: {said_answer}")),
    ]
    assert last(once) == [
        ("ask_twice", "input-available", {}, None),
        ("interrupt", "output-available", "first?", "one"),
        ("interrupt", "input-available", {"second": "?"}, None),
    ]
    assert last(twice)[-1] == ("text", 'Then: ["one", false]')
    assert len(last(twice)) == 4
    # This answer ends without a text, and is sent once all the same.
    assert last(confirmed)[0] == ("confirm", "output-available", {}, {"content": "null"})
    assert last(said) == [("text", "4: hi")]
    assert [each["sent"] for each in chat["shown"]] == [1] * 8
    assert len(said["messages"]) == 8


async def test_ai_sdk_answers_two_interrupts_at_once(launch: Launch, ai_sdk: Talk) -> None:
    server = await launch(AGENT="tests.agents:asking_twice", PYTHONPATH=str(ROOT))
    steps = [{"send": "go"}, {"answers": ["a", "b"], "manually": True}]
    (chat,) = await ai_sdk(server.url, {"id": "t", "auto": False, "steps": steps})
    assert last(chat["shown"][1])[2:] == [("text", "One: a"), ("text", "Two: b")]


async def test_ai_sdk_allows_and_rejects_calls(server: Client, thread: str, ai_sdk: Talk) -> None:
    steps = [
        *({"send": "pay Ann Bob"}, {"approve": [[True], [False, "too much"]]}),
        *({"resume": True}, {"send": "hi"}),
    ]
    (chat,) = await ai_sdk(server.url, {"id": thread, "steps": steps})
    asked, answered, resumed, said = chat["shown"]
    assert last(asked) == [
        ("text", "I pay."),
        ("pay", "approval-requested", {"to": "Ann"}, None),
        ("pay", "approval-requested", {"to": "Bob"}, None),
    ]
    rejected = "User rejected the tool call for `pay` with reason: too much"
    assert last(answered) == [
        ("text", "I pay."),
        ("pay", "output-available", {"to": "Ann"}, {"content": "paid Ann"}),
        ("pay", "output-error", {"to": "Bob"}, rejected),
        ("text", f"Then: {rejected}paid Ann"),
    ]
    assert last(resumed) == last(answered)
    assert last(said) == [("text", "2: hi")]
    assert [each["sent"] for each in chat["shown"]] == [1, 1, 0, 1]


async def test_ai_sdk_shows_the_rejection_at_the_call_that_was_rejected(
    server: Client, thread: str, ai_sdk: Talk
) -> None:
    steps = [{"send": "pay Ann Ann"}, {"approve": [[True], [False, "once"]]}, {"resume": True}]
    (chat,) = await ai_sdk(server.url, {"id": thread, "steps": steps})
    for shown in chat["shown"][1:]:
        parts = shown["messages"][-1]["parts"]
        states = [each["state"] for each in parts if each["type"] == "tool-pay"]
        assert states == ["output-available", "output-error"]


async def test_ai_sdk_goes_on_after_a_stop_inside_a_surrogate_pair(
    server: Client, thread: str, ai_sdk: Talk
) -> None:
    steps = [{"send": "split", "stop": "Half \ud83d"}, {"send": "hi"}]
    (chat,) = await ai_sdk(server.url, {"id": thread, "steps": steps})
    stopped, said = chat["shown"]
    assert last(stopped) == [("text", "Half \ud83d")]
    assert last(said) == [("text", "2: hi")]


async def test_ai_sdk_goes_on_after_an_error_and_a_stop(
    server: Client, thread: str, ai_sdk: Talk
) -> None:
    steps = [
        *({"send": "fail"}, {"send": "hi"}),
        *({"send": "hold", "stop": "Half"}, {"send": "hold", "stop": "Half"}, {"send": "hi"}),
    ]
    (chat,) = await ai_sdk(server.url, {"id": thread, "steps": steps})
    failed, said, stopped, _, after = chat["shown"]
    assert (failed["status"], last(failed)) == ("error", [("text", "Half")])
    assert failed["error"] == "The model's provider failed. Try again in a moment."
    assert failed["messages"][-1]["metadata"]["error"]["code"] == "model_error"
    assert (said["status"], last(said)) == ("ready", [("text", "2: hi")])
    assert (stopped["status"], last(stopped)) == ("ready", [("text", "Half")])
    assert last(after) == [("text", "5: hi")]


async def test_ai_sdk_regenerates_and_edits(server: Client, thread: str, ai_sdk: Talk) -> None:
    steps = [
        *({"send": "one"}, {"send": "two"}, {"regenerate": True}),
        *({"edit": [0, "zero"]}, {"send": "three"}),
        *({"send": "hold", "stop": "Half"}, {"edit": [2, "four"]}),
    ]
    (chat,) = await ai_sdk(server.url, {"id": thread, "steps": steps})
    texts = [last(each)[0][1] for each in chat["shown"]]
    assert texts == ["1: one", "2: two", "2: two", "1: zero", "2: three", "Half", "3: four"]
    _, thread = await server.call("GET", f"/api/threads/{thread}")
    assert [m["content"] for m in thread["messages"] if m["role"] == "user"] == [
        *("zero", "three", "four")
    ]


@pytest.mark.parametrize(
    ("before", "step"),
    [
        ([], {"send": "tools"}),
        ([], {"send": "think"}),
        ([{"send": "pay Ann Bob"}], {"approve": [[True], [False]]}),
        ([{"send": "twice"}, {"answers": [1]}], {"answers": [2]}),
    ],
    ids=["tools", "reasoning", "approvals", "interrupts"],
)
async def test_ai_sdk_resumes_from_any_cut(
    server: Client, thread: str, ai_sdk: Talk, before: list[Any], step: Any
) -> None:
    (whole,) = await ai_sdk(server.url, {"id": f"{thread}-whole", "steps": [*before, step]})
    assert 8 < whole["frames"] < 60
    cuts = [
        {"id": f"{thread}-{n}", "steps": [*before, {**step, "cut": n}, {"resume": True}]}
        for n in range(whole["frames"])
    ]
    for chat in await ai_sdk(server.url, *cuts):
        cut, resumed = chat["shown"][-2:]
        assert cut["status"] == "error"
        assert resumed["status"] == "ready"
        assert last(resumed) == last(whole["shown"][-1])
        assert len(resumed["messages"]) == 2


async def test_ai_sdk_shows_refusals(launch: Launch, ai_sdk: Talk, tmp_path: Path) -> None:
    server = await launch(
        AGENT="tests.actor:agent", PYTHONPATH=str(ROOT), MAX_BODY_BYTES="5000", MAX_RUNS="1"
    )
    stream = await server.ask("hold", thread_id="busy")
    await stream.until("text_delta")
    file = {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,AA=="}
    chats = await ai_sdk(
        server.url,
        {"id": "busy", "steps": [{"send": "hi"}]},
        {"id": "t", "steps": [{"send": "hi"}]},
        {"id": "t", "steps": [{"send": "x" * 5_000_000}]},
        {"id": "t", "steps": [{"files": [file]}]},
        {"id": "no id", "steps": [{"send": "hi"}]},
        {"id": "nobody", "steps": [{"resume": True}]},
    )
    errors = [json.loads(chat["shown"][0].get("error", "null")) for chat in chats]
    assert [each and each["error"]["code"] for each in errors] == [
        *("thread_busy", "too_many_runs", "too_large", "invalid_request", "invalid_request", None)
    ]
    assert errors[3]["error"]["message"] == "A message may have text alone; this one has 'file'."
    assert chats[-1]["shown"][0]["status"] == "ready"


async def test_ai_sdk_sends_a_long_history(server: Client, thread: str, ai_sdk: Talk) -> None:
    long = [
        {"id": f"{role}{n}", "role": role, "parts": [{"type": "text", "text": "x" * 3000}]}
        for n in range(100)
        for role in ("user", "assistant")
    ]
    chat = {"id": thread, "messages": long, "steps": [{"send": "hi"}]}
    (shown,) = await ai_sdk(server.url, chat)
    assert last(shown["shown"][0]) == [("text", "1: hi")]


# ------------------------------------------------------------------------------------------- AG-UI


def turn(shown: Any) -> list[Any]:
    """Return what a client of AG-UI has of its last turn, without ids."""
    asked = [n for n, each in enumerate(shown["messages"]) if each["role"] == "user"]
    found: list[Any] = []
    for message in shown["messages"][asked[-1] + 1 :]:
        match message:
            case {"role": "assistant", "toolCalls": calls}:
                functions = [call["function"] for call in calls]
                found += [(each["name"], json.loads(each["arguments"])) for each in functions]
            case {"role": "tool", "toolCallId": id_, "content": content}:
                found.append((id_.split("_")[1], message["metadata"]["status"], content))
            case {"role": role, "content": content}:
                found.append((role, content))
    return ordered(found)


async def test_ag_ui_shows_text_reasoning_and_tools(
    server: Client, thread: str, ag_ui: Talk
) -> None:
    steps = [{"send": "tools"}, {"send": "think"}, {"send": "hi"}, {"again": True}]
    (chat,) = await ag_ui(server.url, {"id": thread, "steps": steps})
    tools, thought, said, again = chat["shown"]
    assert turn(tools) == [
        ("assistant", "Let me see."),
        *(("broken", {}), ("broken", "error", "no luck")),
        *(("quick", {}), ("quick", "ok", '{"quick":true}')),
        *(("slow", {}), ("slow", "ok", '{"content":"slow"}')),
        ("assistant", 'Then: slow{"quick": true}no luck'),
    ]
    assert tools["types"].count("CUSTOM") == 2
    assert turn(thought) == [("reasoning", "hmhm"), ("assistant", "So it is.")]
    assert turn(said) == [("assistant", "3: hi")]
    # The same request again joins its run, and changes nothing.
    assert again["messages"] == said["messages"]
    assert {each["last"]["outcome"]["type"] for each in chat["shown"]} == {"success"}
    assert chat["warnings"] == []


async def test_ag_ui_answers_interrupts(server: Client, thread: str, ag_ui: Talk) -> None:
    value, answer = {"a": [1, None]}, {"b": "é😀"}
    steps = [
        *({"send": f"ask {json.dumps(value)}"}, {"answers": [["resolved", answer]]}),
        *({"send": "twice"}, {"answers": [["resolved", "one"]]}, {"answers": [["cancelled"]]}),
        *({"send": "confirm"}, {"answers": [["resolved", True]], "same": True}),
        *({"send": "pay Ann Bob"}, {"answers": [["resolved", {"approved": True}], ["cancelled"]]}),
        {"send": "hi"},
    ]
    (chat,) = await ag_ui(server.url, {"id": thread, "steps": steps})
    asked, answered, _, once, twice, _, confirmed, allowed, paid, said = chat["shown"]
    assert asked["pendingInterrupts"][0]["metadata"] == {"value": value}
    assert turn(asked) == [("assistant", "I ask."), ("ask", {"value": value})]
    assert turn(answered) == [
        *(("assistant", "I ask."), ("ask", {"value": value})),
        ("ask", "ok", json.dumps(answer, ensure_ascii=False, separators=(",", ":"))),
        ("assistant", f"Then: {json.dumps(answer)}"),
    ]
    assert once["pendingInterrupts"][0]["metadata"] == {"value": {"second": "?"}}
    assert turn(twice)[-1] == ("assistant", 'Then: ["one", null]')
    assert turn(confirmed) == [("confirm", {}), ("confirm", "ok", '{"content":"true"}')]
    assert [each["reason"] for each in allowed["pendingInterrupts"]] == ["tool_call"] * 2
    assert ("pay", {"to": "Ann"}) in turn(paid)
    assert ("pay", "ok", '{"content":"paid Ann"}') in turn(paid)
    assert len([each for each in turn(paid) if each[:2] == ("pay", "error")]) == 1
    assert len(turn(paid)) == 6
    assert turn(said) == [("assistant", "5: hi")]
    assert [each.get("error") for each in chat["shown"]] == [None] * 10
    assert chat["warnings"] == []


async def test_ag_ui_answers_two_interrupts_at_once(launch: Launch, ag_ui: Talk) -> None:
    server = await launch(AGENT="tests.agents:asking_twice", PYTHONPATH=str(ROOT))
    steps = [{"send": "go"}, {"answers": [["resolved", "a"], ["resolved", "b"]]}]
    (chat,) = await ag_ui(server.url, {"id": "t", "steps": steps})
    assert turn(chat["shown"][1]) == [("assistant", "One: a"), ("assistant", "Two: b")]


async def test_ag_ui_goes_on_after_a_stop_inside_a_surrogate_pair(
    server: Client, thread: str, ag_ui: Talk
) -> None:
    steps = [{"send": "split", "stop": "Half \ud83d"}, {"send": "hi"}]
    (chat,) = await ag_ui(server.url, {"id": thread, "steps": steps})
    stopped, said = chat["shown"]
    assert turn(stopped) == [("assistant", "Half \ud83d")]
    assert turn(said) == [("assistant", "2: hi")]


async def test_ag_ui_goes_on_after_an_error_and_a_stop(
    server: Client, thread: str, ag_ui: Talk
) -> None:
    steps = [{"send": "fail"}, {"send": "hi"}, {"send": "hold", "stop": "Half"}, {"send": "hi"}]
    (chat,) = await ag_ui(server.url, {"id": thread, "steps": steps})
    failed, said, stopped, after = chat["shown"]
    assert failed["last"]["type"] == "RUN_ERROR"
    assert failed["last"]["code"] == "model_error"
    assert failed["last"]["message"] == "The model's provider failed. Try again in a moment."
    assert [turn(said), turn(stopped), turn(after)] == [
        *([("assistant", "2: hi")], [("assistant", "Half")], [("assistant", "4: hi")])
    ]


@pytest.mark.parametrize(
    ("before", "step"),
    [
        ([], {"send": "tools"}),
        ([{"send": "think"}], {"send": "think"}),
        ([{"send": "twice"}, {"answers": [["resolved", 1]]}], {"answers": [["resolved", 2]]}),
        ([{"send": "pay Ann Bob"}], {"answers": [["resolved", {"approved": True}], ["cancelled"]]}),
    ],
    ids=["tools", "reasoning", "interrupts", "approvals"],
)
async def test_ag_ui_resumes_from_any_cut(
    server: Client, thread: str, ag_ui: Talk, before: list[Any], step: Any
) -> None:
    (whole,) = await ag_ui(server.url, {"id": f"{thread}-whole", "steps": [*before, step]})
    resume = {**step, "again": True}
    resume.pop("send", None)
    cuts = [
        {"id": f"{thread}-{n}", "steps": [*before, {**step, "cut": n}, resume]}
        for n in range(whole["frames"])
    ]
    for chat in await ag_ui(server.url, *cuts):
        cut, resumed = chat["shown"][-2:]
        assert cut["error"] == "network error"
        assert resumed.get("error") is None
        assert turn(resumed) == turn(whole["shown"][-1])
        assert len(resumed["messages"]) == len(whole["shown"][-1]["messages"])


async def test_ag_ui_shows_refusals(launch: Launch, ag_ui: Talk) -> None:
    server = await launch(
        AGENT="tests.actor:agent", PYTHONPATH=str(ROOT), MAX_BODY_BYTES="5000", MAX_RUNS="1"
    )
    stream = await server.ask("hold", thread_id="busy")
    await stream.until("text_delta")
    chats = await ag_ui(
        server.url,
        {"id": "busy", "steps": [{"send": "hi"}]},
        {"id": "t", "steps": [{"send": "hi"}]},
        {"id": "no id", "steps": [{"send": "hi"}]},
        {"id": "nobody", "steps": [{"again": True}]},
        {"id": "t", "steps": [{"send": "x" * 6000}]},
    )
    errors = [chat["shown"][0]["error"] for chat in chats]
    codes = ["thread_busy", "too_many_runs", "invalid_request", "unknown_run", "too_large"]
    for error, status, code in zip(errors, (409, 503, 400, 404, 413), codes, strict=True):
        assert error.startswith(f"HTTP {status}: ")
        assert f'"code":"{code}"' in error
        assert re.search(r'"message":"\w.*\."', error)


async def test_ag_ui_sends_a_long_history(server: Client, thread: str, ag_ui: Talk) -> None:
    long = [
        {"id": f"{role}{n}", "role": role, "content": "x" * 3000}
        for n in range(100)
        for role in ("user", "assistant")
    ]
    chat = {"id": thread, "messages": long, "steps": [{"send": "hi"}]}
    (shown,) = await ag_ui(server.url, chat)
    assert turn(shown["shown"][0]) == [("assistant", "1: hi")]


# ------------------------------------------------------------------------------------------ all


async def test_the_clients_own_code_reads_any_script(packages: Path) -> None:
    """Their schemas take each frame, and their code makes the same of it as our events."""
    played: list[list[AnyRun]] = []

    @settings(max_examples=200, derandomize=True, deadline=None, database=None)
    @given(turns=TURNS, reason=st.sampled_from(["cancelled", "shutdown", "timeout"]))
    def collect(turns: Any, reason: str) -> None:
        played.extend(asyncio.run(play(turns, reason)))

    await asyncio.to_thread(collect)
    dialects = [[raw.decode() for raw in translated(runs)] for runs in played]
    responses = [{"aiSdk": ours, "agUi": theirs} for ours, theirs in dialects]
    found = await node(packages / "fold.mjs", stdin=responses)
    assert found["warnings"] == []
    assert len(played) > 200
    for runs, clients in zip(played, found["folded"], strict=True):
        events = [event for run in runs for event in frames(run)]
        error = next((event["message"] for event in events if event["type"] == "error"), None)
        for client in clients["aiSdk"]:
            assert parts_of(client["parts"]) == shown_by(events)
            assert client.get("error") == error
        assert clients["differ"] == []
        for client in clients["agUi"]:
            assert messages_of(client["messages"]) == shown_by(events, first=True)
            assert client.get("error") == error


def parts_of(parts: Any) -> tuple[str, list[Any]]:
    said = "".join(part["text"] for part in parts if part["type"] == "text")
    tools = [part for part in parts if part["type"].startswith("tool-")]
    calls = [
        [
            part["type"].removeprefix("tool-"),
            part["input"],
            # What a tool reported before a person was asked is no result.
            None if part.get("preliminary") else part.get("output", part.get("errorText")),
        ]
        for part in tools
        if part["type"] != "tool-interrupt"
    ]
    return whole(said), sorted(calls, key=str)


def messages_of(messages: Any) -> tuple[str, list[Any]]:
    said = [m.get("content", "") for m in messages if m["role"] == "assistant"]
    results = {
        m["toolCallId"]: json.loads(m["content"])
        if m["metadata"]["status"] == "ok"
        else m["content"]
        for m in messages
        if m["role"] == "tool"
    }
    calls = [
        [
            call["function"]["name"],
            json.loads(call["function"]["arguments"]),
            results.get(call["id"]),
        ]
        for message in messages
        for call in message.get("toolCalls", ())
    ]
    return whole("".join(said)), sorted(calls, key=str)


async def test_copilotkit_shows_answers_and_stops(
    server: Client, thread: str, packages: Path
) -> None:
    steps = [
        *({"send": "tools"}, {"send": "think"}, {"send": "twice"}),
        *({"answers": [["resolved", "one"]]}, {"answers": [["resolved", "two"]]}),
        {"send": "pay Ann Bob"},
        {"answers": [["resolved", {"approved": True}], ["cancelled"]]},
        *({"send": "fail"}, {"send": "hold", "stop": "Half"}, {"send": "hi"}),
    ]
    chats = [{"id": thread, "steps": steps}]
    (chat,) = await node(packages / "copilotkit.mjs", server.url, stdin=chats)
    tools, thought, _, _, twice, allowed, paid, failed, stopped, said = chat["shown"]
    assert turn(tools)[-1] == ("assistant", 'Then: slow{"quick": true}no luck')
    assert len(turn(tools)) == 8
    assert turn(thought) == [("reasoning", "hmhm"), ("assistant", "So it is.")]
    assert turn(twice)[-1] == ("assistant", 'Then: ["one", "two"]')
    assert len(turn(twice)) == 3
    assert len(allowed["pendingInterrupts"]) == 2
    assert ("pay", "ok", '{"content":"paid Ann"}') in turn(paid)
    assert len(turn(paid)) == 6
    assert failed["errors"] == ["The model's provider failed. Try again in a moment."]
    assert turn(stopped) == [("assistant", "Half")]
    assert turn(said) == [("assistant", "7: hi")]


async def test_two_replicas_serve_one_chat(
    launch: Launch, redis: RedisServer, postgres: Postgres, packages: Path
) -> None:
    shared = {"REDIS_URL": redis.url, "DATABASE_URL": postgres.url}
    servers = [
        await launch(AGENT="tests.actor:agent", PYTHONPATH=str(ROOT), **shared) for _ in range(2)
    ]
    urls = [server.url for server in servers]
    steps = [{"send": "twice"}, {"answers": ["one"]}, {"answers": ["two"], "cut": 2}]
    chat = {"id": secrets.token_hex(8), "urls": urls, "steps": [*steps, {"resume": True}]}
    (found,) = await node(packages / "ai-sdk.mjs", "7", urls[0], stdin=[chat])
    assert last(found["shown"][-1])[-1] == ("text", 'Then: ["one", "two"]')
    assert len(last(found["shown"][-1])) == 4
    answers = [{"answers": [["resolved", "one"]]}, {"answers": [["resolved", "two"]], "cut": 2}]
    again = {"answers": [["resolved", "two"]], "again": True}
    chat = {"id": secrets.token_hex(8), "urls": urls, "steps": [{"send": "twice"}, *answers, again]}
    (found,) = await node(packages / "ag-ui.mjs", "1.0", urls[0], stdin=[chat])
    assert turn(found["shown"][-1])[-1] == ("assistant", 'Then: ["one", "two"]')
    assert len(turn(found["shown"][-1])) == 3


# ----------------------------------------------------------------------------------- in a browser

PAGES = {
    "useChat 6": ("use-chat.mjs", {"ai-sdk": "ai6", "ai-sdk-react": "ai-react6"}),
    "useChat 7": ("use-chat.mjs", {"ai-sdk": "ai7", "ai-sdk-react": "ai-react7"}),
    "assistant-ui": ("assistant-ui.mjs", {}),
    "HttpAgent 0.0.59": ("http-agent.mjs", {"ag-ui": "ag-ui-0"}),
    "HttpAgent 1.0": ("http-agent.mjs", {"ag-ui": "ag-ui-1"}),
}


@pytest.fixture(scope="session")
def bundles(packages: Path) -> dict[str, str]:
    """Each page's program as one script."""
    scripts = {}
    for name, (program, packages_of) in PAGES.items():
        done = subprocess.run(
            [
                *(str(packages / "node_modules/.bin/esbuild"), program, "--bundle"),
                *("--format=esm", '--define:process.env.NODE_ENV="production"'),
                *(f"--alias:{alias}={package}" for alias, package in packages_of.items()),
            ],
            cwd=packages,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        scripts[name] = done.stdout
    return scripts


HTML = '<!doctype html><body><script type="module" src="/front/page.js"></script>'

Visit = Callable[..., Awaitable[Page]]
"""``await visit(server.url, name)``: a page of this origin that runs one of the bundles."""


@pytest.fixture
def visit(
    browser: Browser,  # noqa: F811
    bundles: dict[str, str],
) -> Visit:
    async def visit(origin: str, name: str, **query: str) -> Page:
        async def serve(route: Route) -> None:
            if route.request.url.endswith(".js"):
                await route.fulfill(body=bundles[name], content_type="text/javascript")
            else:
                await route.fulfill(body=HTML, content_type="text/html")

        page = await browser.new_page()
        page.set_default_timeout(15_000)
        await page.route(f"{origin}/front/**", serve)
        await page.goto(f"{origin}/front/?{urlencode(query)}")
        return page

    return visit


@pytest.fixture
async def site(bundles: dict[str, str]) -> AsyncIterator[str]:
    """The origin of another server, whose pages ``/NAME/`` run a bundle each."""

    async def page(request: web.Request) -> web.Response:
        html = HTML.replace("/front/page.js", "page.js")
        return web.Response(text=html, content_type="text/html")

    async def script(request: web.Request) -> web.Response:
        text = bundles[request.match_info["name"]]
        return web.Response(text=text, content_type="text/javascript", charset="utf-8")

    app = web.Application()
    app.router.add_get("/{name}/", page)
    app.router.add_get("/{name}/page.js", script)
    runner, url = await listen(app)
    yield url
    await runner.cleanup()


async def at_rest(page: Page, status: str = "ready") -> Any:
    """Return what a useChat page shows once it is at rest."""
    await page.wait_for_function(f"() => window.chat?.status === '{status}'")
    return json.loads(await page.locator("#shown").inner_text())


async def send(page: Page, text: str, status: str = "ready") -> Any:
    await page.evaluate("async (text) => { await chat.sendMessage({ text }); }", text)
    return await at_rest(page, status)


each_use_chat = pytest.mark.parametrize("name", ["useChat 6", "useChat 7"])


@each_use_chat
async def test_use_chat_needs_no_configuration(server: Client, visit: Visit, name: str) -> None:
    page = await visit(server.url, name)
    assert last(await send(page, "tools")) == TOOLS
    assert last(await send(page, "think")) == [("reasoning", "hmhm"), ("text", "So it is.")]
    await page.evaluate("() => void chat.sendMessage({ text: 'hold' })")
    await expect(page.locator("#shown")).to_contain_text("Half")
    await page.evaluate("async () => { await chat.stop(); }")
    assert last(await send(page, "hi")) == [("text", "4: hi")]
    await page.evaluate("async () => { await chat.regenerate(); }")
    assert last(await at_rest(page)) == [("text", "4: hi")]


@each_use_chat
async def test_use_chat_shows_an_answer_again_after_a_reload(
    server: Client, thread: str, visit: Visit, name: str
) -> None:
    page = await visit(server.url, name, id=thread, resume="1")
    assert (await at_rest(page))["messages"] == []
    await page.evaluate("() => void chat.sendMessage({ text: 'write 100 slowly' })")
    await expect(page.locator("#shown")).to_contain_text("12 13 14")
    await page.reload()
    await expect(page.locator("#shown")).to_contain_text("97 98 99")
    text = "".join(f"{n} " for n in range(100))
    assert last(await at_rest(page)) == [("text", text)]
    await page.reload()
    await expect(page.locator("#shown")).to_contain_text("97 98 99")
    shown = await at_rest(page)
    assert (last(shown), len(shown["messages"])) == ([("text", text)], 1)


@each_use_chat
async def test_use_chat_answers_a_question(server: Client, visit: Visit, name: str) -> None:
    page = await visit(server.url, name, answers="1")
    *_, asked = last(await send(page, 'ask "May I?"'))
    assert asked == ("interrupt", "input-available", "May I?", None)
    await page.evaluate(
        """async () => {
          const { toolCallId } = chat.messages.at(-1).parts.at(-1);
          await chat.addToolOutput({ tool: "interrupt", toolCallId, output: { yes: true } });
        }"""
    )
    await expect(page.locator("#shown")).to_contain_text("Then: ")
    assert last(await at_rest(page))[-1] == ("text", 'Then: {"yes": true}')


@each_use_chat
async def test_use_chat_calls_from_another_origin(
    launch: Launch,
    browser: Browser,  # noqa: F811
    site: str,
    name: str,
) -> None:
    limits = {"MAX_BODY_BYTES": "300000", "CORS_ORIGINS": site}
    server = await launch(AGENT="tests.actor:agent", PYTHONPATH=str(ROOT), **limits)
    page = await browser.new_page()
    await page.goto(f"{site}/{quote(name)}/?{urlencode({'api': f'{server.url}/api/chat'})}")
    await page.wait_for_function("() => window.chat")
    assert last(await send(page, "hi")) == [("text", "1: hi")]
    refused = await send(page, "x" * 400_000, status="error")
    assert json.loads(refused["error"])["error"]["code"] == "too_large"


@pytest.mark.parametrize("name", ["HttpAgent 0.0.59", "HttpAgent 1.0"])
async def test_http_agent_calls_from_another_origin(
    launch: Launch,
    browser: Browser,  # noqa: F811
    site: str,
    name: str,
) -> None:
    server = await launch(AGENT="tests.actor:agent", PYTHONPATH=str(ROOT), CORS_ORIGINS=site)
    page = await browser.new_page()
    await page.goto(f"{site}/{quote(name)}/")
    await page.wait_for_function("() => window.HttpAgent")
    messages = await page.evaluate(
        """async (url) => {
          const agent = new HttpAgent({ url, threadId: "t" });
          agent.addMessage({ id: "1", role: "user", content: "hi" });
          await agent.runAgent();
          return agent.messages;
        }""",
        f"{server.url}/api/ag-ui",
    )
    assert messages[-1]["content"] == "1: hi"


async def test_assistant_ui_needs_no_configuration(server: Client, visit: Visit) -> None:
    page = await visit(server.url, "assistant-ui")

    async def act(what: str, text: str) -> None:
        await page.evaluate(f"async () => {{ {what} }}")
        await expect(page.locator("body")).to_contain_text(text)
        await page.wait_for_function("() => !thread.getState().isRunning")

    await page.wait_for_function("() => window.thread")
    await act("thread.append('tools')", 'Then: slow{"quick": true}no luck')
    await act("thread.append('two')", "2: two")
    await act("thread.getMessageByIndex(3).reload()", "2: two")
    await act(
        """const composer = thread.getMessageByIndex(2).composer;
        composer.beginEdit(); composer.setText('three'); composer.send()""",
        "2: three",
    )
    await page.evaluate("() => void thread.append('hold')")
    await expect(page.locator("body")).to_contain_text("Half")
    await page.evaluate("() => thread.cancelRun()")
    await act("thread.append('hi')", "4: hi")


# ---------------------------------------------------------------------------------- the example

EXAMPLE = (ROOT / "static/usechat/index.html").read_text()
IMPORT_MAP = re.search('<script type="importmap">(.*?)</script>', EXAMPLE, re.S)
assert IMPORT_MAP
MODULES: dict[str, str] = json.loads(IMPORT_MAP[1])["imports"]
"""Where the example's packages come from: the address of each module."""
PACKAGES = {"@ai-sdk/react": "ai-react7", "ai": "ai7", "react-dom/client": "react-dom"}
ENTRIES = {
    **{"@ai-sdk/react": "ai-react7", "ai": "ai7"},
    "react/jsx-runtime": "./node_modules/react/jsx-runtime.js",
}


@pytest.fixture(scope="session")
def modules(packages: Path) -> dict[str, str]:
    """Each module of the example's import map as the script that is served for its address."""
    scripts = {}
    for name, url in MODULES.items():
        package = ENTRIES.get(name, name)
        found = subprocess.run(
            ["node", "-e", f"import({package!r}).then((m) => console.log(Object.keys(m).join()))"],
            cwd=packages,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        names = ",".join({*found.split(",")} - {"module.exports"})
        # React is one for all: what asks for it with `require` gets what the map names.
        banner = 'import * as only from "react"; const require = () => only;'
        shared = ["--external:react", f"--banner:js={banner}"] if name != "react" else []
        done = subprocess.run(
            [
                *(str(packages / "node_modules/.bin/esbuild"), "--bundle", "--format=esm"),
                *('--define:process.env.NODE_ENV="production"', "--loader=js"),
                *shared,
            ],
            input=f"export {{ {names} }} from {package!r};",
            cwd=packages,
            capture_output=True,
            text=True,
            check=True,
        )
        scripts[url] = done.stdout
    return scripts


@pytest.fixture
async def example(
    server: Client,
    browser: Browser,  # noqa: F811
    modules: dict[str, str],
) -> AsyncIterator[Page]:
    """The example page; at the end nothing may have gone wrong in it."""
    problems: list[str] = []

    async def serve(route: Route) -> None:
        await route.fulfill(
            body=modules[route.request.url],
            content_type="text/javascript",
            headers={"Access-Control-Allow-Origin": "*"},
        )

    page = await browser.new_page()
    page.set_default_timeout(15_000)
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    await page.route("https://esm.sh/**", serve)
    await page.goto(f"{server.url}/static/usechat/index.html")
    yield page
    assert problems == []


async def ask(page: Page, question: str) -> None:
    await page.get_by_role("textbox").fill(question)
    await page.keyboard.press("Enter")


async def test_the_example_shows_tools_a_stop_and_an_answer_after_a_reload(example: Page) -> None:
    log = example.get_by_role("log")
    await ask(example, "tools")
    await expect(log).to_contain_text('Then: slow{"quick": true}no luck')
    await expect(example.locator(".tool[data-state=output-available]")).to_have_count(2)
    await ask(example, "hold")
    await expect(log).to_contain_text("Half")
    await example.get_by_role("button", name="Stop").click()
    await ask(example, "hi")
    await expect(log).to_contain_text("3: hi")
    await example.reload()
    await expect(log).to_contain_text("3: hi")


async def test_the_example_answers_questions(example: Page) -> None:
    log = example.get_by_role("log")
    await ask(example, 'ask "May I?"')
    await example.get_by_role("button", name="Approve").click()
    await expect(log).to_contain_text("Then: true")
    await ask(example, "pay Ann Bob")
    await example.get_by_role("button", name="Approve").first.click()
    await example.get_by_role("button", name="Reject").click()
    await expect(log).to_contain_text("paid Ann")
    await ask(example, "fail")
    await expect(example.get_by_role("alert")).to_have_text(
        "The model's provider failed. Try again in a moment."
    )


async def test_the_example_alone_may_load_its_packages(server: Client) -> None:
    assert IMPORT_MAP
    digest = base64.b64encode(hashlib.sha256(IMPORT_MAP[1].encode()).digest()).decode()
    policy = re.search('<meta http-equiv="Content-Security-Policy" content="(.*?)">', EXAMPLE)
    assert policy
    assert policy.end() < IMPORT_MAP.start()
    assert f"script-src 'self' https://esm.sh 'sha256-{digest}'" in policy[1]
    assert "unsafe" not in policy[1]
    for path, has_header in (("/static/usechat/index.html", False), ("/static/style.css", True)):
        async with server.session.get(path) as response:
            assert ("Content-Security-Policy" in response.headers) == has_header
    versions = json.loads((FRONTENDS / "package.json").read_text())["dependencies"]
    for name, url in MODULES.items():
        package = PACKAGES.get(name, "react")
        found = re.search(r"@([0-9][0-9.]*)", url)
        assert found
        assert versions[package].endswith(found[1])


# --------------------------------------------------------------------------------- the document

DOCUMENT = (ROOT / "docs/frontends.md").read_text()
PROGRAMS: dict[str, str] = dict(re.findall(r"```jsx?\n// (\S+)\n(.*?)```", DOCUMENT, re.S))
ADDRESS = "http://127.0.0.1:8000"


def page_of(packages: Path, program: str) -> str:
    """Return a page's program as one script."""
    esbuild = [str(packages / "node_modules/.bin/esbuild"), "--bundle", "--format=esm"]
    done = subprocess.run(
        [*esbuild, "--loader=jsx", "--jsx=automatic", '--define:process.env.NODE_ENV="production"'],
        input=program,
        cwd=packages,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


async def talk_to(page: Page) -> None:
    for question, answer in (("tools", 'Then: slow{"quick": true}no luck'), ("hi", "2: hi")):
        await ask(page, question)
        await expect(page.locator("body")).to_contain_text(answer)


@pytest.mark.parametrize("name", ["chat.jsx", "assistant.jsx"])
async def test_a_page_of_the_document_runs(
    server: Client,
    browser: Browser,  # noqa: F811
    packages: Path,
    name: str,
) -> None:
    script = page_of(packages, PROGRAMS[name])

    async def serve(route: Route) -> None:
        if route.request.url.endswith(".js"):
            await route.fulfill(body=script, content_type="text/javascript")
        else:
            await route.fulfill(body=HTML, content_type="text/html")

    page = await browser.new_page()
    await page.route(f"{server.url}/front/**", serve)
    await page.goto(f"{server.url}/front/")
    await talk_to(page)


async def test_the_documents_page_for_another_origin_runs(
    launch: Launch,
    browser: Browser,  # noqa: F811
    packages: Path,
) -> None:
    scripts: dict[str, str] = {}

    async def serve(request: web.Request) -> web.Response:
        if request.path.endswith(".js"):
            return web.Response(text=scripts["page"], content_type="text/javascript")
        return web.Response(text=HTML, content_type="text/html")

    app = web.Application()
    app.router.add_get("/front/{name:.*}", serve)
    runner, origin = await listen(app)
    server = await launch(AGENT="tests.actor:agent", PYTHONPATH=str(ROOT), CORS_ORIGINS=origin)
    assert PROGRAMS["cross.jsx"].count(ADDRESS) == 1
    scripts["page"] = page_of(packages, PROGRAMS["cross.jsx"].replace(ADDRESS, server.url))
    page = await browser.new_page()
    await page.goto(f"{origin}/front/")
    await talk_to(page)
    await runner.cleanup()


async def test_the_documents_program_for_ag_ui_runs(launch: Launch, packages: Path) -> None:
    server = await launch()
    program = PROGRAMS["ask.mjs"]
    assert program.count(ADDRESS) == 1
    done = await asyncio.create_subprocess_exec(
        *(require("node"), "--input-type=module", "-e", program.replace(ADDRESS, server.url)),
        cwd=packages,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await done.communicate()
    assert (done.returncode, b"42" in out) == (0, True)


async def test_the_documents_runtime_for_copilotkit_runs(server: Client, packages: Path) -> None:
    (port,) = free_ports(1)
    program = PROGRAMS["runtime.mjs"].replace(ADDRESS, server.url).replace("4000", str(port))
    process = await asyncio.create_subprocess_exec(
        *(require("node"), "--input-type=module", "-e", program),
        cwd=packages,
        env={**os.environ, "COPILOTKIT_TELEMETRY_DISABLED": "true"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        user = {"id": "1", "role": "user", "content": "hi"}
        given = {"threadId": "t", "runId": "r", "messages": [user], "tools": [], "context": []}
        url = f"http://127.0.0.1:{port}/api/copilotkit/agent/default/run"
        body = json.dumps({**given, "state": {}, "forwardedProps": {}})
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with suppress(ClientError):
                    async with server.session.post(url, data=body, headers=headers) as response:
                        text = await response.text()
                        break
                await asyncio.sleep(0.05)
    finally:
        process.kill()
        await process.wait()
    deltas = re.findall(r'"TEXT_MESSAGE_CONTENT".*?"delta":"(.*?)"', text)
    assert "".join(deltas) == "1: hi"
