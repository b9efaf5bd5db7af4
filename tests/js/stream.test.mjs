// Run with: node --test tests/js/
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before, beforeEach, describe, test } from "node:test";

import { ChatError, cancelRun, followRun, streamChat } from "../../static/stream.js";

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
        requests.push({ method: request.method, url: request.url, headers: request.headers, body, ms: performance.now() });
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

  /** What a page tells its scripts; Node.js has no page. */
  const page = new EventTarget();
  /** @type {Set<string>} */
  const listened = new Set();
  beforeEach(() => {
    listened.clear();
    globalThis.addEventListener = (name, listener) => {
      listened.add(name);
      page.addEventListener(name, listener);
    };
    globalThis.removeEventListener = (name, listener) => {
      listened.delete(name);
      page.removeEventListener(name, listener);
    };
  });
  const COMEBACKS = ["online", "pageshow", "visibilitychange"];

  const EVENTS = [
    { type: "start", run_id: "r1", thread_id: "t1", heartbeat_s: 15, timeout_s: 120 },
    { type: "text_delta", content: "Hel", message_id: "m" },
    { type: "text_delta", content: "lo", message_id: "m" },
    { type: "final_answer", content: "Hello", message_id: "m" },
    { type: "done", reason: "completed", timings: { total_ms: 5 } },
  ];
  const frame = (event, id) => `event: ${event.type}\ndata: ${JSON.stringify(event)}\nid: ${id}\n\n`;

  /** Streams events from..to, then ends, breaks or falls silent. */
  const stream = (from, to, how = "end") => (_request, response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream; charset=utf-8", Location: "/api/runs/r1/events" });
    response.write("retry: 20\n\n");
    for (let id = from; id <= to; id++)
      response.write(frame(how === "silence" && id === 1 ? { ...EVENTS[0], heartbeat_s: 0.2 } : EVENTS[id - 1], id));
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
    assert.equal(requests[0].headers.accept, "text/event-stream");
    assert.match(requests[0].headers["idempotency-key"], /^[0-9a-f-]{36}$/);
  });

  test("an answer to an interrupt is sent as resume, false and null too", async () => {
    for (const resume of [false, null, { decisions: [] }]) {
      await run([stream(1, 5)], {}, (all) => streamChat(null, { url: `${base}/api/chat`, resume, ...all }));
      assert.deepEqual(JSON.parse(requests[0].body), { resume });
    }
  });

  test("a message that replaces another names it, and a context goes along", async () => {
    await run([stream(1, 5)], { threadId: "t1", replaces: "m1", context: { tone: "kind" } });
    assert.deepEqual(JSON.parse(requests[0].body), { message: "Hi", thread_id: "t1", replaces: "m1", context: { tone: "kind" } });
  });

  test("an event whose id did not arrive comes again, once", async () => {
    const half = (_request, response) => {
      response.writeHead(200, { "Content-Type": "text/event-stream", Location: "/api/runs/r1/events" });
      response.write(`retry: 20\n\n${frame(EVENTS[0], 1)}${frame(EVENTS[1], 2).replace(/id.*/s, "")}`);
      setTimeout(() => response.destroy(), 20);
    };
    const { types } = await run([half, stream(2, 5)]);
    assert.deepEqual(types, ALL);
    assert.equal(requests[1].headers["last-event-id"], "1");
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

  test("the watchdog bites after three heartbeats without a byte, not before", async () => {
    const late = (_request, response) => {
      response.writeHead(200, { "Content-Type": "text/event-stream", Location: "/api/runs/r1/events" });
      response.write(`retry: 20\n\n${frame({ ...EVENTS[0], heartbeat_s: 1 }, 1)}`);
      setTimeout(() => response.write(": heartbeat\n\n"), 1500);
    };
    await run([late, stream(2, 5)]);
    const ms = requests[1].ms - requests[0].ms;
    assert.ok(ms >= 4500, `${ms} ms`);
  });

  test("heartbeats keep a quiet stream alive", async () => {
    const quiet = (_request, response) => {
      response.writeHead(200, { "Content-Type": "text/event-stream" });
      response.write(frame({ ...EVENTS[0], heartbeat_s: 1 }, 1));
      let beats = 0;
      const beat = setInterval(() => {
        response.write(": heartbeat\n\n");
        if (++beats < 8) return;
        clearInterval(beat);
        response.end(frame(EVENTS[4], 2));
      }, 500);
    };
    let heartbeats = 0;
    const { done } = await run([quiet], { onFrame: ({ raw }) => (heartbeats += raw.startsWith(":") ? 1 : 0) });
    assert.equal(done.reason, "completed");
    assert.equal(requests.length, 1);
    assert.equal(heartbeats, 8);
  });

  for (const name of COMEBACKS)
    test(`${name} ends a wait, and one attempt is made`, async () => {
      const slow = (_request, response) => {
        response.writeHead(200, { "Content-Type": "text/event-stream", Location: "/api/runs/r1/events" });
        response.end(`retry: 60000\n\n${frame(EVENTS[0], 1)}`);
      };
      const { done } = await run([slow, stream(2, 5)], {
        onState: (state) => {
          if (state === "reconnecting") setTimeout(() => [1, 2, 3].forEach(() => page.dispatchEvent(new Event(name))), 20);
        },
      });
      assert.equal(done.reason, "completed");
      assert.equal(requests.length, 2);
      assert.deepEqual([...listened], []);
    });

  test("a page that comes back goes on by its cursor where a heartbeat is late, and only there", async () => {
    const quiet = (_request, response) => {
      response.writeHead(200, { "Content-Type": "text/event-stream", Location: "/api/runs/r1/events" });
      response.write(`retry: 20\n\n${frame({ ...EVENTS[0], heartbeat_s: 2 }, 1)}`);
    };
    const comeBack = () => page.dispatchEvent(new Event("visibilitychange"));
    setTimeout(comeBack, 1000);
    setTimeout(comeBack, 4000);
    await run([quiet, stream(2, 5)]);
    const ms = requests[1].ms - requests[0].ms;
    assert.ok(ms > 3900 && ms < 5900, `${ms} ms`);
    assert.equal(requests[1].headers["last-event-id"], "1");
  });

  test("events that come again are told once", async () => {
    const { types } = await run([stream(1, 3), stream(1, 5)]);
    assert.deepEqual(types, ALL);
  });

  const busy = refuse(503, "too_many_runs", "Full.", { "Retry-After": "0" });
  const withoutLocation = (_request, response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    response.write(`retry: 20\n\n${frame(EVENTS[0], 1)}`);
    setTimeout(() => response.destroy(), 20);
  };
  for (const [how, first] of Object.entries({ "no answer": drop, "a busy server": busy, "an answer that names no address": withoutLocation }))
    test(`a POST that met ${how} is repeated under its key`, async () => {
      const { types } = await run([first, stream(1, 5)]);
      assert.deepEqual(types, ALL);
      assert.equal(requests.length, 2);
      assert.deepEqual(requests.map(({ method }) => method), ["POST", "POST"]);
      assert.match(requests[0].headers["idempotency-key"], /^[0-9a-f-]{36}$/);
      assert.equal(requests[0].headers["idempotency-key"], requests[1].headers["idempotency-key"]);
      assert.equal(requests[0].body, requests[1].body);
    });

  test("each message has a key of its own", async () => {
    await run([stream(1, 5)]);
    const first = requests[0].headers["idempotency-key"];
    await run([stream(1, 5)]);
    assert.notEqual(requests[0].headers["idempotency-key"], first);
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

  test("Retry-After is honoured, in seconds and as a date", async () => {
    const asDate = (request, response) => {
      const after = new Date(Date.now() + 2000).toUTCString();
      refuse(503, "draining", "Later.", { "Retry-After": after })(request, response);
    };
    const inSeconds = refuse(503, "draining", "Later.", { "Retry-After": "1" });
    const { done } = await run([stream(1, 2), inSeconds, asDate, stream(3, 5)]);
    assert.equal(done.reason, "completed");
    assert.ok(requests[2].ms - requests[1].ms >= 990);
    // A date has whole seconds.
    assert.ok(requests[3].ms - requests[2].ms >= 990);
  });

  test("no page that comes back cuts Retry-After short", async () => {
    const onState = (state, waitMs) => state === "reconnecting" && waitMs === 1000 && COMEBACKS.forEach((name) => page.dispatchEvent(new Event(name)));
    await run([refuse(503, "draining", "Later.", { "Retry-After": "1" }), stream(1, 5)], { onState });
    assert.ok(requests[1].ms - requests[0].ms >= 990);
  });

  test("a Retry-After beyond all patience is a refusal", async () => {
    const { error } = await run([refuse(503, "draining", "Tomorrow.", { "Retry-After": "86400" })]);
    assert.deepEqual([error.code, error.retryAfterMs, requests.length], ["draining", 86_400_000, 1]);
  });

  test("a busy server refuses a POST in the end", async () => {
    const { error } = await run([busy, busy, busy, busy]);
    assert.deepEqual([error.code, error.status, requests.length], ["too_many_runs", 503, 3]);
  });

  test("the server's retry is the least wait; waits double from it, with jitter, and end", async () => {
    const down = (_request, response) => response.writeHead(502).end();
    const waits = [];
    const start = (_request, response) => {
      response.writeHead(200, { "Content-Type": "text/event-stream", Location: "/api/runs/r1/events" });
      response.end(`retry: 2\n\n${frame(EVENTS[0], 1)}`);
    };
    const { error } = await run([start, ...Array(10).fill(down)], {
      onState: (state, waitMs) => {
        if (state === "reconnecting") waits.push(waitMs);
      },
    });
    assert.deepEqual([error.code, requests.length], ["http_502", 11]);
    const parts = waits.map((waitMs, i) => waitMs / (2 * 2 ** i));
    for (const part of parts) assert.ok(part >= 1 && part <= 1.5, String(parts));
    assert.equal(new Set(parts).size, waits.length);
    requests.slice(1).forEach(({ ms }, i) => assert.ok(ms - requests[i].ms > waits[i] - 2));
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

  for (const [type, isStream] of [
    // As in the web-platform-tests format-mime-* and format-utf-8.
    ["text/event-stream;", true],
    ["TEXT/Event-Stream ; charset=utf-8", true],
    ["text/event-stream;charset=windows-1252", true],
    ["text/html", false],
    ["text/x-bogus", false],
    ["x bogus", false],
    ["text/event-stream-of-mine", false],
    [null, false],
  ])
    test(`an answer of type ${type} is ${isStream ? "a" : "no"} stream`, async () => {
      const answer = (_request, response) => {
        response.writeHead(200, type === null ? {} : { "Content-Type": type });
        response.end(frame(EVENTS[0], 1) + frame({ type: "text_delta", content: "ok…" }, 2) + frame(EVENTS[4], 3));
      };
      const contents = [];
      const { error } = await run([answer], { onEvent: (event) => contents.push(event.content) });
      assert.equal(error?.code, isStream ? undefined : "not_a_stream");
      assert.equal(contents[1], isStream ? "ok…" : undefined);
    });

  // As in the web-platform-test request-status-error, where also 503 is final.
  for (const status of [205, 210, 299, 404, 410, 500])
    test(`status ${status} is no stream, whatever its type`, async () => {
      const answer = (_request, response) =>
        response.writeHead(status, { "Content-Type": "text/event-stream" }).end(frame(EVENTS[4], 1));
      const { error, types } = await run([answer]);
      assert.deepEqual([error.code, error.status, types, requests.length], [`http_${status}`, status, [], 1]);
    });

  test("an event that is no JSON is told as such", async () => {
    const odd = (_request, response) => response.writeHead(200, { "Content-Type": "text/event-stream" }).end("data: {\nid: 1\n\n");
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
      response.write('event: text_delta\ndata: {"type":"text_delta","content":"\\ud83d","message_id":"m"}\nid: 2\n\n');
      response.write('event: text_delta\ndata: {"type":"text_delta","content":"\\ude00","message_id":"m"}\nid: 3\n\n');
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
