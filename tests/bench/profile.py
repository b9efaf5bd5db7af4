"""Where the time goes: to a run's first token, in LangGraph alone, and at the start.

.venv/bin/python -m tests.bench.profile
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeVar
from uuid import uuid4

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langgraph.checkpoint.memory import InMemorySaver

from agent import Agent
from events import Asked
from tests.bench.graph import graph, make_model
from tests.bench.load import run
from tests.bench.report import grid
from tests.bench.servers import (
    CORES,
    PLAIN,
    PORT,
    ROOT,
    SERVERS,
    Process,
    answers,
    make_plain,
    running,
)
from tests.bench.wires import OURS

OURS_ALONE = next(server for server in SERVERS if server.name == "ours")
EACH = 10
"""So many runs of each way make a round."""

Result = TypeVar("Result")
Window = tuple[float, float]
Function = tuple[str, str]
"""The file and the name of a function."""
Sample = tuple[float, list[Function]]
"""When it was taken, and the functions from the innermost outwards."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.profile", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less, to see whether it works")
    quick = parser.parse_args().quick
    make_plain()
    os.sched_setaffinity(0, {CORES[1]})
    requests, tokens, rounds = (200, 100, 1) if quick else (5000, 3000, 40)
    tables = of_a_request(requests), of_a_token(tokens), of_langgraph(rounds), of_the_start()
    for table in tables:
        print(*table, sep="\n", end="\n\n", flush=True)


# ---------------------------------------------------------------------------------- one request


def of_a_request(requests: int) -> Iterator[str]:
    """Yield a table of the functions that run from a request's first byte to its first token."""
    with running(OURS_ALONE):
        untouched_us = median(lengths_us(asyncio.run(asked(requests))))
    windows, samples = sampled(lambda process: asyncio.run(asked(requests)))
    windows.sort(key=lambda window: window[1] - window[0])
    usual = sorted(windows[: len(windows) * 9 // 10])  # Not those that something else slowed.
    stacks = [*within(usual, samples)]
    whole_us = mean(lengths_us(usual))
    each_us = whole_us / len(stacks)
    yield f"From a request's first byte to its first token: {untouched_us:.0f} µs, and with the"
    yield f"profiler's timer {whole_us:.0f} µs, of which"
    yield ""
    yield from by_owner(stacks, each_us, ".0f")
    yield ""
    whole = Counter(function for stack in stacks for function in {*stack} if place(function[0]))
    alone = Counter(next((f for f in stack if place(f[0])), ("", "")) for stack in stacks)
    rows = []
    for function, count in whole.most_common():
        file, name = place(function[0]), function[1]
        limit_us = 25 if owner_of(file) == "ours" else 100
        if count * each_us >= limit_us or alone[function] * each_us >= 25:
            took = (f"{n * each_us:.0f}" for n in (count, alone[function]))
            rows.append([f"`{file}` {name}", *took])
    yield from grid(["function", "with what it calls, µs", "alone, µs"], rows)


def sampled(work: Callable[[Process], Result]) -> tuple[Result, list[Sample]]:
    """Return what the work on our server returned, and the samples that were taken meanwhile."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.json"
        python, *command = OURS_ALONE.command
        sampler = (python, "-m", "tests.bench.sampler", str(path), *command)
        with running(replace(OURS_ALONE, command=sampler)) as process:
            result = work(process)
            process.signal(signal.SIGUSR1)
            while not path.exists():
                time.sleep(0.1)  # The sampler gives no other sign that the file is whole.
        return result, json.loads(path.read_text())


def by_owner(stacks: Sequence[list[Function]], each_us: float, form: str) -> Iterator[str]:
    """Yield a table of whose code the samples are in, each of which stands for so many µs."""
    rooms = Counter(room_of(stack) for stack in stacks)
    owners = Counter(owner_of(room_of(stack)) for stack in stacks)
    rows = []
    for owner, count in owners.most_common():
        ours = [(room, n * each_us) for room, n in rooms.most_common() if owner_of(room) == owner]
        parts = [f"{room} {us:{form}}" for room, us in ours if us > 0.01 * len(stacks) * each_us]
        about = ", ".join(parts) if len(parts) > 1 else ""
        rows.append([owner, f"{count * each_us:{form}}", about])
    yield from grid(["whose code", "µs", "of that"], rows)


def lengths_us(windows: Sequence[Window]) -> list[float]:
    return [1e6 * (end - start) for start, end in windows]


async def asked(requests: int) -> list[Window]:
    """Ask one request after another; return when each was sent, and its first token read."""
    for _ in range(100):
        await run(OURS, {"tokens": 1})
    streams = [(await run(OURS, {"tokens": 1}))[0] for _ in range(requests)]
    return [(s.sent, s.first_token) for s in streams if s.first_token]


def within(windows: Sequence[Window], samples: Sequence[Sample]) -> Iterator[list[Function]]:
    """Yield the functions of the samples that lie in a window; both are in order of time."""
    left = iter(windows)
    start, end = next(left)
    for at, stack in samples:
        while at > end:
            if (window := next(left, None)) is None:
                return
            start, end = window
        if at >= start:
            # What is outside of the event loop is the same for all.
            names = [name for _, name in stack]
            inner = stack[: names.index("Handle._run")] if "Handle._run" in names else stack[:1]
            yield [(file, name) for file, name in inner]


def room_of(stack: Sequence[Function]) -> str:
    """Return the package, or our room, of the innermost function that is not Python's."""
    if stack and stack[0][1].endswith(".select"):
        return "waiting"
    found = next((p for file, _ in stack if (p := place(file))), "asyncio")
    return "the scripted model" if found.startswith("tests/") else found.partition("/")[0]


HTTP = ("aiohttp", "aiosignal", "asyncio", "multidict", "yarl")
ROOMS = {path.name for path in ROOT.glob("*")}


def owner_of(room: str) -> str:
    room = room.partition("/")[0]
    if room in ("waiting", "the scripted model", "tests"):
        return room
    if room in HTTP:
        return "asyncio and aiohttp"
    return "ours" if room in ROOMS else "LangGraph, and what it uses"


def place(file: str) -> str:
    """Return the file's name for a person, nothing if it belongs to Python."""
    if "site-packages" in file:
        return file.partition("site-packages/")[2]
    return file.removeprefix(f"{ROOT}/") if file.startswith(f"{ROOT}/") else ""


# -------------------------------------------------------------------------------------- one token


def of_a_token(tokens: int) -> Iterator[str]:
    """Yield whose code the processor time of a token is spent in, with 20 streams at once."""
    streams = 20

    def work(process: Process) -> tuple[Window, float]:
        asyncio.run(run(OURS, {"tokens": 100}, streams))
        began, before_us = time.perf_counter(), process.cpu_us()
        asyncio.run(run(OURS, {"tokens": tokens}, streams))
        return (began, time.perf_counter()), process.cpu_us() - before_us

    (window, spent_us), samples = sampled(work)
    stacks = [stack for stack in within([window], samples) if room_of(stack) != "waiting"]
    each_us = spent_us / (streams * tokens)
    yield f"A token made in the process: {each_us:.1f} µs with the profiler's timer, of which"
    yield ""
    yield from by_owner(stacks, each_us / len(stacks), ".1f")


# -------------------------------------------------------------------------------- LangGraph alone


def of_langgraph(rounds: int) -> Iterator[str]:
    """Yield when the first token comes in this process, without HTTP."""
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, (begin, remembering) in WAYS.items():
            taken = asyncio.run(first_tokens(begin, remembering))
            times.setdefault(name, []).extend(taken)
    rows = [[name, f"{1000 * median(each):.2f}"] for name, each in times.items()]
    yield from grid(["in the process, without HTTP", "first token, ms"], rows)


async def first_tokens(begin: Begin, remembering: Any) -> list[float]:
    """Return how long each of some runs took to its first token."""
    taken = []
    for number in range(EACH + 2):
        thread = str(uuid4())
        if remembering:
            config = {"configurable": {"thread_id": thread}}
            await remembering.aupdate_state(config, {"messages": EARLIER}, as_node="model")
            if AGENT.memory and remembering is AGENT.graph:  # As a turn leaves its thread.
                AGENT.memory.use(thread)
                AGENT.memory.free(thread, settled=True)
        began = time.perf_counter()
        async with aclosing(begin(thread)) as parts:
            async for part in parts:
                if is_token(part):
                    if number >= 2:  # The first ones fill caches.
                        taken.append(time.perf_counter() - began)
                    break
    return taken


def is_token(part: Any) -> bool:
    match part:
        case AIMessageChunk() | ("messages", _) | {"type": "messages"}:
            return True
    return getattr(part, "type", "") == "text_delta"


Begin = Callable[[str], AsyncGenerator[Any, None]]
"""Starts a run in a thread."""

QUESTION = '{"tokens": 2}'
EARLIER = [
    (AIMessage if n % 2 else HumanMessage)("Some words, as many as people write.", id=str(n))
    for n in range(200)
]
REMEMBERING = graph.copy({"checkpointer": InMemorySaver()})
AGENT = Agent(graph, "bench")


class Handler(BaseCallbackHandler):
    run_inline = True


def of_model(thread: str) -> Any:
    return make_model().astream([HumanMessage(QUESTION)])


def of_d(thread: str) -> Any:
    given: Any = {"messages": [HumanMessage(QUESTION)]}
    modes: Any = ["messages", "tools", "updates"]
    return graph.astream(given, stream_mode=modes)


def of_our_modes(thread: str, graph: Any = graph, handlers: Sequence[Any] = ()) -> Any:
    return graph.astream(
        {"messages": [HumanMessage(QUESTION)]},
        {"configurable": {"thread_id": thread}, "callbacks": [*handlers]},
        stream_mode=["messages", "tools", "updates", "custom"],
        subgraphs=True,
        version="v2",
        durability="exit" if graph.checkpointer else None,
    )


def with_handler(thread: str) -> Any:
    return of_our_modes(thread, handlers=[Handler()])


def with_memory(thread: str) -> Any:
    return of_our_modes(thread, REMEMBERING, [Handler()])


async def of_turn(thread: str) -> AsyncGenerator[Any, None]:
    turn = await AGENT.turn(Asked(thread, QUESTION))
    turn.begin(lambda: True)
    try:
        async with aclosing(turn.stream()) as events:
            async for event in events:
                yield event
    finally:
        await turn.settle("cancelled")


WAYS: dict[str, tuple[Begin, Any]] = {
    "the model alone": (of_model, None),
    "LangGraph, with d's stream modes": (of_d, None),
    "LangGraph, with ours (`custom`, subgraphs, version 2)": (of_our_modes, None),
    "and with a callback handler": (with_handler, None),
    "and with LangGraph's own memory, written at the end": (with_memory, None),
    "our `Turn.stream`, all of that": (of_turn, None),
    "LangGraph with its own memory, 200 earlier messages": (with_memory, REMEMBERING),
    "our `Turn.stream`, 200 earlier messages": (of_turn, AGENT.graph),
}
"""How a run is started, and the graph whose thread gets earlier messages."""


# -------------------------------------------------------------------------------------- the start


def of_the_start() -> Iterator[str]:
    """Yield what is imported until the first page is served, and until a run can start."""
    figures = {path: imported_us(path) for path in ("/", "/healthz")}
    names = [name for name, _ in figures["/healthz"].most_common(16)]
    rows = [[n, *(f"{by_package[n] / 1000:.0f}" for by_package in figures.values())] for n in names]
    whole = [f"{by_package.total() / 1000:.0f}" for by_package in figures.values()]
    heads = ["imported, with `-X importtime`", "to the first page, ms", "to `/healthz`, ms"]
    yield from grid(heads, [*rows, ["all", *whole]])


def imported_us(path: str) -> Counter[str]:
    """Return the time of each package's imports until the server answers on a path."""
    command = (PLAIN, "-X", "importtime", ROOT / "app.py", f"--port={PORT}")
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        while not answers(f"http://127.0.0.1:{PORT}{path}"):
            time.sleep(0.002)  # The server gives no other sign that it listens.
        process.kill()
        process.wait()
        log.seek(0)
        found = re.findall(r"^import time: +(\d+) \| +\d+ \| +(\w+)", log.read(), re.MULTILINE)
    by_package: Counter[str] = Counter()
    for own_us, package in found:
        by_package[package] += int(own_us)
    return by_package


if __name__ == "__main__":
    main()
