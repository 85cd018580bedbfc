from twisted.application.service import ServiceMaker

DESCRIPTION = "Puts stdio MCP servers on the network, over Streamable HTTP and HTTP+SSE."
mcpbridge = ServiceMaker("mcpbridge", "mcpbridge.tap", DESCRIPTION, "mcpbridge")
