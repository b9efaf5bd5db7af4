// @ts-check
/** The form in which a person changes a question. It is loaded when one is opened, since most visits need none. */

import { button, grow, make, sends } from "./dom.js";
import { words } from "./words.js";

/**
 * Puts the form in the place of the question.
 *
 * @param {HTMLElement} place
 * @param {string} question
 * @param {boolean} isLast whether no other turn follows
 * @param {{ send: (text: string) => void, close: () => void }} host
 */
export function openEditor(place, question, isLast, { send, close }) {
  const form = make("form", "editor");
  const area = document.createElement("textarea");
  const submit = button(words.send, () => {}, "primary");
  const buttons = make("div", "buttons");
  submit.type = "submit";
  area.value = question;
  area.setAttribute("aria-label", words.editQuestion);
  buttons.append(button(words.cancel, close, ""), submit);
  form.append(area, ...(isLast ? [] : [make("p", "hint", words.dropsLater)]), buttons);
  area.addEventListener("input", () => grow(area));
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) {
      event.stopPropagation();
      close();
    } else if (event.target === area && sends(event)) {
      event.preventDefault();
      submit.click();
    }
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (area.value.trim()) send(area.value);
  });
  place.replaceChildren(make("h2", "visually-hidden", words.you), form);
  grow(area);
  area.focus({ preventScroll: true });
  area.setSelectionRange(question.length, question.length);
  // A page that follows its end does so in the next frame, as soon as the form is laid out.
  requestAnimationFrame(() => setTimeout(() => form.scrollIntoView({ block: "nearest" })));
}
