// @ts-check
/** Wires the page: what is pressed goes to the server, what the server tells goes to the view. */

import { ChatError, cancelRun, followRun, refusal, streamChat, uuid } from "./stream.js";
import { Turn, drawQuestion, enableCopy, followEnd } from "./view.js";
import { Wire } from "./wire.js";
import { failures, translate, words } from "./words.js";

/** @typedef {import("./stream.js").Done} Done */
/** @typedef {import("./stream.js").FollowOptions} FollowOptions */
/**
 * @typedef {object} Running
 * @property {Turn} turn
 * @property {string | null} runId
 * @property {AbortController} reading
 * @property {boolean} stopping
 * @property {boolean} waiting whether it waits for its next attempt
 * @property {() => void} cut
 */

// How long a server may take to stop a run before the page no longer waits for it.
const STOP_MS = 4000;
const RESTORE_AGAIN_MS = 3000;

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
const token = /** @type {HTMLInputElement} */ (byId("token"));
const wirePanel = byId("wire");
const wire = new Wire(byId("frames"), byId("wire-sum"), byId("timeline"), byId("scale"), byId("wire-warning"));
const toEnd = followEnd(byId("scroll"), byId("to-end"));

const state = {
  token: sessionStorage.getItem("token") ?? "",
  // The page names its thread, so that a reload finds it even before the first event came.
  threadId: sessionStorage.getItem("thread") ?? uuid(),
  /** @type {Running | null} */
  running: null,
  // Until the conversation is read back, a new turn would stand before what came earlier.
  restoring: true,
  /** The turn that waits for a person's answer. @type {Turn | null} */
  asking: null,
};

/** @type {import("./view.js").Actions} */
const actions = {
  ask,
  answer: (turn, answer) =>
    follow(turn, (options) => streamChat(null, { ...options, threadId: state.threadId, resume: answer }), true),
  edit: (text) => {
    message.focus();
    // As if it were typed, so that Undo brings back what was being written.
    message.select();
    document.execCommand("insertText", false, text);
  },
  busy: () => state.running !== null,
};

/** Asks the agent. @param {string} text */
function ask(text) {
  if (state.running || state.restoring) return;
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
  const running = { turn, runId, reading: new AbortController(), stopping: false, waiting: false, cut: () => {} };
  state.running = running;
  sessionStorage.setItem("thread", state.threadId);
  turn.begin(runId !== null);
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
        running.waiting = waitMs > 0;
        if (running.waiting) wire.broken();
        // Another attempt would start what is to be stopped.
        if (running.waiting && running.stopping && !running.runId) running.reading.abort();
      },
      onEvent: (event) => {
        wire.event(event);
        if (event.type === "start") {
          running.runId = event.run_id;
          sessionStorage.setItem("run", event.run_id);
          sessionStorage.setItem("asked", turn.question);
          sessionStorage.setItem("resumes", String(resumes));
          keepDraft();
          if (state.asking !== turn) state.asking?.withdraw();
          state.asking = null;
          if (running.stopping) cancel(running);
        }
        turn.apply(event);
      },
    });
    if (!done) turn.end(null);
  } catch (error) {
    turn.end(running.stopping ? { type: "done", reason: "cancelled" } : null);
    const unanswered = resumes && !running.runId;
    if (unanswered) turn.reopen();
    // What was sent before a run began can be sent again; a run that is lost needs a new one.
    const again = () => (running.runId || unanswered ? ask(turn.question) : follow(turn, begin));
    if (!running.reading.signal.aborted) failed(running, error, again);
  } finally {
    if (turn.asks) state.asking = turn;
    if (state.running === running) {
      state.running = null;
      turn.showQuestion();
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
  const told = failures[error.code] ?? error.message;
  const ref = error.details.ref === undefined ? undefined : String(error.details.ref);
  const lost = ["unknown_run", "nothing_to_resume"].includes(error.code);
  const passing = error.status === 0 || error.status >= 500 || error.status === 409 || lost;
  turn.fail(told, ref, passing ? again : null);
  if (passing || runId || message.value) return;
  // A message that the server did not take is not lost.
  if (composer.hidden) {
    message.value = turn.question;
    keepDraft();
  } else actions.edit(turn.question);
}

/** Stops the run, or the attempt to begin one. @param {Running} running */
function stopRun(running) {
  if (running.stopping) return;
  running.stopping = true;
  stop.disabled = true;
  if (running.runId) cancel(running);
  else if (running.waiting) running.reading.abort();
  // Who asked to stop does not wait for a server that does not answer.
  setTimeout(() => running.reading.abort(), STOP_MS);
}

/** @param {Running} running */
async function cancel({ runId, reading }) {
  try {
    await cancelRun(`/api/runs/${runId}`, { headers: authorization(), signal: reading.signal });
  } catch {
    reading.abort();
  }
}

/** Reads the conversation back after a reload, and joins its run. */
async function restore() {
  const { threadId } = state;
  if (!sessionStorage.getItem("thread")) return;
  const response = await fetch(`/api/threads/${encodeURIComponent(threadId)}`, { headers: authorization() });
  if (response.status === 401) return askToken();
  if (!response.ok && response.status !== 404) throw await refusal(response);
  const thread = response.ok ? await response.json() : { messages: [] };
  const messages = /** @type {any[]} */ (thread.messages);
  const last = messages.map((item) => item.role).lastIndexOf("user");
  const resumes = sessionStorage.getItem("resumes") === "true";
  // An ended run that is still kept tells more than the thread: its errors, and what it asks. But
  // another page may have gone on with the thread since.
  const kept = messages[last]?.content === sessionStorage.getItem("asked") && !resumes && sessionStorage.getItem("run");
  const runId = thread.run_id ?? (kept && (await isKept(kept)) ? kept : null);
  if (state.threadId !== threadId) return;
  log.replaceChildren();
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
  if (current && runId) follow(current, (options) => followRun(`/api/runs/${runId}`, options), resumes, runId);
  else if (current) {
    if (thread.interrupts) current.apply({ type: "interrupt", interrupts: thread.interrupts });
    if (current.asks) state.asking = current;
    // How the run of an unanswered question ended nobody knows any more.
    const { role, content } = messages[messages.length - 1];
    current.end(null, !current.asks && !(role === "assistant" && content));
    current.showQuestion();
  }
  // It was taken, though no answer told so.
  if (message.value === messages[last]?.content) message.value = "";
  grow();
  showRunning();
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
  label.textContent = demo ? words.demoShort : (info.model ?? info.agent);
  label.title = info.agent;
  label.hidden = false;
  byId("demo").hidden = !demo;
  // The suggestions name the built-in tools, which an agent of one's own does not have.
  byId("suggestions").hidden = String(info.agent ?? "").includes(":");
  tokenForm.hidden = true;
  composer.hidden = false;
  await restore();
  state.restoring = send.disabled = false;
  showReady();
  if (document.activeElement === document.body) message.focus();
}

function askToken() {
  byId("token-refused").hidden = !state.token;
  tokenForm.hidden = false;
  composer.hidden = true;
  token.focus();
  token.select();
}

/** @returns {Record<string, string>} */
function authorization() {
  return state.token ? { Authorization: `Bearer ${state.token}` } : {};
}

function showRunning() {
  const running = state.running !== null;
  const stopped = stop.disabled && !running;
  send.hidden = running;
  stop.hidden = !running;
  cut.disabled = !running;
  stop.disabled = false;
  if (running) download.disabled = false;
  byId("welcome").hidden = log.childElementCount > 0;
  // What was pressed may be hidden or gone by now; the focus stays on the page all the same.
  const { activeElement } = document;
  if (((running || stopped) && activeElement === document.body) || !activeElement?.checkVisibility()) message.focus();
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

/** Shows that nothing is on its way, or that nothing can be. */
function showReady() {
  if (!state.running && !state.restoring) showState(navigator.onLine ? "ended" : "offline", 0);
}

/** Keeps what is being written for a reload, which would lose it. */
function keepDraft() {
  sessionStorage.setItem("draft", message.value);
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
  if (!text.trim() || state.running || state.restoring) return;
  // It stays the draft until the server has taken it.
  message.value = "";
  grow();
  ask(text);
});
message.addEventListener("input", () => {
  grow();
  keepDraft();
});
message.addEventListener("keydown", (event) => {
  // While an input method composes, Enter chooses a word; some browsers tell only by code 229.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  composer.requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing && event.keyCode !== 229 && state.running) stopRun(state.running);
});
stop.addEventListener("click", (event) => {
  // Stop takes the place of Send; the second click of a double click is none of its own.
  if (state.running && event.detail < 2) stopRun(state.running);
});
byId("new").addEventListener("click", () => {
  const { running } = state;
  if (running) {
    stopRun(running);
    running.reading.abort();
    state.running = null;
  }
  state.threadId = uuid();
  state.asking = null;
  for (const name of ["thread", "run", "asked", "resumes"]) sessionStorage.removeItem(name);
  log.replaceChildren();
  wire.reset();
  download.disabled = true;
  showReady();
  showRunning();
  message.focus();
});
for (const suggestion of byId("suggestions").querySelectorAll("button"))
  suggestion.addEventListener("click", () => ask(suggestion.querySelector("span")?.textContent ?? ""));
tokenForm.addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = token.value.trim();
  sessionStorage.setItem("token", state.token);
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
for (const name of ["online", "offline"]) addEventListener(name, showReady);

/** @param {unknown} error */
function notReached(error) {
  const label = byId("state");
  label.dataset.state = "offline";
  label.textContent = error instanceof ChatError ? (failures[error.code] ?? error.message) : words.unreachable;
  // A server that restarts is back soon, and what it kept is then read back.
  setTimeout(() => start().catch(notReached), RESTORE_AGAIN_MS);
}

message.value = sessionStorage.getItem("draft") ?? "";
grow();
enableCopy(log);
showWire(sessionStorage.getItem("wire") === "true");
start().catch(notReached);
