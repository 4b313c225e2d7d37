// @ts-check
/**
 * The list of conversations with their menu; a drawer on narrow screens.
 */

import { openReplies } from "./conversation.js";
import { byId, element, iconButton, isComposing } from "./element.js";

/** @typedef {import("./conversation.js").Conversation} Conversation */
/** @typedef {import("./state.js").State} State */

/**
 * @typedef {object} SidebarHandlers
 * @property {(id: string | null) => void} onOpen null opens a new chat
 * @property {(id: string, title: string) => void} onRename
 * @property {(id: string) => void} onDelete
 * @property {(id: string, format: 'json' | 'markdown') => void} onExport
 */

const DAY_MS = 86_400_000;

/** Controls the elements of the sidebar. */
export class Sidebar {
  #handlers;
  #root = byId("sidebar");
  #list = byId("conversations");
  #menu = byId("conversation-menu");
  #scrim = byId("scrim");
  #opener = byId("open-sidebar", HTMLButtonElement);
  #narrow = matchMedia("(max-width: 800px)");
  #isDrawerOpen = false;
  #shown = "";
  /** @type {string | null} */
  #renamingId = null;
  /** @type {HTMLElement | null} */
  #menuOpener = null;

  /** @param {SidebarHandlers} handlers */
  constructor(handlers) {
    this.#handlers = handlers;
    byId("new-chat").addEventListener("click", () => this.#open(null));
    byId("close-sidebar").addEventListener("click", () => this.#setDrawer(false));
    this.#opener.addEventListener("click", () => this.#setDrawer(true));
    this.#scrim.addEventListener("click", () => this.#setDrawer(false));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.#isDrawerOpen || event.defaultPrevented) return;
      if (document.querySelector(":popover-open")) return;
      event.preventDefault(); // keeps this Escape from stopping a reply
      this.#setDrawer(false);
    });
    this.#narrow.addEventListener("change", () => this.#setDrawer(false));
    this.#menu.addEventListener("keydown", (event) => this.#moveMenuFocus(event));
    this.#menu.addEventListener("toggle", (event) => {
      if (/** @type {ToggleEvent} */ (event).newState === "closed") {
        this.#menuOpener?.setAttribute("aria-expanded", "false");
      }
    });
    this.#setDrawer(false);
  }

  /** Show the conversations, newest first. @param {State} state */
  render(state) {
    const conversations = Object.values(state.conversations)
      .filter(({ id }) => !state.deletedIds.includes(id))
      .sort((a, b) => b.updatedAt - a.updatedAt);
    const rows = conversations.map((conversation) => ({
      conversation,
      isActive: conversation.id === state.activeId,
      isStreaming: openReplies(conversation).length > 0,
      group: groupOf(conversation.updatedAt, Date.now()),
    }));
    const shown = JSON.stringify(rows.map(({ conversation: { id, title }, ...row }) => [id, title, row]));
    if (shown === this.#shown || this.#renamingId) return;
    this.#shown = shown;
    const focusedId = this.#focusedId();
    const nodes = [];
    let lastGroup = "";
    for (const { conversation, isActive, isStreaming, group } of rows) {
      if (group !== lastGroup) nodes.push(element("h2", { className: "group" }, group));
      lastGroup = group;
      nodes.push(this.#row(conversation, isActive, isStreaming));
    }
    this.#list.replaceChildren(...nodes);
    if (focusedId) this.#rowOf(focusedId)?.querySelector("button")?.focus();
  }

  /** @param {Conversation} conversation @param {boolean} isActive @param {boolean} isStreaming */
  #row(conversation, isActive, isStreaming) {
    const { id, title } = conversation;
    const open = element(
      "button",
      { className: "row-open", attributes: { type: "button" }, on: { click: () => this.#open(id) } },
      element("span", { className: "row-title", attributes: { dir: "auto" } }, title),
    );
    if (isStreaming) {
      const dot = {
        className: "row-dot",
        testId: "streaming-dot",
        attributes: { role: "img", "aria-label": "Replying" },
      };
      open.append(element("span", dot));
    }
    const more = iconButton(
      "more",
      `More options for ${conversation.title}`,
      () => this.#openMenu(conversation, more),
      "conversation-more",
    );
    more.setAttribute("aria-haspopup", "menu");
    more.setAttribute("aria-expanded", "false");
    const row = element(
      "div",
      { className: "row", testId: "conversation", attributes: { "data-id": conversation.id } },
      open,
      more,
    );
    if (isActive) {
      row.setAttribute("aria-current", "page");
      open.setAttribute("aria-current", "page");
    }
    return row;
  }

  /** @param {Conversation} conversation @param {HTMLElement} opener */
  #openMenu(conversation, opener) {
    const { onDelete, onExport } = this.#handlers;
    this.#menu.replaceChildren(
      this.#menuItem("Rename", "rename", () => this.#rename(conversation)),
      this.#menuItem("Export as Markdown", "export-markdown", () => onExport(conversation.id, "markdown")),
      this.#menuItem("Export as JSON", "export-json", () => onExport(conversation.id, "json")),
      this.#menuItem("Delete", "delete", () => onDelete(conversation.id)),
    );
    this.#menuOpener = opener;
    opener.setAttribute("aria-expanded", "true");
    this.#menu.showPopover();
    const at = opener.getBoundingClientRect();
    const { width, height } = this.#menu.getBoundingClientRect();
    this.#menu.style.left = `${Math.max(8, Math.min(at.left, innerWidth - width - 8))}px`;
    this.#menu.style.top = `${Math.min(at.bottom + 4, innerHeight - height - 8)}px`;
    this.#menu.querySelector("button")?.focus();
  }

  /** @param {string} label @param {string} testId @param {() => void} onClick */
  #menuItem(label, testId, onClick) {
    const choose = () => {
      this.#menu.hidePopover();
      onClick();
    };
    const attributes = { type: "button", role: "menuitem" };
    return element("button", { className: "menu-item", testId, attributes, on: { click: choose } }, label);
  }

  /** @param {KeyboardEvent} event */
  #moveMenuFocus(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    const items = [...this.#menu.querySelectorAll("button")];
    const index = items.findIndex((item) => item === document.activeElement);
    items.at((index + step) % items.length)?.focus();
    event.preventDefault();
  }

  /** @param {Conversation} conversation */
  #rename(conversation) {
    const row = this.#rowOf(conversation.id);
    if (!row) return;
    const attributes = { "aria-label": "Title", maxlength: "120" };
    const input = element("input", { className: "row-rename", testId: "rename-input", attributes });
    /** @param {boolean} isKept */
    const finish = (isKept) => {
      if (!this.#renamingId) return;
      this.#renamingId = null;
      this.#shown = "";
      const title = input.value.trim();
      this.#handlers.onRename(conversation.id, isKept && title ? title : conversation.title);
    };
    input.value = conversation.title;
    input.addEventListener("keydown", (event) => {
      if (isComposing(event) || !["Enter", "Escape"].includes(event.key)) return;
      event.stopPropagation();
      finish(event.key === "Enter");
    });
    input.addEventListener("blur", () => finish(true));
    this.#renamingId = conversation.id;
    row.replaceChildren(input);
    input.focus();
    input.select();
  }

  /** @param {string | null} id */
  #open(id) {
    this.#setDrawer(false);
    this.#handlers.onOpen(id);
  }

  /** @param {boolean} isOpen */
  #setDrawer(isOpen) {
    const wasOpen = this.#isDrawerOpen;
    this.#isDrawerOpen = isOpen && this.#narrow.matches;
    this.#root.classList.toggle("open", this.#isDrawerOpen);
    this.#root.inert = this.#narrow.matches && !this.#isDrawerOpen;
    byId("main").inert = this.#isDrawerOpen;
    this.#scrim.hidden = !this.#isDrawerOpen;
    this.#opener.setAttribute("aria-expanded", String(this.#isDrawerOpen));
    if (this.#isDrawerOpen) byId("new-chat").focus();
    else if (wasOpen) this.#opener.focus();
  }

  #focusedId() {
    const row = document.activeElement?.closest(".row");
    return row instanceof HTMLElement ? row.dataset.id : undefined;
  }

  /** @param {string} id */
  #rowOf(id) {
    return this.#list.querySelector(`[data-id="${CSS.escape(id)}"]`);
  }
}

/**
 * Return the heading for a time.
 * @param {number} at @param {number} now both in Unix milliseconds
 */
function groupOf(at, now) {
  const today = new Date(now).setHours(0, 0, 0, 0);
  if (at >= today) return "Today";
  if (at >= today - DAY_MS) return "Yesterday";
  return at >= today - 7 * DAY_MS ? "Last 7 days" : "Earlier";
}
