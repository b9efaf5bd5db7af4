// @ts-check
/** Makes nodes. What a model, a tool or a person wrote reaches the page only as text. */

import { fill, words } from "./words.js";

const BRIEF_CHARS = 200;
// A longer text takes the browser too long to lay out in one task.
const SHOWN_CHARS = 16_000;
const SLICE_CHARS = 4_000;

/** @param {string} id @returns {HTMLElement} */
export function byId(id) {
  const el = document.getElementById(id);
  if (!el) throw new Error(`no element #${id}`);
  return el;
}

/** @param {string} name @param {string} [className] @param {string} [text] */
export function make(name, className = "", text = "") {
  const el = document.createElement(name);
  if (className) el.className = className;
  if (text) el.textContent = text;
  return el;
}

/** @param {string} label @param {(button: HTMLButtonElement) => void} act */
export function button(label, act, className = "quiet") {
  const el = document.createElement("button");
  el.type = "button";
  el.className = className;
  el.textContent = label;
  el.addEventListener("click", () => act(el));
  return el;
}

/** Loads a style sheet that most visits do not need. @param {string} name */
export function addStyle(name) {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = `/static/${name}`;
  document.head.append(link);
  return new Promise((done) => (link.onload = link.onerror = done));
}

/**
 * Shows a text, or the JSON of any other value. The end of a long one is shown on request, in slices
 * that are laid out only when they are scrolled into view.
 *
 * @param {HTMLElement} el
 * @param {unknown} value
 */
export function showValue(el, value) {
  const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  el.tabIndex = 0;
  el.textContent = text.slice(0, SHOWN_CHARS);
  if (text.length <= SHOWN_CHARS) return el;
  const more = button(fill(words.showAll, `${Math.ceil(text.length / 1024)} KiB`), () => {
    more.remove();
    for (let at = SHOWN_CHARS; at < text.length; at += SLICE_CHARS)
      el.append(make("span", "slice", text.slice(at, at + SLICE_CHARS)));
    el.focus();
  });
  el.append(more);
  return el;
}

/** Copies a text, and says so on the button for a moment. @param {HTMLButtonElement} pressed @param {string} text */
export async function copy(pressed, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages served over plain HTTP have no clipboard but this one.
    const box = document.createElement("textarea");
    box.value = text;
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
    pressed.focus();
  }
  pressed.textContent = words.copied;
  setTimeout(() => (pressed.textContent = words.copy), 1500);
}

/** Lets the Copy buttons of code blocks work. @param {HTMLElement} log */
export function enableCopy(log) {
  log.addEventListener("click", ({ target }) => {
    if (target instanceof HTMLButtonElement && target.className === "copy-code")
      copy(target, target.closest("figure")?.querySelector("code")?.textContent ?? "");
  });
}

/** Says whether this Enter sends. An input method uses Enter to choose a word. @param {KeyboardEvent} event */
export function sends(event) {
  // Some browsers mark the Enter of an input method by code 229 alone.
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

/** The beginning of what may be long. @param {string} text */
export function brief(text, chars = BRIEF_CHARS) {
  return text.length > chars ? `${text.slice(0, chars)}…` : text;
}

/** @param {number} ms */
export function seconds(ms) {
  return `${(ms / 1000).toFixed(ms < 995 ? 2 : 1)} ${words.secondsUnit}`;
}

/** Makes a text area as high as its text. @param {HTMLTextAreaElement} area */
export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}
