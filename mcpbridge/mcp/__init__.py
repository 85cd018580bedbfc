"""The rules of the MCP specification, without I/O: revisions, streams, subscriptions, tasks."""
