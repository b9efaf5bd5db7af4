// Run with: node --test tests/js/
import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { Markdown } from "../../static/markdown.js";

/** As much of a document as the renderer uses; it has no innerHTML to be misused. */
class TextNode {
  constructor(data) {
    this.data = data;
  }
  get html() {
    return this.data.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  }
}
class ElementNode {
  children = [];
  attributes = {};
  parentNode = null;
  constructor(name) {
    this.localName = name;
    made += 1;
  }
  get firstChild() {
    return this.children[0] ?? null;
  }
  append(...nodes) {
    for (const node of nodes) {
      const child = typeof node === "string" ? new TextNode(node) : node;
      child.parentNode = this;
      this.children.push(child);
    }
  }
  removeChild(node) {
    // What is drawn anew stands at the end, so this looks there first.
    const at = this.children.lastIndexOf(node);
    assert.ok(at >= 0, "removes what it has");
    this.children.splice(at, 1);
  }
  replaceWith(node) {
    node.parentNode = this.parentNode;
    this.parentNode.children[this.parentNode.children.indexOf(this)] = node;
  }
  setAttribute(name, value) {
    this.attributes[name] = value;
  }
  get html() {
    const inner = this.children.map((child) => child.html).join("");
    const href = this.attributes.href ? ` href="${this.attributes.href}"` : "";
    const start = this.attributes.start ? ` start="${this.attributes.start}"` : "";
    const side = ["center", "right", "math", "image", ..."csnkf"].includes(this.attributes.class) ? ` ${this.attributes.class}` : "";
    return ["br", "hr"].includes(this.localName)
      ? `<${this.localName}>`
      : `<${this.localName}${href}${start}${side}>${inner}</${this.localName}>`;
  }
}
let made = 0;
globalThis.document = {
  createElement: (name) => new ElementNode(name),
  createTextNode: (data) => new TextNode(data),
};

function render(pieces) {
  const root = new ElementNode("div");
  const markdown = new Markdown(root);
  for (const piece of pieces) markdown.write(piece);
  markdown.end();
  return root.children.map((child) => child.html).join("");
}
const figure = (label, code) =>
  `<figure><figcaption><span>${label}</span><button>Copy</button></figcaption><pre><code>${code}</code></pre></figure>`;

const TABLE = [
  ["Hello\nworld\n\nAgain", "<p>Hello\nworld</p><p>Again</p>"],
  ["a  \nb\\\nc<br>d", "<p>a  <br>b<br>c<br>d</p>"],
  ["# One\n### Three\ntext", "<h3>One</h3><h5>Three</h5><p>text</p>"],
  ["#no heading", "<p>#no heading</p>"],
  ["*a* _b_ **c** __d__ ***e*** ~~f~~ `g`", "<p><em>a</em> <em>b</em> <strong>c</strong> <strong>d</strong> <strong><em>e</em></strong> <del>f</del> <code>g</code></p>"],
  ["**a *b* c** and *d **e** f*", "<p><strong>a <em>b</em> c</strong> and <em>d <strong>e</strong> f</em></p>"],
  ["日本語の**「重要」**です", "<p>日本語の<strong>「重要」</strong>です</p>"],
  ["2*3*4 snake_case_name a * b * c **open", "<p>2*3*4 snake_case_name a * b * c **open</p>"],
  ["``a`b`` \\*c\\* `**d**`", "<p><code>a`b</code> *c* <code>**d**</code></p>"],
  ["[a *b*](https://e.org/x_(y) \"t\") <https://e.org> https://e.org/a_b. (https://e.org/c(d))", '<p><a href="https://e.org/x_(y)">a <em>b</em></a> <a href="https://e.org">https://e.org</a> <a href="https://e.org/a_b">https://e.org/a_b</a>. (<a href="https://e.org/c(d)">https://e.org/c(d)</a>)</p>'],
  ["[a](javascript:alert(1)) [b](data:text/html,x) [c](/d) ![e](mailto:f@e.org)", '<p>[a](javascript:alert(1)) [b](data:text/html,x) [c](/d) <a href="mailto:f@e.org" image>e</a></p>'],
  ["<img src=x onerror=alert(1)>\n<script>x</script>", "<p>&lt;img src=x onerror=alert(1)>\n&lt;script>x&lt;/script></p>"],
  ["- a\n- b\n  - c\n    d\n- e\n\nf", "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c\nd</p></li></ul></li><li><p>e</p></li></ul><p>f</p>"],
  ["3. a\n4. b\n\n   more\n- c", '<ol start="3"><li><p>a</p></li><li><p>b</p><p>more</p></li></ol><ul><li><p>c</p></li></ul>'],
  ["1. a\n  - b\n2. c", "<ol><li><p>a</p><ul><li><p>b</p></li></ul></li><li><p>c</p></li></ol>"],
  ["In\n2024. it was\n- a", "<p>In\n2024. it was</p><ul><li><p>a</p></li></ul>"],
  ["> a\nb\n> > c\n\nd", "<blockquote><p>a\nb</p><blockquote><p>c</p></blockquote></blockquote><p>d</p>"],
  ["a\n\n---\n* * *\nb", "<p>a</p><hr><hr><p>b</p>"],
  ["```python\na = `1`\n\n\tb <i>\n```\nafter", figure("python", "a = `<span n>1</span>`\n\n\tb &lt;i>") + "<p>after</p>"],
  ["~~~\n```\n~~~", figure("text", "```")],
  ["- x\n  ```sh\n  ls\n    -l\n  ```\n- y", `<ul><li><p>x</p>${figure("sh", "ls\n  -l")}</li><li><p>y</p></li></ul>`],
  ["```\nnot closed", figure("text", "not closed")],
  ["| a | b |\n|:-:|--:|\n| `x\\|y` | **z** |\n| 1 |\n\nend", "<div><table><thead><tr><th center>a</th><th right>b</th></tr></thead><tbody><tr><td center><code>x|y</code></td><td right><strong>z</strong></td></tr><tr><td center>1</td><td right></td></tr></tbody></table></div><p>end</p>"],
  ["a | b\n--|--\n1 | 2", "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table></div>"],
  ["a | b\nno table", "<p>a | b\nno table</p>"],
  ["", ""],
  ["**The `**kwargs` parameter** and **`*args` and `**kwargs`** *a `*` b*", "<p><strong>The <code>**kwargs</code> parameter</strong> and <strong><code>*args</code> and <code>**kwargs</code></strong> <em>a <code>*</code> b</em></p>"],
  ["**a ` b**\n\n*c \\` d*", "<p><strong>a ` b</strong></p><p><em>c ` d</em></p>"],
  ["[https://e.org](https://e.org) [![b](https://e.org/b)](https://e.org) [see https://e.org/c](https://e.org)", '<p><a href="https://e.org">https://e.org</a> <a href="https://e.org"><span image>b</span></a> <a href="https://e.org">see <span>https://e.org/c</span></a></p>'],
  ["https://e.org/a！と", '<p><a href="https://e.org/a">https://e.org/a</a>！と</p>'],
  ["a\r\nb\r\n\r\n- c\r\n", "<p>a\nb</p><ul><li><p>c</p></li></ul>"],
  ["-", "<ul><li></li></ul>"],
  ["- [x] a\n- [ ] b\n- [y] c\n- [x]", "<ul><li><p>☑ a</p></li><li><p>☐ b</p></li><li><p>[y] c</p></li><li><p>[x]</p></li></ul>"],
  ["[x] a", "<p>[x] a</p>"],
  ["\\(a^2\\) and \\[x_1\\] and $E = mc^2$ and $$e^{-x^2}\\,dx$$.", "<p><code math>\\(a^2\\)</code> and <code math>\\[x_1\\]</code> and <code math>$E = mc^2$</code> and <code math>$$e^{-x^2}\\,dx$$</code>.</p>"],
  ["It costs $5 and $6, or US$7-$8 and $ 9$.", "<p>It costs $5 and $6, or US$7-$8 and $ 9$.</p>"],
  ["**So** $a_1 * b_2 * c$ *is*", "<p><strong>So</strong> <code math>$a_1 * b_2 * c$</code> <em>is</em></p>"],
  ["See:\n$$\n\\int_0^1 *x* \\,dx\n$$\nso\n\\[\ny\\{1\\}\n\\]", "<p>See:</p><div math>$$\n\\int_0^1 *x* \\,dx\n$$</div><p>so</p><div math>\\[\ny\\{1\\}\n\\]</div>"],
  ["$$x$$\n\n$$y$$ is inline\n\n\\[not closed\n\nafter", "<div math>$$x$$</div><p><code math>$$y$$</code> is inline</p><div math>\\[not closed</div><p>after</p>"],
  ["\\[a](https://e.org) \\(open \\{ \\, \\$5", '<p>[a](<a href="https://e.org">https://e.org</a>) \\(open \\{ \\, $5</p>'],
  ["- $$\n  x\n  $$\n- b", "<ul><li><div math>$$\nx\n$$</div></li><li><p>b</p></li></ul>"],
  ["```py\ndef f(x):  # it's\n  return \"a\" + 'b'\n\"\"\"two\nlines\"\"\" + 1_000\n```", figure("py", "<span k>def</span> <span f>f</span>(x):  <span c># it's</span>\n  <span k>return</span> <span s>\"a\"</span> + <span s>'b'</span>\n<span s>\"\"\"two</span>\n<span s>lines\"\"\"</span> + <span n>1_000</span>")],
  ["```js\nlet a = `x\n${b}`; /* c\nd */ f(0xff) // e\n```", figure("js", "<span k>let</span> a = <span s>`x</span>\n<span s>${b}`</span>; <span c>/* c</span>\n<span c>d */</span> <span f>f</span>(<span n>0xff</span>) <span c>// e</span>")],
  ["```sql\nSelect 'it' -- why\n```", figure("sql", "<span k>Select</span> <span s>'it'</span> <span c>-- why</span>")],
  ["```sh\ncurl http://e.org#a don't # c\n```", figure("sh", "curl http://e.org#a don't <span c># c</span>")],
  ["```unheard-of\nlet a = 1\n```", figure("unheard-of", "let a = 1")],
  ["Words:\n|a|b|\n|-|-|\n|1|2|", "<p>Words:</p><div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table></div>"],
];

describe("Markdown", () => {
  for (const [text, expected] of TABLE) {
    test(JSON.stringify(text), () => {
      assert.equal(render([text]), expected, "written whole");
      assert.equal(render(Array.from(text)), expected, "by characters");
      for (let cut = 1; cut < text.length; cut++)
        assert.equal(render([text.slice(0, cut), text.slice(cut)]), expected, `cut at ${cut}`);
    });
  }

  test("every cut of a text full of marks draws the same", () => {
    let seed = 7;
    const random = (n) => (seed = (seed * 48271) % 2147483647) % n;
    const marks = ["*", "**", "_", "`", "``", "[", "](https://e.org)", "<", "http", "://", "\n", "\n\n", "> ", "- ", "1. ", "# ", "|", "---", "```", " ", "a", "b c", "\\", "~~", "!", "$", "$$", "\\(", "\\)", "\\[", "\\]", "```js\n", "\"", "/*", "let ", "日本", "😀", "  "];
    for (let round = 0; round < 3000; round++) {
      const text = Array.from({ length: 1 + random(24) }, () => marks[random(marks.length)]).join("");
      const whole = render([text]);
      assert.equal(render(Array.from(text)), whole, JSON.stringify(text));
      const cut = random(text.length);
      assert.equal(render([text.slice(0, cut), text.slice(cut)]), whole, JSON.stringify(text));
    }
  });

  test("long code stands in groups of lines, and its text is what the model wrote", () => {
    const lines = Array.from({ length: 120 }, (_, n) => `line${n}`);
    const html = render([`\`\`\`text\n${lines.join("\n")}\n\`\`\``]);
    const groups = html.match(/<code>.*<\/code>/s)[0].split(/<span>/);
    assert.deepEqual(groups.map((group) => group.match(/line/g).length), [49, 50, 21]);
    assert.equal(html.match(/<code>(.*)<\/code>/s)[1].replace(/<[^>]*>/g, ""), lines.join("\n"));
  });

  test("what stands is not drawn again", () => {
    const root = new ElementNode("div");
    const markdown = new Markdown(root);
    markdown.write("# Title\n\nA **bold** word, and some more text after it.\n\nSecond");
    const stands = [root.children[0], root.children[1], root.children[1].children[1]];
    markdown.write(" paragraph with *emphasis*\n\n- item");
    markdown.end();
    assert.deepEqual(stands.map((node) => node.localName), ["h3", "p", "strong"]);
    assert.ok(stands[0] === root.children[0] && stands[1] === root.children[1] && stands[2] === root.children[1].children[1]);
  });

  test("the nodes made grow with the length alone, open marks and one long paragraph included", () => {
    const cost = (n, word) => {
      made = 0;
      render(Array.from({ length: n }, () => word));
      return made;
    };
    for (const word of ["**b** `c` word ", "costs $5 and ", "```js\n", "- item\n", "| a | b |\n", "code\n"]) {
      const small = cost(500, word);
      assert.ok(cost(4000, word) <= small * 9, word);
    }
  });

  test("attacks on the parser end soon", () => {
    const start = performance.now();
    for (const text of ["> ".repeat(5000), "- ".repeat(5000), "*a ".repeat(5000), "[".repeat(10000), "`".repeat(9999), "**_".repeat(5000), "<".repeat(9999), "|".repeat(9999), "[a](".repeat(3000), "a**b".repeat(3000), "$a".repeat(5000), "\\(".repeat(5000), "$$ a\n".repeat(3000), "```js\n" + "\"'`".repeat(5000), "```js\n" + "/*\n".repeat(5000), "\\".repeat(9999)])
      render([text + "x", text]);
    assert.ok(performance.now() - start < 5000);
  });
});
