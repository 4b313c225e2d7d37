// @ts-check
/**
 * The system prompt and the sampling settings: ranges, defaults and parsing. No DOM access.
 */

/** @typedef {import("./protocol.js").Sampling} Sampling */
/** @typedef {import("./protocol.js").GenerateRequest} GenerateRequest */
/** @typedef {import("./protocol.js").ChatMessage} ChatMessage */
/** @typedef {'temperature' | 'top_p' | 'top_k' | 'min_p' | 'max_tokens' | 'repetition_penalty' | 'seed'} NumberName */

/**
 * Numbers that are null are not sent, so that the server uses its default.
 * @typedef {Record<NumberName, number | null> & {systemPrompt: string, stop: string[]}} Settings
 */

/**
 * @typedef {object} NumberField
 * @property {NumberName} name
 * @property {string} label
 * @property {string} hint
 * @property {number} min
 * @property {number} max
 * @property {number | 'any'} step
 * @property {number | null} initial
 * @property {boolean} [isAboveMin] whether `min` itself is excluded
 */

/** The ranges match the server's; the initial values suit a small chat model. */
/** @type {readonly NumberField[]} */
export const NUMBER_FIELDS = [
  {
    name: "temperature",
    label: "Temperature",
    hint: "0 picks the most likely token; higher is more varied.",
    min: 0,
    max: 2,
    step: "any",
    initial: 0.2,
  },
  {
    name: "max_tokens",
    label: "Maximum tokens",
    hint: "Length limit; a token is about ¾ of a word.",
    min: 1,
    max: 1_000_000,
    step: 1,
    initial: 512,
  },
  {
    name: "top_p",
    label: "Top-p",
    hint: "Sample from the top tokens with this total probability.",
    min: 0,
    max: 1,
    step: "any",
    initial: 0.9,
    isAboveMin: true,
  },
  {
    name: "top_k",
    label: "Top-k",
    hint: "Sample from this many tokens; 0 means all.",
    min: 0,
    max: 1_000_000,
    step: 1,
    initial: null,
  },
  {
    name: "min_p",
    label: "Min-p",
    hint: "Minimum probability relative to the top token.",
    min: 0,
    max: 1,
    step: "any",
    initial: null,
  },
  {
    name: "repetition_penalty",
    label: "Repetition penalty",
    hint: "Values above 1 reduce repetition.",
    min: 0.01,
    max: 10,
    step: "any",
    initial: 1.1,
  },
  {
    name: "seed",
    label: "Seed",
    hint: "The same seed gives the same reply.",
    min: Number.MIN_SAFE_INTEGER,
    max: Number.MAX_SAFE_INTEGER,
    step: 1,
    initial: null,
  },
];

export const MAX_STOP_STRINGS = 16;
export const MAX_STOP_CHARS = 256;

/** Return the initial settings. @returns {Settings} */
export function defaultSettings() {
  const numbers = Object.fromEntries(NUMBER_FIELDS.map(({ name, initial }) => [name, initial]));
  const initial = /** @type {Record<NumberName, number | null>} */ (numbers);
  return { ...initial, systemPrompt: "", stop: [] };
}

/**
 * Parse the text of a number field; an empty text is null.
 * @param {NumberField} field @param {string} text
 * @returns {{value: number | null} | {error: string}}
 */
export function parseNumber(field, text) {
  if (!text.trim()) return { value: null };
  const value = Number(text);
  const isLow = field.isAboveMin ? value <= field.min : value < field.min;
  if (!Number.isFinite(value) || isLow || value > field.max) return { error: rangeOf(field) };
  if (field.step === 1 && !Number.isInteger(value)) return { error: "Must be a whole number." };
  return { value };
}

/** @param {NumberField} field */
function rangeOf({ min, max, isAboveMin }) {
  if (max >= 1_000_000) return min < 0 ? "Must be a whole number." : `Must be at least ${min}.`;
  return `Must be ${isAboveMin ? "more than" : "at least"} ${min} and at most ${max}.`;
}

/**
 * Read stop strings, one a line, in which \n and \t stand for a new line and a tab.
 * @param {string} text
 * @returns {{value: string[]} | {error: string}}
 */
export function parseStop(text) {
  const value = text.split("\n").filter(Boolean).map(unescape);
  if (value.length > MAX_STOP_STRINGS) return { error: `Use at most ${MAX_STOP_STRINGS} lines.` };
  if (value.some((stop) => stop.length > MAX_STOP_CHARS)) {
    return { error: `Use at most ${MAX_STOP_CHARS} characters per line.` };
  }
  return { value };
}

/** Format stop sequences for the text field; the inverse of `parseStop`. @param {string[]} stop */
export function formatStop(stop) {
  return stop
    .map((one) => one.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll("\t", "\\t"))
    .join("\n");
}

/** @param {string} line */
function unescape(line) {
  /** @type {Record<string, string>} */
  const meanings = { "\\n": "\n", "\\t": "\t", "\\\\": "\\" };
  return line.replace(/\\[nt\\]/g, (escape) => meanings[escape]);
}

/**
 * Build the request for these settings.
 * @param {Settings} settings @param {ChatMessage[]} messages @returns {GenerateRequest}
 */
export function toRequest(settings, messages) {
  /** @type {GenerateRequest} */
  const request = { messages };
  for (const { name } of NUMBER_FIELDS) {
    const value = settings[name];
    if (value !== null) request[name] = value;
  }
  if (settings.stop.length) request.stop = settings.stop;
  return request;
}

/**
 * Read stored settings; invalid values become the default.
 * @param {unknown} stored @returns {Settings}
 */
export function readSettings(stored) {
  const settings = defaultSettings();
  if (typeof stored !== "object" || stored === null) return settings;
  const record = /** @type {Record<string, unknown>} */ (stored);
  for (const field of NUMBER_FIELDS) {
    const value = record[field.name];
    if (value === null) settings[field.name] = null;
    const parsed = typeof value === "number" ? parseNumber(field, String(value)) : null;
    if (parsed && "value" in parsed) settings[field.name] = parsed.value;
  }
  if (typeof record.systemPrompt === "string") settings.systemPrompt = record.systemPrompt;
  if (Array.isArray(record.stop)) settings.stop = record.stop.filter((one) => typeof one === "string" && one);
  return settings;
}
