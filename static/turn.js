// @ts-check
/**
 * Draws one turn: what the person asked, and what the agent did with it.
 *
 * It never talks to the server: what a button wants goes to the callbacks of `Actions`.
 */

import { button, copy, grow, make, seconds, sends } from "./dom.js";
import { Markdown } from "./markdown.js";
import { paint } from "./scroll.js";
import { ToolCard } from "./tool.js";
import { failures, fill, words } from "./words.js";

/** @typedef {import("./stream.js").StreamEvent} StreamEvent */
/** @typedef {import("./stream.js").Done} Done */
/**
 * @typedef {object} Actions
 * @property {(turn: Turn, text?: string) => void} again asks a turn's question again, or another in its place
 * @property {(turn: Turn, answer: unknown) => void} answer
 * @property {() => void} questionChanged the question that the composer answers is another one
 * @property {() => boolean} busy whether a run goes on, so that nothing can be asked or answered
 * @property {(turn: Turn) => boolean} isLast
 */
/** @typedef {{ el: HTMLElement, markdown: Markdown, text: string, drawn: number, old: boolean }} Part `old`: read from the thread */

// A long answer that comes at once is drawn over several frames, so that the page stays responsive:
// to lay out what was drawn takes the browser ten times as long.
const DRAW_MS = 2;
const DRAW_CHARS = 250;
// Errors that asking again does not mend. The thread's document does not say so, its events do.
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
  /** @type {Map<string, Part>} */
  #texts = new Map();
  /** @type {Map<string, Part & { summary: HTMLElement, startMs: number }>} */
  #reasonings = new Map();
  /** @type {Map<string, ToolCard>} */
  #tools = new Map();
  /** Whether the run began before this page read it, so that times are not known. */
  #joined = false;
  /** @type {string} */
  #finishReason = "";
  /** @type {Done["usage"]} */
  #usage;

  /**
   * @param {string} question what the person asked
   * @param {Actions} actions
   * @param {string} [id]
   */
  constructor(question, actions, id) {
    this.question = question;
    this.actions = actions;
    this.id = id;
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
        this.#finishReason = event.finish_reason ?? "";
        break;
      case "error":
        this.fail(failures[event.code] ?? event.message, event.ref, event.retryable);
        break;
      case "done":
        this.end(event);
        break;
    }
  }

  /**
   * Draws a message of the thread's document that belongs to this turn.
   *
   * @param {any} item
   */
  restore(item) {
    this.#joined = true;
    if (item.role === "tool") {
      this.#tools.get(item.tool_call_id)?.end(item.status, item.result ?? item.message);
      return null;
    }
    if (item.reasoning) this.#reason(item.id, item.reasoning);
    if (item.content) this.write(item.id, item.content, true);
    for (const call of item.tool_calls ?? []) this.tool(call.tool_call_id, call.tool, call.input);
    if (item.error) this.fail(failures[item.error.code] ?? item.error.message, undefined, !LASTING.includes(item.error.code));
    if (item.usage) {
      const { input_tokens = 0, output_tokens = 0, total_tokens = 0 } = this.#usage ?? {};
      this.#usage = {
        input_tokens: input_tokens + item.usage.input_tokens,
        output_tokens: output_tokens + item.usage.output_tokens,
        total_tokens: total_tokens + item.usage.total_tokens,
      };
    }
    return item.ended ?? null;
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
   * Opens a tool's card, or again the one that a resumed run starts again.
   *
   * @param {string} id
   * @param {string} tool
   * @param {Record<string, unknown>} input
   */
  tool(id, tool, input) {
    const known = this.#tools.get(id);
    if (known && (this.#joined || ["running", "interrupted"].includes(known.state))) return known.begin(!this.#joined);
    const card = new ToolCard(tool, input);
    this.#tools.set(id, card);
    this.#body.append(card.el);
    card.begin(!this.#joined);
  }

  /** Stops the seconds of the cards while the connection is away. @param {boolean} held */
  hold(held) {
    for (const card of this.#tools.values()) if (card.state === "running") card.hold(held);
  }

  /**
   * Notes what the person is asked. It is shown when the run has ended, since an answer before that
   * would find the thread busy.
   *
   * @param {{ id: string, value: unknown }[]} interrupts
   */
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
      complete: (answer) => this.actions.answer(this, answer),
      changed: () => this.actions.questionChanged(),
      busy: () => this.actions.busy(),
    });
    this.#body.append(this.questions.el);
    this.actions.questionChanged();
  }

  /** Asks again what was answered, since the answer did not arrive. */
  reopen() {
    this.asks = true;
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

  /**
   * Ends the turn's drawing.
   *
   * @param {Done | { reason: string } | null} done null: nothing says how it ended
   */
  end(done) {
    const reason = done?.reason;
    const { timings, usage = this.#usage } = /** @type {Partial<Done>} */ (done ?? {});
    const facts = [];
    if (reason === "cancelled") facts.push(words.reasonCancelled);
    if (reason === "interrupted" && !this.asks) facts.push(words.reasonPaused);
    if (timings) facts.push(fill(words.took, seconds(timings.total_ms)));
    if (timings?.first_token_ms !== undefined) facts.push(fill(words.firstToken, seconds(timings.first_token_ms)));
    if (usage) facts.push(fill(words.tokens, usage.input_tokens.toLocaleString(), usage.output_tokens.toLocaleString()));
    this.#meta.textContent = facts.join(" · ");
    this.#again.textContent = reason === "completed" ? words.regenerate : words.retry;
    this.#say("");
    this.#endReasoning();
    if (this.#finishReason) {
      const known = /** @type {Record<string, string>} */ (words)[this.#finishReason];
      this.#body.append(make("p", "hint", known ?? fill(words.finished, this.#finishReason)));
      this.#finishReason = "";
    }
    for (const card of this.#tools.values())
      if (card.state === "running") card.end(this.asks ? "interrupted" : reason === "cancelled" ? "cancelled" : "lost");
    paint(this.#finish);
  }

  /** Adds the times of a run that was read again. @param {Done} done */
  addFacts(done) {
    if (!this.el.hasAttribute("aria-busy") && !this.asks) this.end(done);
  }

  #showQuestion() {
    const foot = make("footer");
    foot.append(this.#edit);
    this.asked.replaceChildren(make("h2", "visually-hidden", words.you), make("div", "body", this.question), foot);
  }

  #openEditor() {
    if (this.actions.busy()) return;
    const form = document.createElement("form");
    const label = make("label", "visually-hidden", words.editQuestion);
    const area = document.createElement("textarea");
    const send = button(words.send, () => {}, "primary");
    send.type = "submit";
    const close = () => {
      this.#showQuestion();
      this.#edit.focus();
    };
    form.className = "editor";
    area.value = this.question;
    label.append(area);
    const buttons = make("div", "buttons");
    buttons.append(button(words.cancel, close, ""), send);
    form.append(label);
    if (!this.actions.isLast(this)) form.append(make("p", "hint", words.dropsLater));
    form.append(buttons);
    area.addEventListener("input", () => grow(area));
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.isComposing) {
        event.stopPropagation();
        close();
      }
      if (!sends(event)) return;
      event.preventDefault();
      form.requestSubmit();
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (area.value.trim() && !this.actions.busy()) this.actions.again(this, area.value);
    });
    this.asked.replaceChildren(make("h2", "visually-hidden", words.you), form);
    grow(area);
    area.focus({ preventScroll: true });
    // It is still being laid out, and a page that follows its end scrolls afterwards.
    requestAnimationFrame(() => form.scrollIntoView({ block: "nearest" }));
    area.setSelectionRange(area.value.length, area.value.length);
  }

  #clear() {
    this.#body.replaceChildren();
    this.#texts.clear();
    this.#reasonings.clear();
    this.#tools.clear();
    this.#usage = undefined;
    this.questions = null;
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

  /**
   * @param {string} id
   * @param {string} text
   */
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
    if (part.startMs) part.summary.textContent = `${words.reasoning}…`;
    paint(this.#draw);
  }

  /** Shows how long the model has reasoned. */
  #endReasoning() {
    for (const part of this.#reasonings.values()) {
      const tookMs = performance.now() - part.startMs;
      if (part.startMs)
        part.summary.textContent = tookMs < MIN_REASONING_MS ? words.reasoning : fill(words.reasoned, seconds(tookMs));
      part.startMs = 0;
    }
  }

  /**
   * @param {string} id
   * @param {string} text
   */
  #replace(id, text) {
    const old = this.#texts.get(id);
    this.#texts.delete(id);
    this.write(id, text);
    const part = this.#texts.get(id);
    if (old && part) old.el.replaceWith(part.el);
  }
}
