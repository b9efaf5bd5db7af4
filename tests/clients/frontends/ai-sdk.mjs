// node ai-sdk.mjs VERSION URL STEPS: what a chat of Vercel's AI SDK shows after each step, as JSON.
//
// A step is an object: what to do, and perhaps where to cut the response (`cut`: after so many
// frames) or to stop it (`stop`: when the message has this text).

import { cut } from "./wire.mjs";

const [version, url, given] = process.argv.slice(2);
const { Chat } = await import(`ai-react${version}`);
const {
  DefaultChatTransport,
  lastAssistantMessageIsCompleteWithApprovalResponses: isApproved,
  lastAssistantMessageIsCompleteWithToolCalls: isComplete,
} = await import(`ai${version}`);

async function converse({ id, auto = true, messages = [], steps }) {
  let cutAt;
  const bodies = [];
  const transport = new DefaultChatTransport({
    api: `${url}/api/chat`,
    async fetch(input, init) {
      if (init.body) bodies.push(JSON.parse(init.body));
      const count = cutAt;
      cutAt = undefined;
      return cut(input, init, count);
    },
  });
  const notes = [];
  const chat = new Chat({
    id,
    messages,
    transport,
    onData: (part) => notes.push(part),
    sendAutomaticallyWhen: auto ? (chat) => isComplete(chat) || isApproved(chat) : undefined,
  });
  const shown = [];
  for (const step of steps) {
    cutAt = step.cut;
    if (step.stop !== undefined) {
      const stop = () => {
        const text = (chat.lastMessage?.parts ?? []).map((part) => part.text ?? "").join("");
        if (chat.lastMessage?.role === "assistant" && text.includes(step.stop)) chat.stop();
        else setTimeout(stop, 2);
      };
      stop();
    }
    const sent = bodies.length;
    await act(chat, step);
    await settled(chat);
    const { status, error } = chat;
    const parts = JSON.parse(JSON.stringify(chat.messages));
    shown.push({ status, error: error?.message, messages: parts, sent: bodies.length - sent });
  }
  return { shown, notes };
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

const chats = JSON.parse(given);
console.log(JSON.stringify(await Promise.all(chats.map(converse))));
