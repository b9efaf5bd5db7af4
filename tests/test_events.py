"""The wire: exact bytes, and the log that keeps them."""

from __future__ import annotations

import ast
import asyncio
import json
import math
import re
import sys
from pathlib import Path

import pytest

import events
from events import HEARTBEAT, RETRY, EventLog, LogFull, StreamEvent, encode_event

FRAMES = [
    (StreamEvent("done"), 1, b'event: done\ndata: {"type":"done"}\nid: 1\n\n'),
    (
        StreamEvent("text_delta", content="", message_id="m"),
        2,
        b'event: text_delta\ndata: {"type":"text_delta","content":"","message_id":"m"}\nid: 2\n\n',
    ),
    (
        StreamEvent("thinking", content="a\r\nb\rc\nd"),
        10,
        b'event: thinking\ndata: {"type":"thinking","content":"a\\r\\nb\\rc\\nd"}\nid: 10\n\n',
    ),
    (
        StreamEvent("thinking", content="考え中…\u2028\u2029\x85\x00"),
        3,
        'event: thinking\ndata: {"type":"thinking","content":"考え中…\u2028\u2029\x85'
        '\\u0000"}\nid: 3\n\n'.encode(),
    ),
    (
        StreamEvent("thinking", content="\ud83d"),
        4,
        b'event: thinking\ndata: {"type":"thinking","content":"\\ud83d"}\nid: 4\n\n',
    ),
    (
        StreamEvent("error", code="timeout", message="x", retryable=False, ref="r"),
        5,
        b'event: error\ndata: {"type":"error","code":"timeout","message":"x",'
        b'"retryable":false,"ref":"r"}\nid: 5\n\n',
    ),
    (
        StreamEvent("tool_call", tool="t", tool_call_id="c", input={}),
        6,
        b'event: tool_call\ndata: {"type":"tool_call","tool":"t","tool_call_id":"c",'
        b'"input":{}}\nid: 6\n\n',
    ),
]


@pytest.mark.parametrize(("event", "event_id", "frame"), FRAMES)
def test_a_frame_has_exactly_these_bytes(event: StreamEvent, event_id: int, frame: bytes) -> None:
    assert encode_event(event, event_id) == frame


def test_the_halves_of_a_surrogate_pair_join_in_the_client() -> None:
    halves = [encode_event(StreamEvent("x", content=half), 1) for half in ("\ud83d", "\ude00")]
    lines = [frame.split(b"\n")[1].removeprefix(b"data: ") for frame in halves]
    texts = [json.loads(line)["content"] for line in lines]
    assert "".join(texts).encode("utf-16", "surrogatepass").decode("utf-16") == "😀"


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_event(StreamEvent("tool_call", input={"x": math.nan}), 1)


def test_the_heartbeat_is_a_comment_without_an_id_and_the_retry_block_stands_alone() -> None:
    assert HEARTBEAT == b": heartbeat\n\n"
    assert RETRY == b"retry: 2000\n\n"


async def test_ids_count_from_one_without_a_gap() -> None:
    log = EventLog()
    for n in range(3):
        log.append(StreamEvent("thinking", content=str(n)))
    assert re.findall(rb"\nid: (\d+)\n\n", log.read(0, 10**6)[0]) == [b"1", b"2", b"3"]
    assert log.last_id == 3
    assert log.size == len(log.read(0, 10**6)[0])


async def test_every_cursor_and_every_piece_size_give_the_same_bytes() -> None:
    log = EventLog()
    frames = []
    for n in range(20):
        event = StreamEvent("text_delta", content="字" * n, message_id="m")
        log.append(event)
        frames.append(encode_event(event, log.last_id))
    for after in range(21):
        for max_bytes in (1, 100, 500, 10**6):
            pieces, cursor = [], after
            while cursor < log.last_id:
                piece, cursor = log.read(cursor, max_bytes)
                assert len(piece) <= max_bytes or piece in frames
                pieces.append(piece)
            assert b"".join(pieces) == b"".join(frames[after:])
    assert log.read(20, 100) == (b"", 20)


async def test_an_event_beyond_the_limit_leaves_the_log_as_it_was() -> None:
    log = EventLog()
    log.append(StreamEvent("thinking", content="x"))
    before = log.read(0, 10**6)
    with pytest.raises(LogFull):
        log.append(StreamEvent("thinking", content="y"), max_bytes=log.size)
    assert log.read(0, 10**6) == before


async def test_nothing_follows_the_end() -> None:
    log = EventLog()
    log.close()
    with pytest.raises(RuntimeError):
        log.append(StreamEvent("thinking", content="x"))


async def test_a_reader_waits_for_what_follows_its_cursor() -> None:
    log = EventLog()
    readers = [asyncio.create_task(log.wait(0, 60)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(reader.done() for reader in readers)
    log.append(StreamEvent("thinking", content="x"))
    assert await asyncio.gather(*readers) == [True, True, True]
    assert await log.wait(0, 60)
    late = asyncio.create_task(log.wait(1, 60))
    await asyncio.sleep(0)
    log.close()
    assert await late


async def test_a_silent_log_ends_the_wait_in_time_and_keeps_no_waiter() -> None:
    log = EventLog()
    assert not await log.wait(0, 0.001)
    gone = asyncio.create_task(log.wait(0, 60))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert not log._waiting


def test_the_module_imports_the_standard_library_alone() -> None:
    tree = ast.parse(Path(events.__file__).read_text())
    names = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names - {"__future__"} <= sys.stdlib_module_names
