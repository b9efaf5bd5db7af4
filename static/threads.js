// @ts-check
/** This browser's conversations: their addresses, their titles, and the list of them. */

import { brief, button, make } from "./dom.js";
import { lasting } from "./store.js";
import { fill, language, words } from "./words.js";

/** @typedef {import("./types.js").Notes} Notes */

const KEY = "threads";
const MAX_ENTRIES = 100;
const TITLE_CHARS = 80;
const ADDRESS = /^#\/t\/([A-Za-z0-9_-]{1,64})$/;

/** The thread in the page's address, or "". */
export function addressed() {
  return ADDRESS.exec(location.hash)?.[1] ?? "";
}

/** @param {string} id */
export function addressOf(id) {
  return `#/t/${id}`;
}

/** @returns {import("./types.js").Entry[]} newest first */
export function entries() {
  try {
    const found = JSON.parse(lasting.get(KEY) || "[]");
    return found.filter((/** @type {any} */ entry) => typeof entry?.id === "string" && typeof entry.title === "string");
  } catch {
    return [];
  }
}

/** @param {string} id */
export function titleOf(id) {
  return entries().find((entry) => entry.id === id)?.title ?? "";
}

/**
 * Puts a conversation first. Its title stays what its first question was.
 *
 * @param {string} id
 * @param {string} question
 */
export function remember(id, question) {
  const title = titleOf(id) || brief(question.trim().replace(/\s+/g, " "), TITLE_CHARS);
  const others = entries().filter((entry) => entry.id !== id);
  for (const old of others.splice(MAX_ENTRIES - 1)) keepNotes(old.id, {});
  lasting.set(KEY, JSON.stringify([{ id, title, atMs: Date.now() }, ...others]));
}

/** @param {string} id */
export function forget(id) {
  lasting.set(KEY, JSON.stringify(entries().filter((entry) => entry.id !== id)));
  keepNotes(id, {});
}

/**
 * Keeps what the server does not keep of a conversation.
 *
 * @param {string} id
 * @param {Record<string, Notes>} notes by turn
 */
export function keepNotes(id, notes) {
  lasting.set(`notes ${id}`, Object.keys(notes).length ? JSON.stringify(notes) : "");
}

/** @param {string} id @returns {Record<string, Notes>} by turn */
export function notesOf(id) {
  return JSON.parse(lasting.get(`notes ${id}`) || "{}");
}

/**
 * Draws the list. Delete has to be pressed twice.
 *
 * @param {HTMLElement} list
 * @param {string} current
 * @param {(id: string) => void} remove
 */
export function drawList(list, current, remove) {
  const items = entries().map(({ id, title, atMs }) => {
    const item = make("li");
    const link = document.createElement("a");
    link.href = addressOf(id);
    link.append(make("span", "title", title || words.untitled), make("time", "", when(atMs)));
    if (id === current) link.setAttribute("aria-current", "page");
    const name = fill(words.delete, title || words.untitled);
    const cross = button("×", () => {
      if (cross.dataset.sure) return remove(id);
      cross.dataset.sure = "true";
      cross.textContent = words.deleteSure;
    }, "quiet delete");
    cross.setAttribute("aria-label", name);
    cross.addEventListener("blur", () => {
      delete cross.dataset.sure;
      cross.textContent = "×";
    });
    item.append(link, cross);
    return item;
  });
  list.replaceChildren(...items);
}

/** @param {number} atMs */
function when(atMs) {
  const parts = /** @type {const} */ ({ month: "short", day: "numeric", hour: "numeric", minute: "2-digit" });
  return new Date(atMs).toLocaleString(language, parts);
}
