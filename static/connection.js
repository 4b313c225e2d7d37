// @ts-check
/**
 * Keeps one WebSocket open and reconnects after a drop. Messages are plain text here. No DOM access.
 *
 * Each handler is bound to its socket, so events of a replaced socket are ignored.
 */

import { subprotocols } from "./protocol.js";

/** @typedef {'connecting' | 'open' | 'reconnecting' | 'unauthorized' | 'closed'} ConnectionState */

/** Why a handshake failed. @typedef {'unauthorized' | 'refused' | 'busy' | 'unreachable'} FailureReason */

/**
 * @typedef {object} ConnectionStatus
 * @property {ConnectionState} state
 * @property {number | null} retryAt time of the next attempt, in milliseconds of the clock
 * @property {FailureReason | null} failureReason why the last handshake failed
 */

/**
 * Time and randomness, replaced in tests.
 * @typedef {object} Clock
 * @property {() => number} now in milliseconds
 * @property {(callback: () => void, ms: number) => any} setTimeout
 * @property {(timer: any) => void} clearTimeout
 * @property {() => number} random in the range [0, 1)
 */

/**
 * @typedef {object} ConnectionOptions
 * @property {string} url
 * @property {string} key the API key, or an empty string
 * @property {typeof WebSocket} WebSocket
 * @property {Clock} clock
 * @property {() => Promise<FailureReason>} probe finds out why a handshake failed
 */

/**
 * @typedef {object} ConnectionHandlers
 * @property {(status: ConnectionStatus) => void} onStatus
 * @property {() => void} onOpen
 * @property {(text: string) => void} onMessage
 * @property {(code: number) => void} onDrop an open socket closed; 0 if this side closed it
 */

const BASE_DELAY_MS = 500;
const MAX_DELAY_MS = 30_000;
/** Reset the backoff once a socket has stayed open for this long. */
const STABLE_MS = 5_000;

/** A WebSocket that reconnects with exponential backoff and jitter. */
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

  /** Whether messages can be sent now. */
  get isOpen() {
    return this.#isOpen;
  }

  /** Connect unless a socket is already open or opening. */
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

  /** Close the current socket, if any, and connect immediately. */
  reconnect() {
    this.#numFailures = 0;
    this.#closeSocket(0);
    this.connect();
  }

  /** Skip the wait before the next reconnect attempt, if one is scheduled. */
  retryNow() {
    if (this.#retryTimer !== null) this.reconnect();
  }

  /** Reconnect with another API key. @param {string} key */
  setKey(key) {
    this.#key = key;
    this.reconnect();
  }

  /** Close the socket and stop reconnecting. */
  close() {
    this.#stop("closed", null);
  }

  /** Stop reconnecting because the server rejected the API key. `setKey` starts again. */
  rejectKey() {
    this.#stop("unauthorized", "unauthorized");
  }

  /** Send a text message. The socket must be open. @param {string} text */
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
    // Skip the retry if the caller connected or closed during the probe.
    if (this.#isClosed || this.#numAttempts !== attempt) return;
    if (failureReason === "unauthorized") this.rejectKey();
    else this.#scheduleRetry(failureReason);
  }

  /** @param {FailureReason | null} failureReason */
  #scheduleRetry(failureReason) {
    const { clock } = this.#options;
    const ceiling = Math.min(MAX_DELAY_MS, BASE_DELAY_MS * 2 ** (this.#numFailures - 1));
    // Jitter spreads the reconnects of many pages after an outage.
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
