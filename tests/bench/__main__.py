"""Measure every server in turn, pass after pass, and write ``results.json``, table and picture."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import date
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from tests.bench.load import Wrong
from tests.bench.report import Results, plot, table
from tests.bench.servers import (
    CORES,
    SERVERS,
    Server,
    make_old,
    make_plain,
    running,
    running_upstream,
)
from tests.bench.works import QUICK, WORKS, Figures, Sizes, Work

PACKAGES = (
    "aiohttp",
    "langgraph",
    "langchain-core",
    "langchain-openai",
    "openai",
    "uvloop",
    "starlette",
    "uvicorn",
    "httptools",
    "fastapi",
    "sse-starlette",
    "aiohttp-sse",
    "granian",
    "langgraph-api",
    "ag-ui-langgraph",
)
WORK_S = 120
"""The longest that a work may take on one server."""


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--passes", type=int, metavar="N", help="3, or 1 with --quick")
    parser.add_argument("--only", metavar="1,3", help="these works alone")
    parser.add_argument("--servers", metavar="a,ours", help="these servers alone")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see whether it works")
    parser.add_argument("--add", action="store_true", help="add to the passes in FOLDER")
    folder = Path(__file__).resolve().parent / "results"
    parser.add_argument("--out", type=Path, default=folder, metavar="FOLDER")
    arguments = parser.parse_args()
    arguments.passes = arguments.passes or (1 if arguments.quick else 3)
    return arguments


def measure(server: Server, work: Work, sizes: Sizes) -> Figures:
    """Return the figures of one work on a server that is started for it."""

    async def in_time() -> Figures:
        async with asyncio.timeout(WORK_S):
            return await work.measure(process, sizes)

    with ExitStack() as stack:
        if work.model == "upstream":
            stack.enter_context(running_upstream())
        process = stack.enter_context(running(server, work.model))
        return asyncio.run(in_time())


def measure_all(
    servers: Sequence[Server], works: dict[int, Work], passes: int, sizes: Sizes
) -> tuple[Results, list[str]]:
    """Return the figures, by name and server one a pass, and why some of them are void."""
    results: Results = {}
    void = []
    for number in range(passes):
        for key, work in works.items():
            for server in servers:
                if not work.who(server):
                    continue
                figures: Figures = {}
                try:
                    figures = measure(server, work, sizes)
                except (Wrong, TimeoutError, RuntimeError) as error:
                    notes = " ".join(getattr(error, "__notes__", ()))
                    print(f"void: {server.name}, work {key}: {error!r} {notes}", file=sys.stderr)
                    void.append(f"{server.name} in work {key}, pass {number + 1}")
                for name in figures or work.units:
                    by_server = results.setdefault(f"{key} {name}", {})
                    by_server.setdefault(server.name, []).append(figures.get(name))
                told = "  ".join(f"{n} {v:.4g} {work.units[n]}" for n, v in figures.items())
                print(f"pass {number + 1}  work {key}  {server.name:6}{told}", flush=True)
    return results, void


def describe(void: list[str]) -> dict[str, Any]:
    """Return what has to be known of a measurement to judge it, or to repeat it."""
    cpu = Path("/proc/cpuinfo").read_text().partition("model name")[2].partition("\n")[0]
    installed = {found.name: found.version for found in distributions()}
    processor = cpu.strip("\t: ") or platform.machine()
    return {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]]),
        "cores": f"{processor}, server on core {CORES[0]}, load on core {CORES[1]}",
        "left out": [f"{s.name}: {s.missing()}" for s in SERVERS if s.missing()],
        "versions": {
            "Python": platform.python_version(),
            "Linux": platform.release().partition("-")[0],
        }
        | {name: installed[name] for name in PACKAGES if name in installed},
        "void": void,
    }


def choose(arguments: argparse.Namespace) -> tuple[list[Server], dict[int, Work]]:
    """Return the servers that are asked for and are here, and the works."""
    keys = [int(key) for key in arguments.only.split(",")] if arguments.only else [*WORKS]
    works = {key: WORKS[key] for key in keys}
    names = arguments.servers.split(",") if arguments.servers else [s.name for s in SERVERS]
    servers = []
    for server in SERVERS:
        if why := server.missing():
            print(f"left out: {server.name} ({server.about}): {why}")
        elif server.name in names and any(work.who(server) for work in works.values()):
            servers.append(server)
    return servers, works


def joined(known: Results, new: Results) -> Results:
    """Return the passes of both."""
    whole = {figure: {**by_server} for figure, by_server in known.items()}
    for figure, by_server in new.items():
        for server, values in by_server.items():
            earlier = whole.setdefault(figure, {}).get(server, [])
            whole[figure][server] = earlier + values
    return whole


def main() -> None:
    arguments = read_arguments()
    make_plain()
    make_old()
    servers, works = choose(arguments)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.sched_setaffinity(0, {CORES[1]})
    # The servers have sessions of their own: without an exit they would outlive the bench.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for server in servers:
        with running(server):  # What the first start compiles is no cost of the others.
            pass
    sizes = QUICK if arguments.quick else Sizes()
    results, void = measure_all(servers, works, arguments.passes, sizes)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.json"
    about = describe(void)
    if arguments.add and path.exists():
        known = json.loads(path.read_text())
        results = joined(known["results"], results)
        about["void"] = known["void"] + void
    document = json.dumps({**about, "results": results}, indent=1, ensure_ascii=False)
    path.write_text(document + "\n")
    (arguments.out / "table.md").write_text(text := table(results, about))
    plot(results, arguments.out / "speed.png")
    print(f"\n{text}\nWritten to {arguments.out}")
    sys.exit(bool(void))


if __name__ == "__main__":
    main()
