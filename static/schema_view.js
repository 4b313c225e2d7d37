// @ts-check
/**
 * Shows a JSON schema as a table of fields. Nested tables are created when the user opens them: one
 * message may have hundreds of fields, and schemas may be recursive.
 */

import { element } from "./element.js";
import { fieldsOf, limitsText, objectsIn, paragraphsOf, resolve, typeText } from "./schema.js";

/** @typedef {import("./schema.js").Schema} Schema */
/** @typedef {import("./schema.js").Paragraph} Paragraph */

/**
 * Create a table of the fields of an object schema.
 * @param {Schema} schema @param {Schema} document
 */
export function fieldTable(schema, document) {
  const rows = fieldsOf(schema).map(({ name, schema: field, isRequired }) =>
    element(
      "tr",
      {},
      element("td", {}, element("code", {}, name), ...(isRequired ? [required()] : [])),
      element("td", { className: "type" }, typeText(field, document)),
      element("td", {}, ...description(field, document)),
    ),
  );
  return table(["Field", "Type", "Description"], rows);
}

/**
 * Create a table that scrolls sideways.
 * @param {string[]} headings @param {HTMLTableRowElement[]} rows
 */
export function table(headings, rows) {
  const head = element("tr", {}, ...headings.map((text) => element("th", { attributes: { scope: "col" } }, text)));
  return element(
    "div",
    { className: "table-scroll" },
    element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)),
  );
}

/** Create paragraphs and lists from a description. @param {string} text @returns {HTMLElement} */
export function prose(text) {
  const node = element("div", { className: "prose" });
  for (const { isItem, parts } of paragraphsOf(text)) {
    const inline = inlineOf(parts);
    if (!isItem) {
      node.append(element("p", {}, ...inline));
      continue;
    }
    const last = node.lastElementChild;
    const list = last instanceof HTMLUListElement ? last : element("ul");
    list.append(element("li", {}, ...inline));
    node.append(list);
  }
  return node;
}

/** @param {Paragraph["parts"]} parts */
function inlineOf(parts) {
  return parts.map(({ text, isCode }) => (isCode ? element("code", {}, text) : text));
}

function required() {
  return element("div", { className: "required" }, "required");
}

/** @param {Schema} field @param {Schema} document @returns {Node[]} */
function description(field, document) {
  const { description: text = "", default: defaultValue } = resolve(field, document);
  const isObject = objectsIn(field, document).length > 0;
  const limits = limitsText(field, document);
  const sentences = [
    field.description ?? (isObject ? "" : text),
    limits && `${limits[0].toUpperCase()}${limits.slice(1)}.`,
    defaultValue === undefined || defaultValue === null ? "" : `Default: \`${JSON.stringify(defaultValue)}\`.`,
  ].filter(Boolean);
  const nodes = paragraphsOf(sentences.join(" ")).map(({ parts }) => element("div", {}, ...inlineOf(parts)));
  return [...nodes, ...objectsIn(field, document).map((inside) => nested(inside, document))];
}

/** @param {Schema} schema @param {Schema} document */
function nested(schema, document) {
  const node = element("details", { className: "nested" }, element("summary", {}, schema.title ?? "object"));
  node.addEventListener(
    "toggle",
    () => {
      if (schema.description) node.append(prose(schema.description));
      node.append(fieldTable(schema, document));
    },
    { once: true },
  );
  return node;
}
