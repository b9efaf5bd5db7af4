// @ts-check
/** The Copy buttons of code blocks. */

import { copy } from "./dom.js";

/** @param {HTMLElement} log */
export function enableCopy(log) {
  log.addEventListener("click", (event) => {
    const pressed = event.target;
    if (!(pressed instanceof HTMLButtonElement) || pressed.className !== "copy-code") return;
    copy(pressed, pressed.closest("figure")?.querySelector("code")?.textContent ?? "");
  });
}
