// @ts-check
/**
 * One socket at a time, and the way back to it after a drop. Knows frames only as text. No DOM.
 *
 * Handlers are bound to their socket: what an old socket still says is ignored.
 */

import { subprotocols } from "./protocol.js";

/** @typedef {'connecting' | 'open' | 'reconnecting' | 'unauthorized' | 'closed'} ConnectionState */

/** Why a handshake failed. @typedef {'unauthorized' | 'refused' | 'busy' | 'unreachable'} Verdict */

/**
 * @typedef {object} ConnectionStatus
 * @property {ConnectionState} state
 * @property {number | null} retryAt when the next attempt is made, in milliseconds of the clock
 * @property {Verdict | null} verdict
 */

/**
 * @typedef {object} Clock
 * @property {() => number} now milliseconds
 * @property {(callback: () => void, ms: number) => any} setTimeout
 * @property {(timer: any) => void} clearTimeout
 * @property {() => number} random at least 0, less than 1
 */

/**
 * @typedef {object} ConnectionOptions
 * @property {string} url
 * @property {string} key the API key; empty when there is none
 * @property {typeof WebSocket} WebSocket
 * @property {Clock} clock
 * @property {() => Promise<Verdict>} probe asked why a handshake failed, which the browser hides
 */

/**
 * @typedef {object} ConnectionHandlers
 * @property {(status: ConnectionStatus) => void} onStatus
 * @property {() => void} onOpen
 * @property {(text: string) => void} onMessage
 * @property {(code: number) => void} onDrop an open socket is gone; 0 when it was left from here
 */

const BASE_DELAY_MS = 500;
const MAX_DELAY_MS = 30_000;
/** A socket that stays open this long has proved itself: the next failure starts over. */
const STABLE_MS = 5_000;

export class Connection {
  /** @type {WebSocket | null} */
  #socket = null;
  #isOpen = false;
  #hasBeenOpen = false;
  #isClosed = true;
  #numFailures = 0;
  #numAttempts = 0;
  /** @type {any} */
  #retryTimer = null;
  /** @type {any} */
  #stableTimer = null;
  #options;
  #handlers;
  #key;

  /** @param {ConnectionOptions} options @param {ConnectionHandlers} handlers */
  constructor(options, handlers) {
    this.#options = options;
    this.#handlers = handlers;
    this.#key = options.key;
  }

  get isOpen() {
    return this.#isOpen;
  }

  connect() {
    this.#isClosed = false;
    this.#cancelRetry();
    if (this.#socket) return;
    this.#numAttempts += 1;
    this.#tell(this.#hasBeenOpen || this.#numFailures ? "reconnecting" : "connecting");
    const { WebSocket, url } = this.#options;
    const socket = new WebSocket(url, subprotocols(this.#key));
    this.#socket = socket;
    socket.onopen = () => {
      if (this.#socket === socket) this.#opened();
    };
    socket.onmessage = ({ data }) => {
      if (this.#socket === socket) this.#handlers.onMessage(String(data));
    };
    socket.onclose = ({ code }) => {
      if (this.#socket === socket) this.#dropped(code);
    };
  }

  /** Leave the present socket, if there is one, and connect at once. */
  reconnect() {
    this.#numFailures = 0;
    this.#leave(0);
    this.connect();
  }

  /** Try now what was to be tried later. */
  wake() {
    if (this.#retryTimer !== null) this.reconnect();
  }

  /** Connect as another caller. @param {string} key */
  setKey(key) {
    this.#key = key;
    this.reconnect();
  }

  close() {
    this.#end("closed", null);
  }

  /** The server does not know this caller; only another key helps. */
  refuse() {
    this.#end("unauthorized", "unauthorized");
  }

  /** @param {string} text */
  send(text) {
    this.#socket?.send(text);
  }

  #opened() {
    this.#isOpen = true;
    this.#hasBeenOpen = true;
    this.#stableTimer = this.#options.clock.setTimeout(() => {
      this.#numFailures = 0;
    }, STABLE_MS);
    this.#tell("open");
    this.#handlers.onOpen();
  }

  /** @param {number} code */
  #dropped(code) {
    const wasOpen = this.#isOpen;
    this.#numFailures += 1;
    this.#leave(code);
    if (wasOpen) this.#retryLater(null);
    else void this.#retryWhenProbed();
  }

  /** @param {number} code */
  #leave(code) {
    const socket = this.#socket;
    const wasOpen = this.#isOpen;
    this.#socket = null;
    this.#isOpen = false;
    this.#options.clock.clearTimeout(this.#stableTimer);
    socket?.close();
    if (wasOpen) this.#handlers.onDrop(code);
  }

  /** @param {ConnectionState} state @param {Verdict | null} verdict */
  #end(state, verdict) {
    this.#isClosed = true;
    this.#cancelRetry();
    this.#leave(0);
    this.#tell(state, null, verdict);
  }

  async #retryWhenProbed() {
    const attempt = this.#numAttempts;
    const verdict = await this.#options.probe();
    // Someone may have connected or closed while the answer was on its way.
    if (this.#isClosed || this.#numAttempts !== attempt) return;
    if (verdict === "unauthorized") this.refuse();
    else this.#retryLater(verdict);
  }

  /** @param {Verdict | null} verdict */
  #retryLater(verdict) {
    const { clock } = this.#options;
    const ceiling = Math.min(MAX_DELAY_MS, BASE_DELAY_MS * 2 ** (this.#numFailures - 1));
    // Jitter keeps many pages from coming back in the same instant.
    const delay = ceiling * (0.5 + 0.5 * clock.random());
    this.#retryTimer = clock.setTimeout(() => this.connect(), delay);
    this.#tell("reconnecting", clock.now() + delay, verdict);
  }

  #cancelRetry() {
    this.#options.clock.clearTimeout(this.#retryTimer);
    this.#retryTimer = null;
  }

  /** @param {ConnectionState} state @param {number | null} retryAt @param {Verdict | null} verdict */
  #tell(state, retryAt = null, verdict = null) {
    this.#handlers.onStatus({ state, retryAt, verdict });
  }
}
