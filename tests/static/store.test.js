import assert from "node:assert/strict";
import { test } from "node:test";

import { Store, conversationIdOf, memoryStorage, parseConversation } from "../../static/store.js";
import { FakeStorage, ManualClock } from "./fakes.js";

const conversation = (text = "Hel", seq = 2, more = {}) => ({
  id: "c1",
  title: "Title",
  createdAt: 0,
  updatedAt: 0,
  choices: {},
  messages: {
    r1: {
      role: "assistant",
      id: "r1",
      parentId: "root",
      createdAt: 0,
      text,
      seq,
      status: "streaming",
      generationId: "gen_1",
      ...more,
    },
  },
});

function setUp() {
  const storage = new FakeStorage();
  const clock = new ManualClock();
  const failures = [];
  const store = new Store({ storage, clock, onFailure: () => failures.push("failed") });
  const stored = () => JSON.parse(storage.getItem("tokenwire.v1.conversation.c1"));
  return { storage, clock, failures, store, stored };
}

test("several saves result in one write of the last value", () => {
  const { store, clock, storage, stored } = setUp();
  for (let seq = 0; seq < 100; seq += 1) store.save(conversation("x".repeat(seq + 1), seq));
  clock.advance(499);
  assert.equal(storage.numWrites, 0);
  clock.advance(1);
  assert.equal(storage.numWrites, 1);
  assert.deepEqual(stored(), conversation("x".repeat(100), 99));
});

test("continuous changes are still written regularly", () => {
  const { store, clock, storage } = setUp();
  for (let seq = 0; seq < 100; seq += 1) {
    store.save(conversation("x".repeat(seq + 1), seq));
    clock.advance(50);
  }
  assert.equal(storage.numWrites, 10);
});

test("a write at any time has matching text and cursor", () => {
  const log = Array.from("some text of a log");
  for (let flushedAt = 0; flushedAt < log.length; flushedAt += 1) {
    const { store, stored } = setUp();
    for (let seq = 0; seq <= flushedAt; seq += 1)
      store.save(conversation(log.slice(0, seq + 1).join(""), seq));
    store.flush();
    const { text, seq } = stored().messages.r1;
    assert.equal(text, log.slice(0, seq + 1).join(""));
    assert.equal(seq, flushedAt);
  }
});

test("flush writes immediately and only once", () => {
  const { store, clock, storage } = setUp();
  store.save(conversation());
  store.flush();
  store.flush();
  clock.advance(1000);
  assert.equal(storage.numWrites, 1);
});

test("a reply in progress is loaded ready to resume", () => {
  const { store } = setUp();
  store.save(conversation("Hel", 2, { rateStart: { seq: 0, at: 1 } }));
  store.flush();
  const { r1 } = store.load().conversations[0].messages;
  assert.deepEqual([r1.status, r1.text, r1.seq, r1.generationId], ["reconnecting", "Hel", 2, "gen_1"]);
  assert.deepEqual([r1.wasDisconnected, r1.rateStart], [true, null]);
});

test("a reply without a generation id is loaded as interrupted", () => {
  const { store } = setUp();
  store.save(conversation("", -1, { status: "queued", generationId: null }));
  store.flush();
  assert.equal(store.load().conversations[0].messages.r1.status, "interrupted");
});

test("a finished reply is loaded unchanged", () => {
  const { store } = setUp();
  const ended = conversation("Hello", 5, { status: "done" });
  store.save(ended);
  store.flush();
  assert.deepEqual(store.load(), { conversations: [ended], numUnreadable: 0 });
});

test("unreadable values are counted and stay in the storage", () => {
  const { store, storage } = setUp();
  const broken = [
    "{",
    "null",
    "[]",
    '{"id":"x"}',
    JSON.stringify({ ...conversation(), messages: { r1: { id: "r1" } } }),
  ];
  broken.forEach((text, index) => storage.setItem(`tokenwire.v1.conversation.${index}`, text));
  storage.setItem("someone else's", "{");
  assert.deepEqual(store.load(), { conversations: [], numUnreadable: broken.length });
  assert.equal(storage.length, broken.length + 1);
});

test("remove cancels a scheduled write", () => {
  const { store, clock, storage } = setUp();
  store.save(conversation());
  store.flush();
  store.save(conversation("more", 9));
  store.remove("c1");
  clock.advance(1000);
  assert.equal(storage.length, 0);
});

test("a full storage is reported", () => {
  const { store, storage, failures } = setUp();
  storage.isFull = true;
  store.save(conversation());
  store.flush();
  assert.deepEqual(failures, ["failed"]);
});

test("single values are restored, and missing ones are null", () => {
  const { store } = setUp();
  store.saveValue("theme", "dark");
  assert.deepEqual([store.loadValue("theme"), store.loadValue("other")], ["dark", null]);
});

test("storage keys of conversations are recognized", () => {
  assert.equal(conversationIdOf("tokenwire.v1.conversation.c1"), "c1");
  assert.equal(conversationIdOf("tokenwire.v1.theme"), null);
  assert.equal(conversationIdOf(null), null);
  assert.deepEqual(parseConversation(JSON.stringify(conversation())), conversation());
});

test("the in-memory storage replaces a blocked browser storage", () => {
  const store = new Store({ storage: memoryStorage(), clock: new ManualClock(), onFailure: assert.fail });
  store.save(conversation("Hello", 5, { status: "done" }));
  store.flush();
  assert.equal(store.load().conversations.length, 1);
  store.remove("c1");
  assert.equal(store.load().conversations.length, 0);
});
