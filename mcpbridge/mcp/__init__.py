"""What the MCP specification says, without I/O: revisions, streams, subscriptions, tasks."""
