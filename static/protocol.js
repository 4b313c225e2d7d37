// @ts-check
/**
 * Types for the frames of `WS /v1/stream`, and the subprotocols for its handshake.
 */

/** @typedef {{role: 'system' | 'user' | 'assistant', content: string}} ChatMessage */

/**
 * Sampling fields of `generate`. For a missing field, the server uses its default.
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
 * `after` is the `seq` of the last record that the client has received; -1 means none.
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
 * @property {number} created_at Unix time in seconds
 */

/**
 * @typedef {object} QueuedFrame
 * @property {'queued'} type
 * @property {string} id
 * @property {number} position 0 means next
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
 * @property {number} seq index of the last record in this frame: the new cursor
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
 * Times in seconds; null if the generation ended before that point.
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
 * With `id`, it ends that generation; without, it applies to the connection.
 * @typedef {{type: 'error', id?: string | null, seq?: number | null, error: ProtocolError}} ErrorFrame
 */

/** @typedef {AcceptedFrame | QueuedFrame | StartedFrame | DeltaFrame | DoneFrame} StreamFrame */
/** @typedef {StreamFrame | ErrorFrame} ServerFrame */

export const SUBPROTOCOL = "tokenwire.v1";

/** Close code for a frame that exceeds the server's size limit: RFC 6455 §7.4.1. */
export const CLOSE_FRAME_TOO_BIG = 1009;

/** Error codes that mean that the log, or the requested position in it, no longer exists. */
export const LOST_CODES = new Set(["generation_not_found", "cursor_lost"]);

/**
 * Return the subprotocols to offer in the handshake. They carry the API key because browsers cannot
 * set an `Authorization` header.
 * @param {string} key the API key, or an empty string
 * @returns {string[]}
 */
export function subprotocols(key) {
  return key ? [SUBPROTOCOL, `tokenwire.key.${base64url(key)}`] : [SUBPROTOCOL];
}

/**
 * Return the UTF-8 bytes as a binary string, one character per byte, for `btoa` and headers.
 * @param {string} text
 */
export function byteString(text) {
  return Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
}

/** @param {string} text */
function base64url(text) {
  return btoa(byteString(text)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}
