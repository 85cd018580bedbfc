/**
 * A real client on the JavaScript SDK of the first generation.
 *
 * The arguments and the output are those of `session.py`.  NODE_PATH says
 * where the SDK is.
 */
"use strict";

const { Client } = require("@modelcontextprotocol/sdk/client/index.js");
const { SSEClientTransport } = require("@modelcontextprotocol/sdk/client/sse.js");
const {
  StreamableHTTPClientTransport,
} = require("@modelcontextprotocol/sdk/client/streamableHttp.js");
const {
  CreateMessageRequestSchema,
  ElicitRequestSchema,
  LoggingMessageNotificationSchema,
  ProgressNotificationSchema,
} = require("@modelcontextprotocol/sdk/types.js");

/** One session from the first byte to the last; returns what was seen. */
async function visit(url, tool, args) {
  const [progress, logged, asked] = [[], [], []];
  const Transport = url.endsWith("/sse") ? SSEClientTransport : StreamableHTTPClientTransport;
  const transport = new Transport(new URL(url));
  const client = new Client(
    { name: "a test", version: "1" },
    { capabilities: { sampling: {}, elicitation: {} } },
  );
  client.setNotificationHandler(LoggingMessageNotificationSchema, ({ params }) => {
    logged.push(params.data);
  });
  // not `onprogress`: that forgets what comes in one piece with the result
  client.setNotificationHandler(ProgressNotificationSchema, ({ params }) => {
    progress.push(params.progress);
  });
  client.setRequestHandler(CreateMessageRequestSchema, () => {
    asked.push("sampling/createMessage");
    return { role: "assistant", model: "a model", content: { type: "text", text: "an answer" } };
  });
  client.setRequestHandler(ElicitRequestSchema, ({ params }) => {
    asked.push("elicitation/create");
    const content = params.requestedSchema.required.map((name) => [name, "text"]);
    return { action: "accept", content: Object.fromEntries(content) };
  });

  // the client does not tell, but the transport is told
  let protocolVersion;
  transport.setProtocolVersion = new Proxy(transport.setProtocolVersion, {
    apply(target, self, [version]) {
      protocolVersion = version;
      return Reflect.apply(target, self, [version]);
    },
  });
  await client.connect(transport);
  const { tools } = await client.listTools();
  const _meta = { progressToken: "a token" };
  const result = await client.callTool({ name: tool, arguments: args, _meta });
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
    asked,
  };
}

const [url, tool, args] = process.argv.slice(2);
visit(url, tool, JSON.parse(args ?? "{}")).then((seen) => console.log(JSON.stringify(seen)));
