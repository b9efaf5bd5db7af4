"""A client that reads a stream's bytes itself, and checks each frame against the contract."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any, Self

import aiohttp

Event = dict[str, Any]

FRAME = re.compile(rb"event: (\w+)\ndata: (.*)\nid: (\d+)\n\n")


class Stream:
    """One response that follows a log: its bytes so far, and the events in them."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.headers = response.headers
        self.raw = b""
        self.heartbeats = 0
        self.ids: list[int] = []

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield events as they come; whatever is not a frame of the contract fails."""
        block = b""
        async for line in self.response.content:
            self.raw += line
            block += line
            if line != b"\n":
                continue
            if block == b": heartbeat\n\n":
                self.heartbeats += 1
            elif block == b"retry: 2000\n\n":
                assert not self.ids, "retry opens the stream"
            else:
                match = FRAME.fullmatch(block)
                assert match, block
                self.ids.append(int(match[3]))
                event = json.loads(match[2])
                assert event["type"] == match[1].decode()
                yield event
            block = b""

    async def until(self, type_: str) -> Event:
        """Read on to the next event of this type."""
        async for event in self:
            if event["type"] == type_:
                return event
        raise AssertionError(f"no {type_} in {self.raw!r}")

    async def events(self) -> list[Event]:
        """Read to the end."""
        return [event async for event in self]

    def close(self) -> None:
        """Leave, as a closed tab does."""
        self.response.close()


class Client:
    """Speaks to one server by paths below its URL."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def __aenter__(self) -> Self:
        # A run may take longer than aiohttp's five minutes, and headers may be long.
        self.session = aiohttp.ClientSession(self.url, timeout=aiohttp.ClientTimeout(60))
        self.streams: list[Stream] = []
        return self

    async def __aexit__(self, *_: object) -> None:
        for stream in self.streams:
            stream.close()
        await self.session.close()

    async def _stream(self, response: aiohttp.ClientResponse) -> Stream:
        assert response.status == 200, await response.text()
        self.streams.append(Stream(response))
        return self.streams[-1]

    async def ask(self, message: str | None = None, /, **fields: Any) -> Stream:
        """Start a run and return its stream; ``headers`` are the request's."""
        headers = fields.pop("headers", {})
        body = {"message": message, **fields} if message is not None else fields
        response = await self.session.post("/api/chat", json=body, headers=headers)
        return await self._stream(response)

    async def run(self, message: str | None = None, /, **fields: Any) -> list[Event]:
        """Start a run and return all its events, checked against what always holds."""
        events = await (await self.ask(message, **fields)).events()
        check(events)
        return events

    async def follow(self, run_id: str, after: int | None = None, query: str = "") -> Stream:
        headers = {} if after is None else {"Last-Event-ID": str(after)}
        response = await self.session.get(f"/api/runs/{run_id}/events{query}", headers=headers)
        return await self._stream(response)

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """Return status and JSON body, None where there is none."""
        async with self.session.request(method, path, **options) as response:
            body = await response.read()
            return response.status, json.loads(body) if body else None


def check(events: list[Event], redacted: bool = False) -> None:
    """Check one whole run against the contract's "What always holds".

    ``redacted``: the graph changes the answer after it was streamed.
    """
    types = [event["type"] for event in events]
    assert types[0] == "start"
    assert types.count("start") == 1
    assert types[-1] == "done"
    assert types.count("done") == 1
    reason = events[-1]["reason"]
    assert reason in ("completed", "interrupted", "cancelled", "timeout", "error", "shutdown")
    assert types.count("error") == (reason in ("timeout", "error", "shutdown"))
    open_calls: dict[str, str] = {}
    for event in events:
        if event["type"] == "tool_call":
            assert event["tool_call_id"] not in open_calls
            assert isinstance(event["input"], dict)
            open_calls[event["tool_call_id"]] = event["tool"]
        elif event["type"] in ("tool_progress", "tool_result"):
            assert open_calls[event["tool_call_id"]] == event["tool"]
            if event["type"] == "tool_result":
                del open_calls[event["tool_call_id"]]
                shown = "result" if event["status"] == "ok" else "message"
                assert {"result", "message"} & event.keys() == {shown}
    assert not open_calls
    texts: dict[str, str] = {}
    for event in events:
        if event["type"] == "text_delta":
            texts[event["message_id"]] = texts.get(event["message_id"], "") + event["content"]
    finals = [event for event in events if event["type"] == "final_answer"]
    assert len(finals) <= (reason == "completed")
    for final in finals:
        assert redacted or final["content"] == whole(texts[final["message_id"]])


def whole(text: str) -> str:
    """Join the halves of surrogate pairs, as a browser's strings do by themselves."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def kinds(events: list[Event]) -> list[str]:
    """The types of events, repeated deltas as one."""
    types = [event["type"] for event in events]
    return [
        type_
        for n, type_ in enumerate(types)
        if not (type_.endswith("_delta") and n and types[n - 1] == type_)
    ]


async def joined(*streams: Stream) -> list[list[Event]]:
    return await asyncio.gather(*(stream.events() for stream in streams))
