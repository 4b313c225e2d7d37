// @ts-check
/**
 * What the server says of itself over HTTP. No DOM.
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
 * @param {typeof fetch} fetch
 * @returns {Promise<Health | null>} null when the server does not answer
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
 * Find out why a socket was refused: a browser does not tell its status.
 * @param {typeof fetch} fetch @param {string} key the API key; empty when there is none
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
