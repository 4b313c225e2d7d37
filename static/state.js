// @ts-check
/**
 * The state of the page and the reducer that updates it. Pure functions: no DOM, socket or clock.
 */

import { isOpen, merge, titleOf } from "./conversation.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./conversation.js").Reply} Reply */
/** @typedef {import("./protocol.js").ServerFrame} ServerFrame */
/** @typedef {import("./protocol.js").ProtocolError} ProtocolError */
/** @typedef {import("./connection.js").ConnectionStatus} ConnectionStatus */
/** @typedef {import("./client.js").ClientEvent} ClientEvent */
/** @typedef {import("./settings.js").Settings} Settings */
/** @typedef {import("./health.js").Health} Health */

/**
 * The state of the page.
 * @typedef {object} State
 * @property {Record<string, Conversation>} conversations
 * @property {string | null} activeId null for a new chat without messages
 * @property {string[]} deletedIds hidden conversations that the user can still restore
 * @property {ConnectionStatus} connection
 * @property {Settings} settings
 * @property {Health | null} health
 * @property {ProtocolError | null} notice
 */

/**
 * @typedef {ClientEvent
 *   | {type: 'message_sent', conversationId: string, parentId: string, messageId: string, replyId: string, text: string, at: number}
 *   | {type: 'reply_requested', conversationId: string, parentId: string, replyId: string, at: number}
 *   | {type: 'stop_requested', replyId: string}
 *   | {type: 'branch_chosen', conversationId: string, messageId: string}
 *   | {type: 'conversation_opened', conversationId: string | null}
 *   | {type: 'conversation_renamed', conversationId: string, title: string}
 *   | {type: 'conversation_deleted', conversationId: string}
 *   | {type: 'conversation_restored', conversationId: string}
 *   | {type: 'conversation_purged', conversationId: string}
 *   | {type: 'conversation_merged', conversation: Conversation, isReceivedHere: (replyId: string) => boolean}
 *   | {type: 'settings_changed', settings: Settings}
 *   | {type: 'health_changed', health: Health | null}
 *   | {type: 'notice_dismissed'}} Action
 */

/**
 * Return the state of a page that has just loaded.
 * @param {Conversation[]} conversations @param {string | null} activeId @param {Settings} settings
 * @returns {State}
 */
export function initialState(conversations, activeId, settings) {
  const byId = Object.fromEntries(conversations.map((one) => [one.id, one]));
  return {
    conversations: byId,
    activeId: activeId !== null && activeId in byId ? activeId : null,
    deletedIds: [],
    connection: { state: "connecting", retryAt: null, failureReason: null },
    settings,
    health: null,
    notice: null,
  };
}

/**
 * Return the state after an action.
 * @param {State} state @param {Action} action @returns {State}
 */
export function reduce(state, action) {
  switch (action.type) {
    case "connection_changed":
      return { ...state, connection: action.status };
    case "frame_received":
      return updateReply(state, action.replyId, (reply) => receive(reply, action.frame, action.at));
    case "reply_dropped":
      return updateReply(state, action.replyId, (reply) => ({
        ...reply,
        status: reply.generationId ? "reconnecting" : "queued",
        queue: null,
        wasDisconnected: true,
        rateStart: null,
        rateEnd: null,
      }));
    case "reply_stopped":
      return updateReply(state, action.replyId, (reply) => ({ ...finished(reply), status: "stopped" }));
    case "reply_lost":
      return updateReply(state, action.replyId, (reply) => ({
        ...finished(reply),
        status: "interrupted",
        error: action.error,
      }));
    case "stop_requested":
      return updateReply(state, action.replyId, (reply) => ({ ...reply, isStopping: true }));
    case "message_sent":
      return sendMessage(state, action);
    case "reply_requested":
      return updateConversation(state, action.conversationId, (conversation) =>
        addReply(conversation, action.parentId, action.replyId, action.at),
      );
    case "branch_chosen":
      return updateConversation(state, action.conversationId, (conversation) => {
        const { parentId } = conversation.messages[action.messageId];
        return { ...conversation, choices: { ...conversation.choices, [parentId]: action.messageId } };
      });
    case "conversation_opened":
      return { ...state, activeId: action.conversationId };
    case "conversation_renamed":
      return updateConversation(state, action.conversationId, (conversation) => ({
        ...conversation,
        title: action.title,
      }));
    case "conversation_deleted":
      return {
        ...state,
        deletedIds: [...state.deletedIds, action.conversationId],
        activeId: state.activeId === action.conversationId ? null : state.activeId,
      };
    case "conversation_restored":
      return {
        ...state,
        deletedIds: state.deletedIds.filter((id) => id !== action.conversationId),
        activeId: action.conversationId,
      };
    case "conversation_purged":
      return purge(state, action.conversationId);
    case "conversation_merged":
      return mergeConversation(state, action.conversation, action.isReceivedHere);
    case "settings_changed":
      return { ...state, settings: action.settings };
    case "health_changed":
      return { ...state, health: action.health };
    case "notice_raised":
      return { ...state, notice: action.error };
    case "notice_dismissed":
      return { ...state, notice: null };
    default:
      return { ...state, notice: unknown(/** @type {{type: string}} */ (action).type) };
  }
}

/**
 * Return the reply after a frame.
 * @param {Reply} reply @param {ServerFrame} frame @param {number} at
 */
function receive(reply, frame, at) {
  switch (frame.type) {
    case "accepted": {
      const hasChanged = reply.generationId !== null && reply.generationId !== frame.generation_id;
      // The cursor is valid for one log only: discard the text if the generation has changed.
      const start = hasChanged ? { text: "", seq: -1 } : {};
      return { ...reply, ...start, generationId: frame.generation_id, model: frame.model };
    }
    case "queued": {
      const queue = { position: frame.position, estimatedWaitS: frame.estimated_wait_s };
      return { ...reply, status: /** @type {const} */ ("queued"), queue };
    }
    case "started":
      return { ...reply, status: /** @type {const} */ ("streaming"), queue: null };
    case "delta": {
      if (frame.seq <= reply.seq) return reply;
      const mark = { seq: frame.seq, at };
      return {
        ...reply,
        status: /** @type {const} */ ("streaming"),
        text: reply.text + frame.text,
        seq: frame.seq,
        queue: null,
        rateStart: reply.rateStart ?? mark,
        rateEnd: mark,
      };
    }
    case "done": {
      const isCancelledByServer =
        frame.finish_reason === "cancelled" && reply.wasDisconnected && !reply.isStopping;
      return {
        ...finished(reply),
        status: /** @type {Reply['status']} */ (
          isCancelledByServer ? "interrupted" : frame.finish_reason === "cancelled" ? "stopped" : "done"
        ),
        seq: Math.max(reply.seq, frame.seq),
        finishReason: frame.finish_reason,
        usage: frame.usage,
        timings: frame.timings,
      };
    }
    case "error":
      return {
        ...finished(reply),
        status: /** @type {const} */ ("error"),
        seq: Math.max(reply.seq, frame.seq ?? -1),
        error: frame.error,
      };
    default:
      return reply;
  }
}

/** Clear the fields that only replies in progress use. @param {Reply} reply @returns {Reply} */
function finished(reply) {
  return { ...reply, queue: null, rateStart: null, rateEnd: null, isStopping: false };
}

/** @param {State} state @param {Extract<Action, {type: 'message_sent'}>} action */
function sendMessage(state, action) {
  const { conversationId, parentId, messageId, replyId, text, at } = action;
  const existing = state.conversations[conversationId];
  /** @type {Conversation} */
  const base = existing ?? {
    id: conversationId,
    title: titleOf(text),
    createdAt: at,
    updatedAt: at,
    messages: {},
    choices: {},
  };
  /** @type {import("./conversation.js").UserMessage} */
  const userMessage = { role: "user", id: messageId, parentId, createdAt: at, text };
  const withMessage = {
    ...base,
    messages: { ...base.messages, [messageId]: userMessage },
    choices: { ...base.choices, [parentId]: messageId },
  };
  const conversation = addReply(withMessage, messageId, replyId, at);
  return {
    ...state,
    activeId: conversationId,
    conversations: { ...state.conversations, [conversationId]: conversation },
  };
}

/** @param {Conversation} conversation @param {string} parentId @param {string} replyId @param {number} at */
function addReply(conversation, parentId, replyId, at) {
  /** @type {Reply} */
  const reply = {
    role: "assistant",
    id: replyId,
    parentId,
    createdAt: at,
    text: "",
    seq: -1,
    status: "queued",
    generationId: null,
    model: null,
    queue: null,
    finishReason: null,
    usage: null,
    timings: null,
    error: null,
    isStopping: false,
    wasDisconnected: false,
    rateStart: null,
    rateEnd: null,
  };
  return {
    ...conversation,
    updatedAt: at,
    messages: { ...conversation.messages, [replyId]: reply },
    choices: { ...conversation.choices, [parentId]: replyId },
  };
}

/**
 * Update a reply in progress. A finished reply does not change.
 * @param {State} state @param {string} replyId @param {(reply: Reply) => Reply} change
 */
function updateReply(state, replyId, change) {
  const conversation = Object.values(state.conversations).find((one) => replyId in one.messages);
  const reply = conversation?.messages[replyId];
  if (!conversation || !reply || !isOpen(reply)) return state;
  const changed = change(reply);
  if (changed === reply) return state;
  return updateConversation(state, conversation.id, (current) => ({
    ...current,
    messages: { ...current.messages, [replyId]: changed },
  }));
}

/** @param {State} state @param {string} id @param {(conversation: Conversation) => Conversation} change */
function updateConversation(state, id, change) {
  const conversation = state.conversations[id];
  if (!conversation) return state;
  return { ...state, conversations: { ...state.conversations, [id]: change(conversation) } };
}

/** @param {State} state @param {string} id */
function purge(state, id) {
  const { [id]: _, ...conversations } = state.conversations;
  return {
    ...state,
    conversations,
    deletedIds: state.deletedIds.filter((other) => other !== id),
    activeId: state.activeId === id ? null : state.activeId,
  };
}

/** @param {State} state @param {Conversation} theirs @param {(replyId: string) => boolean} isReceivedHere */
function mergeConversation(state, theirs, isReceivedHere) {
  const ours = state.conversations[theirs.id];
  const merged = ours ? merge(ours, theirs, isReceivedHere) : theirs;
  if (merged === ours) return state;
  return { ...state, conversations: { ...state.conversations, [theirs.id]: merged } };
}

/** @param {string} type @returns {ProtocolError} */
function unknown(type) {
  return { code: "unknown_type", message: `Unknown event: ${type}.`, retryable: false };
}
