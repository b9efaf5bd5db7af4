// @ts-check
/**
 * Draws one turn: what the person asked, and what the agent did with it.
 *
 * It never talks to the server: what a button wants goes to the callbacks of `Actions`.
 */

import { button, copy, make, seconds } from "./dom.js";
import { Markdown } from "./markdown.js";
import { paint } from "./scroll.js";
import { ToolCard } from "./tool.js";
import { failures, fill, words } from "./words.js";

/** @typedef {import("./stream.js").StreamEvent} StreamEvent */
/** @typedef {import("./stream.js").Done} Done */

// A long answer that comes at once is drawn over several frames: to lay it out takes ten times as long.
const DRAW_MS = 2;
const DRAW_CHARS = 250;
/** The states of a call that a resumed run may start again. */
const OPEN = ["running", "interrupted"];
// Errors that asking again does not mend, which a thread's document does not say.
const LASTING = ["model_auth", "model_not_found", "model_context", "agent_error", "too_large"];
const MIN_REASONING_MS = 100;

export class Turn {
  /** What the person asked. */
  asked = make("article", "turn user");
  /** What the agent did: one run, and the runs that resume it. */
  el = make("article", "turn agent");
  /** The id of the user's message. @type {string | undefined} */
  id;
  /** Whether the run waits for a person's answer. */
  asks = false;
  /** What the person is asked, once it is shown. @type {import("./questions.js").Questions | null} */
  questions = null;
  #body = make("div", "body");
  /** @type {{ id: string, value: unknown }[]} */
  #interrupts = [];
  #note = make("p", "note");
  #foot = make("footer");
  #meta = make("span", "meta");
  #copy = button(words.copy, (pressed) => copy(pressed, [...this.#texts.values()].map(({ text }) => text).join("\n\n")));
  #again = button(words.regenerate, () => this.actions.again(this), "quiet again");
  #edit = button(words.edit, () => this.#openEditor());
  /** @type {Map<string, import("./types.js").Part>} */
  #texts = new Map();
  /** @type {Map<string, import("./types.js").Reasoning>} */
  #reasonings = new Map();
  /** @type {Map<string, ToolCard>} */
  #tools = new Map();
  /** Whether the run began before this page read it, so that times are not known. */
  #joined = false;
  /** Tokens in and out. @type {[number, number] | undefined} */
  #usage;

  /**
   * @param {string} question what the person asked
   * @param {import("./types.js").Actions} actions
   * @param {string} [id]
   * @param {import("./types.js").Notes} [notes]
   */
  constructor(question, actions, id, notes = {}) {
    this.question = question;
    this.actions = actions;
    this.id = id;
    this.notes = notes;
    this.#copy.setAttribute("aria-label", words.copyAnswer);
    this.#edit.setAttribute("aria-label", words.editQuestion);
    this.#foot.append(this.#copy, this.#again, this.#meta);
    this.#foot.hidden = true;
    this.el.append(make("h2", "visually-hidden", words.agent), this.#body, this.#note, this.#foot);
    this.#showQuestion();
  }

  /** Shows that a run goes on. @param {boolean} joined whether it began before this page read it */
  begin(joined) {
    this.asks = false;
    this.#joined = joined;
    this.notes = { ...this.notes, timings: undefined, finish: undefined };
    this.#body.querySelector(":scope > .failure")?.remove();
    this.#body.querySelector(":scope > .hint")?.remove();
    this.el.setAttribute("aria-busy", "true");
    this.#say(words.waiting);
    this.#foot.hidden = true;
    this.#edit.hidden = true;
  }

  /** @param {StreamEvent} event */
  apply(event) {
    if (event.type !== "reasoning_delta" && event.type !== "thinking") this.#endReasoning();
    switch (event.type) {
      case "start":
        // A run that answers no interrupt has the whole turn; what the thread had of it comes again.
        if (event.message_id) this.#clear();
        this.id = event.message_id ?? this.id;
        break;
      case "thinking":
        this.#say(event.content);
        break;
      case "reasoning_delta":
        this.#reason(event.message_id, event.content);
        break;
      case "text_delta":
        this.#say("");
        if (this.#texts.get(event.message_id)?.old) this.#replace(event.message_id, event.content);
        else this.write(event.message_id, event.content);
        break;
      case "tool_call":
        this.#say("");
        this.tool(event.tool_call_id, event.tool, event.input);
        break;
      case "tool_progress":
        this.#tools.get(event.tool_call_id)?.progress(event.content);
        break;
      case "tool_result":
        this.#tools.get(event.tool_call_id)?.end(event.status, event.result ?? event.message);
        break;
      case "interrupt":
        this.ask(event.interrupts);
        break;
      case "final_answer":
        if (this.#texts.get(event.message_id)?.text !== event.content) this.#replace(event.message_id, event.content);
        this.notes.finish = event.finish_reason;
        break;
      case "error":
        this.fail(failures[event.code] ?? event.message, event.ref, event.retryable);
        break;
      case "done":
        this.notes.timings = event.timings;
        this.#count(event.usage);
        this.end(event.reason);
        this.actions.keep();
        break;
    }
  }

  /** Draws a message of the thread's document that belongs to this turn. @param {any} item */
  restore(item) {
    this.#joined = true;
    if (item.role === "tool") {
      this.#tools.get(item.tool_call_id)?.end(item.status, item.result ?? item.message);
      return;
    }
    if (item.reasoning) this.#reason(item.id, item.reasoning);
    if (item.content) this.write(item.id, item.content, true);
    for (const call of item.tool_calls ?? []) this.tool(call.tool_call_id, call.tool, call.input);
    if (item.error) this.fail(failures[item.error.code] ?? item.error.message, undefined, !LASTING.includes(item.error.code));
    this.#count(item.usage);
  }

  /** Shows again what was answered before the page was loaded. */
  async showAnswers() {
    const { answers = [] } = this.notes;
    if (!answers.length) return;
    const { drawAnswers } = await import("./questions.js");
    for (const { at, lines } of answers) this.#body.insertBefore(drawAnswers(lines), this.#body.children[at] ?? null);
  }

  /**
   * Adds to the text of a message.
   *
   * @param {string} id
   * @param {string} text
   * @param {boolean} [old] whether it comes from the thread's document
   */
  write(id, text, old = false) {
    let part = this.#texts.get(id);
    if (!part) {
      const el = make("div", "markdown");
      part = { el, markdown: new Markdown(el, words), text: "", drawn: 0, old };
      this.#texts.set(id, part);
      this.#body.append(el);
    }
    part.text += text;
    paint(this.#draw);
  }

  /**
   * Opens a tool's card, in the place of the one whose call a resumed run starts again.
   *
   * @param {string} id
   * @param {string} tool
   * @param {Record<string, unknown>} input
   */
  tool(id, tool, input) {
    const known = this.#tools.get(id);
    const card = new ToolCard(tool, input, !this.#joined);
    this.#tools.set(id, card);
    if (!known || !(this.#joined || OPEN.includes(known.state))) return this.#body.append(card.el);
    // The person may have changed the input.
    known.hold(true);
    known.el.replaceWith(card.el);
  }

  /** Stops the seconds of the cards while the connection is away. @param {boolean} held */
  hold(held) {
    for (const card of this.#tools.values()) if (card.state === "running") card.hold(held);
  }

  /** Notes what is asked. It is shown when the thread is free again. @param {{ id: string, value: unknown }[]} interrupts */
  ask(interrupts) {
    this.asks = true;
    this.questions = null;
    this.#interrupts = interrupts;
  }

  /** Shows what the run asks, once an answer can be taken. */
  async showAsked() {
    if (!this.asks || this.questions) return;
    // Most agents ask nothing, so the page does not load this at its start.
    const { Questions } = await import("./questions.js");
    if (!this.asks || this.questions) return;
    this.questions = new Questions(this.#interrupts, {
      complete: (answer, lines) => {
        const at = [...this.#body.children].indexOf(/** @type {Element} */ (this.questions?.el));
        this.notes.answers = [...(this.notes.answers ?? []), { at, lines }];
        this.actions.keep();
        this.actions.answer(this, answer);
      },
      changed: () => this.actions.questionChanged(),
      busy: () => this.actions.busy(),
    });
    this.#body.append(this.questions.el);
    this.actions.questionChanged();
  }

  /** Asks again what was answered, since the answer did not arrive. */
  reopen() {
    this.asks = true;
    this.notes.answers?.pop();
    this.actions.keep();
    this.questions?.reopen();
  }

  /** Asks no longer, since the conversation went on without an answer. */
  withdraw() {
    this.asks = false;
    this.questions?.el.remove();
    this.questions = null;
  }

  /**
   * Shows what went wrong, at the end of the turn.
   *
   * @param {string} message
   * @param {string} [ref]
   * @param {boolean | (() => void)} [retry] what Retry does; true asks the question again
   */
  fail(message, ref, retry = false) {
    const box = make("div", "failure");
    box.setAttribute("role", "alert");
    box.append(make("p", "", message));
    if (ref) box.append(make("small", "", fill(words.ref, ref)));
    if (retry)
      box.append(
        button(words.retry, () => {
          if (this.actions.busy()) return;
          box.remove();
          if (retry === true) this.actions.again(this);
          else retry();
        }, "retry"),
      );
    this.#body.querySelector(":scope > .failure")?.remove();
    this.#body.append(box);
  }

  /** Ends the turn's drawing. @param {string} reason that of `done`, or "lost": nothing says how the run ended */
  end(reason) {
    const { timings, finish } = this.notes;
    const facts = [];
    if (reason === "cancelled") facts.push(words.reasonCancelled);
    if (reason === "interrupted" && !this.asks) facts.push(words.reasonPaused);
    if (timings) facts.push(fill(words.took, seconds(timings.total_ms)));
    if (timings?.first_token_ms !== undefined) facts.push(fill(words.firstToken, seconds(timings.first_token_ms)));
    if (this.#usage) facts.push(fill(words.tokens, ...this.#usage.map((count) => count.toLocaleString())));
    this.#meta.textContent = facts.join(" · ");
    this.#again.textContent = reason === "completed" ? words.regenerate : words.retry;
    this.#say("");
    this.#endReasoning();
    if (finish) {
      const known = /** @type {Record<string, string>} */ (words)[finish];
      this.#body.append(make("p", "hint", known ?? fill(words.finished, finish)));
    }
    for (const card of this.#tools.values())
      if (card.state === "running") card.end(this.asks ? "interrupted" : reason === "cancelled" ? "cancelled" : "lost");
    paint(this.#finish);
  }

  /** @param {Done["usage"]} usage of one more run or message of the turn */
  #count(usage) {
    if (!usage) return;
    const [input, output] = this.#usage ?? [0, 0];
    this.#usage = [input + usage.input_tokens, output + usage.output_tokens];
  }

  #showQuestion() {
    const foot = make("footer");
    foot.append(this.#edit);
    this.asked.replaceChildren(make("h2", "visually-hidden", words.you), make("div", "body", this.question), foot);
  }

  async #openEditor() {
    if (this.actions.busy()) return;
    const { openEditor } = await import("./editor.js");
    openEditor(this.asked, this.question, this.actions.isLast(this), {
      send: (text) => this.actions.busy() || this.actions.again(this, text),
      close: () => {
        this.#showQuestion();
        this.#edit.focus();
      },
    });
  }

  #clear() {
    this.#body.replaceChildren();
    this.#texts.clear();
    this.#reasonings.clear();
    this.#tools.clear();
    this.#usage = undefined;
    this.questions = null;
    this.notes = {};
  }

  /** Draws what came since, as far as one frame has time for. */
  #draw = () => {
    const startMs = performance.now();
    for (const part of [...this.#reasonings.values(), ...this.#texts.values()]) {
      while (part.drawn < part.text.length) {
        if (performance.now() - startMs > DRAW_MS) return paint(this.#draw);
        part.markdown.write(part.text.slice(part.drawn, part.drawn + DRAW_CHARS));
        part.drawn = Math.min(part.text.length, part.drawn + DRAW_CHARS);
      }
    }
  };

  #finish = () => {
    this.#draw();
    const parts = [...this.#reasonings.values(), ...this.#texts.values()];
    if (parts.some((part) => part.drawn < part.text.length)) return paint(this.#finish);
    for (const part of parts) part.markdown.end();
    this.#copy.hidden = !this.#texts.size;
    // A failure has a Retry of its own, or none because it would not help.
    this.#again.hidden = this.asks || this.#body.querySelector(":scope > .failure") !== null;
    this.#foot.hidden = this.#copy.hidden && this.#again.hidden && !this.#meta.textContent;
    this.#edit.hidden = false;
    this.el.removeAttribute("aria-busy");
  };

  /** @param {string} text */
  #say(text) {
    if (this.#note.textContent !== text) this.#note.textContent = text;
  }

  /** @param {string} id @param {string} text */
  #reason(id, text) {
    let part = this.#reasonings.get(id);
    if (!part) {
      const box = document.createElement("details");
      const summary = make("summary", "", words.reasoning);
      const el = make("div", "markdown");
      box.className = "reasoning";
      box.append(summary, el);
      const startMs = this.#joined ? 0 : performance.now();
      part = { el, markdown: new Markdown(el, words), text: "", drawn: 0, old: false, summary, startMs };
      this.#reasonings.set(id, part);
      this.#body.append(box);
      this.#say("");
    }
    part.text += text;
    const knownMs = this.notes.reasonedMs?.[id];
    if (part.startMs) part.summary.textContent = `${words.reasoning}…`;
    else if (knownMs) part.summary.textContent = fill(words.reasoned, seconds(knownMs));
    paint(this.#draw);
  }

  /** Shows how long the model has reasoned. */
  #endReasoning() {
    for (const [id, part] of this.#reasonings) {
      if (!part.startMs) continue;
      const tookMs = performance.now() - part.startMs;
      part.startMs = 0;
      part.summary.textContent = words.reasoning;
      if (tookMs < MIN_REASONING_MS) continue;
      part.summary.textContent = fill(words.reasoned, seconds(tookMs));
      this.notes.reasonedMs = { ...this.notes.reasonedMs, [id]: tookMs };
    }
  }

  /** @param {string} id @param {string} text */
  #replace(id, text) {
    const old = this.#texts.get(id);
    this.#texts.delete(id);
    this.write(id, text);
    const part = this.#texts.get(id);
    if (old && part) old.el.replaceWith(part.el);
  }
}
