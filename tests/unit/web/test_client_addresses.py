"""
The address of a client, also behind trusted proxies, and the address whose limits it counts
against.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.testing import StringTransport
from twisted.web.test.requesthelper import DummyRequest

from mcpbridge.config.settings import BridgeSettings
from mcpbridge.web.client_addresses import (
    KNOWN_ADDRESSES,
    MAX_HOPS,
    ClientAddresses,
    Peer,
)
from mcpbridge.web.request_parser import Head

PROXY = "10.0.0.1"
TRUSTING = ClientAddresses(BridgeSettings(trusted_proxies=("10.0.0.0/24", "fd00::/8")))


def tcp(host: str) -> Any:
    return (IPv6Address if ":" in host else IPv4Address)("TCP", host, 1)


def client_of(peer: str, *lines: str, clients: ClientAddresses = TRUSTING) -> str | None:
    """Return the client's address, for a request with these header lines from this peer."""
    return clients.client(clients.peer(tcp(peer)), head_of(*lines).text_values)


def head_of(*lines: str) -> Head:
    """Return a head with these lines."""
    fields = [line.encode("latin-1").split(b":", 1) for line in lines]
    return Head(b"POST", b"/mcp", [(name.lower(), value.strip()) for name, value in fields])


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8:0:0:ffff::2", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_ipv6_client_is_counted_by_its_64_bit_network(host: str, address: str) -> None:
    assert TRUSTING.peer(tcp(host)) == Peer(address)
    assert TRUSTING.peer(tcp(host)).share == address


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_exempt_from_limits_by_default(host: str) -> None:
    assert TRUSTING.peer(tcp(host)).share is None
    assert ClientAddresses(BridgeSettings(exempt_addresses=())).peer(tcp(host)).share


def test_unix_sockets_are_exempt_from_limits_by_default() -> None:
    address = UNIXAddress(None)
    assert ClientAddresses(BridgeSettings()).peer(address).share is None
    assert ClientAddresses(BridgeSettings(exempt_addresses=())).peer(address).share == "unix"
    trusting = ClientAddresses(BridgeSettings(exempt_addresses=(), trusted_proxies=("unix",)))
    assert trusting.is_proxy(address)
    head = head_of("X-Forwarded-For: 192.0.2.1")
    assert trusting.client(trusting.peer(address), head.text_values) == "192.0.2.1"


@pytest.mark.parametrize(
    ("end", "headers", "address"),
    [
        (tcp("192.0.2.1"), [], "192.0.2.1"),
        (tcp("127.0.0.1"), [], "127.0.0.1"),
        (tcp("2001:DB8::1"), [], "2001:db8::1"),
        (tcp("::ffff:192.0.2.1"), [], "192.0.2.1"),
        (tcp("fe80::1%eth0"), [], "fe80::1"),
        (tcp("192.0.2.1"), [(b"X-Forwarded-For", b"198.51.100.1")], "192.0.2.1"),
        (tcp(PROXY), [], PROXY),
        (tcp(PROXY), [(b"X-Forwarded-For", b"x, 2001:db8::1, 10.0.0.2")], "2001:db8::1"),
        (tcp(PROXY), [(b"X-Forwarded-For", b"127.0.0.1")], "127.0.0.1"),
        (tcp(PROXY), [(b"Forwarded", b'for="[2001:db8:0::1]:4711"')], "2001:db8::1"),
        (tcp(PROXY), [(b"X-Forwarded-For", b"unknown")], None),
        (tcp(PROXY), [(b"X-Forwarded-For", b"192.0.2.1"), (b"Forwarded", b"for=192.0.2.2")], None),
        (tcp(PROXY), [(b"X-Forwarded-For", b"192.0.2.1"), (b"Forwarded", b"for=_hidden")], None),
        (tcp(PROXY), [(b"X-Forwarded-For", b"::1"), (b"Forwarded", b'for="[::1]"')], "::1"),
        (UNIXAddress(None), [(b"X-Forwarded-For", b"192.0.2.1")], None),
        (object(), [], None),
    ],
)
def test_address_of_a_client_is_never_made_up(
    end: Any, headers: list[tuple[bytes, bytes]], address: str | None
) -> None:
    """It is None if it is not known, and does not depend on exemptions."""
    request: Any = DummyRequest([b""])
    request.channel = StringTransport(peerAddress=end)
    for name, value in headers:
        request.requestHeaders.addRawHeader(name, value)
    assert TRUSTING.address(request) == address
    request.channel = None
    assert TRUSTING.address(request) is None


def test_trusted_proxy_on_a_unix_socket_names_its_client() -> None:
    request: Any = DummyRequest([b""])
    request.channel = StringTransport(peerAddress=UNIXAddress(None))
    trusting = ClientAddresses(BridgeSettings(trusted_proxies=("unix",)))
    assert trusting.address(request) is None
    request.requestHeaders.addRawHeader(b"X-Forwarded-For", b"192.0.2.1")
    assert trusting.address(request) == "192.0.2.1"


def test_peer_without_an_address_has_no_limit() -> None:
    assert TRUSTING.peer(object()).share is None
    assert TRUSTING.peer(tcp("?")).share is None


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        ((), None),
        (("X-Forwarded-For: 192.0.2.1",), "192.0.2.1"),
        (("x-forwarded-FOR:192.0.2.1",), "192.0.2.1"),
        (("X-Forwarded-For: 192.0.2.9, 192.0.2.1",), "192.0.2.1"),
        (("X-Forwarded-For: 192.0.2.9", "X-Forwarded-For: 192.0.2.1"), "192.0.2.1"),
        (("X-Forwarded-For: 192.0.2.9, 192.0.2.1, 10.0.0.2",), "192.0.2.1"),
        (("X-Forwarded-For: 10.0.0.3, 10.0.0.2",), None),
        (("X-Forwarded-For: 127.0.0.1",), None),
        (("X-Forwarded-For: 192.0.2.1:4711",), "192.0.2.1"),
        (("X-Forwarded-For: 2001:db8::1",), "2001:db8::/64"),
        (("X-Forwarded-For: [2001:db8::1]:4711",), "2001:db8::/64"),
        (("Forwarded: for=192.0.2.1",), "192.0.2.1"),
        (("Forwarded: for=192.0.2.9, proto=http;For=192.0.2.1;by=x",), "192.0.2.1"),
        (('Forwarded: for="[2001:db8::1]:4711"',), "2001:db8::/64"),
        (('Forwarded: for="192.0.2.9', "Forwarded: for=192.0.2.1"), "192.0.2.1"),
        (('Forwarded: for="192.0.2.9, for=192.0.2.1',), "192.0.2.1"),
        (("Forwarded: for=192.0.2.1", "X-Forwarded-For: 192.0.2.1"), "192.0.2.1"),
        # One of them is the client's own.
        (("Forwarded: for=192.0.2.9", "X-Forwarded-For: 192.0.2.1"), "a client of 10.0.0.1"),
        (("X-Forwarded-For: unknown",), "a client of 10.0.0.1"),
        (("X-Forwarded-For: 192.0.2.1,",), "a client of 10.0.0.1"),
        (("X-Forwarded-For: ",), "a client of 10.0.0.1"),
        (("Forwarded: for=_hidden",), "a client of 10.0.0.1"),
        (("Forwarded: proto=http",), "a client of 10.0.0.1"),
        (("X-Forwarded-For: 192.0.2.1" + ", 10.0.0.2" * (MAX_HOPS - 1),), "192.0.2.1"),
        (("X-Forwarded-For: 192.0.2.1" + ", 10.0.0.2" * MAX_HOPS,), "a client of 10.0.0.1"),
    ],
)
def test_client_is_the_last_entry_that_is_no_trusted_proxy(
    lines: tuple[str, ...], client: str | None
) -> None:
    """Anybody can write the entries to the left of it."""
    assert client_of(PROXY, *lines) == client


def test_cache_of_addresses_is_bounded() -> None:
    """`KNOWN_ADDRESSES`: those of the latest clients."""
    clients = ClientAddresses(BridgeSettings())
    for number in range(KNOWN_ADDRESSES + 10):
        host = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        assert clients.peer(tcp(host)) == Peer(host)
    assert clients._known.cache_info().currsize == KNOWN_ADDRESSES


@pytest.mark.parametrize("peer", ["192.0.2.7", "10.0.1.1"])
@pytest.mark.parametrize("line", ["X-Forwarded-For: 192.0.2.1", "Forwarded: for=127.0.0.1"])
def test_headers_of_an_untrusted_peer_are_ignored(peer: str, line: str) -> None:
    assert client_of(peer, line) == peer
    assert client_of(peer, line, clients=ClientAddresses(BridgeSettings())) == peer


def test_trusted_proxy_has_no_limit_of_connections() -> None:
    assert TRUSTING.peer(tcp(PROXY)).share is None
    assert TRUSTING.is_proxy(tcp(PROXY))
    assert not TRUSTING.is_proxy(tcp("192.0.2.1"))
