// @ts-check
/**
 * The frames of `WS /v1/stream` as types, and the subprotocols that its handshake needs.
 */

/** @typedef {{role: 'system' | 'user' | 'assistant', content: string}} ChatMessage */

/**
 * Sampling fields of `generate`; a field that is absent takes the server's default.
 * @typedef {object} Sampling
 * @property {number} [temperature]
 * @property {number} [top_p]
 * @property {number} [top_k]
 * @property {number} [min_p]
 * @property {number} [max_tokens]
 * @property {number} [seed]
 * @property {number} [repetition_penalty]
 * @property {string[]} [stop]
 */

/** @typedef {Sampling & {messages: ChatMessage[]}} GenerateRequest */

// Client to server.

/** @typedef {GenerateRequest & {type: 'generate', id: string}} GenerateFrame */
/** @typedef {{type: 'cancel', id: string}} CancelFrame */
/**
 * `after` is the `seq` of the last record that the client has; -1 is the start.
 * @typedef {{type: 'resume', id: string, generation_id: string, after: number}} ResumeFrame
 */
/** @typedef {GenerateFrame | CancelFrame | ResumeFrame} ClientFrame */

// Server to client.

/**
 * @typedef {object} AcceptedFrame
 * @property {'accepted'} type
 * @property {string} id
 * @property {string} generation_id the handle for `resume`
 * @property {string} model
 * @property {number} created_at unix seconds
 */

/**
 * @typedef {object} QueuedFrame
 * @property {'queued'} type
 * @property {string} id
 * @property {number} position 0 is next
 * @property {number | null} estimated_wait_s
 */

/**
 * @typedef {object} StartedFrame
 * @property {'started'} type
 * @property {string} id
 * @property {number} prompt_tokens
 * @property {number} cached_tokens
 */

/**
 * @typedef {object} DeltaFrame
 * @property {'delta'} type
 * @property {string} id
 * @property {number} seq index of the last record inside: the new cursor
 * @property {string} text
 */

/**
 * @typedef {object} Usage
 * @property {number} prompt_tokens
 * @property {number} cached_tokens
 * @property {number} completion_tokens
 * @property {number} total_tokens
 */

/**
 * Seconds, and null where the generation never got that far.
 * @typedef {object} Timings
 * @property {number | null} queue_s
 * @property {number | null} prefill_s
 * @property {number | null} ttft_s
 * @property {number | null} total_s
 * @property {number | null} tokens_per_s
 */

/** @typedef {'stop' | 'length' | 'tool_calls' | 'cancelled'} FinishReason */

/**
 * @typedef {object} DoneFrame
 * @property {'done'} type
 * @property {string} id
 * @property {number} seq
 * @property {FinishReason} finish_reason
 * @property {Usage} usage
 * @property {Timings} timings
 */

/**
 * @typedef {object} ProtocolError
 * @property {string} code
 * @property {string} message
 * @property {string | null} [param]
 * @property {boolean} retryable
 * @property {number | null} [retry_after_s]
 */

/**
 * With `id` it ends that generation; without, it concerns the connection.
 * @typedef {{type: 'error', id?: string | null, seq?: number | null, error: ProtocolError}} ErrorFrame
 */

/** @typedef {AcceptedFrame | QueuedFrame | StartedFrame | DeltaFrame | DoneFrame} StreamFrame */
/** @typedef {StreamFrame | ErrorFrame} ServerFrame */

export const SUBPROTOCOL = "tokenwire.v1";

/** Close code of a frame that is larger than the server takes: RFC 6455 §7.4.1. */
export const CLOSE_FRAME_TOO_BIG = 1009;

/** Errors that say that a log, or the place in it, is gone for good. */
export const LOST_CODES = new Set(["generation_not_found", "cursor_lost"]);

/**
 * Return what to offer in the handshake; browsers cannot set an Authorization header.
 * @param {string} key the API key; empty when there is none
 * @returns {string[]}
 */
export function subprotocols(key) {
  return key ? [SUBPROTOCOL, `tokenwire.key.${base64url(key)}`] : [SUBPROTOCOL];
}

/** The UTF-8 of a text, one character a byte, as headers and `btoa` want it. @param {string} text */
export function byteString(text) {
  return Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
}

/** @param {string} text */
function base64url(text) {
  return btoa(byteString(text)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
