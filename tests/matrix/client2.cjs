/**
 * A real client of the second generation: the official JavaScript SDK.
 *
 * The arguments and the output are those of `client1.py`; REVISION may be
 * `auto` as well.  NODE_PATH says where the SDK is.
 */
"use strict";

const {
  Client,
  SSEClientTransport,
  StreamableHTTPClientTransport,
} = require("@modelcontextprotocol/client");
const { main } = require("./visit.cjs");

const FIRST_MODERN = "2026-07-28";

/** How the SDK is told what to speak. */
function speaking(revision) {
  if (revision < FIRST_MODERN) return { supportedProtocolVersions: [revision] };
  return { versionNegotiation: { mode: revision === "auto" ? "auto" : { pin: revision } } };
}

main(async (revision, url, visit) => {
  const Transport = url.endsWith("/sse") ? SSEClientTransport : StreamableHTTPClientTransport;
  const transport = new Transport(new URL(url));
  const capabilities = visit.elicits ? { elicitation: {} } : {};
  const client = new Client(
    { name: "a test", version: "1" },
    { capabilities, ...speaking(revision) },
  );
  client.setNotificationHandler("notifications/progress", ({ params }) => {
    visit.progress.push({ [params.progressToken]: params.progress });
  });
  client.setNotificationHandler("notifications/resources/updated", ({ params }) => {
    visit.updated.push(params.uri);
  });
  if (visit.elicits) client.setRequestHandler("elicitation/create", visit.answer);
  await client.connect(transport);
  return {
    client,
    version: client.getNegotiatedProtocolVersion(),
    call: (params, options) => client.callTool(params, options),
    async subscribe(uri) {
      if (client.getProtocolEra() === "modern") {
        const subscription = await client.listen({ resourceSubscriptions: [uri] });
        return () => subscription.close();
      }
      await client.subscribeResource({ uri });
      return () => client.unsubscribeResource({ uri });
    },
    async close() {
      await transport.terminateSession?.();
      await client.close();
    },
  };
});
