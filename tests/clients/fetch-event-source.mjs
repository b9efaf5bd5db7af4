// node fetch-event-source.mjs MESSAGE URL…: a run at each URL, resumed by the package's own retry.

import { fetchEventSource } from "@microsoft/fetch-event-source";

// What it wants of a browser besides fetch.
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };

async function receive(url, message) {
  const received = [];
  const end = new AbortController();
  await fetchEventSource(new URL("/api/chat", url).href, {
    method: "POST",
    // Its retry sends the POST again: the key makes that the same run.
    headers: { "Content-Type": "application/json", "Idempotency-Key": crypto.randomUUID() },
    body: JSON.stringify({ message, thread_id: crypto.randomUUID() }),
    openWhenHidden: true,
    signal: end.signal,
    async onopen(response) {
      if (response.status === 204) end.abort();
      else if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
    },
    onmessage({ id, event, data }) {
      // It also hands out blocks that dispatch nothing: `retry: 2000`, heartbeats.
      if (data) received.push([id, event, data]);
    },
  });
  return received;
}

const [message, ...urls] = process.argv.slice(2);
const runs = urls.map((url) => receive(url, message));
console.log(JSON.stringify(await Promise.all(runs)));
