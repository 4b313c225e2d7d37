// @ts-check
/**
 * The page `/docs/websocket`: shows the server's AsyncAPI document with its messages and errors.
 */

import { copyText } from "./clipboard.js";
import { byId, element, icon } from "./element.js";
import { resolve } from "./schema.js";
import { fieldTable, prose, table } from "./schema_view.js";
import { SocketConsole } from "./socket_console.js";
import { ThemeToggle } from "./theme_toggle.js";

/** @typedef {import("./schema.js").Schema} Schema */

const THEME_KEY = "tokenwire.v1.theme";
const COPIED_MS = 1500;

/** @param {Schema} document */
function show(document) {
  const { info, channels } = document;
  const main = byId("main");
  main.append(
    element("h1", {}, info.title),
    prose(`${info.description}\n\nVersion ${info.version} (AsyncAPI ${document.asyncapi}).`),
    ...Object.keys(channels).map((name) => channelView(name, document)),
    errorsView(document),
  );
  main.removeAttribute("aria-busy");
  byId("contents").append(contents(document));
}

/** @param {Schema} document */
function contents(document) {
  const channels = Object.entries(document.channels).map(([name, channel]) => {
    const links = Object.keys(channel.messages).map((message) =>
      element("li", {}, messageLink(name, message, document)),
    );
    const title = link(name, channel.title);
    title.className = "contents-title";
    return element("li", {}, title, element("ul", {}, ...links));
  });
  const errors = link("errors", "Errors");
  errors.className = "contents-title";
  return element("ul", {}, ...channels, element("li", {}, errors));
}

/** @param {string} name of the channel @param {Schema} document */
function channelView(name, document) {
  const channel = document.channels[name];
  const url = addressOf(channel, document);
  const operations = Object.values(document.operations).filter(
    ({ channel: { $ref } }) => $ref === `#/channels/${name}`,
  );
  const receiveOperations = operations.filter(({ action }) => action === "receive");
  const serverMessages = Object.keys(channel.messages).filter(
    (message) => !receiveOperations.some(({ messages }) => nameOf(messages[0]) === message),
  );
  const security = operations[0].security.map((/** @type {Schema} */ scheme) => resolve(scheme, document));
  const examples = receiveOperations.flatMap(({ messages }) =>
    examplesOf(messages[0], document).map(({ name: label, payload }) => ({
      label: label === payload.type ? label : `${payload.type}: ${label}`,
      payload,
    })),
  );
  return element(
    "section",
    { attributes: { "aria-labelledby": name } },
    element("h2", { attributes: { id: name } }, channel.title),
    prose(channel.summary),
    element("div", { className: "address" }, element("code", {}, url), copyButton(url, "Copy address")),
    prose(channel.description),
    element("h3", {}, "Authentication"),
    ...security.map((/** @type {Schema} */ { description }) => prose(description)),
    element("h3", {}, "Messages you send"),
    ...receiveOperations.map(({ messages, reply }) =>
      messageView(name, nameOf(messages[0]), document, reply),
    ),
    element("h3", {}, "Messages you receive"),
    ...serverMessages.map((message) => messageView(name, message, document)),
    element("h3", {}, "Try it"),
    new SocketConsole(url, examples).node,
    element("h3", {}, "Close codes"),
    table(
      ["Code", "Meaning"],
      channel["x-close-codes"].map((/** @type {Schema} */ { code, meaning }) =>
        element("tr", {}, element("td", {}, String(code)), element("td", {}, meaning)),
      ),
    ),
  );
}

/** @param {string} channel @param {string} name @param {Schema} document @param {Schema} [reply] */
function messageView(channel, name, document, reply) {
  const message = resolve(document.channels[channel].messages[name], document);
  const payload = resolve(message.payload, document);
  const description = payload.description ?? "";
  const responses = reply?.messages.map((/** @type {Schema} */ response) => nameOf(response)) ?? [];
  return element(
    "details",
    { className: "message", testId: "message", attributes: { id: `${channel}.${name}` } },
    element(
      "summary",
      {},
      element("code", { className: "message-name" }, message.name),
      element("span", { className: "message-summary" }, description.split("\n\n")[0].replaceAll("`", "")),
    ),
    element(
      "div",
      { className: "message-body" },
      prose(description),
      ...examplesOf(document.channels[channel].messages[name], document).map(exampleView),
      ...(responses.length ? [responsesView(channel, responses, document)] : []),
      fieldTable(payload, document),
    ),
  );
}

/** @param {string} channel @param {string[]} names @param {Schema} document */
function responsesView(channel, names, document) {
  const links = names.flatMap((name) => [" ", messageLink(channel, name, document)]);
  return element("p", { className: "responses" }, "Responses:", ...links);
}

/** @param {{name: string, payload: unknown}} example */
function exampleView({ name, payload }) {
  const text = JSON.stringify(payload, null, 2);
  return element(
    "figure",
    { className: "example" },
    element("figcaption", {}, `Example: ${name}`),
    copyButton(text, `Copy example: ${name}`),
    element("pre", { attributes: { tabindex: "0" } }, element("code", {}, text)),
  );
}

/** @param {Schema} document */
function errorsView(document) {
  const rows = document["x-errors"].map((/** @type {Schema} */ { code, httpStatus, retryable, closeCode }) =>
    element(
      "tr",
      {},
      element("td", {}, element("code", {}, code)),
      element("td", {}, String(httpStatus)),
      element("td", {}, retryable ? "yes" : ""),
      element("td", {}, closeCode === null ? "" : String(closeCode)),
    ),
  );
  return element(
    "section",
    { attributes: { "aria-labelledby": "errors" } },
    element("h2", { attributes: { id: "errors" } }, "Errors"),
    prose(
      "HTTP and WebSockets use the same codes. " +
        "The HTTP status is that of the response or of the rejected handshake.",
    ),
    table(["Code", "HTTP status", "Retryable", "Close code"], rows),
  );
}

/** @param {Schema} channel @param {Schema} document */
function addressOf(channel, document) {
  const [{ protocol, host, pathname = "" }] = /** @type {Schema[]} */ (Object.values(document.servers));
  return `${protocol}://${host}${pathname}${channel.address}`;
}

/** @param {Schema} reference @returns {string} */
function nameOf({ $ref }) {
  return $ref.split("/").at(-1);
}

/** @param {Schema} reference @param {Schema} document @returns {Schema[]} */
function examplesOf(reference, document) {
  return resolve(reference, document).examples;
}

/** @param {string} id @param {Node | string} text */
function link(id, text) {
  return element("a", { attributes: { href: `#${id}` } }, text);
}

/** @param {string} channel @param {string} name @param {Schema} document */
function messageLink(channel, name, document) {
  const message = resolve(document.channels[channel].messages[name], document);
  return link(`${channel}.${name}`, element("code", {}, message.name));
}

/** @param {string} text @param {string} label */
function copyButton(text, label) {
  const button = element(
    "button",
    { className: "icon-button", attributes: { type: "button", "aria-label": label, title: label } },
    icon("copy"),
  );
  button.addEventListener("click", async () => {
    const isCopied = await copyText(text);
    if (!isCopied) return;
    button.classList.add("done");
    button.replaceChildren(icon("check"));
    setTimeout(() => {
      button.classList.remove("done");
      button.replaceChildren(icon("copy"));
    }, COPIED_MS);
  });
  return button;
}

/** Open the message that the URL fragment names and scroll to it. */
function openLinkedMessage() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) target.open = true;
  target?.scrollIntoView();
}

function storedTheme() {
  try {
    return JSON.parse(localStorage.getItem(THEME_KEY) ?? "null");
  } catch {
    return null;
  }
}

/** @param {string} theme */
function storeTheme(theme) {
  try {
    localStorage.setItem(THEME_KEY, JSON.stringify(theme));
  } catch {
    // Without storage, the choice lasts until the page is closed.
  }
}

new ThemeToggle(byId("theme-toggle"), storedTheme(), storeTheme);
addEventListener("hashchange", openLinkedMessage);
try {
  const response = await fetch("../asyncapi.json");
  if (!response.ok) throw new Error(`the server returned status ${response.status}`);
  show(await response.json());
  openLinkedMessage();
} catch (error) {
  const reason = error instanceof Error ? error.message : String(error);
  byId("main").replaceChildren(
    element(
      "p",
      { className: "failure", attributes: { role: "alert" } },
      `Could not load the API description: ${reason}.`,
    ),
  );
}
