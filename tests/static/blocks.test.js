import assert from "node:assert/strict";
import { test } from "node:test";

import { BlockSplitter, lex } from "../../static/blocks.js";

const documents = {
  prose: "# Title\n\nOne *two*\nthree\n\nfour\n\n---\n\nlast",
  lists: "- a\n- b\n\n  more of b\n- c\n\n1. x\n2. y\n   - z\n\n\nafter",
  "an empty list item after a blank line": "* a\n\n*\n\n* b\nlazy\n",
  code: "Look:\n\n```python\nx = 1\n\n\n# no title\n```\n\nand\n\n    indented\n\n    more\n\nend",
  "an unclosed fence": "text\n\n```\nopen\n\n- no list\n\nfence",
  "a fence in a list": "1. do\n\n   ```sh\n   ls\n\n   pwd\n   ```\n\n2. then\n",
  table: "before\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n| 3 | 4 |\n\nafter",
  "an underlined heading": "title\n===\n\nother\n---\n\ntext",
  quotes: "> a\n> b\nlazy\n\n> c\n\nend",
  html: "<div>\nhi\n</div>\n\ntext <b>x</b>\n\nend",
  characters: "日本語 👩‍👩‍👧\n\n**é**\n\n☕",
  "blank lines": "\n\n\na\n\n\n\n\nb\n\n",
};
const key = (tokens) => tokens.map(({ type, raw }) => [type, raw]);

for (const [name, text] of Object.entries(documents)) {
  test(`${name}: splitting character by character gives the same blocks as the whole text`, () => {
    const splitter = new BlockSplitter();
    const finished = [];
    for (let end = 1; end <= text.length; end += 1) finished.push(...splitter.advance(text.slice(0, end)));
    assert.deepEqual(key([...finished, ...lex(text.slice(splitter.start))]), key(lex(text)));
  });

  test(`${name}: splitting in two parts gives the same blocks as the whole text`, () => {
    for (let cut = 0; cut <= text.length; cut += 1) {
      const splitter = new BlockSplitter();
      const finished = [...splitter.advance(text.slice(0, cut)), ...splitter.advance(text)];
      assert.deepEqual(key([...finished, ...lex(text.slice(splitter.start))]), key(lex(text)));
    }
  });
}

test("a finished block is returned once", () => {
  const splitter = new BlockSplitter();
  assert.deepEqual(key(splitter.advance("one\n\ntw")), []);
  assert.deepEqual(key(splitter.advance("one\n\ntwo\n")), [
    ["paragraph", "one"],
    ["space", "\n\n"],
  ]);
  assert.deepEqual(key(splitter.advance("one\n\ntwo\n")), []);
  assert.equal(splitter.start, 5);
});

test("the tail of a long text stays short", () => {
  const paragraph = "word ".repeat(20).trim();
  const text = Array.from({ length: 500 }, () => paragraph).join("\n\n");
  const splitter = new BlockSplitter();
  let longest = 0;
  for (let end = 1; end <= text.length; end += 50) {
    splitter.advance(text.slice(0, end));
    longest = Math.max(longest, end - splitter.start);
  }
  assert.ok(longest <= 2 * paragraph.length + 54, `a tail of ${longest} characters`);
});

test("text nested too deep for the lexer becomes one plain block", () => {
  for (const mark of [">", "1. "]) {
    const text = mark.repeat(20_000);
    const [block] = lex(text);
    assert.deepEqual([block.type, block.raw], ["paragraph", text]);
  }
});
