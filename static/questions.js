// @ts-check
/**
 * What the agent asks the person, and the answer that goes back to the graph.
 *
 * A review (the value of LangChain's human-in-the-loop middleware) is answered by decisions; any
 * other value by true, false or a text. Texts come from the composer, see `composer`.
 */

import { addStyle, brief, button, grow, make } from "./dom.js";
import { fill, pick, words as common } from "./words.js";

await addStyle("questions.css");

const words = pick(
  {
    question: "The agent asks you",
    wants: "The agent wants to use {}",
    approve: "Approve",
    reject: "Reject",
    respond: "Answer in its place",
    answer: "Answer",
    saveEdit: "Approve the changed input",
    noJson: "This is not JSON.",
    change: "Change",
    nth: "Question {} of {}",
    answerHere: "Type your answer",
    rejectHere: "To reject, say why",
    respondHere: "Type the result to use in its place",
    chooseAbove: "Choose an answer above",
    answerHint: "The agent waits. Enter sends your answer.",
    rejectHint: "The agent waits. Enter rejects with this reason.",
    youApproved: "You approved",
    youRejected: "You rejected",
    youEdited: "You changed and approved",
    youAnswered: "You answered",
  },
  {
    question: "エージェントからの質問",
    wants: "エージェントが {} を使おうとしています",
    approve: "承認",
    reject: "却下",
    respond: "代わりに答える",
    answer: "回答する",
    saveEdit: "変更した入力で承認",
    noJson: "JSON ではありません。",
    change: "変更",
    nth: "質問 {} / {}",
    answerHere: "回答を入力",
    rejectHere: "却下する場合は理由を入力",
    respondHere: "代わりに使う結果を入力",
    chooseAbove: "上のボタンで答えてください",
    answerHint: "エージェントが待っています。Enter で回答を送信します。",
    rejectHint: "エージェントが待っています。Enter でこの理由とともに却下します。",
    youApproved: "承認しました",
    youRejected: "却下しました",
    youEdited: "変更して承認しました",
    youAnswered: "回答しました",
  },
);

/** @typedef {import("./types.js").Kind} Kind */
/** @typedef {import("./types.js").Step} Step */

export class Questions {
  el = make("section", "question");
  /** @type {Step[]} */
  #steps;
  /** @type {Map<string, boolean>} Whether an interrupt's answer is a list of decisions. */
  #reviews = new Map();
  #current = 0;
  #responding = false;
  #sent = false;

  /** @param {{ id: string, value: unknown }[]} interrupts @param {import("./types.js").Host} host */
  constructor(interrupts, host) {
    this.host = host;
    this.#steps = interrupts.flatMap(({ id, value }) => {
      const { reviewed, steps } = read(id, value);
      this.#reviews.set(id, reviewed);
      return steps;
    });
    this.el.setAttribute("aria-label", words.question);
    this.#draw();
  }

  /** How the composer answers the current step; null if nothing is to be answered. @returns {import("./types.js").Composer | null} */
  get composer() {
    const step = this.#steps[this.#current];
    if (this.#sent || !step) return null;
    const { kinds } = step;
    const texts = (/** @type {Kind} */ kind, placeholder = "", send = words.answer, hint = words.answerHint) => ({
      placeholder,
      send,
      hint,
      submit: (/** @type {string} */ text) => this.#give(step, kind, text),
    });
    if (kinds.includes("answer")) return texts("answer", words.answerHere);
    if (kinds.includes("respond") && (this.#responding || !kinds.includes("reject")))
      return texts("respond", words.respondHere);
    if (kinds.includes("reject")) return texts("reject", words.rejectHere, words.reject, words.rejectHint);
    return { placeholder: words.chooseAbove, send: words.answer, hint: "", submit: null };
  }

  /** Asks again, since the answers did not arrive. */
  reopen() {
    this.#sent = false;
    this.#current = this.#steps.length - 1;
    this.#draw();
  }

  /** @param {Step} step @param {Kind} kind @param {string} text @param {unknown} [args] the edited arguments */
  #give(step, kind, text, args) {
    if (this.host.busy()) return;
    const message = text.trim();
    if (kind === "answer") step.given = text;
    else if (!step.tool) step.given = kind === "approve";
    else if (kind === "edit") step.given = { type: kind, edited_action: { name: step.tool, args } };
    else step.given = message ? { type: kind, message } : { type: kind };
    const done = { approve: words.youApproved, reject: words.youRejected, edit: words.youEdited };
    const said = kind === "answer" || kind === "respond" ? words.youAnswered : done[kind];
    step.summary = message && kind !== "approve" ? `${said}: ${brief(message)}` : said;
    this.#responding = false;
    const next = this.#steps.findIndex((each) => each.summary === undefined);
    this.#current = next < 0 ? this.#steps.length : next;
    this.#sent = next < 0;
    this.#draw();
    if (!this.#sent) return this.host.changed();
    /** @type {Record<string, unknown>} */
    const answers = {};
    for (const [id, reviewed] of this.#reviews) {
      const given = this.#steps.filter((each) => each.id === id).map((each) => each.given);
      answers[id] = reviewed ? { decisions: given } : given[0];
    }
    this.host.complete(answers, this.#steps.map((each) => [each.summary ?? "", gistOf(each)]));
  }

  #draw() {
    this.el.replaceChildren(...this.#steps.flatMap((step, at) => {
      if (at === this.#current) return [this.#form(step, at)];
      // Steps that come later are not shown yet.
      return step.summary === undefined ? [] : [this.#line(step, at)];
    }));
    this.el.classList.toggle("closed", this.#sent);
  }

  /** @param {Step} step @param {number} at */
  #line(step, at) {
    const line = drawLine(step.summary ?? "", gistOf(step));
    if (!this.#sent)
      line.append(
        button(words.change, () => {
          this.#current = at;
          this.#draw();
          this.host.changed();
        }),
      );
    return line;
  }

  /** @param {Step} step @param {number} at */
  #form(step, at) {
    const form = make("form", "step");
    form.addEventListener("submit", (event) => event.preventDefault());
    const label = step.tool ? fill(words.wants, step.tool) : words.question;
    const count = this.#steps.length > 1 ? ` · ${fill(words.nth, at + 1, this.#steps.length)}` : "";
    form.append(make("h3", "", label + count));
    if (step.title) form.append(make("p", "asked", step.title));
    if (step.about) form.append(make("p", "about", step.about));
    if (step.details !== undefined) form.append(rows(step.details));
    const buttons = make("div", "buttons");
    /** @type {Partial<Record<Kind, () => void>>} */
    const acts = {
      approve: () => this.#give(step, "approve", ""),
      edit: () => this.#edit(form, step),
      reject: () => this.#give(step, "reject", ""),
      respond: () => {
        this.#responding = !this.#responding;
        this.host.changed();
      },
    };
    for (const kind of step.kinds) {
      const act = acts[kind];
      // Without Reject the composer is the field for it already.
      if (!act || (kind === "respond" && !step.kinds.includes("reject"))) continue;
      const label = kind === "edit" ? common.edit : words[/** @type {"approve" | "reject" | "respond"} */ (kind)];
      buttons.append(button(label, act, kind === "approve" ? "primary" : ""));
    }
    if (buttons.childElementCount) form.append(buttons);
    return form;
  }

  /** Turns the rows into fields. @param {HTMLElement} form @param {Step} step */
  #edit(form, step) {
    const args = /** @type {Record<string, unknown>} */ (step.details ?? {});
    const fields = make("div", "fields");
    const boxes = Object.entries(args).map(([name, value]) => {
      const label = make("label", "", name);
      const box = document.createElement("textarea");
      const isText = typeof value === "string";
      box.value = isText ? value : JSON.stringify(value, null, 2);
      box.rows = 1;
      box.spellcheck = isText;
      box.classList.toggle("json", !isText);
      box.addEventListener("input", () => {
        grow(box);
        box.setCustomValidity(isText || isJson(box.value) ? "" : words.noJson);
      });
      label.append(box);
      fields.append(label);
      return { name, box, isText };
    });
    const buttons = make("div", "buttons");
    const save = button(words.saveEdit, () => {
      if (!boxes.every(({ box }) => box.reportValidity())) return;
      const entries = boxes.map(({ name, box, isText }) => [name, isText ? box.value : JSON.parse(box.value)]);
      this.#give(step, "edit", "", Object.fromEntries(entries));
    }, "primary");
    buttons.append(save, button(common.cancel, () => {
      this.#draw();
      this.host.changed();
    }, ""));
    form.querySelector(".rows")?.replaceWith(fields);
    form.querySelector(".buttons")?.replaceWith(buttons);
    for (const { box } of boxes) grow(box);
    (boxes[0]?.box ?? save).focus();
  }
}

/** Draws what was answered before the page was loaded. @param {[string, string][]} lines */
export function drawAnswers(lines) {
  const box = make("section", "question closed");
  box.setAttribute("aria-label", words.question);
  box.append(...lines.map(([summary, gist]) => drawLine(summary, gist)));
  return box;
}

/** The one line of a step that is answered. @param {string} summary @param {string} gist */
function drawLine(summary, gist) {
  const line = make("p", "answered");
  line.append(make("b", "", summary), make("span", "gist", gist));
  return line;
}

/** What a step is about, in one line. @param {Step} step */
function gistOf({ tool, title, details }) {
  return brief(tool ? `${tool} ${JSON.stringify(details)}` : title);
}

/**
 * Reads what an interrupt asks.
 *
 * @param {string} id
 * @param {unknown} value
 * @returns {{ reviewed: boolean, steps: Step[] }}
 */
function read(id, value) {
  const asked = /** @type {any} */ (value);
  const single = asked?.type === "tool_approval" ? review(id, asked, ["approve", "edit", "reject"]) : null;
  if (single) return { reviewed: false, steps: [single] };
  const requests = Array.isArray(asked?.action_requests) ? asked.action_requests : [];
  const configs = Array.isArray(asked?.review_configs) ? asked.review_configs : [];
  const found = requests.map((/** @type {any} */ request) => {
    const config = configs.find((/** @type {any} */ each) => each?.action_name === request?.name);
    return review(id, request, config?.allowed_decisions ?? ["approve", "reject"]);
  });
  const steps = /** @type {Step[]} */ (found.filter((/** @type {Step | null} */ step) => step));
  if (steps.length && steps.length === found.length) return { reviewed: true, steps };
  const key = ["question", "message"].find((name) => typeof asked?.[name] === "string");
  const title = typeof value === "string" ? value : key ? asked[key] : "";
  const { [key ?? ""]: _, ...rest } = typeof value === "object" && !Array.isArray(value) ? asked ?? {} : {};
  const whole = title || value === undefined ? undefined : value;
  const details = key ? (Object.keys(rest).length ? rest : undefined) : whole;
  const kinds = /** @type {Kind[]} */ (["approve", "reject", "answer"]);
  return { reviewed: false, steps: [{ id, tool: "", title, about: "", details, kinds }] };
}

/**
 * The review of one tool call, or null if the value asks for no such thing.
 *
 * @param {string} id
 * @param {any} request `{ name, args, description }`
 * @param {unknown} allowed the decisions that may be given
 * @returns {Step | null}
 */
function review(id, request, allowed) {
  if (typeof request?.name !== "string" || !Array.isArray(allowed)) return null;
  const all = /** @type {Kind[]} */ (["approve", "edit", "reject", "respond"]);
  const kinds = all.filter((kind) => allowed.includes(kind));
  if (!kinds.length) return null;
  // LangChain's own description ends with the name and the arguments, which the rows show anyway.
  const about = String(request.description ?? "").replace(/\s*^Tool: [^]*/m, "").trim();
  return { id, tool: request.name, title: "", about, details: request.args ?? {}, kinds };
}

/** A value as rows of names and values; texts keep their line breaks. @param {unknown} value */
function rows(value) {
  if (typeof value !== "object" || !value || Array.isArray(value))
    return make("pre", "rows", typeof value === "string" ? value : JSON.stringify(value, null, 2));
  const list = make("dl", "rows");
  for (const [name, each] of Object.entries(value)) {
    const row = make("div");
    row.append(make("dt", "", name));
    const text = typeof each === "string" ? each : JSON.stringify(each, null, 2);
    const cell = make("dd", typeof each === "string" ? "" : "json", text);
    // What may scroll has to be reachable by the keyboard.
    if (text.length > 400) cell.tabIndex = 0;
    row.append(cell);
    list.append(row);
  }
  return list;
}

/** @param {string} text */
function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}
