"""What is measured of a server: each work starts from a fresh process and returns its figures."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from tests.bench.load import Stream, run, start, whole
from tests.bench.servers import REDIS_URL, Process, Server
from tests.bench.wires import OURS, Wire, get

Figures = dict[str, float]

FAST = 0.5
"""How long a run whose readers gather first holds its tokens back, in seconds."""


@dataclass(frozen=True)
class Sizes:
    """How much of each work is done."""

    streams: int = 20
    tokens: int = 500
    flooded_tokens: int = 200
    paced_streams: int = 60
    paced_s: int = 3
    starts: tuple[int, ...] = (1, 50, 200)
    starts_s: float = 1.5
    waiting: int = 500
    long_tokens: int = 10_000
    short_tokens: int = 100
    gathered_tokens: int = 5000
    threads: int = 10
    earlier: int = 200


QUICK = Sizes(
    tokens=100,
    flooded_tokens=50,
    paced_s=1,
    starts_s=0.3,
    waiting=50,
    long_tokens=1000,
    gathered_tokens=500,
    threads=2,
    earlier=20,
)


@dataclass(frozen=True)
class Work:
    """One kind of work; ``measure`` is given a server that has just started."""

    title: str
    measure: Callable[[Process, Sizes], Awaitable[Figures]]
    units: dict[str, str]
    """The unit of each figure, by its name."""
    model: str = "scripted"
    """Which model answers: see `running`."""
    who: Callable[[Server], bool] = lambda server: server.name != "0.1" and not server.redis
    """Whether it is asked of a server."""


async def cost_us(process: Process, script: dict[str, Any], count: int = 1) -> float:
    """Return the processor time that so many runs of the script at once took."""
    before = process.cpu_us()
    await run(process.server.wire, script, count)
    return process.cpu_us() - before


async def warm_up(process: Process) -> None:
    """Let the server import and cache what its first runs need."""
    await run(process.server.wire, {"tokens": 100}, 10)


async def in_process(process: Process, sizes: Sizes) -> Figures:
    await warm_up(process)
    spent = await cost_us(process, {"tokens": sizes.tokens}, sizes.streams)
    return {"token": spent / sizes.streams / sizes.tokens}


async def from_upstream(process: Process, sizes: Sizes) -> Figures:
    await warm_up(process)
    tokens, per_s = sizes.flooded_tokens, 20
    flooded = await cost_us(process, {"tokens": tokens}, sizes.streams)
    paced_tokens = per_s * sizes.paced_s
    script = {"tokens": paced_tokens, "per_s": per_s}
    paced = await cost_us(process, script, sizes.paced_streams)
    return {
        "flooded": flooded / sizes.streams / tokens,
        "paced": paced / sizes.paced_streams / paced_tokens,
    }


async def first_events(process: Process, sizes: Sizes) -> Figures:
    await warm_up(process)
    figures = {}
    for count in sizes.starts:
        streams: list[Stream] = []
        until = time.perf_counter() + sizes.starts_s
        while time.perf_counter() < until and len(streams) < 1000:
            streams += await run(process.server.wire, {"tokens": 20}, count)
        events = [s.first_event - s.asked for s in streams if s.first_event]
        tokens = [s.first_token - s.asked for s in streams if s.first_token]
        figures[f"event {count}"] = 1000 * median(events)
        figures[f"token {count}"] = 1000 * median(tokens)
    return figures


async def waiting(process: Process, sizes: Sizes) -> Figures:
    await warm_up(process)
    wire = process.server.wire
    count = min(sizes.waiting, process.server.most - 20)
    runs = await hold(wire, 20)
    before = process.resident_kib()
    runs += (more := await hold(wire, count))
    with_runs = process.resident_kib()
    each = {"run": (with_runs - before) / count}
    if process.server.ours:
        path = more[0].header("Location")
        runs += await begun(await start([get(path)] * count))
        each["reader"] = (process.resident_kib() - with_runs) / count
    for stream in runs:
        stream.cut()
    return each


async def hold(wire: Wire, count: int) -> list[Stream]:
    """Start runs that wait for ever behind their first token."""
    held: list[Stream] = []
    while len(held) < count:
        script = {"tokens": 1, "hold": True}
        asked = [wire.ask(script) for _ in range(min(50, count - len(held)))]
        held += await begun(await start(asked, wire))
    return held


async def begun(streams: list[Stream]) -> list[Stream]:
    await asyncio.gather(*(stream.begun for stream in streams))
    return streams


async def readers(process: Process, sizes: Sizes) -> Figures:
    await warm_up(process)
    tokens = sizes.long_tokens
    (live,) = await run(OURS, {"tokens": tokens})
    took_s = time.perf_counter() - live.asked
    replays_s = []
    for _ in range(5):
        began = time.perf_counter()
        await whole([get(live.header("Location"))], tokens)
        replays_s.append(time.perf_counter() - began)
    one = await gathered_us(process, 1, sizes.gathered_tokens, 0)
    ten = await gathered_us(process, 10, sizes.gathered_tokens, 0)
    ten_runs = await cost_us(process, {"tokens": sizes.gathered_tokens, "after_s": FAST}, 10)
    return {
        "live": tokens / took_s / 1000,
        "replayed": tokens / median(replays_s) / 1000,
        "1 reader": one / sizes.gathered_tokens,
        "10 readers": ten / sizes.gathered_tokens,
        "10 runs": ten_runs / sizes.gathered_tokens,
    }


async def gathered_us(process: Process, count: int, tokens: int, per_s: float) -> float:
    """Return what one run cost that so many readers followed from its first token."""
    script = {"tokens": tokens, "per_s": per_s, "after_s": FAST}
    before = process.cpu_us()
    (asked,) = await start([OURS.ask(script, "Prefer: respond-async")])
    await asked.ended
    await whole([get(json.loads(asked.body())["events"])] * count, tokens)
    return process.cpu_us() - before


async def at_rest(process: Process, sizes: Sizes) -> Figures:
    """The first page; then a run at once, whose first token waits for what is not loaded yet."""
    wire = process.server.wire
    (stream,) = await begun(await start([wire.ask({"tokens": 1})], wire))
    assert stream.first_token
    await asyncio.sleep(FAST)
    return {
        "page": process.started_s,
        "token": stream.first_token - process.began,
        "resident": process.resident_kib() / 1024,
    }


async def long_run(process: Process, sizes: Sizes) -> Figures:
    """The cost of a token, apart from that of the run that it is in, in long runs and short."""
    await warm_up(process)
    long, short = sizes.long_tokens, sizes.short_tokens
    count = long // short
    runs = await one_after_another(process, count, 1)
    shorts = await one_after_another(process, count, short)
    longs = await one_after_another(process, 1, long)
    return {
        "run": (runs / count) / 1000,
        "short": (shorts - runs) / count / (short - 1),
        "long": (longs - runs / count) / (long - 1),
    }


async def one_after_another(process: Process, count: int, tokens: int) -> float:
    return sum([await cost_us(process, {"tokens": tokens}) for _ in range(count)])


async def long_thread(process: Process, sizes: Sizes) -> Figures:
    """The next turn of threads with earlier messages, and the first turn of threads without any."""
    await warm_up(process)
    olds = [f"old-{number}" for number in range(sizes.threads)]
    for _ in range(sizes.earlier // 2):
        await whole([OURS.ask({"tokens": 1}, thread_id=thread) for thread in olds], 1)
    figures, starts_us = {}, {}
    kinds: dict[str, list[str | None]] = {"new": [None] * sizes.threads, "old": [*olds]}
    for kind, threads in kinds.items():
        firsts, spent = [], process.cpu_us()
        for thread in threads * 4:
            (stream,) = await whole([OURS.ask({"tokens": 1}, thread_id=thread)], 1)
            assert stream.first_token
            firsts.append(stream.first_token - stream.asked)
        starts_us[kind] = (process.cpu_us() - spent) / len(firsts)
        figures[f"first, {kind}"] = 1000 * median(firsts)
    tokens = sizes.long_tokens // sizes.threads
    for kind, threads in kinds.items():
        spent = process.cpu_us()
        for thread in threads:
            await whole([OURS.ask({"tokens": tokens}, thread_id=thread)], tokens)
        each_us = (process.cpu_us() - spent) / sizes.threads
        figures[f"token, {kind}"] = (each_us - starts_us[kind]) / (tokens - 1)
    return figures


async def in_redis(process: Process, sizes: Sizes) -> Figures:
    from redis.asyncio import Redis

    await warm_up(process)
    async with Redis.from_url(REDIS_URL) as redis:
        before, tokens = await redis.info(), sizes.tokens
        ours = await cost_us(process, {"tokens": tokens}, sizes.streams)
        between = await redis.info()
        paced_tokens, per_s = 20 * sizes.paced_s, 20
        await run(OURS, {"tokens": paced_tokens, "per_s": per_s}, sizes.paced_streams)
        after = await redis.info()
    flooded, paced = sizes.streams * tokens, sizes.paced_streams * paced_tokens
    return {
        "token": ours / flooded,
        "flooded": _redis_us(between, before) / flooded,
        "paced": _redis_us(after, between) / paced,
        "memory": (between["used_memory"] - before["used_memory"]) / flooded,
    }


def _ours(server: Server) -> bool:
    return server.name in ("ours", "ours+")


def _redis_us(after: dict[str, float], before: dict[str, float]) -> float:
    """Return the processor time that Redis used between two of its reports."""
    return 1e6 * sum(after[name] - before[name] for name in ("used_cpu_user", "used_cpu_sys"))


WORKS = {
    1: Work(
        "Processor time of a token made in the process, 20 streams at once",
        in_process,
        {"token": "µs"},
    ),
    2: Work(
        "Processor time of a token through ChatOpenAI: 20 streams flooded, 60 paced at 20 tokens "
        "a second",
        from_upstream,
        {"flooded": "µs", "paced": "µs"},
        model="upstream",
    ),
    3: Work(
        "Time to the first event and the first token at 1, 50 and 200 simultaneous starts",
        first_events,
        {f"{name} {n}": "ms" for name in ("event", "token") for n in Sizes().starts},
    ),
    4: Work(
        "Resident memory of a waiting run with its reader, and of each further reader",
        waiting,
        {"run": "KiB", "reader": "KiB"},
    ),
    5: Work(
        "Events a second, live and replayed; processor time of a token for one reader, for ten "
        "readers of one run, and for ten runs",
        readers,
        {
            "live": "1,000/s",
            "replayed": "1,000/s",
            "1 reader": "µs",
            "10 readers": "µs",
            "10 runs": "µs",
        },
        who=_ours,
    ),
    6: Work(
        "Time from the start of the process to its first answer and to a run's first token, and "
        "resident memory then",
        at_rest,
        {"page": "s", "token": "s", "resident": "MiB"},
        model="demo",
        who=lambda server: not server.redis,
    ),
    7: Work(
        "Processor time of a run, and of a token beyond that, in runs of 100 tokens and of 10,000",
        long_run,
        {"run": "ms", "short": "µs", "long": "µs"},
        who=_ours,
    ),
    8: Work(
        "With runs in Redis, processor time of a token made in the process, 20 streams at once; "
        "and what Redis itself spends on it, flooded and paced, and its memory",
        in_redis,
        {"token": "µs", "flooded": "µs", "paced": "µs", "memory": "B"},
        who=lambda server: server.redis,
    ),
    9: Work(
        "First token, and processor time of a token, in a new thread and in one that has 200 "
        "earlier messages",
        long_thread,
        {"first, new": "ms", "first, old": "ms", "token, new": "µs", "token, old": "µs"},
        who=_ours,
    ),
}
