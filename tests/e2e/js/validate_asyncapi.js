// Reads an AsyncAPI document and writes what the standard's own parser says of it, as JSON.

import { text } from "node:stream/consumers";

import { Parser } from "@asyncapi/parser";

const { document, diagnostics } = await new Parser().parse(await text(process.stdin));
const complaints = diagnostics.map(({ code, message, path, severity }) => ({
  code,
  message,
  path: path.join("."),
  severity,
}));
process.stdout.write(JSON.stringify({ isValid: document !== undefined, complaints }));
