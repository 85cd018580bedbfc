/*
 * Makes the conformance suite, which has no option for it, send a bearer token with every
 * request: the one in MCPBRIDGE_TEST_TOKEN.  Loaded before it, by `node --require`.
 *
 * It asks with `fetch`; with `request` of undici where it sends a `Host` of its own; and with
 * that of Node where it sends headers that are wrong.
 */
"use strict";

const http = require("node:http");
const { createRequire, syncBuiltinESMExports } = require("node:module");

const authorization = `Bearer ${process.env.MCPBRIDGE_TEST_TOKEN}`;

const { fetch } = globalThis;
globalThis.fetch = (input, init = {}) => {
  const headers = new Headers(init.headers ?? (input instanceof Request ? input.headers : {}));
  headers.set("Authorization", authorization);
  return fetch(input, { ...init, headers });
};

const { request: plain } = http;
http.request = (options, ...more) =>
  plain({ ...options, headers: { ...options.headers, Authorization: authorization } }, ...more);
// `import` takes what it names from here.
syncBuiltinESMExports();

// The suite imports from the same module what is put into it here.
const undici = createRequire(process.argv[1])("undici");
const { request } = undici;
undici.request = (url, options = {}) =>
  request(url, { ...options, headers: { ...options.headers, Authorization: authorization } });
