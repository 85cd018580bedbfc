"""The MCP conformance suite, run against a bridge: a server for it, and a runner."""
