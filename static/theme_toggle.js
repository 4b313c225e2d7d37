// @ts-check
/**
 * A button that cycles through the system, light and dark themes.
 */

import { icon } from "./element.js";

/** @typedef {'system' | 'light' | 'dark'} Theme */

/** @type {readonly Theme[]} */
const THEMES = ["system", "light", "dark"];

/** Controls the theme button and applies the theme to the page. */
export class ThemeToggle {
  #button;
  #onChange;
  /** @type {Theme} */
  #theme;

  /** @param {HTMLElement} button @param {unknown} stored @param {(theme: Theme) => void} onChange */
  constructor(button, stored, onChange) {
    this.#button = button;
    this.#onChange = onChange;
    this.#theme = THEMES.find((theme) => theme === stored) ?? "system";
    button.addEventListener("click", () => {
      this.#theme = THEMES[(THEMES.indexOf(this.#theme) + 1) % THEMES.length];
      this.#onChange(this.#theme);
      this.#show();
    });
    this.#show();
  }

  #show() {
    const { dataset } = document.documentElement;
    if (this.#theme === "system") delete dataset.theme;
    else dataset.theme = this.#theme;
    const label = `Theme: ${this.#theme}`;
    this.#button.setAttribute("aria-label", label);
    this.#button.title = label;
    this.#button.dataset.theme = this.#theme;
    this.#button.replaceChildren(icon(this.#theme));
  }
}
