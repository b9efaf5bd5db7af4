// node fold.mjs <RUNS: what each client makes of each run's frames, which it checks first.
//
// A run is {aiSdk, agUi}: the text of a response in each dialect.

import { input } from "./wire.mjs";

const STREAM = { headers: { "Content-Type": "text/event-stream; charset=utf-8" } };

const warnings = [];
console.warn = (...words) => warnings.push(words.join(" "));
console.error = () => {};

async function foldAiSdk({ DefaultChatTransport, readUIMessageStream }, text) {
  // Its transport checks each chunk against uiMessageChunkSchema.
  const chunks = new DefaultChatTransport().processResponseStream(new Response(text, STREAM).body);
  let message;
  let error;
  const messages = readUIMessageStream({
    stream: chunks,
    onError: (caught) => (error = caught.message),
  });
  for await (message of messages);
  return { parts: message.parts, error };
}

async function foldAgUi({ HttpAgent }, text) {
  const agent = new HttpAgent({ url: "http://none", threadId: "t" });
  agent.fetch = async () => new Response(text, STREAM);
  let error;
  agent.subscribe({ onRunErrorEvent: ({ event }) => void (error = event.message) });
  await agent.runAgent({ runId: "client-run" });
  return { messages: agent.messages, error };
}

const [ai6, ai7, agUi0, agUi1] = await Promise.all(
  ["ai6", "ai7", "ag-ui-0", "ag-ui-1"].map((name) => import(name)),
);
const folded = [];
for (const { aiSdk, agUi } of await input()) {
  folded.push({
    aiSdk: [await foldAiSdk(ai6, aiSdk), await foldAiSdk(ai7, aiSdk)],
    agUi: [await foldAgUi(agUi0, agUi), await foldAgUi(agUi1, agUi)],
  });
}
console.log(JSON.stringify({ folded, warnings }));
