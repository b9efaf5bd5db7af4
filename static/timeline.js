// @ts-check
/** The picture of when the frames of a run arrived. A millisecond is one unit of it, so that only its scale changes. */

import { byId } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
/** @type {Record<string, string>} */
const KINDS = { text_delta: "text", heartbeat: "heartbeat", lost: "lost", error: "lost" };
const MAX_LANES = 4;

export class Timeline {
  #picture = byId("timeline");
  /** When the last line of a kind was drawn. @type {Record<string, number>} */
  #drawnMs = {};
  /** @type {Map<string, { el: Element, from: number, lane: number, running: boolean }>} */
  #tools = new Map();
  #scaleMs = 1000;
  #nowMs = 0;
  #ended = false;

  reset() {
    this.#picture.replaceChildren();
    this.#tools.clear();
    this.#drawnMs = {};
    this.#scaleMs = 1000;
    this.#nowMs = 0;
    this.#ended = false;
  }

  /** @param {string} name of the frame @param {number} ms */
  mark(name, ms) {
    const kind = KINDS[name] ?? "other";
    this.#nowMs = ms;
    // The first text is marked from top to bottom, as a cut is.
    if (kind === "text" && !("text" in this.#drawnMs)) this.#path("first", `M${ms} 0V60`);
    // What falls on one pixel is drawn once.
    if (ms - (this.#drawnMs[kind] ?? -Infinity) < this.#scaleMs / 500) return;
    this.#drawnMs[kind] = ms;
    this.#path(kind, kind === "lost" ? `M${ms} 0V60` : `M${ms} 4V28`);
  }

  /** @param {import("./stream.js").StreamEvent} event @param {number} ms */
  event(event, ms) {
    if (event.type === "tool_call") {
      const taken = [...this.#tools.values()].filter((bar) => bar.running).map((bar) => bar.lane);
      const lane = Array.from({ length: MAX_LANES }, (_, n) => n).find((n) => !taken.includes(n)) ?? 0;
      const el = this.#path("tool", "");
      el.appendChild(document.createElementNS(SVG, "title")).textContent = event.tool;
      this.#tools.set(event.tool_call_id, { el, from: ms, lane, running: true });
    } else if (event.type === "tool_result") {
      this.#bars();
      const bar = this.#tools.get(event.tool_call_id);
      if (bar) bar.running = false;
    } else if (event.type === "done") {
      this.#ended = true;
    }
  }

  /** @param {boolean} hidden */
  draw(hidden) {
    byId("times").hidden = hidden;
    while (this.#nowMs > this.#scaleMs) this.#scaleMs *= 2;
    // Nothing follows, so the picture can be filled.
    if (this.#ended) this.#scaleMs = Math.max(this.#nowMs, 1);
    this.#bars();
    this.#picture.setAttribute("viewBox", `0 0 ${this.#scaleMs} 60`);
    byId("scale").textContent = `${(this.#scaleMs / 1000).toFixed(this.#scaleMs < 1000 ? 2 : 1)} s`;
  }

  /** Draws each running tool as a bar up to now, one below the other. */
  #bars() {
    for (const { el, from, lane, running } of this.#tools.values())
      if (running) el.setAttribute("d", `M${from} ${35 + 7 * lane}H${this.#nowMs}`);
  }

  /** @param {string} kind @param {string} line */
  #path(kind, line) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("data-mark", kind);
    path.setAttribute("d", line);
    return this.#picture.appendChild(path);
  }
}
