/**
 * A real client on the JavaScript SDK of the second generation, in its own
 * default manner, which begins with `initialize`.
 *
 * The arguments and the output are those of `session.py`.  NODE_PATH says
 * where the SDK is.
 */
"use strict";

const {
  Client,
  SSEClientTransport,
  StreamableHTTPClientTransport,
} = require("@modelcontextprotocol/client");

/** One session from the first byte to the last; returns what was seen. */
async function visit(url, tool, args) {
  const [progress, logged] = [[], []];
  const Transport = url.endsWith("/sse") ? SSEClientTransport : StreamableHTTPClientTransport;
  const transport = new Transport(new URL(url));
  const client = new Client({ name: "a test", version: "1" });
  client.setNotificationHandler("notifications/message", ({ params }) => {
    logged.push(params.data);
  });
  // not `onprogress`: that forgets what comes in one piece with the result
  client.setNotificationHandler("notifications/progress", ({ params }) => {
    progress.push(params.progress);
  });
  await client.connect(transport);
  const { tools } = await client.listTools();
  const _meta = { progressToken: "a token" };
  const result = await client.callTool({ name: tool, arguments: args, _meta });
  const protocolVersion = client.getNegotiatedProtocolVersion();
  const serverInfo = client.getServerVersion();
  await transport.terminateSession?.();
  await client.close();
  return {
    protocolVersion,
    serverInfo,
    tools: tools.map(({ name }) => name).sort(),
    result,
    progress,
    logged,
  };
}

const [url, tool, args] = process.argv.slice(2);
visit(url, tool, JSON.parse(args ?? "{}")).then((seen) => console.log(JSON.stringify(seen)));
