// @ts-check
/**
 * Draws the conversation. What a model, a tool or a person wrote reaches the page only as text.
 *
 * It never talks to the server: what a button wants goes to the callbacks of `Actions`.
 */

import { Markdown } from "./markdown.js";
import { failures, words } from "./words.js";

/** @typedef {import("./stream.js").StreamEvent} StreamEvent */
/** @typedef {import("./stream.js").ToolStatus} ToolStatus */
/**
 * @typedef {object} Actions
 * @property {(text: string) => void} ask
 * @property {(turn: Turn, answer: unknown) => void} answer
 * @property {(text: string) => void} edit
 * @property {() => boolean} busy whether a run is on its way, so that nothing can be asked or answered
 */

// A long answer that comes at once is drawn over several frames, so that the page stays responsive:
// to lay out what was drawn takes the browser ten times as long.
const DRAW_MS = 2;
const DRAW_CHARS = 250;
const BRIEF_CHARS = 200;

/** @type {Set<() => void>} */
const waiting = new Set();
/** @type {number | null} */
let frame = null;
/** @type {Set<() => void>} */
const afterwards = new Set();

/** Runs `draw` once before the next frame, or soon where the tab is hidden and has no frames. @param {() => void} draw */
export function paint(draw) {
  waiting.add(draw);
  if (frame !== null) return;
  frame = document.hidden ? setTimeout(paintNow, 200) : requestAnimationFrame(paintNow);
}

function paintNow() {
  frame = null;
  const draws = [...waiting];
  waiting.clear();
  for (const draw of draws) draw();
  for (const follow of afterwards) follow();
}

// A frame that was asked for in a tab that is hidden now would not come.
document.addEventListener("visibilitychange", () => {
  if (document.hidden && frame !== null) paintNow();
});

/**
 * Keeps a scroller at its end while the reader is there, and leaves it alone otherwise.
 *
 * @param {HTMLElement} scroller
 * @param {HTMLElement} button shown while the reader is elsewhere; leads back
 * @returns {() => void} goes to the end and follows again
 */
export function followEnd(scroller, button) {
  let following = true;
  let lastTop = 0;
  const distance = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight;
  const follow = () => {
    // The welcome is read from its beginning.
    if (following && scroller.querySelector(".turn")) scroller.scrollTop = scroller.scrollHeight;
    button.hidden = following || distance() < 8;
  };
  scroller.addEventListener("scroll", () => {
    if (distance() < 8) following = true;
    else if (scroller.scrollTop < lastTop) following = false;
    lastTop = scroller.scrollTop;
    button.hidden = following;
  });
  new ResizeObserver(follow).observe(scroller);
  // Who opens a card reads it, and is no longer at the end.
  scroller.addEventListener("click", (event) => {
    if (event.target instanceof Element && event.target.closest("summary")) following = false;
  });
  scroller.addEventListener("toggle", () => (following = distance() < 8), true);
  afterwards.add(follow);
  const toEnd = () => {
    following = true;
    follow();
  };
  button.addEventListener("click", () => {
    toEnd();
    scroller.focus();
  });
  // The browser's own way there is slow, and the end has moved on when it arrives.
  document.addEventListener("keydown", (event) => {
    if (event.key !== "End" || event.shiftKey || (event.target !== scroller && event.target !== document.body)) return;
    event.preventDefault();
    toEnd();
  });
  return toEnd;
}

/** The agent's side of one exchange: what a run, and the runs that resume it, told. */
export class Turn {
  el = make("article", "turn agent");
  /** Whether the run waits for a person's answer. */
  asks = false;
  #body = make("div", "body");
  #note = make("p", "note");
  #foot = make("footer");
  #meta = make("span", "meta");
  #copy = button(words.copy, (pressed) => copy(pressed, [...this.#texts.values()].map(({ text }) => text).join("\n\n")));
  #retry = button(words.retry, () => this.actions.ask(this.question));
  /** @type {Map<string, { el: HTMLElement, markdown: Markdown, text: string, drawn: number }>} */
  #texts = new Map();
  /** @type {Map<string, { box: HTMLElement, text: string }>} */
  #reasonings = new Map();
  /** @type {Map<string, ToolCard>} */
  #tools = new Map();
  /** @type {HTMLFormElement | null} */
  #form = null;
  #answered = make("p");
  #joined = false;
  /** @type {{ id: string, answer: () => unknown }[]} */
  #questions = [];

  /**
   * @param {HTMLElement} log
   * @param {string} question what the person asked
   * @param {Actions} actions
   */
  constructor(log, question, actions) {
    this.question = question;
    this.actions = actions;
    this.#foot.append(this.#copy, this.#retry, this.#meta);
    this.#foot.hidden = true;
    this.el.append(make("h2", "visually-hidden", words.agent), this.#body, this.#note, this.#foot);
    log.append(this.el);
  }

  /** Shows that a run is on its way. @param {boolean} joined whether it began before this page looked */
  begin(joined) {
    this.asks = false;
    this.#joined = joined;
    this.#body.querySelector(":scope > .failure")?.remove();
    this.el.setAttribute("aria-busy", "true");
    this.#say(words.waiting);
    this.#foot.hidden = true;
  }

  /** @param {StreamEvent} event */
  apply(event) {
    switch (event.type) {
      case "start":
        break;
      case "thinking":
        this.#say(event.content);
        break;
      case "reasoning_delta":
        this.#reason(event.message_id, event.content);
        break;
      case "text_delta":
        this.#say("");
        this.write(event.message_id, event.content);
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
        for (const { id, value } of event.interrupts) this.#ask(id, value);
        break;
      case "final_answer":
        if (this.#texts.get(event.message_id)?.text !== event.content) this.#replace(event.message_id, event.content);
        break;
      case "error":
        this.fail(failures[event.code] ?? event.message, event.ref, event.retryable ? () => this.actions.ask(this.question) : null);
        break;
      case "done":
        this.end(event);
        break;
    }
  }

  /**
   * Adds to the text of a message.
   *
   * @param {string} id
   * @param {string} text
   */
  write(id, text) {
    let part = this.#texts.get(id);
    if (!part) {
      const el = make("div", "markdown");
      part = { el, markdown: new Markdown(el, words.copy), text: "", drawn: 0 };
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
    if (known && ["running", "interrupted"].includes(known.state)) return known.begin(!this.#joined);
    const card = new ToolCard(tool, input);
    this.#tools.set(id, card);
    this.#body.append(card.el);
    card.begin(!this.#joined);
  }

  /**
   * Closes a card of a conversation that is read back.
   *
   * @param {string} id
   * @param {ToolStatus} status
   * @param {unknown} result
   */
  toolEnded(id, status, result) {
    this.#tools.get(id)?.end(status, result);
  }

  /**
   * Says what went wrong, where it did.
   *
   * @param {string} message
   * @param {string} [ref]
   * @param {(() => void) | null} [retry]
   */
  fail(message, ref, retry) {
    const box = make("div", "failure");
    box.setAttribute("role", "alert");
    box.append(make("p", "", message));
    if (ref) box.append(make("small", "", `${words.ref} ${ref}`));
    if (retry)
      box.append(
        button(words.retry, (pressed) => {
          if (this.actions.busy()) return;
          pressed.remove();
          retry();
        }),
      );
    this.#body.append(box);
  }

  /** Shows what the run asks, once an answer can be taken. */
  showQuestion() {
    if (this.#form && this.asks) this.#form.hidden = false;
  }

  /** Asks again what was answered, since the answer did not arrive. */
  reopen() {
    this.asks = true;
    this.#lock(false);
  }

  /** Asks no longer, since the conversation went on without an answer. */
  withdraw() {
    this.asks = false;
    this.#form?.remove();
  }

  /**
   * Ends the turn's drawing.
   *
   * @param {import("./stream.js").Done | null} done null: nothing told how it ended
   * @param {boolean} [again] whether to offer to ask again
   */
  end(done, again = done?.reason === "cancelled") {
    const { timings, usage, reason } = done ?? {};
    const facts = [];
    if (reason === "cancelled") facts.push(words.reasonCancelled);
    if (reason === "interrupted") facts.push(words.reasonInterrupted);
    if (timings?.first_token_ms !== undefined) facts.push(`${words.firstToken} ${seconds(timings.first_token_ms)}`);
    if (timings) facts.push(`${words.total} ${seconds(timings.total_ms)}`);
    if (usage) facts.push(`${usage.total_tokens} ${words.tokens}`);
    this.#meta.textContent = facts.join(" · ");
    this.#retry.hidden = !again;
    this.#say("");
    for (const card of this.#tools.values()) if (card.state === "running") card.end(this.asks ? "interrupted" : "cancelled", undefined);
    paint(this.#finish);
  }

  /** Draws what came since, as far as one frame has time for. */
  #draw = () => {
    const start = performance.now();
    for (const part of this.#texts.values()) {
      while (part.drawn < part.text.length) {
        if (performance.now() - start > DRAW_MS) return paint(this.#draw);
        part.markdown.write(part.text.slice(part.drawn, part.drawn + DRAW_CHARS));
        part.drawn = Math.min(part.text.length, part.drawn + DRAW_CHARS);
      }
    }
    for (const part of this.#reasonings.values()) {
      if (part.text) part.box.append(part.text);
      part.text = "";
    }
  };

  #finish = () => {
    this.#draw();
    for (const part of this.#texts.values()) if (part.drawn < part.text.length) return paint(this.#finish);
    for (const part of this.#texts.values()) part.markdown.end();
    this.#copy.hidden = !this.#texts.size;
    this.#foot.hidden = this.#copy.hidden && this.#retry.hidden && !this.#meta.textContent;
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
      const el = document.createElement("details");
      el.className = "reasoning";
      const box = make("div");
      el.append(make("summary", "", words.reasoning), box);
      part = { box, text: "" };
      this.#reasonings.set(id, part);
      this.#body.append(el);
    }
    part.text += text;
    paint(this.#draw);
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

  /**
   * @param {string} id
   * @param {unknown} value
   */
  #ask(id, value) {
    if (!this.asks) {
      this.asks = true;
      this.#questions = [];
      const form = (this.#form = document.createElement("form"));
      form.className = "question";
      // The run ends after the question; an answer before that would find it busy.
      form.hidden = true;
      this.#answered = make("p", "answered", words.answered);
      this.#answered.hidden = true;
      form.append(make("h3", "", words.question), this.#answered);
      form.addEventListener("submit", (event) => event.preventDefault());
      form.addEventListener("answered", () => {
        const answers = this.#questions.map(({ id, answer }) => /** @type {const} */ ([id, answer()]));
        if (answers.some(([, answer]) => answer === undefined) || this.actions.busy()) return;
        this.#lock(true);
        this.actions.answer(this, answers.length === 1 ? answers[0][1] : Object.fromEntries(answers));
      });
      this.#body.append(form);
    }
    const { fields, answer } = question(value);
    this.#questions.push({ id, answer });
    this.#answered.before(...fields);
  }

  /** @param {boolean} answered */
  #lock(answered) {
    for (const field of this.#form?.querySelectorAll("fieldset") ?? []) field.disabled = answered;
    this.#answered.hidden = !answered;
  }
}

/** A tool call, from its start to its result. */
class ToolCard {
  el = document.createElement("details");
  state = "running";
  #started = 0;
  #state = make("span", "state");
  #last = make("span", "last");
  #lines = make("ul");
  #result = make("pre");
  #progress = make("section");
  #outcome = make("section");
  /** @type {ReturnType<typeof setInterval> | undefined} */
  #clock;

  /**
   * @param {string} tool
   * @param {Record<string, unknown>} input
   */
  constructor(tool, input) {
    this.el.className = "tool";
    const summary = make("summary");
    const gist = Object.values(input).map((value) => (typeof value === "string" ? value : JSON.stringify(value)));
    summary.append(make("b", "", tool), make("span", "gist", brief(gist.join(", "))), this.#state, this.#last);
    const asked = make("section");
    asked.append(make("h3", "", words.input), code(make("pre"), input));
    this.#progress.append(make("h3", "", words.progress), this.#lines);
    this.#outcome.append(make("h3", "", words.result), this.#result);
    this.#progress.hidden = this.#outcome.hidden = true;
    this.el.append(summary, asked, this.#progress, this.#outcome);
  }

  /** @param {boolean} timed whether it starts now; when it did otherwise nobody tells */
  begin(timed) {
    this.#started = timed ? performance.now() : 0;
    this.#show("running");
    clearInterval(this.#clock);
    this.#clock = setInterval(() => this.#show("running"), 1000);
  }

  /** @param {string} text */
  progress(text) {
    this.#progress.hidden = false;
    this.#last.textContent = brief(text);
    this.#lines.append(make("li", "", text));
  }

  /**
   * @param {ToolStatus} status
   * @param {unknown} result
   */
  end(status, result) {
    clearInterval(this.#clock);
    this.#show(status);
    this.#last.textContent = status === "error" && typeof result === "string" ? brief(result) : "";
    this.#outcome.hidden = result === undefined;
    if (result !== undefined) code(this.#result, result);
  }

  /** Shows the state, with whole seconds while it runs and the exact time in the end. @param {string} state */
  #show(state) {
    this.state = this.el.dataset.state = state;
    const elapsed = this.#started ? (performance.now() - this.#started) / 1000 : 0;
    const word = /** @type {Record<string, string>} */ (words)[state] ?? state;
    const told = state === "running" ? Math.floor(elapsed) : elapsed.toFixed(1);
    this.#state.textContent = Number(told) ? `${word} · ${told} ${words.secondsUnit}` : word;
  }
}

/**
 * Draws what a person asked.
 *
 * @param {HTMLElement} log
 * @param {string} text
 * @param {Actions} actions
 */
export function drawQuestion(log, text, actions) {
  const el = make("article", "turn user");
  const body = make("div", "body", text);
  const foot = make("footer");
  foot.append(button(words.edit, () => actions.edit(text)));
  el.append(make("h2", "visually-hidden", words.you), body, foot);
  log.append(el);
}

/** Makes every code block's Copy button work. @param {HTMLElement} log */
export function enableCopy(log) {
  log.addEventListener("click", (event) => {
    const pressed = event.target;
    if (!(pressed instanceof HTMLButtonElement) || pressed.className !== "copy-code") return;
    copy(pressed, pressed.closest("figure")?.querySelector("code")?.textContent ?? "");
  });
}

/** @typedef {{ fields: HTMLElement[], answer: () => unknown }} Question its answer is undefined until all is said */
/** @typedef {{ word: string, answer: (text: string) => unknown, box?: Box, label?: string }} Option */
/** @typedef {HTMLInputElement | HTMLTextAreaElement} Box */

/**
 * The fields of one interrupt, and the answer that they hold: decisions for LangChain's
 * human-in-the-loop; true, false or words for any other value.
 *
 * @param {unknown} value
 * @returns {Question}
 */
function question(value) {
  const asked = /** @type {any} */ (value);
  const approval = asked?.type === "tool_approval" ? review(asked, ["approve", "edit", "reject"]) : null;
  if (approval) return approval;
  const requests = Array.isArray(asked?.action_requests) ? asked.action_requests : [];
  const configs = Array.isArray(asked?.review_configs) ? asked.review_configs : [];
  /** @type {(Question | null)[]} */
  const found = requests.map((/** @type {any} */ request) => {
    const config = configs.find((/** @type {any} */ each) => each?.action_name === request?.name);
    return review(request, config?.allowed_decisions ?? ["approve", "reject"]);
  });
  const reviews = found.filter((each) => each !== null);
  if (reviews.length && reviews.length === found.length) {
    const answer = () => {
      const decisions = reviews.map((each) => each.answer());
      return decisions.includes(undefined) ? undefined : { decisions };
    };
    return { fields: reviews.flatMap(({ fields }) => fields), answer };
  }
  const told = typeof value === "string" ? value : (asked?.question ?? asked?.message);
  const title = typeof told === "string" ? told : "";
  const more = !title || (typeof value === "object" && Object.keys(asked).length > 1);
  return choice(title, "", more ? value : undefined, [
    { word: words.approve, answer: () => true },
    { word: words.reject, answer: () => false },
    { word: words.answer, answer: (text) => text, box: textBox(true), label: words.words },
  ]);
}

/**
 * The review of one tool call, null where that is not what is asked for.
 *
 * @param {any} request `{ name, args, description }`
 * @param {unknown} allowed the decisions that may be given
 * @returns {Question | null}
 */
function review(request, allowed) {
  if (typeof request?.name !== "string" || !Array.isArray(allowed)) return null;
  const { name, args = {}, description } = request;
  /** @type {Record<string, Option>} */
  const options = {
    approve: { word: words.approve, answer: () => ({ type: "approve" }) },
    edit: {
      word: words.edit,
      answer: (text) => ({ type: "edit", edited_action: { name, args: JSON.parse(text) } }),
      box: jsonBox(args),
      label: words.input,
    },
    reject: {
      word: words.reject,
      answer: (text) => (text ? { type: "reject", message: text } : { type: "reject" }),
      box: textBox(false),
      label: words.why,
    },
    respond: {
      word: words.respond,
      answer: (message) => ({ type: "respond", message }),
      box: textBox(true),
      label: words.result,
    },
  };
  // LangChain's own description ends with the name and the arguments, which the field shows anyway.
  const about = String(description ?? "").replace(/\s*^Tool: [^]*/m, "");
  const offered = Object.keys(options).filter((kind) => allowed.includes(kind));
  return offered.length ? choice(name, about, args, offered.map((kind) => options[kind])) : null;
}

/**
 * A choice between options, each a button; one with a box takes its text along. What is pressed
 * last counts, and each press says that there is an answer.
 *
 * @param {string} title
 * @param {string} about
 * @param {unknown} details
 * @param {Option[]} options
 * @returns {Question}
 */
function choice(title, about, details, options) {
  const field = make("fieldset");
  field.append(make("legend", title ? "" : "visually-hidden", title || words.question));
  if (about) field.append(make("p", "", about));
  if (details !== undefined) field.append(code(make("pre"), details));
  /** @type {unknown} */
  let given;
  for (const { word, answer, box, label = "" } of options) {
    const press = button(
      word,
      () => {
        if (box) box.value = box.value.trim();
        if (!(box?.reportValidity() ?? true)) return;
        given = answer(box?.value ?? "");
        for (const each of field.querySelectorAll("button")) each.setAttribute("aria-pressed", String(each === press));
        field.dispatchEvent(new Event("answered", { bubbles: true }));
      },
      "",
    );
    const option = make("div", "option");
    if (box) {
      const labelled = option.appendChild(make("label", "", label));
      labelled.append(box);
      box.addEventListener("keydown", (event) => {
        const { key, isComposing, keyCode } = /** @type {KeyboardEvent} */ (event);
        if (key !== "Enter" || isComposing || keyCode === 229 || box.localName === "textarea") return;
        event.preventDefault();
        press.click();
      });
    }
    option.append(press);
    field.append(option);
  }
  return { fields: [field], answer: () => given };
}

/** @param {boolean} required */
function textBox(required) {
  const box = document.createElement("input");
  return Object.assign(box, { type: "text", autocomplete: "off", required });
}

/** A box for a JSON object, which refuses anything else. @param {unknown} value */
function jsonBox(value) {
  const box = document.createElement("textarea");
  Object.assign(box, { value: JSON.stringify(value, null, 2), spellcheck: false });
  box.rows = box.value.split("\n").length;
  box.addEventListener("input", () => box.setCustomValidity(isObject(box.value) ? "" : words.noObject));
  return box;
}

/** @param {string} json */
function isObject(json) {
  try {
    return /^\s*{/.test(json) && Boolean(JSON.parse(json));
  } catch {
    return false;
  }
}

/**
 * @param {string} label
 * @param {(button: HTMLButtonElement) => void} act
 */
function button(label, act, className = "quiet") {
  const el = document.createElement("button");
  el.type = "button";
  el.className = className;
  el.textContent = label;
  el.addEventListener("click", () => act(el));
  return el;
}

/**
 * @param {HTMLButtonElement} pressed
 * @param {string} text
 */
async function copy(pressed, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages served over plain HTTP have no clipboard but this one.
    const box = document.createElement("textarea");
    box.value = text;
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
    pressed.focus();
  }
  pressed.textContent = words.copied;
  setTimeout(() => (pressed.textContent = words.copy), 1500);
}

/**
 * @param {HTMLElement} el
 * @param {unknown} value
 */
function code(el, value) {
  el.textContent = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  el.tabIndex = 0;
  return el;
}

/** The beginning of what may be long. @param {string} text */
function brief(text) {
  return text.length > BRIEF_CHARS ? `${text.slice(0, BRIEF_CHARS)}…` : text;
}

/** @param {number} ms */
function seconds(ms) {
  return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} ${words.secondsUnit}`;
}

/**
 * @param {string} name
 * @param {string} [className]
 * @param {string} [text]
 */
function make(name, className = "", text = "") {
  const el = document.createElement(name);
  if (className) el.className = className;
  if (text) el.textContent = text;
  return el;
}
