"""An OpenAI-compatible chat-completions server that follows a script, on a real socket.

Like OpenAI's it refuses a history in which a tool call lacks its result.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from aiohttp import web

STALL = "stall"
CUT = "cut"
"""Close the connection in the middle of the answer."""


def text(*pieces: str) -> list[Any]:
    return [{"content": piece} for piece in pieces]


def tool_call(tool: str, *fragments: str, call_id: str = "call_1", index: int = 0) -> list[Any]:
    """A call as deltas: the name, then its arguments in fragments."""
    first = {"index": index, "id": call_id, "function": {"name": tool, "arguments": ""}}
    rest = [{"index": index, "function": {"arguments": fragment}} for fragment in fragments]
    return [{"tool_calls": [call]} for call in (first, *rest)]


class Upstream:
    """Answers each request with the next reply of its script, the last one again and again.

    A reply is a status (an int, or a pair of status and body) or a list of deltas, in which
    ``STALL`` waits for ever, ``CUT`` breaks the connection, an ``asyncio.Event`` is waited for
    and a dict with ``error`` or ``choices`` goes out as it is.
    """

    def __init__(self) -> None:
        self.replies: list[Any] = [text("Hello")]
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.open = 0
        self.dropped = asyncio.Event()
        """Set when a client left before its answer was over."""
        self.stalling = asyncio.Event()

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.headers.append(request.headers)
        reply = self.replies[min(len(self.requests), len(self.replies) - 1)]
        self.requests.append(body)
        if problem := lacks_a_result(body["messages"]):
            reply = 400, {"error": {"message": problem, "type": "invalid_request_error"}}
        if isinstance(reply, int):
            reply = reply, {"error": {"message": "secret-of-the-provider", "type": "x"}}
        if isinstance(reply, tuple):
            # No second try: the client's own retries would only make the tests slow.
            headers = {"x-should-retry": "false"}
            return web.json_response(reply[1], status=reply[0], headers=headers)
        self.open += 1
        try:
            return await self._stream(request, reply)
        except (asyncio.CancelledError, ConnectionError):
            self.dropped.set()
            raise
        finally:
            self.open -= 1

    async def _stream(self, request: web.Request, reply: Sequence[Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(**fields: Any) -> None:
            chunk = {"id": "x", "object": "chat.completion.chunk", "model": "m", **fields}
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())

        calls = False
        for step in reply:
            match step:
                case "stall":
                    self.stalling.set()
                    await asyncio.Event().wait()
                case "cut":
                    assert request.transport
                    request.transport.abort()
                    return response
                case asyncio.Event():
                    self.stalling.set()
                    await step.wait()
                case {"error": _} | {"choices": _}:
                    await response.write(f"data: {json.dumps(step)}\n\n".encode())
                case _:
                    calls = calls or "tool_calls" in step
                    await send(choices=[{"index": 0, "delta": step, "finish_reason": None}])
        reason = "tool_calls" if calls else "stop"
        await send(choices=[{"index": 0, "delta": {}, "finish_reason": reason}])
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        await send(choices=[], usage=usage)
        await response.write(b"data: [DONE]\n\n")
        return response


def lacks_a_result(messages: Sequence[dict[str, Any]]) -> str | None:
    """Say what OpenAI would about tool calls that are not followed by their results."""
    wanted: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in wanted:
                return "a tool message must follow a call of its id"
            wanted.discard(message["tool_call_id"])
            continue
        if wanted:
            return f"tool_calls must be followed by tool messages, missing {sorted(wanted)}"
        wanted = {call["id"] for call in message.get("tool_calls") or ()}
        for call in message.get("tool_calls") or ():
            json.loads(call["function"]["arguments"])
    return f"tool_calls must be followed by tool messages, missing {wanted}" if wanted else None
