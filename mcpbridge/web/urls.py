"""
The URLs of what is served, for people.
"""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IListeningPort

from mcpbridge.config import ServerSettings


def served_urls(ports: Iterable[IListeningPort], servers: Iterable[ServerSettings]) -> list[str]:
    """For each listener and server the URLs that a client may be given, `/mcp` first."""
    servers = list(servers)
    return [
        f"{_origin(port)}{server.base_uri}/{name}"
        for port in ports
        for server in servers
        for name in ("mcp", "sse")
    ]


def _origin(port: IListeningPort) -> str:
    address = port.getHost()
    scheme = "https" if _is_tls(port) else "http"
    if isinstance(address, IPv4Address):
        host = "127.0.0.1" if address.host == "0.0.0.0" else address.host
        return f"{scheme}://{host}:{address.port}"
    if isinstance(address, IPv6Address):
        host = "::1" if address.host == "::" else address.host
        return f"{scheme}://[{host}]:{address.port}"
    if isinstance(address, UNIXAddress):
        name = address.name or b""
        return f"unix:{name.decode('utf-8', 'replace')}:"
    return f"{scheme}://{address}"


def _is_tls(port: IListeningPort) -> bool:
    # What listens with TLS wraps the factory it was given.
    factory = getattr(port, "factory", None)
    return getattr(port, "_tls", False) or type(factory).__name__ == "TLSMemoryBIOFactory"
