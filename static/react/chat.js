// @ts-check
/** The chat page once more, with React: it shows what `useChatStream` holds. */

import { StrictMode, createElement as h, useState } from "react";
import { createRoot } from "react-dom/client";
import { useChatStream } from "./useChatStream.js";

/** @typedef {import("./useChatStream.js").Turn} Turn */

function Chat() {
  const { turns, running, send, answer, stop } = useChatStream();
  const [question, setQuestion] = useState("");
  const submit = (/** @type {{ preventDefault(): void }} */ event) => {
    event.preventDefault();
    if (running || !question.trim()) return;
    send(question);
    setQuestion("");
  };
  const last = turns.length - 1;
  return h(
    "main",
    null,
    h(
      "section",
      { id: "scroll", tabIndex: 0, "aria-label": "Conversation" },
      h(
        "div",
        { id: "log", role: "log" },
        turns.map((turn, i) => h(Exchange, { key: i, turn, busy: running && i === last, answer })),
      ),
    ),
    h(
      "form",
      { id: "composer", onSubmit: submit },
      h(
        "div",
        { className: "box" },
        h("input", {
          id: "message",
          "aria-label": "Ask something",
          autoComplete: "off",
          value: question,
          onChange: (/** @type {any} */ event) => setQuestion(event.target.value),
        }),
        running
          ? h("button", { key: "stop", type: "button", className: "primary", onClick: stop }, "Stop")
          : h("button", { key: "send", className: "primary" }, "Send"),
      ),
    ),
  );
}

/** @param {{ turn: Turn, busy: boolean, answer: (value: unknown) => void }} props */
function Exchange({ turn, busy, answer }) {
  const { question, note, reasoning, texts, tools, interrupts, error } = turn;
  return [
    h("article", { key: "user", className: "turn user" }, h("div", { className: "body" }, question)),
    h(
      "article",
      { key: "agent", className: "turn agent", "aria-busy": busy },
      reasoning && h("details", { className: "reasoning" }, h("summary", null, "Reasoning"), reasoning),
      Object.entries(tools).map(([id, { tool, input, state, result }]) =>
        h(
          "details",
          { key: id, className: "tool", "data-state": state },
          h("summary", null, h("b", null, tool), h("span", { className: "gist" }, gist(input)), h("span", { className: "state" }, state)),
          result !== undefined && h("section", null, h("pre", { tabIndex: 0 }, gist(result))),
        ),
      ),
      Object.entries(texts).map(([id, text]) => h("p", { key: id, className: "text" }, text)),
      interrupts.map(({ id, value }) => h("p", { key: id }, gist(value))),
      interrupts.length === 1 &&
        !busy &&
        h(
          "p",
          null,
          h("button", { type: "button", onClick: () => answer(true) }, "Approve"),
          h("button", { type: "button", onClick: () => answer(false) }, "Reject"),
        ),
      note && h("p", { className: "note" }, note),
      error && h("div", { className: "failure", role: "alert" }, error),
    ),
  ];
}

/** @param {unknown} value */
function gist(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

const page = document.getElementById("page");
if (page) createRoot(page).render(h(StrictMode, null, h(Chat)));
