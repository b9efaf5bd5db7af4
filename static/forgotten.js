// @ts-check
/** What stands in the place of a conversation that the server no longer has. It is loaded when it is needed. */

import { button, make } from "./dom.js";
import { pick } from "./words.js";

const words = pick(
  {
    forgotten: "The server no longer has this conversation.",
    forgottenWhy: "Without a database, the server keeps conversations only in its memory. It loses them when it restarts.",
    again: "Start again",
    removeEntry: "Remove from the list",
  },
  {
    forgotten: "サーバーにこの会話はもうありません。",
    forgottenWhy: "データベースがない場合、会話はサーバーのメモリーだけにあり、再起動すると失われます。",
    again: "もう一度始める",
    removeEntry: "一覧から外す",
  },
);

/**
 * @param {string} title the conversation's first question, or "" if nobody knows it
 * @param {() => void} again begins a new conversation with that question
 * @param {() => void} remove removes the conversation from the list
 */
export function forgotten(title, again, remove) {
  const buttons = make("div", "buttons");
  buttons.append(button(words.again, again, "primary"));
  if (title) buttons.append(button(words.removeEntry, remove, ""));
  const quote = title ? [make("blockquote", "", title)] : [];
  return [make("h2", "", words.forgotten), ...quote, make("p", "", words.forgottenWhy), buttons];
}
