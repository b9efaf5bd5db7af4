// @ts-check
/** The card of one tool call, from its start to its result. */

import { brief, make, seconds, showValue } from "./dom.js";
import { words } from "./words.js";


/** @typedef {import("./types.js").CardState} CardState */

export class ToolCard {
  el = document.createElement("details");
  /** @type {CardState} */
  state = "running";
  #startMs = 0;
  #state = make("span", "state");
  #last = make("span", "last");
  #lines = make("ul");
  #progress = make("section");
  #outcome = make("section");
  /** The result, until the card is opened. @type {unknown} */
  #result;
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #clock;

  /**
   * @param {string} tool
   * @param {Record<string, unknown>} input
   * @param {boolean} timed whether the call starts now; else nobody knows when it did
   */
  constructor(tool, input, timed) {
    this.el.className = "tool";
    const summary = make("summary");
    summary.append(make("b", "", tool), make("span", "gist", gist(input)), this.#state, this.#last);
    const asked = make("section");
    asked.append(make("h3", "", words.input), showValue(make("pre"), input));
    this.#progress.append(make("h3", "", words.progress), this.#lines);
    this.#progress.hidden = this.#outcome.hidden = true;
    this.el.append(summary, asked, this.#progress, this.#outcome);
    // A result may be long, and most cards stay closed.
    this.el.addEventListener("toggle", () => this.#showResult());
    this.#startMs = timed ? performance.now() : 0;
    this.hold(false);
  }

  /** Stops the seconds while the connection is away, or lets them go on. @param {boolean} held */
  hold(held) {
    clearInterval(this.#clock);
    this.#show("running", !held);
    if (!held) this.#clock = setInterval(() => this.#show("running"), 1000);
  }

  /** @param {string} text */
  progress(text) {
    this.#progress.hidden = false;
    this.#last.textContent = brief(text);
    this.#lines.append(make("li", "", text));
  }

  /** @param {CardState} state @param {unknown} [result] */
  end(state, result) {
    clearInterval(this.#clock);
    this.#show(state, state !== "lost");
    this.#last.textContent = state === "error" && typeof result === "string" ? brief(result) : "";
    this.#result = result;
    this.#outcome.hidden = result === undefined;
    this.#outcome.replaceChildren();
    this.#showResult();
  }

  #showResult() {
    if (!this.el.open || this.#result === undefined || this.#outcome.childElementCount) return;
    this.#outcome.append(make("h3", "", words.result), showValue(make("pre"), this.#result));
  }

  /**
   * Shows the state: with whole seconds while it runs, and the exact time in the end.
   *
   * @param {CardState} state
   * @param {boolean} [timed]
   */
  #show(state, timed = true) {
    this.state = state;
    this.el.dataset.state = state;
    const elapsedMs = timed && this.#startMs ? performance.now() - this.#startMs : 0;
    const running = state === "running";
    const shown = running ? `${Math.floor(elapsedMs / 1000)} ${words.secondsUnit}` : seconds(elapsedMs);
    // A shorter time would be shown as 0.
    const known = elapsedMs >= (running ? 1000 : 10);
    this.#state.textContent = known ? `${words[state]} · ${shown}` : words[state];
  }
}

/** The arguments of a call in one line: a single text as it is, else each with its name. @param {Record<string, unknown>} input */
function gist(input) {
  const entries = Object.entries(input);
  const plain = (/** @type {unknown} */ value) => (typeof value === "string" ? value : (JSON.stringify(value) ?? ""));
  if (entries.length === 1 && typeof entries[0][1] === "string") return brief(entries[0][1]);
  return brief(entries.map(([name, value]) => `${name}: ${plain(value)}`).join(", "));
}
