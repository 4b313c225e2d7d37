// @ts-check
/**
 * Stores conversations in the browser, in any `Storage`. No DOM access.
 *
 * Each conversation is one value under one key. The text of a reply and its cursor are therefore
 * written together and stay consistent, whenever the page is closed.
 */

import { isOpen } from "./conversation.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./conversation.js").Message} Message */
/** @typedef {import("./connection.js").Clock} Clock */

const PREFIX = "tokenwire.v1.";
const CONVERSATION_PREFIX = `${PREFIX}conversation.`;
const WRITE_INTERVAL_MS = 500;

/** @typedef {Pick<Storage, 'getItem' | 'setItem' | 'removeItem' | 'key' | 'length'>} KeyValueStorage */

/** Reads and writes conversations and single values; writes are batched. */
export class Store {
  /** @type {Map<string, Conversation>} */
  #pending = new Map();
  /** @type {any} */
  #timer = null;
  #storage;
  #clock;
  #onFailure;

  /**
   * @param {object} options
   * @param {KeyValueStorage} options.storage
   * @param {Clock} options.clock
   * @param {() => void} options.onFailure called when a write fails
   */
  constructor({ storage, clock, onFailure }) {
    this.#storage = storage;
    this.#clock = clock;
    this.#onFailure = onFailure;
  }

  /** Load all conversations. @returns {{conversations: Conversation[], numUnreadable: number}} */
  load() {
    const keys = Array.from({ length: this.#storage.length }, (_, i) => this.#storage.key(i) ?? "");
    const conversations = [];
    let numUnreadable = 0;
    for (const key of keys.filter((one) => one.startsWith(CONVERSATION_PREFIX))) {
      const conversation = parseConversation(this.#storage.getItem(key));
      if (conversation) conversations.push(restoreReplies(conversation));
      else numUnreadable += 1;
    }
    return { conversations, numUnreadable };
  }

  /** Schedule a write; several calls result in one. @param {Conversation} conversation */
  save(conversation) {
    this.#pending.set(conversation.id, conversation);
    this.#timer ??= this.#clock.setTimeout(() => this.flush(), WRITE_INTERVAL_MS);
  }

  /** Delete a conversation, and any write scheduled for it. @param {string} id */
  remove(id) {
    this.#pending.delete(id);
    this.#storage.removeItem(CONVERSATION_PREFIX + id);
  }

  /** Write everything that is scheduled now. */
  flush() {
    this.#clock.clearTimeout(this.#timer);
    this.#timer = null;
    for (const conversation of this.#pending.values()) {
      this.#write(CONVERSATION_PREFIX + conversation.id, conversation);
    }
    this.#pending.clear();
  }

  /** Load a single value. @param {string} name @returns {unknown} null if it is missing */
  loadValue(name) {
    return parse(this.#storage.getItem(PREFIX + name));
  }

  /** Write a single value now. @param {string} name @param {unknown} value */
  saveValue(name, value) {
    this.#write(PREFIX + name, value);
  }

  /** @param {string} key @param {unknown} value */
  #write(key, value) {
    try {
      this.#storage.setItem(key, JSON.stringify(value));
    } catch {
      // Storage is full or blocked. The page continues with what it has in memory.
      this.#onFailure();
    }
  }
}

/**
 * Return the conversation id in a storage key, or null for other keys.
 * @param {string | null} key
 */
export function conversationIdOf(key) {
  return key?.startsWith(CONVERSATION_PREFIX) ? key.slice(CONVERSATION_PREFIX.length) : null;
}

/**
 * Parse a stored conversation.
 * @param {string | null} text @returns {Conversation | null} null if it is invalid
 */
export function parseConversation(text) {
  const value = /** @type {Partial<Conversation> | null} */ (parse(text));
  const isValid =
    typeof value === "object" &&
    typeof value?.id === "string" &&
    typeof value.title === "string" &&
    typeof value.updatedAt === "number" &&
    isRecord(value.choices) &&
    isRecord(value.messages) &&
    Object.values(value.messages ?? {}).every(isMessage);
  return isValid ? /** @type {Conversation} */ (value) : null;
}

/** @param {unknown} value */
function isRecord(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** @param {Partial<Message> | null} message */
function isMessage(message) {
  if (typeof message?.id !== "string" || typeof message.text !== "string") return false;
  if (typeof message.parentId !== "string" || typeof message.createdAt !== "number") return false;
  return message.role === "user" || (message.role === "assistant" && typeof message.seq === "number");
}

/**
 * Prepare the replies that were in progress when the page was closed for a resume.
 * @param {Conversation} conversation
 */
function restoreReplies(conversation) {
  /** @type {Record<string, Message>} */
  const messages = {};
  for (const message of Object.values(conversation.messages)) {
    messages[message.id] = isOpen(message)
      ? {
          ...message,
          // Without a generation id, the server may never have received the request.
          status: message.generationId ? "reconnecting" : "interrupted",
          queue: null,
          wasDisconnected: true,
          rateStart: null,
          rateEnd: null,
        }
      : message;
  }
  return { ...conversation, messages };
}

/** @param {string | null} text @returns {unknown} */
function parse(text) {
  if (text === null) return null;
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Return an in-memory replacement for browsers that block storage. @returns {KeyValueStorage} */
export function memoryStorage() {
  /** @type {Map<string, string>} */
  const values = new Map();
  return {
    getItem: (key) => values.get(key) ?? null,
    setItem: (key, value) => void values.set(key, value),
    removeItem: (key) => void values.delete(key),
    key: (index) => [...values.keys()][index] ?? null,
    get length() {
      return values.size;
    },
  };
}
