// A page with assistant-ui over its runtime for the AI SDK, without configuration.

import { AssistantRuntimeProvider, MessagePrimitive, ThreadPrimitive } from "@assistant-ui/react";
import { useChatRuntime } from "@assistant-ui/react-ai-sdk";
import { createElement as h } from "react";
import { createRoot } from "react-dom/client";

const Message = () => h(MessagePrimitive.Root, null, h(MessagePrimitive.Parts));

function Page() {
  const runtime = useChatRuntime();
  window.thread = runtime.thread;
  const messages = h(ThreadPrimitive.Messages, { components: { Message } });
  return h(AssistantRuntimeProvider, { runtime }, h(ThreadPrimitive.Root, null, messages));
}

createRoot(document.body).render(h(Page));
