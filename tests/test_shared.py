"""Several replicas on one Redis and one database: real servers, killed, stopped and started."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientPayloadError
from deepagents import create_deep_agent

from agent import Agent
from tests import test_chaos, test_clients
from tests.chaotic import HOLD, ChaoticUpstream
from tests.client import Client, Stream, check, joined
from tests.conftest import ROOT, Process, Server
from tests.engines import Postgres, RedisServer, Relay, free_ports
from tests.raw import SEED, Raw, assert_clean, request, seconds
from tests.scripted import ScriptedModel, call, scripted_agent
from tests.test_agent import broken
from tests.test_chaos import CUTS, SETTINGS, Chaos
from tests.upstream import STALL, Upstream, text

Launch = Callable[..., Awaitable[Process]]
RETRY = b"retry: 2000\n\n"

# Fixtures, not imported by name, since an argument of that name would shadow the import.
chaotic, nginx = test_chaos.chaotic, test_clients.nginx

FEW_S = 15
"""The few seconds within which a dead replica's runs have to be told to be over."""


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that may be stopped, and then has forgotten."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def durable_redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path, durable=True)
    server.start()
    yield server
    server.stop()


async def pair(launch: Launch, redis: RedisServer, **environ: str) -> list[Process]:
    """Start two replicas."""
    return [await launch(REDIS_URL=redis.url, **environ) for _ in range(2)]


def bare(stream: Stream) -> bytes:
    """A stream's bytes without heartbeats."""
    return stream.raw.replace(b": heartbeat\n\n", b"")


async def refusal(server: Client, body: dict[str, Any], **headers: str) -> tuple[int, str]:
    status, document = await server.call("POST", "/api/chat", json=body, headers=headers)
    return status, document["error"]["code"]


async def contents(server: Client, thread_id: str) -> list[str]:
    _, thread = await server.call("GET", f"/api/threads/{thread_id}")
    return [message["content"] for message in thread["messages"]]


async def until_kept(server: Client, thread_id: str) -> None:
    """Wait for the checkpoint that has the question."""
    while not await contents(server, thread_id):
        await asyncio.sleep(0.01)  # Nothing else tells.


async def until(server: Client, status: str) -> None:
    """Wait for what only /healthz tells."""
    async with asyncio.timeout(FEW_S):
        while (await server.call("GET", "/healthz"))[1]["status"] != status:
            await asyncio.sleep(0.05)


# ----------------------------------------------------------------------------- any replica will do


async def test_a_run_is_read_and_resumed_on_any_replica(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    go = asyncio.Event()
    upstream.replies = [[*text("Hel"), go, *text("lo")]]
    one, other = await pair(launch, redis, OPENAI_BASE_URL=upstream.url)
    first = await one.ask("hi", thread_id="t")
    run_id = (await first.until("start"))["run_id"]
    delta = await first.until("text_delta")
    resumed = await other.follow(run_id, after=first.ids[-1])
    whole = await other.follow(run_id)
    assert (await whole.until("text_delta")) == delta
    _, state = await other.call("GET", f"/api/runs/{run_id}")
    assert state == (await one.call("GET", f"/api/runs/{run_id}"))[1]
    assert (state["status"], state["thread_id"]) == ("running", "t")
    seen = first.ids[-1]
    go.set()
    await joined(first, resumed, whole)
    assert first.raw == whole.raw
    assert (
        resumed.raw.removeprefix(RETRY)
        == first.raw.partition(f"id: {seen + 1}\n".encode())[1]
        + (first.raw.partition(f"id: {seen + 1}\n".encode())[2])
    )
    states = [(await server.call("GET", f"/api/runs/{run_id}"))[1] for server in (one, other)]
    assert states[0] == states[1]
    assert (states[0]["status"], states[0]["answer"]) == ("completed", "Hello")
    end = {"Last-Event-ID": str(first.ids[-1])}
    assert (await other.call("GET", f"/api/runs/{run_id}/events", headers=end))[0] == 204
    late = await other.follow(run_id)
    await late.events()
    assert late.raw == first.raw


async def test_every_event_can_be_resumed_on_the_other_replica_at_once(
    launch: Launch, redis: RedisServer
) -> None:
    """Whoever has read an event here may ask for what follows it there."""
    one, other = await pair(launch, redis, DEMO_TOKENS_PER_S="200")
    stream = await one.ask("What can you do?")
    run_id, servers, after = (await stream.until("start"))["run_id"], [other, one], 1
    raw = stream.raw
    stream.close()
    while not raw.endswith(b"}\n\n") or b"event: done" not in raw:
        stream = await servers[0].follow(run_id, after)
        async for _ in stream:
            break
        raw += stream.raw.removeprefix(RETRY)
        after = stream.ids[-1]
        stream.close()
        servers.reverse()
    whole = await one.follow(run_id)
    check(await whole.events())
    assert whole.raw == raw


async def test_hundreds_of_runs_start_at_once_and_are_followed_on_the_other_replica(
    launch: Launch, redis: RedisServer
) -> None:
    one, other = await pair(launch, redis, MAX_RUNS="300", DEMO_TOKENS_PER_S="0")
    streams = await asyncio.gather(*(one.ask("wait 2") for _ in range(250)))
    run_ids = [(await stream.until("start"))["run_id"] for stream in streams]
    followed = await asyncio.gather(*(other.follow(run_id) for run_id in run_ids))
    ended = await joined(*streams, *followed)
    assert {events[-1]["reason"] for events in ended} == {"completed"}
    for stream, copy in zip(streams, followed, strict=True):
        assert bare(stream) == bare(copy)


async def test_a_run_is_cancelled_from_the_other_replica(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    upstream.replies = [[*text("Hel"), STALL], text("Whole.")]
    one, other = await pair(launch, redis, OPENAI_BASE_URL=upstream.url)
    stream = await one.ask("hi", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    await stream.until("text_delta")
    status, state = await other.call("POST", f"/api/runs/{run_id}/cancel")
    assert (status, state["status"]) == (202, "cancelled")
    await upstream.dropped.wait()
    assert [e["type"] for e in await stream.events()] == ["done"]
    assert (await other.call("POST", f"/api/runs/{run_id}/cancel"))[0] == 200


async def test_a_thread_has_one_run_on_all_replicas(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    go = asyncio.Event()
    upstream.replies = [[go, *text("Hello")], text("again")]
    one, other = await pair(launch, redis, OPENAI_BASE_URL=upstream.url)
    stream = await one.ask("hi", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    status, document = await other.call(
        "POST", "/api/chat", json={"message": "hi", "thread_id": "t"}
    )
    assert (status, document["error"]["code"]) == (409, "thread_busy")
    assert document["error"]["run_id"] == run_id
    assert (await other.call("DELETE", "/api/threads/t"))[0] == 409
    assert (await other.call("GET", "/api/threads/t"))[1]["run_id"] == run_id
    go.set()
    await stream.until("done")
    # It is free wherever its reader sends the next turn.
    assert (await other.run("again", thread_id="t"))[-1]["reason"] == "completed"


async def test_the_same_key_on_both_at_once_is_one_run(launch: Launch, redis: RedisServer) -> None:
    servers = await pair(launch, redis)
    for n in range(10):
        headers = {"Idempotency-Key": f"}}key{n}{{"}
        asking = (server.ask("6 * 7", headers=headers) for server in servers * 2)
        streams = await asyncio.gather(*asking)
        await joined(*streams)
        assert len({stream.raw for stream in streams}) == 1
        for server in servers:
            assert await refusal(server, {"message": "7 * 6"}, **headers) == (
                *(409, "idempotency_conflict"),
            )


async def test_a_key_whose_run_was_refused_can_be_used_on_the_other(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    upstream.replies = [[STALL], text("Hello")]
    one, other = await pair(launch, redis, OPENAI_BASE_URL=upstream.url, MAX_RUNS="1")
    stream = await one.ask("hi")
    await stream.until("start")
    headers = {"Idempotency-Key": "k"}
    assert await refusal(one, {"message": "ho"}, **headers) == (503, "too_many_runs")
    # Each replica counts its own.
    events = await other.run("ho", headers=headers)
    assert events[-2]["content"] == "Hello"


async def test_a_reader_on_another_replica_keeps_a_run_going_and_its_leaving_ends_it(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    upstream.replies = [[*text("Hel"), STALL]]
    one, other = await pair(
        launch, redis, OPENAI_BASE_URL=upstream.url, DISCONNECT_GRACE_S="0.5", HEARTBEAT_S="0.2"
    )
    stream = await one.ask("hi")
    run_id = (await stream.until("start"))["run_id"]
    away = await other.follow(run_id)
    await away.until("text_delta")
    stream.close()
    while away.heartbeats < 25:  # Longer than the grace and than a visit is believed in.
        await away.response.content.readuntil(b": heartbeat\n\n")
        away.heartbeats += 1
    assert not upstream.dropped.is_set()
    away.close()
    async with asyncio.timeout(3.2):  # Less than a visit that nobody ends is believed in.
        await upstream.dropped.wait()
    assert (await other.call("GET", f"/api/runs/{run_id}"))[1]["status"] in ("running", "cancelled")


async def test_an_ended_run_expires_everywhere(launch: Launch, redis: RedisServer) -> None:
    one, other = await pair(launch, redis, RUN_TTL_S="1")
    run_id = (await one.run("6 * 7"))[0]["run_id"]
    for server in (one, other):
        while (await server.call("GET", f"/api/runs/{run_id}"))[0] == 200:
            await asyncio.sleep(0.05)  # Nothing else tells.
    with redis.client() as client:
        assert [key for key in client.keys() if b":run:" in key] == []  # noqa: SIM118


async def test_each_key_has_a_hash_tag_and_ends_by_itself(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    upstream.replies = [[*text("Hel"), STALL]]
    one, other = await pair(launch, redis, OPENAI_BASE_URL=upstream.url)
    stream = await one.ask("hi", thread_id="t", headers={"Idempotency-Key": "k"})
    away = await other.follow((await stream.until("start"))["run_id"])
    await away.until("text_delta")
    with redis.client() as client:
        keys = client.keys()
        kinds = {key.split(b":")[1] for key in keys}
        assert {b"run", b"lease", b"thread", b"key"} <= kinds
        for key in keys:
            assert re.fullmatch(rb"chat:\w+:\{[^{}]+\}", key), key
            assert client.pttl(key) > 0, key


# --------------------------------------------------------------------------------- a replica dies


async def test_the_readers_of_a_dead_replica_are_told_and_its_thread_goes_on(
    launch: Launch, upstream: Upstream, redis: RedisServer, tmp_path: Path
) -> None:
    upstream.replies = [[*text("Hel"), STALL], text("Whole.")]
    environ = {"OPENAI_BASE_URL": upstream.url, "DATABASE_URL": f"sqlite:///{tmp_path}/chat.db"}
    one, other = await pair(launch, redis, **environ)
    third = await launch(REDIS_URL=redis.url, **environ)
    stream = await one.ask("hi", thread_id="t", headers={"Idempotency-Key": "k"})
    run_id = (await stream.until("start"))["run_id"]
    await stream.until("text_delta")
    readers = [await server.follow(run_id) for server in (other, third, other)]
    await until_kept(other, "t")
    one.process.kill()
    began = time.monotonic()
    for events in await asyncio.wait_for(joined(*readers), FEW_S):
        check(events)
        assert [event["type"] for event in events[-2:]] == ["error", "done"]
        assert (events[-2]["code"], events[-2]["retryable"]) == ("shutdown", True)
        assert events[-1]["reason"] == "shutdown"
        assert 0 <= events[-1]["timings"]["first_token_ms"] <= events[-1]["timings"]["total_ms"]
        assert events[-1]["timings"]["total_ms"] < 1000 * (time.monotonic() - began) + 5000
    assert readers[0].raw == readers[1].raw == readers[2].raw
    joining = await third.ask("hi", thread_id="t", headers={"Idempotency-Key": "k"})
    await joining.events()
    assert joining.raw == readers[0].raw
    for server in (other, third):
        _, state = await server.call("GET", f"/api/runs/{run_id}")
        assert (state["status"], state["answer"]) == ("shutdown", None)
    assert (await other.run("again", thread_id="t"))[-2]["content"] == "Whole."
    assert await contents(third, "t") == ["hi", "Hel", "again", "Whole."]


async def test_a_replica_that_has_just_started_knows_which_runs_have_ended(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    upstream.replies = [[*text("Hel"), STALL], text("Whole.")]
    one, other = await pair(launch, redis, OPENAI_BASE_URL=upstream.url)
    stream = await one.ask("hi", thread_id="t")
    away = await other.follow((await stream.until("start"))["run_id"])
    await away.until("text_delta")
    one.process.kill()
    assert (await away.until("done"))["reason"] == "shutdown"
    late = await launch(REDIS_URL=redis.url, OPENAI_BASE_URL=upstream.url)
    assert (await late.run("again", thread_id="t"))[-2]["content"] == "Whole."


async def test_open_tool_calls_of_a_dead_replica_are_closed(
    launch: Launch, redis: RedisServer
) -> None:
    one, other = await pair(launch, redis)
    stream = await one.ask("wait 10 seconds")
    run_id = (await stream.until("start"))["run_id"]
    await stream.until("tool_progress")
    one.process.kill()
    # Nobody reads; whoever asks for it is told.
    async with asyncio.timeout(FEW_S):
        while (await other.call("GET", f"/api/runs/{run_id}"))[1]["status"] == "running":
            await asyncio.sleep(0.1)  # Nothing else tells.
    events = await (await other.follow(run_id)).events()
    check(events)
    assert events[-3]["status"] == "cancelled"


async def test_a_thread_of_a_dead_replica_takes_its_next_turn_though_nobody_reads(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    upstream.replies = [[STALL], text("Whole.")]
    one, other = await pair(launch, redis, OPENAI_BASE_URL=upstream.url)
    stream = await one.ask("hi", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    await upstream.stalling.wait()
    one.process.kill()
    body = {"message": "again", "thread_id": "t"}
    assert await refusal(other, body) == (409, "thread_busy")  # It is not yet known to be dead.
    async with asyncio.timeout(FEW_S):
        while (await other.call("GET", "/api/threads/t"))[1].get("run_id") == run_id:
            await asyncio.sleep(0.1)  # Nothing else tells.
    assert (await other.run("again", thread_id="t"))[-2]["content"] == "Whole."
    check(await (await other.follow(run_id)).events())


@pytest.mark.parametrize("writes_on", [False, True])
async def test_a_replica_that_was_believed_dead_adopts_what_was_told(
    launch: Launch, upstream: Upstream, redis: RedisServer, postgres: Postgres, writes_on: bool
) -> None:
    """Also where its graph would end with an answer, which nobody wants any more."""
    go = asyncio.Event()
    upstream.replies = [[*text("Hel"), go, *text("lo"), STALL], text("Whole.")]
    if writes_on:
        upstream.replies[0].pop()
    # Not SQLite, whose lock a stopped process may hold.
    environ = {"OPENAI_BASE_URL": upstream.url, "DATABASE_URL": postgres.url}
    one, other = await pair(launch, redis, **environ)
    thread_id = f"believed-{writes_on}"
    stream = await one.ask("hi", thread_id=thread_id)
    run_id = (await stream.until("start"))["run_id"]
    await stream.until("text_delta")
    await until_kept(other, thread_id)
    one.process.send_signal(signal.SIGSTOP)
    away = await other.follow(run_id)
    await asyncio.wait_for(away.events(), FEW_S)
    assert b'"reason":"shutdown"' in away.raw
    assert (await other.run("again", thread_id=thread_id))[-2]["content"] == "Whole."
    go.set()
    one.process.send_signal(signal.SIGCONT)
    await stream.events()
    assert bare(stream) == bare(away)
    if not writes_on:
        await asyncio.wait_for(upstream.dropped.wait(), FEW_S)
    await until(one, "ok")
    while (await one.call("GET", "/healthz"))[1]["running"]:
        pass
    assert (await one.call("GET", f"/api/runs/{run_id}"))[1]["status"] == "shutdown"
    assert await contents(other, thread_id) == ["hi", "Hel", "again", "Whole."]


async def test_a_replica_that_is_cut_off_leaves_the_thread_to_whoever_took_it_over(
    launch: Launch, upstream: Upstream, redis: RedisServer, postgres: Postgres
) -> None:
    go = asyncio.Event()
    upstream.replies = [[*text("Hel"), go, *text("lo")], text("Whole.")]
    environ = {"OPENAI_BASE_URL": upstream.url, "DATABASE_URL": postgres.url}
    async with Relay(redis.port) as relay:
        one = await launch(REDIS_URL=relay.url, **environ)
        other = await launch(REDIS_URL=redis.url, **environ)
        stream = await one.ask("hi", thread_id="cut-off")
        run_id = (await stream.until("start"))["run_id"]
        await stream.until("text_delta")
        await until_kept(other, "cut-off")
        relay.open.clear()
        away = await other.follow(run_id)
        await asyncio.wait_for(away.events(), FEW_S)
        assert (await other.run("again", thread_id="cut-off"))[-2]["content"] == "Whole."
        go.set()
        await until(one, "degraded")
        relay.open.set()
        await until(one, "ok")
        while (await one.call("GET", "/healthz"))[1]["running"]:
            await asyncio.sleep(0.05)  # Nothing else tells.
    assert await contents(other, "cut-off") == ["hi", "Hel", "again", "Whole."]


async def test_a_run_that_redis_may_have_heard_of_is_told_to_its_end_though_it_was_refused(
    launch: Launch, redis: RedisServer
) -> None:
    async with Relay(redis.port) as relay:
        server = await launch(REDIS_URL=relay.url)
        relay.closes_at = b"event: start"
        assert await refusal(server, {"message": "hi"}) == (503, "unavailable")
        relay.open.set()
        await until(server, "ok")
        with redis.client() as client:
            (key,) = client.keys("chat:run:*")
        run_id = key.decode().partition("{")[2].rstrip("}")
        events = await asyncio.wait_for((await server.follow(run_id)).events(), FEW_S)
    check(events)
    assert [event["type"] for event in events] == ["start", "error", "done"]
    assert events[-1]["reason"] == "shutdown"


async def test_a_deleted_conversation_of_a_dead_replica_stays_deleted(
    launch: Launch, upstream: Upstream, redis: RedisServer, postgres: Postgres
) -> None:
    upstream.replies = [[*text("Secret"), STALL], text("Fresh.")]
    environ = {"OPENAI_BASE_URL": upstream.url, "DATABASE_URL": postgres.url}
    one, other = await pair(launch, redis, **environ)
    stream = await one.ask("hi", thread_id="deleted")
    await stream.until("text_delta")
    one.process.kill()
    while (await other.call("DELETE", "/api/threads/deleted"))[0] != 204:
        await asyncio.sleep(0.1)  # Nothing else tells.
    await other.run("new", thread_id="deleted")
    await other.run("again", thread_id="deleted")
    assert await contents(other, "deleted") == ["new", "Fresh.", "again", "Fresh."]


async def test_a_run_that_died_is_not_resumed(
    launch: Launch, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.replies = [[*text("Hel"), STALL], text("Again.")]
    environ = {
        "OPENAI_BASE_URL": upstream.url,
        "DATABASE_URL": f"sqlite:///{tmp_path / 'chat.db'}",
    }
    server = await launch(**environ)
    stream = await server.ask("hi", thread_id="t")
    await stream.until("text_delta")
    await until_kept(server, "t")
    server.process.kill()
    await server.process.wait()
    server = await launch(**environ)
    assert await refusal(server, {"resume": True, "thread_id": "t"}) == (400, "nothing_to_resume")


async def test_a_replica_that_shuts_down_tells_its_readers_elsewhere(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    upstream.replies = [[*text("Hel"), STALL]]
    one, other = await pair(launch, redis, OPENAI_BASE_URL=upstream.url, SHUTDOWN_GRACE_S="0.2")
    stream = await one.ask("hi")
    away = await other.follow((await stream.until("start"))["run_id"])
    await away.until("text_delta")
    one.process.send_signal(signal.SIGTERM)
    assert [e["type"] for e in await away.events()] == ["error", "done"]
    assert await asyncio.wait_for(one.process.wait(), 30) == 0


# ---------------------------------------------------------------------------- an engine goes away


@pytest.mark.parametrize("durable", [False, True])
async def test_redis_comes_back_in_the_middle_of_a_run_and_nothing_is_lost(
    launch: Launch, upstream: Upstream, tmp_path: Path, durable: bool
) -> None:
    redis = RedisServer(tmp_path, durable=durable)
    redis.start()
    try:
        pause, go = asyncio.Event(), asyncio.Event()
        upstream.replies = [[*text("Hel"), pause, *text("lo "), go, *text("you")], text("next")]
        one, other = await pair(launch, redis, OPENAI_BASE_URL=upstream.url, HEARTBEAT_S="0.2")
        stream = await one.ask("hi", thread_id="t")
        run_id = (await stream.until("start"))["run_id"]
        away = await other.follow(run_id)
        await stream.until("text_delta")
        await away.until("text_delta")
        await asyncio.to_thread(redis.stop)
        pause.set()  # What the model says now waits for Redis.
        await until(one, "degraded")
        await until(other, "degraded")
        assert (await one.call("GET", "/healthz"))[0] == 200
        for server in (one, other):
            assert await refusal(server, {"message": "hi"}) == (503, "unavailable")
        beats = stream.heartbeats
        while stream.heartbeats < beats + 1:
            await stream.response.content.readuntil(b": heartbeat\n\n")
            stream.heartbeats += 1
        await asyncio.to_thread(redis.start)
        await until(one, "ok")
        await until(other, "ok")
        assert await refusal(other, {"message": "hi", "thread_id": "t"}) == (409, "thread_busy")
        go.set()
        events, _ = await joined(stream, away)
        assert events[-2]["content"] == "Hello you"
        assert bare(stream) == bare(away)
        late = await other.follow(run_id)
        check(await late.events())
        assert bare(late) == bare(stream)
        assert (await other.run("again", thread_id="t"))[-2]["content"] == "next"
    finally:
        redis.stop()


async def test_while_redis_stays_away_runs_end_and_are_told_when_it_is_back(
    launch: Launch, upstream: Upstream, own_redis: RedisServer
) -> None:
    upstream.replies = [[*text("Hel"), STALL], text("Whole.")]
    one, other = await pair(launch, own_redis, OPENAI_BASE_URL=upstream.url, HEARTBEAT_S="0.2")
    stream = await one.ask("hi", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    away = await other.follow(run_id)
    await away.until("text_delta")
    await asyncio.to_thread(own_redis.stop)
    for reader in (stream, away):
        with pytest.raises(Exception, match="payload|closed|reset|aborted"):
            await asyncio.wait_for(reader.events(), 30)
        assert b"event: done" not in reader.raw
    await asyncio.wait_for(upstream.dropped.wait(), FEW_S)
    for server in (one, other):
        status, document = await server.call("GET", f"/api/runs/{run_id}/events")
        assert (status, document["error"]["code"]) == (503, "unavailable")
    await asyncio.to_thread(own_redis.start)
    await until(one, "ok")
    await until(other, "ok")
    told = [await server.follow(run_id) for server in (one, other)]
    for events in await joined(*told):
        check(events)
        assert (events[-2]["code"], events[-1]["reason"]) == ("shutdown", "shutdown")
    assert told[0].raw == told[1].raw
    assert told[0].raw.startswith(bare(stream))
    assert (await other.run("again", thread_id="t"))[-2]["content"] == "Whole."
    assert "Traceback" not in one.log()


@pytest.mark.parametrize("how", ["stop", "freeze"])
async def test_shutdown_does_not_wait_for_redis(
    launch: Launch, upstream: Upstream, own_redis: RedisServer, how: str
) -> None:
    upstream.replies = [[*text("Hel"), STALL]]
    server = await launch(
        REDIS_URL=own_redis.url, OPENAI_BASE_URL=upstream.url, SHUTDOWN_GRACE_S="0"
    )
    stream = await server.ask("hi")
    await stream.until("text_delta")
    await asyncio.to_thread(getattr(own_redis, how))
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(server.process.wait(), 20) == 0
    assert (
        time.monotonic() - began < 10
    )  # Two seconds are what it may take, on a machine of its own.


async def test_a_full_redis_cuts_its_readers_and_is_recovered_from(
    launch: Launch, upstream: Upstream, own_redis: RedisServer
) -> None:
    """Its lease still fits, so that it seems to be there."""
    go = asyncio.Event()
    upstream.replies = [[*text("Hel"), go, *text("x" * 200_000), STALL], text("Fine.")]
    server = await launch(REDIS_URL=own_redis.url, OPENAI_BASE_URL=upstream.url)
    stream = await server.ask("hi")
    await stream.until("text_delta")
    with own_redis.client() as client:
        full = client.info()["used_memory"] + 20_000
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", full)
        go.set()
        with pytest.raises(ClientPayloadError):
            await asyncio.wait_for(stream.events(), 15)
        client.config_set("maxmemory", 0)
    await until(server, "ok")
    assert (await server.run("hi"))[-2]["content"] == "Fine."
    assert server.log().count("Redis is away") < 60


async def test_reading_a_thread_does_not_wait_for_a_frozen_postgres(
    launch: Launch, postgres: Postgres
) -> None:
    server = await launch(DATABASE_URL=postgres.url)
    await server.run("hi", thread_id="frozen")
    postgres.freeze()
    try:
        status, _ = await asyncio.wait_for(server.call("GET", "/api/threads/frozen"), 15)
        assert status == 503
    finally:
        postgres.thaw()


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
        assert time.monotonic() - began < 10
    finally:
        postgres.thaw()


async def test_postgres_comes_back_and_its_threads_with_it(
    launch: Launch, upstream: Upstream, postgres: Postgres
) -> None:
    go = asyncio.Event()
    upstream.replies = [text("One."), [*text("Tw"), go, *text("o.")], text("Three.")]
    server = await launch(DATABASE_URL=postgres.url, OPENAI_BASE_URL=upstream.url)
    await server.run("first", thread_id="t")
    stream = await server.ask("second", thread_id="t")
    await stream.until("text_delta")
    await asyncio.to_thread(postgres.stop)
    await until(server, "degraded")
    go.set()
    events = await stream.events()
    assert (events[-2]["code"], events[-1]["reason"]) == ("agent_error", "error")
    assert "postgres" not in str(events) and "connection" not in str(events)
    status, document = await server.call("GET", "/api/threads/t")
    assert (status, document["error"]["code"]) == (503, "unavailable")
    await asyncio.to_thread(postgres.start)
    await until(server, "ok")
    events = await server.run("third", thread_id="t")
    assert events[-2]["content"] == "Three."
    _, thread = await server.call("GET", "/api/threads/t")
    assert [m["content"] for m in thread["messages"]][:2] == ["first", "One."]
    assert [m["content"] for m in thread["messages"]][-2:] == ["third", "Three."]


# ------------------------------------------------------------------------- what outlives a restart


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres").url)
    return f"sqlite:///{tmp_path / 'chat.db'}"


async def test_a_nul_that_a_graph_keeps_does_not_break_its_thread(
    launch: Launch, database_url: str
) -> None:
    server = await launch(
        DATABASE_URL=database_url, AGENT="tests.agents:noting", PYTHONPATH=str(ROOT)
    )
    for said in ("a\0b", "c"):
        events = await server.run(said, thread_id="nul")
        assert events[-2]["content"] == f"Noted: {said}"


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
    check(events)
    assert "84" in events[-2]["content"]
    assert (await server.call("DELETE", "/api/threads/t"))[0] == 204
    assert (await server.call("GET", "/api/threads/t"))[0] == 404


async def test_another_server_tells_a_failed_tool_without_its_exception(
    start: Callable[..., Awaitable[Server]], tmp_path: Path
) -> None:
    url, go = f"sqlite:///{tmp_path}/chat.db", asyncio.Event()
    script: list[list[Any]] = [call("broken", "{}", "c1"), [go, "sorry"]]
    one = await start(scripted_agent(script, [broken], handle_tool_errors=True), database_url=url)
    other = await start(scripted_agent([]), database_url=url)
    stream = await one.ask("go", thread_id="t")
    failed = await stream.until("tool_result")

    async def told(server: Server) -> list[Any]:
        _, thread = await server.call("GET", "/api/threads/t")
        messages = thread.get("messages", [])  # There may be no thread yet.
        return [m["message"] for m in messages if m["role"] == "tool"]

    while not await told(other):
        await asyncio.sleep(0.01)  # Nothing tells when a checkpoint is written.
    assert await told(one) == await told(other) == [failed["message"]]
    go.set()
    await stream.events()
    assert await told(one) == await told(other) == [failed["message"]]


async def test_a_thread_that_was_forgotten_elsewhere_is_unknown(
    launch: Launch, redis: RedisServer, tmp_path: Path
) -> None:
    servers = await pair(launch, redis, DATABASE_URL=f"sqlite:///{tmp_path}/chat.db")
    await servers[0].run("6 * 7", thread_id="t")
    deleted = [await server.call("DELETE", "/api/threads/t") for server in reversed(servers)]
    assert [status for status, _ in deleted] == [204, 404]


async def test_a_deep_agent_remembers_every_turn(
    start: Callable[..., Awaitable[Server]], database_url: str
) -> None:
    """Its messages are a delta channel, whose value only its older checkpoints have."""
    model = ScriptedModel(script=[["One."], ["Two."], ["Three."]])
    server = await start(Agent(create_deep_agent(model), "x"), database_url=database_url)
    for question in ("a", "b", "c"):
        await server.run(question, thread_id="deep")
    _, thread = await server.call("GET", "/api/threads/deep")
    told = [message["content"] for message in thread["messages"]]
    assert told == ["a", "One.", "b", "Two.", "c", "Three."]


async def test_a_thread_does_not_grow_with_its_square(launch: Launch, database_url: str) -> None:
    import sqlite3

    import psycopg

    server = await launch(DATABASE_URL=database_url)
    for _ in range(3):
        await server.run("6 * 7", thread_id="t")
    connection: Any
    if file := re.match("sqlite:///(.*)", database_url):
        connection = sqlite3.connect(file[1])
    else:
        connection = psycopg.connect(database_url)
    with connection:
        count = "SELECT count(*) FROM checkpoints WHERE thread_id = 't'"
        assert connection.execute(count).fetchone() == (1,)
    connection.close()


# ----------------------------------------------------------------------------------- the settings

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
    ("variable", "value", "module", "package"),
    [
        ("REDIS_URL", "redis://x", "redis", "redis"),
        (
            "DATABASE_URL",
            "sqlite:///x",
            "langgraph.checkpoint.sqlite",
            "langgraph-checkpoint-sqlite",
        ),
        *(
            ("DATABASE_URL", "postgresql://x", module, package)
            for module, package in (
                ("langgraph.checkpoint.postgres", "langgraph-checkpoint-postgres"),
                ("psycopg", "psycopg[binary,pool]"),
                ("psycopg_pool", "psycopg[binary,pool]"),
            )
        ),
    ],
)
def test_a_missing_package_is_named(
    tmp_path: Path, variable: str, value: str, module: str, package: str
) -> None:
    # Python imports a module of this name before all else.
    (tmp_path / "sitecustomize.py").write_text(BLOCKER.format(module=module))
    line = start_failing(PYTHONPATH=str(tmp_path), **{variable: value})
    assert line.startswith(f"{variable} wants the package {package}: ")


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


# ------------------------------------------------------------------------------- all of it at once


class Gateway(Client):
    """The proxy before the replicas: one that has just died, or that a pause of the machine cut off
    from Redis, is asked in vain."""

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        while True:
            async with self.session.request(method, path, **options) as response:
                if response.status not in (502, 503, 504):
                    body = await response.read()
                    return response.status, json.loads(body) if body else None


class MortalRaw(Raw):
    async def head(self) -> int:
        status = await super().head()
        if status in (502, 504) or (status == 503 and await self.code() == "unavailable"):
            self.cut()
            raise ConnectionResetError
        return status

    async def code(self) -> str:
        """Return a refusal's code."""
        code: str = (await self.json())["error"]["code"]
        return code


class MortalChaos(Chaos):
    """Chaos over replicas that die: who is cut may leave, and who comes back misses nothing."""

    survived = 0

    async def send(self, data: bytes, window: int = 0) -> Raw:
        self._raws.append(await MortalRaw.open(self.server.url, data, window))
        return self._raws[-1]

    async def _visit(self, number: int) -> None:
        with suppress(*CUTS):
            await super()._visit(number)

    async def whole(self, run_id: str) -> list[bytes]:
        while True:
            with suppress(*CUTS):
                return await super().whole(run_id)

    async def visit_and_persist(self, rng: random.Random, body: dict[str, str]) -> None:
        if raw := await self.ask(body):
            await self.persist(raw)

    async def hold(self, replica: Process) -> Raw:
        """Start a run on this replica that is read there and does not go on."""
        body = {"message": HOLD}
        while True:
            raw = await MortalRaw.open(replica.url, request("POST", "/api/chat", body))
            self._raws.append(raw)
            if await raw.head() == 200:
                self.watch(raw.run_id)
                await raw.read(3)
                return raw
            assert await raw.code() == "too_many_runs"
            await asyncio.sleep(0.05)  # Nothing else tells.

    async def persist(self, raw: Raw) -> None:
        """Read to the end, through every cut."""
        run_id, has, over = raw.run_id, 0, False
        while not over:
            try:
                over = await raw.read()
            except CUTS:
                self.survived += 1
            self.saw(run_id, raw, has, stayed=over)
            has += len(raw.frames)
            while not over:
                raw = await self.follow(run_id, has)
                with suppress(*CUTS):
                    status = await raw.head()
                    assert status in (200, 204)
                    over = status == 204
                    break

    visit_and_persist_too = visit_and_persist
    visit_and_persist_as_well = visit_and_persist


@pytest.mark.timeout(120 + 2 * seconds(0))
async def test_whoever_dies_no_reader_misses_or_repeats_an_event_and_each_run_ends_once(
    launch: Launch, nginx: Any, redis: RedisServer, postgres: Postgres, chaotic: ChaoticUpstream
) -> None:
    ports = free_ports(2)
    environ = {
        **SETTINGS,
        "OPENAI_BASE_URL": chaotic.url,
        "REDIS_URL": redis.url,
        "DATABASE_URL": postgres.url,
        "RUN_TTL_S": "10",
    }
    replicas = [await launch("--port", str(port), **environ) for port in ports]
    everyone = [*replicas]
    rng = random.Random(SEED)
    proxy = await nginx(*(replica.url for replica in replicas))
    async with Gateway(proxy.url) as gateway, MortalChaos(gateway) as chaos:  # type: ignore[arg-type]
        raging = asyncio.create_task(chaos.rage(seconds(16)))
        kills = 0
        while not raging.done():
            # Time for runs to begin on both, and for the readers of the dead one to be told.
            await asyncio.wait({raging}, timeout=5)
            if not raging.done():
                victim = rng.randrange(2)
                held = await chaos.hold(replicas[victim])
                replicas[victim].process.kill()
                kills += 1
                persisting = asyncio.create_task(chaos.persist(held))
                await asyncio.wait({raging}, timeout=rng.random())
                replicas[victim] = await launch("--port", str(ports[victim]), **environ)
                everyone.append(replicas[victim])
                await persisting
        await raging
        async with asyncio.timeout(20):
            for replica in replicas:
                while (await replica.call("GET", "/healthz"))[1]["running"]:
                    await asyncio.sleep(0.05)  # Nothing else tells.
    assert not chaotic.problems, f"CHAOS_SEED={SEED}: " + "\n".join(chaotic.problems[:20])
    for replica in everyone:
        assert_clean(replica.log())
    assert {"completed", "cancelled", "shutdown"} <= chaos.reasons.keys()
    assert chaos.survived >= kills > 0
    print(f"{chaos.survived} cuts survived, {chaos.reasons}")
