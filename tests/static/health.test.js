import assert from "node:assert/strict";
import { test } from "node:test";

import { fetchHealth, probe } from "../../static/health.js";

const answer = (status) => async () => ({ status });
const noAnswer = async () => {
  throw new TypeError("failed to fetch");
};

test("the status of an HTTP request gives the reason for a failed handshake", async () => {
  const failureReasons = await Promise.all([401, 200, 429, 503].map((status) => probe(answer(status), "")));
  assert.deepEqual(failureReasons, ["unauthorized", "refused", "busy", "busy"]);
  assert.equal(await probe(noAnswer, ""), "unreachable");
});

test("the probe sends the API key", async () => {
  const seen = [];
  const fetch = async (url, { headers }) => {
    seen.push([url, headers]);
    return { status: 200 };
  };
  await probe(fetch, "secret");
  await probe(fetch, "");
  assert.deepEqual(seen, [
    ["/v1/models", { Authorization: "Bearer secret" }],
    ["/v1/models", {}],
  ]);
});

test("a key with non-Latin-1 characters can be probed", async () => {
  const fetch = async (url, { headers }) => ({ status: new Headers(headers).has("authorization") ? 401 : 200 });
  assert.equal(await probe(fetch, "sk-123…"), "unauthorized");
});

test("the health is null if the server does not respond", async () => {
  assert.equal(await fetchHealth(noAnswer), null);
  assert.deepEqual(await fetchHealth(async () => ({ json: async () => ({ model: "m" }) })), { model: "m" });
});
