// @ts-check
/** What to do if the server's conversation is another one than the page shows. It is loaded when it is needed. */

import { readThread } from "./api.js";
import { make } from "./dom.js";
import { pick } from "./words.js";

export const words = pick(
  {
    changed: "This conversation was changed in another window. Here it is as the server has it.",
    busyElsewhere: "An answer is being written in another window. Your message is in the field below.",
    forgottenAbove: "The server no longer has what stands above. The agent cannot see it.",
  },
  {
    changed: "この会話は別のウィンドウで変更されました。サーバーにある内容を表示しています。",
    busyElsewhere: "別のウィンドウで回答中です。メッセージは下の入力欄にあります。",
    forgottenAbove: "これより上の内容はサーバーにもうありません。エージェントからは見えません。",
  },
);

/** Returns a thread's document, or null if the server has none or is away. @param {string} threadId */
export function known(threadId) {
  return readThread(threadId).catch(() => null);
}

/**
 * Says above the last turn that the server no longer has what comes before it, if that is so.
 *
 * @param {string} threadId
 * @param {import("./turn.js").Turn[]} turns
 */
export async function markForgotten(threadId, turns) {
  const first = turns[0];
  const { asked } = turns[turns.length - 1];
  const thread = await known(threadId);
  if (!thread || first.asked === asked || first.id === undefined) return;
  const there = thread.messages.some((/** @type {any} */ item) => item.role === "user" && item.id === first.id);
  if (!there && !asked.previousElementSibling?.matches(".divider"))
    asked.before(make("p", "divider", words.forgottenAbove));
}
