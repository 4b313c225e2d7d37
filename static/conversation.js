// @ts-check
/**
 * A conversation is a tree of messages; the page shows one path through it. Pure functions.
 *
 * Editing a message or regenerating a reply adds a sibling, so earlier versions are kept.
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
 * A reply of the model. `text` is always the text of the server's log up to and including `seq`.
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
 * @property {boolean} isStopping the user pressed Stop
 * @property {boolean} wasDisconnected the connection was lost at least once
 * @property {{seq: number, at: number} | null} rateStart first delta on this connection
 * @property {{seq: number, at: number} | null} rateEnd latest delta
 */

/** @typedef {UserMessage | Reply} Message */

/**
 * @typedef {object} Conversation
 * @property {string} id
 * @property {string} title
 * @property {number} createdAt unix milliseconds
 * @property {number} updatedAt unix milliseconds
 * @property {Record<string, Message>} messages
 * @property {Record<string, string>} choices shown child by parent id; the default is the newest
 */

/** Parent id of the first message. */
export const ROOT = "root";
const MAX_TITLE_CHARS = 60;

const OPEN = new Set(["queued", "streaming", "reconnecting"]);

/**
 * Return whether the reply is still in progress.
 * @param {Message} message @returns {message is Reply}
 */
export function isOpen(message) {
  return message.role === "assistant" && OPEN.has(message.status);
}

/** Return the replies in progress. @param {Conversation} conversation @returns {Reply[]} */
export function openReplies(conversation) {
  return Object.values(conversation.messages).filter(isOpen);
}

/**
 * Return the messages with this parent, oldest first.
 * @param {Conversation} conversation @param {string} parentId
 */
export function children(conversation, parentId) {
  return Object.values(conversation.messages)
    .filter((message) => message.parentId === parentId)
    .sort((a, b) => a.createdAt - b.createdAt);
}

/** Return the messages that the page shows, in order. @param {Conversation} conversation */
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
    byParent.delete(chosen.parentId); // a damaged tree may contain a cycle
  }
  return shown;
}

/**
 * Return the messages to send to the model: the branch up to and including `lastId`.
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
    // Some chat templates require alternating roles: after a failed reply, join two user messages.
    if (last?.role === role) last.content += `\n\n${text}`;
    else messages.push({ role, content: text });
  }
  return messages;
}

/** Return a title for a new conversation. @param {string} text the first message */
export function titleOf(text) {
  const firstLine = text.trim().split("\n", 1)[0].replace(/\s+/g, " ");
  const chars = Array.from(firstLine);
  if (chars.length <= MAX_TITLE_CHARS) return firstLine || "New chat";
  return `${chars
    .slice(0, MAX_TITLE_CHARS - 1)
    .join("")
    .trimEnd()}…`;
}

/**
 * Merge a copy stored by another tab into ours. Returns `ours` itself if nothing is new.
 * @param {Conversation} ours @param {Conversation} theirs
 * @param {(replyId: string) => boolean} isReceivedHere whether this tab receives the reply itself
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

/**
 * Return whether their copy of a message is more complete.
 * @param {Message} theirs @param {Message} ours
 */
function isNewer(theirs, ours) {
  if (theirs.role !== "assistant" || ours.role !== "assistant") return false;
  if (ours.status === "interrupted") {
    // The rest is missing only here: the other tab may have received it or still be receiving it.
    return isOpen(theirs) ? !ours.generationId && !!theirs.generationId : theirs.status !== "interrupted";
  }
  if (!isOpen(ours)) return false;
  return !isOpen(theirs) || theirs.seq > ours.seq || (!ours.generationId && !!theirs.generationId);
}

/** Return the shown messages as a Markdown document. @param {Conversation} conversation */
export function toMarkdown(conversation) {
  const parts = path(conversation).map(
    ({ role, text }) => `## ${role === "user" ? "You" : "Assistant"}\n\n${text.trim()}\n`,
  );
  return [`# ${conversation.title}\n`, ...parts].join("\n");
}
