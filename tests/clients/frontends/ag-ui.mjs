// node ag-ui.mjs VERSION URL CHATS: what an HttpAgent of AG-UI shows after each step, as JSON.
//
// A step is an object: what to do, and perhaps where to cut the response (`cut`: after so many
// frames) or to abort the run (`stop`: when a message has this text).

import { cut } from "./wire.mjs";

const [version, url, given] = process.argv.slice(2);
const { HttpAgent } = await import(version === "0" ? "ag-ui-0" : "ag-ui-1");

const warnings = [];
console.warn = (...words) => warnings.push(words.join(" "));
console.error = () => {};

async function converse({ id, steps }) {
  let cutAt;
  let sent = 0;
  const agent = new HttpAgent({
    url: `${url}/api/ag-ui`,
    threadId: id,
    async fetch(input, init) {
      sent += 1;
      const count = cutAt;
      cutAt = undefined;
      return cut(input, init, count);
    },
  });
  const events = [];
  agent.subscribe({ onEvent: ({ event }) => void events.push(event) });
  const shown = [];
  let runId;
  for (const step of steps) {
    cutAt = step.cut;
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
  return { shown, sent, warnings };
}

const chats = JSON.parse(given);
console.log(JSON.stringify(await Promise.all(chats.map(converse))));
