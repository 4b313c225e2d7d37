// @ts-check
/**
 * Splits streaming Markdown into finished blocks and a tail that may still change. No DOM access.
 *
 * A block is finished once another block starts after it. The splitter reads complete lines only:
 * a partial line can look like a new block and later turn out to continue the previous one, such as
 * "-", the start of "- b", after "- a".
 */

import { Lexer } from "./vendor/marked/marked.esm.js";

/** @typedef {import("./vendor/marked/marked.esm.js").Token} Token */

/** Tracks which part of a growing text has already been split off as finished blocks. */
export class BlockSplitter {
  #start = 0;
  #numScanned = 0;

  /** Index in the text where the unfinished tail starts. */
  get start() {
    return this.#start;
  }

  /**
   * Return the blocks that have finished since the last call. Each block is returned once.
   * @param {string} text the whole text so far; it must start with the text of the last call
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
 * Return the blocks of a text. Their `raw` values, joined, equal the text.
 * @param {string} text
 * @returns {Token[]}
 */
export function lex(text) {
  try {
    return new Lexer({ gfm: true, breaks: true }).lex(text);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    // The nesting is too deep for the recursive lexer (">>>>>…"): return one block of plain text.
    return [{ type: "paragraph", raw: text, text, tokens: [{ type: "text", raw: text, text }] }];
  }
}
