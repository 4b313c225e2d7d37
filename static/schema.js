// @ts-check
/**
 * Turns the JSON schemas and descriptions of `/asyncapi.json` into readable text. No DOM access.
 */

/** @typedef {Record<string, any>} Schema */
/** @typedef {{name: string, schema: Schema, isRequired: boolean}} Field */
/** @typedef {{text: string, isCode: boolean}} Part */
/** @typedef {{isItem: boolean, parts: Part[]}} Paragraph */

/**
 * Resolve a `$ref`. Keywords next to the `$ref` override those of the target.
 * @param {Schema} schema @param {Schema} document
 * @returns {Schema}
 */
export function resolve(schema, document) {
  const { $ref, ...overrides } = schema;
  if (typeof $ref !== "string") return schema;
  let target = /** @type {any} */ (document);
  for (const part of $ref.replace("#/", "").split("/")) target = target[part];
  return resolve({ ...target, ...overrides }, document);
}

/**
 * Describe the type of a value, such as `string or null`.
 * @param {Schema} schema @param {Schema} document
 * @returns {string}
 */
export function typeText(schema, document) {
  const whole = resolve(schema, document);
  const choices = choicesOf(whole);
  if (choices) {
    const texts = choices.map((choice) => typeText(choice, document));
    const unique = [...new Set(texts)].sort((a, b) => Number(a === "null") - Number(b === "null"));
    return unique.join(" or ");
  }
  if ("const" in whole) return JSON.stringify(whole.const);
  if (whole.enum) return whole.enum.map((/** @type {any} */ value) => JSON.stringify(value)).join(" or ");
  if (whole.type === "array") return whole.items ? `array of ${typeText(whole.items, document)}` : "array";
  if (whole.type !== "object") return whole.type ?? "any";
  if (whole.properties) return whole.title ?? "object";
  const values = whole.additionalProperties;
  return values && values !== true ? `object of ${typeText(values, document)}` : "object";
}

/**
 * Describe the limits of a value, such as `at least 0`; empty if it has none.
 * @param {Schema} schema @param {Schema} document
 * @returns {string}
 */
export function limitsText(schema, document) {
  const whole = resolve(schema, document);
  const choices = (choicesOf(whole) ?? []).filter((choice) => choice.type !== "null");
  if (choices.length === 1) return limitsText(choices[0], document);
  const { minimum, maximum, maxLength, maxItems, pattern } = whole;
  return [
    minimum === undefined ? "" : `at least ${minimum}`,
    maximum === undefined ? "" : `at most ${maximum}`,
    maxLength === undefined ? "" : `at most ${maxLength} characters`,
    maxItems === undefined ? "" : `at most ${maxItems} items`,
    pattern === undefined ? "" : `matches \`${pattern}\``,
  ]
    .filter(Boolean)
    .join(", ");
}

/**
 * Return the fields of an object, required ones first.
 * @param {Schema} schema @returns {Field[]}
 */
export function fieldsOf(schema) {
  const required = new Set(schema.required ?? []);
  const fields = Object.entries(schema.properties ?? {}).map(([name, field]) => ({
    name,
    schema: field,
    isRequired: required.has(name),
  }));
  return [...fields.filter(({ isRequired }) => isRequired), ...fields.filter(({ isRequired }) => !isRequired)];
}

/**
 * Return the object schemas that a value may be or contain, without duplicates.
 * @param {Schema} schema @param {Schema} document
 * @returns {Schema[]}
 */
export function objectsIn(schema, document) {
  const whole = resolve(schema, document);
  if (whole.properties) return [whole];
  const inside = choicesOf(whole) ?? [whole.items, whole.additionalProperties];
  /** @type {Map<string, Schema>} */
  const byTitle = new Map();
  for (const part of inside) {
    if (!part || typeof part !== "object") continue;
    for (const found of objectsIn(part, document)) byTitle.set(found.title ?? "", found);
  }
  return [...byTitle.values()];
}

/**
 * Parse a description: paragraphs, list items that begin with `* `, and `code`.
 * @param {string} text
 * @returns {Paragraph[]}
 */
export function paragraphsOf(text) {
  return text
    .trim()
    .split(/\n\s*\n|\n(?=\* )/)
    .map((block) => {
      const isItem = block.startsWith("* ");
      const line = (isItem ? block.slice(2) : block).replace(/\s*\n\s*/g, " ");
      const parts = line.split("`").map((part, index) => ({ text: part, isCode: index % 2 === 1 }));
      return { isItem, parts: parts.filter((part) => part.text) };
    });
}

/** @param {Schema} schema @returns {Schema[] | undefined} */
function choicesOf(schema) {
  return schema.anyOf ?? schema.oneOf;
}
