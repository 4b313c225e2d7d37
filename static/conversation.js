// @ts-check
/**
 * A conversation: a tree of messages of which one path is shown. Pure functions, no state.
 *
 * Editing a message or asking for another answer adds a sibling, so nothing that was said is lost.
 */

/** @typedef {import("./protocol.js").ChatMessage} ChatMessage */
/** @typedef {import("./protocol.js").Usage} Usage */
/** @typedef {import("./protocol.js").Timings} Timings */
/** @typedef {import("./protocol.js").FinishReason} FinishReason */
/** @typedef {import("./protocol.js").ProtocolError} ProtocolError */

/** @typedef {'queued' | 'streaming' | 'reconnecting' | 'done' | 'stopped' | 'error' | 'interrupted'} ReplyStatus */

/**
 * @typedef {object} UserMessage
 * @property {'user'} role
 * @property {string} id
 * @property {string} parentId
 * @property {number} createdAt unix milliseconds
 * @property {string} text
 */

/**
 * `text` is always the text of the log up to and with record `seq`.
 * @typedef {object} Reply
 * @property {'assistant'} role
 * @property {string} id
 * @property {string} parentId
 * @property {number} createdAt unix milliseconds
 * @property {string} text
 * @property {number} seq
 * @property {ReplyStatus} status
 * @property {string | null} generationId
 * @property {string | null} model
 * @property {{position: number, estimatedWaitS: number | null} | null} queue
 * @property {FinishReason | null} finishReason
 * @property {Usage | null} usage
 * @property {Timings | null} timings
 * @property {ProtocolError | null} error
 * @property {boolean} isStopping the user asked for the end
 * @property {boolean} wasDisconnected the connection was lost at least once
 * @property {{seq: number, at: number} | null} rateStart where the pace is measured from, on this page
 * @property {{seq: number, at: number} | null} rateEnd
 */

/** @typedef {UserMessage | Reply} Message */

/**
 * @typedef {object} Conversation
 * @property {string} id
 * @property {string} title
 * @property {number} createdAt unix milliseconds
 * @property {number} updatedAt unix milliseconds
 * @property {Record<string, Message>} messages
 * @property {Record<string, string>} choices which child of a message is shown; others: the newest
 */

export const ROOT = "root";
const MAX_TITLE_CHARS = 60;

const OPEN = new Set(["queued", "streaming", "reconnecting"]);

/** Whether more of the reply is to come. @param {Message} message @returns {message is Reply} */
export function isOpen(message) {
  return message.role === "assistant" && OPEN.has(message.status);
}

/** @param {Conversation} conversation @returns {Reply[]} */
export function openReplies(conversation) {
  return Object.values(conversation.messages).filter(isOpen);
}

/** Messages with the same parent, oldest first. @param {Conversation} conversation @param {string} parentId */
export function children(conversation, parentId) {
  return Object.values(conversation.messages)
    .filter((message) => message.parentId === parentId)
    .sort((a, b) => a.createdAt - b.createdAt);
}

/** The messages that are shown, from the first on. @param {Conversation} conversation */
export function path(conversation) {
  /** @type {Map<string, Message[]>} */
  const byParent = new Map();
  for (const message of Object.values(conversation.messages)) {
    const siblings = byParent.get(message.parentId);
    if (siblings) siblings.push(message);
    else byParent.set(message.parentId, [message]);
  }
  const shown = [];
  let parentId = ROOT;
  for (let siblings = byParent.get(parentId); siblings; siblings = byParent.get(parentId)) {
    const newest = siblings.reduce((a, b) => (b.createdAt >= a.createdAt ? b : a));
    const chosen = siblings.find(({ id }) => id === conversation.choices[parentId]) ?? newest;
    shown.push(chosen);
    parentId = chosen.id;
    byParent.delete(chosen.parentId); // a damaged tree must not go round in circles
  }
  return shown;
}

/**
 * What the model is told: everything up to and with the message `lastId`.
 * @param {Conversation} conversation @param {string} lastId @param {string} systemPrompt
 * @returns {ChatMessage[]}
 */
export function history(conversation, lastId, systemPrompt) {
  /** @type {Message[]} */
  const branch = [];
  for (
    let message = conversation.messages[lastId];
    message;
    message = conversation.messages[message.parentId]
  ) {
    branch.unshift(message);
  }
  /** @type {ChatMessage[]} */
  const messages = systemPrompt.trim() ? [{ role: "system", content: systemPrompt.trim() }] : [];
  for (const { role, text } of branch) {
    const last = messages.at(-1);
    if (!text.trim()) continue;
    // Some chat templates insist on turns: a question whose answer failed joins the next one.
    if (last?.role === role) last.content += `\n\n${text}`;
    else messages.push({ role, content: text });
  }
  return messages;
}

/** @param {string} text the first message */
export function titleOf(text) {
  const branch = text.trim().split("\n", 1)[0].replace(/\s+/g, " ");
  const chars = Array.from(branch);
  if (chars.length <= MAX_TITLE_CHARS) return branch || "New chat";
  return `${chars
    .slice(0, MAX_TITLE_CHARS - 1)
    .join("")
    .trimEnd()}…`;
}

/**
 * Join what another tab has stored with what this one has; `ours` itself when nothing is new.
 * @param {Conversation} ours @param {Conversation} theirs
 * @param {(replyId: string) => boolean} isReceivedHere replies that this tab receives itself
 * @returns {Conversation}
 */
export function merge(ours, theirs, isReceivedHere) {
  /** @type {Record<string, Message>} */
  const updates = {};
  for (const message of Object.values(theirs.messages)) {
    const known = ours.messages[message.id];
    if (!known) updates[message.id] = message;
    else if (!isReceivedHere(message.id) && isNewer(message, known)) updates[message.id] = message;
  }
  if (!Object.keys(updates).length && ours.title === theirs.title) return ours;
  return {
    ...ours,
    title: theirs.title,
    updatedAt: Math.max(ours.updatedAt, theirs.updatedAt),
    messages: { ...ours.messages, ...updates },
  };
}

/** @param {Message} theirs @param {Message} ours */
function isNewer(theirs, ours) {
  if (theirs.role !== "assistant" || ours.role !== "assistant") return false;
  if (ours.status === "interrupted") {
    // The rest is only missing here: the other tab may have been given it, or still be.
    return isOpen(theirs) ? !ours.generationId && !!theirs.generationId : theirs.status !== "interrupted";
  }
  if (!isOpen(ours)) return false;
  return !isOpen(theirs) || theirs.seq > ours.seq || (!ours.generationId && !!theirs.generationId);
}

/** The shown messages as a document. @param {Conversation} conversation */
export function toMarkdown(conversation) {
  const parts = path(conversation).map(
    ({ role, text }) => `## ${role === "user" ? "You" : "Assistant"}\n\n${text.trim()}\n`,
  );
  return [`# ${conversation.title}\n`, ...parts].join("\n");
}
