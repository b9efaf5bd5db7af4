// node ai-sdk.mjs VERSION URL <CHATS: what chats of Vercel's AI SDK show after each of their steps.
//
// A step is an object: what to do, and perhaps where to cut the response (`cut`: after so many
// frames) or to stop it (`stop`: when the message has this text).

import { cut, input } from "./wire.mjs";

const [version, url] = process.argv.slice(2);
const { Chat } = await import(`ai-react${version}`);
const {
  DefaultChatTransport,
  lastAssistantMessageIsCompleteWithApprovalResponses: isApproved,
  lastAssistantMessageIsCompleteWithToolCalls: isComplete,
} = await import(`ai${version}`);

async function converse({ id, auto = true, messages = [], urls, steps }) {
  let cutAt;
  let [frames, requests] = [0, 0];
  const bodies = [];
  const transport = new DefaultChatTransport({
    api: `${url}/api/chat`,
    async fetch(address, init) {
      if (init.body) bodies.push(JSON.parse(init.body));
      const count = cutAt;
      cutAt = undefined;
      // Replicas take turns.
      if (urls) address = address.replace(url, urls[(requests += 1) % urls.length]);
      return cut(address, init, count, () => (frames += 1));
    },
  });
  const notes = [];
  const progress = [];
  const chat = new Chat({
    id,
    messages,
    transport,
    onData: (part) => notes.push(part),
    sendAutomaticallyWhen: auto ? (chat) => isComplete(chat) || isApproved(chat) : undefined,
  });
  chat["~registerMessagesCallback"](() => {
    for (const part of chat.lastMessage?.parts ?? []) {
      if (part.preliminary && progress.length === 0) progress.push(part.output);
    }
  });
  const shown = [];
  for (const step of steps) {
    cutAt = step.cut;
    frames = 0;
    const before = chat.lastMessage;
    const stop = () => {
      const text = (chat.lastMessage?.parts ?? []).map((part) => part.text ?? "").join("");
      const begun = chat.lastMessage?.role === "assistant" && chat.lastMessage.id !== before?.id;
      if (begun && text.includes(step.stop)) chat.stop();
      else setTimeout(stop, 2);
    };
    if (step.stop !== undefined) stop();
    const sent = bodies.length;
    await act(chat, step);
    await settled(chat);
    const { status, error } = chat;
    const parts = JSON.parse(JSON.stringify(chat.messages));
    shown.push({ status, error: error?.message, messages: parts, sent: bodies.length - sent });
  }
  return { shown, notes, progress, frames };
}

async function act(chat, step) {
  if (step.send !== undefined) await chat.sendMessage({ text: step.send });
  else if (step.files) await chat.sendMessage({ text: "see", files: step.files });
  else if (step.edit) {
    const message = chat.messages.filter((each) => each.role === "user")[step.edit[0]];
    await chat.sendMessage({ text: step.edit[1], messageId: message.id });
  } else if (step.regenerate) await chat.regenerate();
  else if (step.resume) await chat.resumeStream();
  else if (step.answers) {
    const open = parts(chat).filter((p) => p.type === "tool-interrupt" && p.state === "input-available");
    for (const [index, part] of open.entries()) {
      const output = step.answers[index];
      await chat.addToolOutput({ tool: "interrupt", toolCallId: part.toolCallId, output });
    }
    if (step.manually) await chat.sendMessage();
  } else if (step.approve) {
    const open = parts(chat).filter((part) => part.state === "approval-requested");
    for (const [index, { approval }] of open.entries()) {
      const [approved, reason] = step.approve[index];
      await chat.addToolApprovalResponse({ id: approval.id, approved, reason });
    }
    if (step.manually) await chat.sendMessage();
  }
}

const parts = (chat) => chat.lastMessage.parts;

/** Waits until the chat is at rest and does not begin another request by itself. */
async function settled(chat) {
  for (let quiet = 0; quiet < 5; quiet += 1) {
    if (chat.status !== "ready" && chat.status !== "error") quiet = -1;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

const chats = await input();
console.log(JSON.stringify(await Promise.all(chats.map(converse))));
