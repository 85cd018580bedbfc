"""
Lists of addresses and networks, as settings name them, and which of them hold an address.

Knows IP addresses and the word `unix`; must not know what the lists are for.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

#: What the settings call all peers on UNIX sockets.
UNIX = "unix"
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


class Networks:
    """Addresses and networks, and `unix`.  Raises `ValueError` for any other name."""

    def __init__(self, names: Iterable[str]) -> None:
        names = tuple(names)
        self.unix = UNIX in names
        self._networks = [ip_network(name, strict=False) for name in names if name != UNIX]

    def __contains__(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks)

    def holds(self, host: str) -> bool:
        """Tell whether an address is in the list: that of an IP host as text, or `unix`."""
        if host == UNIX:
            return self.unix
        address = parse_address(host)
        return address is not None and address in self

    @property
    def with_everybody(self) -> bool:
        """True if it has every address of IPv4 or of IPv6."""
        return any(each.prefixlen == 0 for each in self._networks)

    @property
    def with_loopback(self) -> bool:
        """True if it has loopback addresses, which every process of the machine may use."""
        return any(
            each.version == loopback.version and each.overlaps(loopback)
            for each in self._networks
            for loopback in _LOOPBACK
        )


def parse_address(host: str) -> IPv4Address | IPv6Address | None:
    """
    Return the address that a text is, without its zone; None if it is none.

    An IPv4 address in an IPv6 one (RFC 4291, section 2.5.5.2) is the IPv4 address.
    """
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
