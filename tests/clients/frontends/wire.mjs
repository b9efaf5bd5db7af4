/** Fetches; if a count is given, lets so many frames pass and then fails, as a lost network does. */
export async function cut(input, init, count) {
  const abort = new AbortController();
  init.signal?.addEventListener("abort", () => abort.abort());
  const response = await fetch(input, { ...init, signal: abort.signal });
  if (count === undefined || !response.ok) return response;
  const reader = response.body.getReader();
  let [seen, passed] = ["", 0];
  const body = new ReadableStream({
    async pull(controller) {
      const { done, value } = await reader.read();
      if (done) return controller.close();
      seen += Buffer.from(value).toString("latin1");
      const ends = [...seen.matchAll(/data: .*\n\n/g)].map((found) => found.index + found[0].length);
      if (ends.length < count) {
        passed = seen.length;
        return controller.enqueue(value);
      }
      const end = count ? ends[count - 1] : 0;
      if (end > passed) controller.enqueue(Buffer.from(seen.slice(passed, end), "latin1"));
      // What was passed has to be read first: an error empties the queue.
      while (controller.desiredSize <= 0) await new Promise((resolve) => setTimeout(resolve, 1));
      abort.abort();
      controller.error(new TypeError("network error"));
    },
  });
  return new Response(body, response);
}
