// @ts-check
/**
 * Makes DOM elements from plain values. Text becomes text nodes, never HTML.
 */

/**
 * @typedef {object} Properties
 * @property {string} [className]
 * @property {string} [testId] a stable name for browser tests
 * @property {Record<string, string>} [attributes]
 * @property {Record<string, (event: any) => void>} [on] listeners by event
 */

/**
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag @param {Properties} [properties] @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  const { className, testId, attributes = {}, on = {} } = properties;
  if (className) node.className = className;
  if (testId) node.dataset.testid = testId;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  for (const [type, listener] of Object.entries(on)) node.addEventListener(type, listener);
  node.append(...children);
  return node;
}

/** A picture from the sprite in index.html; it says nothing to a screen reader. @param {string} name */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/**
 * A button that shows a picture and is called by its label.
 * @param {string} name of the picture @param {string} label @param {() => void} onClick
 * @param {string} [testId]
 */
export function iconButton(name, label, onClick, testId) {
  return element(
    "button",
    {
      className: "icon-button",
      testId,
      attributes: { type: "button", "aria-label": label, title: label },
      on: { click: onClick },
    },
    icon(name),
  );
}

/**
 * The element of the page with this id.
 * @template {HTMLElement} [T=HTMLElement]
 * @param {string} id
 * @param {new () => T} [type]
 * @returns {T}
 * @throws {Error} when the page has none, or one of another type
 */
export function byId(id, type) {
  const node = document.getElementById(id);
  if (!(node instanceof (type ?? HTMLElement))) throw new Error(`the page lacks #${id}`);
  return /** @type {T} */ (node);
}

/**
 * Whether a key belongs to the choice of a character (IME): Enter that ends it is not Enter that sends.
 * Safari sends that Enter when the choice is over, and tells it by its code only.
 * @param {KeyboardEvent} event
 */
export function isComposing(event) {
  return event.isComposing || event.keyCode === 229;
}
