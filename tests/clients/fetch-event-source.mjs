// node fetch-event-source.mjs MESSAGE URL…: a run at each URL, resumed by the package's own retry.

import { fetchEventSource } from "@microsoft/fetch-event-source";

// What it asks of a browser besides fetch.
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };

async function receive(url, message) {
  const received = [];
  const end = new AbortController();
  let location;
  await fetchEventSource(new URL("/api/chat", url).href, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ message }),
    openWhenHidden: true,
    signal: end.signal,
    // A second POST would be a second run: its retry reads the run that the first one started.
    fetch: (input, { headers, signal, ...init }) =>
      location
        ? fetch(location, { headers, signal })
        : fetch(input, { headers, signal, ...init }),
    async onopen(response) {
      if (response.status === 204) end.abort();
      else if (response.ok) location ??= new URL(response.headers.get("Location"), url);
      else throw new Error(`${response.status} ${await response.text()}`);
    },
    onmessage({ id, event, data }) {
      // It also tells of blocks that dispatch nothing: `retry: 2000`, heartbeats.
      if (data) received.push([id, event, data]);
    },
  });
  return received;
}

const [message, ...urls] = process.argv.slice(2);
const runs = urls.map((url) => receive(url, message));
console.log(JSON.stringify(await Promise.all(runs)));
