// @ts-check
/** Wires the page: what is pressed goes to the server, what the server tells goes to the view. */

import { ChatError, cancelRun, followRun, refusal, streamChat, uuid } from "./stream.js";
import { Turn, drawQuestion, enableCopy, followEnd } from "./view.js";
import { Wire } from "./wire.js";
import { translate, words } from "./words.js";

/** @typedef {import("./stream.js").Done} Done */
/** @typedef {import("./stream.js").FollowOptions} FollowOptions */
/**
 * @typedef {object} Running
 * @property {Turn} turn
 * @property {string | null} runId
 * @property {AbortController} reading
 * @property {boolean} stopping
 * @property {() => void} cut
 */

translate(document);

const log = byId("log");
const composer = /** @type {HTMLFormElement} */ (byId("composer"));
const message = /** @type {HTMLTextAreaElement} */ (byId("message"));
message.placeholder = words.ask;
const send = /** @type {HTMLButtonElement} */ (byId("send"));
const stop = /** @type {HTMLButtonElement} */ (byId("stop"));
const cut = /** @type {HTMLButtonElement} */ (byId("cut"));
const download = /** @type {HTMLButtonElement} */ (byId("download"));
const tokenForm = /** @type {HTMLFormElement} */ (byId("token-form"));
const wirePanel = byId("wire");
const wire = new Wire(byId("frames"), byId("wire-sum"), byId("timeline"), byId("wire-warning"));
const toEnd = followEnd(byId("scroll"), byId("to-end"));

const state = {
  token: sessionStorage.getItem("token") ?? "",
  // The page names its thread, so that a reload finds it even before the first event came.
  threadId: sessionStorage.getItem("thread") ?? uuid(),
  /** @type {Running | null} */
  running: null,
};

/** @type {import("./view.js").Actions} */
const actions = {
  ask,
  answer: (turn, answer) =>
    follow(turn, (options) => streamChat(null, { ...options, threadId: state.threadId, resume: answer }), true),
  edit: (text) => {
    message.value = text;
    grow();
    message.focus();
  },
};

/** Asks the agent. @param {string} text */
function ask(text) {
  if (state.running) return;
  drawQuestion(log, text, actions);
  const turn = new Turn(log, text, actions);
  toEnd();
  follow(turn, (options) => streamChat(text, { ...options, threadId: state.threadId }));
}

/**
 * Follows one run into a turn, until it has ended or cannot be followed.
 *
 * @param {Turn} turn
 * @param {(options: FollowOptions) => Promise<Done | null>} begin
 * @param {boolean} [resumes] whether the run answers an interrupt of this turn
 * @param {string | null} [runId] the run, where it is joined
 */
async function follow(turn, begin, resumes = false, runId = null) {
  if (state.running) return;
  /** @type {Running} */
  const running = { turn, runId, reading: new AbortController(), stopping: false, cut: () => {} };
  state.running = running;
  sessionStorage.setItem("thread", state.threadId);
  turn.begin();
  wire.reset(!runId);
  showRunning();
  try {
    const done = await begin({
      headers: authorization(),
      signal: running.reading.signal,
      onFrame: (frame) => wire.frame(frame),
      onOpen: (connection) => {
        wire.opened(connection.cursor);
        running.cut = connection.cut;
      },
      onState: (name, waitMs) => {
        if (state.running === running) showState(name, waitMs);
        if (waitMs) wire.broken();
        // Without a run there is nothing to stop but the attempt itself.
        if (running.stopping && !running.runId && name === "reconnecting") running.reading.abort();
      },
      onEvent: (event) => {
        wire.event(event);
        if (event.type === "start") {
          running.runId = event.run_id;
          sessionStorage.setItem("run", event.run_id);
          sessionStorage.setItem("resumes", String(resumes));
          if (running.stopping) stopRun(running);
        }
        turn.apply(event);
      },
    });
    if (!done) turn.end(null);
  } catch (error) {
    turn.end(null);
    // What was sent before a run began can be sent again; a run that is lost needs a new one.
    const again = () => (running.runId ? ask(turn.question) : follow(turn, begin, resumes));
    if (!running.reading.signal.aborted) failed(running, error, again);
  } finally {
    if (state.running === running) {
      state.running = null;
      showRunning();
    }
  }
}

/**
 * @param {Running} running
 * @param {unknown} error
 * @param {() => void} again
 */
function failed({ turn, runId }, error, again) {
  if (!(error instanceof ChatError)) {
    turn.fail(words.failed);
    throw error;
  }
  if (error.status === 401) askToken();
  const told = /** @type {Record<string, string>} */ (words)[error.code] ?? error.message;
  const ref = error.details.ref === undefined ? undefined : String(error.details.ref);
  const passing = error.status === 0 || error.status >= 500 || error.status === 409 || error.code === "unknown_run";
  turn.fail(told, ref, passing ? again : null);
  // A message that the server did not take is not lost.
  if (!passing && !runId && !message.value) actions.edit(turn.question);
}

/** @param {Running} running */
async function stopRun(running) {
  running.stopping = true;
  stop.disabled = true;
  if (!running.runId) return;
  try {
    await cancelRun(`/api/runs/${running.runId}`, { headers: authorization() });
  } catch {
    running.reading.abort();
  }
}

/** Reads the conversation back after a reload, and joins its run. */
async function restore() {
  if (!sessionStorage.getItem("thread")) return;
  const threadUrl = `/api/threads/${encodeURIComponent(state.threadId)}`;
  const response = await fetch(threadUrl, { headers: authorization() });
  if (response.status === 401) return askToken();
  if (!response.ok) return;
  const thread = await response.json();
  const messages = /** @type {any[]} */ (thread.messages);
  const resumes = sessionStorage.getItem("resumes") === "true";
  const kept = sessionStorage.getItem("run");
  // An ended run that is still kept tells more than the thread: its errors, and what it asks.
  const runId = thread.run_id ?? (kept && !resumes && (await isKept(kept)) ? kept : null);
  const last = messages.map((item) => item.role).lastIndexOf("user");
  /** @type {Turn | null} */
  let turn = null;
  messages.forEach((item, i) => {
    if (item.role === "user") {
      turn?.end(null);
      drawQuestion(log, item.content, actions);
      turn = new Turn(log, item.content, actions);
    }
    // The run tells the last turn again from its first event.
    if (!turn || (runId && !resumes && i > last)) return;
    if (item.role === "assistant") {
      if (item.content) turn.write(`message ${i}`, item.content);
      for (const call of item.tool_calls ?? []) turn.tool(call.tool_call_id, call.tool, call.input);
    } else if (item.role === "tool") turn.toolEnded(item.tool_call_id, item.status, item.result ?? item.message);
  });
  const current = /** @type {Turn | null} */ (turn);
  showRunning();
  if (current && runId) follow(current, (options) => followRun(`/api/runs/${runId}`, options), resumes, runId);
  else {
    if (thread.interrupts) current?.apply({ type: "interrupt", interrupts: thread.interrupts });
    current?.end(null);
  }
  toEnd();
}

/** @param {string} runId */
async function isKept(runId) {
  const response = await fetch(`/api/runs/${runId}`, { headers: authorization() });
  return response.ok && (await response.json()).thread_id === state.threadId;
}

async function start() {
  const response = await fetch("/api/info", { headers: authorization() });
  if (response.status === 401) return askToken();
  if (!response.ok) throw await refusal(response);
  const info = await response.json();
  const demo = info.model === "demo";
  const label = byId("model");
  label.textContent = demo ? words.demoShort : info.model;
  label.title = info.agent ?? "";
  label.hidden = !info.model;
  byId("demo").hidden = !demo;
  // The suggestions name the built-in tools, which an agent of one's own does not have.
  byId("suggestions").hidden = String(info.agent ?? "").includes(":");
  tokenForm.hidden = true;
  composer.hidden = false;
  await restore();
  message.focus();
}

function askToken() {
  tokenForm.hidden = false;
  composer.hidden = true;
  byId("token").focus();
}

/** @returns {Record<string, string>} */
function authorization() {
  return state.token ? { Authorization: `Bearer ${state.token}` } : {};
}

function showRunning() {
  const running = state.running !== null;
  const focused = document.activeElement === stop || document.activeElement === send;
  send.hidden = running;
  stop.hidden = !running;
  cut.disabled = !running;
  stop.disabled = false;
  if (running) download.disabled = false;
  byId("welcome").hidden = log.childElementCount > 0;
  if (focused) message.focus();
}

/**
 * @param {import("./stream.js").State} name
 * @param {number} waitMs
 */
function showState(name, waitMs) {
  const label = byId("state");
  const wait = waitMs ? ` · ${Math.ceil(waitMs / 1000)} ${words.secondsUnit}` : "";
  label.dataset.state = name;
  label.textContent = words[name] + wait;
}

function grow() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
}

/** @param {boolean} open */
function showWire(open) {
  wirePanel.hidden = !open;
  byId("wire-toggle").setAttribute("aria-expanded", String(open));
  sessionStorage.setItem("wire", String(open));
  wire.draw();
}

/**
 * @param {string} id
 * @returns {HTMLElement}
 */
function byId(id) {
  const el = document.getElementById(id);
  if (!el) throw new Error(`no element #${id}`);
  return el;
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = message.value;
  if (!text.trim() || state.running) return;
  message.value = "";
  grow();
  ask(text);
});
message.addEventListener("input", grow);
message.addEventListener("keydown", (event) => {
  // While an input method composes, Enter chooses a word; some browsers tell only by code 229.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  composer.requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing && state.running) stopRun(state.running);
});
stop.addEventListener("click", () => {
  if (state.running) stopRun(state.running);
});
byId("new").addEventListener("click", () => {
  const { running } = state;
  if (running) {
    stopRun(running);
    running.reading.abort();
    state.running = null;
  }
  state.threadId = uuid();
  sessionStorage.removeItem("thread");
  sessionStorage.removeItem("run");
  log.replaceChildren();
  wire.reset();
  showState("ended", 0);
  showRunning();
  message.focus();
});
for (const suggestion of byId("suggestions").querySelectorAll("button"))
  suggestion.addEventListener("click", () => ask(suggestion.querySelector("span")?.textContent ?? ""));
tokenForm.addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = /** @type {HTMLInputElement} */ (byId("token")).value.trim();
  sessionStorage.setItem("token", state.token);
  log.replaceChildren();
  start().catch(notReached);
});
cut.addEventListener("click", () => state.running?.cut());
download.addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(wire.blob());
  link.download = `run-${sessionStorage.getItem("run") ?? "none"}.txt`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
});
byId("wire-toggle").addEventListener("click", () => showWire(Boolean(wirePanel.hidden)));

/** @param {unknown} error */
function notReached(error) {
  const label = byId("state");
  label.dataset.state = "offline";
  label.textContent = error instanceof ChatError ? error.message : words.unreachable;
}

enableCopy(log);
showWire(sessionStorage.getItem("wire") === "true");
start().catch(notReached);
