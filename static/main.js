// @ts-check
/**
 * Connects the WebSocket client, the state, the storage and the page.
 */

import { StreamClient } from "./client.js";
import { ROOT, history, openReplies, path, toMarkdown } from "./conversation.js";
import { byId } from "./element.js";
import { fetchHealth, probe } from "./health.js";
import { Page } from "./render.js";
import { readSettings, toRequest } from "./settings.js";
import { initialState, reduce } from "./state.js";
import { Store, conversationIdOf, memoryStorage, parseConversation } from "./store.js";
import { pluralize } from "./strings.js";
import { ThemeToggle } from "./theme_toggle.js";
import { Toast } from "./toast.js";

/** @typedef {import("./state.js").Action} Action */
/** @typedef {import("./conversation.js").Conversation} Conversation */

const HEALTH_INTERVAL_MS = 30_000;

const clock = {
  now: () => performance.now(),
  /** @param {() => void} callback @param {number} ms */
  setTimeout: (callback, ms) => setTimeout(callback, ms),
  /** @param {number} timer */
  clearTimeout: (timer) => clearTimeout(timer),
  random: () => Math.random(),
};

const store = new Store({ storage: openStorage(), clock, onFailure: handleStorageFailure });
const { conversations, numUnreadable } = store.load();
let apiKey = String(store.loadValue("api_key") ?? "");
let state = initialState(
  conversations,
  /** @type {string | null} */ (store.loadValue("active")),
  readSettings(store.loadValue("settings")),
);

const client = new StreamClient({
  url: new URL("/v1/stream", location.href.replace(/^http/, "ws")).href,
  key: apiKey,
  WebSocket,
  clock,
  probe: () => probe(fetch.bind(globalThis), apiKey),
  onEvent: dispatch,
});

const toast = new Toast(byId("toast"));
const page = new Page({
  onSend: (text) => send(lastMessageId(), text),
  onStop: stopActive,
  onRegenerate: regenerate,
  onContinue: (messageId) => {
    send(messageId, "Continue.");
    focusComposer();
  },
  onEdit: (messageId, text) => {
    send(activeConversation().messages[messageId].parentId, text);
    focusComposer();
  },
  onChoose: (messageId) =>
    dispatch({ type: "branch_chosen", conversationId: activeConversation().id, messageId }),
  onOpen: (conversationId) => {
    dispatch({ type: "conversation_opened", conversationId });
    focusComposer();
  },
  onRename: (conversationId, title) => dispatch({ type: "conversation_renamed", conversationId, title }),
  onDelete: deleteConversation,
  onExport: exportConversation,
  onChange: (settings) => dispatch({ type: "settings_changed", settings }),
  onKey: setKey,
  onDismiss: () => {
    dispatch({ type: "notice_dismissed" });
    focusComposer();
  },
});

let isRenderScheduled = false;
let hasStorageFailed = false;

/** Update the state now, and render it with the next animation frame. @param {Action} action */
function dispatch(action) {
  const before = state;
  state = reduce(before, action);
  persist(before, action);
  if (state.activeId !== before.activeId) page.switchDraft(before.activeId, state.activeId);
  if (action.type === "connection_changed" && action.status.state === "open") void checkHealth();
  if (action.type === "conversation_merged") resumeOpenReplies();
  scheduleRender();
}

function scheduleRender() {
  if (isRenderScheduled) return;
  isRenderScheduled = true;
  requestAnimationFrame(() => {
    isRenderScheduled = false;
    if (!page.render(state)) scheduleRender();
  });
}

/** @param {import("./state.js").State} before @param {Action} action */
function persist(before, action) {
  for (const conversation of Object.values(state.conversations)) {
    const isChanged = conversation !== before.conversations[conversation.id];
    if (isChanged && !state.deletedIds.includes(conversation.id)) store.save(conversation);
  }
  // Delay only deltas: the server can send them again, but not a lost generation id or ending.
  if (action.type !== "frame_received" || action.frame.type !== "delta") store.flush();
  if (state.settings !== before.settings) store.saveValue("settings", state.settings);
  if (state.activeId !== before.activeId) store.saveValue("active", state.activeId);
}

/** @param {string} parentId @param {string} text */
function send(parentId, text) {
  const conversationId = state.activeId ?? newId();
  const replyId = newId();
  const messageId = newId();
  dispatch({ type: "message_sent", conversationId, parentId, messageId, replyId, text, at: Date.now() });
  requestReply(conversationId, messageId, replyId);
}

/** Request another version of a reply. @param {string} messageId */
function regenerate(messageId) {
  const { id, messages } = activeConversation();
  const { parentId } = messages[messageId];
  const replyId = newId();
  dispatch({ type: "reply_requested", conversationId: id, parentId, replyId, at: Date.now() });
  requestReply(id, parentId, replyId);
  focusComposer();
}

/** Focus the message box, except on touch screens, where that opens the on-screen keyboard. */
function focusComposer() {
  if (matchMedia("(hover: hover)").matches) page.focusComposer();
}

/** @param {string} conversationId @param {string} messageId @param {string} replyId */
function requestReply(conversationId, messageId, replyId) {
  const { systemPrompt } = state.settings;
  const messages = history(state.conversations[conversationId], messageId, systemPrompt);
  client.generate(replyId, toRequest(state.settings, messages));
}

function stopActive() {
  if (state.activeId !== null) stop(activeConversation());
}

/** @param {Conversation} conversation */
function stop(conversation) {
  for (const { id } of openReplies(conversation)) {
    dispatch({ type: "stop_requested", replyId: id });
    client.cancel(id);
  }
}

/** @param {string} conversationId */
function deleteConversation(conversationId) {
  stop(state.conversations[conversationId]);
  dispatch({ type: "conversation_deleted", conversationId });
  store.remove(conversationId);
  const restore = () => {
    dispatch({ type: "conversation_restored", conversationId });
    store.save(state.conversations[conversationId]);
    focusComposer();
  };
  const purge = () => dispatch({ type: "conversation_purged", conversationId });
  toast.show("Conversation deleted.", "Undo", restore, purge);
  focusComposer();
}

/** Resume replies in progress that this page is not receiving: after a reload, or from another tab. */
function resumeOpenReplies() {
  for (const reply of Object.values(state.conversations).flatMap(openReplies)) {
    if (!reply.generationId || client.has(reply.id)) continue;
    client.resume(reply.id, reply.generationId, reply.seq);
    // The page may have been closed before it sent the cancel.
    if (reply.isStopping) client.cancel(reply.id);
  }
}

/** @param {string} conversationId @param {'json' | 'markdown'} format */
function exportConversation(conversationId, format) {
  const conversation = state.conversations[conversationId];
  const isJson = format === "json";
  const text = isJson ? JSON.stringify(conversation, null, 2) : toMarkdown(conversation);
  const url = URL.createObjectURL(new Blob([text], { type: isJson ? "application/json" : "text/markdown" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `${conversation.title.replace(/[^\p{L}\p{N} _-]/gu, "").trim() || "chat"}.${isJson ? "json" : "md"}`;
  link.click();
  URL.revokeObjectURL(url);
}

/** @param {string} key */
function setKey(key) {
  apiKey = key;
  store.saveValue("api_key", key);
  client.setKey(key);
}

async function checkHealth() {
  const health = await fetchHealth(fetch.bind(globalThis));
  dispatch({ type: "health_changed", health: health ?? state.health });
}

function activeConversation() {
  return state.conversations[/** @type {string} */ (state.activeId)];
}

function lastMessageId() {
  return state.activeId === null ? ROOT : (path(activeConversation()).at(-1)?.id ?? ROOT);
}

/** Return a random id. `crypto.randomUUID` is missing over plain HTTP. */
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function openStorage() {
  try {
    return localStorage;
  } catch {
    return memoryStorage();
  }
}

function handleStorageFailure() {
  if (hasStorageFailed) return;
  hasStorageFailed = true;
  const message = "Browser storage is full or blocked. Reloading the page loses new messages.";
  queueMicrotask(() =>
    dispatch({ type: "notice_raised", error: { code: "storage", message, retryable: false } }),
  );
}

new ThemeToggle(byId("theme-toggle"), store.loadValue("theme"), (theme) => store.saveValue("theme", theme));
byId("jump-latest").addEventListener("click", focusComposer);
byId("open-settings").addEventListener("click", () => page.openSettings(state, apiKey));

window.addEventListener("pagehide", () => store.flush());
window.addEventListener("pageshow", ({ persisted }) => {
  if (persisted) client.reconnect();
});
window.addEventListener("online", () => client.reconnect());
document.addEventListener("visibilitychange", () => {
  if (document.hidden) store.flush();
  else client.retryNow();
});
window.addEventListener("storage", ({ key, newValue }) => {
  const conversationId = conversationIdOf(key);
  if (conversationId === null || state.deletedIds.includes(conversationId)) return;
  const conversation = parseConversation(newValue);
  if (conversation) {
    const isReceivedHere = (/** @type {string} */ replyId) => client.has(replyId);
    dispatch({ type: "conversation_merged", conversation, isReceivedHere });
  } else if (newValue === null) {
    dispatch({ type: "conversation_purged", conversationId });
  }
});
setInterval(() => {
  if (!document.hidden && state.connection.state === "open") void checkHealth();
}, HEALTH_INTERVAL_MS);

if (numUnreadable) {
  const message = `${pluralize(numUnreadable, "stored conversation")} could not be read.`;
  dispatch({ type: "notice_raised", error: { code: "storage", message, retryable: false } });
}
scheduleRender();
void checkHealth();
client.connect();
resumeOpenReplies();
focusComposer();
