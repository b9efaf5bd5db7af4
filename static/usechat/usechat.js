// @ts-nocheck  The types of the AI SDK are not in this folder.
/** A chat with the `useChat` of Vercel's AI SDK. The server needs no route and no adapter for it. */

import { useChat } from "@ai-sdk/react";
import {
  lastAssistantMessageIsCompleteWithApprovalResponses as allApproved,
  lastAssistantMessageIsCompleteWithToolCalls as allAnswered,
} from "ai";
import { createElement as h, useState } from "react";
import { createRoot } from "react-dom/client";

// The chat of this tab: after a reload, `resume` shows its newest answer again.
const id = (sessionStorage.chat ??= crypto.randomUUID());
const sendAutomaticallyWhen = (chat) => allAnswered(chat) || allApproved(chat);

function Chat() {
  const chat = useChat({ id, resume: true, sendAutomaticallyWhen });
  const [question, setQuestion] = useState("");
  const running = chat.status === "submitted" || chat.status === "streaming";
  const submit = (event) => {
    event.preventDefault();
    if (running || !question.trim()) return;
    chat.sendMessage({ text: question });
    setQuestion("");
  };
  const error = chat.error && h("div", { className: "failure", role: "alert" }, sentence(chat.error));
  const button = running
    ? h("button", { key: "stop", type: "button", className: "primary", onClick: chat.stop }, "Stop")
    : h("button", { key: "send", className: "primary" }, "Send");
  const input = h("input", {
    id: "message",
    "aria-label": "Ask something",
    autoComplete: "off",
    value: question,
    onChange: (event) => setQuestion(event.target.value),
  });
  const log = chat.messages.map((message) => h(Message, { key: message.id, message, chat }));
  return h(
    "main",
    null,
    h("section", { id: "scroll", tabIndex: 0, "aria-label": "Conversation" },
      h("div", { id: "log", role: "log" }, log, error)),
    h("form", { id: "composer", onSubmit: submit }, h("div", { className: "box" }, input, button)),
  );
}

function Message({ message, chat }) {
  const who = message.role === "user" ? "user" : "agent";
  const parts = message.parts.map((part, key) => h(Part, { key, part, chat }));
  return h("article", { className: `turn ${who}` }, h("div", { className: "body" }, parts));
}

function Part({ part, chat }) {
  if (part.type === "text") return h("p", { className: "text" }, part.text);
  if (part.type === "reasoning") return h("details", null, h("summary", null, "Reasoning"), part.text);
  if (!part.type.startsWith("tool-")) return null;
  const tool = part.type.slice("tool-".length);
  const { toolCallId, state, input, approval } = part;
  // A graph that interrupts asks by a call of this tool; its output is the answer.
  const ask = tool === "interrupt" && state === "input-available";
  const answer = (yes) =>
    ask
      ? chat.addToolOutput({ tool, toolCallId, output: yes })
      : chat.addToolApprovalResponse({ id: approval.id, approved: yes });
  const buttons = (ask || state === "approval-requested") && [
    h("button", { key: "yes", type: "button", onClick: () => answer(true) }, "Approve"),
    h("button", { key: "no", type: "button", onClick: () => answer(false) }, "Reject"),
  ];
  const output = part.output ?? part.errorText;
  return h(
    "div",
    { className: "tool", "data-state": state },
    h("b", null, tool), " ", gist(input),
    output !== undefined && h("pre", { tabIndex: 0 }, gist(output)),
    buttons && h("p", null, buttons),
  );
}

/** What the server refused, it says as JSON. */
function sentence({ message }) {
  try {
    return JSON.parse(message).error.message;
  } catch {
    return message;
  }
}

function gist(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

createRoot(document.getElementById("page")).render(h(Chat));
