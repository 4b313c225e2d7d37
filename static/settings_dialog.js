// @ts-check
/**
 * The settings dialog. Valid input is saved immediately; invalid input shows an error.
 */

import { byId, element } from "./element.js";
import { NUMBER_FIELDS, defaultSettings, formatStop, parseNumber, parseStop } from "./settings.js";

/** @typedef {import("./settings.js").Settings} Settings */
/** @typedef {import("./settings.js").NumberField} NumberField */

/**
 * @typedef {object} SettingsHandlers
 * @property {(settings: Settings) => void} onChange
 * @property {(key: string) => void} onKey
 */

/** Controls the elements of the settings dialog. */
export class SettingsDialog {
  #dialog = byId("settings-dialog", HTMLDialogElement);
  #systemPrompt = byId("system-prompt", HTMLTextAreaElement);
  #stop = byId("stop-strings", HTMLTextAreaElement);
  #stopHint = byId("stop-strings-hint");
  #key = byId("api-key", HTMLInputElement);
  /** @type {Map<NumberField, {input: HTMLInputElement, hint: HTMLElement}>} */
  #numbers = new Map();
  #settings = defaultSettings();
  #handlers;

  /** @param {SettingsHandlers} handlers */
  constructor(handlers) {
    this.#handlers = handlers;
    byId("number-fields").append(...NUMBER_FIELDS.map((field) => this.#numberField(field)));
    byId("settings-form").addEventListener("keydown", (event) => {
      // Enter in a field would otherwise press the first button, which closes the dialog.
      if (event.key === "Enter" && event.target instanceof HTMLInputElement) event.preventDefault();
      if (event.key === "Enter" && event.target === this.#key) handlers.onKey(this.#key.value.trim());
    });
    byId("settings-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#dialog.close();
    });
    this.#systemPrompt.addEventListener("input", () => {
      this.#change({ systemPrompt: this.#systemPrompt.value });
    });
    this.#stop.addEventListener("input", () => {
      const parsed = parseStop(this.#stop.value);
      showError(this.#stop, this.#stopHint, "error" in parsed ? parsed.error : "");
      if ("value" in parsed) this.#change({ stop: parsed.value });
    });
    byId("save-key").addEventListener("click", () => handlers.onKey(this.#key.value.trim()));
    byId("reset-settings").addEventListener("click", () => {
      this.#change(defaultSettings());
      this.#fill();
    });
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.#dialog.close();
    });
  }

  /** Show the dialog. @param {Settings} settings @param {string} key the API key */
  open(settings, key) {
    this.#settings = settings;
    this.#key.value = key;
    this.#fill();
    this.#dialog.showModal();
  }

  #fill() {
    this.#systemPrompt.value = this.#settings.systemPrompt;
    this.#stop.value = formatStop(this.#settings.stop);
    showError(this.#stop, this.#stopHint, "");
    for (const [field, { input, hint }] of this.#numbers) {
      const value = this.#settings[field.name];
      input.value = value === null ? "" : String(value);
      showError(input, hint, "");
    }
  }

  /** @param {NumberField} field */
  #numberField(field) {
    const id = field.name.replaceAll("_", "-");
    const hint = element("p", { className: "hint", attributes: { id: `${id}-hint` } }, field.hint);
    hint.dataset.hint = field.hint;
    const attributes = {
      id,
      type: "text",
      inputmode: field.step === 1 && field.min >= 0 ? "numeric" : "decimal",
      autocomplete: "off",
      placeholder: "Default",
      "aria-describedby": hint.id,
    };
    const input = element("input", { testId: id, attributes });
    input.addEventListener("input", () => {
      const parsed = parseNumber(field, input.value);
      showError(input, hint, "error" in parsed ? parsed.error : "");
      if ("value" in parsed) this.#change({ [field.name]: parsed.value });
    });
    this.#numbers.set(field, { input, hint });
    return element(
      "div",
      { className: "field" },
      element("label", { attributes: { for: id } }, field.label),
      input,
      hint,
    );
  }

  /** @param {Partial<Settings>} change */
  #change(change) {
    this.#settings = { ...this.#settings, ...change };
    this.#handlers.onChange(this.#settings);
  }
}

/** Show an error in place of the field's hint, or the hint if `error` is empty. */
function showError(
  /** @type {HTMLElement} */ field,
  /** @type {HTMLElement} */ hint,
  /** @type {string} */ error,
) {
  hint.dataset.hint ??= hint.textContent ?? "";
  field.setAttribute("aria-invalid", String(error !== ""));
  hint.classList.toggle("error", error !== "");
  hint.textContent = error || hint.dataset.hint;
}
