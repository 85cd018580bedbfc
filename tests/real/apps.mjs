/*
 * A legacy stdio server with MCP Apps: its tool has a view for clients that declare
 * the extension, and is plain text for all others, as the documentation of
 * `getUiCapability` has it.
 *
 *     node apps.mjs FOLDER
 *
 * FOLDER is the `node_modules` that has the SDK and the extension.
 */

import { createRequire } from "node:module";
import { join, resolve } from "node:path";

const sdk = createRequire(join(resolve(process.argv[2]), "resolved-from-here"));
const { McpServer } = sdk("@modelcontextprotocol/server");
const { StdioServerTransport } = sdk("@modelcontextprotocol/server/stdio");
const { getUiCapability, registerAppResource, registerAppTool, RESOURCE_MIME_TYPE } = sdk(
  "@modelcontextprotocol/ext-apps/server",
);

const VIEW = "ui://weather/view.html";
const weather = async () => ({ content: [{ type: "text", text: "sunny" }] });

const server = new McpServer(
  { name: "apps", version: "1" },
  { capabilities: { tools: {}, resources: {}, extensions: { "com.example/echo": { a: [1] } } } },
);
registerAppResource(server, "View", VIEW, {}, async () => ({
  contents: [
    { uri: VIEW, mimeType: RESOURCE_MIME_TYPE, text: "<p>sunny", _meta: { ui: { prefersBorder: true } } },
  ],
}));
server.server.oninitialized = () => {
  const ui = getUiCapability(server.server.getClientCapabilities());
  if (ui?.mimeTypes?.includes(RESOURCE_MIME_TYPE)) {
    const _meta = { ui: { resourceUri: VIEW } };
    registerAppTool(server, "weather", { description: "with a view", _meta }, weather);
  } else {
    server.registerTool("weather", { description: "text alone" }, weather);
  }
};
await server.connect(new StdioServerTransport());
