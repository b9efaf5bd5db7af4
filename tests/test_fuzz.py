"""Bad bytes for the HTTP side of the real process, seeded: refused, or the connection closed.

``CHAOS_SEED`` and ``CHAOS_SECONDS`` in the environment choose other bytes, and more of them.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.conftest import Process
from tests.raw import SEED, assert_clean, records, request, seconds

Launch = Callable[..., Awaitable[Process]]

PATIENCE_S = 0.5
"""How long to listen to a server that may rightly wait for the rest of a request."""

CODES = {
    400: {"invalid_json", "invalid_request", "invalid_last_event_id", "nothing_to_resume"},
    401: {"unauthorized"},
    403: {"origin_not_allowed", "host_not_allowed"},
    404: {"unknown_run", "unknown_thread", "unknown_message", "not_found"},
    405: {"method_not_allowed"},
    409: {"thread_busy", "idempotency_conflict"},
    413: {"too_large"},
    415: {"unsupported_media_type"},
    500: {"internal"},
    503: {"too_many_runs", "draining"},
}

NOT_OURS = {400: "what is not HTTP", 404: "a file", 416: "a part of a file"}
"""The refusals that may be aiohttp's own, and what of: they have no code."""

INSIDES = re.compile(rb"(?i)traceback|errno|aiohttp|langgraph|langchain|\.py\b")


async def exchange(url: str, data: bytes, patience_s: float = PATIENCE_S) -> bytes:
    """Send bytes and return what comes back until the server closes, or has nothing to say."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = b""
    try:
        writer.write(data)
        while more := await asyncio.wait_for(reader.read(2**16), patience_s):
            answer += more
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.transport.abort()
    return answer


def responses(answer: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield status and body of each response; what is no response at all fails."""
    while answer:
        head, end, rest = answer.partition(b"\r\n\r\n")
        match = re.match(rb"HTTP/\d\.\d (\d{3}) ", head)
        assert match and end, answer[:200]
        if match[1] == b"100":
            answer = rest
            continue
        if b"Transfer-Encoding: chunked" in head and rest.startswith(b"0\r\n\r\n"):
            yield int(match[1]), b""
            answer = rest[5:]
            continue
        if b"text/event-stream" in head:
            # Its body is for test_chaos to read; what follows it in a pipeline is not looked at.
            return
        length = re.search(rb"(?i)\ncontent-length: (\d+)", head)
        size = min(int(length[1]) if length else 0, len(rest))
        # An answer to HEAD tells the length of a body that does not come.
        if size and not rest.startswith(b"HTTP/1."):
            yield int(match[1]), rest[:size]
            rest = rest[size:]
        elif b"Content-Length: 0" in head:
            yield int(match[1]), b""
        answer = rest


def told_refs(answer: bytes) -> Iterator[str]:
    """Check the refusals in an answer against the contract's, and yield the refs in them."""
    for status, body in responses(answer):
        if status < 400:
            continue
        assert not INSIDES.search(body), answer
        if status in NOT_OURS and not body.startswith(b"{"):
            continue
        error = json.loads(body)["error"]
        assert error["code"] in CODES[status], answer
        assert error["message"], answer
        if status == 500:
            yield error["ref"]


async def send_all(server: Process, batch: list[bytes]) -> set[str]:
    """Send a batch, many at once; the server is well after it. Return the refs in its answers."""
    refs: set[str] = set()
    wrong: list[str] = []
    for first in range(0, len(batch), 200):
        some = batch[first : first + 200]
        answers = await asyncio.gather(*(exchange(server.url, data) for data in some))
        for data, answer in zip(some, answers, strict=True):
            try:
                refs |= set(told_refs(answer))
            except (AssertionError, ValueError, KeyError, TypeError) as error:
                wrong.append(f"{data[:300]!r} got {answer[:1000]!r}: {str(error)[:100]}")
        assert (await server.call("GET", "/healthz"))[0] == 200, some
    assert not wrong, f"CHAOS_SEED={SEED}: {len(wrong)} of {len(batch)}\n" + "\n".join(wrong[:40])
    return refs


def check_log(server: Process, refs: set[str]) -> None:
    """Each failure in the log has its ref in an answer."""
    log = server.log()
    assert_clean(log)
    for record in records(log):
        if " ERROR " in record:
            ref = re.search(r" ref=(\w+)", record)
            assert ref and ref[1] in refs, f"CHAOS_SEED={SEED}: {record}"


def post(body: bytes, *headers: bytes, target: bytes = b"/api/chat") -> bytes:
    lines = [
        b"POST " + target + b" HTTP/1.1",
        b"Host: localhost",
        b"Content-Type: application/json",
    ]
    if not any(line.lower().startswith((b"content-length", b"transfer")) for line in headers):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, *headers, b"", body])


def get(target: bytes, *headers: bytes, method: bytes = b"GET") -> bytes:
    return b"\r\n".join(
        [method + b" " + target + b" HTTP/1.1", b"Host: localhost", *headers, b"", b""]
    )


HI = b'{"message":"hi"}'
GZIPPED = gzip.compress(HI)

NOT_HTTP = [
    b"\r\n\r\n\r\n",
    b"\0\0\0\0\r\n\r\n",
    b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(range(256)) + b"\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1\r\nHost: localhost\r\n\r\n",
    b"GET  / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"G\0T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\nHost: localhost\n\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost\r\n\r\n",
    b"GET / HTTP/1.1\r\nA\0B: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nA: x\0y\r\n\r\n",
    b"GET / HTTP/1.1\r\nA: x\ry\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"A" * 100_000,
    b"GET / HTTP/1.1\r\n" + b"A: " + b"x" * 100_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: x\r\n" % n for n in range(5000)) + b"\r\n",
    get(b"http://"),
    get(b"http://[::1"),
    get(b"http://x:99999999/"),
    get(b"http://x:port/api/info"),
    get(b"//[/api/info"),
    get(b"x:80", method=b"CONNECT"),
    get(b"*", method=b"OPTIONS"),
    get(b"*"),
]

TARGETS = [
    b"http://evil.example/api/info",
    b"https://evil.example:1/api/runs/x",
    b"//evil.example/api/info",
    b"/api//info",
    b"/api/runs/%2e%2e%2f%2e%2e/events",
    b"/api/runs/%2Fetc%2Fpasswd",
    b"/api/runs/%00",
    b"/api/runs/%ff%fe/events",
    b"/api/runs/%zz",
    b"/api/runs/%",
    b"/api/runs/\xff\xfe",
    b"/api/runs/" + b"%E6%9D%B1" * 500,
    b"/api/threads/%0d%0aSet-Cookie:%20x",
    b"/api/threads/" + b"a" * 4000,
    b"/api/threads/%ed%a0%80",
    b"/api/threads/\xed\xa0\x80",
    b"/api/threads/t?" + b"a=1&" * 1500,
    b"/api/runs/x/events?last_event_id=%ff",
    b"/static/%00",
    b"/static/..%2fapp.py",
    b"/static/%2e%2e/app.py",
    b"/static/../app.py",
    b"/static//etc/passwd",
    b"/static/%2fetc%2fpasswd",
    b"/static/" + b"a" * 5000,
    b"/static/" + b"a/" * 2500,
    b"/static/\xff",
    b"/static/%ff",
    b"/static/%ed%a0%80",
    b"/static/main.js%00.txt",
    b"/static/main.js/x",
    b"/static/",
    b"/static",
    b"/#fragment",
    b"/?%",
    b"",
    b"api/info",
    b"?",
]

HEADERS = [
    b"Content-Length: -1",
    b"Content-Length: +16",
    b"Content-Length: 16, 16",
    b"Content-Length: 1_6",
    b"Content-Length: 0x10",
    b"Content-Length: ",
    b"Content-Length: " + b"9" * 400,
    b"Content-Length: 16\r\nContent-Length: 17",
    b"Content-Length: 16\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: gzip",
    b"Transfer-Encoding: chunked, gzip",
    b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Content-Encoding: nothing",
    b"Content-Encoding: gzip",
    b"Content-Encoding: deflate",
    b"Content-Encoding: br",
    b"Content-Encoding: zstd",
    b"Content-Encoding: gzip, gzip",
    b"Content-Encoding: \xff",
    b"Content-Type: application/json; charset=nothing",
    b"Content-Type: application/json; charset=utf-16",
    b"Content-Type: multipart/form-data",
    b"Content-Type: \xff\xfe",
    b"Content-Type: " + b"a" * 4000,
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x",
    b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIA",
    b"Connection: \xff",
    b"Origin: \xff\xfe",
    b"Origin: null",
    b"Origin: http://x\r\nOrigin: http://y",
    b"Origin: " + b"\xe6\x9d\xb1" * 100,
    b"Authorization: Bearer \xff",
    b"Authorization: " + b"x" * 7000,
    b"Idempotency-Key: \xff",
    b"Idempotency-Key: ",
    b"Idempotency-Key: " + b"k" * 129,
    b"Prefer: \xff, respond-async;;;==",
    b"Last-Event-ID: \xff",
    b"Last-Event-ID: \xd9\xa1",
    b"Last-Event-ID: -1",
    b"Last-Event-ID: " + b"9" * 5000,
    b'Cookie: \xff=\xff; a="\\777"',
    b"If-Modified-Since: \xff",
    b"If-Modified-Since: Thu, 99 Foo 99999999999 00:00:00 GMT",
    b"If-None-Match: \xff",
    b"If-Range: \xff",
    b"Range: bytes=\xff",
    b"Range: bytes=9-1,-",
    b"Range: bytes=" + b"9" * 5000 + b"-",
    b"Accept-Encoding: \xff",
    b'Forwarded: for=\xff;=;"',
    b"X-Forwarded-Host: \xff",
    b"Host: \xff",
    b"Host: [::1",
    b"Host: x:port",
    b"Host: ",
    b"Access-Control-Request-Method: \xff",
    b"Sec-Fetch-Site: cross-site",
]

BODIES = [
    b"",
    b"{",
    b"\xff\xfe{\0}\0",
    b"\xef\xbb\xbf{}",
    b"null",
    b"[]",
    b'"message"',
    b"NaN",
    b'{"message":NaN}',
    b'{"message":"\\ud800"}',
    b'{"message":"\xed\xa0\x80"}',
    b'{"message":""}',
    b'{"message":"hi","thread_id":1e999}',
    b'{"message":1e999}',
    b'{"message":' + b"9" * 5000 + b"}",
    b'{"message":"hi","thread_id":"\\u0000"}',
    b'{"message":{"$ref":"#"}}',
    b'{"message":"hi","message":5}',
    b'{"resume":null,"thread_id":"\\ud800"}',
    b'{"resume":1e999,"thread_id":"t"}',
    b'{"resume":"\\ud800","thread_id":"t"}',
    b'{"message":"' + b"x" * 32_001 + b'"}',
    b"x" * (2**22 + 1),
    b"[" * 200_000,
    *(b"[" * n + b"]" * n for n in range(900, 1000, 3)),
    *(b'{"resume":' + b"[" * n + b"]" * n + b',"thread_id":"t"}' for n in range(900, 1000, 3)),
    *(b'{"a":' * n + b"1" + b"}" * n for n in range(900, 1000, 3)),
]

COMPRESSED = [GZIPPED, GZIPPED[:10], HI, b"", gzip.compress(b"[" * 50_000_000, 9)]

CHUNKS = [
    b"10\r\n" + HI + b"\r\n0\r\n\r\n",
    b"10;a=b\r\n" + HI + b"\r\n0\r\nTrailer: x\r\n\r\n",
    b"-1\r\n" + HI + b"\r\n0\r\n\r\n",
    b"0x10\r\n" + HI + b"\r\n0\r\n\r\n",
    b"1_0\r\n" + HI + b"\r\n0\r\n\r\n",
    b"\r\n" + HI,
    b"f" * 100 + b"\r\n" + HI,
    b"11\r\n" + HI + b"\r\n0\r\n\r\n",
    b"5\r\n" + HI + b"\r\n0\r\n\r\n",
    b"10\n" + HI + b"\n0\n\n",
    b"10;" + b"a" * 100_000 + b"\r\n" + HI + b"\r\n0\r\n\r\n",
    b"zz\r\n\r\n",
    b"\0\r\n",
    b"10\r\n" + HI + b"\r\n0\r\nA\0: \xff\r\n\r\n",
]

TABLE = [
    *NOT_HTTP,
    *(get(target) for target in TARGETS),
    *(get(target, method=method) for target in TARGETS for method in (b"HEAD", b"DELETE")),
    *(post(HI, header) for header in HEADERS),
    *(get(b"/api/runs/x/events", header) for header in HEADERS),
    *(get(b"/static/main.js", header) for header in HEADERS),
    *(get(b"/api/info", header, method=b"OPTIONS") for header in HEADERS),
    *(get(b"/api/info", header.replace(b" ", b" " * 3, 1), header) for header in HEADERS),
    *(post(body) for body in BODIES),
    *(post(body, b"Content-Encoding: gzip") for body in COMPRESSED),
    *(post(body, b"Transfer-Encoding: chunked") for body in CHUNKS),
    *(get(b"/" + b"%00" * 50, method=method) for method in (b"X", b"A-B", b"a", b"GET" * 99)),
]


@pytest.mark.parametrize("origins", ["", "*"])
async def test_a_table_of_bad_requests_is_refused_cleanly(launch: Launch, origins: str) -> None:
    server = await launch(CORS_ORIGINS=origins, LOG_LEVEL="DEBUG")
    check_log(server, await send_all(server, TABLE))


async def test_what_is_not_http_gets_a_400(launch: Launch) -> None:
    server = await launch()
    for data in NOT_HTTP[1:5]:
        answer = await exchange(server.url, data, 10)
        assert re.match(rb"HTTP/1\.[01] 400 ", answer), (data, answer)
    check_log(server, set())


async def test_a_compressed_body_is_refused_whatever_it_holds(launch: Launch) -> None:
    server = await launch()
    for body in COMPRESSED:
        for coding in (b"gzip", b"deflate", b"br", b"zstd", b"gzip, gzip", b"nothing"):
            data = post(body, b"Content-Encoding: " + coding, b"Connection: close")
            answer = await exchange(server.url, data, 10)
            [(status, refusal)] = responses(answer)
            assert (status, json.loads(refusal)["error"]["code"]) == (
                *(415, "unsupported_media_type"),
            )
    check_log(server, set())


async def test_a_client_that_waits_for_100_is_served(launch: Launch) -> None:
    server = await launch()
    answer = await exchange(server.url, post(HI, b"Expect: 100-continue"))
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"), answer
    check_log(server, set())


async def test_a_file_that_there_is_not_is_404(launch: Launch) -> None:
    server = await launch()
    targets = [
        get(target, b"Connection: close") for target in TARGETS if target.startswith(b"/static")
    ]
    answers = await asyncio.gather(*(exchange(server.url, target, 10) for target in targets))
    wrong = [
        (target[:60], answer[:200])
        for target, answer in zip(targets, answers, strict=True)
        if not re.match(rb"HTTP/1\.[01] 40[04] ", answer)
    ]
    assert not wrong
    check_log(server, set())


GOOD = [
    request("POST", "/api/chat", {"message": "2 * 3", "thread_id": "t"}, Idempotency_Key="k"),
    request("POST", "/api/chat", {"resume": {"a": [1, None]}, "thread_id": "t"}),
    request("POST", "/api/chat", {"message": "東京"}, Prefer="respond-async", Origin="http://x"),
    request("GET", "/api/runs/0123456789abcdef/events?last_event_id=3", Last_Event_ID="2"),
    request("POST", "/api/runs/0123456789abcdef/cancel", {}),
    request("GET", "/api/threads/t", Authorization="Bearer x"),
    request("DELETE", "/api/threads/t"),
    request("OPTIONS", "/api/chat", Origin="http://x", Access_Control_Request_Method="POST"),
    request("GET", "/static/main.js", Range="bytes=0-9", If_None_Match='"x"'),
    post(b"10\r\n" + HI + b"\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"),
    post(GZIPPED, b"Content-Encoding: gzip"),
]

SPICE = [
    *(bytes([n]) for n in range(256)),
    *(
        b"\r\n",
        b"\n",
        b"\r\n\r\n",
        b": ",
        b"%00",
        b"%2f",
        b"%ff",
        b"../",
        b"//",
        b"http://",
        b"HTTP/1.0",
    ),
    *(
        b"\xed\xa0\x80",
        b"\\ud800",
        b"\\u0000",
        b"[[[[",
        b'{"a":',
        b"1e999",
        b"-1",
        b"null",
        b"NaN",
        b'"',
    ),
    *(header + b"\r\n" for header in HEADERS),
]


def mutated(rng: random.Random) -> bytes:
    """A good request, or two in a pipeline, with some of its bytes changed."""
    data = bytearray(b"".join(rng.choices(GOOD, k=rng.choice((1, 1, 1, 2)))))
    for _ in range(rng.choice((0, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        # Most of what is interesting stands before the body.
        if rng.random() < 0.5:
            at = min(at, rng.randrange(120))
        until = at + rng.choice((0, 0, 1, 2, 10))
        match rng.randrange(4):
            case 0:
                data[at:until] = rng.choice(SPICE)
            case 1:
                data[at:until] = rng.randbytes(rng.randrange(1, 8))
            case 2:
                data[at:at] = data[at : at + rng.randrange(1, 60)] * rng.choice((1, 2, 200))
            case 3:
                # Where headers end: between two lines.
                at = data.find(b"\r\n", at) + 2
                data[at:at] = rng.choice(HEADERS) + b"\r\n"
    return bytes(data[: rng.randrange(len(data))]) if rng.random() < 0.05 else bytes(data)


async def test_random_bytes_never_bring_the_server_down(launch: Launch) -> None:
    rng = random.Random(f"{SEED}/fuzz")
    server = await launch(MAX_RUNS="1000", DISCONNECT_GRACE_S="0", RUN_TTL_S="1", MAX_THREADS="50")
    ends = time.monotonic() + seconds(2)
    refs: set[str] = set()
    batches = 0
    while time.monotonic() < ends or batches < 2:
        refs |= await send_all(server, [mutated(rng) for _ in range(200)])
        batches += 1
    check_log(server, refs)
    assert server.process.returncode is None
