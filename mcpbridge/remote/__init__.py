"""Remote MCP servers: backends that are reached over HTTP."""
