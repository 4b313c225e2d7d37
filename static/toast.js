// @ts-check
/**
 * A short message at the edge of the page with one action, such as Undo.
 */

import { element } from "./element.js";

const DURATION_MS = 8000;

/** Controls the toast element. A new toast replaces the current one. */
export class Toast {
  #root;
  /** @type {any} */
  #timer = null;
  /** @type {(() => void) | null} */
  #onExpire = null;

  /** @param {HTMLElement} root */
  constructor(root) {
    this.#root = root;
  }

  /**
   * Show a message for a few seconds.
   * @param {string} text @param {string} label of the button
   * @param {() => void} onAction called if the button is pressed
   * @param {() => void} onExpire called if the toast goes away without that
   */
  show(text, label, onAction, onExpire) {
    this.dismiss();
    this.#onExpire = onExpire;
    const act = () => {
      this.#onExpire = null;
      this.dismiss();
      onAction();
    };
    const attributes = { type: "button" };
    const button = element(
      "button",
      { className: "button", testId: "undo", attributes, on: { click: act } },
      label,
    );
    this.#root.replaceChildren(element("span", {}, text), button);
    this.#root.hidden = false;
    this.#timer = setTimeout(() => this.dismiss(), DURATION_MS);
  }

  /** Hide the toast. */
  dismiss() {
    clearTimeout(this.#timer);
    this.#root.hidden = true;
    const onExpire = this.#onExpire;
    this.#onExpire = null;
    onExpire?.();
  }
}
