"""Several servers on one Redis: real processes that die or are paused, engines that go away."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from aiohttp import ClientError, ClientPayloadError

from edge.settings import Settings
from events import Asked, StreamEvent, Unavailable
from runs.redis import RedisStore, open_redis
from runs.run import Run
from tests import test_chaos, test_clients
from tests.chaotic import HOLD, ChaoticUpstream
from tests.client import Client, Stream, check, joined
from tests.conftest import Process
from tests.engines import Postgres, RedisServer, Relay, free_ports, until_saved
from tests.raw import SEED, Raw, assert_clean, request, seconds
from tests.test_chaos import CUTS, SETTINGS, Chaos
from tests.upstream import STALL, Upstream, text

pytestmark = pytest.mark.slow

Launch = Callable[..., Awaitable[Process]]
RETRY = b"retry: 2000\n\n"

# Fixtures, not imported by name: an argument of that name would shadow the import.
chaotic, nginx = test_chaos.chaotic, test_clients.nginx

FEW_S = 15
"""A bound for what takes three seconds on a machine that is not busy."""

POLL_S = 0.02


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that may be stopped, and then has forgotten."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def durable_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that may be stopped and remembers."""
    server = RedisServer(tmp_path, durable=True)
    server.start()
    yield server
    server.stop()


async def pair(launch: Launch, redis: RedisServer, **environ: str) -> list[Process]:
    """Start two servers."""
    return [await launch(REDIS_URL=redis.url, **environ) for _ in range(2)]


def bare(stream: Stream) -> bytes:
    """A stream's bytes without heartbeats."""
    return stream.raw.replace(b": heartbeat\n\n", b"")


async def refusal(server: Client, message: str, **fields: Any) -> tuple[int, str]:
    """Send a message that is refused; return status and code."""
    headers = fields.pop("headers", {})
    body = {"message": message, **fields}
    status, document = await server.call("POST", "/api/chat", json=body, headers=headers)
    return status, document["error"]["code"]


async def contents(server: Client, thread_id: str) -> list[str]:
    _, thread = await server.call("GET", f"/api/threads/{thread_id}")
    return [message["content"] for message in thread.get("messages", ())]


async def until(condition: Callable[[], Awaitable[Any]]) -> None:
    """Poll for what nothing announces."""
    async with asyncio.timeout(FEW_S):
        while not await condition():
            await asyncio.sleep(POLL_S)


async def until_health(server: Client, status: str) -> None:
    async def is_so() -> bool:
        return bool((await server.call("GET", "/healthz"))[1]["status"] == status)

    await until(is_so)


async def until_idle(server: Client) -> None:
    async def is_so() -> bool:
        return (await server.call("GET", "/healthz"))[1]["running"] == 0

    await until(is_so)


async def works_again(server: Client, began: float) -> list[dict[str, Any]]:
    """Send a message until it is answered: within five seconds after the engine is back."""
    while True:
        body = {"message": "again"}
        response = await server.session.post("/api/chat", json=body)
        if response.status == 200:
            events = await Stream(response).events()
            assert time.monotonic() - began < 5 + FEW_S / 3
            check(events)
            return events
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "unavailable"
        assert "Retry-After" in response.headers
        await asyncio.sleep(POLL_S)


async def cut(stream: Stream) -> None:
    """Read on until the connection breaks, without a `done`."""
    with pytest.raises((ClientError, ConnectionError)):
        await asyncio.wait_for(stream.events(), FEW_S)
    assert b"event: done" not in stream.raw


# ------------------------------------------------------------------------- any server will do


async def test_a_run_is_read_and_resumed_on_any_server(
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
    seen = first.raw
    go.set()
    await joined(first, resumed, whole)
    assert first.raw == whole.raw
    assert seen + resumed.raw.removeprefix(RETRY) == first.raw
    states = [(await server.call("GET", f"/api/runs/{run_id}"))[1] for server in (one, other)]
    assert states[0] == states[1]
    assert (states[0]["status"], states[0]["answer"]) == ("completed", "Hello")
    end = {"Last-Event-ID": str(first.ids[-1])}
    assert (await other.call("GET", f"/api/runs/{run_id}/events", headers=end))[0] == 204
    late = await other.follow(run_id)
    await late.events()
    assert late.raw == first.raw


async def test_every_event_can_be_resumed_on_the_other_server_at_once(
    launch: Launch, redis: RedisServer
) -> None:
    one, other = await pair(launch, redis, DEMO_TOKENS_PER_S="200")
    stream = await one.ask("What can you do?")
    run_id, servers, after = (await stream.until("start"))["run_id"], [other, one], 1
    raw = stream.raw
    stream.close()
    while b"event: done" not in raw:
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


async def test_a_reader_on_the_other_server_gets_an_event_at_most_100_ms_later(
    launch: Launch, redis: RedisServer
) -> None:
    one, other = await pair(launch, redis, DEMO_TOKENS_PER_S="50")

    async def times(stream: Stream) -> list[float]:
        return [time.monotonic() async for _ in stream]

    late = []
    for _ in range(2):
        near = await one.ask("What can you do?")
        far = await other.follow((await near.until("start"))["run_id"], after=1)
        arrived = await asyncio.gather(times(near), times(far))
        late += [b - a for a, b in zip(*arrived, strict=True)]
    assert median(late) < 0.1


async def test_hundreds_of_runs_are_followed_on_the_other_server_over_one_connection(
    launch: Launch, redis: RedisServer
) -> None:
    one, other = await pair(launch, redis, MAX_RUNS="300", DEMO_TOKENS_PER_S="0")
    streams = await asyncio.gather(*(one.ask("wait 2") for _ in range(250)))
    run_ids = [(await stream.until("start"))["run_id"] for stream in streams]
    followed = await asyncio.gather(*(other.follow(run_id) for run_id in run_ids))
    with redis.client() as client:
        assert len(client.client_list()) - 1 == 2  # Each server has one, and so has this client.
    ended = await joined(*streams, *followed)
    assert {events[-1]["reason"] for events in ended} == {"completed"}
    for stream, copy in zip(streams, followed, strict=True):
        assert bare(stream) == bare(copy)


async def test_a_run_is_cancelled_from_the_other_server(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    upstream.replies = [[*text("Hel"), STALL]]
    one, other = await pair(launch, redis, OPENAI_BASE_URL=upstream.url)
    took = []
    for _ in range(5):
        stream = await one.ask("hi", thread_id="t")
        run_id = (await stream.until("start"))["run_id"]
        await stream.until("text_delta")
        began = time.monotonic()
        status, state = await other.call("POST", f"/api/runs/{run_id}/cancel")
        took.append(time.monotonic() - began)
        assert (status, state["status"]) == (202, "cancelled")
        assert [e["type"] for e in await stream.events()] == ["done"]
    await upstream.dropped.wait()
    assert median(took) < 1.2, took
    assert (await other.call("POST", f"/api/runs/{run_id}/cancel"))[0] == 200


async def test_a_thread_has_one_run_on_all_servers(
    launch: Launch, upstream: Upstream, redis: RedisServer, tmp_path: Path
) -> None:
    go = asyncio.Event()
    upstream.replies = [[go, *text("Hello")], text("again")]
    environ = {"OPENAI_BASE_URL": upstream.url, "DATABASE_URL": f"sqlite:///{tmp_path}/chat.db"}
    one, other = await pair(launch, redis, **environ)
    stream = await one.ask("hi", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    body = {"message": "hi", "thread_id": "t"}
    status, document = await other.call("POST", "/api/chat", json=body)
    assert (status, document["error"]["code"]) == (409, "thread_busy")
    assert document["error"]["run_id"] == run_id
    assert (await other.call("DELETE", "/api/threads/t"))[0] == 409
    assert (await other.call("GET", "/api/threads/t"))[1]["run_id"] == run_id
    go.set()
    await stream.until("done")
    # Whoever has read `done` may send the next message at once, to any server.
    assert (await other.run("again", thread_id="t"))[-1]["reason"] == "completed"
    assert await contents(one, "t") == ["hi", "Hello", "again", "again"]


async def test_the_running_question_is_in_the_thread_on_every_server(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    """Here no server has saved it: the other one could not read the owner's memory, either."""
    upstream.replies = [[STALL]]
    one, other = await pair(launch, redis, OPENAI_BASE_URL=upstream.url)
    start = await (await one.ask("hi", thread_id="t")).until("start")
    for server in (one, other):
        _, thread = await server.call("GET", "/api/threads/t")
        question = {"role": "user", "id": start["message_id"], "content": "hi"}
        assert (thread["run_id"], thread["messages"]) == (start["run_id"], [question])


async def test_a_run_that_its_readers_left_makes_room_for_a_message_to_the_other_server(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    upstream.replies = [[*text("Hel"), STALL], text("Fine.")]
    one, other = await pair(launch, redis, OPENAI_BASE_URL=upstream.url)
    stream = await one.ask("hi", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    far = await other.follow(run_id)
    await far.until("text_delta")

    with redis.client() as client:

        async def told() -> bool:
            return bool(client.exists(f"chat:{{{run_id}}}:wish"))

        async def owner_knows_of_it() -> bool:
            """Its lease was renewed later: then it has read the wish, too."""
            age_s = 3 - client.pttl(f"chat:{{{run_id}}}:owner") / 1000
            return age_s < time.monotonic() - told_at

        await until(told)
        told_at = time.monotonic()
        await until(owner_knows_of_it)
    stream.close()
    assert await refusal(one, "again", thread_id="t") == (409, "thread_busy")
    far.close()

    async def answered() -> bool:
        response = await other.session.post("/api/chat", json={"message": "a", "thread_id": "t"})
        if response.status == 409:  # The server does not know yet that its reader left.
            return False
        assert (await Stream(response).events())[-1]["reason"] == "completed"
        return True

    await until(answered)
    assert (await other.call("GET", f"/api/runs/{run_id}"))[1]["status"] == "cancelled"
    await asyncio.wait_for(upstream.dropped.wait(), FEW_S)


async def test_a_run_that_nobody_has_read_yet_makes_no_room(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    upstream.replies = [[*text("Hel"), STALL]]
    one, other = await pair(launch, redis, OPENAI_BASE_URL=upstream.url)
    headers = {"Prefer": "respond-async"}
    body = {"message": "hi", "thread_id": "t"}
    assert (await one.call("POST", "/api/chat", json=body, headers=headers))[0] == 202
    assert await refusal(other, "again", thread_id="t") == (409, "thread_busy")


async def test_the_same_key_on_both_servers_at_once_is_one_run(
    launch: Launch, redis: RedisServer
) -> None:
    servers = await pair(launch, redis)
    for n in range(10):
        headers = {"Idempotency-Key": f"}}key{n}{{"}
        asking = (server.ask("6 * 7", headers=headers) for server in servers * 2)
        streams = await asyncio.gather(*asking)
        await joined(*streams)
        assert len({stream.raw for stream in streams}) == 1
        for server in servers:
            conflict = await refusal(server, "7 * 6", headers=headers)
            assert conflict == (409, "idempotency_conflict")


async def test_a_key_whose_run_was_refused_can_be_used_on_the_other_server(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    upstream.replies = [[STALL], text("Hello")]
    one, other = await pair(launch, redis, OPENAI_BASE_URL=upstream.url, MAX_RUNS="1")
    stream = await one.ask("hi")
    await stream.until("start")
    headers = {"Idempotency-Key": "k"}
    assert await refusal(one, "ho", headers=headers) == (503, "too_many_runs")
    events = await other.run("ho", headers=headers)
    assert events[-2]["content"] == "Hello"


async def test_a_reader_on_the_other_server_keeps_a_run_going_and_its_leaving_ends_it(
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
    while away.heartbeats < 25:  # Longer than the grace and than a wish lasts.
        await away.response.content.readuntil(b": heartbeat\n\n")
        away.heartbeats += 1
    assert not upstream.dropped.is_set()
    away.close()
    await asyncio.wait_for(upstream.dropped.wait(), FEW_S)
    _, state = await other.call("GET", f"/api/runs/{run_id}")
    assert state["status"] in ("running", "cancelled")


async def test_users_do_not_see_each_others_runs_on_any_server(
    launch: Launch, redis: RedisServer
) -> None:
    servers = await pair(launch, redis, USER_HEADER="X-User")
    ann, bob = {"X-User": "ann"}, {"X-User": "böb}".encode().decode("latin-1")}
    run_id = (await servers[0].run("6 * 7", thread_id="t", headers=ann))[0]["run_id"]
    for server in servers:
        assert (await server.call("GET", f"/api/runs/{run_id}", headers=ann))[0] == 200
        assert (await server.call("GET", f"/api/runs/{run_id}", headers=bob))[0] == 404
    assert (await servers[1].run("6 * 7", thread_id="t", headers=bob))[-1]["reason"] == "completed"


async def test_an_ended_run_expires_everywhere(launch: Launch, redis: RedisServer) -> None:
    servers = await pair(launch, redis, RUN_TTL_S="1")
    run_id = (await servers[0].run("6 * 7"))[0]["run_id"]

    async def is_gone() -> bool:
        asking = (server.call("GET", f"/api/runs/{run_id}") for server in servers)
        return {status for status, _ in await asyncio.gather(*asking)} == {404}

    await until(is_gone)
    with redis.client() as client:
        assert client.keys(f"*{run_id}*") == []


async def test_each_key_has_one_hash_tag_and_ends_by_itself(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    upstream.replies = [[*text("Hel"), STALL]]
    one, other = await pair(launch, redis, OPENAI_BASE_URL=upstream.url)
    stream = await one.ask("hi", thread_id="t", headers={"Idempotency-Key": "k"})
    away = await other.follow((await stream.until("start"))["run_id"])
    await away.until("text_delta")
    seen = set()

    async def all_seen() -> bool:
        with redis.client() as client:
            for key in client.scan_iter():
                tagged = re.fullmatch(rb"chat:(name:)?\{[^{}]+\}(:\w+)?", key)
                assert tagged or key == b"chat:since", key
                assert key == b"chat:since" or client.pttl(key) != -1, key
                seen.add((tagged[1] or tagged[2] or b"").strip(b":") if tagged else b"")
        return {b"log", b"owner", b"wish", b"name"} <= seen

    await until(all_seen)


# ------------------------------------------------------------------------------ a server dies


async def test_a_run_of_a_dead_server_ends_for_all_readers_and_its_thread_goes_on(
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
    await until_saved(environ["DATABASE_URL"], "t")
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
    _, thread = await third.call("GET", "/api/threads/t")
    assert [m["content"] for m in thread["messages"]] == ["hi", "", "again", "Whole."]
    assert thread["messages"][1]["ended"] == "shutdown"


async def test_a_server_that_has_just_started_ends_the_run_of_a_dead_one(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    upstream.replies = [[*text("Hel"), STALL], text("Whole.")]
    one = await launch(REDIS_URL=redis.url, OPENAI_BASE_URL=upstream.url)
    stream = await one.ask("hi", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    await stream.until("text_delta")
    one.process.kill()
    late = await launch(REDIS_URL=redis.url, OPENAI_BASE_URL=upstream.url)
    events = await asyncio.wait_for((await late.follow(run_id)).events(), FEW_S)
    check(events)
    assert events[-1]["reason"] == "shutdown"
    assert (await late.run("again", thread_id="t"))[-2]["content"] == "Whole."


async def test_open_tool_calls_of_a_dead_server_are_closed(
    launch: Launch, redis: RedisServer
) -> None:
    one, other = await pair(launch, redis)
    stream = await one.ask("wait 10 seconds")
    run_id = (await stream.until("start"))["run_id"]
    await stream.until("tool_progress")
    one.process.kill()

    async def ended() -> bool:
        return (await other.call("GET", f"/api/runs/{run_id}"))[1]["status"] == "shutdown"

    await until(ended)  # Nobody reads it.
    events = await (await other.follow(run_id)).events()
    check(events)
    assert events[-3]["status"] == "cancelled"


async def test_a_thread_of_a_dead_server_takes_its_next_turn_though_nobody_reads(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    upstream.replies = [[STALL], text("Whole.")]
    one, other = await pair(launch, redis, OPENAI_BASE_URL=upstream.url)
    stream = await one.ask("hi", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    await upstream.stalling.wait()
    one.process.kill()

    async def free() -> bool:
        return (await other.call("GET", "/api/threads/t"))[1].get("run_id") != run_id

    await until(free)
    assert (await other.run("again", thread_id="t"))[-2]["content"] == "Whole."
    check(await (await other.follow(run_id)).events())


async def test_a_deleted_conversation_of_a_dead_server_stays_deleted(
    launch: Launch, upstream: Upstream, redis: RedisServer, postgres: Postgres
) -> None:
    upstream.replies = [[*text("Secret"), STALL], text("Fresh.")]
    environ = {"OPENAI_BASE_URL": upstream.url, "DATABASE_URL": postgres.url}
    one, other = await pair(launch, redis, **environ)
    stream = await one.ask("hi", thread_id="deleted")
    await stream.until("text_delta")
    one.process.kill()

    async def deleted() -> bool:
        return (await other.call("DELETE", "/api/threads/deleted"))[0] == 204

    await until(deleted)
    await other.run("new", thread_id="deleted")
    await other.run("again", thread_id="deleted")
    assert await contents(other, "deleted") == ["new", "Fresh.", "again", "Fresh."]


async def test_a_server_that_shuts_down_ends_its_runs_for_readers_elsewhere(
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
    assert "its server is gone" not in other.log()


# --------------------------------------------------------------------------- a server is paused


@pytest.mark.parametrize("writes_on", [False, True])
async def test_late_writes_of_a_paused_server_reach_neither_log_nor_thread(
    launch: Launch, upstream: Upstream, redis: RedisServer, postgres: Postgres, writes_on: bool
) -> None:
    """With ``writes_on`` its graph would complete the answer, which nobody wants any more."""
    go = asyncio.Event()
    upstream.replies = [[*text("Hel"), go, *text("lo"), STALL], text("Whole.")]
    if writes_on:
        upstream.replies[0].pop()
    environ = {"OPENAI_BASE_URL": upstream.url, "DATABASE_URL": postgres.url}
    one, other = await pair(launch, redis, **environ)
    thread_id = f"paused-{writes_on}"
    stream = await one.ask("hi", thread_id=thread_id)
    run_id = (await stream.until("start"))["run_id"]
    await stream.until("text_delta")
    await until_saved(postgres.url, thread_id)
    one.process.send_signal(signal.SIGSTOP)
    away = await other.follow(run_id)
    events = await asyncio.wait_for(away.events(), FEW_S)
    check(events)
    assert events[-1]["reason"] == "shutdown"
    assert (await other.run("again", thread_id=thread_id))[-2]["content"] == "Whole."
    go.set()
    one.process.send_signal(signal.SIGCONT)
    await cut(stream)
    if not writes_on:
        await asyncio.wait_for(upstream.dropped.wait(), FEW_S)
    await until_idle(one)
    resumed = await one.follow(run_id, stream.ids[-1])
    await resumed.events()
    assert bare(stream) + resumed.raw.removeprefix(RETRY) == away.raw
    assert (await one.call("GET", f"/api/runs/{run_id}"))[1]["status"] == "shutdown"
    assert await contents(other, thread_id) == ["hi", "", "again", "Whole."]
    assert_clean(one.log())


async def test_a_server_that_is_paused_shortly_goes_on(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    go = asyncio.Event()
    upstream.replies = [[*text("Hel"), go, *text("lo")]]
    one, other = await pair(launch, redis, OPENAI_BASE_URL=upstream.url)
    stream = await one.ask("hi")
    far = await other.follow((await stream.until("start"))["run_id"])
    await far.until("text_delta")
    one.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(1)  # Less than the lease.
    one.process.send_signal(signal.SIGCONT)
    go.set()
    events, _ = await joined(stream, far)
    assert events[-2]["content"] == "Hello"
    assert stream.raw == far.raw


async def test_a_server_that_is_cut_off_from_redis_leaves_its_threads_alone(
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
        await until_saved(postgres.url, "cut-off")
        relay.open.clear()
        away = await other.follow(run_id)
        await cut(stream)  # It stops the run before others may take it for dead.
        assert not away.response.content.at_eof()
        await asyncio.wait_for(away.events(), FEW_S)
        assert (await other.run("again", thread_id="cut-off"))[-2]["content"] == "Whole."
        go.set()
        await until_health(one, "degraded")
        relay.open.set()
        await until_health(one, "ok")
        await until_idle(one)
    assert await contents(other, "cut-off") == ["hi", "", "again", "Whole."]


async def test_an_event_is_stored_once_though_its_confirmation_was_lost(
    launch: Launch, upstream: Upstream, redis: RedisServer
) -> None:
    go = asyncio.Event()
    upstream.replies = [[*text("Hel"), go, *text("lo ", "you")]]
    async with Relay(redis.port) as relay:
        one = await launch(REDIS_URL=relay.url, OPENAI_BASE_URL=upstream.url)
        other = await launch(REDIS_URL=redis.url)
        stream = await one.ask("hi")
        far = await other.follow((await stream.until("start"))["run_id"])
        await far.until("text_delta")
        relay.loses_reply_to = b"text_delta"
        go.set()
        events, _ = await joined(stream, far)
        assert relay.loses_reply_to is None
    assert events[-2]["content"] == "Hello you"
    assert stream.raw == far.raw


# ------------------------------------------------------------------------------ Redis goes away


async def test_a_run_outlives_a_short_restart_of_a_redis_that_remembers(
    launch: Launch, upstream: Upstream, durable_redis: RedisServer
) -> None:
    pause, go = asyncio.Event(), asyncio.Event()
    upstream.replies = [[*text("Hel"), pause, *text("lo "), go, *text("you")], text("next")]
    one, other = await pair(launch, durable_redis, OPENAI_BASE_URL=upstream.url)
    stream = await one.ask("hi", thread_id="t")
    away = await other.follow((await stream.until("start"))["run_id"])
    await stream.until("text_delta")
    await away.until("text_delta")
    durable_redis.stop()
    pause.set()  # What the model says now waits for Redis.
    durable_redis.start()
    assert (await stream.until("text_delta"))["content"] == "lo "
    go.set()
    events, _ = await joined(stream, away)
    assert events[-2]["content"] == "Hello you"
    assert stream.raw == away.raw
    assert (await other.run("again", thread_id="t"))[-2]["content"] == "next"


@pytest.mark.parametrize("how", ["restart", "flush"])
async def test_a_redis_that_has_forgotten_ends_all_runs(
    launch: Launch, upstream: Upstream, own_redis: RedisServer, how: str
) -> None:
    upstream.replies = [[*text("Hel"), STALL], text("Whole.")]
    servers = await pair(launch, own_redis, OPENAI_BASE_URL=upstream.url)
    stream = await servers[0].ask("hi", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    away = await servers[1].follow(run_id)
    await away.until("text_delta")
    if how == "restart":
        own_redis.stop()
        own_redis.start()
    else:
        with own_redis.client() as client:
            client.flushall()
    began = time.monotonic()
    # Redis has no claim of the thread any more, but the first run has to stop before the next one.
    asking = asyncio.create_task(servers[1].ask("again", thread_id="t"))
    had_stopped: list[bool] = []
    asking.add_done_callback(lambda _: had_stopped.append(upstream.dropped.is_set()))
    for reader in (stream, away):
        await cut(reader)
    await asyncio.wait_for(upstream.dropped.wait(), FEW_S)
    assert (await (await asking).events())[-2]["content"] == "Whole."
    assert had_stopped == [True]
    for server in servers:
        assert (await works_again(server, began))[-2]["content"] == "Whole."
        assert (await server.call("GET", f"/api/runs/{run_id}"))[0] == 404
    assert (await servers[1].run("again", thread_id="t"))[-2]["content"] == "Whole."
    for server in servers:
        assert_clean(server.log())


@pytest.mark.parametrize("how", ["stop", "freeze"])
async def test_while_redis_is_away_runs_stop_and_new_ones_are_refused(
    launch: Launch, upstream: Upstream, durable_redis: RedisServer, how: str
) -> None:
    upstream.replies = [[*text("Hel"), STALL], text("Whole.")]
    servers = await pair(launch, durable_redis, OPENAI_BASE_URL=upstream.url)
    stream = await servers[0].ask("hi", thread_id="t")
    run_id = (await stream.until("start"))["run_id"]
    away = await servers[1].follow(run_id)
    await away.until("text_delta")
    getattr(durable_redis, how)()
    for reader in (stream, away):
        await cut(reader)
    await asyncio.wait_for(upstream.dropped.wait(), FEW_S)
    for server in servers:
        assert (await server.call("GET", "/healthz"))[1]["status"] == "degraded"
        for path in (f"/api/runs/{run_id}/events", f"/api/runs/{run_id}", "/api/threads/t"):
            status, document = await asyncio.wait_for(server.call("GET", path), FEW_S)
            assert (status, document["error"]["code"]) == (503, "unavailable")
        refused = await asyncio.wait_for(refusal(server, "hi"), FEW_S)
        assert refused == (503, "unavailable")
    if how == "stop":
        durable_redis.start()
    else:
        durable_redis.thaw()
    began = time.monotonic()
    for server in servers:
        assert (await works_again(server, began))[-2]["content"] == "Whole."
        await until_health(server, "ok")
    copies = [await server.follow(run_id) for server in servers]
    for events in await joined(*copies):
        check(events)
        assert (events[-2]["code"], events[-1]["reason"]) == ("shutdown", "shutdown")
    assert copies[0].raw == copies[1].raw
    assert copies[0].raw.startswith(bare(stream))
    for server in servers:
        assert_clean(server.log())
        assert server.log().count("Redis is away") < 20


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
    getattr(own_redis, how)()
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(server.process.wait(), 20) == 0
    assert time.monotonic() - began < 2 + FEW_S / 3


async def test_a_full_redis_stops_runs_and_is_recovered_from(
    launch: Launch, upstream: Upstream, own_redis: RedisServer
) -> None:
    """Leases still fit, so that Redis seems to be there."""
    go = asyncio.Event()
    upstream.replies = [[*text("Hel"), go, *text("x" * 200_000), STALL], text("Fine.")]
    server = await launch(REDIS_URL=own_redis.url, OPENAI_BASE_URL=upstream.url)
    stream = await server.ask("hi")
    await stream.until("text_delta")
    with own_redis.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", client.info()["used_memory"] + 20_000)
        go.set()
        await cut(stream)
        await asyncio.wait_for(upstream.dropped.wait(), FEW_S)
        client.config_set("maxmemory", 1)
        await until_health(server, "degraded")
        assert await refusal(server, "hi") == (503, "unavailable")
        client.config_set("maxmemory", 0)
    assert (await works_again(server, time.monotonic()))[-2]["content"] == "Fine."
    await until_health(server, "ok")


# --------------------------------------------------------------------------- the store by itself


@asynccontextmanager
async def open_run(redis: RedisServer) -> AsyncIterator[tuple[RedisStore, Run]]:
    """A run of one event on a server of its own, whose readers nobody counts."""
    async with open_redis(redis.url, Settings()) as store:
        run = Run("0" * 24, Asked("t", "hi"), Settings())
        run.log = await store.open(run)
        run.log.append(StreamEvent("start", run_id=run.id, thread_id="t"))
        assert await run.log.wait(0, FEW_S)
        yield store, run


async def test_a_run_without_an_owner_is_ended_once_however_many_look_at_it(
    redis: RedisServer,
) -> None:
    async with open_run(redis), AsyncExitStack() as stack:
        opening = (open_redis(redis.url, Settings()) for _ in range(2))
        stores = [await stack.enter_async_context(each) for each in opening]

        async def look(number: int) -> bytes:
            await asyncio.sleep(number / 5000)
            run = await stores[number % 2].find("0" * 24)
            assert run
            return run.log.read(0, 10**6)[0]

        with redis.client() as client:
            client.delete("chat:{000000000000000000000000}:owner")
        copies = await asyncio.gather(*(look(number) for number in range(40)))
    assert {copy.count(b"event: done") for copy in copies} == {1}
    assert len({*copies}) == 1


async def test_readers_that_wait_are_cut_when_the_lease_is_lost(redis: RedisServer) -> None:
    async with open_run(redis) as (_, run):
        waiting = asyncio.create_task(run.log.wait(1, FEW_S))
        assert run.log.valid
        with redis.client() as client:
            client.delete("chat:{000000000000000000000000}:owner")
        with pytest.raises(Unavailable):
            await waiting
        with pytest.raises(Unavailable):
            await run.log.wait(1, FEW_S)
        assert not run.log.valid
        assert await run.log.wait(0, FEW_S)


async def test_a_log_takes_no_event_once_its_lease_is_lost(redis: RedisServer) -> None:
    async with open_run(redis) as (_, run):
        with redis.client() as client:
            client.delete("chat:{000000000000000000000000}:owner")
            run.log.append(StreamEvent("thinking", content="late"))
            with pytest.raises(Unavailable):
                await run.log.wait(1, FEW_S)
            assert client.xlen("chat:{000000000000000000000000}:log") == 1


async def test_a_claim_is_void_once_its_run_is_gone(redis: RedisServer) -> None:
    other = "f" * 24
    async with open_run(redis) as (store, run):
        await store.open(Run(other, Asked("t", "hi"), Settings()))
        for name in ("thread:t", "key:k"):
            assert await store.claim(name, run.id) == run.id
            assert await store.claim(name, other) == run.id
        with redis.client() as client:
            client.delete("chat:{000000000000000000000000}:owner")
            # The run has no owner, and its log is kept.
            assert await store.holder("thread:t") is None
            assert await store.claim("thread:t", other) == other
            assert await store.claim("key:k", other) == run.id
            client.delete("chat:{000000000000000000000000}:log")
            assert await store.claim("key:k", other) == other
            # Redis has forgotten the run itself, so it may not claim what others may hold.
            client.delete("chat:{ffffffffffffffffffffffff}:owner")
            with pytest.raises(Unavailable):
                await store.claim("thread:u", other)


# --------------------------------------------------------------------------- all of it at once


class Gateway(Client):
    """The proxy before the servers: a request is sent again if its server has just died."""

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        while True:
            with suppress(ClientPayloadError):  # Its server died in the middle of the response.
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
    """Chaos over servers that die: a reader that is cut may leave, or come back and read on."""

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

    async def hold(self, server: Process) -> Raw:
        """Start a run on this server that is read there and does not go on."""
        body = {"message": HOLD}
        while True:
            raw = await MortalRaw.open(server.url, request("POST", "/api/chat", body))
            self._raws.append(raw)
            if await raw.head() == 200:
                self.watch(raw.run_id)
                await raw.read(3)
                return raw
            assert await raw.code() == "too_many_runs"
            await asyncio.sleep(0.05)

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
        "RUN_TTL_S": "60",
        "MAX_BODY_BYTES": "200000",
    }
    servers = [await launch("--port", str(port), **environ) for port in ports]
    everyone = [*servers]
    rng = random.Random(SEED)
    proxy = await nginx(*(server.url for server in servers))
    async with Gateway(proxy.url) as gateway, MortalChaos(gateway) as chaos:  # type: ignore[arg-type]
        raging = asyncio.create_task(chaos.rage(seconds(16)))
        kills = 0
        while not raging.done():
            # Time for runs to begin on both, and for the runs of the dead server to be ended.
            await asyncio.wait({raging}, timeout=5)
            if not raging.done():
                victim = rng.randrange(2)
                held = await chaos.hold(servers[victim])
                kills += 1
                paused = kills % 2 == 0
                if paused:
                    servers[victim].process.send_signal(signal.SIGSTOP)
                else:
                    servers[victim].process.kill()
                persisting = asyncio.create_task(chaos.persist(held))
                await asyncio.wait({raging}, timeout=rng.random() + 3 * paused)
                if paused:
                    servers[victim].process.send_signal(signal.SIGCONT)
                else:
                    servers[victim] = await launch("--port", str(ports[victim]), **environ)
                    everyone.append(servers[victim])
                await persisting
        await raging
        async with asyncio.timeout(20):
            for server in servers:
                while (await server.call("GET", "/healthz"))[1]["running"]:
                    await asyncio.sleep(0.05)
    assert not chaotic.problems, f"CHAOS_SEED={SEED}: " + "\n".join(chaotic.problems[:20])
    for server in everyone:
        assert_clean(server.log())
    assert {"completed", "cancelled", "shutdown"} <= chaos.reasons.keys()
    assert chaos.survived >= kills > 0
    print(f"{chaos.survived} cuts survived, {chaos.reasons}")
