import assert from "node:assert/strict";
import { test } from "node:test";

import {
  announcement,
  connectionText,
  errorText,
  queueText,
  statsText,
  statusText,
} from "../../static/strings.js";
import { timings, usage } from "./fakes.js";

const reply = (more) => ({
  role: "assistant",
  text: "",
  status: "done",
  queue: null,
  usage: null,
  timings: null,
  error: null,
  ...more,
});

test("the queue position counts from one, with the estimated wait if known", () => {
  assert.equal(queueText({ position: 0, estimatedWaitS: null }), "Next in the queue");
  assert.equal(queueText({ position: 2, estimatedWaitS: 12.4 }), "Position 3 in the queue · about 12 s");
  assert.equal(queueText({ position: 2, estimatedWaitS: 300 }), "Position 3 in the queue · about 5 min");
});

test("a finished reply shows token rate, time to first token and size", () => {
  assert.equal(statsText(reply({ usage, timings })), "10.0 tokens/s · first token 100 ms · 2 tokens");
  const slow = { ...timings, ttft_s: 2.34, tokens_per_s: null };
  assert.equal(statsText(reply({ usage, timings: slow })), "first token 2.3 s · 2 tokens");
  const single = { ...usage, completion_tokens: 1 };
  assert.equal(statsText(reply({ usage: single, timings: slow })), "first token 2.3 s · 1 token");
});

test("a streaming reply shows the live token rate after enough tokens", () => {
  const streaming = (to, at) =>
    reply({ status: "streaming", rateStart: { seq: 0, at: 0 }, rateEnd: { seq: to, at } });
  assert.equal(statsText(streaming(3, 100)), "");
  assert.equal(statsText(streaming(50, 2000)), "25.0 tokens/s");
});

test("each status that needs a text has one", () => {
  for (const more of [
    { status: "queued" },
    { status: "queued", generationId: "g" },
    { status: "streaming" },
    { status: "streaming", text: "x", isStopping: true },
    { status: "reconnecting" },
    { finishReason: "length" },
    { status: "stopped" },
    { status: "interrupted" },
    { status: "interrupted", generationId: "g" },
    { status: "error" },
  ]) {
    assert.notEqual(statusText(reply(more)), "", JSON.stringify(more));
  }
  assert.equal(statusText(reply({ finishReason: "stop" })), "");
  assert.equal(statusText(reply({ status: "streaming", text: "x" })), "");
});

test("known errors have their own text, and others use the server's message", () => {
  const overloaded = { code: "overloaded", message: "m", retryable: true, retry_after_s: 3 };
  assert.equal(errorText(overloaded), "The server is busy: its queue is full. Try again in 3 s.");
  assert.equal(errorText({ code: "prompt_too_long", message: "Too long.", retryable: false }), "Too long.");
});

test("the connection status shows the model when connected", () => {
  const open = { state: "open", retryAt: null, failureReason: null };
  assert.equal(connectionText(open, { model: "SmolLM2" }), "SmolLM2");
  assert.equal(connectionText(open, null), "Connected");
  assert.equal(connectionText({ ...open, state: "unauthorized" }, null), "API key required");
});

test("screen readers announce the end, not each token", () => {
  assert.equal(announcement(reply({ status: "streaming", text: "some" })), "");
  assert.equal(announcement(reply({ text: "some" })), "Reply complete.");
});
