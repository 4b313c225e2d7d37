import assert from "node:assert/strict";
import { test } from "node:test";

import {
  NUMBER_FIELDS,
  defaultSettings,
  formatStop,
  parseNumber,
  parseStop,
  readSettings,
  toRequest,
} from "../../static/settings.js";

const field = (name) => NUMBER_FIELDS.find((one) => one.name === name);
const messages = [{ role: "user", content: "hi" }];

test("only settings that have a value are sent", () => {
  assert.deepEqual(toRequest(defaultSettings(), messages), {
    messages,
    temperature: 0.2,
    top_p: 0.9,
    max_tokens: 512,
    repetition_penalty: 1.1,
  });
  const settings = {
    ...defaultSettings(),
    temperature: 0,
    top_p: null,
    max_tokens: null,
    repetition_penalty: null,
  };
  const more = { ...settings, top_k: 40, min_p: 0.05, seed: 7, stop: ["\n"] };
  assert.deepEqual(toRequest(more, messages), {
    messages,
    temperature: 0,
    top_k: 40,
    min_p: 0.05,
    seed: 7,
    stop: ["\n"],
  });
});

test("each range accepts its limits and rejects values outside", () => {
  const isValid = (name, text) => "value" in parseNumber(field(name), text);
  for (const [name, valid, invalid] of [
    ["temperature", ["0", "2", "0.7"], ["-0.1", "2.1", "x", "NaN", "Infinity"]],
    ["top_p", ["0.01", "1"], ["0", "1.1"]],
    ["top_k", ["0", "50"], ["-1", "1.5"]],
    ["min_p", ["0", "1"], ["-0.1", "1.1"]],
    ["max_tokens", ["1", "4096"], ["0", "2.5"]],
    ["repetition_penalty", ["0.1", "10"], ["0", "11"]],
    ["seed", ["-5", "0", "9007199254740991"], ["1.5", "9007199254740993"]],
  ]) {
    assert.deepEqual(
      valid.filter((text) => !isValid(name, text)),
      [],
      name,
    );
    assert.deepEqual(
      invalid.filter((text) => isValid(name, text)),
      [],
      name,
    );
  }
});

test("an empty field is null, the server's default", () => {
  assert.deepEqual(parseNumber(field("seed"), "  "), { value: null });
});

test("stop strings survive formatting and parsing", () => {
  const stop = ["END", "\n\n", "a\tb", "C:\\new"];
  assert.deepEqual(parseStop(formatStop(stop)), { value: stop });
  assert.deepEqual(parseStop("one\n\ntwo\n"), { value: ["one", "two"] });
});

test("too many or too long stop strings are rejected", () => {
  assert.ok("error" in parseStop(Array(17).fill("x").join("\n")));
  assert.ok("value" in parseStop(Array(16).fill("x").join("\n")));
  assert.ok("error" in parseStop("x".repeat(257)));
});

test("stored settings are restored, except for invalid values", () => {
  const settings = {
    ...defaultSettings(),
    temperature: 1,
    top_p: null,
    systemPrompt: "Be brief.",
    stop: ["x"],
  };
  assert.deepEqual(readSettings(JSON.parse(JSON.stringify(settings))), settings);
  assert.deepEqual(readSettings(null), defaultSettings());
  assert.deepEqual(
    readSettings({ temperature: 99, top_k: "many", stop: [1, ""], systemPrompt: 5 }),
    defaultSettings(),
  );
});
