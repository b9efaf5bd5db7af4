// @ts-check
/** This browser's conversations: their addresses, their titles, and the list of them. */

import { brief, button, make } from "./dom.js";
import { lasting } from "./store.js";
import { fill, language, words } from "./words.js";

/** @typedef {{ id: string, title: string, atMs: number }} Entry */

const KEY = "threads";
// The list is for going back, not an archive.
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

/** @returns {Entry[]} newest first */
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
  lasting.set(KEY, JSON.stringify([{ id, title, atMs: Date.now() }, ...others].slice(0, MAX_ENTRIES)));
}

/** @param {string} id */
export function forget(id) {
  lasting.set(KEY, JSON.stringify(entries().filter((entry) => entry.id !== id)));
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

/**
 * Says that the server no longer has a conversation.
 *
 * @param {HTMLElement} box
 * @param {string} id
 * @param {() => void} leave shows a new conversation
 * @param {(question: string) => void} again shows a new conversation with the first question of this one
 */
export function drawForgotten(box, id, leave, again) {
  const title = titleOf(id);
  const buttons = make("div", "buttons");
  const removed = () => {
    forget(id);
    leave();
  };
  buttons.append(button(words.again, () => again(title), "primary"));
  if (title) buttons.append(button(words.removeEntry, removed, ""));
  box.replaceChildren(make("h2", "", words.forgotten), make("p", "", words.forgottenWhy), buttons);
  if (title) box.firstElementChild?.after(make("blockquote", "", title));
  box.hidden = false;
}

/** The time of today, or the date. @param {number} atMs */
function when(atMs) {
  const date = new Date(atMs);
  const today = date.toDateString() === new Date().toDateString();
  return today
    ? date.toLocaleTimeString(language, { hour: "2-digit", minute: "2-digit" })
    : date.toLocaleDateString(language, { month: "short", day: "numeric" });
}
