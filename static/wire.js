// @ts-check
/** The wire panel: the frames of the last run as they came, and how a cut ended. */

import { byId, make } from "./dom.js";
import { followEnd, paint } from "./scroll.js";
import { Timeline } from "./timeline.js";
import { fill, words } from "./words.js";

/** @typedef {import("./types.js").Row} Row */

// Older rows leave the page, not the download.
const MAX_ROWS = 300;
const MAX_NOTE = 160;
// What a row shows of its frames; a longer text would take the browser too long to lay out.
const MAX_RAW = 16_000;
// More than a network's own unsteadiness.
const HELD_MS = 1000;
const DELTAS = ["text_delta", "reasoning_delta"];
const encoder = new TextEncoder();

export class Wire {
  #panel = byId("wire");
  #list = /** @type {HTMLElement} */ (byId("frames").firstElementChild);
  #sum = byId("wire-sum");
  #cuts = byId("wire-cuts");
  #warning = byId("wire-warning");
  #hints = byId("wire-hints");
  #download = byId("download");
  #timeline = new Timeline();
  /** @type {Row[]} */
  #rows = [];
  /** Rows from here on have changed since they were drawn. */
  #dirty = 0;
  /** @type {string[]} */
  #raw = [];
  #bytes = 0;
  #connections = 0;
  #startedMs = 0;
  /** The last event that came, over all connections. */
  #cursor = 0;
  /** Events up to this one were sent before this page read the run. */
  #untimedTo = 0;
  /** @type {import("./types.js").Break[]} */
  #breaks = [];
  /** Whether one connection has carried the run from its beginning. */
  #live = true;
  #startMs = 0;
  /** @type {number | null} */
  #firstMs = null;

  constructor() {
    this.#download.addEventListener("click", () => this.#save());
    followEnd(byId("frames"), this.#list);
  }

  /** Forgets the last run. */
  reset() {
    this.#rows = [];
    this.#raw = [];
    this.#breaks = [];
    this.#dirty = this.#bytes = this.#connections = this.#cursor = this.#untimedTo = 0;
    this.#live = true;
    this.#firstMs = null;
    this.#startedMs = performance.now();
    this.#warning.textContent = this.#cuts.textContent = "";
    this.#list.replaceChildren();
    this.#timeline.reset();
    this.#download.setAttribute("disabled", "");
    paint(this.draw);
  }

  /** Says that the events up to this one are read again, so that their times are not known. @param {number} lastId */
  replay(lastId) {
    this.#untimedTo = lastId;
    this.#live = false;
    paint(this.draw);
  }

  /** @param {boolean} on */
  running(on) {
    byId("cut").toggleAttribute("disabled", !on);
  }

  /** Notes a connection that opened after event `cursor`. @param {number} cursor */
  opened(cursor) {
    this.#connections += 1;
    this.#add("connect", "", 0, fill(words.connection, this.#connections, cursor), "");
  }

  /** Notes that the connection was lost. */
  broken() {
    this.#live = false;
    if (!this.#connections) return;
    const last = this.#breaks.at(-1);
    // An attempt that fails before its first event belongs to the same break.
    if (last && last.next === null) return;
    this.#breaks.push({ after: this.#cursor, lost: 0, doubled: 0, next: null });
    this.#add("lost", "", 0, fill(words.cutAfter, this.#cursor), "");
  }

  /** @param {import("./stream.js").Frame} frame */
  frame(frame) {
    this.#raw.push(frame.raw);
    this.#download.removeAttribute("disabled");
    const size = encoder.encode(frame.raw).length;
    if (frame.data === null) {
      const heartbeat = frame.raw.startsWith(":");
      const name = heartbeat ? "heartbeat" : frame.raw.split(":")[0];
      return this.#add(name, "", size, heartbeat ? words.heartbeat : frame.raw.trim(), frame.raw);
    }
    const id = Number(frame.id);
    const gap = this.#breaks.at(-1);
    const event = parse(frame.data);
    if (gap && id <= this.#cursor) gap.doubled += 1;
    else if (gap && gap.next === null) {
      gap.next = id;
      gap.lost = id - this.#cursor - 1;
    }
    if (id > this.#cursor) this.#notice(event, id);
    this.#cursor = Math.max(this.#cursor, id);
    const delta = DELTAS.includes(frame.event);
    const note = delta ? String(event.content) : frame.data.length > MAX_RAW ? frame.data : gistOf(event);
    this.#add(frame.event, frame.id, size, note, frame.raw);
  }

  /** Notes what the picture shows of a new event. @param {any} event @param {number} id */
  #notice(event, id) {
    if (id <= this.#untimedTo) return;
    const ms = performance.now() - this.#startedMs;
    if (event.type === "start") this.#startMs = ms;
    else if (event.type === "text_delta") this.#firstMs ??= ms;
    else if (event.type === "done" && this.#live && event.timings) this.#warn(ms, event.timings);
    this.#timeline.event(event, ms);
  }

  /** The run cannot be read further. */
  gaveUp() {
    const gap = this.#breaks.at(-1);
    if (gap?.next === null) gap.next = -1;
    paint(this.draw);
  }

  #now() {
    return this.#cursor <= this.#untimedTo ? null : performance.now() - this.#startedMs;
  }

  /**
   * Warns if frames were held back. The server says how far apart it made `start`, the first text and
   * `done`; they arrive that far apart, unless something kept the early ones.
   *
   * @param {number} doneMs
   * @param {{ first_token_ms?: number, total_ms: number }} timings
   */
  #warn(doneMs, { first_token_ms: firstTokenMs = 0, total_ms: totalMs }) {
    const heldMs = Math.max(
      totalMs - (doneMs - this.#startMs),
      totalMs - firstTokenMs - (doneMs - (this.#firstMs ?? 0)),
    );
    if (heldMs > HELD_MS) this.#warning.textContent = fill(words.held, (heldMs / 1000).toFixed(1));
  }

  /** @param {string} name @param {string} id @param {number} size @param {string} note @param {string} raw */
  #add(name, id, size, note, raw) {
    const ms = this.#now();
    this.#bytes += size;
    if (ms !== null) this.#timeline.mark(name, ms);
    const last = this.#rows.at(-1);
    if (last && last.name === name && DELTAS.includes(name)) {
      last.count += 1;
      last.last = id;
      last.size += size;
      if (last.note.length < MAX_NOTE) last.note += note;
      last.raw.push(raw);
      this.#dirty = Math.min(this.#dirty, this.#rows.length - 1);
    } else this.#rows.push({ name, first: id, last: id, count: 1, size, ms, note, raw: raw ? [raw] : [], el: null });
    paint(this.draw);
  }

  draw = () => {
    if (this.#panel.hidden) return;
    for (const row of this.#rows.slice(Math.max(this.#dirty, this.#rows.length - MAX_ROWS))) this.#drawRow(row);
    this.#dirty = this.#rows.length;
    while (this.#list.childElementCount > MAX_ROWS) this.#list.firstElementChild?.remove();
    const facts = [`${this.#raw.length} ${words.frames}`, `${(this.#bytes / 1024).toFixed(1)} KiB`];
    if (this.#firstMs !== null) facts.push(fill(words.firstToken, `${(this.#firstMs / 1000).toFixed(2)} ${words.secondsUnit}`));
    if (this.#rows.length > MAX_ROWS) facts.push(words.earlier);
    if (this.#untimedTo) facts.push(words.untimed);
    this.#sum.textContent = this.#raw.length ? facts.join(" · ") : words.wireLead;
    this.#hints.hidden = this.#breaks.length > 0;
    byId("wire-try").hidden = this.#raw.length > 0;
    this.#timeline.draw(this.#untimedTo > 0 && this.#cursor <= this.#untimedTo);
    this.#drawCuts();
  };

  /** The line that stays: how the last cut ended. */
  #drawCuts() {
    const gap = this.#breaks.at(-1);
    const parts = [];
    if (this.#breaks.length > 1) parts.push(fill(words.cuts, this.#breaks.length));
    if (gap?.next === null) parts.push(fill(words.cutAfter, gap.after));
    else if (gap && gap.next < 0) parts.push(fill(words.gaveUp, gap.after));
    else if (gap) {
      const lost = this.#breaks.reduce((sum, each) => sum + each.lost, 0);
      const doubled = this.#breaks.reduce((sum, each) => sum + each.doubled, 0);
      const isLost = lost ? fill(words.lostSome, lost) : words.notLost;
      const isDoubled = doubled ? fill(words.doubledSome, doubled) : words.notDoubled;
      parts.push(fill(words.resumed, gap.after, gap.next ?? 0, isLost, isDoubled));
    }
    const text = parts.join(" ");
    if (this.#cuts.textContent !== text) this.#cuts.textContent = text;
    this.#cuts.dataset.state = gap && (gap.next ?? -1) < 0 ? "open" : "whole";
  }

  /** @param {Row} row */
  #drawRow(row) {
    const texts = [
      row.first === row.last ? row.first : `${row.first}–${row.last}`,
      row.count > 1 ? `${row.name} × ${row.count}` : row.name,
      row.size ? `${row.size} B` : "",
      row.ms === null ? "" : `${(row.ms / 1000).toFixed(3)} s`,
      row.note.slice(0, MAX_NOTE),
    ];
    if (row.el) {
      const spans = row.el.querySelectorAll("summary > span");
      texts.forEach((text, i) => (spans[i].textContent = text));
      return;
    }
    const item = make("li");
    item.dataset.name = row.name;
    const box = row.raw.length ? document.createElement("details") : make("div", "event");
    const line = row.raw.length ? make("summary") : box;
    line.append(...texts.map((text) => make("span", "", text)));
    if (line !== box) {
      box.append(line);
      box.addEventListener("toggle", () => showRaw(/** @type {HTMLDetailsElement} */ (box), row));
    }
    item.append(box);
    row.el = item;
    this.#list.append(item);
  }

  #save() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(this.#raw, { type: "text/event-stream" }));
    link.download = "run.txt";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  }
}

/** Shows the whole frames of a row that is open. @param {HTMLDetailsElement} box @param {Row} row */
function showRaw(box, row) {
  box.querySelector("pre")?.remove();
  if (!box.open) return;
  let text = row.raw.join("");
  const rest = text.length - MAX_RAW;
  if (rest > 0) text = `${text.slice(0, MAX_RAW)}\n${fill(words.rest, Math.ceil(rest / 1024))}`;
  const pre = make("pre", "", text.trimEnd());
  pre.tabIndex = 0;
  box.append(pre);
}

/** @param {string} data @returns {any} */
function parse(data) {
  try {
    return JSON.parse(data);
  } catch {
    return { content: data };
  }
}

/** What an event says in one line: its fields without its ids. @param {Record<string, unknown>} event */
function gistOf({ type, ...event }) {
  const fields = Object.entries(event).filter(([name]) => !/_id$/.test(name));
  const texts = fields.map(([name, value]) => {
    const text = typeof value === "string" ? value : JSON.stringify(value);
    return ["tool", "content", "message", "reason", "interrupts"].includes(name) ? text : `${name}: ${text}`;
  });
  return texts.join(" · ");
}
