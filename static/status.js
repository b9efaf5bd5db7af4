// @ts-check
/** The truth about the connection: one word in the header, and the title of the tab. */

import { byId } from "./dom.js";
import { fill, words } from "./words.js";

const el = byId("state");
const text = byId("state-text");
const countdown = byId("countdown");
let untilMs = 0;
/** @type {ReturnType<typeof setInterval> | undefined} */
let clock;
let title = "";
let writing = false;
let arrived = false;

/** Shows the state, and counts down to the next attempt. @param {import("./stream.js").State | "away" | "token" | "asking"} name @param {number} [waitMs] */
export function showState(name, waitMs = 0) {
  el.dataset.state = name;
  if (text.textContent !== words[name]) text.textContent = words[name];
  clearInterval(clock);
  untilMs = performance.now() + waitMs;
  countdown.textContent = "";
  if (!waitMs) return;
  count();
  clock = setInterval(count, 250);
}

function count() {
  const left = Math.ceil((untilMs - performance.now()) / 1000);
  countdown.textContent = left > 0 ? fill(words.inSeconds, left) : "";
  if (left <= 0) clearInterval(clock);
}

/** @param {string} name the conversation's title */
export function nameTab(name) {
  title = name;
  showTitle();
}

/** Says in the tab whether an answer is being written, or has come while nobody looked. @param {boolean} on */
export function answering(on) {
  arrived = writing && !on && document.hidden;
  writing = on;
  showTitle();
}

function showTitle() {
  const mark = writing ? `${words.writing}…` : arrived ? `✓ ${words.arrived}` : "";
  document.title = [mark, title, words.title].filter(Boolean).join(" · ");
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden || !arrived) return;
  arrived = false;
  showTitle();
});
