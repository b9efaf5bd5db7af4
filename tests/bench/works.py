"""What is measured of a server: each work starts from a fresh process and returns its figures."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median

from redis.asyncio import Redis

from tests.bench.load import Stream, get, post, start, whole
from tests.bench.servers import REDIS_URL, Process, Server

Figures = dict[str, float]

FAST = 0.5
"""How long a run whose readers gather first holds its tokens back, in seconds."""


@dataclass(frozen=True)
class Sizes:
    """How much of each work is done."""

    streams: int = 20
    tokens: int = 1000
    flooded_tokens: int = 500
    paced_streams: int = 60
    paced_s: int = 10
    starts: tuple[int, ...] = (1, 50, 200)
    samples: int = 400
    waiting: int = 1000
    long_tokens: int = 10_000
    short_tokens: int = 100
    gathered_tokens: int = 5000


QUICK = Sizes(
    tokens=300,
    flooded_tokens=200,
    paced_s=3,
    samples=200,
    waiting=200,
    long_tokens=3000,
    gathered_tokens=1000,
)


@dataclass(frozen=True)
class Work:
    """One kind of work; ``measure`` is given a server that has just started."""

    title: str
    measure: Callable[[Process, Sizes], Awaitable[Figures]]
    units: dict[str, str]
    """The unit of each figure, by its name."""
    upstream: bool = False
    """Whether the model is ``ChatOpenAI``, and its provider runs beside."""
    who: Callable[[Server], bool] = lambda server: True
    """Whether it is asked of a server."""


async def cost_us(process: Process, request: bytes, count: int, tokens: int) -> float:
    """Return the processor time that these answers took."""
    before = process.cpu_us()
    await whole(request, count, tokens)
    return process.cpu_us() - before


async def warm_up() -> None:
    """Let the server import and cache what its first runs need."""
    await whole(post({"tokens": 100}), 10, 100)


async def in_process(process: Process, sizes: Sizes) -> Figures:
    await warm_up()
    request = post({"tokens": sizes.tokens})
    spent = await cost_us(process, request, sizes.streams, sizes.tokens)
    return {"token": spent / sizes.streams / sizes.tokens}


async def from_upstream(process: Process, sizes: Sizes) -> Figures:
    await warm_up()
    tokens, per_s = sizes.flooded_tokens, 20
    flooded = await cost_us(process, post({"tokens": tokens}), sizes.streams, tokens)
    paced_tokens = per_s * sizes.paced_s
    request = post({"tokens": paced_tokens, "per_s": per_s})
    paced = await cost_us(process, request, sizes.paced_streams, paced_tokens)
    return {
        "flooded": flooded / sizes.streams / tokens,
        "paced": paced / sizes.paced_streams / paced_tokens,
    }


async def first_events(process: Process, sizes: Sizes) -> Figures:
    await warm_up()
    figures = {}
    for count in sizes.starts:
        streams: list[Stream] = []
        for _ in range(min(100, -(-sizes.samples // count))):
            streams += await whole(post({"tokens": 20}), count, 20)
        for name, times_ms in (
            ("event", [1000 * (s.first_event - s.asked) for s in streams if s.first_event]),
            ("token", [1000 * (s.first_token - s.asked) for s in streams if s.first_token]),
        ):
            figures[f"{name} {count}"] = median(times_ms)
            figures[f"{name} {count} p99"] = percentile(times_ms, 0.99)
    return figures


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


async def waiting(process: Process, sizes: Sizes) -> Figures:
    await warm_up()
    runs = await hold(20)
    before = process.resident_kib()
    runs += (more := await hold(sizes.waiting))
    with_runs = process.resident_kib()
    each = {"run": (with_runs - before) / sizes.waiting}
    each["reader"] = each["run"]
    if process.server.ours:
        path = more[0].header("Location")
        runs += await begun(await start(get(path), sizes.waiting))
        each["reader"] = (process.resident_kib() - with_runs) / sizes.waiting
    for stream in runs:
        stream.cut()
    return each


async def hold(count: int) -> list[Stream]:
    """Start runs that wait for ever behind their first token."""
    held: list[Stream] = []
    while len(held) < count:
        request = post({"tokens": 1, "hold": True})
        held += await begun(await start(request, min(50, count - len(held))))
    return held


async def begun(streams: list[Stream]) -> list[Stream]:
    await asyncio.gather(*(stream.begun for stream in streams))
    return streams


async def readers(process: Process, sizes: Sizes) -> Figures:
    await warm_up()
    tokens = sizes.long_tokens
    (live,) = await whole(post({"tokens": tokens}), 1, tokens)
    took_s = time.perf_counter() - live.asked
    replays_s = []
    for _ in range(5):
        began = time.perf_counter()
        await whole(get(live.header("Location")), 1, tokens)
        replays_s.append(time.perf_counter() - began)
    one = await gathered_us(process, 1, sizes.gathered_tokens, 0)
    ten = await gathered_us(process, 10, sizes.gathered_tokens, 0)
    apart = post({"tokens": sizes.gathered_tokens, "after_s": FAST})
    ten_runs = await cost_us(process, apart, 10, sizes.gathered_tokens)
    paced_one = await gathered_us(process, 1, 200, 50)
    paced_ten = await gathered_us(process, 10, 200, 50)
    return {
        "live": tokens / took_s / 1000,
        "replayed": tokens / median(replays_s) / 1000,
        "1 reader": one / sizes.gathered_tokens,
        "10 readers": ten / sizes.gathered_tokens,
        "10 runs": ten_runs / sizes.gathered_tokens,
        "1 reader, paced": paced_one / 200,
        "10 readers, paced": paced_ten / 200,
    }


async def gathered_us(process: Process, count: int, tokens: int, per_s: float) -> float:
    """Return what one run cost that so many readers followed from its first token."""
    script = {"tokens": tokens, "per_s": per_s, "after_s": FAST}
    before = process.cpu_us()
    (asked,) = await start(post(script, "Prefer: respond-async"))
    await asked.ended
    await whole(get(json.loads(asked.body())["events"]), count, tokens)
    return process.cpu_us() - before


async def at_rest(process: Process, sizes: Sizes) -> Figures:
    await asyncio.sleep(FAST)
    return {"start": process.started_s, "resident": process.resident_kib() / 1024}


async def long_run(process: Process, sizes: Sizes) -> Figures:
    """The cost of a token, apart from that of the run that it is in, in long runs and short."""
    await warm_up()
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
    before = process.cpu_us()
    for _ in range(count):
        await whole(post({"tokens": tokens}), 1, tokens)
    return process.cpu_us() - before


async def in_redis(process: Process, sizes: Sizes) -> Figures:
    await warm_up()
    async with Redis.from_url(REDIS_URL) as redis:
        before, tokens = await redis.info(), sizes.tokens
        await whole(post({"tokens": tokens}), sizes.streams, tokens)
        between = await redis.info()
        paced_tokens, per_s = 20 * sizes.paced_s, 20
        await whole(
            post({"tokens": paced_tokens, "per_s": per_s}), sizes.paced_streams, paced_tokens
        )
        after = await redis.info()
    flooded, paced = sizes.streams * tokens, sizes.paced_streams * paced_tokens
    return {
        "flooded": _redis_us(between, before) / flooded,
        "paced": _redis_us(after, between) / paced,
        "memory": (between["used_memory"] - before["used_memory"]) / flooded,
    }


def _redis_us(after: dict[str, float], before: dict[str, float]) -> float:
    """Return the processor time that Redis used between two of its reports."""
    return 1e6 * sum(after[name] - before[name] for name in ("used_cpu_user", "used_cpu_sys"))


def _first_units() -> dict[str, str]:
    names = [f"{name} {n}" for n in Sizes().starts for name in ("event", "token")]
    return {each: "ms" for name in names for each in (name, f"{name} p99")}


WORKS = {
    1: Work(
        "Processor time of a token made in the process, 20 streams at once",
        in_process,
        {"token": "µs"},
    ),
    2: Work(
        "Processor time of a token from an OpenAI-compatible upstream: 20 streams flooded, "
        "60 paced at 20 tokens a second",
        from_upstream,
        {"flooded": "µs", "paced": "µs"},
        upstream=True,
    ),
    3: Work(
        "Time to the first event and the first token at 1, 50 and 200 simultaneous starts",
        first_events,
        _first_units(),
    ),
    4: Work(
        "Resident memory of a waiting run with its reader, and of each further reader",
        waiting,
        {"run": "KiB", "reader": "KiB"},
    ),
    5: Work(
        "Events a second, live and replayed; processor time of a token for one reader, for ten "
        "readers of one run, and for ten runs, flooded and at 50 tokens a second",
        readers,
        {
            "live": "1,000/s",
            "replayed": "1,000/s",
            "1 reader": "µs",
            "10 readers": "µs",
            "10 runs": "µs",
            "1 reader, paced": "µs",
            "10 readers, paced": "µs",
        },
        who=lambda server: server.ours,
    ),
    6: Work(
        "Time from the start of the process to its first answer, and resident memory then",
        at_rest,
        {"start": "s", "resident": "MiB"},
    ),
    7: Work(
        "Processor time of a run, and of a token beyond that, in runs of 100 tokens and of 10,000",
        long_run,
        {"run": "ms", "short": "µs", "long": "µs"},
    ),
    8: Work(
        "What Redis itself spends on a token, made in the process: processor time flooded, 20 "
        "streams, and paced, 60 at 20 tokens a second, and memory",
        in_redis,
        {"flooded": "µs", "paced": "µs", "memory": "B"},
        who=lambda server: server.redis,
    ),
}
