/**
 * Follows a run with the EventSource it is given, or the browser's own, which gets this function
 * as text. It resolves with [id, event, data] of each event, in the order of their arrival, once
 * the source has closed for good: nothing here closes it, so the server's 204 has to.
 */
export default async function receive({ url, message, EventSource = globalThis.EventSource }) {
  const types = [
    ...["start", "thinking", "reasoning_delta", "text_delta", "tool_call", "tool_progress"],
    ...["tool_result", "interrupt", "final_answer", "error", "done", "message"],
  ];
  const answer = await fetch(new URL("/api/chat", url), {
    method: "POST",
    headers: { "Content-Type": "application/json", Prefer: "respond-async" },
    body: JSON.stringify({ message }),
  });
  const { events } = await answer.json();
  const source = new EventSource(new URL(events, url).href);
  const received = [];
  for (const type of types) {
    source.addEventListener(type, (event) => {
      // A connection error is an `error` as well, without data.
      if (event.data !== undefined) received.push([event.lastEventId, event.type, event.data]);
    });
  }
  return new Promise((resolve) => {
    source.addEventListener("error", () => {
      if (source.readyState === source.CLOSED) resolve(received);
    });
  });
}
