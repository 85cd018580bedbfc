"""Requests of MCP 2026-07-28, which belong to no session, and the workers that serve them."""
