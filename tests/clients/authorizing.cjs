/**
 * Real clients on the JavaScript SDK of either generation, with credentials.
 *
 *     authorizing.cjs GENERATION VISITS
 *
 * VISITS and the output are those of `authorizing.py`; with `refresh` false, a client
 * registers itself without refresh tokens.  NODE_PATH says where the SDKs are.
 */
"use strict";

const { spawn } = require("node:child_process");
const { once } = require("node:events");
const http = require("node:http");

/** What is needed of a generation of the SDK. */
function sdk(generation) {
  if (generation === "2") return require("@modelcontextprotocol/client");
  return {
    ...require("@modelcontextprotocol/sdk/client/index.js"),
    ...require("@modelcontextprotocol/sdk/client/auth.js"),
    ...require("@modelcontextprotocol/sdk/client/sse.js"),
    ...require("@modelcontextprotocol/sdk/client/streamableHttp.js"),
  };
}

/** Keeps tokens and the client's registration in memory, and starts the browser. */
class Provider {
  visits = 0;

  constructor(redirectUrl, { browser, refresh = true }) {
    this.redirectUrl = redirectUrl;
    this.browser = browser;
    this.grants = ["authorization_code", ...(refresh ? ["refresh_token"] : [])];
  }

  get clientMetadata() {
    return {
      client_name: "a test",
      redirect_uris: [this.redirectUrl],
      grant_types: this.grants,
      response_types: ["code"],
      token_endpoint_auth_method: "none",
    };
  }

  clientInformation() {
    return this.client;
  }

  saveClientInformation(client) {
    this.client = client;
  }

  tokens() {
    return this.saved;
  }

  saveTokens(tokens) {
    this.saved = tokens;
  }

  codeVerifier() {
    return this.verifier;
  }

  saveCodeVerifier(verifier) {
    this.verifier = verifier;
  }

  redirectToAuthorization(url) {
    this.visits += 1;
    const [command, ...options] = this.browser;
    spawn(command, [...options, url.href], { stdio: ["ignore", "ignore", "inherit"] });
  }
}

/** One client; returns what was seen. */
async function visit(generation, settings) {
  const { Client, SSEClientTransport, StreamableHTTPClientTransport, UnauthorizedError } =
    sdk(generation);
  const seen = { protocolVersion: null, results: [], error: null };
  const arrived = [];
  let wake = () => {};
  const listener = http.createServer((request, response) => {
    response.end("OK");
    arrived.push(new URL(request.url, "http://127.0.0.1").searchParams);
    wake();
  });
  listener.listen(0, "127.0.0.1");
  await once(listener, "listening");
  const provider = settings.browser
    ? new Provider(`http://127.0.0.1:${listener.address().port}/callback`, settings)
    : undefined;

  /** Does something; when that wants a person, waits for the code, and does it again. */
  async function authorized(transport, again) {
    try {
      return await again(transport);
    } catch (error) {
      if (!provider || !(error instanceof UnauthorizedError)) throw error;
      while (!arrived.length) await new Promise((resolve) => (wake = resolve));
      const found = arrived.shift();
      if (found.has("error")) throw new Error(`${found.get("error")} ${found}`);
      await transport().finishAuth(generation === "2" ? found : found.get("code"));
      return again(transport);
    }
  }

  let transport;
  let client;
  async function run() {
    const Transport = settings.url.endsWith("/sse")
      ? SSEClientTransport
      : StreamableHTTPClientTransport;
    await authorized(
      () => transport,
      async () => {
        transport = new Transport(new URL(settings.url), {
          authProvider: provider,
          requestInit: settings.token
            ? { headers: { Authorization: `Bearer ${settings.token}` } }
            : undefined,
        });
        transport.setProtocolVersion = new Proxy(transport.setProtocolVersion, {
          apply(target, self, [version]) {
            seen.protocolVersion = version;
            return Reflect.apply(target, self, [version]);
          },
        });
        client = new Client(
          { name: "a test", version: "1" },
          settings.modern ? { versionNegotiation: { mode: { pin: "2026-07-28" } } } : {},
        );
        await client.connect(transport);
      },
    );
    seen.protocolVersion = client.getNegotiatedProtocolVersion?.() ?? seen.protocolVersion;
    for (const [name, args, pause] of settings.calls) {
      await new Promise((resolve) => setTimeout(resolve, pause * 1000));
      const called = await authorized(
        () => transport,
        () => client.callTool({ name, arguments: args }),
      );
      seen.results.push(called.content[0].text);
    }
    await transport.terminateSession?.();
    await client.close();
  }
  const late = new Promise((_, reject) => {
    setTimeout(() => reject(Object.assign(new Error(""), { name: "TimeoutError" })), settings.patience * 1000).unref();
  });
  try {
    await Promise.race([run(), late]);
  } catch (error) {
    seen.error = `${error.name ?? error.constructor.name}: ${error.message}`;
  }
  listener.close();
  return { ...seen, visits: provider?.visits ?? 0, scope: provider?.saved?.scope ?? null };
}

/** All of them. */
async function main(generation, visits) {
  const seen = await Promise.all(
    Object.entries(visits).map(async ([name, each]) => [name, await visit(generation, each)]),
  );
  console.log(JSON.stringify(Object.fromEntries(seen)));
  process.exit(0);
}

const [generation, visits] = process.argv.slice(2);
main(generation, JSON.parse(visits));
