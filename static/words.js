// @ts-check
/** The words of the browser's language; the other language is not loaded. */

export const language = navigator.language.toLowerCase().startsWith("ja") ? "ja" : "en";

/**
 * `failures` is what the page says of a failure, by its code. A code that is missing there is shown
 * with the server's own sentence, which is English.
 */
export const { words, failures } = await (language === "ja" ? import("./words.ja.js") : import("./words.en.js"));

/**
 * Puts values in the places of a text that are marked `{}`.
 *
 * @param {string} text
 * @param {...(string | number)} values
 */
export function fill(text, ...values) {
  let next = 0;
  return text.replace(/\{\}/g, () => String(values[next++]));
}

/**
 * Puts words into the HTML: `data-words` names an element's text, `data-label` its accessible name.
 *
 * @param {Document} page
 */
export function translate(page) {
  const table = /** @type {Record<string, string>} */ (words);
  page.documentElement.lang = language;
  page.title = words.title;
  for (const el of page.querySelectorAll("[data-words]"))
    el.textContent = table[el.getAttribute("data-words") ?? ""];
  for (const el of page.querySelectorAll("[data-label]"))
    el.setAttribute("aria-label", table[el.getAttribute("data-label") ?? ""]);
}
