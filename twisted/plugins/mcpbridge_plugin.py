from twisted.application.service import ServiceMaker

DESCRIPTION = "Puts a stdio MCP server on the network over HTTP and SSE."
mcpbridge = ServiceMaker("mcpbridge", "mcpbridge.tap", DESCRIPTION, "mcpbridge")
