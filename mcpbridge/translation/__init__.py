"""Translation between handshake revisions of MCP and 2026-07-28, without I/O."""
