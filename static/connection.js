// @ts-check
/**
 * One socket at a time, and the way back to it after a drop. Knows frames only as text. No DOM.
 *
 * Handlers are bound to their socket: what an old socket still says is ignored.
 */

import { subprotocols } from "./protocol.js";

/** @typedef {'connecting' | 'open' | 'reconnecting' | 'unauthorized' | 'closed'} ConnectionState */

/** Why a handshake failed. @typedef {'unauthorized' | 'refused' | 'busy' | 'unreachable'} FailureReason */

/**
 * @typedef {object} ConnectionStatus
 * @property {ConnectionState} state
 * @property {number | null} retryAt when the next attempt is made, in milliseconds of the clock
 * @property {FailureReason | null} failureReason
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
 * @property {() => Promise<FailureReason>} probe asked why a handshake failed, which the browser hides
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
    this.#setState(this.#hasBeenOpen || this.#numFailures ? "reconnecting" : "connecting");
    const { WebSocket, url } = this.#options;
    const socket = new WebSocket(url, subprotocols(this.#key));
    this.#socket = socket;
    socket.onopen = () => {
      if (this.#socket === socket) this.#handleOpen();
    };
    socket.onmessage = ({ data }) => {
      if (this.#socket === socket) this.#handlers.onMessage(String(data));
    };
    socket.onclose = ({ code }) => {
      if (this.#socket === socket) this.#handleClose(code);
    };
  }

  /** Leave the present socket, if there is one, and connect at once. */
  reconnect() {
    this.#numFailures = 0;
    this.#closeSocket(0);
    this.connect();
  }

  /** Try now what was to be tried later. */
  retryNow() {
    if (this.#retryTimer !== null) this.reconnect();
  }

  /** Connect as another caller. @param {string} key */
  setKey(key) {
    this.#key = key;
    this.reconnect();
  }

  close() {
    this.#stop("closed", null);
  }

  /** The server does not know this caller; only another key helps. */
  rejectKey() {
    this.#stop("unauthorized", "unauthorized");
  }

  /** @param {string} text */
  send(text) {
    this.#socket?.send(text);
  }

  #handleOpen() {
    this.#isOpen = true;
    this.#hasBeenOpen = true;
    this.#stableTimer = this.#options.clock.setTimeout(() => {
      this.#numFailures = 0;
    }, STABLE_MS);
    this.#setState("open");
    this.#handlers.onOpen();
  }

  /** @param {number} code */
  #handleClose(code) {
    const wasOpen = this.#isOpen;
    this.#numFailures += 1;
    this.#closeSocket(code);
    if (wasOpen) this.#scheduleRetry(null);
    else void this.#probeAndRetry();
  }

  /** @param {number} code */
  #closeSocket(code) {
    const socket = this.#socket;
    const wasOpen = this.#isOpen;
    this.#socket = null;
    this.#isOpen = false;
    this.#options.clock.clearTimeout(this.#stableTimer);
    socket?.close();
    if (wasOpen) this.#handlers.onDrop(code);
  }

  /** @param {ConnectionState} state @param {FailureReason | null} failureReason */
  #stop(state, failureReason) {
    this.#isClosed = true;
    this.#cancelRetry();
    this.#closeSocket(0);
    this.#setState(state, null, failureReason);
  }

  async #probeAndRetry() {
    const attempt = this.#numAttempts;
    const failureReason = await this.#options.probe();
    // Someone may have connected or closed while the answer was on its way.
    if (this.#isClosed || this.#numAttempts !== attempt) return;
    if (failureReason === "unauthorized") this.rejectKey();
    else this.#scheduleRetry(failureReason);
  }

  /** @param {FailureReason | null} failureReason */
  #scheduleRetry(failureReason) {
    const { clock } = this.#options;
    const ceiling = Math.min(MAX_DELAY_MS, BASE_DELAY_MS * 2 ** (this.#numFailures - 1));
    // Jitter keeps many pages from coming back in the same instant.
    const delay = ceiling * (0.5 + 0.5 * clock.random());
    this.#retryTimer = clock.setTimeout(() => this.connect(), delay);
    this.#setState("reconnecting", clock.now() + delay, failureReason);
  }

  #cancelRetry() {
    this.#options.clock.clearTimeout(this.#retryTimer);
    this.#retryTimer = null;
  }

  /** @param {ConnectionState} state @param {number | null} retryAt @param {FailureReason | null} failureReason */
  #setState(state, retryAt = null, failureReason = null) {
    this.#handlers.onStatus({ state, retryAt, failureReason });
  }
}
