// @ts-check
/**
 * Draws Markdown while it arrives, at a cost that grows with its length alone.
 *
 * Each line goes once through a stack of open blocks and lands in the innermost one; what stands is
 * never drawn again. Of a paragraph only the last bit is, in which an emphasis or a link may still be
 * open, and of code only the line that arrives. Nodes are made by createElement and text nodes only,
 * so HTML in the text is just text.
 *
 * What it does not do: setext headings, indented code, reference links, HTML entities, raw HTML other
 * than `<br>`, and an emphasis or link of more than SPAN characters. Images are links, and LaTeX stands
 * as it is written.
 * Source: CommonMark, and GitHub Flavored Markdown for tables, task lists, strikethrough and autolinks.
 */

import { Highlighter } from "./code.js";
import { Inline, MAX_NESTING, SPAN, element } from "./inline.js";

/** How many lines of code are laid out together, so that one that arrives does not move all. */
const GROUP = 50;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
/** The beginning of a formula of its own, and what ends it. @type {Record<string, string>} */
const MATH = { "$$": "$$", "\\[": "\\]" };


/** @typedef {import("./types.js").CodeLeaf} CodeLeaf */
/** @typedef {import("./types.js").MathLeaf} MathLeaf */

export class Markdown {
  /** @type {import("./types.js").Container[]} */
  #stack;
  /** @type {import("./types.js").Leaf | null} */
  #leaf = null;
  /** The line that is arriving, as far as it is not yet drawn. */
  #line = "";
  /** A carriage return at the end of what came, which may be half of a line end. */
  #half = "";
  /** Whether the line's block is known, so that its text can be drawn before the line ends. */
  #open = false;
  #labels;

  /**
   * @param {Element} root
   * @param {{ copy: string, copyCode: string }} labels `copy` stands on a code
   *   block's button, which has the class `copy-code`, and `copyCode` is its accessible name
   */
  constructor(root, labels = { copy: "Copy", copyCode: "Copy the code" }) {
    this.#stack = [{ type: "root", el: root, indent: 0, width: 0, mark: "" }];
    this.#labels = labels;
  }

  /** Draws more text. @param {string} text */
  write(text) {
    const whole = this.#half + text;
    this.#half = whole.endsWith("\r") ? "\r" : "";
    const lines = whole.slice(0, whole.length - this.#half.length).split("\n");
    lines.forEach((piece, i) => {
      this.#line += piece;
      const ended = i < lines.length - 1;
      if (ended && this.#line.endsWith("\r")) this.#line = this.#line.slice(0, -1);
      if (this.#open) this.#flow(this.#line);
      else if (ended) this.#place(this.#line, true);
      else if (!this.#line || this.#mustWait(this.#line)) return;
      else this.#place(this.#line, false);
      this.#line = "";
      this.#open = !ended;
      if (ended && this.#leaf?.type === "code") highlight(this.#leaf);
    });
    if (this.#leaf?.type === "text") this.#leaf.inline.draw(false);
  }

  /** Draws what was held back and closes every block. */
  end() {
    if (this.#line) {
      if (this.#open) this.#flow(this.#line);
      else this.#place(this.#line, true);
    }
    this.#line = "";
    this.#open = false;
    this.#close();
  }

  /** Says whether the start of a line does not yet tell its block. @param {string} line */
  #mustWait(line) {
    if (line.length > SPAN) return false;
    if (this.#leaf?.type === "table" || this.#leaf?.type === "math") return true;
    if (this.#leaf?.type === "code" && this.#stack.length === 1) return /^[\s>`~]*$/.test(line);
    return (
      /^[\s>#*+_`~|:.)\d-]*$/.test(line) ||
      /^(\s|>|[-*+]\s|\d+[.)]\s)*(\||```|~~~|\[[ xX]?\]? ?$|\$\$|\$$|\\\[|\\$)/.test(line)
    );
  }

  /** Adds text to the line whose block is known. @param {string} text */
  #flow(text) {
    const leaf = this.#leaf;
    if (!text || !leaf) return;
    if (leaf.type === "text") {
      leaf.inline.add(text);
      if (leaf.source !== null) leaf.source = leaf.source.length < SPAN ? leaf.source + text : null;
    } else if (leaf.type === "code") grow(leaf, text);
    else leaf.el.append(text);
  }

  /** Finds the block of a line and puts the line's text there. @param {string} line @param {boolean} whole */
  #place(line, whole) {
    const verbatim = this.#leaf?.type === "code" && this.#stack.length === 1;
    let rest = verbatim ? line : line.replace(/^\s+/, (space) => space.replace(/\t/g, "    "));
    let depth = 1;
    for (; depth < this.#stack.length; depth++) {
      const box = this.#stack[depth];
      if (box.type === "quote") {
        const mark = /^ {0,3}> ?/.exec(rest);
        if (!mark) break;
        rest = rest.slice(mark[0].length);
      } else if (box.type === "item") {
        const indent = rest.search(/\S|$/);
        // Two columns are enough: models indent under "1." by two as often as by three.
        if (rest.trim() && indent < box.indent + 2) break;
        rest = rest.slice(Math.min(indent, box.width));
      }
    }
    const inside = depth === this.#stack.length;
    if (this.#leaf?.type === "code" && inside) return this.#code(this.#leaf, rest, whole);
    if (!rest.trim()) {
      this.#close();
      // A list goes on after a blank line; a quote does not.
      const quote = this.#stack.findIndex((box, i) => i >= depth && box.type === "quote");
      if (quote > 0) this.#stack.length = quote;
      return;
    }
    if (this.#leaf?.type === "math" && inside) return this.#math(this.#leaf, rest);
    if (this.#tableRow(rest, inside)) return;

    // An item that ended leaves its list open: the next item belongs to it.
    let kept = depth;
    for (;;) {
      const box = this.#stack[kept - 1];
      const mark = /^( *)([-*+]|\d{1,9}[.)])( +|$)/.exec(rest);
      const rule = RULE.test(rest);
      const quote = /^ {0,3}> ?/.exec(rest);
      if (quote && kept < MAX_NESTING) {
        this.#closeTo(box.type === "list" ? kept - 1 : kept);
        this.#push("quote", "blockquote");
        rest = rest.slice(quote[0].length);
      } else if (mark && !rule && kept < MAX_NESTING && this.#mayList(mark[2], kept)) {
        this.#closeTo(kept);
        this.#item(mark);
        rest = rest.slice(mark[0].length).replace(/^\[([ xX])\] (?=\S)/, (_, done) => (done === " " ? "☐ " : "☑ "));
      } else break;
      kept = this.#stack.length;
    }
    if (!rest.trim()) return;
    const fence = /^( *)(`{3,}|~{3,})\s*([^`]*)$/.exec(rest);
    const heading = /^ {0,3}(#{1,6})(?: +|$)/.exec(rest);
    const rule = RULE.test(rest);
    const formula = whole ? beginsMath(rest) : "";
    if (fence || heading || rule || formula) {
      this.#closeTo(this.#stack[kept - 1].type === "list" ? kept - 1 : kept);
      if (fence) this.#fence(fence);
      else if (formula) this.#formula(formula, rest);
      else if (rule) this.#box().append(element("hr"));
      else if (heading) {
        const el = element(`h${Math.min(6, heading[1].length + 2)}`);
        this.#box().append(el);
        this.#leaf = { type: "text", el, inline: new Inline(el), source: null };
        this.#leaf.inline.add(rest.slice(heading[0].length));
        if (whole) this.#close();
      }
      return;
    }
    // A paragraph goes on even where its quote mark or indent is missing.
    // A bar at its start may begin a table, which models put right under their words.
    if (this.#leaf?.type === "text" && this.#leaf.el.localName === "p" && rest.trimStart()[0] !== "|") {
      this.#leaf.inline.add("\n" + rest.trimStart());
      this.#leaf.source = null;
      return;
    }
    this.#closeTo(this.#stack[kept - 1].type === "list" ? kept - 1 : kept);
    const el = element("p");
    this.#box().append(el);
    this.#leaf = { type: "text", el, inline: new Inline(el), source: rest };
    this.#leaf.inline.add(rest.trimStart());
  }

  /**
   * Says whether a list may begin or go on here. Within a paragraph only a bullet or a 1 begins one.
   *
   * @param {string} mark
   * @param {number} kept
   */
  #mayList(mark, kept) {
    const inParagraph = this.#leaf?.type === "text" && kept === this.#stack.length;
    return !inParagraph || /^([-*+]|1[.)])$/.test(mark);
  }

  /** @param {RegExpExecArray} mark indent, marker and space */
  #item([all, indent, marker]) {
    const kind = marker.slice(-1);
    let list = this.#stack[this.#stack.length - 1];
    if (list.type === "list" && list.mark !== kind) {
      this.#stack.pop();
      list = this.#stack[this.#stack.length - 1];
    }
    if (list.type !== "list") {
      const ordered = /\d/.test(marker);
      list = this.#push("list", ordered ? "ol" : "ul", kind);
      if (ordered && parseInt(marker) !== 1) list.el.setAttribute("start", String(parseInt(marker)));
    }
    const item = this.#push("item", "li");
    item.indent = indent.length;
    item.width = all.trimEnd().length + 1;
  }

  /** @param {RegExpExecArray} fence */
  #fence([, indent, mark, info]) {
    const name = info.trim().split(/\s/)[0];
    const figure = element("figure");
    const caption = element("figcaption");
    const label = element("span");
    const button = element("button");
    const pre = element("pre");
    const code = element("code");
    label.append(name || "text");
    button.append(this.#labels.copy);
    button.setAttribute("type", "button");
    button.setAttribute("class", "copy-code");
    button.setAttribute("aria-label", name ? `${this.#labels.copyCode} (${name})` : this.#labels.copyCode);
    figure.setAttribute("class", "code");
    pre.setAttribute("tabindex", "0");
    caption.append(label, button);
    pre.append(code);
    figure.append(caption, pre);
    this.#box().append(figure);
    const highlighter = Highlighter.of(name);
    this.#leaf = { type: "code", el: code, fence: mark, indent: indent.length, lines: 0, highlighter, line: "", plain: [] };
  }

  /** Opens a formula of its own with its first line. @param {string} mark @param {string} line */
  #formula(mark, line) {
    const el = element("div");
    el.setAttribute("class", "math");
    el.setAttribute("tabindex", "0");
    el.append(line.trim());
    this.#box().append(el);
    const text = line.trim();
    const ended = text.length > mark.length && text.endsWith(MATH[mark]);
    this.#leaf = ended ? null : { type: "math", el, end: MATH[mark] };
  }

  /** @param {MathLeaf} leaf @param {string} line */
  #math(leaf, line) {
    leaf.el.append(`\n${line.trimEnd()}`);
    if (line.trimEnd().endsWith(leaf.end)) this.#leaf = null;
  }

  /** @param {CodeLeaf} leaf @param {string} line @param {boolean} whole */
  #code(leaf, line, whole) {
    const fence = line.trim();
    if (whole && fence.startsWith(leaf.fence) && fence === leaf.fence[0].repeat(fence.length)) {
      this.#leaf = null;
      return;
    }
    const text = line.slice(Math.min(leaf.indent, line.search(/\S|$/)));
    if (leaf.lines) leaf.el.append("\n");
    leaf.lines += 1;
    if (leaf.lines % GROUP === 0) leaf.el = group(leaf.el);
    grow(leaf, text);
  }

  /**
   * Adds a row to the open table, or makes the open one-line paragraph the head of a table.
   *
   * @param {string} rest
   * @param {boolean} inside
   */
  #tableRow(rest, inside) {
    const leaf = this.#leaf;
    if (!inside || !leaf) return false;
    if (leaf.type === "table") {
      if (/^ {0,3}(>|#{1,6} |```|~~~|[-*+] )/.test(rest)) return false;
      leaf.el.append(row("td", cells(rest), leaf.aligns));
      return true;
    }
    if (leaf.type !== "text" || !leaf.source?.includes("|")) return false;
    if (!/^[\s|:-]*$/.test(rest) || !rest.includes("-")) return false;
    const head = cells(leaf.source);
    const aligns = cells(rest).map((cell) =>
      cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left",
    );
    if (head.length !== aligns.length) return false;
    const frame = element("div");
    const table = element("table");
    const thead = element("thead");
    const tbody = element("tbody");
    frame.setAttribute("class", "table");
    table.setAttribute("dir", "auto");
    frame.setAttribute("tabindex", "0");
    thead.append(row("th", head, aligns));
    table.append(thead, tbody);
    frame.append(table);
    leaf.el.replaceWith(frame);
    this.#leaf = { type: "table", el: tbody, aligns };
    return true;
  }

  #box() {
    return this.#stack[this.#stack.length - 1].el;
  }

  /** @param {import("./types.js").Container["type"]} type @param {string} name */
  #push(type, name, mark = "") {
    const box = { type, el: element(name), indent: 0, width: 0, mark };
    box.el.setAttribute("dir", "auto");
    this.#box().append(box.el);
    this.#stack.push(box);
    return box;
  }

  #close() {
    if (this.#leaf?.type === "text") this.#leaf.inline.draw(true);
    if (this.#leaf?.type === "code") highlight(this.#leaf);
    this.#leaf = null;
  }

  /** @param {number} depth */
  #closeTo(depth) {
    this.#close();
    this.#stack.length = depth;
  }
}

/**
 * Adds to the line of code that arrives. It stands plain until it is whole.
 *
 * @param {CodeLeaf} leaf
 * @param {string} text
 */
function grow(leaf, text) {
  if (!text) return;
  const node = document.createTextNode(text);
  leaf.el.append(node);
  if (!leaf.highlighter) return;
  leaf.line += text;
  leaf.plain.push(node);
}

/** Begins a block of its own for the next lines of code, and returns it. @param {Element} el the block before */
function group(el) {
  const lines = element("span");
  lines.setAttribute("class", "lines");
  (el.localName === "code" ? el : /** @type {Element} */ (el.parentNode)).append(lines);
  return lines;
}

/** Colours the line that is whole now. @param {CodeLeaf} leaf */
function highlight(leaf) {
  if (!leaf.highlighter || !leaf.line) return;
  for (const node of leaf.plain) leaf.el.removeChild(node);
  for (const [kind, text] of leaf.highlighter.line(leaf.line)) {
    const node = kind ? element("span") : document.createTextNode(text);
    if (kind) {
      const span = /** @type {Element} */ (node);
      span.setAttribute("class", kind);
      span.append(text);
    }
    leaf.el.append(node);
  }
  leaf.line = "";
  leaf.plain = [];
}

/** Returns the mark with which a formula of its own begins, or "". @param {string} line */
function beginsMath(line) {
  const text = line.trim();
  const mark = text.slice(0, 2);
  if (!(mark in MATH)) return "";
  // `\[a](b)` is a link that is escaped.
  if (/^\\\[[^\]]*\]\(/.test(text)) return "";
  // Words after the formula make it a part of a paragraph.
  const end = text.indexOf(MATH[mark], 2);
  return end < 0 || end === text.length - 2 ? mark : "";
}

/** @param {"td" | "th"} name @param {string[]} texts @param {string[]} aligns */
function row(name, texts, aligns) {
  const tr = element("tr");
  aligns.forEach((align, i) => {
    const cell = element(name);
    cell.setAttribute("class", align);
    if (name === "th") cell.setAttribute("scope", "col");
    const inline = new Inline(cell);
    inline.add(texts[i] ?? "");
    inline.draw(true);
    tr.append(cell);
  });
  return tr;
}

/** The cells of a table's line; a bar in code or after a backslash separates nothing. @param {string} line */
function cells(line) {
  const found = [""];
  for (const piece of line.trim().match(/\\.|`[^`]*`|[^\\`|]+|[^]/g) ?? []) {
    if (piece === "|") found.push("");
    else found[found.length - 1] += piece.replaceAll("\\|", "|");
  }
  if (!found[0].trim()) found.shift();
  if (found.length > 1 && !found[found.length - 1].trim()) found.pop();
  return found.map((cell) => cell.trim());
}
