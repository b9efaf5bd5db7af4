"""Chaos, seeded: readers that come and go as they like, over an upstream that does the same.

``CHAOS_SEED`` and ``CHAOS_SECONDS`` in the environment choose another course, and a longer one.
The seed decides what each visitor does, but not how their requests mix.
"""

from __future__ import annotations

import asyncio
import random
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest
from aiohttp import web

from tests.chaotic import ChaoticUpstream
from tests.client import check
from tests.conftest import Process, listen
from tests.raw import (
    SEED,
    Raw,
    assert_clean,
    events_of,
    request,
    resident_kib,
    seconds,
)

pytestmark = pytest.mark.slow

Launch = Callable[..., Awaitable[Process]]

SETTINGS = {
    "HEARTBEAT_S": "0.1",
    "DISCONNECT_GRACE_S": "0.3",
    "SEND_TIMEOUT_S": "2",
    "RUN_TTL_S": "5",
    "RUN_TIMEOUT_S": "2",
    "MAX_RUNS": "30",
    "MAX_THREADS": "20",
    "MAX_RUN_BYTES": "4000000",
    "MAX_BODY_BYTES": "262144",
    # The allocator gives back what is freed, so that what is held is all that is measured.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "32768",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}
VISITORS = 24
GROWTH_KIB = 16 * 1024
"""How much more memory may be in use after the second half: more than chance makes of it (5 MiB
were seen), less than the answers of one half take (some 100 MiB)."""
COLLECT = "import gc, signal; signal.signal(signal.SIGUSR1, lambda *_: gc.collect())"
"""The server's sitecustomize.py: what is garbage already does not count as held."""

CUTS = asyncio.IncompleteReadError, ConnectionError


class Chaos:
    """The visitors of one server, and all that they received."""

    def __init__(self, server: Process) -> None:
        self.server = server
        self.count = 0
        self.did: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._threads: set[str] = set()
        self._raws: list[Raw] = []
        self._visitors: set[asyncio.Task[None]] = set()
        self._seen: dict[str, list[tuple[int, list[bytes], bool]]] = {}
        self._runs: dict[str, asyncio.Task[None]] = {}

    async def rage(self, for_s: float) -> None:
        """Let visitors come for so long, then wait for the end of each run that they know."""
        ends = time.monotonic() + for_s
        while time.monotonic() < ends or self._visitors:
            while len(self._visitors) < VISITORS and time.monotonic() < ends:
                self.count += 1
                self._visitors.add(asyncio.create_task(self._visit(self.count)))
            done, self._visitors = await asyncio.wait(
                self._visitors, return_when=asyncio.FIRST_COMPLETED, timeout=30
            )
            assert done, f"CHAOS_SEED={SEED}: visitors hang"
            for visitor in done:
                visitor.result()
        await asyncio.gather(*self._runs.values())

    async def settle(self) -> None:
        """Wait until nothing runs and every run is forgotten; forget every conversation."""
        for path in ("/healthz", *(f"/api/runs/{run_id}" for run_id in self._runs)):
            async with asyncio.timeout(20):
                await self._until_over(path)
        paths = [f"/api/threads/{thread_id}" for thread_id in self._threads]
        known = [(await self.server.call("GET", path))[0] for path in paths]
        assert known.count(200) <= int(SETTINGS["MAX_THREADS"])
        for path in paths:
            assert (await self.server.call("DELETE", path))[0] in (204, 404)
            assert (await self.server.call("GET", path))[0] == 404
        self._close()

    async def _until_over(self, path: str) -> None:
        while True:
            status, document = await self.server.call("GET", path)
            if status == 404 or document.get("running") == 0:
                return
            await asyncio.sleep(0.05)  # Nothing else shows it.

    def _close(self) -> None:
        for raw in self._raws:
            raw.cut()
        self._raws.clear()
        self._runs.clear()
        self._threads.clear()
        self._seen.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = {*self._visitors, *self._runs.values()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._close()

    async def _visit(self, number: int) -> None:
        rng = random.Random(f"{SEED}/{number}")
        name = rng.choice([n for n in dir(self) if n.startswith("visit_")])
        thread_id = f"t{rng.randrange(40)}" if rng.random() < 0.7 else f"fresh-{number}"
        self._threads.add(thread_id)
        self.did[name] += 1
        body = {"message": f"question {number}", "thread_id": thread_id}
        try:
            await getattr(self, name)(rng, body)
        except Exception as error:
            error.add_note(f"CHAOS_SEED={SEED}, visitor {number}: {name}")
            raise

    # ------------------------------------------------------------- what every visitor can do

    async def send(self, data: bytes, window: int = 0) -> Raw:
        self._raws.append(await Raw.open(self.server.url, data, window))
        return self._raws[-1]

    async def call(self, method: str, path: str, body: object = None, **headers: str) -> int:
        raw = await self.send(request(method, path, body, **headers))
        try:
            return await raw.head()
        finally:
            raw.cut()

    async def ask(self, body: dict[str, str], window: int = 0, **headers: str) -> Raw | None:
        """Start a run; None if it is refused, as it may be."""
        raw = await self.send(request("POST", "/api/chat", body, **headers), window)
        status = await raw.head()
        if status not in (200, 202):
            error = (await raw.json())["error"]
            assert (status, error["code"]) in ((409, "thread_busy"), (503, "too_many_runs")), error
            raw.cut()
            return None
        self.watch(raw.run_id)
        return raw

    async def follow(self, run_id: str, after: int, window: int = 0) -> Raw:
        target = f"/api/runs/{run_id}/events"
        return await self.send(request("GET", target, Last_Event_ID=str(after)), window)

    def saw(self, run_id: str, raw: Raw, after: int = 0, stayed: bool = False) -> None:
        self._seen[run_id].append((after, raw.frames, stayed))
        raw.cut()

    def watch(self, run_id: str) -> None:
        if run_id not in self._runs:
            self._seen[run_id] = []
            self._runs[run_id] = asyncio.create_task(self._audit(run_id))

    async def _audit(self, run_id: str) -> None:
        """Read the run when it has ended, and compare it with what its readers saw."""
        ends = time.monotonic() + 2 + 2 + 20
        # By its state, since a reader would keep it going.
        while (state := await self.server.call("GET", f"/api/runs/{run_id}"))[1].get(
            "status"
        ) == "running":
            assert time.monotonic() < ends, f"CHAOS_SEED={SEED}: {run_id} never ends"
            await asyncio.sleep(0.2)  # Hundreds of runs are watched at once.
        assert state[0] == 200, state
        frames = await self.whole(run_id)
        events = events_of(frames)
        try:
            check(events)
            assert events[-1]["reason"] == state[1]["status"]
            assert len(frames) == state[1]["last_event_id"]
            # Each saw a part of the run; who stayed saw its end.
            for after, seen, stayed in self._seen[run_id]:
                assert seen == frames[after : after + len(seen)]
                assert not stayed or after + len(seen) == len(frames)
        except AssertionError as error:
            error.add_note(f"CHAOS_SEED={SEED}, run {run_id}: {events[:3]} … {events[-3:]}")
            raise
        self.reasons[events[-1]["reason"]] += 1
        self.reasons[events[-2].get("code", "")] += 1

    async def whole(self, run_id: str) -> list[bytes]:
        raw = await self.follow(run_id, 0)
        try:
            return await raw.all()
        finally:
            raw.cut()

    # ------------------------------------------------------------------------- the visitors

    async def visit_and_stay(self, rng: random.Random, body: dict[str, str]) -> None:
        if raw := await self.ask(body):
            assert await raw.read(bytewise=rng.choice((0, 0, 3000)))
            self.saw(raw.run_id, raw, stayed=True)

    async def visit_and_come_back(self, rng: random.Random, body: dict[str, str]) -> None:
        """Cut after some events, and resume where one was, or before; again and again."""
        raw = await self.ask(body)
        if raw is None:
            return
        run_id, has, after, over = raw.run_id, 0, 0, await raw.read(rng.randrange(6))
        for _ in range(rng.randrange(1, 6)):
            self.saw(run_id, raw, after, stayed=over)
            has = max(has, after + len(raw.frames))
            # Random time, to leave before, at and after the end of the grace.
            await asyncio.sleep(rng.choice((0, 0, 0.1, 0.29, 0.31)))
            after = rng.choice((has, has, rng.randint(0, has)))
            raw = await self.follow(run_id, after)
            if await raw.head() != 200:
                assert raw.status == 204, raw.status
                self.saw(run_id, raw, after, stayed=True)
                return
            over = await raw.read(rng.choice((1, 2, 5, 1000)))
        self.saw(run_id, raw, after, stayed=over)

    async def visit_and_leave(self, rng: random.Random, body: dict[str, str]) -> None:
        """Leave before there is an answer, or after the 202; the key tells which run it was."""
        key = rng.randbytes(8).hex()
        raw = await self.send(request("POST", "/api/chat", body, Idempotency_Key=key))
        await asyncio.sleep(rng.choice((0, 0, 0.01)))
        raw.cut()
        if rng.random() < 0.5 and (
            raw := await self.ask(body, Idempotency_Key=key, Prefer="respond-async")
        ):
            assert raw.status == 202
            raw.cut()

    async def visit_and_stall(self, rng: random.Random, body: dict[str, str]) -> None:
        """Take the head and then nothing; others follow and do not notice."""
        raw = await self.ask(body, window=4096)
        if raw is None:
            return
        other = await self.follow(raw.run_id, 0)
        assert await other.head() == 200
        assert await other.read()
        self.saw(raw.run_id, other, stayed=True)
        # Take the rest, which is all there is or was cut; either way it is what others got.
        with suppress(*CUTS):
            await raw.read()
        self.saw(raw.run_id, raw)

    async def visit_and_cancel(self, rng: random.Random, body: dict[str, str]) -> None:
        raw = await self.ask(body)
        if raw is None:
            return
        await raw.read(rng.randrange(8))
        path = f"/api/runs/{raw.run_id}/cancel"
        answers = await asyncio.gather(*(self.server.call("POST", path) for _ in range(2)))
        for status, state in answers:
            assert status in (200, 202)
            assert state["status"] != "running"
        # The thread is free again: a turn may be refused for other reasons only.
        assert answers[0][1] == answers[1][1]
        assert await raw.read()
        self.saw(raw.run_id, raw, stayed=True)

    async def visit_twice(self, rng: random.Random, body: dict[str, str]) -> None:
        """Two turns at once on one thread: one at most is served."""
        raws = await asyncio.gather(self.ask(body), self.ask(body))
        served = [raw for raw in raws if raw]
        for raw in served:
            # The second may come after the first's end.
            assert await raw.read()
            self.saw(raw.run_id, raw, stayed=True)

    async def visit_with_a_key(self, rng: random.Random, body: dict[str, str]) -> None:
        """The same POST again and again is one run, and the same bytes."""
        key = rng.randbytes(8).hex()
        first = await self.ask(body, Idempotency_Key=key)
        if first is None:
            return
        # Each is read while the others start: a reader that takes nothing for long is dropped.
        raws, reading = [first], [asyncio.create_task(first.read())]
        try:
            for _ in range(2):
                raw = await self.ask(body, Idempotency_Key=key)
                assert raw
                assert raw.run_id == first.run_id
                raws.append(raw)
                reading.append(asyncio.create_task(raw.read()))
            other = body | {"x": "y"}
            assert await self.call("POST", "/api/chat", other, Idempotency_Key=key) == 409
            assert all(await asyncio.gather(*reading))
        finally:
            await asyncio.gather(*reading, return_exceptions=True)
        for raw in raws:
            self.saw(raw.run_id, raw, stayed=True)

    async def visit_a_thread(self, rng: random.Random, body: dict[str, str]) -> None:
        """Look at conversations and forget them, running or not."""
        for _ in range(6):
            path = f"/api/threads/t{rng.randrange(40)}"
            assert await self.call("GET", path) in (200, 404)
            assert await self.call("DELETE", path) in (204, 404, 409)
        if raw := await self.ask(body):
            # The run may be over by now, and another visitor quicker.
            path = f"/api/threads/{body['thread_id']}"
            assert await self.call("DELETE", path) in (204, 404, 409)
            assert await raw.read()
            self.saw(raw.run_id, raw, stayed=True)
            # Another visitor may have a turn on it, or have forgotten it.
            assert await self.call("DELETE", path) in (204, 404, 409)

    async def visit_with_nonsense(self, rng: random.Random, body: dict[str, str]) -> None:
        bad: list[tuple[int, tuple[object, ...], dict[str, str]]] = [
            (400, ("POST", "/api/chat", {"message": " "}), {}),
            (400, ("POST", "/api/chat", {"message": "hi", "thread_id": "/"}), {}),
            (400, ("POST", "/api/chat", {"resume": 1}), {}),
            (400, ("POST", "/api/chat", []), {}),
            (400, ("POST", "/api/chat", body), {"Idempotency_Key": "x" * 129}),
            (413, ("POST", "/api/chat", {"message": "x" * 300_000}), {}),
            (415, ("POST", "/api/chat"), {}),
            (403, ("POST", "/api/chat", body), {"Origin": "http://evil.example"}),
            (404, ("GET", "/api/runs/x/events"), {}),
            (404, ("POST", "/api/runs/x/cancel"), {}),
            (404, ("GET", "/nothing"), {}),
            (405, ("PUT", "/api/chat", body), {}),
        ]
        for status, arguments, headers in rng.choices(bad, k=20):
            assert await self.call(*arguments, **headers) == status, arguments  # type: ignore[arg-type]
        answer = {"resume": 1, "thread_id": rng.randbytes(8).hex()}
        # If there are too many runs, its thread is not looked at.
        assert await self.call("POST", "/api/chat", answer) in (400, 503)
        for run_id in [*self._runs][-1:]:
            for cursor in ("-1", "x", "999999", "1.0", ""):
                status = await self.call(
                    "GET", f"/api/runs/{run_id}/events", None, Last_Event_ID=cursor
                )
                assert status in (400, 404)


@pytest.fixture
async def chaotic() -> AsyncIterator[ChaoticUpstream]:
    upstream = ChaoticUpstream(SEED)
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", upstream.complete)
    runner, url = await listen(app)
    upstream.url = f"{url}/v1"
    yield upstream
    await runner.cleanup()


@pytest.mark.timeout(90 + 2 * seconds(0))
async def test_whatever_its_clients_do_every_run_ends_once_and_leaves_nothing(
    launch: Launch, chaotic: ChaoticUpstream, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(COLLECT)
    settings = {"OPENAI_BASE_URL": chaotic.url, "PYTHONPATH": str(tmp_path), **SETTINGS}
    server = await launch(**settings)
    resident = []
    async with Chaos(server) as chaos:
        # The first, shorter part warms it up.
        for share in (0.2, 0.4, 0.4):
            await chaos.rage(seconds(12) * share)
            await chaos.settle()
            server.process.send_signal(signal.SIGUSR1)
            health = await server.call("GET", "/healthz")  # Answered after the collection.
            assert health == (200, {"status": "ok", "running": 0})
            resident.append(resident_kib(server.process.pid))
    # A graph that was left behind ends its model call a moment after its run.
    async with asyncio.timeout(10):
        while chaotic.open:
            await asyncio.sleep(0.02)
    assert not chaotic.problems, f"CHAOS_SEED={SEED}: " + "\n".join(chaotic.problems[:20])
    assert resident[2] - resident[1] < GROWTH_KIB, resident
    server.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(server.process.wait(), 5) == 0
    log = server.log()
    assert_clean(log)
    assert "secret-of-the-provider" not in "".join(re.findall(r"(?m)^\d{4}-.*$", log))
    # Also the runs whose readers left before they had the run's id.
    started = re.findall(r"run=(\w+) thread=\S+ started", log)
    ended = re.findall(r"run=(\w+) ended", log)
    odd = (Counter(ended) - Counter(started)) + (Counter(started) - Counter(ended))
    assert not odd, [line for line in log.splitlines() if any(run_id in line for run_id in odd)]
    # It was as wild as it is meant to be.
    assert {"completed", "cancelled", "timeout", "error"} <= chaos.reasons.keys()
    print(f"{len(started)} runs, {resident} KiB, {chaos.reasons}")
