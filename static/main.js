// @ts-check
/** Wires the page: what is pressed goes to the server, what the server sends goes to the turns. */

import { authorization, deleteThread, readRun, readThread, token, useToken } from "./api.js";
import { byId, enableCopy, grow, sends } from "./dom.js";
import { closeDrawer, closeTop, say, showInfo, watchPanels } from "./panels.js";
import { followEnd } from "./scroll.js";
import { answering, nameTab, showState } from "./status.js";
import { channel, visit } from "./store.js";
import { ChatError, cancelRun, followRun, refusal, streamChat, uuid } from "./stream.js";
import { addressOf, addressed, drawList, forget, keepNotes, notesOf, remember, titleOf } from "./threads.js";
import { Turn } from "./turn.js";
import { Wire } from "./wire.js";
import { failures, fill, translate, words } from "./words.js";

/** @typedef {import("./types.js").Running} Running */
/** @typedef {import("./types.js").Begin} Begin */


// A person who stopped does not wait longer for a server that does not answer.
const STOP_MS = 4000;
const AGAIN_MS = 3000;
// Refusals which say that the server's conversation is another one than the page shows.
const CHANGED = ["thread_busy", "unknown_message", "nothing_to_resume"];
// How often an idle page looks for the server.
const PING_MS = 20_000;

translate();

const log = byId("log");
const composer = /** @type {HTMLFormElement} */ (byId("composer"));
const message = /** @type {HTMLTextAreaElement} */ (byId("message"));
const send = /** @type {HTMLButtonElement} */ (byId("send"));
const stop = /** @type {HTMLButtonElement} */ (byId("stop"));
const wire = new Wire();
const toEnd = followEnd(byId("scroll"), log, byId("to-end"));

const state = {
  // The page names its thread, so that a reload finds it even before the first event came.
  threadId: addressed() || uuid(),
  /** @type {Turn[]} */
  turns: [],
  /** @type {Running | null} */
  running: null,
  // Until the conversation is read, a new turn would stand before what came earlier.
  reading: true,
  // Whether the server no longer has the conversation, and whether it could not be reached.
  forgotten: false,
  away: false,
};

/** The other tabs of this browser, if they can be reached. */
const others = channel("threads");

/** @type {import("./types.js").Actions} */
const actions = {
  again: (turn, text = turn.question) => ask(text, turn),
  answer: (turn, answer) =>
    follow(turn, { call: (options) => streamChat(null, { ...options, threadId: state.threadId, resume: answer }), resumes: true }),
  questionChanged: () => {
    showComposer();
    showReady();
    toEnd();
    message.focus();
  },
  keep: () => keepNotes(state.threadId, Object.fromEntries(state.turns.map(({ id, notes }) => [id, notes]))),
  busy: () => state.running !== null || state.reading,
  isLast: (turn) => state.turns.at(-1) === turn,
};

/** The turn that waits for a person's answer. */
function asking() {
  const last = state.turns.at(-1);
  return last?.asks && !state.running ? last : null;
}

/**
 * Asks the agent.
 *
 * @param {string} text
 * @param {Turn} [old] the turn whose place the question takes, and with it that of what follows
 */
function ask(text, old) {
  if (state.running || state.reading) return;
  say("");
  asking()?.withdraw();
  const turn = new Turn(text, actions);
  const at = old ? state.turns.indexOf(old) : state.turns.length;
  const dropped = state.turns.splice(at, Infinity, turn);
  for (const each of dropped) each.asked.remove(), each.el.remove();
  log.append(turn.asked, turn.el);
  toEnd();
  const replaces = old?.id;
  const refused = () => {
    if (!replaces) return;
    turn.asked.remove();
    turn.el.remove();
    state.turns.splice(at, Infinity, ...dropped);
    for (const each of dropped) log.append(each.asked, each.el);
  };
  follow(turn, { call: (options) => streamChat(text, { ...options, threadId: state.threadId, replaces }), refused });
}

/** Follows one run into a turn, until it has ended or cannot be followed. @param {Turn} turn @param {Begin} begin */
async function follow(turn, begin) {
  if (state.running) return;
  const { threadId } = state;
  /** @type {Running} */
  const running = { turn, runId: begin.runId ?? null, reading: new AbortController(), stopping: false, waiting: false, cut: () => {} };
  state.running = running;
  // Until the first question of a thread is taken, the server has no such thread.
  if (!begin.runId && state.turns.length === 1) visit.set("pending", threadId);
  if (addressed() !== threadId) history.replaceState(null, "", addressOf(threadId));
  remember(threadId, state.turns[0]?.question ?? turn.question);
  turn.begin(Boolean(begin.runId));
  if (!begin.runId) wire.reset();
  showRunning();
  const current = () => state.running === running;
  try {
    const done = await begin.call({
      headers: authorization(),
      signal: running.reading.signal,
      onFrame: (frame) => current() && wire.frame(frame),
      onOpen: (connection) => {
        if (current()) wire.opened(connection.cursor);
        running.cut = connection.cut;
      },
      onState: (name, waitMs) => {
        if (!current()) return;
        if (name !== "ended") showState(name, waitMs);
        running.waiting = waitMs > 0;
        turn.hold(running.waiting);
        if (running.waiting) wire.broken();
        // Another attempt would start what is to be stopped.
        if (running.waiting && running.stopping && !running.runId) running.reading.abort();
      },
      onEvent: (event) => {
        if (!current()) return;
        if (event.type === "start") began(running, event.run_id);
        turn.apply(event);
      },
    });
    if (!done) turn.end("lost");
  } catch (error) {
    if (current()) wire.gaveUp();
    const code = error instanceof ChatError && current() && !running.runId ? error.code : "";
    if (CHANGED.includes(code)) return recover(turn, code);
    turn.end(running.stopping ? "cancelled" : "lost");
    if (!running.reading.signal.aborted) failed(running, begin, error);
    else if (begin.resumes && !running.runId) turn.reopen();
  } finally {
    if (current()) {
      state.running = null;
      turn.showAsked();
      showRunning();
    }
    others?.postMessage(threadId);
  }
}

/** @param {Running} running @param {string} runId */
function began(running, runId) {
  running.runId = runId;
  state.away = false;
  visit.set("run", runId);
  visit.set("pending", "");
  keepDraft();
  others?.postMessage(state.threadId);
  if (running.stopping) cancel(running);
  else if (state.turns.length > 1)
    import("./recover.js").then(({ markForgotten }) => markForgotten(state.threadId, state.turns)).catch(() => {});
}

/** @param {Running} running @param {Begin} begin @param {unknown} error */
function failed({ turn, runId }, begin, error) {
  if (!(error instanceof ChatError)) {
    turn.fail(words.failed);
    throw error;
  }
  const { code, status } = error;
  const text = failures[code] ?? error.message;
  const ref = error.details.ref === undefined ? undefined : String(error.details.ref);
  if (status === 401) askToken();
  if (status === 0 || status >= 502) away();
  if (runId) return turn.fail(text, ref, true);
  if (begin.resumes) turn.reopen();
  // Nothing has begun, so the conversation is what it was, and the message is not lost.
  const passing = status === 0 || status >= 500;
  begin.refused?.();
  const shown = state.turns.includes(turn) ? turn : state.turns.at(-1);
  const again = () => (begin.resumes ? follow(turn, begin) : ask(turn.question, shown));
  shown?.fail(text, ref, passing && again);
  if (!passing && !begin.resumes) offer(turn.question);
}

/** Goes on with the conversation as the server has it. @param {Turn} turn the turn that was refused @param {string} code */
async function recover(turn, code) {
  const { known, words } = await import("./recover.js");
  state.running = null;
  if (code === "unknown_message" && !(await known(state.threadId))) {
    // The server forgot the thread; the question stands on its own.
    turn.id = undefined;
    return ask(turn.question, turn);
  }
  await open(state.threadId);
  say(code === "thread_busy" ? words.busyElsewhere : words.changed);
  if (code !== "nothing_to_resume") offer(turn.question);
}

/** Puts a text into the field, as if it were typed, so that Undo brings back what was there. @param {string} text */
function offer(text) {
  if (message.value.trim() && message.value !== text) return;
  message.value = text;
  keepDraft();
  showComposer();
}

/** Stops the run, or the attempt to begin one. @param {Running} running */
function stopRun(running) {
  if (running.stopping) return;
  running.stopping = true;
  stop.disabled = true;
  if (running.runId) cancel(running);
  else if (running.waiting) running.reading.abort();
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

/** Stops reading the run that is shown. The server stops it if nobody comes back to it. */
function leave() {
  const { running } = state;
  state.running = null;
  running?.reading.abort();
}

/** Shows a conversation as the server has it, and joins its run. @param {string} id */
async function open(id) {
  leave();
  state.threadId = id;
  state.reading = true;
  const thread = addressed() ? await readThread(id) : null;
  if (state.threadId !== id) return;
  state.turns = [];
  log.replaceChildren();
  byId("forgotten").hidden = true;
  wire.reset();
  state.reading = false;
  state.forgotten = !thread && addressed() === id && visit.get("pending") !== id;
  if (state.forgotten) showForgotten(id);
  if (thread) draw(thread);
  nameTab(titleOf(id));
  showRunning();
  toEnd();
  if (thread && !thread.run_id) readWireAgain(id);
}

/** Says that the server no longer has a conversation. @param {string} id */
async function showForgotten(id) {
  const { forgotten } = await import("./forgotten.js");
  if (state.threadId !== id) return;
  const title = titleOf(id);
  const again = () => {
    fresh();
    offer(title);
  };
  const removed = () => {
    forget(id);
    fresh();
  };
  byId("forgotten").replaceChildren(...forgotten(title, again, removed));
  byId("forgotten").hidden = false;
}

/** @param {any} thread its document */
function draw(thread) {
  const notes = notesOf(state.threadId);
  let ended = "lost";
  for (const item of thread.messages) {
    if (item.role === "user") {
      state.turns.at(-1)?.end(ended);
      ended = "lost";
      const turn = new Turn(item.content, actions, item.id, notes[item.id]);
      log.append(turn.asked, turn.el);
      state.turns.push(turn);
    } else {
      state.turns.at(-1)?.restore(item);
      if (item.role === "assistant" && item.content) ended = "completed";
      ended = item.ended ?? ended;
    }
  }
  const last = state.turns.at(-1);
  if (!last) return;
  if (titleOf(state.threadId) === "") remember(state.threadId, state.turns[0].question);
  if (thread.interrupts) last.ask(thread.interrupts);
  if (thread.run_id) join(last, thread.run_id);
  else last.end(ended);
  for (const turn of state.turns) turn.showAnswers();
  last.showAsked();
  // The message was taken, though no answer said so.
  if (message.value === last.question) message.value = "";
  keepDraft();
}

/** @param {Turn} turn @param {string} runId */
function join(turn, runId) {
  const url = `/api/runs/${runId}`;
  wire.reset();
  follow(turn, {
    runId,
    call: async (options) => {
      // What the run has sent so far comes again at once, so its times are not known.
      wire.replay((await readRun(runId))?.last_event_id ?? 0);
      return followRun(url, options);
    },
  });
}

/** Reads the frames of the last run again, for the wire. @param {string} id */
async function readWireAgain(id) {
  const runId = visit.get("run");
  const run = runId ? await readRun(runId) : null;
  const current = () => state.threadId === id && !state.running;
  if (run?.thread_id !== id || run.status === "running" || !current()) return;
  wire.reset();
  wire.replay(run.last_event_id);
  await followRun(`/api/runs/${runId}`, {
    headers: authorization(),
    onFrame: (frame) => current() && wire.frame(frame),
  }).catch(() => {});
}

/** Begins a new conversation. */
function fresh() {
  const before = state.turns.length ? state.threadId : "";
  history.pushState(null, "", "#/");
  open(uuid());
  closeDrawer();
  if (before) say(words.newDone, words.back, () => goTo(before));
  message.focus();
}

/** @param {string} id */
function goTo(id) {
  say("");
  location.hash = addressOf(id);
}

/** @param {string} id */
async function remove(id) {
  const title = titleOf(id);
  if (state.running && id === state.threadId) await cancel(state.running);
  if (!(await deleteThread(id))) return say(fill(words.notDeleted, title));
  forget(id);
  if (id === state.threadId) {
    history.replaceState(null, "", "#/");
    await open(uuid());
  }
  say(fill(words.deleted, title));
  showThreads();
  others?.postMessage(id);
  byId("new").focus();
}

async function start() {
  const response = await fetch("/api/info", { headers: authorization() });
  if (response.status === 401) return askToken();
  if (!response.ok) throw await refusal(response);
  showInfo(await response.json());
  document.getElementById("token-form")?.remove();
  composer.hidden = false;
  await open(state.threadId);
  if (document.activeElement === document.body) message.focus();
}

async function askToken() {
  composer.hidden = true;
  showState("token");
  const { tokenForm } = await import("./token.js");
  document.getElementById("token-form")?.remove();
  const use = (/** @type {string} */ text) => {
    useToken(text);
    start().catch(away);
  };
  composer.before(tokenForm(token(), use));
  byId("token").focus();
}

function showRunning() {
  const running = state.running !== null;
  const stopped = stop.disabled && !running;
  stop.disabled = false;
  wire.running(running);
  byId("welcome").hidden = log.childElementCount > 0 || state.forgotten;
  answering(running);
  nameTab(titleOf(state.threadId));
  showThreads();
  showComposer();
  if (!running) showReady();
  // What was pressed may be gone by now; the focus stays on the page all the same.
  const { activeElement } = document;
  if (((running || stopped) && activeElement === document.body) || !activeElement?.checkVisibility()) message.focus();
}

/** Makes the composer the field for a message, or for the answer that the agent waits for. */
function showComposer() {
  const answers = asking()?.questions?.composer ?? null;
  const running = state.running !== null;
  send.hidden = running;
  stop.hidden = !running;
  send.textContent = answers ? answers.send : words.send;
  send.disabled = state.reading || !message.value.trim() || (answers !== null && !answers.submit);
  message.placeholder = answers ? answers.placeholder : words.ask;
  byId("message-label").textContent = answers ? answers.placeholder : words.ask;
  byId("hint").textContent = answers ? answers.hint : words.askHint;
  composer.toggleAttribute("data-answers", answers !== null);
  byId("leave").hidden = answers === null;
  grow(message);
}

function showThreads() {
  drawList(byId("thread-list"), state.threadId, remove);
  byId("no-threads").hidden = byId("thread-list").childElementCount > 0;
}

function showReady() {
  if (state.running || state.reading || composer.hidden) return;
  showState(!navigator.onLine ? "offline" : state.away ? "away" : asking()?.questions ? "asking" : "ended");
}

/** Keeps what is being written for a reload. */
function keepDraft() {
  visit.set("draft", message.value);
}

/** @type {ReturnType<typeof setTimeout> | undefined} */
let ping;

/** Shows that the server is away, and looks for it. */
function away() {
  state.away = true;
  if (!state.running) showState("away");
  clearTimeout(ping);
  ping = setTimeout(look, AGAIN_MS);
}

/** Looks for the server, and whether another window went on with the conversation. */
async function look() {
  clearTimeout(ping);
  ping = setTimeout(look, PING_MS);
  if (document.hidden || state.running || composer.hidden) return;
  const there = await fetch("/healthz", { cache: "no-store" }).then(({ ok }) => ok, () => false);
  if (state.running) return;
  if (!there) return away();
  state.away = false;
  if (state.reading) return start().catch(away);
  showReady();
  await sync();
}

/** Reads the conversation again if another window changed it. */
async function sync() {
  const id = state.threadId;
  if (addressed() !== id || state.running || state.reading || document.querySelector(".editor")) return;
  const thread = await readThread(id).catch(() => undefined);
  if (!thread || state.running || state.threadId !== id) return;
  const users = thread.messages.filter((/** @type {any} */ item) => item.role === "user");
  const same = users.length === state.turns.length && users.at(-1)?.id === state.turns.at(-1)?.id;
  const asks = Boolean(thread.interrupts) === (asking() !== null);
  // A turn that the server never had stays, with its Retry.
  const ours = state.turns.some((turn) => turn.id === undefined);
  if (thread.run_id || ((!same || !asks) && !ours)) await open(id);
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = message.value;
  const asked = asking();
  if (!text.trim() || state.running || state.reading) return;
  const answers = asked?.questions?.composer;
  // A text meant for the agent's question must not begin a turn.
  if (asked && !answers?.submit) return;
  // It stays the draft until the server has taken it.
  message.value = "";
  showComposer();
  if (answers?.submit) answers.submit(text);
  else ask(text);
});
message.addEventListener("input", () => {
  showComposer();
  keepDraft();
});
message.addEventListener("keydown", (event) => {
  if (!sends(event)) return;
  event.preventDefault();
  composer.requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || event.keyCode === 229) return;
  if (!closeTop() && state.running) stopRun(state.running);
});
stop.addEventListener("click", (event) => {
  // Stop takes the place of Send; the second click of a double click is not meant for it.
  if (state.running && event.detail < 2) stopRun(state.running);
});
byId("leave").addEventListener("click", () => {
  asking()?.withdraw();
  showComposer();
  showReady();
  message.focus();
});
byId("new").addEventListener("click", fresh);
addEventListener("hashchange", () => {
  if (addressed() === state.threadId) return;
  closeDrawer();
  say("");
  open(addressed() || uuid()).catch(away);
});
for (const suggestion of byId("suggestions").querySelectorAll("button"))
  suggestion.addEventListener("click", () => ask(suggestion.querySelector("span")?.textContent ?? ""));
byId("cut").addEventListener("click", () => state.running?.cut());
for (const name of ["online", "offline"]) addEventListener(name, showReady);
addEventListener("storage", showThreads);
others?.addEventListener("message", ({ data }) => {
  showThreads();
  if (data === state.threadId) sync();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) look();
});
message.value ||= visit.get("draft"); // What was typed before this module was loaded stays.
enableCopy(log);
watchPanels(() => wire.draw());
showThreads();
showComposer();
showState("connecting");
ping = setTimeout(look, PING_MS);
start().catch(away);
