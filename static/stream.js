// @ts-check
/**
 * Follows an agent's run over Server-Sent Events: bytes in, events out, reconnecting by cursor.
 *
 *     const done = await streamChat("Hello", { onEvent: (event) => console.log(event.type) });
 *
 * It knows nothing of a page and imports nothing: copy this one file. It runs wherever there are
 * fetch, TextDecoder and AbortController: browsers, workers, Node.
 */

/**
 * One fact from the server; `type` says which fields it has.
 *
 * @typedef {(
 *     { type: "start", run_id: string, thread_id: string, message_id?: string, heartbeat_s: number, timeout_s: number }
 *   | { type: "thinking", content: string }
 *   | { type: "reasoning_delta", content: string, message_id: string }
 *   | { type: "text_delta", content: string, message_id: string }
 *   | { type: "tool_call", tool: string, tool_call_id: string, input: Record<string, unknown> }
 *   | { type: "tool_progress", tool: string, tool_call_id: string, content: string }
 *   | { type: "tool_result", tool: string, tool_call_id: string, status: ToolStatus,
 *       result?: Record<string, unknown>, message?: string }
 *   | { type: "interrupt", interrupts: { id: string, value: unknown }[] }
 *   | { type: "final_answer", content: string, message_id: string, finish_reason?: string }
 *   | { type: "error", code: string, message: string, retryable: boolean, ref?: string }
 *   | Done
 * )} StreamEvent
 */
/** @typedef {"ok" | "error" | "cancelled" | "interrupted"} ToolStatus */
/**
 * @typedef {object} Done
 * @property {"done"} type
 * @property {"completed" | "interrupted" | "cancelled" | "timeout" | "error" | "shutdown"} reason
 * @property {{ first_token_ms?: number, total_ms: number }} [timings]
 * @property {{ input_tokens: number, output_tokens: number, total_tokens: number }} [usage]
 */
/**
 * One block of the stream as it came, blank line included. `data` is null if the block dispatches
 * nothing: a heartbeat, `retry: 2000`. If the blank line is a CRLF that was cut in two, the LF is
 * added to `raw` when it comes.
 *
 * @typedef {{ raw: string, id: string, event: string, data: string | null }} Frame
 */
/** @typedef {"connecting" | "live" | "reconnecting" | "offline" | "ended"} State */
/**
 * @typedef {object} FollowOptions
 * @property {(event: StreamEvent) => void} [onEvent] every event once, in order
 * @property {(frame: Frame) => void} [onFrame] every block of every connection, heartbeats included
 * @property {(state: State, waitMs: number) => void} [onState] `waitMs`: until the next attempt
 * @property {(connection: { url: string, cursor: number, cut: () => void }) => void} [onOpen]
 *   a connection opened after event `cursor`; `cut` breaks it, and the run is then resumed
 * @property {AbortSignal} [signal] stops reading; the run itself is stopped by `cancelRun`
 * @property {Record<string, string>} [headers] sent with each request, e.g. Authorization
 */

const RETRY_MS = 2_000;
const MAX_WAIT_MS = 15_000;
const MAX_RETRY_AFTER_MS = 60_000;
const HEARTBEAT_S = 15;
// A longer timer fires at once.
const MAX_TIMER_MS = 2 ** 31 - 1;
// How long arrived events are handed out in one go.
const WORK_MS = 10;
const MAX_POSTS = 3;
// Refusals that pass: too many requests, and a proxy or server that is busy or restarts.
const PASSING = [429, 502, 503, 504];
// With the waits above this takes two minutes, as long as a server keeps an ended run.
const MAX_FAILURES = 10;
// A page's events when its network, or the page itself, comes back.
const COMEBACKS = ["online", "pageshow", "visibilitychange"];

/** Why there is no stream: a server's refusal (`status` is its HTTP status), or a lost one (0). */
export class ChatError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {number} [status]
   * @param {Record<string, unknown>} [details] what else the refusal has: `run_id`, `ref`
   */
  constructor(code, message, status = 0, details = {}) {
    super(message);
    this.name = "ChatError";
    this.code = code;
    this.status = status;
    this.details = details;
    /** @type {number | null} */
    this.retryAfterMs = null;
  }
}

/**
 * Sends a message, follows its run to the end and resolves with the `done` event.
 *
 * Rejects with ChatError when the server refuses or is lost, and with the signal's reason on abort.
 * A POST is repeated only while no answer to it arrived, under the same Idempotency-Key.
 *
 * @param {string | null} message null if `resume` answers an interrupt instead
 * @param {FollowOptions & { url?: string, threadId?: string, resume?: unknown, replaces?: string,
 *   context?: object }} [options] `replaces`: the id of the user message that this one replaces,
 *   with everything after it; `context`: what the graph gets as its runtime context
 * @returns {Promise<Done | null>} null: the server says that nothing more follows (204)
 */
export function streamChat(message, options = {}) {
  const { url = "/api/chat", threadId, resume, replaces, context } = options;
  const turn = resume === undefined ? { message, replaces } : { resume };
  // JSON leaves out what is undefined.
  const body = JSON.stringify({ ...turn, thread_id: threadId || undefined, context });
  return new Follower(options, { url, body, key: uuid() }).follow();
}

/**
 * Joins a run that is already there, after `lastEventId` or from its first event.
 *
 * @param {string} runUrl `/api/runs/{run_id}`
 * @param {FollowOptions & { lastEventId?: number }} [options]
 * @returns {Promise<Done | null>} null: the run has ended and the cursor is at its end
 */
export function followRun(runUrl, options = {}) {
  return new Follower(options, null, `${runUrl}/events`, options.lastEventId).follow();
}

/**
 * Stops a run and returns its state document once it has stopped.
 *
 * @param {string} runUrl `/api/runs/{run_id}`
 * @param {{ headers?: Record<string, string>, signal?: AbortSignal }} [options]
 */
export async function cancelRun(runUrl, options = {}) {
  const response = await fetch(`${runUrl}/cancel`, { method: "POST", ...options });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

/**
 * Turns the bytes of one event stream into frames, however they were cut on their way.
 *
 * What is incomplete at the end of the stream is discarded by never being returned.
 * Source: WHATWG HTML, "Parsing an event stream" and "Interpreting an event stream".
 */
export class EventParser {
  /** The least time before a reconnect, as the server wishes. @type {number | null} */
  retryMs = null;

  // Drops one leading byte order mark, also one that is split, as the standard's UTF-8 decode does.
  #decoder = new TextDecoder();
  #line = "";
  #endedInCr = false;
  #raw = "";
  #event = "";
  /** @type {string[]} */
  #data = [];
  #id = "";
  /** The block that was returned last. @type {Frame | null} */
  #last = null;

  /** @param {Uint8Array} bytes @returns {Frame[]} the blocks that these bytes complete */
  push(bytes) {
    const text = this.#decoder.decode(bytes, { stream: true });
    if (!text) return [];
    const frames = [];
    const lineEnd = /\r\n|\n|\r/g;
    // A CR ends its line at once; an LF that comes first in the next bytes belongs to it.
    const halfEnd = this.#endedInCr && text[0] === "\n";
    let start = halfEnd ? 1 : 0;
    // It belongs to the block that stands, or to the one that its CR ended.
    if (halfEnd && this.#raw) this.#raw += "\n";
    else if (halfEnd && this.#last) this.#last.raw += "\n";
    this.#endedInCr = text.endsWith("\r");
    lineEnd.lastIndex = start;
    for (let end = lineEnd.exec(text); end; end = lineEnd.exec(text)) {
      const line = this.#line + text.slice(start, end.index);
      this.#line = "";
      start = lineEnd.lastIndex;
      this.#raw += line + end[0];
      if (line) this.#field(line);
      else frames.push(this.#finish());
    }
    // Only new text is searched, so a line of many pieces costs its length.
    this.#line += text.slice(start);
    return frames;
  }

  /** @param {string} line */
  #field(line) {
    const colon = line.indexOf(":");
    // A comment is a field without a name.
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + (line[colon + 1] === " " ? 2 : 1));
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#event = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) this.retryMs = Number(value);
  }

  #finish() {
    const data = this.#data.length ? this.#data.join("\n") : null;
    const frame = { raw: this.#raw, id: this.#id, event: this.#event || "message", data };
    this.#last = frame;
    this.#raw = "";
    this.#event = "";
    this.#data = [];
    return frame;
  }
}

/** One run, followed over as many connections as it takes, one at a time. */
class Follower {
  #options;
  #post;
  #eventsUrl;
  #cursor;
  #posts = 0;
  #failures = 0;
  #retryMs = RETRY_MS;
  #silenceMs = 3 * HEARTBEAT_S * 1000;
  /** The last refusal that may pass. @type {ChatError | null} */
  #refusal = null;
  /** Called when the page comes back: ends a wait, or a connection that seems dead. */
  #wake = () => {};

  /**
   * @param {FollowOptions} options
   * @param {{ url: string, body: string, key: string } | null} post null: the run is already there
   * @param {string} [eventsUrl] empty until an answer to the POST names it
   * @param {number} [cursor]
   */
  constructor(options, post, eventsUrl = "", cursor = 0) {
    this.#options = options;
    this.#post = post;
    this.#eventsUrl = eventsUrl;
    this.#cursor = cursor;
  }

  /** @returns {Promise<Done | null>} */
  async follow() {
    const { signal, onState } = this.#options;
    signal?.throwIfAborted();
    onState?.("connecting", 0);
    const wake = () => this.#wake();
    for (const name of COMEBACKS) globalThis.addEventListener?.(name, wake);
    try {
      for (;;) {
        this.#refusal = null;
        const done = await this.#connect();
        if (done !== undefined) return done;
        signal?.throwIfAborted();
        await this.#pause(this.#nextWaitMs());
        signal?.throwIfAborted();
      }
    } finally {
      for (const name of COMEBACKS) globalThis.removeEventListener?.(name, wake);
      onState?.("ended", 0);
    }
  }

  /**
   * Makes one connection and reads it to its end.
   *
   * @returns {Promise<Done | null | undefined>} undefined: it failed or was cut, another may follow
   */
  async #connect() {
    const { signal, onEvent, onFrame, onOpen, onState } = this.#options;
    const connection = new AbortController();
    const cut = () => connection.abort();
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let watchdog;
    let heardMs = 0;
    const heard = () => {
      heardMs = Date.now();
      clearTimeout(watchdog);
      watchdog = setTimeout(cut, this.#silenceMs);
    };
    // A machine that slept has stopped its timers. If a heartbeat is late, waiting for one is slower.
    this.#wake = () => {
      if (Date.now() - heardMs > this.#silenceMs / 2) cut();
    };
    const close = () => {
      clearTimeout(watchdog);
      signal?.removeEventListener("abort", cut);
      cut();
    };
    signal?.addEventListener("abort", cut);
    heard();
    let ending = false;
    try {
      const response = await this.#request(connection.signal).catch(() => null);
      if (!response || connection.signal.aborted) return undefined;
      if (response.status === 204) return null;
      if (response.status !== 200) {
        const error = await refusal(response);
        const patient = (error.retryAfterMs ?? 0) <= MAX_RETRY_AFTER_MS;
        if (!patient || !PASSING.includes(error.status)) throw error;
        this.#refusal = error;
        return undefined;
      }
      if (!response.body || !/^text\/event-stream\s*(;|$)/i.test(response.headers.get("Content-Type") ?? ""))
        throw new ChatError("not_a_stream", "The answer is no event stream.", response.status);
      const location = response.headers.get("Location");
      if (location) this.#eventsUrl = new URL(location, response.url).href;
      onState?.("live", 0);
      onOpen?.({ url: response.url, cursor: this.#cursor, cut });
      const reader = response.body.getReader();
      const parser = new EventParser();
      let worked = 0;
      for (;;) {
        const { value } = await reader.read().catch(() => ({ value: undefined }));
        if (!value || connection.signal.aborted) return undefined;
        for (const frame of parser.push(value)) {
          const start = performance.now();
          this.#retryMs = parser.retryMs ?? this.#retryMs;
          onFrame?.(frame);
          if (frame.raw.startsWith(":")) this.#failures = 0;
          const event = this.#accept(frame);
          if (event) onEvent?.(event);
          if (connection.signal.aborted) return undefined;
          if (event?.type === "done") {
            // Reading the end of the stream leaves the connection fit for reuse.
            ending = true;
            reader.read().then(close, close);
            return event;
          }
          worked += performance.now() - start;
          if (worked > WORK_MS) {
            worked = 0;
            await breathe();
          }
        }
        heard();
      }
    } finally {
      if (!ending) close();
    }
  }

  /** @param {AbortSignal} signal */
  async #request(signal) {
    const headers = { Accept: "text/event-stream", ...this.#options.headers };
    if (this.#post && !this.#eventsUrl) {
      this.#posts += 1;
      const { url, body, key } = this.#post;
      const more = { "Content-Type": "application/json", "Idempotency-Key": key };
      return fetch(url, { method: "POST", headers: { ...headers, ...more }, body, signal });
    }
    const cursor = this.#cursor > 0 ? { "Last-Event-ID": String(this.#cursor) } : null;
    // The browser's cache would let a second reader of the same address wait for the first.
    return fetch(this.#eventsUrl, { headers: { ...headers, ...cursor }, cache: "no-store", signal });
  }

  /** @param {Frame} frame @returns {StreamEvent | null} its event, or null if it has none or one that came before */
  #accept(frame) {
    if (frame.data === null) return null;
    const id = /^[0-9]+$/.test(frame.id) ? Number(frame.id) : null;
    // A repeated POST replays from event 1, which a reader may partly have.
    if (id !== null && id <= this.#cursor) return null;
    /** @type {StreamEvent} */
    let event;
    try {
      event = JSON.parse(frame.data);
    } catch {
      throw new ChatError("malformed_event", `Event ${frame.id} is no JSON.`);
    }
    if (id !== null) this.#cursor = id;
    this.#failures = 0;
    if (event.type === "start" && event.heartbeat_s > 0)
      this.#silenceMs = Math.min(3000 * event.heartbeat_s, MAX_TIMER_MS);
    return event;
  }

  /** Counts a failure and returns how long to wait, or throws if it was the last one. */
  #nextWaitMs() {
    const offline = globalThis.navigator?.onLine === false;
    if (!offline) this.#failures += 1;
    if (!this.#eventsUrl && this.#posts >= MAX_POSTS && !offline)
      throw this.#refusal ?? new ChatError("unreachable", "The server cannot be reached.");
    if (this.#failures > MAX_FAILURES)
      throw this.#refusal ?? new ChatError("connection_lost", "The connection was lost.");
    const doubled = Math.min(this.#retryMs * 2 ** Math.max(0, this.#failures - 1), MAX_WAIT_MS);
    // The server's wish is the least, so jitter only adds to it.
    const waitMs = this.#refusal?.retryAfterMs ?? Math.max(this.#retryMs, doubled) * (1 + Math.random() / 2);
    this.#options.onState?.(offline ? "offline" : "reconnecting", waitMs);
    return waitMs;
  }

  /** @param {number} waitMs */
  #pause(waitMs) {
    const { signal } = this.#options;
    return new Promise((resolve) => {
      const end = () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", end);
        resolve(undefined);
      };
      const timer = setTimeout(end, waitMs);
      signal?.addEventListener("abort", end);
      this.#wake = () => {
        // A server that refuses for now gets its time.
        if (this.#refusal) return;
        // A shortened wait is no failure, so giving up comes no sooner.
        this.#failures = Math.max(0, this.#failures - 1);
        end();
      };
    });
  }
}

/**
 * Reads a refusal, `{"error": {"code", "message"}}`, or makes one of whatever a proxy sent instead.
 *
 * @param {Response} response
 */
export async function refusal(response) {
  const body = await response.json().catch(() => null);
  const { code = `http_${response.status}`, message, ...details } = body?.error ?? {};
  const text = message ?? `The server answered ${response.status} ${response.statusText}`.trim();
  const error = new ChatError(code, text, response.status, details);
  const after = response.headers.get("Retry-After");
  if (after !== null) {
    const ms = /^[0-9]+$/.test(after) ? Number(after) * 1000 : Date.parse(after) - Date.now();
    if (!Number.isNaN(ms)) error.retryAfterMs = Math.max(0, ms);
  }
  return error;
}

/** Lets the page handle its other events. */
function breathe() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    // Hidden tabs slow timers down to one a second or a minute.
    port1.onmessage = () => resolve(port1.close());
    port2.postMessage(null);
  });
}

/** A random UUID, also on pages served over plain HTTP, where `crypto.randomUUID` is missing. */
export function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = Array.from(crypto.getRandomValues(new Uint8Array(16)));
  const hex = bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4}).(.{3}).(.{3})(.{12})$/, "$1-$2-4$3-8$4-$5");
}
