"""
Who may speak to the bridge from a browser: Origin and Host.

A page of any site may send requests to a server on loopback, and with DNS
rebinding read the answers (MCP specification, basic/transports, "Security
Warning"): so an `Origin` must be known, and on loopback so must be the
`Host`.  Knows headers; must not know what is served.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address

from mcpbridge.config import BridgeSettings
from mcpbridge.errors import Forbidden

#: Names of this machine that a client on it may use.
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

#: What a browser's script may send and read across origins (Fetch, section 3.2).
_METHODS = b"GET, POST, DELETE, OPTIONS"
_HEADERS = (
    b"Accept, Authorization, Content-Type, Last-Event-ID, Mcp-Session-Id, MCP-Protocol-Version,"
    b" Mcp-Method, Mcp-Name"
)
#: Headers whose names tools give, which a browser asks for one by one.
_PARAM = re.compile(rb"(?i)mcp-param-[!#$%&'*+.^_`|~0-9a-z-]{1,100}")
MAX_PARAMS = 64
_EXPOSED = b"Mcp-Session-Id"
PREFLIGHT_SECONDS = 600


def loopback_port(transport: Any) -> int | None:
    """
    The port that the listener of a connection has, if it listens on loopback.

    Looks through TLS and other wrappers; None for other listeners, and where
    there is none to be found.
    """
    while transport is not None:
        listener = getattr(transport, "server", None)
        if listener is not None and hasattr(listener, "getHost"):
            address = listener.getHost()
            if isinstance(address, (IPv4Address, IPv6Address)) and _is_loopback(address.host):
                return int(address.port)
            return None
        transport = getattr(transport, "transport", None)
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


class Gate:
    """Checks requests against `allowed_hosts` and `allowed_origins`."""

    def __init__(self, settings: BridgeSettings) -> None:
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        self._origins = frozenset(origin.lower() for origin in settings.allowed_origins)

    def allows_host(self, host: bytes | None, loopback: int | None) -> bool:
        """
        Whether a `Host` is one of ours; `loopback` is the listener's port, if
        it is on loopback.  A request without one comes from no browser.
        """
        if host is None or (not self._hosts and loopback is None):
            return True
        full = host.decode("latin-1").strip().lower()
        name, _, port = full.rpartition(":") if not full.endswith("]") else (full, "", "")
        if not name:
            name, port = full, ""
        if self._hosts:
            return full in self._hosts or name in self._hosts
        # It is the name that a page of another site cannot have.
        return name in LOOPBACK_NAMES and port in ("", str(loopback))

    def check(self, request: Any, loopback: int | None) -> None:
        """
        Raise `Forbidden` for a request that a page of another site may have
        sent; where its origin is allowed, let its script read the answer.
        """
        hosts = request.requestHeaders.getRawHeaders(b"host") or [None]
        if len(hosts) > 1 or not self.allows_host(hosts[0], loopback):
            shown = b", ".join(host or b"" for host in hosts)[:100].decode("latin-1")
            raise Forbidden(f"the Host {shown!r} is not one of this server (allowed_hosts)")
        origins = request.requestHeaders.getRawHeaders(b"origin")
        if origins is None:
            return
        origin = origins[0].decode("latin-1").strip().lower()
        if len(origins) > 1 or not (self._is_known(origin) or _is_own(origin, hosts[0])):
            raise Forbidden(f"the Origin {origin[:100]!r} is not allowed (allowed_origins)")
        request.setHeader(b"Access-Control-Allow-Origin", origins[0])
        request.setHeader(b"Access-Control-Expose-Headers", _EXPOSED)
        request.setHeader(b"Vary", b"Origin")

    def _is_known(self, origin: str) -> bool:
        return origin in self._origins or "*" in self._origins


def _is_own(origin: str, host: bytes | None) -> bool:
    """Whether it is the server's own; the scheme may be that of a proxy before it."""
    own = host.decode("latin-1").strip().lower() if host else ""
    return bool(own) and origin in (f"http://{own}", f"https://{own}")


def is_preflight(request: Any) -> bool:
    """Whether a browser asks what its script may do (Fetch, section 4.8)."""
    headers = request.requestHeaders
    return bool(
        request.method == b"OPTIONS"
        and headers.hasHeader(b"origin")
        and headers.hasHeader(b"access-control-request-method")
    )


def answer_preflight(request: Any) -> bytes:
    """What its script may do."""
    request.setResponseCode(204)
    request.setHeader(b"Access-Control-Allow-Methods", _METHODS)
    asked = b",".join(request.requestHeaders.getRawHeaders(b"access-control-request-headers") or [])
    params = [name for name in map(bytes.strip, asked.split(b",")) if _PARAM.fullmatch(name)]
    allowed = b", ".join([_HEADERS, *params[:MAX_PARAMS]])
    request.setHeader(b"Access-Control-Allow-Headers", allowed)
    request.setHeader(b"Access-Control-Max-Age", b"%d" % PREFLIGHT_SECONDS)
    return b""
