import assert from "node:assert/strict";
import { test } from "node:test";

import { history, path } from "../../static/conversation.js";
import { defaultSettings } from "../../static/settings.js";
import { initialState, reduce } from "../../static/state.js";
import { accepted, delta, done, failed, queued, started, timings, usage } from "./fakes.js";

const run = (state, ...actions) => actions.reduce(reduce, state);
const receive = (frame, at = 0) => ({ type: "frame_received", replyId: "r1", frame, at });
const start = () => initialState([], null, defaultSettings());

const sent = {
  type: "message_sent",
  conversationId: "c1",
  parentId: "root",
  messageId: "q1",
  replyId: "r1",
  text: "Hello there\nand more",
  at: 1,
};

/** Return the state after one message was sent and its reply received these frames. */
const afterFrames = (...frames) => run(start(), sent, ...frames.map((frame) => receive(frame)));
const reply = (state, id = "r1") => state.conversations.c1.messages[id];
const pick = (object, ...names) => Object.fromEntries(names.map((name) => [name, object[name]]));
const shownIds = (state) => path(state.conversations.c1).map(({ id }) => id);

test("the first message creates a titled conversation with a queued reply", () => {
  const state = afterFrames();
  const { title, messages } = state.conversations.c1;
  assert.deepEqual([state.activeId, title, messages.q1.text], ["c1", "Hello there", "Hello there\nand more"]);
  assert.deepEqual(pick(messages.r1, "status", "seq", "text", "generationId"), {
    status: "queued",
    seq: -1,
    text: "",
    generationId: null,
  });
});

test("accepted sets the generation id and the model", () => {
  assert.deepEqual(pick(reply(afterFrames(accepted("r1"))), "generationId", "model", "status"), {
    generationId: "gen_r1",
    model: "scripted",
    status: "queued",
  });
});

test("queued sets the queue position, and started clears it", () => {
  const waiting = afterFrames(accepted("r1"), queued("r1", 2, 4.5));
  assert.deepEqual(reply(waiting).queue, { position: 2, estimatedWaitS: 4.5 });
  assert.deepEqual(pick(reply(run(waiting, receive(started("r1")))), "queue", "status"), {
    queue: null,
    status: "streaming",
  });
});

test("deltas append text and advance the cursor", () => {
  const state = afterFrames(accepted("r1"), started("r1"), delta("r1", 0, "Hel"), delta("r1", 3, "lo"));
  assert.deepEqual(pick(reply(state), "text", "seq", "status"), {
    text: "Hello",
    seq: 3,
    status: "streaming",
  });
});

test("a delta at or before the cursor does not change the state", () => {
  const state = afterFrames(accepted("r1"), delta("r1", 3, "Hello"));
  assert.equal(run(state, receive(delta("r1", 3, "Hello")), receive(delta("r1", 1, "He"))), state);
});

test("the text is the same for any split into deltas and any resume position", () => {
  const log = Array.from("ab cd éf 日本 ☕");
  for (let cut = 0; cut < log.length; cut += 1) {
    const head = log.slice(0, cut + 1).join("");
    const tail = log.slice(cut + 1).join("");
    const state = run(
      afterFrames(accepted("r1"), started("r1"), delta("r1", cut, head)),
      { type: "reply_dropped", replyId: "r1" },
      receive(accepted("r1")),
      receive(started("r1")),
      ...(cut ? [receive(delta("r1", cut - 1, head.slice(0, -1)))] : []),
      ...(tail ? [receive(delta("r1", log.length - 1, tail))] : []),
      receive(done("r1", log.length)),
    );
    assert.deepEqual([reply(state).text, reply(state).seq], [log.join(""), log.length]);
  }
});

test("the text is always that of the log up to the cursor", () => {
  const log = ["a", "bc", "", "d", "e"];
  let state = afterFrames(accepted("r1"));
  for (const seq of [0, 1, 1, 3, 0, 4]) {
    const { seq: before } = reply(state);
    const text = log.slice(before + 1, seq + 1).join("");
    state = run(state, receive(delta("r1", seq, text)));
    assert.equal(reply(state).text, log.slice(0, reply(state).seq + 1).join(""));
  }
});

for (const [finishReason, status] of [
  ["stop", "done"],
  ["length", "done"],
  ["tool_calls", "done"],
  ["cancelled", "stopped"],
]) {
  test(`done with ${finishReason} ends the reply as ${status}, with usage and timings`, () => {
    const state = afterFrames(accepted("r1"), delta("r1", 0, "x"), done("r1", 1, finishReason));
    assert.deepEqual(pick(reply(state), "status", "seq", "finishReason", "usage", "timings"), {
      status,
      seq: 1,
      finishReason,
      usage,
      timings,
    });
  });
}

test("a server-side cancel after a disconnect is an interruption", () => {
  const dropped = run(afterFrames(accepted("r1")), { type: "reply_dropped", replyId: "r1" });
  assert.equal(reply(run(dropped, receive(done("r1", 0, "cancelled")))).status, "interrupted");
  const asked = run(dropped, { type: "stop_requested", replyId: "r1" }, receive(done("r1", 0, "cancelled")));
  assert.equal(reply(asked).status, "stopped");
});

test("an error keeps the text and stores the error", () => {
  const frame = { ...failed("r1", "engine_error"), seq: 5 };
  const state = afterFrames(accepted("r1"), delta("r1", 4, "half"), frame);
  assert.deepEqual(pick(reply(state), "status", "text", "seq", "error"), {
    status: "error",
    text: "half",
    seq: 5,
    error: frame.error,
  });
});

test("a finished reply does not change", () => {
  const state = afterFrames(accepted("r1"), delta("r1", 0, "x"), done("r1", 1));
  const late = [receive(delta("r1", 9, "late")), receive(done("r1", 9)), receive(failed("r1", "timeout"))];
  const others = ["reply_dropped", "reply_stopped", "stop_requested"].map((type) => ({
    type,
    replyId: "r1",
  }));
  assert.equal(run(state, ...late, ...others), state);
});

test("a drop sets a reply to queued before accepted, and to reconnecting after it", () => {
  const drop = { type: "reply_dropped", replyId: "r1" };
  assert.equal(reply(run(afterFrames(), drop)).status, "queued");
  assert.equal(reply(run(afterFrames(accepted("r1"), delta("r1", 0, "x")), drop)).status, "reconnecting");
});

test("a lost reply keeps its text", () => {
  const { error } = failed("r1", "generation_not_found");
  const state = run(afterFrames(accepted("r1"), delta("r1", 2, "half")), {
    type: "reply_lost",
    replyId: "r1",
    error,
  });
  assert.deepEqual(pick(reply(state), "status", "text", "seq"), {
    status: "interrupted",
    text: "half",
    seq: 2,
  });
});

test("a new generation id discards the text of the old one", () => {
  const state = afterFrames(accepted("r1", "gen_1"), delta("r1", 2, "old"), accepted("r1", "gen_2"));
  assert.deepEqual(pick(reply(state), "generationId", "text", "seq"), {
    generationId: "gen_2",
    text: "",
    seq: -1,
  });
});

test("the live token rate covers one connection only", () => {
  const state = run(
    afterFrames(accepted("r1")),
    receive(delta("r1", 5, "a"), 1000),
    receive(delta("r1", 25, "b"), 2000),
  );
  assert.deepEqual(pick(reply(state), "rateStart", "rateEnd"), {
    rateStart: { seq: 5, at: 1000 },
    rateEnd: { seq: 25, at: 2000 },
  });
  assert.equal(reply(run(state, { type: "reply_dropped", replyId: "r1" })).rateStart, null);
});

test("a regenerated reply is a sibling, and the first version can be shown again", () => {
  const first = afterFrames(accepted("r1"), delta("r1", 0, "one"), done("r1", 1));
  const again = { type: "reply_requested", conversationId: "c1", parentId: "q1", replyId: "r2", at: 2 };
  const both = run(first, again);
  assert.deepEqual(shownIds(both), ["q1", "r2"]);
  assert.equal(reply(both).text, "one");
  const back = run(both, { type: "branch_chosen", conversationId: "c1", messageId: "r1" });
  assert.deepEqual(shownIds(back), ["q1", "r1"]);
});

test("an edited message starts a branch and keeps the old one", () => {
  const first = afterFrames(accepted("r1"), delta("r1", 0, "one"), done("r1", 1));
  const followed = run(first, {
    ...sent,
    parentId: "r1",
    messageId: "q2",
    replyId: "r2",
    text: "more",
    at: 2,
  });
  const edited = run(followed, { ...sent, messageId: "q3", replyId: "r3", text: "Hello again", at: 3 });
  assert.deepEqual(shownIds(edited), ["q3", "r3"]);
  assert.deepEqual(history(edited.conversations.c1, "q3", ""), [{ role: "user", content: "Hello again" }]);
  const back = run(edited, { type: "branch_chosen", conversationId: "c1", messageId: "q1" });
  assert.deepEqual(shownIds(back), ["q1", "r1", "q2", "r2"]);
});

test("replies of two conversations stream at the same time", () => {
  const other = { ...sent, conversationId: "c2", messageId: "q2", replyId: "r2" };
  const state = run(
    afterFrames(accepted("r1")),
    other,
    { type: "frame_received", replyId: "r2", frame: delta("r2", 0, "two"), at: 0 },
    receive(delta("r1", 0, "one")),
  );
  assert.deepEqual([reply(state).text, state.conversations.c2.messages.r2.text], ["one", "two"]);
  assert.equal(state.activeId, "c2");
});

test("frames of an unknown reply are ignored", () => {
  const state = start();
  assert.equal(run(state, receive(delta("r1", 0, "x"))), state);
});

test("a deleted conversation still receives frames until it is restored or purged", () => {
  const deleted = run(afterFrames(accepted("r1")), { type: "conversation_deleted", conversationId: "c1" });
  assert.deepEqual([deleted.deletedIds, deleted.activeId], [["c1"], null]);
  const ended = run(deleted, receive(delta("r1", 0, "x")), receive(done("r1", 1, "cancelled")));
  const restored = run(ended, { type: "conversation_restored", conversationId: "c1" });
  assert.deepEqual([restored.deletedIds, restored.activeId, reply(restored).text], [[], "c1", "x"]);
  const purged = run(ended, { type: "conversation_purged", conversationId: "c1" });
  assert.deepEqual([purged.deletedIds, purged.conversations], [[], {}]);
});

test("conversations can be renamed and opened", () => {
  const state = run(
    afterFrames(),
    { type: "conversation_renamed", conversationId: "c1", title: "New" },
    { type: "conversation_opened", conversationId: null },
  );
  assert.deepEqual([state.conversations.c1.title, state.activeId], ["New", null]);
});

test("connection, settings, health and notice are stored as received", () => {
  const status = { state: "open", retryAt: null, failureReason: null };
  const settings = { ...defaultSettings(), temperature: 1 };
  const { error } = failed(null, "rate_limited");
  const state = run(
    start(),
    { type: "connection_changed", status },
    { type: "settings_changed", settings },
    { type: "health_changed", health: { model: "m" } },
    { type: "notice_raised", error },
  );
  assert.deepEqual(pick(state, "connection", "settings", "health", "notice"), {
    connection: status,
    settings,
    health: { model: "m" },
    notice: error,
  });
  assert.equal(run(state, { type: "notice_dismissed" }).notice, null);
});

test("an unknown event is reported", () => {
  assert.equal(run(start(), { type: "surprise" }).notice.code, "unknown_type");
});

test("an active conversation that is not stored is ignored", () => {
  assert.equal(initialState([], "gone", defaultSettings()).activeId, null);
});
