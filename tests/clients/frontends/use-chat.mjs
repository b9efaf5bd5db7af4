// A page with the real useChat, which has no configuration but what the page's query names.

import { DefaultChatTransport, lastAssistantMessageIsCompleteWithToolCalls } from "ai-sdk";
import { useChat } from "ai-sdk-react";
import { createElement } from "react";
import { createRoot } from "react-dom/client";

const query = new URLSearchParams(location.search);
const options = {};
if (query.has("id")) options.id = query.get("id");
if (query.has("resume")) options.resume = true;
if (query.has("answers")) {
  options.sendAutomaticallyWhen = lastAssistantMessageIsCompleteWithToolCalls;
}
if (query.has("api")) options.transport = new DefaultChatTransport({ api: query.get("api") });

function Page() {
  const chat = Object.keys(options).length ? useChat(options) : useChat();
  window.chat = chat;
  const { status, error, messages } = chat;
  const shown = { status, error: error?.message, messages };
  return createElement("pre", { id: "shown" }, JSON.stringify(shown));
}

createRoot(document.body).render(createElement(Page));
