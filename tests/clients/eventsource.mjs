// node eventsource.mjs MESSAGE URL…: a run at each URL, followed by the npm package's EventSource.

import { EventSource } from "eventsource";

import receive from "./native.mjs";

const [message, ...urls] = process.argv.slice(2);
const runs = urls.map((url) => receive({ url, message, EventSource }));
console.log(JSON.stringify(await Promise.all(runs)));
