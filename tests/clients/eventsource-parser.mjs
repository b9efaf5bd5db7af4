// node eventsource-parser.mjs MESSAGE URL…: a run at each URL, read with fetch.

import { EventSourceParserStream } from "eventsource-parser/stream";

async function receive(url, message) {
  const response = await fetch(new URL("/api/chat", url), {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ message }),
  });
  const received = [];
  const events = response.body
    .pipeThrough(new TextDecoderStream())
    .pipeThrough(new EventSourceParserStream());
  for await (const { id, event, data } of events) received.push([id, event, data]);
  return received;
}

const [message, ...urls] = process.argv.slice(2);
const runs = urls.map((url) => receive(url, message));
console.log(JSON.stringify(await Promise.all(runs)));
