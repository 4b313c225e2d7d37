// @ts-check
/**
 * The message box with its Send and Stop buttons and a status line below.
 */

import { byId, isComposing } from "./element.js";

/**
 * In the state `connecting`, messages can be sent; in the state `closed`, they cannot.
 * @typedef {'idle' | 'connecting' | 'streaming' | 'closed'} ComposerState
 */

/**
 * @typedef {object} ComposerHandlers
 * @property {(text: string) => void} onSend
 * @property {() => void} onStop
 * @property {() => void} onEditLast
 */

/** Controls the elements of the composer form. */
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

  /** The draft message. */
  get text() {
    return this.#area.value;
  }

  set text(text) {
    this.#area.value = text;
    this.#resize();
  }

  /** Whether the message box has the keyboard focus. */
  get hasFocus() {
    return this.#area === document.activeElement;
  }

  /** Move the keyboard focus to the message box. */
  focus() {
    this.#area.focus();
  }

  /**
   * Show the state.
   * @param {ComposerState} state @param {string} status text below the message box
   * @param {boolean} isStopping disables the Stop button
   */
  render(state, status, isStopping) {
    const isStreaming = state === "streaming";
    const focused = [this.#send, this.#stop].find((button) => button === document.activeElement);
    this.#state = state;
    byId("composer-form").dataset.state = state;
    this.#send.hidden = isStreaming;
    this.#stop.hidden = !isStreaming;
    this.#stop.disabled = isStopping;
    if (this.#status.textContent !== status) this.#status.textContent = status;
    this.#updateSendButton();
    // If the focused button is now hidden or disabled, move the focus to the message box. Skip this
    // on touch screens, where the focus opens the on-screen keyboard.
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
