// @ts-check
/**
 * Shows one message: its text, its status and its action buttons.
 */

import { copyText } from "./clipboard.js";
import { isOpen } from "./conversation.js";
import { element, iconButton, isComposing } from "./element.js";
import { MarkdownView } from "./markdown.js";
import { queueText, statsText, statusText } from "./strings.js";

/** @typedef {import("./conversation.js").Message} Message */
/** @typedef {import("./conversation.js").Reply} Reply */

/**
 * @typedef {object} MessageHandlers
 * @property {(messageId: string) => void} onRegenerate
 * @property {(messageId: string) => void} onContinue
 * @property {(messageId: string, text: string) => void} onEdit
 * @property {(messageId: string) => void} onChoose show this version
 */

/**
 * What a message view shows besides the message itself.
 * @typedef {object} MessageContext
 * @property {string[]} siblingIds all versions including itself, oldest first
 * @property {boolean} isLast whether it is the last shown message
 * @property {boolean} isBusy whether a shown reply is in progress
 */

/** The DOM of one message; `root` is its element. */
export class MessageView {
  /** @type {Message | null} */
  #message = null;
  #isUpToDate = false;
  #contextKey = "";
  #isEditing = false;
  #handlers;
  #text = element("div", { className: "message-text", testId: "message-text" });
  #note = element("div", { className: "message-note" });
  #actions = element("div", { className: "message-actions" });
  #stats = element("span", { className: "message-stats", testId: "message-stats" });
  /** @type {MarkdownView | null} */
  #markdown = null;

  /** @param {Message} message @param {MessageHandlers} handlers */
  constructor(message, handlers) {
    const isReply = message.role === "assistant";
    this.#handlers = handlers;
    this.root = element("article", {
      className: `message ${message.role}`,
      testId: "message",
      attributes: { "data-role": message.role, "aria-label": isReply ? "Assistant" : "You" },
    });
    if (!isReply) this.#text.dir = "auto";
    else {
      this.#text.classList.add("prose");
      this.#markdown = new MarkdownView(this.#text);
    }
    this.root.append(this.#text, this.#note, this.#actions);
  }

  /**
   * Show a new state of the message.
   * @param {Message} message @param {MessageContext} context
   * @returns {boolean} false if rendering is not complete and this must be called again
   */
  update(message, context) {
    const contextKey = JSON.stringify(context);
    const isSameContext = contextKey === this.#contextKey;
    if (message === this.#message && isSameContext && this.#isUpToDate) return true;
    const isSameActions =
      isSameContext && this.#message !== null && actionsKey(this.#message) === actionsKey(message);
    this.#contextKey = contextKey;
    this.#message = message;
    this.#isUpToDate = true;
    if (message.role === "assistant") this.#isUpToDate = this.#showReply(message);
    else if (!this.#isEditing) this.#text.textContent = message.text;
    // Keep the buttons while text streams in, so that a focused button keeps its focus.
    if (!isSameActions) this.#showActions(message, context);
    return this.#isUpToDate;
  }

  /** Open the editor. Sending the edited message starts a new branch. */
  edit() {
    const message = this.#message;
    if (!message || this.#isEditing) return;
    this.#isEditing = true;
    const area = element("textarea", {
      testId: "edit-text",
      attributes: { "aria-label": "Edit message", rows: "3", dir: "auto" },
    });
    const close = () => {
      this.#isEditing = false;
      this.root.classList.remove("editing");
      this.#text.textContent = this.#message?.text ?? message.text;
      this.#focusAction("button");
    };
    const save = () => {
      const text = area.value.trim();
      close();
      if (text) this.#handlers.onEdit(message.id, text);
    };
    area.value = message.text;
    area.addEventListener("keydown", (event) => {
      if (isComposing(event)) return;
      if (event.key === "Escape") close();
      else if (event.key === "Enter" && !event.shiftKey) save();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    const buttons = element(
      "div",
      { className: "edit-buttons" },
      textButton("Cancel", close, "cancel-edit", ""),
      textButton("Send", save, "save-edit", "primary"),
    );
    this.root.classList.add("editing");
    this.#text.replaceChildren(area, buttons);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  /** Focus this button, or the first button if it is disabled. @param {string} testId */
  focusVersionButton(testId) {
    if (testId && !this.#focusAction(`[data-testid="${testId}"]`)) this.#focusAction("button");
  }

  /** @param {string} selector @returns {boolean} whether there is such an enabled button */
  #focusAction(selector) {
    const button = this.#actions.querySelector(`${selector}:enabled`);
    if (button instanceof HTMLElement) button.focus();
    return button !== null;
  }

  /** @param {Reply} reply */
  #showReply(reply) {
    const { dataset } = this.root;
    dataset.status = reply.status;
    dataset.seq = String(reply.seq);
    if (reply.generationId) dataset.generationId = reply.generationId;
    this.root.setAttribute("aria-busy", String(isOpen(reply)));
    this.root.classList.toggle("waiting", isOpen(reply) && !reply.text);
    this.#showNote(reply);
    this.#stats.textContent = statsText(reply);
    return this.#markdown?.update(reply.text, !isOpen(reply)) ?? true;
  }

  /** @param {Reply} reply */
  #showNote(reply) {
    const text = reply.queue ? queueText(reply.queue) : statusText(reply);
    if (this.#note.textContent === text) return;
    this.#note.replaceChildren();
    if (!text) return;
    const testId = reply.queue ? "queue-position" : "message-status";
    const note = element("span", { testId }, text);
    if (reply.queue) note.dataset.position = String(reply.queue.position);
    this.#note.append(note);
  }

  /** @param {Message} message @param {MessageContext} context */
  #showActions(message, context) {
    const { onRegenerate, onContinue } = this.#handlers;
    const isReply = message.role === "assistant";
    const buttons = [...this.#branchButtons(message, context)];
    if (message.text) buttons.push(this.#copyButton());
    if (!context.isBusy && isReply) {
      const isFailed = message.status === "error" || message.status === "interrupted";
      const label = isFailed ? "Try again" : "Regenerate";
      buttons.push(
        isFailed
          ? textButton(label, () => onRegenerate(message.id), "regenerate")
          : iconButton("retry", label, () => onRegenerate(message.id), "regenerate"),
      );
      const isCut = ["interrupted", "stopped"].includes(message.status) || message.finishReason === "length";
      if (context.isLast && message.text && isCut) {
        buttons.push(textButton("Continue", () => onContinue(message.id), "continue"));
      }
    } else if (!context.isBusy) {
      buttons.push(iconButton("edit", "Edit", () => this.edit(), "edit"));
    }
    if (isReply) buttons.push(this.#stats);
    this.#actions.replaceChildren(...buttons);
  }

  #copyButton() {
    const button = iconButton(
      "copy",
      "Copy",
      async () => {
        const isCopied = await copyText(this.#message?.text ?? "");
        button.classList.toggle("done", isCopied);
        button.setAttribute("aria-label", isCopied ? "Copied" : "Copy failed");
        button.querySelector("use")?.setAttribute("href", isCopied ? "#icon-check" : "#icon-close");
        setTimeout(() => {
          button.classList.remove("done");
          button.setAttribute("aria-label", "Copy");
          button.querySelector("use")?.setAttribute("href", "#icon-copy");
        }, 2000);
      },
      "copy",
    );
    return button;
  }

  /** @param {Message} message @param {MessageContext} context @returns {HTMLElement[]} */
  #branchButtons(message, { siblingIds, isBusy }) {
    if (siblingIds.length < 2) return [];
    const index = siblingIds.indexOf(message.id);
    const previous = iconButton(
      "left",
      "Previous version",
      () => this.#handlers.onChoose(siblingIds[index - 1]),
      "previous-version",
    );
    const next = iconButton(
      "right",
      "Next version",
      () => this.#handlers.onChoose(siblingIds[index + 1]),
      "next-version",
    );
    previous.disabled = isBusy || index === 0;
    next.disabled = isBusy || index === siblingIds.length - 1;
    const count = `${index + 1}/${siblingIds.length}`;
    return [previous, element("span", { className: "branch-count", testId: "version" }, count), next];
  }
}

/** Return a key that changes when the buttons of a message must change. @param {Message} message */
function actionsKey(message) {
  return message.role === "assistant" ? `${message.status} ${message.text !== ""}` : "";
}

/** @param {string} label @param {() => void} onClick @param {string} testId @param {string} [kind] */
function textButton(label, onClick, testId, kind = "quiet") {
  return element(
    "button",
    { className: `button ${kind}`.trim(), testId, attributes: { type: "button" }, on: { click: onClick } },
    label,
  );
}
