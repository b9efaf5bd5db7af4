// @ts-check
/** The wire panel: the frames of the page's last run as they came, and a picture of their times. */

import { paint } from "./view.js";
import { words } from "./words.js";

/** @typedef {import("./stream.js").Frame} Frame */
/** @typedef {{ id: string, name: string, size: number, ms: number, note: string }} Row */

// Older rows leave the page, not the download.
const MAX_ROWS = 200;
// More than a network's own unsteadiness.
const HELD_MS = 1000;
const SVG = "http://www.w3.org/2000/svg";
const encoder = new TextEncoder();

export class Wire {
  /** @type {Row[]} */
  #rows = [];
  /** @type {string[]} */
  #raw = [];
  /** @type {Map<string, { from: number, to: number | null, tool: string }>} */
  #tools = new Map();
  #drawn = 0;
  #marked = 0;
  /** @type {Set<string>} One mark a pixel and kind, however many frames came. */
  #marks = new Set();
  #scaleMs = 1000;
  #bytes = 0;
  #connections = 0;
  #started = 0;
  #startMs = 0;
  /** @type {number | null} */
  #firstTokenMs = null;
  /** Whether one connection has carried the run from its beginning. */
  #live = true;

  /**
   * @param {HTMLElement} list
   * @param {HTMLElement} sum
   * @param {Element} picture
   * @param {HTMLElement} scale
   * @param {HTMLElement} warning
   */
  constructor(list, sum, picture, scale, warning) {
    this.list = list;
    this.sum = sum;
    this.picture = picture;
    this.scale = scale;
    this.warning = warning;
  }

  /** Forgets the last run. @param {boolean} [live] whether the next is read from its beginning */
  reset(live = true) {
    this.#live = live;
    this.warning.textContent = "";
    this.#rows = [];
    this.#raw = [];
    this.#tools.clear();
    this.#drawn = this.#marked = this.#bytes = this.#connections = 0;
    this.#scaleMs = 1000;
    this.#firstTokenMs = null;
    this.#started = performance.now();
    this.list.replaceChildren();
    paint(this.draw);
  }

  /** Notes a connection that opened after event `cursor`. @param {number} cursor */
  opened(cursor) {
    this.#connections += 1;
    this.#add("", "connect", 0, `${words.connection} ${this.#connections}, ${words.after} ${cursor}`);
  }

  /** Notes that the connection was lost: what follows is a replay. */
  broken() {
    this.#live = false;
    this.#add("", "lost", 0, words.lost);
  }

  /** @param {Frame} frame */
  frame(frame) {
    this.#raw.push(frame.raw);
    const size = encoder.encode(frame.raw).length;
    if (frame.data !== null) this.#add(frame.id, frame.event, size, frame.data.slice(0, 200));
    else if (frame.raw.startsWith(":")) this.#add("", "heartbeat", size, words.heartbeat);
    else this.#add("", frame.raw.split(":")[0], size, frame.raw.trim().slice(0, 200));
  }

  /** Notes what the picture shows of an event. @param {import("./stream.js").StreamEvent} event */
  event(event) {
    const ms = performance.now() - this.#started;
    if (event.type === "start") this.#startMs = ms;
    else if (event.type === "text_delta") this.#firstTokenMs ??= ms;
    else if (event.type === "tool_call")
      this.#tools.set(event.tool_call_id, { from: ms, to: null, tool: event.tool });
    else if (event.type === "tool_result") {
      const bar = this.#tools.get(event.tool_call_id);
      if (bar) bar.to = ms;
    } else if (event.type === "done") {
      // Nothing follows, so the picture can be filled.
      this.#scaleMs = Math.max(ms, 1);
      this.#marked = 0;
      if (this.#live && event.timings) this.#warn(ms, event.timings);
    }
  }

  /**
   * Warns where frames were held back. The server tells how long before `done` it made `start` and
   * the first text. The way is as long for all three, so they arrive that far apart, unless
   * something kept the early ones.
   *
   * @param {number} doneMs
   * @param {{ first_token_ms?: number, total_ms: number }} timings
   */
  #warn(doneMs, { first_token_ms: firstTokenMs = 0, total_ms: totalMs }) {
    const heldMs = Math.max(
      totalMs - (doneMs - this.#startMs),
      totalMs - firstTokenMs - (doneMs - (this.#firstTokenMs ?? 0)),
    );
    if (heldMs > HELD_MS) this.warning.textContent = words.held.replace("{}", (heldMs / 1000).toFixed(1));
  }

  /** The run as a file. */
  blob() {
    return new Blob(this.#raw, { type: "text/event-stream" });
  }

  /**
   * @param {string} id
   * @param {string} name
   * @param {number} size
   * @param {string} note
   */
  #add(id, name, size, note) {
    this.#bytes += size;
    this.#rows.push({ id, name, size, ms: performance.now() - this.#started, note });
    paint(this.draw);
  }

  draw = () => {
    if (this.list.closest("[hidden]")) return;
    const fresh = this.#rows.slice(Math.max(this.#drawn, this.#rows.length - MAX_ROWS));
    this.#drawn = this.#rows.length;
    const atEnd = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 24;
    for (const row of fresh) {
      const item = document.createElement("li");
      item.dataset.name = row.name;
      for (const text of [row.id, row.name, row.size ? `${row.size} B` : "", `${(row.ms / 1000).toFixed(3)} s`, row.note])
        item.appendChild(document.createElement("span")).textContent = text;
      this.list.append(item);
    }
    while (this.list.childElementCount > MAX_ROWS) this.list.firstElementChild?.remove();
    if (atEnd) this.list.scrollTop = this.list.scrollHeight;
    const kib = (this.#bytes / 1024).toFixed(1);
    const first = this.#firstTokenMs === null ? "" : ` · ${words.firstToken} ${Math.round(this.#firstTokenMs)} ms`;
    const more = this.#rows.length > MAX_ROWS ? ` · ${words.earlier}` : "";
    this.sum.textContent = `${this.#raw.length} ${words.frames} · ${kib} KiB${first}${more}`;
    this.#picture();
    this.scale.textContent = `${(this.#scaleMs / 1000).toFixed(1)} s`;
  };

  /** Adds the marks of new rows; all are drawn anew only when the run outgrows the scale. */
  #picture() {
    const now = this.#rows.at(-1)?.ms ?? 0;
    while (now > this.#scaleMs) {
      this.#scaleMs *= 2;
      this.#marked = 0;
    }
    if (!this.#marked) {
      this.#marks.clear();
      this.picture.replaceChildren();
    }
    const x = (/** @type {number} */ ms) => Math.round((ms / this.#scaleMs) * 998);
    for (; this.#marked < this.#rows.length; this.#marked++) {
      const { name, ms } = this.#rows[this.#marked];
      const kind = KINDS[name] ?? "event";
      if (this.#marks.has(`${kind} ${x(ms)}`)) continue;
      this.#marks.add(`${kind} ${x(ms)}`);
      this.picture.append(rect(kind, x(ms), kind === "text" ? 6 : 2, 2, kind === "text" ? 18 : 26));
    }
    for (const shape of this.picture.querySelectorAll(".tool, .first")) shape.remove();
    if (this.#firstTokenMs !== null) this.picture.append(rect("first", x(this.#firstTokenMs), 0, 3, 60));
    this.#bars(x, now);
  }

  /**
   * Draws each tool as a bar, those that ran at the same time below each other.
   *
   * @param {(ms: number) => number} x
   * @param {number} now
   */
  #bars(x, now) {
    /** @type {number[]} When each lane is free again. */
    const lanes = [];
    const bars = [...this.#tools.values()].map(({ from, to, tool }) => {
      const free = lanes.findIndex((end) => end <= from);
      const lane = free < 0 ? lanes.length : free;
      lanes[lane] = to ?? Infinity;
      return { lane, left: x(from), width: Math.max(3, x(to ?? now) - x(from)), tool };
    });
    const height = Math.min(9, 28 / lanes.length);
    for (const { lane, left, width, tool } of bars) {
      const bar = rect("tool", left, 31 + height * lane, width, height * 0.8);
      bar.appendChild(document.createElementNS(SVG, "title")).textContent = tool;
      this.picture.append(bar);
    }
  }
}

/** @type {Record<string, string>} */
const KINDS = { text_delta: "text", heartbeat: "heartbeat", connect: "connect", lost: "lost", error: "error" };

/**
 * @param {string} kind
 * @param {number} x
 * @param {number} y
 * @param {number} width
 * @param {number} height
 */
function rect(kind, x, y, width, height) {
  const shape = document.createElementNS(SVG, "rect");
  shape.setAttribute("class", kind);
  for (const [name, value] of Object.entries({ x, y, width, height })) shape.setAttribute(name, String(value));
  return shape;
}
