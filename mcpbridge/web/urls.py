"""
The URLs of what is served, for log lines and error messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IListeningPort

from mcpbridge.config.settings import ServerSettings

#: Addresses that stand for all interfaces.
_ALL = ("0.0.0.0", "::")
#: How many servers the error for an unknown path names.
_NAMED = 3


def served_urls(ports: Iterable[IListeningPort], servers: Iterable[ServerSettings]) -> list[str]:
    """Return the URLs for clients of each listener and server, `/mcp` first."""
    servers = list(servers)
    return [
        f"{_origin(port)}{server.base_uri}/{name}"
        for port in ports
        for server in servers
        for name in ("mcp", "sse")
    ]


def index_urls(ports: Iterable[IListeningPort]) -> list[str]:
    """Return the URL of the index of each listener that a browser can open."""
    origins = map(_origin, ports)
    return [f"{each}/" for each in origins if each.startswith("http")]


def exposed(ports: Iterable[IListeningPort]) -> list[str]:
    """Return a description of each listener that other machines can reach."""
    found = []
    for port in ports:
        address = port.getHost()
        if isinstance(address, (IPv4Address, IPv6Address)):
            here = ip_address(address.host.partition("%")[0])
            if not here.is_loopback:
                everywhere = " (all interfaces)" if address.host in _ALL else ""
                found.append(f"{_origin(port)}{everywhere}")
    return found


def mcp_at(servers: Sequence[ServerSettings], mount: str) -> str:
    """Return a sentence that names the URLs; `mount` is put before a base that is not public."""
    bases = [
        mount + each.base_uri if each.public_path is None else each.public_path for each in servers
    ]
    if len(bases) == 1:
        return f"MCP is at {bases[0]}/mcp and {bases[0]}/sse"
    named = ", ".join(f"{base}/mcp" for base in bases[:_NAMED])
    more = f" and {len(bases) - _NAMED} more" if len(bases) > _NAMED else ""
    return f"MCP is at {named}{more}"


def _origin(port: IListeningPort) -> str:
    address = port.getHost()
    scheme = "https" if _is_tls(port) else "http"
    if isinstance(address, IPv4Address):
        return f"{scheme}://{address.host}:{address.port}"
    if isinstance(address, IPv6Address):
        return f"{scheme}://[{address.host}]:{address.port}"
    if isinstance(address, UNIXAddress):
        name = address.name or b""
        return f"unix:{name.decode('utf-8', 'replace')}:"
    return f"{scheme}://{address}"


def _is_tls(port: IListeningPort) -> bool:
    # A port with TLS wraps the factory it was given.  By name: without pyOpenSSL
    # the class cannot be imported.
    return type(getattr(port, "factory", None)).__name__ == "TLSMemoryBIOFactory"
