"""What is sent to a server to start a run, and what its stream has: one wire for each protocol."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

Answer = tuple[list[str], bool]
"""The text of each token, and whether the stream came to its own end."""


@dataclass(frozen=True)
class Wire:
    """A protocol: where and how it is asked, and how its stream is read."""

    path: str
    body: Callable[[str], dict[str, Any]]
    """What a user's message is sent as."""
    first: bytes
    """What the first event of a run begins with."""
    token: bytes
    """What the frame of a token begins with."""
    read: Callable[[Sequence[str], Sequence[Any]], Answer]
    """Takes the names and the data of all events."""

    def ask(self, script: dict[str, Any], *headers: str, **fields: Any) -> bytes:
        """Return the request that starts a run of this script."""
        body = json.dumps({**self.body(json.dumps(script)), **fields})
        head = (
            f"POST {self.path} HTTP/1.1",
            "Host: 127.0.0.1",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *headers,
        )
        return ("\r\n".join(head) + "\r\n\r\n" + body).encode()

    def answer(self, stream: bytes) -> Answer:
        """Return what a whole stream says."""
        lines = stream.decode().replace("\r\n", "\n").split("\n")
        names = [line[7:] for line in lines if line.startswith("event: ")]
        data = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
        return self.read(names, data)


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()


def _ours(names: Sequence[str], data: Sequence[Any]) -> Answer:
    deltas = [event for event in data if event["type"] == "text_delta"]
    named = all(event["message_id"] for event in deltas)
    return [event["content"] for event in deltas], named and data[-1]["type"] == "done"


def _platform(names: Sequence[str], data: Sequence[Any]) -> Answer:
    def texts() -> Iterator[str]:
        for name, each in zip(names, data, strict=True):
            if name == "messages" and each[0]["content"]:
                yield each[0]["content"]

    return [*texts()], bool(names) and names[-1] == "updates"


def _ag_ui(names: Sequence[str], data: Sequence[Any]) -> Answer:
    texts = [event["delta"] for event in data if event["type"] == "TEXT_MESSAGE_CONTENT"]
    return texts, bool(data) and data[-1]["type"] == "RUN_FINISHED"


OURS = Wire(
    path="/api/chat",
    body=lambda message: {"message": message},
    first=b"event: start",
    token=b"event: text_delta",
    read=_ours,
)
PLATFORM = Wire(
    path="/runs/stream",
    body=lambda message: {
        "assistant_id": "agent",
        "input": {"messages": [{"role": "user", "content": message}]},
        "stream_mode": ["messages-tuple", "updates"],
    },
    first=b"event: metadata",
    token=b"event: messages",
    read=_platform,
)
AG_UI = Wire(
    path="/api/ag-ui",
    body=lambda message: {
        "threadId": str(uuid4()),
        "runId": str(uuid4()),
        "messages": [{"id": str(uuid4()), "role": "user", "content": message}],
        "state": {},
        "tools": [],
        "context": [],
        "forwardedProps": {},
    },
    first=b'data: {"type":"RUN_STARTED"',
    token=b'data: {"type":"TEXT_MESSAGE_CONTENT"',
    read=_ag_ui,
)
