"""
mcpbridge puts stdio MCP servers on the network: one client session, one
backend process, and nothing is ever left behind.
"""

from mcpbridge._version import __version__
from mcpbridge.bridge import Bridge
from mcpbridge.config.settings import BridgeSettings, ServerSettings

__all__ = ["Bridge", "BridgeSettings", "ServerSettings", "__version__"]
