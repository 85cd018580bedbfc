"""
Who sent a request: the client's address, for the limits of each address, and
its headers, for filters and observers.

Knows addresses and what proxies write of them (`X-Forwarded-For`; RFC 7239);
must not know what is limited, nor who is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import ip_network
from typing import Any, NamedTuple

from twisted.internet.address import UNIXAddress

from mcpbridge.auth.access import ANYBODY, Access
from mcpbridge.config.networks import UNIX, Networks, parse_address
from mcpbridge.config.settings import BridgeSettings
from mcpbridge.processes.caller import Caller

#: How many addresses are cached with what the settings say of them.
KNOWN_ADDRESSES = 4096
#: How many proxies in a row may name the next one.
MAX_HOPS = 32
#: The network that one host, or one customer, most often has (RFC 6177).
IPV6_PREFIX = 64

FORWARDED_FOR = "x-forwarded-for"
FORWARDED = "forwarded"
#: Returns the values of a header, by its name in lower case.
Fields = Callable[[str], list[str]]

_FOR = re.compile(r"(?i)(?:^|;)\s*for\s*=\s*([^;]*)")


class Peer(NamedTuple):
    """
    The other end of a connection, or the client behind it.

    `address` is what is counted: an IPv4 address, the /64 of an IPv6 address,
    `unix`, or an empty string where nothing is known.
    """

    address: str
    exempt: bool = False
    proxy: bool = False

    @property
    def share(self) -> str | None:
        """Return the address whose share counts for this; None if none does."""
        return None if self.exempt or self.proxy else self.address or None


class ClientAddresses:
    """Tells clients apart by address, as `exempt_addresses` and `trusted_proxies` say."""

    def __init__(self, settings: BridgeSettings) -> None:
        self._exempt = Networks(settings.exempt_addresses)
        self._proxies = Networks(settings.trusted_proxies)
        self._known = lru_cache(KNOWN_ADDRESSES)(self._classify)

    def peer(self, address: Any) -> Peer:
        """Return the peer that connects from an `IAddress`."""
        if isinstance(address, UNIXAddress):
            return self._known(UNIX)
        return self._known(str(getattr(address, "host", "")))

    def is_proxy(self, address: Any) -> bool:
        """Tell whether an `IAddress` is that of a trusted proxy."""
        return self.peer(address).proxy

    def client(self, peer: Peer, fields: Fields) -> str | None:
        """
        Return the address whose share counts for a request; None if none does.

        Behind a trusted proxy it is the right-most entry that is not a trusted
        proxy itself: the client may have written what is left of that.  A proxy
        that writes one of the two headers passes on what the client wrote in
        the other; if they differ, neither is believed, and the request counts
        with all such requests of its proxy.
        """
        if not peer.proxy:
            return peer.share
        hosts = self._named(fields)
        if not hosts:
            # The proxy's own, such as a health check.
            return None
        named = {self._known(host or "") for host in hosts}
        if None in hosts or len(named) > 1:
            return f"a client of {peer.address}"
        return named.pop().share

    def of_request(self, request: Any) -> str | None:
        """
        Return the same for a request of twisted.web, of any site; None if its
        connection is lost.
        """
        channel = request.channel
        if channel is None:
            return None
        peer = getattr(channel, "peer", None)
        if peer is None:
            peer = self.peer(channel.getPeer())
        return self.client(peer, _of_headers(request.requestHeaders))

    def share_of(self, request: Any) -> str | None:
        """
        Return whose share counts for a request of twisted.web: its caller's, by the name of
        the identity, or else its client's, by address.  None if nobody's does.
        """
        return access_of(request).name or self.of_request(request)

    def address(self, request: Any) -> str | None:
        """
        Return the address of a request's client itself, also if it is exempt;
        None if it is unknown: it has no address, or its proxy's headers differ.
        """
        channel = request.channel
        if channel is None:
            return None
        return self.address_behind(channel.getPeer(), _of_headers(request.requestHeaders))

    def address_behind(self, end: Any, fields: Fields) -> str | None:
        """Return the same for a request that came from an `IAddress`, with these fields."""
        hosts = self._named(fields) if self.is_proxy(end) else []
        named = {_plain(host) for host in hosts or [getattr(end, "host", None)]}
        return named.pop() if len(named) == 1 else None

    def _named(self, fields: Fields) -> list[str | None]:
        """Return whom proxies name in each of the headers that is present; None for no address."""
        return [
            self._nearest(reversed(entries))
            for entries in (_forwarded_for(fields), _forwarded(fields))
            if entries
        ]

    def _nearest(self, entries: Iterable[str]) -> str | None:
        """Return the first of these that is no proxy, or the last; None if it is no address."""
        found: str | None = None
        for hop, entry in enumerate(entries):
            found = _host(entry)
            if found is None or hop == MAX_HOPS:
                return None
            if not self._known(found).proxy:
                break
        return found

    def _classify(self, host: str) -> Peer:
        if host == UNIX:
            return Peer(host, self._exempt.unix, self._proxies.unix)
        address = parse_address(host)
        if address is None:
            return Peer("")
        exempt, proxy = address in self._exempt, address in self._proxies
        if address.version == 6:
            return Peer(str(ip_network((address, IPV6_PREFIX), strict=False)), exempt, proxy)
        return Peer(str(address), exempt, proxy)


def _of_headers(headers: Any) -> Fields:
    def fields(name: str) -> list[str]:
        values = headers.getRawHeaders(name.encode("ascii")) or []
        return [value.decode("latin-1") for value in values]

    return fields


def _forwarded_for(fields: Fields) -> list[str]:
    """Return the entries of `X-Forwarded-For`, the nearest proxy's last."""
    return [entry for value in fields(FORWARDED_FOR) for entry in value.split(",")]


def _forwarded(fields: Fields) -> list[str]:
    """
    Return the nodes of `Forwarded`, the nearest proxy's last.

    Quotes do not protect commas here: a quote that the client has opened must
    not hide what its proxy has appended.
    """
    found = [_FOR.search(each) for value in fields(FORWARDED) for each in value.split(",")]
    return ["" if each is None else each[1] for each in found]


def _host(entry: str) -> str | None:
    """Return an address without port and quotes (RFC 7239, section 6); None for another name."""
    text = entry.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return text if parse_address(text) is not None else None


def _plain(host: Any) -> str | None:
    """Return an address in its canonical form; None for what is none."""
    address = parse_address(str(host))
    return None if address is None else str(address)


#: Returns who sent a request of twisted.web; None if nobody wants to know.
CallerOf = Callable[[Any], Caller | None]


def no_caller(request: Any) -> None:
    """Return None: a `CallerOf` for a server without filters and observers."""


def tell_callers(
    address_of: Callable[[Any], str | None],
    hides: Callable[[bytes, Any], bool] = lambda name, request: False,
) -> CallerOf:
    """
    Return a `CallerOf`; `address_of` returns the address of a request's client, and `hides`
    tells which of its headers are told to nobody.
    """

    def caller_of(request: Any) -> Caller:
        return Caller(address_of(request), _headers(request, hides), access_of(request))

    return caller_of


def access_of(request: Any) -> Access:
    """Return as what a request of twisted.web was admitted."""
    access: Access = getattr(request, "access", ANYBODY)
    return access


def _headers(request: Any, hides: Callable[[bytes, Any], bool]) -> dict[str, str]:
    """Return headers by name in lower case, their values joined (RFC 9110, section 5.3)."""
    return {
        name.decode("latin-1").lower(): ", ".join(value.decode("latin-1") for value in values)
        for name, values in request.requestHeaders.getAllRawHeaders()
        if not hides(name, request)
    }
