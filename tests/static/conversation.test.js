import assert from "node:assert/strict";
import { test } from "node:test";

import {
  children,
  history,
  merge,
  openReplies,
  path,
  titleOf,
  toMarkdown,
} from "../../static/conversation.js";

const question = (id, parentId, text, createdAt = 0) => ({ role: "user", id, parentId, text, createdAt });
const reply = (id, parentId, text, more = {}) => ({
  role: "assistant",
  id,
  parentId,
  text,
  createdAt: 0,
  status: "done",
  seq: text.length,
  generationId: `gen_${id}`,
  ...more,
});
const conversation = (messages, more = {}) => ({
  id: "c1",
  title: "Title",
  createdAt: 0,
  updatedAt: 0,
  messages: Object.fromEntries(messages.map((message) => [message.id, message])),
  choices: {},
  ...more,
});
const ids = (messages) => messages.map(({ id }) => id);

test("the newest version is shown unless another is chosen", () => {
  const messages = [
    question("q1", "root", "a"),
    reply("r1", "q1", "b"),
    reply("r2", "q1", "c", { createdAt: 1 }),
  ];
  assert.deepEqual(ids(path(conversation(messages))), ["q1", "r2"]);
  assert.deepEqual(ids(path(conversation(messages, { choices: { q1: "r1" } }))), ["q1", "r1"]);
  assert.deepEqual(ids(children(conversation(messages), "q1")), ["r1", "r2"]);
});

test("a cycle in a damaged tree does not loop forever", () => {
  assert.deepEqual(ids(path(conversation([question("root", "root", "a")]))), ["root"]);
});

test("the history is the system prompt and the branch that leads to the message", () => {
  const one = conversation([
    question("q1", "root", "first"),
    reply("r1", "q1", "answer"),
    reply("r2", "q1", "other answer"),
    question("q2", "r1", "second"),
  ]);
  assert.deepEqual(history(one, "q2", " Be brief. "), [
    { role: "system", content: "Be brief." },
    { role: "user", content: "first" },
    { role: "assistant", content: "answer" },
    { role: "user", content: "second" },
  ]);
});

test("user messages around an empty failed reply are joined", () => {
  const one = conversation([
    question("q1", "root", "first"),
    reply("r1", "q1", "", { status: "error" }),
    question("q2", "r1", "second"),
  ]);
  assert.deepEqual(history(one, "q2", ""), [{ role: "user", content: "first\n\nsecond" }]);
});

test("a title is the first line, shortened between characters", () => {
  assert.equal(titleOf("  One   two\nthree"), "One two");
  assert.equal(titleOf("  \n "), "New chat");
  assert.equal(titleOf("👩".repeat(80)), `${"👩".repeat(59)}…`);
});

test("the shown messages are exported as Markdown", () => {
  const one = conversation([question("q1", "root", "Hi"), reply("r1", "q1", "**Hello**\n")]);
  assert.equal(toMarkdown(one), "# Title\n\n## You\n\nHi\n\n## Assistant\n\n**Hello**\n");
});

test("open replies are the replies in progress", () => {
  const statuses = ["queued", "streaming", "reconnecting", "done", "stopped", "error", "interrupted"];
  const one = conversation(statuses.map((status) => reply(status, "root", "", { status })));
  assert.deepEqual(ids(openReplies(one)), ["queued", "streaming", "reconnecting"]);
});

const none = () => false;

test("merging an identical copy returns ours", () => {
  const one = conversation([question("q1", "root", "Hi"), reply("r1", "q1", "Hello")]);
  assert.equal(merge(one, structuredClone(one), none), one);
});

test("a merge keeps the messages of both tabs", () => {
  const ours = conversation([question("q1", "root", "Hi"), question("q2", "q1", "ours")]);
  const theirs = conversation([question("q1", "root", "Hi"), question("q3", "q1", "theirs")], {
    title: "Renamed",
  });
  const merged = merge(ours, theirs, none);
  assert.deepEqual([Object.keys(merged.messages), merged.title], [["q1", "q2", "q3"], "Renamed"]);
});

test("the longer copy of a reply wins, except for replies received by this tab", () => {
  const at = (text, status) => conversation([reply("r1", "root", text, { status })]);
  const text = (merged) => merged.messages.r1.text;
  assert.equal(text(merge(at("ab", "reconnecting"), at("abcd", "streaming"), none)), "abcd");
  assert.equal(text(merge(at("abcd", "streaming"), at("ab", "streaming"), none)), "abcd");
  assert.equal(text(merge(at("abcd", "done"), at("abcdef", "streaming"), none)), "abcd");
  assert.equal(text(merge(at("ab", "streaming"), at("abcd", "done"), (id) => id === "r1")), "ab");
});

test("a reply interrupted only in this tab is taken from the other tab", () => {
  const at = (status, generationId) => conversation([reply("r1", "root", "", { status, generationId })]);
  const status = (ours, theirs) => merge(ours, theirs, none).messages.r1.status;
  assert.equal(status(at("interrupted", "gen_1"), at("stopped", "gen_1")), "stopped");
  assert.equal(status(at("stopped", "gen_1"), at("interrupted", "gen_1")), "stopped");
  assert.equal(status(at("interrupted", null), at("streaming", "gen_1")), "streaming");
  assert.equal(status(at("interrupted", "gen_1"), at("reconnecting", "gen_1")), "interrupted");
});
