// Run with: node --test tests/js/
import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { EventParser } from "../../static/stream.js";

const encoder = new TextEncoder();
const BOM = "\uFEFF";
const LONG = "x".repeat(2100);

/**
 * Each row: what it stands for, the stream, then [event, data, last event id] of each message.
 * A stream is text, or pieces of text and bytes that are no UTF-8.
 */
const TABLES = {
  "the examples of the standard, Server-sent events": [
    ["Introduction: messages of one and of two lines", "data: This is the first.\n\ndata: This is the second, it\ndata: has two lines.\n\n", [
      ["message", "This is the first.", ""], ["message", "This is the second, it\nhas two lines.", ""]]],
    ["Introduction: named events", "event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n", [
      ["add", "73857293", ""], ["remove", "2153", ""]]],
    ["Interpreting: stock ticker", "data: YHOO\ndata: +2\ndata: 10\n\n", [["message", "YHOO\n+2\n10", ""]]],
    ["Interpreting: four blocks", ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n", [
      ["message", "first event", "1"], ["message", "second event", ""], ["message", " third event", ""]]],
    ["Interpreting: the fourth block has to end, too", ": test stream\n\ndata: first event\nid: 1\n\ndata:  third event\n", [
      ["message", "first event", "1"]]],
    ["Interpreting: empty data", "data\n\ndata\ndata\n\ndata:", [["message", "", ""], ["message", "\n", ""]]],
    ["Interpreting: the space after the colon", "data:test\n\ndata: test\n\n", [["message", "test", ""], ["message", "test", ""]]],
  ],

  "as the web-platform-tests of eventsource/ see it": [
    ["event-data: two lines, an unknown field alone, one without colon", "data:a\ndata:a\n\n:\nother:a\n\nother:a\nData:b\n\ndata\n\ndata:z\n\n", [
      ["message", "a\na", ""], ["message", "", ""], ["message", "z", ""]]],
    ["format-bom: one is dropped, at the start alone", `${BOM}data:a\n\n${BOM}data:b\n\ndata:c\n\n`, [["message", "a", ""], ["message", "c", ""]]],
    ["format-bom-2: the second belongs to the field's name", `${BOM}${BOM}data:a\n\ndata:b\n\n`, [["message", "b", ""]]],
    ["format-comments: with NUL, empty, long, like a field", `data:a\r:\0\n:\r\ndata:b\n:${LONG}\rdata:c\n:data:no\r:${LONG}\ndata:d\n\n`, [
      ["message", "a\nb\nc\nd", ""]]],
    ["format-data-before-final-empty-line: data and id of a block that does not end", "retry:1000\ndata:a\n\nid:x\ndata:b", [["message", "a", ""]]],
    ["format-field-data: empty, twice empty, not empty", "data:\n\ndata\ndata\n\ndata:a\n\n", [
      ["message", "", ""], ["message", "\n", ""], ["message", "a", ""]]],
    ["format-field-event: the name lasts one block", "event:a\ndata:1\n\ndata:2\n\n", [["a", "1", ""], ["message", "2", ""]]],
    ["format-field-event-empty: an empty name means message", "event: \ndata:a\n\n", [["message", "a", ""]]],
    ["field-name-event: the last name counts", "event:a\nevent:b\ndata:1\n\n", [["b", "1", ""]]],
    ["format-field-id, -2: an id that is no ASCII", "id: …\nretry: 200\ndata: a\n\ndata: b\n\ndata: c\n\n", [
      ["message", "a", "…"], ["message", "b", "…"], ["message", "c", "…"]]],
    ["format-field-id-3: persists", "id: 1\ndata: a\n\ndata: b\n\n", [["message", "a", "1"], ["message", "b", "1"]]],
    ["format-field-id-3: changes and persists", "id: 1\ndata: a\n\nid: 2\ndata: b\n\ndata: c\n\n", [
      ["message", "a", "1"], ["message", "b", "2"], ["message", "c", "2"]]],
    ["format-field-id-3: resets", "id: 1\ndata: a\n\nid:\ndata: b\n\ndata: c\n\n", [
      ["message", "a", "1"], ["message", "b", ""], ["message", "c", ""]]],
    ...["\0\0", "x\0", "\0x", "x\0x", " \0"].map((id) => [
      `format-field-id-null: ${JSON.stringify(id)} is ignored`, `id: 7\nid: ${id}\ndata: a\n\nid: ${id}\ndata: b\n\n`, [
        ["message", "a", "7"], ["message", "b", "7"]]]),
    ["format-field-parsing: NUL, spaces, case, other names", "data:\0\ndata:  b\rData:no\ndata\0:no\ndata:c\r\0data:no\nda-ta:no\rdata_no\ndata:d\rdata:\r\n data:no\ndata:e\n\n", [
      ["message", "\0\n b\nc\nd\n\ne", ""]]],
    ["format-field-retry-empty", "retry\ndata:a\n\n", [["message", "a", ""]]],
    ["format-field-unknown", "data:a\n data\ndata\nother:x\ntext\n:comment\ndata:b\n\n", [["message", "a\n\nb", ""]]],
    ["format-leading-space: one space, not a tab", "data:\ta\rdata: \ndata:b\n\n", [["message", "\ta\n\nb", ""]]],
    ["format-newlines: CRLF, LF, CR", "data:a\r\ndata\ndata:b\r\n\r", [["message", "a\n\nb", ""]]],
    ["format-null-character: kept in data", "data:\0\n\n\n\n", [["message", "\0", ""]]],
    ["format-utf-8", "data:ok…\n\n", [["message", "ok…", ""]]],
  ],

  "rules of the standard, Interpreting an event stream": [
    ["lines: CR LF LF is one line end and one blank line", "data:a\r\n\ndata:b\n\n", [["message", "a", ""], ["message", "b", ""]]],
    ["lines: LF CR is two line ends", "data:a\n\rdata:b\n\r", [["message", "a", ""], ["message", "b", ""]]],
    ["lines: CR CR LF is a line end and a blank line", "data:a\r\r\ndata:b\r\r\n", [["message", "a", ""], ["message", "b", ""]]],
    ["lines: a CR at the end of the stream ends its line", "data:a\r\r", [["message", "a", ""]]],
    ["lines: nothing else ends one", "data:a\u2028b\u2029c\u0085d\ve\ff\x1cg\n\n", [["message", "a\u2028b\u2029c\u0085d\ve\ff\x1cg", ""]]],
    ["lines: blank ones alone tell nothing", "\n\r\r\n\n", []],
    ["lines: an empty stream tells nothing", "", []],
    ["end: an unfinished block is discarded", "data:a\n\ndata:b\n", [["message", "a", ""]]],
    ["end: an unfinished line is discarded", "data:a\n\ndata:b", [["message", "a", ""]]],
    ["decode: a byte order mark within data stays", `data:a\n\ndata:${BOM}b${BOM}\n\n`, [["message", "a", ""], ["message", `${BOM}b${BOM}`, ""]]],
    ["decode: a byte order mark alone", BOM, []],
    ["decode: a byte order mark before a blank line", `${BOM}\ndata:a\n\n`, [["message", "a", ""]]],
    ["decode: half a byte order mark is none", [[0xef, 0xbb], "data:a\n\ndata:b\n\n"], [["message", "b", ""]]],
    ["decode: that of UTF-16 is none", [[0xff, 0xfe], "data:a\n\ndata:b\n\n"], [["message", "b", ""]]],
    ["decode: characters of two, three and four bytes", "data:é考👩‍💻\n\n", [["message", "é考👩‍💻", ""]]],
    ["decode: what is no UTF-8 becomes U+FFFD", ["data:", [0xff], "a", [0xc0, 0xaf], "\n\n"], [["message", "\uFFFDa\uFFFD\uFFFD", ""]]],
    ["decode: a surrogate is no UTF-8", ["data:", [0xed, 0xa0, 0xbd], "\n\n"], [["message", "\uFFFD\uFFFD\uFFFD", ""]]],
    ["decode: a torn character swallows no line end", ["data:", [0xe3, 0x81], "\n", "data:", [0xf0, 0x9f], "\r\n\r\n"], [["message", "\uFFFD\n\uFFFD", ""]]],
    ["decode: it may stand in a field's name", ["data", [0xff], ":a\ndata:b\n\n"], [["message", "b", ""]]],
    ["fields: the value keeps later colons and spaces", "data:a:b: c \n\n", [["message", "a:b: c ", ""]]],
    ["fields: no space belongs before the colon", "data :a\n data:b\ndata:c\n\n", [["message", "c", ""]]],
    ["fields: without colon the value is empty", "id:7\nevent:a\ndata:1\n\nid\nevent\ndata\n\n", [["a", "1", "7"], ["message", "", ""]]],
    ["comment: ends no block", "data:a\n: heartbeat\ndata:b\n\n", [["message", "a\nb", ""]]],
    ["comment: a block of its own dispatches nothing", ": heartbeat\n\ndata:a\n\n:\n\n", [["message", "a", ""]]],
    ["event: one space is stripped, the rest is the name", "event:  a b:c\ndata:1\n\n", [[" a b:c", "1", ""]]],
    ["event: is forgotten with a block without data", "event:a\n\ndata:1\n\n", [["message", "1", ""]]],
    ["id: one space is stripped, the rest is the id", "id:  1 \ndata:a\n\n", [["message", "a", " 1 "]]],
    ["id: the last one counts", "id:1\nid:2\ndata:a\n\n", [["message", "a", "2"]]],
    ["id: counts also where its block has no data", "id:7\n\ndata:a\n\n", [["message", "a", "7"]]],
    ["id: may come after the data", "data:a\nid:7\n\n", [["message", "a", "7"]]],
    ["data: order of the fields does not matter", "data:a\nevent:b\ndata:c\n\n", [["b", "a\nc", ""]]],
    ["data: one empty line is data", "data:\n\n", [["message", "", ""]]],
    ["data: its last line end alone is dropped", "data:a\ndata:\ndata:\n\n", [["message", "a\n\n", ""]]],
  ],
};

/** [what it stands for, stream, reconnection time] */
const RETRIES = [
  ["format-field-retry: decimal, with a leading zero, too", "retry:03000\ndata:x\n\n", 3000],
  ["format-field-retry-bogus: what is not all digits is ignored", "retry:3000\nretry:1000x\ndata:x\n\n", 3000],
  ["format-field-retry-empty: is ignored", "retry\nretry:\nretry: \n\n", null],
  ["one space before the digits is stripped", "retry: 1500\n", 1500],
  ["a second space is no digit", "retry:  1500\n", null],
  ["a space after them is no digit", "retry:1500 \n", null],
  ["nought is a time", "retry:0\n", 0],
  ["it holds from its line on", "data:x\nretry:7\n", 7],
  ["an unfinished line does not", "retry:7\nretry:8", 7],
  ["neither sign, fraction, exponent nor base", "retry:-1\nretry:+1\nretry:1.5\nretry:1e3\nretry:0x10\n", null],
  ["ASCII digits alone", "retry:１０\nretry:١٠\n", null],
  ["its name is lower case", "Retry:7\n", null],
];

/** @param {string | (string | number[])[]} stream */
function toBytes(stream) {
  const pieces = typeof stream === "string" ? [stream] : stream;
  return Uint8Array.from(pieces.flatMap((piece) => (typeof piece === "string" ? [...encoder.encode(piece)] : piece)));
}

/** @param {Uint8Array[]} pieces */
function parse(pieces) {
  const parser = new EventParser();
  const frames = pieces.flatMap((piece) => parser.push(piece));
  return { parser, frames, messages: frames.filter(({ data }) => data !== null).map((f) => [f.event, f.data, f.id]) };
}

/** Checks what comes of bytes whole, one at a time, and cut in two at each of them. */
function everyWay(bytes, check) {
  check(parse([bytes]), "fed whole");
  check(parse(Array.from(bytes, (byte) => Uint8Array.of(byte))), "fed by bytes");
  check(parse(Array.from(bytes, (byte) => [Uint8Array.of(byte), Uint8Array.of()]).flat()), "with empty pieces between");
  for (let cut = 0; cut <= bytes.length; cut++) check(parse([bytes.slice(0, cut), bytes.slice(cut)]), `cut at ${cut}`);
}

for (const [source, table] of Object.entries(TABLES))
  describe(source, () => {
    for (const [claim, stream, expected] of table)
      test(claim, () => everyWay(toBytes(stream), ({ messages }, how) => assert.deepEqual(messages, expected, how)));
  });

describe("retry", () => {
  for (const [claim, stream, expected] of RETRIES)
    test(claim, () => everyWay(toBytes(stream), ({ parser }, how) => assert.equal(parser.retryMs, expected, how)));
});

describe("EventParser", () => {
  test("takes LF, CR and CRLF in every mixture", () => {
    const lines = ["data:a", "data:b", "", ":", "id:7", "data:c", ""];
    const ENDS = ["\n", "\r", "\r\n"];
    let mixtures = 0;
    for (let n = 0; n < ENDS.length ** lines.length; n++) {
      const ends = lines.map((_, i) => ENDS[Math.floor(n / ENDS.length ** i) % ENDS.length]);
      // There the CR and the LF of the blank line are one line end.
      if (lines.some((line, i) => line === "" && ends[i] === "\n" && ends[i - 1] === "\r")) continue;
      const bytes = toBytes(lines.map((line, i) => line + ends[i]).join(""));
      const expected = [["message", "a\nb", ""], ["message", "c", "7"]];
      everyWay(bytes, ({ messages }, how) => assert.deepEqual(messages, expected, `${JSON.stringify(ends)} ${how}`));
      mixtures += 1;
    }
    assert.equal(mixtures, 3 ** 3 * 8 * 8);
  });

  test("keeps each block as it came", () => {
    const text = "retry: 2000\n\nid: 1\nevent: start\ndata: {}\n\n: heartbeat\n\nid: 2\r\ndata: é\r\n\r\n";
    const { frames } = parse([encoder.encode(text)]);
    assert.equal(frames.map(({ raw }) => raw).join(""), text);
    assert.deepEqual(frames.map(({ data }) => data), [null, "{}", null, "é"]);
  });

  test("keeps each block as it came, however it is cut", () => {
    const text = "retry: 1\r\n\r\n: heartbeat\r\n\r\nevent: a\rdata: é\r\rdata: b\nid: 2\n\n";
    const blocks = ["retry: 1\r\n\r\n", ": heartbeat\r\n\r\n", "event: a\rdata: é\r\r", "data: b\nid: 2\n\n"];
    everyWay(encoder.encode(text), ({ frames }, how) => assert.deepEqual(frames.map(({ raw }) => raw), blocks, how));
  });

  test("returns a message with the byte that completes it", () => {
    const parser = new EventParser();
    assert.equal(parser.push(encoder.encode("data:a\r\n")).length, 0);
    assert.equal(parser.push(encoder.encode("\r")).length, 1);
    assert.equal(parser.push(encoder.encode("\n")).length, 0);
  });

  const SHAPES = {
    "one line of data": ["data:", "x".repeat(1024), "\n\n"],
    "one comment": [":", "x".repeat(1024), "\n\n"],
    "many lines of one block": ["", `data:${"x".repeat(1018)}\n`, "\n"],
    "many short lines of one block": ["", "data\n".repeat(205), "\n"],
    "many frames": ["", `data:${"x".repeat(1017)}\n\n`, ""],
    "many blank lines": ["", "\r".repeat(1024), ""],
  };
  for (const [shape, [head, piece, tail]] of Object.entries(SHAPES))
    test(`takes linear time: ${shape}, in pieces of 1 KB`, () => {
      const chunk = encoder.encode(piece);
      const cost = (pieces) => {
        const parser = new EventParser();
        const { user, system } = process.cpuUsage();
        parser.push(encoder.encode(head));
        for (let i = 0; i < pieces; i++) parser.push(chunk);
        parser.push(encoder.encode(tail));
        const used = process.cpuUsage({ user, system });
        return (used.user + used.system) / 1000;
      };
      const least = (pieces) => Math.min(...Array.from({ length: 5 }, () => cost(pieces)));
      least(64);
      // Eight times the bytes: 8 times the cost if it is linear, 64 if it is quadratic. Less than
      // 3 ms is the garbage collector's noise; quadratic are seconds. A busy machine gets more tries.
      let small = 0;
      let large = 0;
      for (let attempt = 0; attempt < 5; attempt++) {
        [small, large] = [Math.max(least(512), 3), least(4096)];
        if (large < 24 * small) return;
      }
      assert.fail(`${small} ms, then ${large} ms`);
    });
});
