// @ts-check
/** A React hook over `stream.js`: a conversation, as it is told. */

import { useCallback, useEffect, useRef, useState } from "react";
import { cancelRun, streamChat, uuid } from "../stream.js";

/** @typedef {import("../stream.js").StreamEvent} StreamEvent */
/**
 * @typedef {object} Turn One question and what the agent made of it.
 * @property {string} question
 * @property {string} note what the agent says that it does
 * @property {string} reasoning
 * @property {Record<string, string>} texts the text of each message by its id, in order
 * @property {Record<string, { tool: string, input: unknown, state: string, result?: unknown }>} tools by call id
 * @property {{ id: string, value: unknown }[]} interrupts what the graph asks
 * @property {string} error
 */
/** @typedef {(options: import("../stream.js").FollowOptions & { threadId: string }) => Promise<unknown>} Begin */

/**
 * @returns {{ turns: Turn[], running: boolean, send: (question: string) => void,
 *   answer: (value: unknown) => void, stop: () => void }} `answer` is for an interrupt
 */
export function useChatStream() {
  const [turns, setTurns] = useState(/** @type {Turn[]} */ ([]));
  const [running, setRunning] = useState(false);
  const threadId = useRef(uuid());
  const run = useRef(/** @type {{ url: string, reading: AbortController } | null} */ (null));

  const follow = useCallback(async (/** @type {Begin} */ begin) => {
    const reading = new AbortController();
    const following = (run.current = { url: "", reading });
    setRunning(true);
    /** @type {StreamEvent[]} */
    let arrived = [];
    let frame = 0;
    const draw = () => {
      const events = arrived;
      arrived = [];
      frame = 0;
      setTurns((turns) => [...turns.slice(0, -1), events.reduce(told, turns[turns.length - 1])]);
    };
    const onEvent = (/** @type {StreamEvent} */ event) => {
      if (event.type === "start") following.url = `/api/runs/${event.run_id}`;
      arrived.push(event);
      // However many tokens come, the page is rendered once a frame.
      frame ||= requestAnimationFrame(draw);
    };
    try {
      await begin({ threadId: threadId.current, signal: reading.signal, onEvent });
    } catch (error) {
      if (reading.signal.aborted) return;
      arrived.push({ type: "error", code: "lost", message: String(error), retryable: true });
    } finally {
      cancelAnimationFrame(frame);
      run.current = null;
      setRunning(false);
    }
    draw();
  }, []);

  const send = useCallback(
    (/** @type {string} */ question) => {
      if (run.current) return;
      const turn = { question, note: "", reasoning: "", texts: {}, tools: {}, interrupts: [], error: "" };
      setTurns((turns) => [...turns, turn]);
      follow((options) => streamChat(question, options));
    },
    [follow],
  );
  const answer = useCallback(
    (/** @type {unknown} */ value) => {
      if (!run.current) follow((options) => streamChat(null, { ...options, resume: value }));
    },
    [follow],
  );
  const stop = useCallback(() => {
    const { url = "", reading } = run.current ?? {};
    if (url) cancelRun(url).catch(() => reading?.abort());
    else reading?.abort();
  }, []);

  // Who leaves the page stops reading; the server's grace decides how long the run goes on.
  useEffect(() => () => run.current?.reading.abort(), []);

  return { turns, running, send, answer, stop };
}

/**
 * @param {Turn} turn
 * @param {StreamEvent} event
 * @returns {Turn} the turn with one event more
 */
function told(turn, event) {
  switch (event.type) {
    case "start":
      return { ...turn, interrupts: [], error: "" };
    case "thinking":
      return { ...turn, note: event.content };
    case "reasoning_delta":
      return { ...turn, reasoning: turn.reasoning + event.content };
    case "text_delta": {
      const text = (turn.texts[event.message_id] ?? "") + event.content;
      return { ...turn, note: "", texts: { ...turn.texts, [event.message_id]: text } };
    }
    case "final_answer":
      return { ...turn, texts: { ...turn.texts, [event.message_id]: event.content } };
    case "tool_call": {
      const call = { tool: event.tool, input: event.input, state: "running" };
      return { ...turn, note: "", tools: { ...turn.tools, [event.tool_call_id]: call } };
    }
    case "tool_result": {
      const result = event.result ?? event.message;
      const call = { ...turn.tools[event.tool_call_id], state: event.status, result };
      return { ...turn, tools: { ...turn.tools, [event.tool_call_id]: call } };
    }
    case "interrupt":
      return { ...turn, interrupts: event.interrupts };
    case "error":
      return { ...turn, error: event.message };
    case "done":
      return { ...turn, note: "" };
    default:
      return turn;
  }
}
