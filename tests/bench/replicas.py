"""What several servers on one Redis cost and how late they are: `python -m tests.bench.replicas`.

Each pass measures one server whose runs are in memory, then two whose runs are in Redis. The first
server has a core of its own; the second one, Redis and the load share the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests.bench.report import grid, spread
from tests.client import Client, Stream, joined
from tests.conftest import ROOT, Process, run_app
from tests.engines import RedisServer

STREAMS, TOKENS = 20, 1000
STARTS = 100
PACED, PER_S = 100, 50
STOPS = 10
MANY = 100

CORES = sorted(os.sched_getaffinity(0))[:2]

GOALS = {
    "processor time of a token, memory": ("µs", None),
    "processor time of a token, Redis": ("µs", None),
    "processor time of a token with Redis, of memory's": ("×", 1.3),
    "first token with Redis, later by": ("ms", 3),
    "an event on another server, later by": ("ms", 100),
    "Stop on another server, median": ("ms", None),
    "Stop on another server, longest": ("ms", 1200),
    f"connections of two servers, {MANY} runs with a reader on each, more than with one": ("", 0),
}
"""The unit and the highest value that is promised, by the name of a figure."""


def script(tokens: int, **more: float) -> str:
    return json.dumps({"tokens": tokens, **more})


async def cost_us(server: Process) -> float:
    """Return the processor time of a token, made in the process, with so many streams at once."""

    def used_us() -> float:
        # The process's clock. Source: Linux, "clock_getcpuclockid(3)".
        return 1e6 * time.clock_gettime(~server.process.pid << 3 | 2)

    await joined(*[await server.ask(script(100)) for _ in range(10)])
    before = used_us()
    streams = await asyncio.gather(*(server.ask(script(TOKENS)) for _ in range(STREAMS)))
    for events in await joined(*streams):
        assert sum(event["type"] == "text_delta" for event in events) == TOKENS
    return (used_us() - before) / STREAMS / TOKENS


async def first_token_ms(server: Client) -> float:
    times = []
    for _ in range(STARTS):
        began = time.perf_counter()
        stream = await server.ask(script(2))
        await stream.until("text_delta")
        times.append(1000 * (time.perf_counter() - began))
        await stream.events()
    return median(times)


async def later_ms(one: Client, other: Client) -> float:
    """Return how much later than on the owner an event comes on another server."""

    async def arrivals(stream: Stream) -> list[float]:
        return [time.perf_counter() async for _ in stream]

    near = await one.ask(script(PACED, per_s=PER_S, after_s=0.5))
    far = await other.follow((await near.until("start"))["run_id"], after=1)
    pairs = zip(*await asyncio.gather(arrivals(near), arrivals(far)), strict=True)
    return median(1000 * (b - a) for a, b in pairs)


async def stops_ms(one: Client, other: Client) -> list[float]:
    """Return how long it takes to stop runs of one server from another."""
    times = []
    for number in range(STOPS):
        stream = await one.ask(script(1, hold=1))
        run_id = (await stream.until("start"))["run_id"]
        await asyncio.sleep(number / STOPS / 2)  # The owner looks for wishes twice a second.
        began = time.perf_counter()
        _, state = await other.call("POST", f"/api/runs/{run_id}/cancel")
        times.append(1000 * (time.perf_counter() - began))
        assert state["status"] == "cancelled"
    return times


async def more_connections(redis: RedisServer, one: Client, other: Client) -> float:
    counts = []
    for number in (1, MANY):
        streams = [await one.ask(script(1, hold=1)) for _ in range(number)]
        for stream in [*streams]:
            run_id = (await stream.until("start"))["run_id"]
            streams.append(await other.follow(run_id))
            await streams[-1].until("text_delta")
        with redis.client() as client:
            counts.append(len(client.client_list()) - 1)
        for stream in streams:
            stream.close()
    return counts[1] - counts[0]


async def measure(redis: RedisServer, folder: Path) -> dict[str, float]:
    environ = {"AGENT": "tests.bench.graph:graph", "PYTHONPATH": str(ROOT), "MAX_RUNS": "1000"}
    async with run_app(folder / "log", **environ) as alone:
        os.sched_setaffinity(alone.process.pid, {CORES[0]})
        memory = await cost_us(alone), await first_token_ms(alone)
    environ["REDIS_URL"] = redis.url
    async with (
        run_app(folder / "log-1", **environ) as one,
        run_app(folder / "log-2", **environ) as other,
    ):
        os.sched_setaffinity(one.process.pid, {CORES[0]})
        shared = await cost_us(one), await first_token_ms(one)
        later = await later_ms(one, other)
        stops = await stops_ms(one, other)
        figures = [
            *(memory[0], shared[0], shared[0] / memory[0], shared[1] - memory[1], later),
            *(median(stops), max(stops), await more_connections(redis, one, other)),
        ]
    return dict(zip(GOALS, figures, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.replicas", description=__doc__)
    parser.add_argument("--passes", type=int, default=5, metavar="N")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {CORES[-1]})
    results = defaultdict(list)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        redis = RedisServer(Path(folder))
        redis.start()
        stack.callback(redis.stop)
        for number in range(arguments.passes):
            for name, value in asyncio.run(measure(redis, Path(folder))).items():
                results[name].append(value)
                print(f"pass {number + 1}  {name}: {value:.3g} {GOALS[name][0]}", flush=True)
    rows = []
    for name, (unit, limit) in GOALS.items():
        goal = "" if limit is None else f"≤ {limit} {unit}".strip()
        met = "" if limit is None else "met" if median(results[name]) <= limit else "**not met**"
        rows.append([name, f"{spread(results[name])} {unit}".strip(), goal, met])
    command = shlex.join(["python", "-m", "tests.bench.replicas", *sys.argv[1:]])
    print(f"\n`{command}`, {date.today()}: {arguments.passes} passes.\n")
    print("\n".join(grid(["", "median (lowest–highest)", "goal", ""], rows)))


if __name__ == "__main__":
    main()
