/**
 * A real client of the first generation: the official JavaScript SDK.
 *
 * The arguments and the output are those of `client1.py`.  NODE_PATH says
 * where the SDK is.
 */
"use strict";

const types = require("@modelcontextprotocol/sdk/types.js");
const { Client } = require("@modelcontextprotocol/sdk/client/index.js");
const { SSEClientTransport } = require("@modelcontextprotocol/sdk/client/sse.js");
const {
  StreamableHTTPClientTransport,
} = require("@modelcontextprotocol/sdk/client/streamableHttp.js");
const { main } = require("./visit.cjs");

main(async (revision, url, visit) => {
  // what the SDK asks for; it accepts all revisions before it as well
  types.LATEST_PROTOCOL_VERSION = revision;
  const Transport = url.endsWith("/sse") ? SSEClientTransport : StreamableHTTPClientTransport;
  const transport = new Transport(new URL(url));
  const capabilities = visit.elicits ? { elicitation: {} } : {};
  const client = new Client({ name: "a test", version: "1" }, { capabilities });
  client.setNotificationHandler(types.ProgressNotificationSchema, ({ params }) => {
    visit.progress.push({ [params.progressToken]: params.progress });
  });
  client.setNotificationHandler(types.ResourceUpdatedNotificationSchema, ({ params }) => {
    visit.updated.push(params.uri);
  });
  if (visit.elicits) client.setRequestHandler(types.ElicitRequestSchema, visit.answer);

  // the client does not tell, but the transport is told
  let version;
  transport.setProtocolVersion = new Proxy(transport.setProtocolVersion, {
    apply(target, self, [told]) {
      version = told;
      return Reflect.apply(target, self, [told]);
    },
  });
  await client.connect(transport);
  return {
    client,
    version,
    call: (params, options) => client.callTool(params, undefined, options),
    async subscribe(uri) {
      await client.subscribeResource({ uri });
      return () => client.unsubscribeResource({ uri });
    },
    async close() {
      await transport.terminateSession?.();
      await client.close();
    },
  };
});
