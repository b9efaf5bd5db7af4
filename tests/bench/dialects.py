"""What a text delta costs in each dialect: ``python -m tests.bench.dialects``.

First the translation alone: our own frames go out as they are, so that is all that a dialect adds.
Then the processor time of whole servers, ours and AG-UI's own integration, for the same runs.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import aiohttp

from dialects import ag_ui, ai_sdk, shared
from events import StreamEvent, encode_event
from tests.bench.load import Wrong
from tests.bench.servers import CORES, PORT, ROOT, Process, Server, running
from tests.bench.upstream import answer_of

PASSES = 9
DELTAS = 20_000
STREAMS, TOKENS = 20, 300

AG_UI = "AG-UI"
BODIES: dict[str, Callable[[str, str], tuple[str, Any]]] = {
    "our frames": lambda id_, text: ("/api/chat", {"message": text, "thread_id": id_}),
    "AI SDK": lambda id_, text: (
        "/api/chat",
        {"id": id_, "messages": [{"role": "user", "parts": [{"type": "text", "text": text}]}]},
    ),
    AG_UI: lambda id_, text: (
        "/api/ag-ui",
        {
            **{"threadId": id_, "runId": id_, "state": {}, "tools": [], "context": []},
            **{"messages": [{"id": "1", "role": "user", "content": text}], "forwardedProps": {}},
        },
    ),
}
"""The path and the body that asks for a run, in each vocabulary."""
DELTA_TYPES = {"text_delta", "text-delta", "TEXT_MESSAGE_CONTENT"}


def translation_us(make: Callable[[], shared.Translator], text: str) -> list[float]:
    """Return the processor time of a frame, in microseconds, one a pass."""
    delta = StreamEvent("text_delta", content=text, message_id="lc_run--0" + "a" * 35)
    frames = [encode_event(delta, n) for n in range(2, DELTAS)]
    costs = []
    for _ in range(PASSES):
        translator = make()
        translator(encode_event(StreamEvent("start", run_id="r", thread_id="t"), 1))
        began = time.process_time()
        for frame in frames:
            translator(frame)
        costs.append(1e6 * (time.process_time() - began) / len(frames))
    return costs


def peer(app: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "uvicorn", f"tests.bench.peers.h:{app}", f"--port={PORT}")


OURS = Server("app.py", "", (sys.executable, str(ROOT / "app.py"), f"--port={PORT}"), ours=True)
SERVERS = (
    *((OURS, vocabulary) for vocabulary in BODIES),
    (Server("ag-ui-langgraph", "", peer("app")), AG_UI),
    (Server("ag-ui-langgraph without raw events", "", peer("lean")), AG_UI),
)


async def ask(session: aiohttp.ClientSession, vocabulary: str, id_: str, tokens: int) -> None:
    """Read a run to its end. Raises Wrong unless every token came, each in its own frame."""
    path, body = BODIES[vocabulary](id_, json.dumps({"tokens": tokens}))
    async with session.post(f"http://127.0.0.1:{PORT}{path}", json=body) as response:
        lines = (await response.text()).split("\n")
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    deltas = [each for each in events if each["type"] in DELTA_TYPES]
    text = "".join(each.get("delta", each.get("content")) for each in deltas)
    if len(deltas) != tokens or text != answer_of(tokens):
        raise Wrong(f"{len(deltas)} of {tokens} tokens: {lines[-5:]}")


async def token_us(process: Process, vocabulary: str) -> float:
    """Return the processor time of a token when twenty runs go on at once, in microseconds."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def runs(name: str, tokens: int) -> None:
            ids = [f"{name}-{n}" for n in range(STREAMS)]
            await asyncio.gather(*(ask(session, vocabulary, id_, tokens) for id_ in ids))

        await runs("warm", 100)
        before = process.cpu_us()
        await runs("measured", TOKENS)
        return (process.cpu_us() - before) / STREAMS / TOKENS


def row(name: str, costs: Sequence[float]) -> str:
    return f"| {name} | {median(costs):.1f} ({min(costs):.1f}–{max(costs):.1f}) |"


def main() -> None:
    os.sched_setaffinity(0, {CORES[1]})
    body = {"threadId": "t", "runId": "r"}
    print("| translation of a delta | µs |\n| --- | --- |")
    for text in ("word ", "東京の時刻", "x" * 200):
        size = f"{len(text)} characters"
        print(row(f"AI SDK, {size}", translation_us(lambda: ai_sdk.Translator("r", {}), text)))
        print(row(f"AG-UI, {size}", translation_us(lambda: ag_ui.Translator("r", body), text)))
    costs: list[list[float]] = [[] for _ in SERVERS]
    for _ in range(PASSES):
        for (server, vocabulary), found in zip(SERVERS, costs, strict=True):
            with running(server) as process:
                found.append(asyncio.run(token_us(process, vocabulary)))
    print("\n| a token of the server | µs |\n| --- | --- |")
    for (server, vocabulary), found in zip(SERVERS, costs, strict=True):
        print(row(f"{server.name}, {vocabulary}", found))


if __name__ == "__main__":
    main()
