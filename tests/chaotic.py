"""An OpenAI-compatible server that streams, stalls, cuts, errs and calls tools, by seed.

What it does with a request is drawn from the seed and the request's own words, so that it is the
same however the requests of many runs mix.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from tests.upstream import CUT, STALL, Upstream, lacks_a_result, text, tool_call

TOOLS = [
    ("calculate", '{"expression":"6*7"}'),
    ("calculate", '{"expression":"1/0"}'),
    ("current_time", '{"timezone":"Asia/Tokyo"}'),
    ("current_time", '{"timezone":"Nowhere"}'),
    ("search_docs", '{"query":"heartbeat"}'),
    ("wait", '{"seconds":0.05}'),
    ("wait", '{"seconds":1.5}'),
    ("wait", '{"seconds":"long"}'),
    ("calculate", '{"expression":'),
    ("calculate", "[1]"),
    ("no_such_tool", "{}"),
]

HOLD = "hold"
"""The question whose answer begins and does not go on."""

PIECES = ["Hel", "lo ", "考え", "\n\n", "data: x\n\n", "\r", "\u2028", "😀", "**b**"]


class ChaoticUpstream(Upstream):
    """``problems`` holds what OpenAI would refuse in the histories that came."""

    def __init__(self, seed: str) -> None:
        super().__init__()
        self.seed = seed
        self.problems: list[str] = []

    async def complete(self, request: web.Request) -> web.StreamResponse:
        messages = (await request.json())["messages"]
        try:
            problem = lacks_a_result(messages)
        except ValueError as error:
            problem = f"arguments are no JSON: {error}"
        if problem:
            told = [(m["role"], m.get("tool_calls") or m.get("tool_call_id")) for m in messages]
            self.problems.append(f"{problem} in {told[-8:]}")
        question = max(n for n, m in enumerate(messages) if m["role"] == "user")
        asked = messages[question]["content"]
        rng = random.Random(f"{self.seed}/{asked}/{len(messages)}")
        # Nothing is kept of the requests, whose histories grow.
        self.requests.clear()
        self.headers.clear()
        held = [*text("One moment"), STALL]
        self.replies = [held if asked == HOLD else reply(rng, len(messages) - question < 6)]
        return await super().complete(request)


def reply(rng: random.Random, calls: bool) -> Any:
    if rng.random() < 0.1:
        return rng.choice((400, 401, 403, 429, 500, 503))
    return [*steps(rng, calls)]


def steps(rng: random.Random, calls: bool) -> Iterator[Any]:
    for _ in range(rng.choice((0, 1, 3, 10, 60))):
        if rng.random() < 0.1:
            yield pause(rng.uniform(0, 0.1))
        yield from text(rng.choice(PIECES))
        if rng.random() < 0.02:
            yield {"reasoning_content": "hm"}
    if rng.random() < 0.04:
        # Much more than the kernel holds for a reader; with luck more than a run may be.
        yield from text(*["x" * 60_000] * rng.randrange(40, 80))
    match rng.randrange(10):
        case 0:
            yield STALL
        case 1:
            yield CUT
        case 2:
            yield {"error": {"message": "secret-of-the-provider"}}
        case 3 | 4 | 5 | 6 if calls:
            for index in range(rng.choice((1, 1, 2, 3))):
                tool, arguments = rng.choice(TOOLS)
                half = len(arguments) // 2
                yield from tool_call(
                    tool, arguments[:half], arguments[half:], call_id=f"call_{index}", index=index
                )
            if rng.random() < 0.1:
                yield rng.choice((STALL, CUT))


def pause(seconds: float) -> asyncio.Event:
    """An event that comes about by itself."""
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, event.set)
    return event
