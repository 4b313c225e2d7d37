import assert from "node:assert/strict";
import { test } from "node:test";

import { StreamClient } from "../../static/client.js";
import { ManualClock, accepted, delta, done, failed, fakeWebSocket, queued, started } from "./fakes.js";

const request = { messages: [{ role: "user", content: "hi" }] };

function setUp({ failureReason = "unreachable", key = "" } = {}) {
  const clock = new ManualClock();
  const WebSocket = fakeWebSocket();
  const events = [];
  const client = new StreamClient({
    url: "ws://server/v1/stream",
    key,
    WebSocket,
    clock,
    probe: async () => failureReason,
    onEvent: (event) => events.push(event),
  });
  const socket = () => WebSocket.instances.at(-1);
  const states = () =>
    events.filter((one) => one.type === "connection_changed").map((one) => one.status.state);
  const others = () => events.filter((one) => one.type !== "connection_changed");
  return { client, clock, WebSocket, events, socket, states, others };
}

function setUpOpen(options) {
  const setup = setUp(options);
  setup.client.connect();
  setup.socket().accept();
  return setup;
}

/** Return an open client with one reply that has received its first delta; events are cleared. */
function setUpStreaming() {
  const setup = setUpOpen();
  setup.client.generate("a", request);
  for (const frame of [accepted("a"), started("a"), delta("a", 4, "Hello")]) setup.socket().deliver(frame);
  setup.events.length = 0;
  return setup;
}

const settled = () => new Promise((resolve) => setImmediate(resolve));
const framesOf = (events) => events.map((event) => event.frame?.type ?? event.type);

test("without a key, the handshake offers only the protocol", () => {
  const { socket } = setUpOpen();
  assert.deepEqual(socket().protocols, ["tokenwire.v1"]);
});

test("the handshake offers the key as base64url without padding", () => {
  const { socket } = setUpOpen({ key: "ключ?>~" });
  const encoded = Buffer.from("ключ?>~").toString("base64url");
  assert.deepEqual(socket().protocols, ["tokenwire.v1", `tokenwire.key.${encoded}`]);
});

test("a request made before the socket opens is sent once it opens", () => {
  const { client, socket } = setUp();
  client.connect();
  client.generate("a", request);
  assert.deepEqual(socket().sent, []);
  socket().accept();
  assert.deepEqual(socket().sent, [{ type: "generate", id: "a", ...request }]);
});

test("all frames of a reply are reported in order, and done ends it", () => {
  const { client, socket, others } = setUpOpen();
  client.generate("a", request);
  const frames = [
    accepted("a"),
    queued("a", 1),
    queued("a", 0),
    started("a"),
    delta("a", 0, "x"),
    done("a", 1),
  ];
  for (const frame of frames) socket().deliver(frame);
  assert.deepEqual(
    others().map((event) => event.frame),
    frames,
  );
  assert.equal(client.has("a"), false);
});

test("several replies share the socket and are matched by id", () => {
  const { client, WebSocket, socket, others } = setUpOpen();
  client.generate("a", request);
  client.generate("b", request);
  for (const frame of [accepted("a"), accepted("b"), delta("b", 0, "B"), delta("a", 0, "A"), done("b", 1)]) {
    socket().deliver(frame);
  }
  assert.equal(WebSocket.instances.length, 1);
  assert.deepEqual(
    others().map((event) => event.replyId),
    ["a", "b", "b", "a", "b"],
  );
  assert.deepEqual([client.has("a"), client.has("b")], [true, false]);
});

test("a delta at or before the cursor is dropped", () => {
  const { socket, others } = setUpStreaming();
  socket().deliver(delta("a", 4, "Hello"));
  socket().deliver(delta("a", 2, "He"));
  socket().deliver(delta("a", 5, "!"));
  assert.deepEqual(
    others().map((event) => event.frame.seq),
    [5],
  );
});

test("after a drop, the reply is resumed after its cursor", () => {
  const { clock, socket, others } = setUpStreaming();
  socket().drop();
  assert.deepEqual(others(), [{ type: "reply_dropped", replyId: "a" }]);
  clock.advance(500);
  socket().accept();
  assert.deepEqual(socket().sent, [{ type: "resume", id: "a", generation_id: "gen_a", after: 4 }]);
});

test("a new socket resumes accepted replies and requests the others again", () => {
  const { client, clock, socket } = setUpStreaming();
  client.generate("b", request);
  socket().drop();
  clock.advance(500);
  socket().accept();
  assert.deepEqual(socket().sent, [
    { type: "resume", id: "a", generation_id: "gen_a", after: 4 },
    { type: "generate", id: "b", ...request },
  ]);
});

test("events of a replaced socket are ignored", () => {
  const { client, socket, others } = setUpStreaming();
  const old = socket();
  client.reconnect();
  old.deliver(delta("a", 5, "late"));
  old.drop();
  assert.equal(old.isClosed, true);
  assert.deepEqual(framesOf(others()), ["reply_dropped"]);
});

test("retries back off, and a stable socket resets the backoff", async () => {
  const { client, clock, WebSocket, socket } = setUp();
  client.connect();
  const delays = [];
  for (let i = 0; i < 8; i += 1) {
    socket().drop();
    await settled();
    const before = WebSocket.instances.length;
    const from = clock.now();
    while (WebSocket.instances.length === before) clock.advance(250);
    delays.push(clock.now() - from);
  }
  assert.deepEqual(delays, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
  socket().accept();
  clock.advance(5000);
  socket().drop();
  const before = WebSocket.instances.length;
  clock.advance(500);
  assert.equal(WebSocket.instances.length, before + 1);
});

test("the status has the time of the next attempt and the failure reason", async () => {
  const { client, socket, events } = setUp({ failureReason: "busy" });
  client.connect();
  socket().drop();
  await settled();
  assert.deepEqual(events.at(-1).status, { state: "reconnecting", retryAt: 500, failureReason: "busy" });
});

test("retryNow makes a scheduled retry immediate", async () => {
  const { client, WebSocket, socket } = setUp();
  client.connect();
  socket().drop();
  await settled();
  client.retryNow();
  assert.equal(WebSocket.instances.length, 2);
  client.retryNow();
  assert.equal(WebSocket.instances.length, 2);
});

test("an invalid key stops the retries until the key changes", async () => {
  const { client, clock, WebSocket, socket, states } = setUp({ failureReason: "unauthorized" });
  client.connect();
  socket().drop();
  await settled();
  clock.advance(600_000);
  assert.deepEqual(states(), ["connecting", "unauthorized"]);
  assert.equal(WebSocket.instances.length, 1);
  client.setKey("right");
  assert.equal(socket().protocols.length, 2);
  socket().accept();
  assert.equal(states().at(-1), "open");
});

test("replies survive an unauthorized error and resume with the next key", () => {
  const { client, socket, states } = setUpStreaming();
  socket().deliver(failed(null, "unauthorized"));
  assert.equal(states().at(-1), "unauthorized");
  client.setKey("right");
  socket().accept();
  assert.deepEqual(
    socket().sent.map((frame) => frame.type),
    ["resume"],
  );
});

test("a probe result that arrives after a reconnect is ignored", async () => {
  const { client, clock, WebSocket, socket, states } = setUp({ failureReason: "unauthorized" });
  client.connect();
  socket().drop();
  client.reconnect();
  await settled();
  clock.advance(60_000);
  assert.equal(WebSocket.instances.length, 2);
  assert.ok(!states().includes("unauthorized"));
});

test("cancel is sent once, and done ends the reply", () => {
  const { client, socket, others } = setUpStreaming();
  client.cancel("a");
  client.cancel("a");
  assert.deepEqual(socket().sent.slice(1), [{ type: "cancel", id: "a" }]);
  socket().deliver(done("a", 5, "cancelled"));
  assert.deepEqual(framesOf(others()), ["done"]);
});

test("a cancel sent before accepted is not repeated", () => {
  const { client, socket } = setUpOpen();
  client.generate("a", request);
  client.cancel("a");
  socket().deliver(accepted("a"));
  assert.deepEqual(
    socket().sent.map((frame) => frame.type),
    ["generate", "cancel"],
  );
});

test("a cancel during a pending resume is sent once accepted", () => {
  const { client, clock, socket } = setUpStreaming();
  socket().drop();
  clock.advance(500);
  socket().accept();
  client.cancel("a");
  assert.deepEqual(
    socket().sent.map((frame) => frame.type),
    ["resume"],
  );
  socket().deliver(accepted("a"));
  assert.deepEqual(
    socket().sent.map((frame) => frame.type),
    ["resume", "cancel"],
  );
});

test("a cancel while offline stops the reply now and is sent after the reconnect", () => {
  const { client, clock, socket, others } = setUpStreaming();
  socket().drop();
  client.cancel("a");
  assert.deepEqual(others().at(-1), { type: "reply_stopped", replyId: "a" });
  const numEvents = others().length;
  clock.advance(500);
  socket().accept();
  for (const frame of [accepted("a"), delta("a", 9, "more"), done("a", 10, "cancelled")]) socket().deliver(frame);
  assert.deepEqual(
    socket().sent.map((frame) => frame.type),
    ["resume", "cancel"],
  );
  assert.equal(others().length, numEvents);
  assert.equal(client.has("a"), false);
});

test("a request cancelled before the first connection is never sent", () => {
  const { client, socket, others } = setUp();
  client.connect();
  client.generate("a", request);
  client.cancel("a");
  socket().accept();
  assert.deepEqual(others(), [{ type: "reply_stopped", replyId: "a" }]);
  assert.deepEqual(socket().sent, []);
});

test("a drop during a pending cancel stops the reply", () => {
  const { client, socket, others } = setUpStreaming();
  client.cancel("a");
  socket().drop();
  assert.deepEqual(others(), [{ type: "reply_stopped", replyId: "a" }]);
});

for (const code of ["generation_not_found", "cursor_lost"]) {
  test(`${code} on a resume reports the reply as lost`, () => {
    const { client, clock, socket, others } = setUpStreaming();
    socket().drop();
    clock.advance(500);
    socket().accept();
    const frame = failed("a", code);
    socket().deliver(frame);
    assert.deepEqual(others().at(-1), { type: "reply_lost", replyId: "a", error: frame.error });
    assert.equal(client.has("a"), false);
  });
}

test("a rejected resume is retried after retry_after_s", () => {
  const { clock, socket, others } = setUpStreaming();
  socket().drop();
  clock.advance(500);
  socket().accept();
  const numEvents = others().length;
  socket().deliver(failed("a", "rate_limited", { retryable: true, retry_after_s: 2 }));
  clock.advance(1999);
  assert.equal(socket().sent.length, 1);
  clock.advance(1);
  assert.equal(socket().sent.length, 2);
  assert.deepEqual(socket().sent[0], socket().sent[1]);
  assert.equal(others().length, numEvents);
});

test("after a page reload, a reply is resumed from its stored cursor", () => {
  const { client, socket, others } = setUpOpen();
  client.resume("a", "gen_a", 7);
  assert.deepEqual(socket().sent, [{ type: "resume", id: "a", generation_id: "gen_a", after: 7 }]);
  for (const frame of [accepted("a"), started("a"), delta("a", 7, "old"), delta("a", 8, "new")])
    socket().deliver(frame);
  assert.deepEqual(framesOf(others()), ["accepted", "started", "delta"]);
});

test("an error ends only its own reply", () => {
  const { client, socket, others } = setUpStreaming();
  client.generate("b", request);
  socket().deliver(failed("b", "overloaded", { retryable: true }));
  assert.deepEqual(
    others().map((event) => [event.replyId, event.frame.error.code]),
    [["b", "overloaded"]],
  );
  assert.deepEqual([client.has("a"), client.has("b")], [true, false]);
});

test("an error without an id is a notice and ends no reply", () => {
  const { client, socket, others } = setUpStreaming();
  const frame = failed(null, "rate_limited");
  socket().deliver(frame);
  assert.deepEqual(others(), [{ type: "notice_raised", error: frame.error }]);
  assert.equal(client.has("a"), true);
});

test("a conversation that is too large is not sent again", () => {
  const { client, clock, socket, others } = setUpOpen();
  client.generate("a", request);
  socket().drop(1009);
  assert.equal(others().at(-1).frame.error.code, "frame_too_big");
  clock.advance(500);
  socket().accept();
  assert.deepEqual(socket().sent, []);
});

test("a request that keeps breaking the connection fails after four attempts", () => {
  const { client, clock, WebSocket, socket, others } = setUpOpen();
  client.generate("a", request);
  for (let i = 0; i < 6; i += 1) {
    socket().drop();
    clock.advance(30_000);
    socket().accept();
  }
  const numSent = WebSocket.instances.flatMap((one) => one.sent).length;
  assert.equal(numSent, 4);
  assert.equal(others().at(-1).frame.error.code, "connection_lost");
});

test("a stalled reply causes a reconnect, with growing timeouts", () => {
  const { clock, WebSocket, socket } = setUpStreaming();
  clock.advance(30_000);
  assert.equal(WebSocket.instances.length, 2);
  socket().accept();
  socket().deliver(accepted("a"));
  clock.advance(59_000);
  assert.equal(WebSocket.instances.length, 2);
  clock.advance(1_000);
  assert.equal(WebSocket.instances.length, 3);
});

test("without a reply in progress, silence causes no reconnect", () => {
  const { clock, WebSocket, socket } = setUpStreaming();
  socket().deliver(done("a", 5));
  clock.advance(600_000);
  assert.equal(WebSocket.instances.length, 1);
});

test("unknown frames are reported", () => {
  const { socket, others } = setUpStreaming();
  socket().deliver({ type: "surprise", id: "a" });
  socket().deliver({ type: "surprise" });
  socket().deliver("{");
  assert.deepEqual(
    others().map((event) => event.error.code),
    ["unknown_type", "unknown_type", "invalid_json"],
  );
});

test("late frames of an ended reply are ignored", () => {
  const { socket, others } = setUpStreaming();
  socket().deliver(done("a", 5));
  const numEvents = others().length;
  socket().deliver(failed("a", "unknown_id"));
  socket().deliver(delta("a", 9, "late"));
  assert.equal(others().length, numEvents);
});

test("close stops the retries", () => {
  const { client, clock, WebSocket, states } = setUpStreaming();
  client.close();
  clock.advance(600_000);
  assert.equal(states().at(-1), "closed");
  assert.equal(WebSocket.instances.length, 1);
});
