/** Returns the JSON of standard input. */
export async function input() {
  const pieces = [];
  for await (const piece of process.stdin) pieces.push(piece);
  return JSON.parse(Buffer.concat(pieces).toString());
}

/**
 * Fetches a stream, and tells of each frame. If a count is given, so many frames pass, and then it
 * fails, as it does when the network is gone.
 */
export async function cut(address, init, count, onFrame) {
  const abort = new AbortController();
  init.signal?.addEventListener("abort", () => abort.abort());
  const response = await fetch(address, { ...init, signal: abort.signal });
  if (!response.ok || response.status === 204) return response;
  const reader = response.body.getReader();
  let [seen, passed, told] = ["", 0, 0];
  const body = new ReadableStream({
    async pull(controller) {
      const { done, value } = await reader.read();
      if (done) return controller.close();
      seen += Buffer.from(value).toString("latin1");
      const ends = [...seen.matchAll(/^data: .*\n\n/gm)].map((each) => each.index + each[0].length);
      for (; told < ends.length; told += 1) onFrame();
      const isCut = count !== undefined && ends.length >= count;
      const end = !isCut ? seen.length : count && ends[count - 1];
      if (end > passed) controller.enqueue(Buffer.from(seen.slice(passed, end), "latin1"));
      passed = end;
      if (!isCut) return;
      // An error empties the queue: what was passed has to be read first.
      while (controller.desiredSize <= 0) await new Promise((resolve) => setTimeout(resolve, 1));
      abort.abort();
      controller.error(new TypeError("network error"));
    },
  });
  return new Response(body, response);
}
