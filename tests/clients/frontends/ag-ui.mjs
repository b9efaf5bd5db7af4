// node ag-ui.mjs VERSION URL <CHATS: what agents of AG-UI's client show after each of their steps.
//
// A step is an object: what to do, and perhaps where to cut the response (`cut`: after so many
// frames) or to abort the run (`stop`: when a message has this text).

import { cut, input } from "./wire.mjs";

const [version, url] = process.argv.slice(2);
const { HttpAgent } = await import(version === "0.0.59" ? "ag-ui-0" : "ag-ui-1");

const warnings = [];
console.warn = (...words) => warnings.push(words.join(" "));
console.error = () => {};
// The client cancels a stream that has failed already, and lets that rejection go.
process.on("unhandledRejection", () => {});

async function converse({ id, messages = [], urls, steps }) {
  let cutAt;
  let [sent, frames] = [0, 0];
  const agent = new HttpAgent({
    url: `${url}/api/ag-ui`,
    threadId: id,
    initialMessages: messages,
    async fetch(address, init) {
      sent += 1;
      const count = cutAt;
      cutAt = undefined;
      // Replicas take turns.
      if (urls) address = address.replace(url, urls[sent % urls.length]);
      return cut(address, init, count, () => (frames += 1));
    },
  });
  const events = [];
  agent.subscribe({ onEvent: ({ event }) => void events.push(event) });
  const shown = [];
  let runId;
  for (const step of steps) {
    cutAt = step.cut;
    frames = 0;
    events.length = 0;
    const stop = () => {
      const said = agent.messages.at(-1)?.content ?? "";
      if (agent.isRunning && said.includes(step.stop)) agent.abortRun();
      else setTimeout(stop, 2);
    };
    if (step.stop !== undefined) stop();
    let error;
    if (step.send !== undefined) {
      agent.addMessage({ id: crypto.randomUUID(), role: "user", content: step.send });
    }
    if (!step.again && !step.same) runId = crypto.randomUUID();
    const resume = step.answers?.map(([status, payload], index) => {
      const interruptId = agent.pendingInterrupts[index].id;
      return status === "resolved" ? { interruptId, status, payload } : { interruptId, status };
    });
    try {
      await agent.runAgent({ runId, ...(resume && { resume }) });
    } catch (caught) {
      error = caught.message;
    }
    const types = events.map((event) => event.type).filter((type, n, all) => type !== all[n - 1]);
    const { pendingInterrupts, messages } = agent;
    const last = events.findLast((event) => event.type.startsWith("RUN_"));
    shown.push(JSON.parse(JSON.stringify({ error, messages, pendingInterrupts, types, last })));
  }
  return { shown, sent, warnings, frames };
}

const chats = await input();
console.log(JSON.stringify(await Promise.all(chats.map(converse))));
