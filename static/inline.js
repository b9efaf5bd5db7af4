// @ts-check
/**
 * The text of one paragraph, heading or cell: emphasis, code, links, formulas.
 *
 * LaTeX between `\(…\)`, `\[…\]`, `$$…$$` and `$…$` stands exactly as the model wrote it.
 * Source: CommonMark, "Inlines"; for `$…$` Pandoc's rule, so that prices stay prices.
 */

/** How far a span may reach. It bounds what is drawn again as text arrives. */
export const SPAN = 1000;
export const MAX_NESTING = 20;
/** How deep the label of a link counts, in which there are no further links and few other spans. */
const IN_LINK = MAX_NESTING - 1;
const SAFE_LINK = /^(https?:\/\/|mailto:)/i;

/** The text of one paragraph, heading or cell: what is settled stands, the rest is drawn anew. */
export class Inline {
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

/** @typedef {import("./types.js").Span} Span */

const SPECIAL = /[\\`*_~[!<$\n]|https?:\/\//g;
// Of the marks that CommonMark escapes, those that mean something in Markdown. The others follow a
// backslash in LaTeX, as in `\,` and `\{`.
const ESCAPED = /[\\`*_[\]#+\-.!|~<>$]/;
const MATH = /^(?:\\\([^]*?\\\)|\\\[[^]*?\\\]|\$\$[^$]+\$\$|\$(?![\s$])(?:[^$\\\n]|\\.)*?(?<![\s\\])\$(?!\d))/;
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
      return ahead.length === 1 || /^[([]/.test(ahead[1]);
    case "$":
      return !/^\$\s/.test(ahead) && before !== "$";
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
    case "$":
      return before === "$" ? null : math(ahead, at);
    case "\\":
      if (ahead[1] === "(" || ahead[1] === "[") {
        const formula = math(ahead, at);
        if (formula || ahead[1] === "(") return formula;
      }
      if (ahead[1] === "\n") return { end: at + 2, node: element("br") };
      if (!ESCAPED.test(ahead[1] ?? "")) return null;
      return { end: at + 2, node: document.createTextNode(ahead[1]), open: ahead[1] === "[" };
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
      const label = link[1] || link[2];
      return { end: at + link[0].length, node: anchor(link[2], label, depth, text[at] === "!") };
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
      // A closing bracket belongs to the link if the link has its opening one.
      const url = link[0].includes("(") && ahead[link[0].length] === ")" ? `${link[0]})` : link[0];
      return { end: at + url.length, node: anchor(url, url, depth) };
    }
  }
}

/** @param {string} ahead @param {number} at @returns {Span | null} */
function math(ahead, at) {
  const found = MATH.exec(ahead);
  if (!found) return null;
  const node = element("code");
  node.setAttribute("class", "math");
  node.append(found[0]);
  return { end: at + found[0].length, node };
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

/** @param {RegExp} pattern with the flag g @param {string} text @param {number} from */
function find(pattern, text, from) {
  pattern.lastIndex = from;
  return pattern.exec(text)?.index ?? -1;
}

/**
 * @param {string} url
 * @param {string} label
 * @param {number} depth
 * @param {boolean} [pictured] whether this link does
 */
function anchor(url, label, depth, pictured = false) {
  const inLink = depth >= IN_LINK;
  const link = element(inLink ? "span" : "a");
  if (!inLink) {
    link.setAttribute("href", url);
    link.setAttribute("target", "_blank");
    link.setAttribute("rel", "noopener noreferrer");
  }
  if (pictured) link.setAttribute("class", "image");
  if (label === url) link.append(label);
  else for (const span of parse(label, "", true, IN_LINK).spans) link.append(span.node);
  return link;
}

/** @param {string} name */
export function element(name) {
  return document.createElement(name);
}
