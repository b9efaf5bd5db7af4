// node fold.mjs <RUNS: what each client makes of each run's frames, which it checks first.
//
// A run is {aiSdk, agUi}: the text of a response in each dialect. A chat of the AI SDK, of its
// versions in turn, also gets each response cut, and then whole: `differ` has what that changes.

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

/** Returns after how many frames a cut and a resume give another message than no cut. */
async function cutAiSdk({ DefaultChatTransport }, { Chat }, text) {
  const frames = text.split(/(?<=\n\n)/);
  async function talk(cut) {
    const chat = new Chat({
      id: "t",
      transport: new DefaultChatTransport({
        async fetch(address, init) {
          const isCut = cut !== undefined && init.method === "POST";
          return new Response(streamOf(frames.slice(0, isCut ? cut : undefined), isCut), STREAM);
        },
      }),
    });
    await chat.sendMessage({ text: "go" });
    if (cut !== undefined) await chat.resumeStream();
    return JSON.stringify(chat.messages.slice(1));
  }
  const whole = await talk();
  const cuts = await Promise.all(frames.map((_, count) => talk(count)));
  return cuts.flatMap((message, count) => (message === whole ? [] : [count]));
}

/** Returns a stream of these frames, which fails behind them if it is cut. */
function streamOf(frames, isCut) {
  const pieces = frames.map((frame) => Buffer.from(frame));
  const pull = (controller) => {
    if (pieces.length) controller.enqueue(pieces.shift());
    else if (isCut) controller.error(new TypeError("network error"));
    else controller.close();
  };
  return new ReadableStream({ pull }, { highWaterMark: 0 });
}

async function foldAgUi({ HttpAgent }, text) {
  const agent = new HttpAgent({ url: "http://none", threadId: "t" });
  agent.fetch = async () => new Response(text, STREAM);
  let error;
  agent.subscribe({ onRunErrorEvent: ({ event }) => void (error = event.message) });
  await agent.runAgent({ runId: "client-run" });
  return { messages: agent.messages, error };
}

const [ai6, ai7, react6, react7, agUi0, agUi1] = await Promise.all(
  ["ai6", "ai7", "ai-react6", "ai-react7", "ag-ui-0", "ag-ui-1"].map((name) => import(name)),
);
const folded = [];
for (const { aiSdk, agUi } of await input()) {
  folded.push({
    aiSdk: [await foldAiSdk(ai6, aiSdk), await foldAiSdk(ai7, aiSdk)],
    agUi: [await foldAgUi(agUi0, agUi), await foldAgUi(agUi1, agUi)],
    differ: await cutAiSdk(...(folded.length % 2 ? [ai6, react6] : [ai7, react7]), aiSdk),
  });
}
console.log(JSON.stringify({ folded, warnings }));
