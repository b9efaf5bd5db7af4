// @ts-check
/** The picture of when the frames of a run arrived. */

import { byId } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
/** @type {Record<string, string>} */
const KINDS = { text_delta: "text", heartbeat: "heartbeat", lost: "lost", error: "lost" };

export class Timeline {
  #picture = byId("timeline");
  #scale = byId("scale");
  #figure = byId("times");
  /** @type {{ kind: string, ms: number }[]} */
  #marks = [];
  #drawn = 0;
  /** @type {Set<string>} One mark a pixel and kind, however many frames came. */
  #seen = new Set();
  /** @type {Map<string, { from: number, to: number | null, tool: string }>} */
  #tools = new Map();
  #scaleMs = 1000;
  #nowMs = 0;
  /** @type {number | null} */
  #firstMs = null;

  reset() {
    this.#marks = [];
    this.#tools.clear();
    this.#drawn = this.#nowMs = 0;
    this.#scaleMs = 1000;
    this.#firstMs = null;
    this.#picture.replaceChildren();
  }

  /**
   * @param {string} name
   * @param {number} ms
   */
  mark(name, ms) {
    this.#nowMs = ms;
    this.#marks.push({ kind: KINDS[name] ?? "other", ms });
  }

  /**
   * @param {import("./stream.js").StreamEvent} event
   * @param {number} ms
   */
  event(event, ms) {
    if (event.type === "text_delta") this.#firstMs ??= ms;
    else if (event.type === "tool_call") this.#tools.set(event.tool_call_id, { from: ms, to: null, tool: event.tool });
    else if (event.type === "tool_result") {
      const bar = this.#tools.get(event.tool_call_id);
      if (bar) bar.to = ms;
    } else if (event.type === "done") {
      // Nothing follows, so the picture can be filled.
      this.#scaleMs = Math.max(ms, 1);
      this.#drawn = 0;
    }
  }

  /** Adds the new marks; all are drawn anew only when the run outgrows the scale. @param {boolean} hidden */
  draw(hidden) {
    this.#figure.hidden = hidden;
    while (this.#nowMs > this.#scaleMs) {
      this.#scaleMs *= 2;
      this.#drawn = 0;
    }
    if (!this.#drawn) {
      this.#seen.clear();
      this.#picture.replaceChildren();
    }
    const x = (/** @type {number} */ ms) => Math.round((ms / this.#scaleMs) * 998);
    for (; this.#drawn < this.#marks.length; this.#drawn++) {
      const { kind, ms } = this.#marks[this.#drawn];
      if (this.#seen.has(`${kind} ${x(ms)}`)) continue;
      this.#seen.add(`${kind} ${x(ms)}`);
      const shape = kind === "lost" ? rect(kind, x(ms), 0, 5, 60) : rect(kind, x(ms), 4, kind === "text" ? 2 : 3, 24);
      this.#picture.append(shape);
    }
    for (const shape of this.#picture.querySelectorAll(".tool, .first")) shape.remove();
    if (this.#firstMs !== null) this.#picture.append(rect("first", x(this.#firstMs), 0, 4, 60));
    this.#bars(x);
    this.#scale.textContent = `${(this.#scaleMs / 1000).toFixed(this.#scaleMs < 1000 ? 2 : 1)} s`;
  }

  /** Draws each tool as a bar; those that ran at the same time stand below each other. @param {(ms: number) => number} x */
  #bars(x) {
    /** @type {number[]} When each lane is free again. */
    const lanes = [];
    const bars = [...this.#tools.values()].map(({ from, to, tool }) => {
      const free = lanes.findIndex((end) => end <= from);
      const lane = free < 0 ? lanes.length : free;
      lanes[lane] = to ?? Infinity;
      return { lane, left: x(from), width: Math.max(4, x(to ?? this.#nowMs) - x(from)), tool };
    });
    const height = Math.min(9, 27 / lanes.length);
    for (const { lane, left, width, tool } of bars) {
      const bar = rect("tool", left, 32 + height * lane, width, height * 0.8);
      bar.appendChild(document.createElementNS(SVG, "title")).textContent = tool;
      this.#picture.append(bar);
    }
  }
}

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
