// @ts-check
/**
 * Splits growing markdown into blocks that are finished and a tail that may still change. No DOM.
 *
 * A block is finished when another has begun after it. Only whole lines are looked at: half a line
 * can look like a new block and turn out to belong to the one before ("- a" and then "-" of "- b").
 */

import { Lexer } from "./vendor/marked/marked.esm.js";

/** @typedef {import("./vendor/marked/marked.esm.js").Token} Token */

export class BlockSplitter {
  #start = 0;
  #numScanned = 0;

  /** Where the tail begins. */
  get start() {
    return this.#start;
  }

  /**
   * Take the text so far, which only ever grows, and return the blocks that have become finished.
   * @param {string} text
   * @returns {Token[]}
   */
  advance(text) {
    const end = text.lastIndexOf("\n") + 1;
    if (end <= this.#numScanned) return [];
    this.#numScanned = end;
    const tokens = lex(text.slice(this.#start, end));
    const last = tokens.findLastIndex(({ type }) => type !== "space");
    const finished = tokens.slice(0, Math.max(0, last));
    this.#start += finished.reduce((sum, { raw }) => sum + raw.length, 0);
    return finished;
  }
}

/**
 * Return the blocks of a text. Joined, their `raw` is the text itself.
 * @param {string} text
 * @returns {Token[]}
 */
export function lex(text) {
  try {
    return new Lexer({ gfm: true, breaks: true }).lex(text);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    // Nested deeper than the lexer can go down, as in ">>>>>" without end: shown as it was written.
    return [{ type: "paragraph", raw: text, text, tokens: [{ type: "text", raw: text, text }] }];
  }
}
