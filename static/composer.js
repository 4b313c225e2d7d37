// @ts-check
/**
 * Where messages are written. It is always in one of four states, and says which.
 */

import { byId, isComposing } from "./element.js";

/** @typedef {'idle' | 'connecting' | 'streaming' | 'closed'} ComposerState */

/**
 * @typedef {object} ComposerHandlers
 * @property {(text: string) => void} onSend
 * @property {() => void} onStop
 * @property {() => void} onEditLast
 */

export class Composer {
  #area = byId("composer", HTMLTextAreaElement);
  #send = byId("send", HTMLButtonElement);
  #stop = byId("stop", HTMLButtonElement);
  #status = byId("composer-state");
  #handlers;
  /** @type {ComposerState} */
  #state = "connecting";

  /** @param {ComposerHandlers} handlers */
  constructor(handlers) {
    this.#handlers = handlers;
    this.#area.addEventListener("input", () => this.#resize());
    this.#area.addEventListener("keydown", (event) => this.#handleKeydown(event));
    byId("composer-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.#stop.addEventListener("click", () => handlers.onStop());
  }

  get text() {
    return this.#area.value;
  }

  set text(text) {
    this.#area.value = text;
    this.#resize();
  }

  get hasFocus() {
    return this.#area === document.activeElement;
  }

  focus() {
    this.#area.focus();
  }

  /** @param {ComposerState} state @param {string} note @param {boolean} isStopping */
  render(state, note, isStopping) {
    const isStreaming = state === "streaming";
    const focused = [this.#send, this.#stop].find((button) => button === document.activeElement);
    this.#state = state;
    byId("composer-form").dataset.state = state;
    this.#send.hidden = isStreaming;
    this.#stop.hidden = !isStreaming;
    this.#stop.disabled = isStopping;
    if (this.#status.textContent !== note) this.#status.textContent = note;
    this.#updateSendButton();
    // A button that is hidden or disabled under the focus would leave the keyboard nowhere. Where
    // one touches, the focus would only raise the keys.
    const isGone = focused !== undefined && (focused.hidden || focused.disabled);
    if (isGone && matchMedia("(hover: hover)").matches) this.focus();
  }

  /** @param {KeyboardEvent} event */
  #handleKeydown(event) {
    if (isComposing(event)) return;
    if (event.key === "Enter" && !event.shiftKey && !event.ctrlKey && !event.altKey && !event.metaKey) {
      event.preventDefault();
      this.#submit();
    } else if (event.key === "ArrowUp" && !this.#area.value) {
      event.preventDefault();
      this.#handlers.onEditLast();
    }
  }

  #submit() {
    const text = this.#area.value.trim();
    if (!text || this.#state === "streaming" || this.#state === "closed") return;
    this.text = "";
    this.#handlers.onSend(text);
  }

  #resize() {
    this.#area.style.height = "auto";
    this.#area.style.height = `${this.#area.scrollHeight}px`;
    this.#updateSendButton();
  }

  #updateSendButton() {
    this.#send.disabled = !this.#area.value.trim() || this.#state === "closed";
  }
}
