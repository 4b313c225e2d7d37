// @ts-check
/**
 * Renders Markdown while it streams in. All model output passes the renderer and the sanitizer. HTML
 * is shown as text and images as links, because the page loads nothing from other hosts.
 */

import { BlockSplitter, lex } from "./blocks.js";
import { copyText } from "./clipboard.js";
import { element, icon } from "./element.js";
import DOMPurify from "./vendor/dompurify/purify.es.js";
import { Parser, Renderer } from "./vendor/marked/marked.esm.js";

/** @typedef {import("./blocks.js").Token} Token */

/** Wait at least this many times the last render's duration, to keep the page responsive. */
const MIN_IDLE_RATIO = 4;

const SANITIZER_CONFIG = {
  ALLOWED_TAGS: [
    ..."a p br strong em del code pre ul ol li blockquote hr h1 h2 h3 h4 h5 h6".split(" "),
    ..."table thead tbody tr th td".split(" "),
  ],
  ALLOWED_ATTR: ["href", "start", "align", "data-language"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  // The pattern above applies to URLs only; these attributes are not URLs.
  ADD_URI_SAFE_ATTR: ["start", "align", "data-language"],
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: /** @type {const} */ (true),
};

/** Escapes everything that Markdown does not define, such as HTML. */
class TextRenderer extends Renderer {
  /** @param {{text: string, lang?: string}} token */
  code({ text, lang }) {
    const language = escape(languageOf(lang));
    return `<pre><code data-language="${language}">${escape(text)}</code></pre>`;
  }

  /** @param {{text: string, block?: boolean}} token */
  html({ text, block }) {
    return block ? `<p>${escape(text)}</p>` : escape(text);
  }

  /**
   * Escapes text between tags too, where marked would treat it as HTML.
   * @param {{text: string, tokens?: Token[]}} token
   */
  text({ text, tokens }) {
    return tokens ? this.parser.parseInline(tokens) : escape(text);
  }

  /** @param {{href: string, text: string}} token */
  image({ href, text }) {
    return `<a href="${escape(href)}">${escape(text || href)}</a>`;
  }

  /** @param {{checked: boolean}} token */
  checkbox({ checked }) {
    return checked ? "☑ " : "☐ ";
  }
}

const parser = new Parser({ renderer: new TextRenderer(), gfm: true, breaks: true });

/** Shows a growing Markdown text in an element. */
export class MarkdownView {
  #root;
  #text = "";
  #isFinal = false;
  #splitter = new BlockSplitter();
  /** @type {Node[]} */
  #tail = [];
  #hasDefinitions = false;
  #renderedAt = 0;
  #renderCost = 0;

  /** @param {HTMLElement} root */
  constructor(root) {
    this.#root = root;
  }

  /**
   * Render the text. Blocks that were already finished keep their DOM nodes.
   * @param {string} source the whole text so far @param {boolean} isFinal whether it is complete
   * @returns {boolean} false if this call was skipped and must be repeated later
   */
  update(source, isFinal) {
    const text = source.replaceAll("\r", "");
    if (text === this.#text && isFinal === this.#isFinal) return true;
    const now = performance.now();
    if (!isFinal && now - this.#renderedAt < MIN_IDLE_RATIO * this.#renderCost) return false;
    if (!text.startsWith(this.#text)) this.#reset();
    this.#text = text;
    this.#isFinal = isFinal;
    const finished = this.#splitter.advance(text);
    const tail = lex(text.slice(this.#splitter.start));
    this.#hasDefinitions ||= [...finished, ...tail].some(({ type }) => type === "def");
    if (isFinal && this.#hasDefinitions) {
      // Links may refer to definitions in other blocks, so render the whole text once more.
      this.#reset();
      this.#root.append(toNodes(lex(text)));
    } else if (finished.length || !this.#updateOpenCode(tail)) {
      this.#replaceTail(finished, tail);
    }
    this.#renderedAt = performance.now();
    this.#renderCost = this.#renderedAt - now;
    return true;
  }

  #reset() {
    this.#root.replaceChildren();
    this.#splitter = new BlockSplitter();
    this.#tail = [];
  }

  /** @param {Token[]} finished @param {Token[]} tail */
  #replaceTail(finished, tail) {
    for (const node of this.#tail) node.parentNode?.removeChild(node);
    if (finished.length) this.#root.append(toNodes(finished));
    const nodes = toNodes(tail);
    this.#tail = [...nodes.childNodes];
    this.#root.append(nodes);
  }

  /**
   * If the tail is one open code block, update only its text, so that the Copy button keeps its state.
   * @param {Token[]} tail
   */
  #updateOpenCode(tail) {
    const [token, ...others] = tail;
    const code = this.#tail.length === 1 ? codeElementOf(this.#tail[0]) : null;
    if (token?.type !== "code" || others.length || !code) return false;
    if (code.dataset.language !== languageOf(token.lang)) return false;
    code.textContent = token.text;
    return true;
  }
}

/** @param {Token[]} tokens */
function toNodes(tokens) {
  const fragment = DOMPurify.sanitize(parser.parse(tokens), SANITIZER_CONFIG);
  for (const link of fragment.querySelectorAll("a[href]")) {
    link.setAttribute("target", "_blank");
    link.setAttribute("rel", "noopener noreferrer nofollow");
  }
  // Take the text direction of each block from its first letter; code is always left to right.
  for (const block of fragment.children) if (!block.matches("pre")) block.setAttribute("dir", "auto");
  for (const pre of fragment.querySelectorAll("pre")) addCodeHeader(pre);
  for (const table of fragment.querySelectorAll("table")) {
    const attributes = { tabindex: "0", role: "region", "aria-label": "Table" };
    const frame = element("div", { className: "table-scroll", attributes });
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}

/** Add a header to a code block: its language and a Copy button. @param {HTMLPreElement} pre */
function addCodeHeader(pre) {
  const code = /** @type {HTMLElement} */ (pre.querySelector("code"));
  const label = element("span", {}, "Copy");
  const copy = element(
    "button",
    {
      className: "code-copy",
      testId: "copy-code",
      attributes: { type: "button", "aria-label": "Copy code" },
      on: {
        click: async () => {
          label.textContent = (await copyText(code.textContent ?? "")) ? "Copied" : "Copy failed";
          setTimeout(() => (label.textContent = "Copy"), 2000);
        },
      },
    },
    icon("copy"),
    label,
  );
  const language = element("span", { className: "code-language" }, code.dataset.language || "Code");
  const frame = element("div", { className: "code-block" });
  pre.replaceWith(frame);
  pre.tabIndex = 0; // allows scrolling long lines by keyboard
  frame.append(element("div", { className: "code-header" }, language, copy), pre);
}

/** @param {Node} node @returns {HTMLElement | null} */
function codeElementOf(node) {
  const isFrame = node instanceof HTMLElement && node.classList.contains("code-block");
  return isFrame ? node.querySelector("pre > code") : null;
}

/**
 * Return the language of a code block.
 * @param {string | undefined} info the text after the fence
 */
function languageOf(info) {
  return (info ?? "").trim().split(/\s/, 1)[0];
}

/** @param {string} text */
function escape(text) {
  return text
    .replaceAll("&", "&amp;")
    .replaceAll("<", "&lt;")
    .replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;")
    .replaceAll("'", "&#39;");
}
