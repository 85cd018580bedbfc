"""
Who may speak to the bridge from a browser: Host, Origin and Sec-Fetch-Site.

A page of any site may send requests to a server on loopback, and with DNS
rebinding read the answers (MCP specification, basic/transports, "Security
Warning"): so an `Origin` must be known, and on loopback so must be the
`Host`.  Knows headers; must not know what is served.

Not every request of a page has an `Origin`: `<img src=".../sse">` has none,
and neither has a GET to the page's own origin, which is what a rebound name
looks like.  Two other things tell a browser from a program:

* Fetch metadata (W3C, "Fetch Metadata Request Headers").  No script can set
  or remove `Sec-Fetch-*`; browsers send it to https and to loopback.  Where
  `Sec-Fetch-Site` is there, it alone says who has sent the request.  Other
  headers of the family say little: Node's fetch sends `Sec-Fetch-Mode`.
* The `User-Agent`, which starts with `Mozilla/` in every browser.  It is the
  only sign over plain http to another machine.  A script of some browsers may
  change it, so that only `allowed_hosts` closes that way completely.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.http_headers import Headers

from mcpbridge.config.settings import BridgeSettings
from mcpbridge.errors import BadHost, Forbidden, Refused
from mcpbridge.rate_limited_log import RateLimitedLogByCause, times

#: Names of this machine that a client on it may use.
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

#: Header fields, in lower case, that only browsers send.
BROWSER_FIELDS = frozenset({b"sec-fetch-site", b"sec-fetch-dest"})
#: Fields that say that nobody has asked for what is fetched, at least not yet.
#: The last two are what older browsers send.
PREFETCH_FIELDS = frozenset({b"sec-purpose", b"purpose", b"x-moz"})
_BROWSER_AGENT = b"mozilla/"

#: RFC 9110, section 7.2, and RFC 3986, section 3.2.2: a name, an IPv4 address
#: or a bracketed IPv6 address, and perhaps a port.
_HOST = re.compile(
    r"(\[[0-9a-f:.]+(?:%25[0-9a-z._~-]+)?\]|(?:[0-9a-z._~!$&'()*+,;=-]|%[0-9a-f]{2})*)(?::([0-9]*))?"
)

#: What a browser's script may send and read across origins (Fetch, section 3.2).
_METHODS = b"GET, POST, DELETE, OPTIONS"
_HEADERS = (
    b"Accept, Authorization, Content-Type, Last-Event-ID, Mcp-Session-Id, MCP-Protocol-Version,"
    b" Mcp-Method, Mcp-Name, If-None-Match, traceparent, tracestate, baggage"
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


class TransportSecurity:
    """
    Checks requests against `allowed_hosts` and `allowed_origins`; tells pages
    of `allowed_headers`.

    With a `clock` it says what it refuses to the log, once in a while.
    """

    log = Logger()

    def __init__(self, settings: BridgeSettings, clock: IReactorTime | None = None) -> None:
        self._complaints = None if clock is None else RateLimitedLogByCause(clock)
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        self._origins = frozenset(origin.lower() for origin in settings.allowed_origins)
        self._headers = b", ".join(
            [_HEADERS, *(name.encode("ascii") for name in settings.allowed_headers)]
        )

    def allows_host(self, host: bytes | None, loopback: int | None) -> bool:
        """
        Whether a `Host` is valid and one of ours; `loopback` is the listener's
        port, if it is on loopback.
        """
        parts = _split(host) if host is not None else None
        return parts is not None and self._is_ours(*parts, loopback)

    def _is_ours(self, name: str, port: str, loopback: int | None) -> bool:
        if self._hosts:
            return self._is_named(name, port)
        # It is the name that a page of another site cannot have.
        return loopback is None or (name in LOOPBACK_NAMES and port in ("", str(loopback)))

    def _is_named(self, name: str, port: str) -> bool:
        """Whether `allowed_hosts` has it, with its port or without any."""
        return name in self._hosts or f"{name}:{port}" in self._hosts

    def complain(self, refusal: Refused) -> None:
        """Say to the log what was refused, and by which setting it would be allowed."""
        if self._complaints is None or not isinstance(refusal, Forbidden):
            return
        count = self._complaints.add(str(refusal))
        if count is not None:
            self.log.warn(
                "a request was refused (403): {why}{times}", why=refusal, times=times(count)
            )

    def check(self, request: Any, loopback: int | None) -> None:
        """
        Raise `Forbidden` for a request that a page of another site may have
        sent, and `BadHost` for one without a valid `Host`; where its origin is
        allowed, let its script read the answer.

        A page may be *visited* from anywhere: a top-level navigation from
        another site passes here, and `check_backend_route` refuses it where
        it would reach a backend.
        """
        headers = request.requestHeaders
        host = _only_host(request)
        name, port = parts = ("", "") if host is None else _checked(host)
        if host is not None and not self._is_ours(*parts, loopback):
            raise Forbidden(
                f"the Host {_shown(host)} is not one of this server;"
                " name it with --allowed-hosts (allowed_hosts) if it should be"
            )
        rebindable = host is not None and not (
            name in LOOPBACK_NAMES or _is_address(name) or self._is_named(name, port)
        )
        origins = headers.getRawHeaders(b"origin")
        if origins is not None:
            self._check_origin(origins, host, rebindable)
            request.setHeader(b"Access-Control-Allow-Origin", origins[0])
            request.setHeader(b"Access-Control-Expose-Headers", _EXPOSED)
            request.setHeader(b"Vary", b"Origin")
        elif is_from_elsewhere(headers) and not _is_visit(request):
            raise Forbidden(
                "a web page of another site has sent this; its script may, with an Origin that is"
                " allowed by --allowed-origins (allowed_origins)"
            )
        if rebindable and "." in name and _is_of_page(headers):
            # A same-origin GET of a page whose name was rebound has no Origin.
            raise Forbidden(
                f"the Host {_shown(host)} was named by nobody, and a browser has sent this;"
                " name the host with --allowed-hosts (allowed_hosts)"
            )

    def answer_preflight(self, request: Any) -> bytes:
        """What the script of a page may do that has passed `check`."""
        request.setResponseCode(204)
        request.setHeader(b"Access-Control-Allow-Methods", _METHODS)
        headers = request.requestHeaders
        asked = b",".join(headers.getRawHeaders(b"access-control-request-headers") or [])
        params = [name for name in map(bytes.strip, asked.split(b",")) if _PARAM.fullmatch(name)]
        allowed = b", ".join([self._headers, *params[:MAX_PARAMS]])
        request.setHeader(b"Access-Control-Allow-Headers", allowed)
        request.setHeader(b"Access-Control-Max-Age", b"%d" % PREFLIGHT_SECONDS)
        return b""

    def _check_origin(self, origins: Sequence[bytes], host: bytes | None, rebindable: bool) -> None:
        origin = origins[0].decode("latin-1").strip().lower()
        if len(origins) == 1 and ("*" in self._origins or origin in self._origins):
            return
        if len(origins) > 1 or not _is_own(origin, host):
            raise Forbidden(
                f"the Origin {origin[:100]!r} is not allowed;"
                " name it with --allowed-origins (allowed_origins) if it should be"
            )
        if rebindable:
            # The page may be anybody's whose DNS server says that its name is this machine.
            raise Forbidden(
                f"the Origin {origin[:100]!r} is that of the Host, which was named by nobody;"
                " name the host with --allowed-hosts (allowed_hosts)"
            )


def check_backend_route(request: Any) -> None:
    """
    Raise `Forbidden` for a request that has passed `TransportSecurity.check`, goes to a
    route that reaches a backend, and is not the will of a program, of a page
    that may, or of a user: to be called before anything is started.
    """
    headers = request.requestHeaders
    if any(b"prefetch" in value.lower() for value in _values(headers, PREFETCH_FIELDS)):
        # Chromium says `Sec-Fetch-Site: none`, as if a user had typed the URL,
        # of what another site's page wants prefetched (speculation rules).
        raise Forbidden("a browser fetches this ahead, and it would start a backend")
    if is_from_elsewhere(headers) and not headers.hasHeader(b"origin"):
        raise Forbidden("a web page of another site has led here, and it would start a backend")
    if (
        request.method in (b"GET", b"HEAD")
        and not headers.hasHeader(b"sec-fetch-site")
        and any(map(is_browser_agent, _values(headers, [b"user-agent"])))
        and not _names_event_stream(headers)
    ):
        raise Forbidden(
            "a browser has sent this, and may have been made to by a page of another site;"
            " Accept must name text/event-stream"
        )


def is_from_elsewhere(headers: Headers) -> bool:
    """Whether a browser says that a page of another origin has sent a request."""
    sites = headers.getRawHeaders(b"sec-fetch-site") or []
    return any(site.strip().lower() not in (b"same-origin", b"none") for site in sites)


def is_browser_agent(agent: bytes) -> bool:
    """Whether a `User-Agent` is that of a browser, or of what wants to be taken for one."""
    return _BROWSER_AGENT in agent.lower()


def _is_visit(request: Any) -> bool:
    """Whether a browser's window goes to a page: its script sees nothing of what was there."""
    headers = request.requestHeaders
    return (
        request.method in (b"GET", b"HEAD")
        and headers.getRawHeaders(b"sec-fetch-mode") == [b"navigate"]
        and headers.getRawHeaders(b"sec-fetch-dest") == [b"document"]
    )


def _is_of_page(headers: Headers) -> bool:
    """
    Whether a page, or the window of a browser, has sent a request.

    A program on a browser's engine (Electron) says `none`, and does not
    navigate; no page can make a browser say so.
    """
    sites = headers.getRawHeaders(b"sec-fetch-site")
    modes = headers.getRawHeaders(b"sec-fetch-mode") or []
    if sites == [b"none"] and modes and b"navigate" not in modes:
        return False
    if any(headers.hasHeader(name) for name in BROWSER_FIELDS):
        return True
    return any(map(is_browser_agent, _values(headers, [b"user-agent"])))


def _names_event_stream(headers: Headers) -> bool:
    accepted = b",".join(_values(headers, [b"accept"])).lower().split(b",")
    return any(each.partition(b";")[0].strip() == b"text/event-stream" for each in accepted)


def _values(headers: Headers, names: Iterable[bytes]) -> list[bytes]:
    return [value for name in names for value in headers.getRawHeaders(name) or []]


def _only_host(request: Any) -> bytes | None:
    """The `Host`; None where HTTP/1.0 has none.  Raises `BadHost` (RFC 9112, section 3.2)."""
    hosts = request.requestHeaders.getRawHeaders(b"host") or []
    if len(hosts) > 1:
        raise BadHost("a request has one Host, and this one has several")
    if hosts:
        host: bytes = hosts[0]
        return host
    if request.clientproto != b"HTTP/1.0":
        raise BadHost("a request of HTTP/1.1 must have a Host")
    return None


def _checked(host: bytes) -> tuple[str, str]:
    parts = _split(host)
    if parts is None:
        raise BadHost(f"the Host {_shown(host)} is no host, or its port is no number")
    return parts


def _split(host: bytes) -> tuple[str, str] | None:
    """Name and port of a `Host`, in lower case; None where it is not valid."""
    match = _HOST.fullmatch(host.decode("latin-1").strip(" \t").lower())
    if match is None or (not match[1] and match[2] is not None):
        return None
    return match[1], match[2] or ""


def _shown(host: bytes | None) -> str:
    return repr((host or b"")[:100].decode("latin-1"))


def _is_address(name: str) -> bool:
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


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
