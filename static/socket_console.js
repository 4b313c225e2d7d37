// @ts-check
/**
 * A console for a WebSocket: choose an example, edit it, send it, and read the responses.
 */

import { element } from "./element.js";
import { subprotocols } from "./protocol.js";

const MAX_LINES = 500;

/** @typedef {{label: string, payload: unknown}} Example */

/** The form and the log of one WebSocket; `node` is its element. */
export class SocketConsole {
  /** @type {WebSocket | null} */
  #socket = null;
  #url;
  #log = element("ol", {
    className: "console-log",
    testId: "console-log",
    attributes: { tabindex: "0", role: "log", "aria-label": "Messages" },
  });
  #state = element("span", { className: "console-state", attributes: { role: "status" } }, "Not connected");
  #key = element("input", { attributes: { type: "password", autocomplete: "off", spellcheck: "false" } });
  #text = element("textarea", {
    testId: "console-text",
    attributes: { spellcheck: "false", rows: "7", "aria-label": "Message to send" },
  });
  #close = element(
    "button",
    {
      className: "button",
      attributes: { type: "button", disabled: "" },
      on: { click: () => this.#socket?.close(1000) },
    },
    "Disconnect",
  );

  /** @param {string} url of the WebSocket @param {Example[]} examples at least one */
  constructor(url, examples) {
    this.#url = url;
    const choices = element(
      "select",
      { on: { change: () => this.#show(examples[choices.selectedIndex]) } },
      ...examples.map(({ label }) => element("option", {}, label)),
    );
    const send = element(
      "button",
      { className: "button primary", testId: "console-send", attributes: { type: "submit" } },
      "Send",
    );
    this.node = element(
      "form",
      { className: "console", on: { submit: (event) => this.#submit(event) } },
      element(
        "div",
        { className: "console-row" },
        element("label", {}, "Example ", choices),
        element("label", {}, "API key (if required) ", this.#key),
      ),
      this.#text,
      element("div", { className: "console-row" }, send, this.#close, this.#state),
      this.#log,
    );
    this.#show(examples[0]);
  }

  /** @param {Example} example */
  #show({ payload }) {
    this.#text.value = JSON.stringify(payload, null, 2);
  }

  /** @param {Event} event */
  #submit(event) {
    event.preventDefault();
    const text = this.#text.value;
    if (this.#socket) this.#send(this.#socket, text);
    else this.#open(text);
  }

  /** Connect and send the first message. @param {string} first */
  #open(first) {
    const socket = new WebSocket(this.#url, subprotocols(this.#key.value));
    this.#socket = socket;
    this.#setState("Connecting…", true);
    socket.addEventListener("open", () => {
      this.#setState("Connected", true);
      this.#send(socket, first);
    });
    socket.addEventListener("message", ({ data }) => this.#append("received", data));
    socket.addEventListener("close", ({ code, reason }) => {
      this.#socket = null;
      this.#setState(code === 1000 ? "Closed" : `Closed with code ${code}${reason && `: ${reason}`}`, false);
    });
  }

  /** @param {WebSocket} socket @param {string} text */
  #send(socket, text) {
    if (socket.readyState !== WebSocket.OPEN) return;
    socket.send(text);
    this.#append("sent", compact(text));
  }

  /** @param {'sent' | 'received'} direction @param {string} text */
  #append(direction, text) {
    this.#log.append(element("li", { className: direction }, `${direction === "sent" ? "→" : "←"} ${text}`));
    if (this.#log.childElementCount > MAX_LINES) this.#log.firstElementChild?.remove();
    this.#log.scrollTop = this.#log.scrollHeight;
  }

  /** @param {string} state @param {boolean} isOpen */
  #setState(state, isOpen) {
    this.#state.textContent = state;
    this.#close.disabled = !isOpen;
  }
}

/** Remove whitespace from JSON; return other text unchanged. @param {string} text */
function compact(text) {
  try {
    return JSON.stringify(JSON.parse(text));
  } catch {
    return text;
  }
}
