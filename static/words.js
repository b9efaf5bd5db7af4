// @ts-check
/** The words of the browser's language; the other language is not loaded. */

export const language = navigator.language.toLowerCase().startsWith("ja") ? "ja" : "en";

/**
 * `failures` is what the page says of a failure, by its code. A code that is missing there is shown
 * with the server's own sentence, which is English.
 */
export const { words, failures } = await (language === "ja" ? import("./words.ja.js") : import("./words.en.js"));

/** Chooses words for what most visits do not need. @template T @param {T} english @param {T} japanese */
export function pick(english, japanese) {
  return language === "ja" ? japanese : english;
}

/** Puts values in the places of a text that are marked `{}`. @param {string} text @param {...(string | number)} values */
export function fill(text, ...values) {
  let next = 0;
  return text.replace(/\{\}/g, () => String(values[next++]));
}

/** Puts words into the page: `data-words` names an element's text, `data-label` its accessible name. */
export function translate() {
  const table = /** @type {Record<string, string>} */ (words);
  document.documentElement.lang = language;
  document.title = words.title;
  for (const el of document.querySelectorAll("[data-words], [data-label]")) {
    const { words: text, label } = /** @type {HTMLElement} */ (el).dataset;
    if (text) el.textContent = table[text];
    if (label) el.setAttribute("aria-label", table[label]);
  }
}
