"""
Transport security: refuses requests that a browser sends for a page of another
site, by `Host`, `Origin` and `Sec-Fetch-Site`.

A page of any site may send requests to a server on loopback, and with DNS
rebinding read the responses (MCP specification, basic/transports, "Security
Warning"): so an `Origin` must be allowed, and on loopback so must the `Host`.
Knows headers; must not know what is served.

Not every request of a page has an `Origin`: `<img src=".../sse">` has none,
and neither has a GET to the page's own origin, which a rebound name looks like.
Two other headers tell a browser from a program:

* Fetch metadata (W3C, "Fetch Metadata Request Headers").  No script can set
  or remove `Sec-Fetch-*`; browsers send it to https and to loopback.  If
  `Sec-Fetch-Site` is present, it alone tells who sent the request.  Other
  headers of the family tell little: Node's fetch sends `Sec-Fetch-Mode`.
* `User-Agent`, which starts with `Mozilla/` in every browser.  Over plain http
  to another machine there is no other sign.  In some browsers a script may
  change it, so that only `allowed_hosts` is complete protection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.http_headers import Headers

from mcpbridge.config.settings import BridgeSettings
from mcpbridge.errors import BadHost, Forbidden, Refused
from mcpbridge.rate_limited_log import RateLimitedLogByCause, times

#: How many addresses of listeners are cached with whether they are on loopback.
KNOWN_LISTENERS = 256
#: Names of this machine that a client on it may use.
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})

#: Header fields, in lower case, that only browsers send.
BROWSER_FIELDS = frozenset({b"sec-fetch-site", b"sec-fetch-dest"})
#: Fields of requests that a browser sends ahead of a user's wish.  Older browsers
#: send the last two.
PREFETCH_FIELDS = frozenset({b"sec-purpose", b"purpose", b"x-moz"})
_BROWSER_AGENT = b"mozilla/"

#: RFC 9110, section 7.2, and RFC 3986, section 3.2.2: a name, an IPv4 address
#: or a bracketed IPv6 address, and perhaps a port.
_HOST = re.compile(
    r"(\[[0-9a-f:.]+(?:%25[0-9a-z._~-]+)?\]|(?:[0-9a-z._~!$&'()*+,;=-]|%[0-9a-f]{2})*)(?::([0-9]*))?"
)

#: What a script may send and read across origins (Fetch, section 3.2).
_METHODS = b"GET, POST, DELETE, OPTIONS"
_HEADERS = (
    b"Accept, Authorization, Content-Type, Last-Event-ID, Mcp-Session-Id, MCP-Protocol-Version,"
    b" Mcp-Method, Mcp-Name, If-None-Match, traceparent, tracestate, baggage"
)
#: Headers that are named by tools, which a browser asks for one by one.
_PARAM = re.compile(rb"(?i)mcp-param-[!#$%&'*+.^_`|~0-9a-z-]{1,100}")
MAX_PARAMS = 64
_EXPOSED = b"Mcp-Session-Id, WWW-Authenticate, Retry-After"
PREFLIGHT_SECONDS = 600


def loopback_port(transport: Any) -> int | None:
    """
    Return the port of a connection's listener if it listens on loopback.

    Looks through TLS and other wrappers; None for other listeners, and if none
    is found.
    """
    listener = listener_of(transport)
    if listener is None:
        return None
    address = listener.getHost()
    if isinstance(address, (IPv4Address, IPv6Address)) and _is_loopback(address.host):
        return int(address.port)
    return None


def listener_of(transport: Any) -> Any:
    """Return the listener of a connection, behind TLS and other wrappers; None without one."""
    while transport is not None:
        listener = getattr(transport, "server", None)
        if listener is not None and hasattr(listener, "getHost"):
            return listener
        transport = getattr(transport, "transport", None)
    return None


@lru_cache(KNOWN_LISTENERS)
def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


class TransportSecurity:
    """
    Checks requests against `allowed_hosts` and `allowed_origins`; lets pages
    send `allowed_headers`.

    With a `clock` it logs what it refuses, once in a while.
    """

    log = Logger()

    def __init__(self, settings: BridgeSettings, clock: IReactorTime | None = None) -> None:
        self._log = None if clock is None else RateLimitedLogByCause(clock)
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        #: The host that the operator says clients use.
        self._public = (settings.public_url or "").lower().partition("//")[2]
        self._origins = frozenset(origin.lower() for origin in settings.allowed_origins)
        self._headers = b", ".join(
            [_HEADERS, *(name.encode("ascii") for name in settings.allowed_headers)]
        )

    def allows_host(self, host: bytes | None, loopback: int | None) -> bool:
        """
        Tell whether a `Host` is valid and allowed; `loopback` is the listener's
        port, if it is on loopback.
        """
        parts = _split(host) if host is not None else None
        return parts is not None and self._is_allowed(*parts, loopback)

    def _is_allowed(self, name: str, port: str, loopback: int | None) -> bool:
        if self._is_named(name, port):
            return True
        if self._hosts:
            return False
        # A page of another site cannot have one of these names.
        return loopback is None or (name in LOOPBACK_NAMES and port in ("", str(loopback)))

    def _is_named(self, name: str, port: str) -> bool:
        """
        Tell whether `allowed_hosts` has a name, with this port or without any, or whether
        it is that of `public_url`.
        """
        whole = f"{name}:{port}" if port else name
        return name in self._hosts or whole in self._hosts or (name != "" and whole == self._public)

    def log_refusal(self, refusal: Refused) -> None:
        """Log a refused request, and the setting that would allow it."""
        if self._log is None or not isinstance(refusal, Forbidden):
            return
        count = self._log.add(str(refusal))
        if count is not None:
            self.log.warn(
                "a request was refused (403): {reason}{times}",
                reason=str(refusal),
                times=times(count),
            )

    def check(self, request: Any, loopback: int | None, *, any_host: bool = False) -> None:
        """
        Raise `Forbidden` for a request that a page of another site may have
        sent, and `BadHost` for one without a valid `Host`; if its origin is
        allowed, let its script read the response.

        A page may be *visited* from anywhere: a top-level navigation from
        another site passes here, and `check_backend_route` refuses it if it
        would reach a backend.  With `any_host` nothing is served that a page of another
        site may not know, and any valid `Host` will do.
        """
        headers = request.requestHeaders
        host = _only_host(request)
        name, port = parts = ("", "") if host is None else _checked(host)
        if host is not None and not (any_host or self._is_allowed(*parts, loopback)):
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
                "a web page of another site sent this request; only its script may, with an Origin"
                " that is allowed by --allowed-origins (allowed_origins)"
            )
        if rebindable and "." in name and _is_of_page(headers):
            # A same-origin GET of a page whose name was rebound has no Origin.
            raise Forbidden(
                f"a browser sent this request with the Host {_shown(host)}, which is not known to"
                " be this server; name it with --allowed-hosts (allowed_hosts) if it is"
            )

    def answer_preflight(self, request: Any) -> bytes:
        """Answer a preflight that has passed `check` with what the script of its page may send."""
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
            # Anybody's page has this origin if its DNS server resolves its name to this machine.
            raise Forbidden(
                f"the Origin {origin[:100]!r} is that of the Host, which is not known to be this"
                " server; name the host with --allowed-hosts (allowed_hosts) if it is"
            )


def check_backend_route(request: Any) -> None:
    """
    Raise `Forbidden` for a request to a path that reaches a backend, unless a
    program sent it, a page that is allowed to, or a user's own navigation.

    Called after `TransportSecurity.check`, and before anything is started.
    """
    headers = request.requestHeaders
    if any(b"prefetch" in value.lower() for value in _values(headers, PREFETCH_FIELDS)):
        # Chromium sends `Sec-Fetch-Site: none`, as if a user had typed the URL, for
        # what another site's page wants prefetched (speculation rules).
        raise Forbidden("a browser prefetches this path, which would start a backend")
    if is_from_elsewhere(headers) and not headers.hasHeader(b"origin"):
        raise Forbidden("a page of another site leads to this path, which would start a backend")
    if (
        request.method in (b"GET", b"HEAD")
        and not headers.hasHeader(b"sec-fetch-site")
        and any(map(is_browser_agent, _values(headers, [b"user-agent"])))
        and not _names_event_stream(headers)
    ):
        raise Forbidden(
            "a browser sent this request, perhaps for a page of another site;"
            " Accept must name text/event-stream"
        )


def is_from_elsewhere(headers: Headers) -> bool:
    """Tell whether a browser says that a page of another origin sent a request."""
    sites = headers.getRawHeaders(b"sec-fetch-site") or []
    return any(site.strip().lower() not in (b"same-origin", b"none") for site in sites)


def is_browser_agent(agent: bytes) -> bool:
    """Tell whether a `User-Agent` is that of a browser, or pretends to be."""
    return _BROWSER_AGENT in agent.lower()


def _is_visit(request: Any) -> bool:
    """Tell whether a browser's window navigates: no script of the page before sees the response."""
    headers = request.requestHeaders
    return (
        request.method in (b"GET", b"HEAD")
        and headers.getRawHeaders(b"sec-fetch-mode") == [b"navigate"]
        and headers.getRawHeaders(b"sec-fetch-dest") == [b"document"]
    )


def _is_of_page(headers: Headers) -> bool:
    """
    Tell whether a page, or the window of a browser, sent a request.

    A program with a browser's engine (Electron) sends `Sec-Fetch-Site: none`
    without navigating; no page can make a browser do so.
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
    """Return the `Host`; None for HTTP/1.0 without.  Raises `BadHost` (RFC 9112, section 3.2)."""
    hosts = request.requestHeaders.getRawHeaders(b"host") or []
    if len(hosts) > 1:
        raise BadHost("the request has several Host headers")
    if hosts:
        host: bytes = hosts[0]
        return host
    if request.clientproto != b"HTTP/1.0":
        raise BadHost("an HTTP/1.1 request must have a Host header")
    return None


def _checked(host: bytes) -> tuple[str, str]:
    parts = _split(host)
    if parts is None:
        raise BadHost(f"the Host {_shown(host)} is not a valid host and port")
    return parts


def _split(host: bytes) -> tuple[str, str] | None:
    """Return name and port of a `Host`, in lower case; None if it is invalid."""
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
    """Tell whether an origin is the server's own; the scheme may be that of a proxy."""
    own = host.decode("latin-1").strip().lower() if host else ""
    return bool(own) and origin in (f"http://{own}", f"https://{own}")


def is_preflight(request: Any) -> bool:
    """Tell whether a request is a CORS preflight (Fetch, section 4.8)."""
    headers = request.requestHeaders
    return bool(
        request.method == b"OPTIONS"
        and headers.hasHeader(b"origin")
        and headers.hasHeader(b"access-control-request-method")
    )
