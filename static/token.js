// @ts-check
/** The form for the access token. It is loaded when a server wants one. */

import { addStyle, button, make } from "./dom.js";
import { pick } from "./words.js";

await addStyle("token.css");

const words = pick(
  {
    tokenAsk: "This server wants an access token.",
    tokenSave: "Continue",
    tokenRefused: "The server refused this token.",
  },
  {
    tokenAsk: "このサーバーにはアクセストークンが必要です。",
    tokenSave: "続ける",
    tokenRefused: "サーバーはこのトークンを拒否しました。",
  },
);

/**
 * Makes the form. A token that it begins with was refused.
 *
 * @param {string} refused
 * @param {(token: string) => void} use
 */
export function tokenForm(refused, use) {
  const form = make("form");
  const label = /** @type {HTMLLabelElement} */ (make("label", "", words.tokenAsk));
  const field = document.createElement("input");
  const submit = button(words.tokenSave, () => {}, "primary");
  form.id = "token-form";
  label.htmlFor = field.id = "token";
  field.type = "password";
  field.autocomplete = "off";
  field.pattern = "[!-~]+";
  field.required = true;
  field.value = refused;
  submit.type = "submit";
  form.append(label, field, submit);
  if (refused) {
    const note = make("p", "", words.tokenRefused);
    note.id = "token-refused";
    note.setAttribute("role", "alert");
    field.setAttribute("aria-describedby", note.id);
    field.after(note);
  }
  field.addEventListener("focus", () => field.select());
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    use(field.value.trim());
  });
  return form;
}
