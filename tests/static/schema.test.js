import assert from "node:assert/strict";
import { test } from "node:test";

import { fieldsOf, limitsText, objectsIn, paragraphsOf, resolve, typeText } from "../../static/schema.js";

const Point = {
  type: "object",
  title: "Point",
  properties: { label: { type: "string" }, x: { type: "number" } },
  required: ["x"],
};
const document = { components: { schemas: { Point, Kind: { enum: ["a", "b"], title: "Kind" } } } };
const point = { $ref: "#/components/schemas/Point" };

test("a reference is resolved, and keywords next to it override the target", () => {
  assert.deepEqual(resolve(point, document), Point);
  assert.equal(resolve({ ...point, description: "here" }, document).description, "here");
  assert.deepEqual(resolve({ type: "null" }, document), { type: "null" });
});

test("types are described in a few words", () => {
  const cases = [
    [{ type: "integer" }, "integer"],
    [{ const: "delta" }, '"delta"'],
    [{ $ref: "#/components/schemas/Kind" }, '"a" or "b"'],
    [{ anyOf: [{ type: "null" }, { type: "string" }] }, "string or null"],
    [{ oneOf: [{ type: "string" }, { type: "string" }] }, "string"],
    [{ type: "array" }, "array"],
    [{ type: "array", items: point }, "array of Point"],
    [{ type: "object" }, "object"],
    [{ type: "object", additionalProperties: true }, "object"],
    [{ type: "object", additionalProperties: { type: "number" } }, "object of number"],
    [{ type: "object", properties: {} }, "object"],
    [{}, "any"],
  ];
  for (const [schema, text] of cases) assert.equal(typeText(schema, document), text);
});

test("limits are described, including those of nullable values", () => {
  assert.equal(limitsText({ type: "integer", minimum: -1, maximum: 2 }, document), "at least -1, at most 2");
  const name = { anyOf: [{ type: "string", maxLength: 64, pattern: "^a$" }, { type: "null" }] };
  assert.equal(limitsText(name, document), "at most 64 characters, matches `^a$`");
  assert.equal(limitsText({ type: "array", maxItems: 4096 }, document), "at most 4096 items");
  assert.equal(limitsText({ anyOf: [{ type: "string" }, { type: "number", minimum: 1 }] }, document), "");
});

test("required fields come first", () => {
  assert.deepEqual(
    fieldsOf(Point).map(({ name, isRequired }) => [name, isRequired]),
    [
      ["x", true],
      ["label", false],
    ],
  );
  assert.deepEqual(fieldsOf({}), []);
});

test("objects are found in arrays, alternatives and maps, without duplicates", () => {
  const holder = { anyOf: [{ type: "array", items: point }, point, { type: "null" }] };
  assert.deepEqual(objectsIn(holder, document), [Point]);
  assert.deepEqual(objectsIn({ type: "object", additionalProperties: point }, document), [Point]);
  assert.deepEqual(objectsIn({ type: "object", additionalProperties: true }, document), []);
});

test("descriptions have paragraphs, list items and code", () => {
  const prose = paragraphsOf("One\nline.\n\n* first `id`\n  goes on\n* second\n");
  assert.deepEqual(prose, [
    { isItem: false, parts: [{ text: "One line.", isCode: false }] },
    {
      isItem: true,
      parts: [
        { text: "first ", isCode: false },
        { text: "id", isCode: true },
        { text: " goes on", isCode: false },
      ],
    },
    { isItem: true, parts: [{ text: "second", isCode: false }] },
  ]);
});
