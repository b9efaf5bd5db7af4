// @ts-check
/**
 * Marks comments, strings, numbers, keywords and calls in code, one line at a time.
 *
 * It knows families of languages, not their grammars. A language that it does not know stays plain.
 */

const KEYWORDS = new Set(
  ("abstract and as assert async await bool boolean break case catch char class const continue def default del do done double " +
    "elif else end enum except export extends False false fi final finally float fn for from func function global go if impl " +
    "implements import in int interface is lambda let long match module mut namespace new nil None not null or package pass " +
    "private protected pub public raise return self static string struct super switch then this throw throws trait True true " +
    "try type typeof undefined use using var void while with yield").split(" "),
);
const SQL = new Set(
  ("and as asc begin between by case commit create delete desc distinct drop else end exists from group having in index inner " +
    "insert into is join key left like limit not null offset on or order outer primary right rollback select set table then " +
    "union unique update using values view when where with").split(" "),
);
const VALUES = new Set(["true", "false", "null", "yes", "no"]);
// Longer lines are data rather than code.
const MAX_LINE = 2000;

const QUOTES = String.raw`"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'`;
const NUMBER = String.raw`\b(?:0[xob][\da-f_]+|\d[\d_]*(?:\.\d+)?(?:e[+-]?\d+)?)\b`;
const WORD = String.raw`[A-Za-z_$][\w$]*`;

/** @type {Record<string, import("./types.js").Family>} */
const FAMILIES = {
  "py python": { comment: "#.*", opens: `"""|'''`, closes: { '"""': '"""', "'''": "'''" }, words: KEYWORDS },
  "sh bash zsh shell console ruby rb perl r make makefile dockerfile": { comment: String.raw`(?<!\S)#.*`, words: KEYWORDS },
  "yaml yml toml ini conf env nginx caddy": { comment: String.raw`(?<!\S)[#;].*`, words: VALUES },
  "js javascript jsx mjs ts typescript tsx java kotlin scala go rust rs c h cpp c++ cs csharp swift php dart json jsonc": {
    comment: String.raw`\/\/.*`,
    opens: String.raw`\/\*|\x60`,
    closes: { "/*": "*/", "`": "`" },
    words: KEYWORDS,
  },
  "css scss": { comment: "(?!)", opens: String.raw`\/\*`, closes: { "/*": "*/" }, words: VALUES },
  "html xml svg": { comment: "(?!)", opens: "<!--", closes: { "<!--": "-->" }, words: VALUES },
  "sql lua haskell": { comment: "--.*", words: KEYWORDS },
};

/** @typedef {import("./types.js").Mark} Mark */

export class Highlighter {
  #pattern;
  #closes;
  #words;
  /** What ends the comment or string that goes on over lines. */
  #until = "";
  /** @type {Mark} */
  #kind = "";

  /** @param {import("./types.js").Family} family */
  constructor({ comment, opens = "(?!)", closes = {}, words }) {
    const parts = { c: comment, open: opens, s: QUOTES, n: NUMBER, word: WORD };
    const source = Object.entries(parts).map(([name, pattern]) => `(?<${name}>${pattern})`);
    this.#pattern = new RegExp(source.join("|"), "gi");
    this.#closes = closes;
    this.#words = words;
  }

  /** @param {string} language @returns {Highlighter | null} null for a language that is not known */
  static of(language) {
    const name = language.toLowerCase();
    const family = Object.keys(FAMILIES).find((names) => names.split(" ").includes(name));
    if (!family) return null;
    const known = FAMILIES[family];
    return new Highlighter(name === "sql" ? { ...known, words: SQL } : known);
  }

  /** @param {string} line @returns {[Mark, string][]} the pieces of the line, in order */
  line(line) {
    if (line.length > MAX_LINE) return [["", line]];
    /** @type {[Mark, string][]} */
    const pieces = [];
    const add = (/** @type {Mark} */ kind, /** @type {string} */ text) => {
      const last = pieces.at(-1);
      if (last && last[0] === kind) last[1] += text;
      else if (text) pieces.push([kind, text]);
    };
    let at = 0;
    while (at < line.length) {
      if (this.#until) {
        const end = line.indexOf(this.#until, at);
        const stop = end < 0 ? line.length : end + this.#until.length;
        add(this.#kind, line.slice(at, stop));
        if (end >= 0) this.#until = "";
        at = stop;
        continue;
      }
      this.#pattern.lastIndex = at;
      const found = this.#pattern.exec(line);
      if (!found) break;
      add("", line.slice(at, found.index));
      const { c, open, s, n, word } = found.groups ?? {};
      at = found.index + found[0].length;
      if (open) {
        this.#until = this.#closes[open];
        this.#kind = open === "/*" || open === "<!--" ? "c" : "s";
        add(this.#kind, open);
      } else if (word) {
        const known = this.#words.has(this.#words === SQL ? word.toLowerCase() : word);
        add(known ? "k" : line[at] === "(" ? "f" : "", word);
      } else add(c !== undefined ? "c" : s !== undefined ? "s" : "n", c ?? s ?? n);
    }
    add("", line.slice(at));
    return pieces;
  }
}
