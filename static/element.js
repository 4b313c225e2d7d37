// @ts-check
/**
 * Creates DOM elements. Text always becomes text nodes, never HTML.
 */

/**
 * @typedef {object} Properties
 * @property {string} [className]
 * @property {string} [testId] value of `data-testid`, for browser tests
 * @property {Record<string, string>} [attributes]
 * @property {Record<string, (event: any) => void>} [on] listeners by event type
 */

/**
 * Create an element.
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

/** Create an icon from the page's SVG sprite, hidden from screen readers. @param {string} name */
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
 * Create a button that shows an icon; the label is its accessible name and tooltip.
 * @param {string} name of the icon @param {string} label @param {() => void} onClick
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
 * Return the element with this id.
 * @template {HTMLElement} [T=HTMLElement]
 * @param {string} id
 * @param {new () => T} [type]
 * @returns {T}
 * @throws {Error} if there is no such element or it has another type
 */
export function byId(id, type) {
  const node = document.getElementById(id);
  const expected = type ?? HTMLElement;
  if (!(node instanceof expected)) throw new Error(`no ${expected.name} with id "${id}"`);
  return /** @type {T} */ (node);
}

/**
 * Return whether a key event belongs to an input method (IME), so that the Enter that confirms a
 * character does not send the message. Safari sends that Enter after the composition has ended, with
 * `keyCode` 229 as the only sign.
 * @param {KeyboardEvent} event
 */
export function isComposing(event) {
  return event.isComposing || event.keyCode === 229;
}
