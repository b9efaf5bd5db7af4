// Run with: node --test tests/js/
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before, describe, test } from "node:test";

import { ChatError, EventParser, cancelRun, followRun, streamChat } from "../../static/stream.js";

const encoder = new TextEncoder();
const BOM = "\uFEFF";

/** [claim, bytes of the stream, [event, data, id] of each dispatched message] */
const TABLE = [
  ["the standard's stock ticker", "data: YHOO\ndata: +2\ndata: 10\n\n", [["message", "YHOO\n+2\n10", ""]]],
  [
    "the standard's four blocks",
    ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
    [["message", "first event", "1"], ["message", "second event", ""]],
  ],
  ["the standard's empty data", "data\n\ndata\ndata\n\ndata:", [["message", "", ""], ["message", "\n", ""]]],
  ["one leading space is stripped", "data:test\n\ndata: test\n\ndata:  x\n\n", [
    ["message", "test", ""], ["message", "test", ""], ["message", " x", ""]]],
  ["a leading tab is not", "data:\ttest\n\n", [["message", "\ttest", ""]]],
  ["LF, CR and CRLF end lines in any mixture", "data:a\rdata:b\r\ndata:c\n\r\ndata:d\r\r", [
    ["message", "a\nb\nc", ""], ["message", "d", ""]]],
  ["CR LF LF is one line end and one blank line", "data:a\r\n\ndata:b\n\n", [
    ["message", "a", ""], ["message", "b", ""]]],
  ["one leading byte order mark is dropped", `${BOM}data:a\n\n`, [["message", "a", ""]]],
  ["a second byte order mark is part of a field's name", `${BOM}${BOM}data:a\n\ndata:b\n\n`, [["message", "b", ""]]],
  ["a later byte order mark is kept", `data:a\n\n${BOM}data:b\n\ndata:c${BOM}\n\n`, [
    ["message", "a", ""], ["message", `c${BOM}`, ""]]],
  ["comments are ignored", ":\0\ndata:1\r:\n:hi\ndata:2\n:data:fail\n\n", [["message", "1\n2", ""]]],
  ["a long comment is ignored", `data:1\n:${"x".repeat(5000)}\r\ndata:2\n\n`, [["message", "1\n2", ""]]],
  ["unknown fields and other spellings are ignored", "Data:x\nfoo:y\n data:z\ndata :w\n\ndata:1\n\n", [["message", "1", ""]]],
  ["a field without colon has the empty value", "data\nevent\n\n", [["message", "", ""]]],
  ["the value keeps later colons", "data:a:b: c\n\n", [["message", "a:b: c", ""]]],
  ["the last event field wins and lasts one block", "event:a\nevent:b\ndata:1\n\ndata:2\n\n", [
    ["b", "1", ""], ["message", "2", ""]]],
  ["an event without data is dropped with its name", "event:a\n\ndata:1\n\n", [["message", "1", ""]]],
  ["an empty event name means message", "event:\ndata:1\n\n", [["message", "1", ""]]],
  ["an id persists until the next", "id:1\ndata:a\n\ndata:b\n\nid:2\ndata:c\n\n", [
    ["message", "a", "1"], ["message", "b", "1"], ["message", "c", "2"]]],
  ["an empty id resets it", "id:1\ndata:a\n\nid\ndata:b\n\n", [["message", "a", "1"], ["message", "b", ""]]],
  ["an id with NUL is ignored", "id:1\ndata:a\n\nid:2\x003\ndata:b\n\n", [["message", "a", "1"], ["message", "b", "1"]]],
  ["an id counts also where its block has no data", "id:7\n\ndata:a\n\n", [["message", "a", "7"]]],
  ["NUL in data is kept", "data:a\0b\n\n", [["message", "a\0b", ""]]],
  ["what U+2028, U+2029, U+0085, VT and FF stand in is one line", "data:a\u2028b\u2029c\u0085d\ve\ff\n\n", [
    ["message", "a\u2028b\u2029c\u0085d\ve\ff", ""]]],
  ["text beyond the basic plane survives", "data:考え中 👩‍💻 ok\n\n", [["message", "考え中 👩‍💻 ok", ""]]],
  ["an unfinished block is discarded", "data:a\n\ndata:b\n", [["message", "a", ""]]],
  ["an unfinished line is discarded", "data:a\n\ndata:b", [["message", "a", ""]]],
  ["a stream of blank lines tells nothing", "\n\r\r\n\n", []],
];

const RETRIES = [
  ["digits set it", "retry:1500\n", 1500],
  ["one space before them is stripped", "retry: 03000\n", 3000],
  ["it holds without a blank line", "data:x\nretry:7\n", 7],
  ["letters are ignored", "retry:1000\nretry:2000x\n", 1000],
  ["a sign is ignored", "retry:-1\n", null],
  ["a fraction is ignored", "retry:1.5\n", null],
  ["an empty value is ignored", "retry\nretry:\n", null],
  ["digits that are not ASCII are ignored", "retry:１０\n", null],
];

function parse(pieces) {
  const parser = new EventParser();
  const frames = pieces.flatMap((piece) => parser.push(piece));
  return { parser, frames, messages: frames.filter(({ data }) => data !== null).map((f) => [f.event, f.data, f.id]) };
}

describe("EventParser", () => {
  for (const [claim, text, expected] of TABLE) {
    const bytes = encoder.encode(text);
    test(claim, () => {
      assert.deepEqual(parse([bytes]).messages, expected, "fed whole");
      assert.deepEqual(parse(Array.from(bytes, (byte) => Uint8Array.of(byte))).messages, expected, "fed by bytes");
      for (let cut = 0; cut <= bytes.length; cut++)
        assert.deepEqual(parse([bytes.slice(0, cut), bytes.slice(cut)]).messages, expected, `cut at ${cut}`);
    });
  }

  for (const [claim, text, expected] of RETRIES)
    test(`retry: ${claim}`, () => assert.equal(parse([encoder.encode(text)]).parser.retryMs, expected));

  test("bytes that are no UTF-8 become U+FFFD and end nothing", () => {
    const bytes = Uint8Array.of(...encoder.encode("data:"), 0xff, 0xe3, 0x81, ...encoder.encode("\n\n"));
    assert.deepEqual(parse([bytes]).messages, [["message", "\uFFFD\uFFFD", ""]]);
  });

  test("an id without its blank line is not committed", () => {
    assert.equal(parse([encoder.encode("id:1\ndata:a\n\nid:2\ndata:b\n")]).parser.lastEventId, "1");
  });

  test("frames keep the stream as it came", () => {
    const text = "retry: 2000\n\nid: 1\nevent: start\ndata: {}\n\n: heartbeat\n\nid: 2\r\ndata: é\r\n\r\n";
    const { frames } = parse([encoder.encode(text)]);
    assert.equal(frames.map(({ raw }) => raw).join(""), text);
    assert.deepEqual(frames.map(({ data }) => data), [null, "{}", null, "é"]);
  });

  test("a message comes with the byte that completes it", () => {
    const parser = new EventParser();
    assert.equal(parser.push(encoder.encode("data:a\r\n")).length, 0);
    assert.equal(parser.push(encoder.encode("\r")).length, 1);
    assert.equal(parser.push(encoder.encode("\n")).length, 0);
  });

  test("a huge line of many pieces costs linear time", () => {
    const cost = (pieces) => {
      const parser = new EventParser();
      const piece = encoder.encode("x".repeat(64));
      parser.push(encoder.encode("data:"));
      const start = performance.now();
      for (let i = 0; i < pieces; i++) parser.push(piece);
      const [frame] = parser.push(encoder.encode("\n\n"));
      assert.equal(frame.data.length, pieces * 64);
      return performance.now() - start;
    };
    cost(20_000);
    const small = Math.max(cost(20_000), 5);
    // Quadratic cost would be 64 times as much.
    assert.ok(cost(160_000) < small * 32);
  });
});

describe("following a run", () => {
  /** @type {import("node:http").Server} */
  let server;
  let base = "";
  /** What the next requests meet, in turn. @type {((request: any, response: any) => void)[]} */
  let script = [];
  /** @type {{ method: string, url: string, headers: any, body: string, ms: number }[]} */
  let requests = [];

  before(async () => {
    server = createServer((request, response) => {
      let body = "";
      request.on("data", (chunk) => (body += chunk));
      request.on("end", () => {
        requests.push({ method: request.method, url: request.url, headers: request.headers, body, ms: Date.now() });
        const answer = script.shift();
        if (answer) answer(request, response);
        else refuse(500, "internal", "unexpected request")(request, response);
      });
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    base = `http://127.0.0.1:${server.address().port}`;
  });
  after(() => {
    server.closeAllConnections();
    server.close();
  });

  const EVENTS = [
    { type: "start", run_id: "r1", thread_id: "t1", heartbeat_s: 0.05, timeout_s: 120 },
    { type: "text_delta", content: "Hel", message_id: "m" },
    { type: "text_delta", content: "lo", message_id: "m" },
    { type: "final_answer", content: "Hello", message_id: "m" },
    { type: "done", reason: "completed", timings: { total_ms: 5 } },
  ];
  const frame = (event, id) => `id: ${id}\nevent: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`;

  /** Streams events from..to, then ends, breaks or falls silent. */
  const stream = (from, to, how = "end") => (_request, response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream; charset=utf-8", Location: "/api/runs/r1/events" });
    response.write("retry: 20\n\n");
    for (let id = from; id <= to; id++) response.write(frame(EVENTS[id - 1], id));
    if (how === "end") response.end();
    else if (how === "break") setTimeout(() => response.destroy(), 20);
  };
  const refuse = (status, code, message, headers = {}, more = {}) => (_request, response) => {
    response.writeHead(status, { "Content-Type": "application/json", ...headers });
    response.end(JSON.stringify({ error: { code, message, ...more } }));
  };
  const drop = (request) => request.socket.destroy();

  async function run(answers, options = {}, begin = null) {
    script = answers;
    requests = [];
    const types = [];
    const states = [];
    const watch = { onEvent: (event) => types.push(event.type), onState: (state) => states.push(state), ...options };
    const outcome = await (begin ?? ((all) => streamChat("Hi", { url: `${base}/api/chat`, ...all })))(watch).then(
      (done) => ({ done, error: null }),
      (error) => ({ done: null, error }),
    );
    return { ...outcome, types, states };
  }
  const ALL = EVENTS.map(({ type }) => type);

  test("one POST, every event, done", async () => {
    const { done, types, states } = await run([stream(1, 5)], { threadId: "t1", headers: { Authorization: "Bearer x" } });
    assert.deepEqual(done, EVENTS[4]);
    assert.deepEqual(types, ALL);
    assert.deepEqual(states, ["connecting", "live", "ended"]);
    assert.equal(requests.length, 1);
    assert.deepEqual(JSON.parse(requests[0].body), { message: "Hi", thread_id: "t1" });
    assert.equal(requests[0].headers.authorization, "Bearer x");
    assert.match(requests[0].headers["idempotency-key"], /^[0-9a-f-]{36}$/);
  });

  test("an answer to an interrupt is sent as resume, false and null too", async () => {
    for (const resume of [false, null, { decisions: [] }]) {
      await run([stream(1, 5)], {}, (all) => streamChat(null, { url: `${base}/api/chat`, resume, ...all }));
      assert.deepEqual(JSON.parse(requests[0].body), { resume });
    }
  });

  for (const how of ["end", "break", "silence"])
    test(`a cut by ${how} is resumed after the last event, each event once`, async () => {
      const { done, types, states } = await run([stream(1, 2, how), stream(3, 3, how), stream(4, 5)]);
      assert.equal(done.reason, "completed");
      assert.deepEqual(types, ALL);
      assert.deepEqual(requests.map(({ method, url }) => `${method} ${url}`), [
        "POST /api/chat", "GET /api/runs/r1/events", "GET /api/runs/r1/events"]);
      assert.deepEqual(requests.map(({ headers }) => headers["last-event-id"]), [undefined, "2", "3"]);
      assert.deepEqual(states, ["connecting", "live", "reconnecting", "live", "reconnecting", "live", "ended"]);
    });

  test("heartbeats keep a quiet stream alive", async () => {
    const quiet = (_request, response) => {
      response.writeHead(200, { "Content-Type": "text/event-stream" });
      response.write(frame(EVENTS[0], 1));
      const beat = setInterval(() => response.write(": heartbeat\n\n"), 50);
      setTimeout(() => {
        clearInterval(beat);
        response.end(frame(EVENTS[4], 2));
      }, 600);
    };
    let heartbeats = 0;
    const { done } = await run([quiet], { onFrame: ({ raw }) => (heartbeats += raw.startsWith(":") ? 1 : 0) });
    assert.equal(done.reason, "completed");
    assert.equal(requests.length, 1);
    assert.ok(heartbeats > 5);
  });

  test("events that come again are told once", async () => {
    const { types } = await run([stream(1, 3), stream(1, 5)]);
    assert.deepEqual(types, ALL);
  });

  test("a POST that got no answer is repeated under its key, and not for ever", async () => {
    const again = await run([drop, stream(1, 5)]);
    assert.deepEqual(again.types, ALL);
    assert.equal(requests.length, 2);
    assert.equal(requests[0].headers["idempotency-key"], requests[1].headers["idempotency-key"]);
    assert.equal(requests[0].body, requests[1].body);
  });

  test("a refusal rejects with its code, message and status", async () => {
    const { error, states } = await run([refuse(409, "thread_busy", "Busy.", {}, { run_id: "r9" })]);
    assert.ok(error instanceof ChatError);
    assert.deepEqual([error.code, error.message, error.status, error.details], ["thread_busy", "Busy.", 409, { run_id: "r9" }]);
    assert.equal(requests.length, 1);
    assert.equal(states.at(-1), "ended");
  });

  test("a refusal that is no JSON still says its status", async () => {
    const { error } = await run([(_request, response) => response.writeHead(413).end("<h1>too large</h1>")]);
    assert.deepEqual([error.code, error.status], ["http_413", 413]);
  });

  test("Retry-After is honoured", async () => {
    const { done } = await run([stream(1, 2), refuse(503, "draining", "Later.", { "Retry-After": "1" }), stream(3, 5)]);
    assert.equal(done.reason, "completed");
    assert.ok(requests[2].ms - requests[1].ms >= 990);
  });

  test("a busy server refuses a POST in the end", async () => {
    const busy = refuse(503, "too_many_runs", "Full.", { "Retry-After": "0" });
    const { error } = await run([busy, busy, busy, busy]);
    assert.deepEqual([error.code, error.status, requests.length], ["too_many_runs", 503, 3]);
  });

  test("a run that is gone is given up with the server's words", async () => {
    const { error, types } = await run([stream(1, 2), refuse(404, "unknown_run", "No such run.")]);
    assert.deepEqual([error.code, error.message], ["unknown_run", "No such run."]);
    assert.deepEqual(types, ALL.slice(0, 2));
    assert.equal(requests.length, 2);
  });

  test("204 means that nothing more comes", async () => {
    const { done, error } = await run([(_request, response) => response.writeHead(204).end()], { lastEventId: 5 }, (all) =>
      followRun(`${base}/api/runs/r1`, all));
    assert.deepEqual([done, error], [null, null]);
    assert.equal(requests[0].headers["last-event-id"], "5");
  });

  test("followRun joins from the first event", async () => {
    const { types } = await run([stream(1, 5)], {}, (all) => followRun(`${base}/api/runs/r1`, all));
    assert.deepEqual(types, ALL);
    assert.equal(requests[0].headers["last-event-id"], undefined);
  });

  test("abort stops reading, also while waiting, and rejects with its reason", async () => {
    for (const first of [stream(1, 2, "stay"), refuse(503, "draining", "Later.", { "Retry-After": "50" })]) {
      const abort = new AbortController();
      setTimeout(() => abort.abort(), 60);
      const { error } = await run([first], { signal: abort.signal });
      assert.equal(error.name, "AbortError");
      assert.equal(requests.length, 1);
    }
  });

  test("cut breaks one connection and the run goes on", async () => {
    const connections = [];
    const { done } = await run([stream(1, 2, "stay"), stream(3, 5)], {
      onOpen: (connection) => {
        connections.push(connection.cursor);
        if (connections.length === 1) setTimeout(connection.cut, 30);
      },
    });
    assert.equal(done.reason, "completed");
    assert.deepEqual(connections, [0, 2]);
  });

  test("what a listener throws is not taken for a cut", async () => {
    const { error } = await run([stream(1, 5)], { onEvent: () => { throw new RangeError("mine"); } });
    assert.equal(error.message, "mine");
    assert.equal(requests.length, 1);
  });

  test("a page in place of the stream is told as such", async () => {
    const page = (_request, response) => response.writeHead(200, { "Content-Type": "text/html" }).end("<p>log in</p>");
    assert.equal((await run([page])).error.code, "not_a_stream");
  });

  test("an event that is no JSON is told as such", async () => {
    const odd = (_request, response) => response.writeHead(200, { "Content-Type": "text/event-stream" }).end("id: 1\ndata: {\n\n");
    assert.equal((await run([odd])).error.code, "malformed_event");
  });

  test("unknown types reach the listener and end nothing", async () => {
    const later = (_request, response) => {
      response.writeHead(200, { "Content-Type": "text/event-stream" });
      response.end(frame(EVENTS[0], 1) + frame({ type: "of_a_later_version" }, 2) + frame(EVENTS[4], 3));
    };
    assert.deepEqual((await run([later])).types, ["start", "of_a_later_version", "done"]);
  });

  test("half surrogates of two deltas join again", async () => {
    let text = "";
    const halves = (_request, response) => {
      response.writeHead(200, { "Content-Type": "text/event-stream" });
      response.write(frame(EVENTS[0], 1));
      response.write('id: 2\nevent: text_delta\ndata: {"type":"text_delta","content":"\\ud83d","message_id":"m"}\n\n');
      response.write('id: 3\nevent: text_delta\ndata: {"type":"text_delta","content":"\\ude00","message_id":"m"}\n\n');
      response.end(frame(EVENTS[4], 4));
    };
    await run([halves], { onEvent: (event) => (text += event.content ?? "") });
    assert.equal(text, "😀");
  });

  test("cancelRun posts the cancel and returns the state, or throws the refusal", async () => {
    script = [(_request, response) => response.writeHead(202).end('{"status":"cancelled"}'), refuse(404, "unknown_run", "No such run.")];
    requests = [];
    assert.deepEqual(await cancelRun(`${base}/api/runs/r1`), { status: "cancelled" });
    assert.equal(`${requests[0].method} ${requests[0].url}`, "POST /api/runs/r1/cancel");
    await assert.rejects(cancelRun(`${base}/api/runs/r1`), { code: "unknown_run" });
  });
});
