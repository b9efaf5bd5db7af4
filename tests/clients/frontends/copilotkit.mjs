// node copilotkit.mjs URL <CHATS: what chats of CopilotKit show after each of their steps.
//
// CopilotKit's core talks to CopilotKit's runtime, and that to the server.

import { createServer } from "node:http";

import { input } from "./wire.mjs";

const [url] = process.argv.slice(2);
const log = console.log;
console.log = console.warn = console.error = console.info = () => {};

// The core connects in a browser alone; the runtime would report its use to its makers.
globalThis.window = new EventTarget();
process.env.COPILOTKIT_TELEMETRY_DISABLED = "true";

const { CopilotKitCore } = await import("@copilotkit/core");
const { CopilotRuntime } = await import("@copilotkit/runtime/v2");
const { createCopilotNodeListener } = await import("@copilotkit/runtime/v2/node");
const { HttpAgent } = await import("ag-ui-0");

const runtime = new CopilotRuntime({
  agents: { default: new HttpAgent({ url: `${url}/api/ag-ui` }) },
});
const server = createServer(createCopilotNodeListener({ runtime, basePath: "/api/copilotkit" }));
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const runtimeUrl = `http://127.0.0.1:${server.address().port}/api/copilotkit`;

async function converse({ id, steps }) {
  const core = new CopilotKitCore({ runtimeUrl });
  const errors = [];
  core.subscribe({ onError: ({ error }) => void errors.push(error.message) });
  await new Promise((resolve) => {
    core.subscribe({
      onRuntimeConnectionStatusChanged: ({ status }) => status === "connected" && resolve(),
    });
  });
  const agent = core.getAgent("default");
  agent.threadId = id;
  let last;
  agent.subscribe({
    onRunFinishedEvent: ({ event }) => void (last = event),
    onRunErrorEvent: ({ event }) => void (last = event),
  });
  const shown = [];
  for (const step of steps) {
    // CopilotKit's hook answers an interrupt under the id of the run that asked.
    const runId = step.answers && last.runId;
    last = undefined;
    if (step.send !== undefined) {
      agent.addMessage({ id: crypto.randomUUID(), role: "user", content: step.send });
    }
    const resume = step.answers?.map(([status, payload], index) => {
      const interruptId = agent.pendingInterrupts[index].id;
      return status === "resolved" ? { interruptId, status, payload } : { interruptId, status };
    });
    const stop = () => {
      const said = agent.messages.at(-1)?.content ?? "";
      if (agent.isRunning && said.includes(step.stop)) core.stopAgent({ agent });
      else setTimeout(stop, 2);
    };
    if (step.stop !== undefined) stop();
    await core.runAgent({ agent, ...(resume && { resume, runId }) });
    const { messages, pendingInterrupts } = agent;
    shown.push(JSON.parse(JSON.stringify({ messages, pendingInterrupts, last, errors })));
  }
  return { shown };
}

const chats = await input();
log(JSON.stringify(await Promise.all(chats.map(converse))));
process.exit();
