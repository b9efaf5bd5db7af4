// @ts-check
/**
 * Draws Markdown while it arrives, at a cost that grows with its length alone.
 *
 * Each line goes once through a stack of open blocks and lands in the innermost one; what stands is
 * never drawn again. Of a paragraph only the last bit is, where an emphasis or a link may still be
 * open. Nodes are made by createElement and text nodes only, so HTML in the text is just text.
 *
 * What it does not do: setext headings, indented code, reference links, images (drawn as links),
 * HTML entities, raw HTML other than `<br>`, and an emphasis or link of more than SPAN characters.
 * Source: CommonMark, and GitHub Flavored Markdown for tables, task lists, strikethrough and autolinks.
 */

/** How far an emphasis or a link may reach. It bounds what is drawn again as text arrives. */
const SPAN = 1000;
const MAX_NESTING = 20;
/** How deep the label of a link counts, in which there are no further links and few other spans. */
const IN_LINK = MAX_NESTING - 1;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const SAFE_LINK = /^(https?:\/\/|mailto:)/i;

/** @typedef {{ type: "root" | "quote" | "list" | "item", el: Element, indent: number, width: number, mark: string }} Container */
/** @typedef {{ type: "text", el: Element, inline: Inline, source: string | null }} TextLeaf */
/** @typedef {{ type: "code", el: Element, fence: string, indent: number, begun: boolean }} CodeLeaf */
/** @typedef {{ type: "table", el: Element, aligns: string[] }} TableLeaf */

export class Markdown {
  /** @type {Container[]} */
  #stack;
  /** @type {TextLeaf | CodeLeaf | TableLeaf | null} */
  #leaf = null;
  /** The line that is arriving, as far as it is not yet drawn. */
  #line = "";
  /** A carriage return at the end of what came, which may be half of a line end. */
  #half = "";
  /** Whether the line's block is known, so that its text can be drawn before the line ends. */
  #open = false;
  #copyLabel;

  /**
   * @param {Element} root
   * @param {string} copyLabel the words on a code block's button, which has the class `copy-code`
   */
  constructor(root, copyLabel = "Copy") {
    this.#stack = [{ type: "root", el: root, indent: 0, width: 0, mark: "" }];
    this.#copyLabel = copyLabel;
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
    if (this.#leaf?.type === "table") return true;
    if (this.#leaf?.type === "code" && this.#stack.length === 1) return /^[\s>`~]*$/.test(line);
    return (
      /^[\s>#*+_`~|:.)\d-]*$/.test(line) ||
      /^(\s|>|[-*+]\s|\d+[.)]\s)*(\||```|~~~|\[[ xX]?\]? ?$)/.test(line)
    );
  }

  /** Adds text to the line whose block is known. @param {string} text */
  #flow(text) {
    const leaf = this.#leaf;
    if (!text || !leaf) return;
    if (leaf.type === "text") {
      leaf.inline.add(text);
      if (leaf.source !== null) leaf.source = leaf.source.length < SPAN ? leaf.source + text : null;
    } else leaf.el.append(text);
  }

  /**
   * Finds the block of a line and puts the line's text there.
   *
   * @param {string} line
   * @param {boolean} whole
   */
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
    if (fence || heading || rule) {
      this.#closeTo(this.#stack[kept - 1].type === "list" ? kept - 1 : kept);
      if (fence) this.#fence(fence);
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
    button.append(this.#copyLabel);
    button.setAttribute("type", "button");
    button.setAttribute("class", "copy-code");
    figure.setAttribute("class", "code");
    pre.setAttribute("tabindex", "0");
    caption.append(label, button);
    pre.append(code);
    figure.append(caption, pre);
    this.#box().append(figure);
    this.#leaf = { type: "code", el: code, fence: mark, indent: indent.length, begun: false };
  }

  /**
   * @param {CodeLeaf} leaf
   * @param {string} line
   * @param {boolean} whole
   */
  #code(leaf, line, whole) {
    const fence = line.trim();
    if (whole && fence.startsWith(leaf.fence) && fence === leaf.fence[0].repeat(fence.length)) {
      this.#leaf = null;
      return;
    }
    const text = line.slice(Math.min(leaf.indent, line.search(/\S|$/)));
    leaf.el.append(leaf.begun ? "\n" + text : text);
    leaf.begun = true;
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

  /**
   * @param {Container["type"]} type
   * @param {string} name
   */
  #push(type, name, mark = "") {
    const box = { type, el: element(name), indent: 0, width: 0, mark };
    box.el.setAttribute("dir", "auto");
    this.#box().append(box.el);
    this.#stack.push(box);
    return box;
  }

  #close() {
    if (this.#leaf?.type === "text") this.#leaf.inline.draw(true);
    this.#leaf = null;
  }

  /** @param {number} depth */
  #closeTo(depth) {
    this.#close();
    this.#stack.length = depth;
  }
}

/** The text of one paragraph, heading or cell: what is settled stands, the rest is drawn anew. */
class Inline {
  #text = "";
  #before = "";
  #drawn = "";
  /** @type {Node[]} */
  #unsettled = [];

  /** @param {Element} el */
  constructor(el) {
    this.el = el;
  }

  /** @param {string} text */
  add(text) {
    this.#text += text;
  }

  /** @param {boolean} final */
  draw(final) {
    if (!final && this.#text === this.#drawn) return;
    for (const node of this.#unsettled) this.el.removeChild(node);
    const { spans, settled } = parse(this.#text, this.#before, final, 0);
    this.#unsettled = [];
    for (const span of spans) {
      this.el.append(span.node);
      if (span.end > settled) this.#unsettled.push(span.node);
    }
    if (settled) this.#before = this.#text[settled - 1];
    this.#text = this.#drawn = this.#text.slice(settled);
  }
}

/** @typedef {{ end: number, node: Node, open?: boolean }} Span `open`: later text may still undo it */

const SPECIAL = /[\\`*_~[!<\n]|https?:\/\//g;
const ESCAPED = /[!-/:-@[-`{-~]/;
const NO_URL = "\\s<>\"`「」『』【】（）、。，．！？：；";
const URL_CHARS = new RegExp(`^[^${NO_URL}]*$`);
const BARE_URL = new RegExp(`^https?://[^${NO_URL}]*[^${NO_URL}.,;:!?'*_~)\\]}]`);
const CODE = /^(`{1,3})(?!`)([^]*?[^`])\1(?!`)/;
/** What may end an emphasis, or hide its end. @type {Record<string, RegExp>} */
const ENDS = { "*": /[*`]/g, _: /[_`]/g, "~": /[~`]/g };
const BRACKETS = String.raw`^!?\[((?:[^[\]\\]|\\.|\[[^[\]]*\])*)\]`;
const LINK = new RegExp(
  BRACKETS + String.raw`\(\s*<?([^\s<>()]*(?:\([^\s()]*\)[^\s<>()]*)*)>?(?:\s+"[^"]*")?\s*\)`,
);
const NO_LINK = new RegExp(BRACKETS + String.raw`[^(]`);

/**
 * Parses inline Markdown. `settled` is how much of it no later text can change.
 *
 * @param {string} text
 * @param {string} before the character that stands before the text
 * @param {boolean} final whether no more text comes
 * @param {number} depth
 * @returns {{ spans: Span[], settled: number }}
 */
function parse(text, before, final, depth) {
  /** @type {Span[]} */
  const spans = [];
  let settled = Infinity;
  let plain = "";
  const flush = (/** @type {number} */ end) => {
    if (plain) spans.push({ end, node: document.createTextNode(plain) });
    plain = "";
  };
  for (let at = 0; at < text.length; ) {
    SPECIAL.lastIndex = at;
    const next = SPECIAL.exec(text)?.index ?? text.length;
    plain += text.slice(at, next);
    at = next;
    if (at === text.length) break;
    const last = at ? text[at - 1] : before;
    const span = depth < MAX_NESTING ? match(text, at, last, depth) : null;
    const end = span ? span.end : at + 1;
    const grows = span
      ? text[at] !== "\n" &&
        (end === text.length || (text[at] === "h" && URL_CHARS.test(text.slice(end))) || (span.open && text.length - at < SPAN))
      : text.length - at < SPAN && mayOpen(text, at, last);
    if (span || grows) flush(at);
    if (grows) settled = Math.min(settled, at);
    if (span) spans.push(span);
    else plain += text[at];
    at = end;
  }
  if (final) settled = text.length;
  else if (settled === Infinity) {
    // The last word may become a link, the last half of a pair a character, two spaces a break.
    const tail = /(?:[\w:/.\uD800-\uDBFF]+| +)$/.exec(text.slice(-SPAN))?.[0].length ?? 0;
    const kept = Math.min(tail, plain.length);
    settled = text.length - kept;
    const open = plain.slice(plain.length - kept);
    plain = plain.slice(0, plain.length - kept);
    flush(settled);
    plain = open;
  }
  flush(text.length);
  return { spans, settled };
}

/**
 * Says whether later text could still make a span of what begins at `at` and is none so far.
 *
 * @param {string} text
 * @param {number} at
 * @param {string} before
 */
function mayOpen(text, at, before) {
  const ahead = text.slice(at, at + SPAN);
  switch (text[at]) {
    case "`":
      return before !== "`";
    case "\\":
      return ahead.length === 1;
    case "*":
    case "_":
    case "~":
      return opens(ahead, before) || /^([*_~])\1*$/.test(ahead);
    case "!":
      return ahead.length === 1 || (ahead[1] === "[" && !NO_LINK.test(ahead));
    case "[":
      return !NO_LINK.test(ahead);
    case "<":
      return /^<(br?\s*\/?|[hm][^\s<>]*)?$/i.test(ahead);
    default:
      return URL_CHARS.test(ahead);
  }
}

/**
 * @param {string} text
 * @param {number} at
 * @param {string} before
 * @param {number} depth
 * @returns {Span | null}
 */
function match(text, at, before, depth) {
  const ahead = text.slice(at, at + SPAN);
  switch (text[at]) {
    case "\\":
      if (ahead[1] === "\n") return { end: at + 2, node: element("br") };
      if (!ESCAPED.test(ahead[1] ?? "")) return null;
      return { end: at + 2, node: document.createTextNode(ahead[1]) };
    case "\n":
      return / {2}$/.test(text.slice(Math.max(0, at - 2), at)) ? { end: at + 1, node: element("br") } : null;
    case "`": {
      const code = before === "`" ? null : CODE.exec(ahead);
      if (!code) return null;
      const node = element("code");
      node.append(code[2].replace(/\n/g, " ").replace(/^ (.*\S.*) $/, "$1"));
      return { end: at + code[0].length, node };
    }
    case "*":
    case "_":
    case "~":
      return opens(ahead, before) ? emphasis(ahead, at, depth) : null;
    case "!":
    case "[": {
      const link = LINK.exec(ahead);
      if (!link || !SAFE_LINK.test(link[2])) return null;
      return { end: at + link[0].length, node: anchor(link[2], link[1] || link[2], depth) };
    }
    case "<": {
      const br = /^<br\s*\/?>/i.exec(ahead);
      if (br) return { end: at + br[0].length, node: element("br") };
      const link = /^<((?:https?:\/\/|mailto:)[^\s<>]+)>/i.exec(ahead);
      return link && { end: at + link[0].length, node: anchor(link[1], link[1], depth) };
    }
    default: {
      const link = BARE_URL.exec(ahead);
      if (!link || /\w/.test(before)) return null;
      // A closing bracket belongs to the link where the link has its opening one.
      const url = link[0].includes("(") && ahead[link[0].length] === ")" ? `${link[0]})` : link[0];
      return { end: at + url.length, node: anchor(url, url, depth) };
    }
  }
}

/**
 * Says whether a run of `*`, `_` or `~` may open an emphasis. Within a word only `**` and `~~` do,
 * so that `snake_case` and `2*3*4` stay what they are.
 *
 * @param {string} ahead
 * @param {string} before
 */
function opens(ahead, before) {
  const run = /^(\*+|_+|~+)/.exec(ahead)?.[0].length ?? 0;
  if (run > 3 || before === ahead[0] || (ahead[0] === "~" && run !== 2)) return false;
  if (/^\s?$/.test(ahead[run] ?? "")) return false;
  return !((ahead[0] === "_" || run === 1) && /\w/.test(before));
}

/**
 * @param {string} ahead the text from the opening run on
 * @param {number} at
 * @param {number} depth
 * @returns {Span | null}
 */
function emphasis(ahead, at, depth) {
  const sign = ahead[0];
  const run = ahead[1] !== sign ? 1 : ahead[2] !== sign ? 2 : 3;
  let open = false;
  for (let i = run; (i = find(ENDS[sign], ahead, i)) > 0; ) {
    if (ahead[i] === "`") {
      // A code span hides what is in it, and one that is not yet closed may come to.
      const code = ahead[i - 1] === "\\" ? null : CODE.exec(ahead.slice(i));
      open ||= !code;
      i += code ? code[0].length : /** @type {RegExpExecArray} */ (/^`+/.exec(ahead.slice(i)))[0].length;
      continue;
    }
    let end = i + 1;
    while (ahead[end] === sign) end += 1;
    const fits = end - i === run || (end - i === 3 && run < 3);
    const inWord = sign === "_" && /\w/.test(ahead[end] ?? "");
    if (fits && !inWord && !/[\s\\]/.test(ahead[i - 1])) {
      const node = element(sign === "~" ? "del" : run === 1 ? "em" : "strong");
      const inmost = run === 3 ? element("em") : node;
      if (inmost !== node) node.append(inmost);
      for (const span of parse(ahead.slice(run, end - run), sign, true, depth + 1).spans)
        inmost.append(span.node);
      return { end: at + end, node, open };
    }
    i = end;
  }
  return null;
}

/**
 * @param {RegExp} pattern with the flag g
 * @param {string} text
 * @param {number} from
 */
function find(pattern, text, from) {
  pattern.lastIndex = from;
  return pattern.exec(text)?.index ?? -1;
}

/**
 * @param {string} url
 * @param {string} label
 * @param {number} depth
 */
function anchor(url, label, depth) {
  const inLink = depth >= IN_LINK;
  const link = element(inLink ? "span" : "a");
  if (!inLink) {
    link.setAttribute("href", url);
    link.setAttribute("target", "_blank");
    link.setAttribute("rel", "noopener noreferrer");
  }
  if (label === url) link.append(label);
  else for (const span of parse(label, "", true, IN_LINK).spans) link.append(span.node);
  return link;
}

/**
 * @param {"td" | "th"} name
 * @param {string[]} texts
 * @param {string[]} aligns
 */
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

/** @param {string} name */
function element(name) {
  return document.createElement(name);
}
