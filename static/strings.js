// @ts-check
/**
 * Texts about replies, errors and the connection. Pure functions, no DOM access.
 */

import { isOpen } from "./conversation.js";

/** @typedef {import("./conversation.js").Reply} Reply */
/** @typedef {import("./connection.js").ConnectionStatus} ConnectionStatus */
/** @typedef {import("./health.js").Health} Health */
/** @typedef {import("./protocol.js").ProtocolError} ProtocolError */

/** Minimum number of tokens for a meaningful rate. */
const MIN_RATE_TOKENS = 8;

/** Return the position in the queue. @param {NonNullable<Reply['queue']>} queue */
export function queueText({ position, estimatedWaitS }) {
  const text = position === 0 ? "Next in the queue" : `Position ${position + 1} in the queue`;
  return estimatedWaitS === null ? text : `${text} · about ${formatDuration(estimatedWaitS)}`;
}

/** Return the status line of a reply; empty if its text is enough. @param {Reply} reply */
export function statusText(reply) {
  if (reply.isStopping && isOpen(reply)) return "Stopping…";
  switch (reply.status) {
    case "queued":
      return reply.generationId ? "Waiting for the model…" : "Sending…";
    case "streaming":
      return reply.text ? "" : "Processing your message…";
    case "reconnecting":
      return "Connection lost. The reply resumes after reconnecting.";
    case "done":
      return reply.finishReason === "length" ? "Stopped at the maximum number of tokens." : "";
    case "stopped":
      return "Stopped.";
    case "interrupted":
      return reply.generationId
        ? "Interrupted. The server no longer has the rest of this reply."
        : "Not sent. The page was closed before the server received this message.";
    case "error":
      return reply.error ? errorText(reply.error) : "Something went wrong.";
    default:
      return "";
  }
}

/**
 * Return a message for the user, with the time to wait if the server gave one.
 * @param {ProtocolError} error
 */
export function errorText(error) {
  const wait = error.retry_after_s ? ` Try again in ${formatDuration(error.retry_after_s)}.` : "";
  return `${ERROR_MESSAGES[error.code] ?? error.message}${wait}`;
}

/** @type {Record<string, string>} */
const ERROR_MESSAGES = {
  overloaded: "The server is busy: its queue is full.",
  rate_limited: "Too many requests.",
  shutting_down: "The server is shutting down.",
  timeout: "The reply took longer than the server allows.",
  engine_error: "The model failed while generating this reply.",
};

/**
 * Return token rate, time to first token and size; during streaming, the live rate.
 * @param {Reply} reply
 */
export function statsText(reply) {
  const { usage, timings } = reply;
  const parts = [];
  const rate = timings ? timings.tokens_per_s : liveRate(reply);
  if (rate !== null) parts.push(`${rate.toFixed(1)} tokens/s`);
  const wait = timings?.ttft_s ?? null;
  if (wait !== null)
    parts.push(`first token ${wait < 1 ? `${Math.round(wait * 1000)} ms` : `${wait.toFixed(1)} s`}`);
  if (usage) parts.push(pluralize(usage.completion_tokens, "token"));
  return parts.join(" · ");
}

/** @param {Reply} reply */
function liveRate({ rateStart, rateEnd }) {
  if (!rateStart || !rateEnd) return null;
  const numTokens = rateEnd.seq - rateStart.seq;
  const seconds = (rateEnd.at - rateStart.at) / 1000;
  return numTokens < MIN_RATE_TOKENS || seconds <= 0 ? null : numTokens / seconds;
}

/**
 * Return the connection status; when connected, the model.
 * @param {ConnectionStatus} connection @param {Health | null} health
 */
export function connectionText({ state, failureReason }, health) {
  switch (state) {
    case "connecting":
      return "Connecting…";
    case "open":
      return health?.model ?? "Connected";
    case "reconnecting":
      return failureReason === "busy" ? "Server busy, retrying…" : "Reconnecting…";
    case "unauthorized":
      return "API key required";
    case "closed":
      return "Disconnected";
    default:
      return "";
  }
}

/** Return what screen readers announce when a reply changes its status. @param {Reply} reply */
export function announcement(reply) {
  if (reply.queue) return queueText(reply.queue);
  return statusText(reply) || (reply.status === "done" ? "Reply complete." : "");
}

/** Return a count with its noun, such as `2 tokens`. @param {number} count @param {string} noun */
export function pluralize(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

/** @param {number} seconds */
function formatDuration(seconds) {
  if (seconds < 1) return "a second";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return `${Math.round(seconds / 60)} min`;
}
