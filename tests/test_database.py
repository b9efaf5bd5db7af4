"""Threads in databases: what outlives a restart, what a run may not write, and databases away."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from deepagents import create_deep_agent
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, create_checkpoint, empty_checkpoint
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt

from agent import Agent
from events import Unavailable
from tests.agents import only
from tests.conftest import ROOT, Process, Server, on_both
from tests.engines import Postgres, until_saved
from tests.scripted import ScriptedModel, call, scripted_agent
from tests.upstream import STALL, Upstream, text
from threads.database import open_database
from threads.memory import MAY_WRITE

pytestmark = pytest.mark.slow

Launch = Callable[..., Awaitable[Process]]
Start = Callable[..., Awaitable[Server]]

FEW_S = 15
"""A bound for what takes three seconds on a machine that is not busy."""

POLL_S = 0.02


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres").url)
    return f"sqlite:///{tmp_path / 'chat.db'}"


async def contents(server: Any, thread_id: str) -> list[str]:
    _, thread = await server.call("GET", f"/api/threads/{thread_id}")
    return [message.get("content", "") for message in thread.get("messages", ())]


async def until(condition: Callable[[], Awaitable[Any]]) -> None:
    """Poll for what nothing announces."""
    async with asyncio.timeout(FEW_S):
        while not await condition():
            await asyncio.sleep(POLL_S)


async def until_health(server: Any, status: str) -> None:
    async def is_so() -> bool:
        return bool((await server.call("GET", "/healthz"))[1]["status"] == status)

    await until(is_so)


async def refusal(server: Any, message: str, **fields: Any) -> tuple[int, str]:
    body = {"message": message, **fields}
    status, document = await server.call("POST", "/api/chat", json=body)
    return status, document["error"]["code"]


# ------------------------------------------------------------------- what outlives a restart


async def test_a_restart_forgets_no_conversation(launch: Launch, database_url: str) -> None:
    server = await launch(DATABASE_URL=database_url, MAX_THREADS="1")
    await server.run("calculate 6 * 7", thread_id="t")
    await server.run("wait 0 seconds", thread_id="other")
    before = await server.call("GET", "/api/threads/t")
    assert before[0] == 200
    server.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(server.process.wait(), 30) == 0
    server = await launch(DATABASE_URL=database_url)
    assert await server.call("GET", "/api/threads/t") == before
    events = await server.run("times 2", thread_id="t")
    assert "84" in events[-2]["content"]
    assert (await server.call("DELETE", "/api/threads/t"))[0] == 204
    assert (await server.call("GET", "/api/threads/t"))[0] == 404


async def test_a_turn_that_died_with_its_server_is_closed_by_the_next_one(
    launch: Launch, upstream: Upstream, database_url: str
) -> None:
    upstream.replies = [[*text("Hel"), STALL], text("Again.")]
    environ = {"OPENAI_BASE_URL": upstream.url, "DATABASE_URL": database_url}
    server = await launch(**environ)
    stream = await server.ask("hi", thread_id="died")
    await stream.until("text_delta")
    await until_saved(database_url, "died")
    server.process.kill()
    await server.process.wait()
    server = await launch(**environ)
    body = {"resume": True, "thread_id": "died"}
    status, document = await server.call("POST", "/api/chat", json=body)
    assert (status, document["error"]["code"]) == (400, "nothing_to_resume")
    assert (await server.run("again", thread_id="died"))[-2]["content"] == "Again."
    assert await contents(server, "died") == ["hi", "", "again", "Again."]


async def test_several_servers_that_start_at_once_set_the_database_up(
    launch: Launch, database_url: str
) -> None:
    if database_url.startswith("postgresql"):
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
    servers = await asyncio.gather(*(launch(DATABASE_URL=database_url) for _ in range(3)))
    for server in servers:
        await server.run("6 * 7", thread_id="setup")
    assert len(await contents(servers[0], "setup")) == 4 * len(servers)


async def test_a_nul_that_a_graph_keeps_does_not_break_its_thread(
    launch: Launch, database_url: str
) -> None:
    server = await launch(
        DATABASE_URL=database_url, AGENT="tests.agents:noting", PYTHONPATH=str(ROOT)
    )
    for said in ("a\0b", "c"):
        events = await server.run(said, thread_id="nul")
        assert events[-2]["content"] == f"Noted: {said}"


async def test_a_thread_keeps_the_checkpoints_of_one_turn(
    launch: Launch, database_url: str
) -> None:
    server = await launch(DATABASE_URL=database_url)
    connection: Any
    if file := re.match("sqlite:///(.*)", database_url):
        connection = sqlite3.connect(file[1])
    else:
        connection = psycopg.connect(database_url, autocommit=True)
    counts = []
    for _ in range(4):
        await server.run("6 * 7", thread_id="pruned")
        count = "SELECT count(*) FROM checkpoints WHERE thread_id = 'pruned'"
        counts.append(connection.execute(count).fetchone()[0])
    connection.close()
    assert len({*counts[1:]}) == 1, counts
    assert len(await contents(server, "pruned")) == 4 * 4


async def test_a_deep_agent_remembers_every_turn(start: Start, database_url: str) -> None:
    """Its messages are a delta channel: their value is spread over older checkpoints."""
    model = ScriptedModel(script=[["One."], ["Two."], ["Three."]])
    server = await start(Agent(create_deep_agent(model), "x"), database_url=database_url)
    for question in ("a", "b", "c"):
        await server.run(question, thread_id="deep")
    assert await contents(server, "deep") == ["a", "One.", "b", "Two.", "c", "Three."]


def ask(state: MessagesState) -> dict[str, Any]:
    return {"messages": [("ai", f"Answered: {interrupt('May I?')}")]}


@pytest.mark.parametrize("how", ["a node", "inside a node", "in a worker thread"])
async def test_a_subgraph_waits_for_a_person_in_a_later_turn(
    start: Start, database_url: str, how: str
) -> None:
    inner = only(ask).compile()

    async def call_inner(state: MessagesState) -> Any:
        return await inner.ainvoke(state)

    def call_inner_in_a_thread(state: MessagesState) -> Any:
        return inner.invoke(state)

    nodes: dict[str, Any] = {
        "a node": inner,
        "inside a node": call_inner,
        "in a worker thread": call_inner_in_a_thread,
    }
    graph = StateGraph(MessagesState)
    graph.add_node("inner", nodes[how])
    graph.add_edge(START, "inner")
    server = await start(Agent(graph.compile(), "x"), database_url=database_url)
    thread_id = f"subgraph-{how.replace(' ', '-')}"
    for n in range(2):
        events = await server.run(f"hi {n}", thread_id=thread_id)
        assert events[-1]["reason"] == "interrupted"
        events = await server.run(resume=n, thread_id=thread_id)
        assert events[-2]["content"] == f"Answered: {n}"


async def test_what_a_failed_tool_raised_is_not_shown_by_another_server(
    start: Start, tmp_path: Path
) -> None:
    def broken() -> str:
        """Fail."""
        raise ValueError("secret")

    url, go = f"sqlite:///{tmp_path}/chat.db", asyncio.Event()
    script: list[list[Any]] = [call("broken", "{}", "c1"), [go, "sorry"]]
    safe = {"handle_tool_errors": lambda error: "It failed."}
    one = await start(scripted_agent(script, [broken], **safe), database_url=url)
    other = await start(scripted_agent([]), database_url=url)
    stream = await one.ask("go", thread_id="t")
    failed = await stream.until("tool_result")

    async def shown(server: Server) -> list[Any]:
        _, thread = await server.call("GET", "/api/threads/t")
        return [m["message"] for m in thread.get("messages", []) if m["role"] == "tool"]

    await until(lambda: shown(other))
    assert await shown(one) == await shown(other) == [failed["message"]]
    go.set()
    await stream.events()
    assert await shown(one) == await shown(other) == [failed["message"]]


# --------------------------------------------------------------- what a run may not write


def config(thread_id: str, may_write: Callable[[], bool]) -> Any:
    return {
        "configurable": {"thread_id": thread_id, "checkpoint_ns": "", MAY_WRITE: may_write},
        "metadata": {},
    }


async def put(saver: BaseCheckpointSaver[Any], given: Any) -> None:
    checkpoint = create_checkpoint(empty_checkpoint(), None, 1)
    saved = await saver.aput(given, checkpoint, {"source": "loop", "step": 1}, {})
    given["configurable"]["checkpoint_id"] = saved["configurable"]["checkpoint_id"]


async def test_a_run_that_may_not_write_saves_nothing(database_url: str) -> None:
    async with open_database(database_url) as saver:
        given = config("refused", lambda: False)
        with pytest.raises(Unavailable):
            await put(saver, given)
        assert await saver.aget_tuple(given) is None
        allowed = config("refused", lambda: True)
        await put(saver, allowed)
        late = {"configurable": {**allowed["configurable"], MAY_WRITE: lambda: False}}
        with pytest.raises(Unavailable):
            await saver.aput_writes(late, [("messages", "late")], "task")
        kept = await saver.aget_tuple(allowed)
        assert kept is not None
        assert kept.pending_writes == []


@on_both
async def test_a_graph_that_does_not_stop_cannot_write_to_the_thread_of_the_next_run(
    start: Start, database_url: str
) -> None:
    begun, let_go, over = (asyncio.Event() for _ in range(3))
    refused: list[Exception] = []

    async def answer(state: MessagesState, config: RunnableConfig) -> dict[str, Any]:
        if len(state["messages"]) > 1:
            return {"messages": [("ai", "Fine.")]}
        begun.set()
        while not let_go.is_set():
            with suppress(asyncio.CancelledError):
                await let_go.wait()
        own = {k: v for k, v in config["configurable"].items() if k in ("thread_id", MAY_WRITE)}
        try:
            await agent.graph.aupdate_state({"configurable": own}, {"messages": [("ai", "Late.")]})
        except Unavailable as error:
            refused.append(error)
        over.set()
        return {"messages": [("ai", "Late.")]}

    agent = Agent(only(answer).compile(), "x")
    server = await start(agent, database_url=database_url)
    thread_id = f"stubborn-{uuid4()}"
    stream = await server.ask("hi", thread_id=thread_id)
    run_id = (await stream.until("start"))["run_id"]
    await begun.wait()
    await until_saved(database_url, thread_id)
    await server.call("POST", f"/api/runs/{run_id}/cancel")
    await server.run("again", thread_id=thread_id)
    let_go.set()
    await over.wait()
    assert refused
    await server.run("last", thread_id=thread_id)
    expected = ["hi", "", "again", "Fine.", "last", "Fine."]
    assert await contents(server, thread_id) == expected


async def test_a_server_that_is_paused_after_its_check_commits_nothing(
    postgres: Postgres,
) -> None:
    def paused() -> bool:
        time.sleep(1.2)  # Nothing in this process runs meanwhile.
        return True

    async with open_database(postgres.url) as saver:
        given = config("paused", paused)
        with pytest.raises(Unavailable):
            await put(saver, given)
        assert await saver.aget_tuple(given) is None
        given = config("paused", lambda: True)
        await put(saver, given)
        assert await saver.aget_tuple(given) is not None


# -------------------------------------------------------------------- the database goes away


async def test_reading_a_thread_does_not_wait_for_a_frozen_postgres(
    launch: Launch, postgres: Postgres
) -> None:
    server = await launch(DATABASE_URL=postgres.url)
    await server.run("hi", thread_id="frozen")
    postgres.freeze()
    try:
        status, _ = await asyncio.wait_for(server.call("GET", "/api/threads/frozen"), FEW_S)
        assert status == 503
        refused = await asyncio.wait_for(refusal(server, "hi", thread_id="frozen"), FEW_S)
        assert refused == (503, "unavailable")
    finally:
        postgres.thaw()
    await until_health(server, "ok")
    assert (await server.run("hi", thread_id="frozen"))[-1]["reason"] == "completed"


async def test_a_run_ends_though_postgres_is_frozen(
    launch: Launch, upstream: Upstream, postgres: Postgres
) -> None:
    go = asyncio.Event()
    upstream.replies = [[*text("Hel"), go, *text("lo")], text("Fine.")]
    server = await launch(DATABASE_URL=postgres.url, OPENAI_BASE_URL=upstream.url)
    stream = await server.ask("hi", thread_id="frozen-run")
    await stream.until("text_delta")
    await until_saved(postgres.url, "frozen-run")
    postgres.freeze()
    try:
        go.set()
        events = await asyncio.wait_for(stream.events(), 2 * FEW_S)
        assert (events[-2]["code"], events[-1]["reason"]) == ("agent_error", "error")
    finally:
        postgres.thaw()
    await until_health(server, "ok")
    assert (await server.run("again", thread_id="frozen-run"))[-2]["content"] == "Fine."


async def test_shutdown_does_not_wait_for_a_frozen_postgres(
    launch: Launch, upstream: Upstream, postgres: Postgres
) -> None:
    upstream.replies = [[*text("Hel"), STALL]]
    server = await launch(
        DATABASE_URL=postgres.url, OPENAI_BASE_URL=upstream.url, SHUTDOWN_GRACE_S="0"
    )
    stream = await server.ask("hi")
    await stream.until("text_delta")
    postgres.freeze()
    try:
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert (await stream.events())[-1]["reason"] == "shutdown"
        assert await asyncio.wait_for(server.process.wait(), 20) == 0
        assert time.monotonic() - began < 2 + FEW_S / 3
    finally:
        postgres.thaw()


async def test_postgres_comes_back_and_its_threads_with_it(
    launch: Launch, upstream: Upstream, postgres: Postgres
) -> None:
    go = asyncio.Event()
    upstream.replies = [text("One."), [*text("Tw"), go, *text("o.")], text("Three.")]
    server = await launch(DATABASE_URL=postgres.url, OPENAI_BASE_URL=upstream.url)
    await server.run("first", thread_id="back")
    stream = await server.ask("second", thread_id="back")
    await stream.until("text_delta")
    await asyncio.to_thread(postgres.stop)
    await until_health(server, "degraded")
    assert await refusal(server, "hi") == (503, "unavailable")
    go.set()
    events = await stream.events()
    assert (events[-2]["code"], events[-1]["reason"]) == ("agent_error", "error")
    assert "postgres" not in str(events) and "connection" not in str(events)
    status, document = await server.call("GET", "/api/threads/back")
    assert (status, document["error"]["code"]) == (503, "unavailable")
    await asyncio.to_thread(postgres.start)
    began = time.monotonic()
    await until_health(server, "ok")
    events = await server.run("third", thread_id="back")
    assert time.monotonic() - began < 5 + FEW_S / 3
    assert events[-2]["content"] == "Three."
    kept = await contents(server, "back")
    assert (kept[:2], kept[-2:]) == (["first", "One."], ["third", "Three."])


# ------------------------------------------------------------------------------ the settings

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def start_failing(**environ: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "app.py"), "--port=0"],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "module"),
    [
        ("REDIS_URL", "redis://x", "redis"),
        ("DATABASE_URL", "sqlite:///x", "langgraph.checkpoint.sqlite"),
        ("DATABASE_URL", "postgresql://x", "langgraph.checkpoint.postgres"),
        ("DATABASE_URL", "postgresql://x", "psycopg"),
        ("DATABASE_URL", "postgresql://x", "psycopg_pool"),
    ],
)
def test_a_missing_package_is_named(tmp_path: Path, variable: str, value: str, module: str) -> None:
    # Python imports a module of this name before all else.
    (tmp_path / "sitecustomize.py").write_text(BLOCKER.format(module=module))
    line = start_failing(PYTHONPATH=str(tmp_path), **{variable: value})
    assert line.startswith(f"{variable} wants the package of {module}: ")
    assert "deploy/requirements.txt" in line


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("REDIS_URL", "redis://:hunter2@127.0.0.1:1"),
        ("REDIS_URL", "http://:hunter2@127.0.0.1"),
        ("DATABASE_URL", "postgresql://x:hunter2@127.0.0.1:1/x"),
        ("DATABASE_URL", "mysql://x:hunter2@127.0.0.1:1/x"),
        ("DATABASE_URL", "sqlite:////no/such/folder/hunter2"),
    ],
)
def test_an_engine_that_cannot_be_reached_stops_the_start_without_its_password(
    variable: str, value: str
) -> None:
    line = start_failing(**{variable: value})
    assert line.startswith(f"{variable} wants ")
    assert "hunter2" not in line
