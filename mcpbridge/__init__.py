"""
mcpbridge puts stdio MCP servers on the network: one client session, one
backend process, and nothing is ever left behind.
"""

from typing import TYPE_CHECKING, Any

from mcpbridge._version import __version__

if TYPE_CHECKING:
    from mcpbridge.bridge import Bridge
    from mcpbridge.config.settings import BridgeSettings, ServerSettings
    from mcpbridge.twisted_internals import dispatch_directly

__all__ = ["Bridge", "BridgeSettings", "ServerSettings", "__version__", "dispatch_directly"]

#: The public names that are imported when they are first used: what runs one module alone,
#: such as `python -m mcpbridge.demo`, does not import Twisted and the whole bridge.
_MODULES = {
    "Bridge": "mcpbridge.bridge",
    "BridgeSettings": "mcpbridge.config.settings",
    "ServerSettings": "mcpbridge.config.settings",
    "dispatch_directly": "mcpbridge.twisted_internals",
}


if not TYPE_CHECKING:  # A type checker would believe that there is an attribute of any name.

    def __getattr__(name: str) -> Any:
        """Import a public name (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_MODULES[name]), name)
        return value
