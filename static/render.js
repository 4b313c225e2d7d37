// @ts-check
/**
 * Renders the state to the page, and reports user actions through handlers. No socket, no storage.
 */

import { Composer } from "./composer.js";
import { children, isOpen, openReplies, path } from "./conversation.js";
import { byId, element, iconButton, isComposing } from "./element.js";
import { MessageView } from "./message_view.js";
import { StickyScroll } from "./scroll.js";
import { SettingsDialog } from "./settings_dialog.js";
import { Sidebar } from "./sidebar.js";
import { announcement, connectionText, errorText } from "./strings.js";

/** @typedef {import("./state.js").State} State */
/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./composer.js").ComposerState} ComposerState */

/**
 * @typedef {import("./sidebar.js").SidebarHandlers & import("./message_view.js").MessageHandlers
 *   & Omit<import("./composer.js").ComposerHandlers, 'onEditLast'> & import("./settings_dialog.js").SettingsHandlers
 *   & {onDismiss: () => void}} Handlers
 */

const EXAMPLES = [
  "What is the capital of France, and what is it known for?",
  "Write a haiku about rain on a tin roof.",
  "Explain recursion to a ten-year-old.",
  "Show me a Python function that reverses a string.",
];

/** The whole chat page. */
export class Page {
  #log = byId("log");
  #banner = byId("banner");
  #keyPanel = byId("key-panel");
  #announcer = byId("announcer");
  #scroll = new StickyScroll(byId("scroller"), byId("jump-latest"));
  #sidebar;
  #composer;
  #settings;
  #handlers;
  #onChoose;
  /** The version that the user has just chosen, and the test id of the button that had the focus. */
  #chosen = { messageId: "", testId: "" };
  /** @type {Map<string, MessageView>} */
  #views = new Map();
  /** @type {string | null | undefined} */
  #shownId = undefined;
  #announced = "";
  #lastUserMessageId = "";
  #hasTriedKey = false;
  /** @type {Map<string | null, string>} */
  #drafts = new Map();

  /** @param {Handlers} handlers */
  constructor(handlers) {
    this.#handlers = { ...handlers, onChoose: (messageId) => this.#choose(messageId) };
    this.#onChoose = handlers.onChoose;
    this.#sidebar = new Sidebar(handlers);
    this.#settings = new SettingsDialog(handlers);
    this.#composer = new Composer({
      ...handlers,
      onSend: (text) => {
        this.#scroll.toEnd();
        handlers.onSend(text);
      },
      onEditLast: () => this.#editLast(),
    });
    byId("examples").append(...EXAMPLES.map((text) => this.#example(text)));
    const bannerKey = byId("banner-key", HTMLInputElement);
    this.#keyPanel.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#hasTriedKey = bannerKey.value !== "";
      handlers.onKey(bannerKey.value.trim());
    });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.defaultPrevented || isComposing(event)) return;
      if (!document.querySelector("dialog[open], :popover-open, .sidebar.open")) handlers.onStop();
    });
  }

  /** Open the settings dialog. @param {State} state @param {string} key the API key */
  openSettings(state, key) {
    this.#settings.open(state.settings, key);
  }

  /** Focus the message box. */
  focusComposer() {
    this.#composer.focus();
  }

  /**
   * Save the draft of one conversation and show the draft of another. Call this immediately, not with
   * the next animation frame: what the user types until then belongs to the other conversation.
   * @param {string | null} fromId @param {string | null} toId
   */
  switchDraft(fromId, toId) {
    this.#drafts.set(fromId, this.#composer.text);
    this.#composer.text = this.#drafts.get(toId) ?? "";
  }

  /**
   * Show the state.
   * @param {State} state @returns {boolean} false if this must be called again soon
   */
  render(state) {
    const conversation = state.activeId === null ? null : state.conversations[state.activeId];
    this.#switchTo(state.activeId);
    this.#sidebar.render(state);
    this.#renderTop(state, conversation);
    this.#renderBanners(state);
    this.#renderComposer(state, conversation);
    const isUpToDate = this.#renderLog(conversation);
    byId("empty").hidden = conversation !== null;
    this.#scroll.follow();
    return isUpToDate;
  }

  /** @param {string | null} id */
  #switchTo(id) {
    if (id === this.#shownId) return;
    // Screen readers must not announce the existing messages of the other conversation.
    this.#log.setAttribute("aria-live", "off");
    requestAnimationFrame(() => this.#log.setAttribute("aria-live", "polite"));
    this.#views.clear();
    this.#log.replaceChildren();
    this.#announced = "";
    this.#shownId = id;
    this.#scroll.toEnd();
  }

  /** @param {State} state @param {Conversation | null} conversation */
  #renderTop({ connection, health }, conversation) {
    const title = conversation?.title ?? "New chat";
    setText(byId("title"), title);
    document.title = conversation ? `${title} · Tokenwire` : "Tokenwire";
    byId("connection").dataset.state = connection.state;
    setText(byId("connection-text"), connectionText(connection, health));
    const note = health?.model
      ? `You are chatting with ${health.model}. Small models can make mistakes.`
      : "Replies come from the model on this server.";
    setText(byId("empty-note"), note);
    byId("examples").hidden = health !== null && !canChat(health);
  }

  /** @param {State} state */
  #renderBanners({ connection, health, notice }) {
    const isRefused = connection.failureReason === "refused";
    this.#showKeyPanel(connection.state === "unauthorized" || isRefused);
    setText(
      byId("key-reason"),
      isRefused
        ? "The server refused the connection. If it requires an API key, enter it here."
        : this.#hasTriedKey
          ? "This API key is not valid."
          : "This server requires an API key.",
    );
    const text = health && !canChat(health) ? NO_TEMPLATE : notice ? errorText(notice) : "";
    if (this.#banner.dataset.text === text) return;
    this.#banner.dataset.text = text;
    this.#banner.hidden = !text;
    const isNotice = text !== NO_TEMPLATE;
    const dismiss = isNotice ? [iconButton("close", "Dismiss", this.#handlers.onDismiss, "dismiss")] : [];
    this.#banner.replaceChildren(element("p", {}, text), ...dismiss);
  }

  /**
   * Show or hide the key panel and move the focus, unless the user is typing.
   * @param {boolean} isShown
   */
  #showKeyPanel(isShown) {
    if (this.#keyPanel.hidden === !isShown) return;
    const focused = document.activeElement;
    const isWriting = this.#composer.hasFocus && this.#composer.text !== "";
    const isElsewhere = focused !== document.body && !this.#composer.hasFocus;
    const wasHere = this.#keyPanel.contains(focused);
    this.#keyPanel.hidden = !isShown;
    if (isShown && !isWriting && !isElsewhere) byId("banner-key").focus();
    else if (wasHere) this.#composer.focus();
  }

  /** @param {State} state @param {Conversation | null} conversation */
  #renderComposer({ connection, health }, conversation) {
    const replies = conversation ? openReplies(conversation) : [];
    const isEnded = connection.state === "unauthorized" || connection.state === "closed";
    /** @type {ComposerState} */
    let state = "idle";
    let note = "Enter to send, Shift+Enter for a new line.";
    if (replies.length) {
      state = "streaming";
      const isWaiting = replies.every(({ status }) => status === "queued");
      note = isWaiting ? "Waiting. Press Escape to stop." : "Replying. Press Escape to stop.";
      if (connection.state !== "open") note = "Reconnecting. Press Escape to stop.";
      if (replies.every(({ isStopping }) => isStopping)) note = "Stopping…";
    } else if (health && !canChat(health)) {
      state = "closed";
      note = "This model does not support chat.";
    } else if (isEnded) {
      state = "closed";
      note = connection.state === "unauthorized" ? "Enter the API key to continue." : "Not connected.";
    } else if (connection.state !== "open") {
      state = "connecting";
      note = "Connecting. Messages that you send now are delivered once connected.";
    }
    this.#composer.render(state, note, replies.length > 0 && replies.every(({ isStopping }) => isStopping));
  }

  /** @param {Conversation | null} conversation */
  #renderLog(conversation) {
    const messages = conversation ? path(conversation) : [];
    const isBusy = messages.some(isOpen);
    this.#log.setAttribute("aria-busy", String(isBusy));
    let isUpToDate = true;
    messages.forEach((message, index) => {
      let view = this.#views.get(message.id);
      if (!view) {
        view = new MessageView(message, this.#handlers);
        this.#views.set(message.id, view);
      }
      const siblingIds = children(/** @type {Conversation} */ (conversation), message.parentId).map(
        ({ id }) => id,
      );
      const isLast = index === messages.length - 1;
      isUpToDate = view.update(message, { siblingIds, isLast, isBusy }) && isUpToDate;
      if (this.#log.children[index] !== view.root)
        this.#log.insertBefore(view.root, this.#log.children[index] ?? null);
    });
    while (this.#log.children.length > messages.length) this.#log.lastElementChild?.remove();
    this.#views.get(this.#chosen.messageId)?.focusVersionButton(this.#chosen.testId);
    this.#chosen = { messageId: "", testId: "" };
    this.#lastUserMessageId = messages.findLast(({ role }) => role === "user")?.id ?? "";
    this.#announce(messages.at(-1));
    return isUpToDate;
  }

  /**
   * Show another version and move the focus to the same button of that version.
   * @param {string} messageId
   */
  #choose(messageId) {
    const focused = /** @type {HTMLElement | null} */ (document.activeElement);
    this.#chosen = { messageId, testId: focused?.dataset.testid ?? "" };
    this.#onChoose(messageId);
  }

  /** @param {import("./conversation.js").Message | undefined} message */
  #announce(message) {
    if (message?.role !== "assistant") return;
    const text = announcement(message);
    const key = `${message.id} ${text}`;
    if (key === this.#announced) return;
    const isFirst = !this.#announced;
    this.#announced = key;
    // Do not announce what was already there when the conversation was opened.
    if (!isFirst || isOpen(message)) this.#announcer.textContent = text;
  }

  #editLast() {
    if (this.#lastUserMessageId && this.#log.getAttribute("aria-busy") !== "true") {
      this.#views.get(this.#lastUserMessageId)?.edit();
    }
  }

  /** @param {string} text */
  #example(text) {
    const send = () => {
      this.#composer.text = text;
      this.#composer.focus();
    };
    const attributes = { type: "button" };
    return element(
      "button",
      { className: "example", testId: "example", attributes, on: { click: send } },
      text,
    );
  }
}

const NO_TEMPLATE =
  "This model has no chat template and does not support chat. Use POST /v1/completions to complete text.";

/** @param {import("./health.js").Health} health */
function canChat(health) {
  return health.has_chat_template !== false;
}

/** @param {HTMLElement} node @param {string} text */
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
