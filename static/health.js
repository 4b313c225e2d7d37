// @ts-check
/**
 * Asks the server for its health, and why it rejected a handshake, over HTTP. No DOM access.
 */

import { byteString } from "./protocol.js";

/** @typedef {import("./connection.js").FailureReason} FailureReason */

/**
 * The fields of `GET /health` that the page uses.
 * @typedef {object} Health
 * @property {string} status
 * @property {boolean} model_loaded
 * @property {string | null} model
 * @property {number} active
 * @property {number} queued
 * @property {boolean} has_chat_template
 * @property {number} max_model_len
 */

/**
 * Fetch `GET /health`.
 * @param {typeof fetch} fetch
 * @returns {Promise<Health | null>} null if the server does not respond
 */
export async function fetchHealth(fetch) {
  try {
    const response = await fetch("/health", { cache: "no-store" });
    return /** @type {Health} */ (await response.json());
  } catch {
    return null;
  }
}

/**
 * Find out why a WebSocket handshake failed; browsers do not expose its HTTP status.
 * @param {typeof fetch} fetch @param {string} key the API key, or an empty string
 * @returns {Promise<FailureReason>}
 */
export async function probe(fetch, key) {
  /** @type {Record<string, string>} */
  const headers = key ? { Authorization: `Bearer ${byteString(key)}` } : {};
  try {
    const { status } = await fetch("/v1/models", { headers, cache: "no-store" });
    if (status === 401) return "unauthorized";
    return status === 429 || status >= 500 ? "busy" : "refused";
  } catch {
    return "unreachable";
  }
}
