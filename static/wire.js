// @ts-check
/** The wire panel: the frames of the last run as they came, and how a cut ended. */

import { byId, make } from "./dom.js";
import { followEnd, paint } from "./scroll.js";
import { Timeline } from "./timeline.js";
import { fill, words } from "./words.js";

/** @typedef {import("./stream.js").Frame} Frame */
/**
 * @typedef {object} Row one frame, or a run of deltas of one message
 * @property {string} name
 * @property {string} first the id of its first frame
 * @property {string} last
 * @property {number} count
 * @property {number} size in bytes
 * @property {number | null} ms when its first frame came; null if nobody knows
 * @property {string} note
 * @property {string[]} raw
 * @property {HTMLElement | null} el
 */

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
  #cut = /** @type {HTMLButtonElement} */ (byId("cut"));
  #download = /** @type {HTMLButtonElement} */ (byId("download"));
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
  /** @type {{ after: number, lost: number, doubled: number, next: number | null }[]} */
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
    this.#download.disabled = true;
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
    this.#cut.disabled = !on;
  }

  /** Notes a connection that opened after event `cursor`. @param {number} cursor */
  opened(cursor) {
    this.#connections += 1;
    this.#add("connect", "", 0, fill(words.connection, this.#connections, cursor), "");
  }

  /** Notes that the connection was lost. */
  broken() {
    this.#live = false;
    const last = this.#breaks.at(-1);
    // An attempt that fails before its first event belongs to the same break.
    if (last && last.next === null) return;
    this.#breaks.push({ after: this.#cursor, lost: 0, doubled: 0, next: null });
    this.#add("lost", "", 0, fill(words.cutAfter, this.#cursor), "");
  }

  /** @param {Frame} frame */
  frame(frame) {
    this.#raw.push(frame.raw);
    this.#download.disabled = false;
    const size = encoder.encode(frame.raw).length;
    if (frame.data === null) {
      const heartbeat = frame.raw.startsWith(":");
      const name = heartbeat ? "heartbeat" : frame.raw.split(":")[0];
      return this.#add(name, "", size, heartbeat ? words.heartbeat : frame.raw.trim().slice(0, MAX_NOTE), frame.raw);
    }
    const id = Number(frame.id);
    const gap = this.#breaks.at(-1);
    if (gap && id <= this.#cursor) gap.doubled += 1;
    else if (gap && gap.next === null) {
      gap.next = id;
      gap.lost = id - this.#cursor - 1;
    }
    this.#cursor = Math.max(this.#cursor, id);
    this.#add(frame.event, frame.id, size, frame.data, frame.raw);
  }

  /** Notes what the picture shows of an event. @param {import("./stream.js").StreamEvent} event */
  event(event) {
    const ms = this.#now();
    if (event.type === "start") this.#startMs = ms ?? 0;
    else if (event.type === "text_delta" && ms !== null && this.#firstMs === null) this.#firstMs = ms;
    else if (event.type === "done" && this.#live && event.timings) this.#warn(ms ?? 0, event.timings);
    if (ms !== null) this.#timeline.event(event, ms);
  }

  /** The run was read to its end. */
  ended() {
    paint(this.draw);
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
   * Warns if frames were held back. The server says how long before `done` it made `start` and the
   * first text. All three travel equally long, so they arrive that far apart, unless something kept
   * the early ones.
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

  /**
   * @param {string} name
   * @param {string} id
   * @param {number} size
   * @param {string} note
   * @param {string} raw
   */
  #add(name, id, size, note, raw) {
    const ms = this.#now();
    this.#bytes += size;
    if (ms !== null) this.#timeline.mark(name, ms);
    const last = this.#rows.at(-1);
    if (last && last.name === name && DELTAS.includes(name)) {
      last.count += 1;
      last.last = id;
      last.size += size;
      if (last.note.length < MAX_NOTE) last.note += contentOf(note);
      last.raw.push(raw);
      this.#dirty = Math.min(this.#dirty, this.#rows.length - 1);
    } else {
      const text = DELTAS.includes(name) ? contentOf(note) : gistOf(note);
      this.#rows.push({ name, first: id, last: id, count: 1, size, ms, note: text, raw: raw ? [raw] : [], el: null });
    }
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
      parts.push(fill(words.resumed, gap.after, gap.next ?? 0, lost ? fill(words.lostSome, lost) : words.notLost, doubled ? fill(words.doubledSome, doubled) : words.notDoubled));
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

/**
 * Shows the whole frames of a row that is open.
 *
 * @param {HTMLDetailsElement} box
 * @param {Row} row
 */
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

/** What an event says in one line: its fields without its ids. @param {string} data */
function gistOf(data) {
  if (!data.startsWith("{") || data.length > MAX_RAW) return data.slice(0, MAX_NOTE);
  try {
    const fields = Object.entries(JSON.parse(data)).filter(([name]) => name !== "type" && !/_id$/.test(name));
    const texts = fields.map(([name, value]) => {
      if (name === "interrupts") return JSON.stringify(value.map((/** @type {any} */ each) => each.value));
      const text = typeof value === "string" ? value : JSON.stringify(value);
      return ["tool", "content", "message", "reason"].includes(name) ? text : `${name}: ${text}`;
    });
    return texts.join(" · ").slice(0, MAX_NOTE);
  } catch {
    return data.slice(0, MAX_NOTE);
  }
}

/** The text of a delta, for a row that stands for many. @param {string} data */
function contentOf(data) {
  try {
    return String(JSON.parse(data).content ?? "");
  } catch {
    return data;
  }
}
