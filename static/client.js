// @ts-check
/**
 * Streams several replies over one WebSocket and tracks a cursor for each. No DOM access.
 *
 * After a reconnect, the client restores each stream: it sends `generate` again if the stream was
 * not accepted yet, and `resume` with the cursor otherwise.
 */

import { Connection } from "./connection.js";
import { CLOSE_FRAME_TOO_BIG, LOST_CODES } from "./protocol.js";

/** @typedef {import("./protocol.js").ServerFrame} ServerFrame */
/** @typedef {import("./protocol.js").ClientFrame} ClientFrame */
/** @typedef {import("./protocol.js").ErrorFrame} ErrorFrame */
/** @typedef {import("./protocol.js").ProtocolError} ProtocolError */
/** @typedef {import("./protocol.js").GenerateRequest} GenerateRequest */
/** @typedef {import("./connection.js").ConnectionStatus} ConnectionStatus */
/** @typedef {import("./connection.js").ConnectionOptions} ConnectionOptions */

/**
 * What the client reports to the page.
 * @typedef {{type: 'connection_changed', status: ConnectionStatus}
 *   | {type: 'frame_received', replyId: string, frame: ServerFrame, at: number}
 *   | {type: 'reply_dropped', replyId: string}
 *   | {type: 'reply_stopped', replyId: string}
 *   | {type: 'reply_lost', replyId: string, error: ProtocolError}
 *   | {type: 'notice_raised', error: ProtocolError}} ClientEvent
 */

/**
 * A reply that the client is receiving.
 * @typedef {object} Stream
 * @property {string} id
 * @property {GenerateRequest | null} request null after a page reload: only the cursor is stored
 * @property {string | null} generationId
 * @property {number} seq the cursor: `seq` of the last delta received, or -1
 * @property {boolean} isAccepted on the current socket
 * @property {number} numAttempts requests sent since the last `accepted`
 * @property {boolean} isCancelled
 * @property {boolean} isCancelSent on the current socket
 * @property {boolean} isDetached the page has stopped it; only the server's copy is left to cancel
 */

/** Reconnect when open streams receive no frame for this long. Resuming them is cheap. */
const STALL_MS = 30_000;
const MAX_STALL_MS = 480_000;
/** Limit on sending one request again, in case the request itself breaks the connection. */
const MAX_ATTEMPTS = 4;

/** Sends requests, routes frames to their replies, and resumes replies after a reconnect. */
export class StreamClient {
  /** @type {Map<string, Stream>} */
  #streams = new Map();
  #stallMs = STALL_MS;
  /** @type {any} */
  #stallTimer = null;
  #clock;
  #connection;
  #emit;

  /** @param {ConnectionOptions & {onEvent: (event: ClientEvent) => void}} options */
  constructor(options) {
    this.#clock = options.clock;
    this.#emit = options.onEvent;
    this.#connection = new Connection(options, {
      onStatus: (status) => this.#emit({ type: "connection_changed", status }),
      onOpen: () => this.#handleOpen(),
      onMessage: (text) => this.#handleMessage(text),
      onDrop: (code) => this.#handleDrop(code),
    });
  }

  /** Open the connection; a client starts disconnected. */
  connect() {
    this.#connection.connect();
  }

  /** Open a new socket. Call this when the network changes: the old socket may be dead silently. */
  reconnect() {
    this.#connection.reconnect();
  }

  /** Skip the wait before the next reconnect attempt. Call this when the page becomes visible. */
  retryNow() {
    this.#connection.retryNow();
  }

  /** Reconnect with another API key. @param {string} key */
  setKey(key) {
    this.#connection.setKey(key);
  }

  /** Close the connection and stop reconnecting. */
  close() {
    this.#connection.close();
  }

  /** Return whether this client is receiving the reply. @param {string} replyId */
  has(replyId) {
    return this.#streams.has(replyId);
  }

  /** Request a new reply. @param {string} replyId @param {GenerateRequest} request */
  generate(replyId, request) {
    this.#add({ id: replyId, request, generationId: null, seq: -1 });
  }

  /**
   * Resume a reply after the record `after`.
   * @param {string} replyId @param {string} generationId @param {number} after
   */
  resume(replyId, generationId, after) {
    this.#add({ id: replyId, request: null, generationId, seq: after });
  }

  /** Stop a reply. When offline, stop it on the page now and cancel it on the server later. */
  cancel(/** @type {string} */ replyId) {
    const stream = this.#streams.get(replyId);
    if (!stream || stream.isCancelled) return;
    stream.isCancelled = true;
    if (!this.#connection.isOpen) this.#stopLocally(stream);
    // Until a pending resume is accepted, the server does not know the id; cancel it then.
    else if (stream.isAccepted || !stream.generationId) this.#sendCancel(stream);
  }

  /** @param {Pick<Stream, 'id' | 'request' | 'generationId' | 'seq'>} start */
  #add(start) {
    const fresh = { isAccepted: false, numAttempts: 0 };
    const flags = { isCancelled: false, isCancelSent: false, isDetached: false };
    const stream = { ...start, ...fresh, ...flags };
    this.#streams.set(stream.id, stream);
    if (this.#connection.isOpen) this.#sendRequest(stream);
    else this.#connection.retryNow();
  }

  /** @param {Stream} stream */
  #sendRequest(stream) {
    const { id, generationId, seq, request } = stream;
    stream.numAttempts += 1;
    if (generationId) {
      this.#send({ type: "resume", id, generation_id: generationId, after: seq });
    } else if (request && stream.numAttempts <= MAX_ATTEMPTS) {
      this.#send({ type: "generate", id, ...request });
    } else {
      this.#fail(stream, "connection_lost", "The connection was lost each time this message was sent.");
    }
    this.#restartStallTimer();
  }

  /** @param {ClientFrame} frame */
  #send(frame) {
    this.#connection.send(JSON.stringify(frame));
  }

  /** @param {Stream} stream */
  #sendCancel(stream) {
    stream.isCancelSent = true;
    this.#send({ type: "cancel", id: stream.id });
  }

  #handleOpen() {
    for (const stream of [...this.#streams.values()]) this.#sendRequest(stream);
  }

  /** @param {string} text */
  #handleMessage(text) {
    /** @type {ServerFrame} */
    let frame;
    try {
      frame = JSON.parse(text);
    } catch {
      this.#raiseNotice("invalid_json", "The server sent a message that is not valid JSON.");
      return;
    }
    this.#restartStallTimer();
    if (frame.type === "error" && (!frame.id || frame.error.code === "unauthorized")) {
      this.#handleConnectionError(frame.error);
      return;
    }
    const stream = this.#streams.get(frame.id ?? "");
    if (stream) this.#handleStreamFrame(stream, frame);
    else this.#reportUnknown(frame);
  }

  /** @param {Stream} stream @param {ServerFrame} frame */
  #handleStreamFrame(stream, frame) {
    switch (frame.type) {
      case "accepted":
        stream.isAccepted = true;
        stream.generationId = frame.generation_id;
        stream.numAttempts = 0;
        if (stream.isCancelled && !stream.isCancelSent) this.#sendCancel(stream);
        break;
      case "queued":
      case "started":
        break;
      case "delta":
        if (frame.seq <= stream.seq) return;
        stream.seq = frame.seq;
        this.#stallMs = STALL_MS;
        break;
      case "done":
        this.#streams.delete(stream.id);
        break;
      case "error":
        if (this.#retryResume(stream, frame.error)) return;
        this.#streams.delete(stream.id);
        break;
      default:
        this.#reportUnknown(frame);
        return;
    }
    if (stream.isDetached) return;
    if (frame.type === "error" && LOST_CODES.has(frame.error.code)) {
      this.#emit({ type: "reply_lost", replyId: stream.id, error: frame.error });
    } else {
      this.#emit({ type: "frame_received", replyId: stream.id, frame, at: this.#clock.now() });
    }
  }

  /**
   * Schedule another attempt at a rejected resume if the error is retryable.
   * @returns {boolean} whether an attempt is scheduled; the reply itself has not failed then
   * @param {Stream} stream @param {ProtocolError} error
   */
  #retryResume(stream, error) {
    const isRefusedResume = stream.generationId !== null && !stream.isAccepted;
    if (!isRefusedResume || !error.retryable || stream.numAttempts > MAX_ATTEMPTS) return false;
    this.#clock.setTimeout(
      () => {
        const isWaiting = this.#streams.get(stream.id) === stream && !stream.isAccepted;
        if (isWaiting && this.#connection.isOpen) this.#sendRequest(stream);
      },
      (error.retry_after_s ?? 1) * 1000,
    );
    return true;
  }

  /**
   * Report frames of unknown types; ignore late frames of replies that have ended.
   * @param {ServerFrame} frame
   */
  #reportUnknown(frame) {
    switch (frame.type) {
      case "accepted":
      case "queued":
      case "started":
      case "delta":
      case "done":
      case "error":
        return;
      default:
        this.#raiseNotice("unknown_type", "The server sent a frame of an unknown type.");
    }
  }

  /** @param {ProtocolError} error */
  #handleConnectionError(error) {
    if (error.code === "unauthorized") this.#connection.rejectKey();
    else this.#emit({ type: "notice_raised", error });
  }

  /** @param {number} code */
  #handleDrop(code) {
    this.#clock.clearTimeout(this.#stallTimer);
    for (const stream of [...this.#streams.values()]) {
      stream.isAccepted = false;
      stream.isCancelSent = false;
      if (stream.isDetached) continue;
      if (stream.isCancelled) {
        this.#stopLocally(stream);
      } else if (!stream.generationId && code === CLOSE_FRAME_TOO_BIG) {
        this.#fail(stream, "frame_too_big", "This conversation is too large for the server.");
      } else {
        this.#emit({ type: "reply_dropped", replyId: stream.id });
      }
    }
  }

  /** @param {Stream} stream */
  #stopLocally(stream) {
    if (stream.generationId) stream.isDetached = true;
    else this.#streams.delete(stream.id);
    this.#emit({ type: "reply_stopped", replyId: stream.id });
  }

  /** @param {Stream} stream @param {string} code @param {string} message */
  #fail(stream, code, message) {
    this.#streams.delete(stream.id);
    /** @type {ErrorFrame} */
    const frame = { type: "error", id: stream.id, error: { code, message, retryable: false } };
    this.#emit({ type: "frame_received", replyId: stream.id, frame, at: this.#clock.now() });
  }

  /** @param {string} code @param {string} message */
  #raiseNotice(code, message) {
    this.#emit({ type: "notice_raised", error: { code, message, retryable: false } });
  }

  #restartStallTimer() {
    this.#clock.clearTimeout(this.#stallTimer);
    this.#stallTimer = this.#clock.setTimeout(() => {
      if (!this.#streams.size || !this.#connection.isOpen) return;
      // Back off, so that a slow model does not cause repeated reconnects.
      this.#stallMs = Math.min(MAX_STALL_MS, this.#stallMs * 2);
      this.#connection.reconnect();
    }, this.#stallMs);
  }
}
