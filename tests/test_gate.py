"""
Origin and Host: who may speak to the bridge from a browser.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource, getChildForRequest

from mcpbridge.config import BridgeSettings
from mcpbridge.web.gate import MAX_PARAMS, Gate, loopback_port
from mcpbridge.web.root import Branch, Gated


class FakeRequest:
    """A request on a connection to a listener with this address."""

    def __init__(self, address: Any, method: bytes = b"GET", **headers: str) -> None:
        self.method = method
        self.requestHeaders = Headers(
            {name.replace("_", "-"): [value] for name, value in headers.items()}
        )
        self.channel = Wrapping(Wrapping(Listening(address)))
        self.code = 200
        self.prepath: list[bytes] = []
        self.postpath = [b"page"]
        self.headers: dict[bytes, bytes] = {}

    def setResponseCode(self, code: int, phrase: bytes = b"") -> None:
        self.code = code

    def setHeader(self, name: bytes, value: bytes) -> None:
        self.headers[name] = value


class Wrapping:
    """Something around a transport."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport


class Listening:
    """A transport whose listener has an address."""

    def __init__(self, address: Any) -> None:
        self.server = self
        self._address = address

    def getHost(self) -> Any:
        return self._address


class Page(Resource):
    """What is behind the gate."""

    isLeaf = True

    def render(self, request: Any) -> bytes:
        return b"page"


LOOPBACK = IPv4Address("TCP", "127.0.0.1", 8808)
PUBLIC = IPv4Address("TCP", "0.0.0.0", 8808)


def ask(request: FakeRequest, **settings: Any) -> int:
    """The status of the answer."""
    root = Branch()
    root.putChild(b"page", Page())
    gated = Gated(Gate(BridgeSettings(**settings)), root)
    body = getChildForRequest(gated, request).render(request)
    assert (body == b"page") == (request.code == 200)
    return request.code


@pytest.mark.parametrize(
    ("address", "host", "status"),
    [
        (LOOPBACK, "127.0.0.1:8808", 200),
        (LOOPBACK, "localhost:8808", 200),
        (LOOPBACK, "LocalHost:8808", 200),
        (LOOPBACK, "localhost", 200),
        (LOOPBACK, "[::1]:8808", 200),
        (LOOPBACK, "[::1]", 200),
        (IPv6Address("TCP", "::1", 8808), "localhost:8808", 200),
        (IPv4Address("TCP", "127.0.0.9", 8808), "evil.example:8808", 403),
        (LOOPBACK, "evil.example", 403),
        (LOOPBACK, "evil.example:8808", 403),
        (LOOPBACK, "localhost:8809", 403),
        (LOOPBACK, "localhost.evil.example:8808", 403),
        (LOOPBACK, "", 403),
        (LOOPBACK, ":8808", 403),
        (LOOPBACK, "\xff", 403),
        (PUBLIC, "anything.example", 200),
        (UNIXAddress(b"/run/x"), "anything.example", 200),
        (IPv4Address("TCP", "no address", 1), "anything.example", 200),
    ],
)
def test_host_on_loopback_is_one_of_its_names(address: Any, host: str, status: int) -> None:
    """DNS rebinding: a page's own name is never that of loopback; public routes are as before."""
    assert ask(FakeRequest(address, host=host)) == status


def test_request_without_a_host_comes_from_no_browser() -> None:
    """HTTP/1.0, or a program's own hand."""
    assert ask(FakeRequest(LOOPBACK)) == 200


@pytest.mark.parametrize("address", [LOOPBACK, PUBLIC])
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("tools.example", 200),
        ("Tools.Example:443", 200),
        ("other.example:1", 200),
        ("other.example", 403),
        ("127.0.0.1:8808", 403),
    ],
)
def test_configured_hosts_are_the_only_ones(address: Any, host: str, status: int) -> None:
    """`allowed_hosts`: with a port that one, without any."""
    hosts = ("tools.example", "other.example:1")
    assert ask(FakeRequest(address, host=host), allowed_hosts=hosts) == status


@pytest.mark.parametrize(
    ("origin", "allowed", "status"),
    [
        ("http://localhost:8808", (), 200),
        ("https://localhost:8808", (), 200),
        ("http://localhost:1", (), 403),
        ("http://evil.example", (), 403),
        ("null", (), 403),
        ("", (), 403),
        ("https://app.example", ("https://app.example",), 200),
        ("https://APP.example", ("https://app.example",), 200),
        ("http://app.example", ("https://app.example",), 403),
        ("http://evil.example", ("*",), 200),
        ("null", ("null",), 200),
    ],
)
def test_origin_is_configured_or_our_own(origin: str, allowed: Any, status: int) -> None:
    """An `Origin` that is present must be known, otherwise 403 before anything else."""
    request = FakeRequest(LOOPBACK, host="localhost:8808", origin=origin)
    assert ask(request, allowed_origins=allowed) == status
    readable = request.headers.get(b"Access-Control-Allow-Origin")
    assert readable == (origin.encode() if status == 200 else None)


def test_preflight_of_an_allowed_origin() -> None:
    """CORS: what a page of that origin may send."""
    asked = {"origin": "https://app.example", "access_control_request_method": "POST"}
    request = FakeRequest(PUBLIC, b"OPTIONS", **asked)
    assert ask(request, allowed_origins=("https://app.example",)) == 204
    assert b"POST" in request.headers[b"Access-Control-Allow-Methods"]
    assert b"Mcp-Session-Id" in request.headers[b"Access-Control-Allow-Headers"]
    assert ask(FakeRequest(PUBLIC, b"OPTIONS", **asked)) == 403
    assert ask(FakeRequest(PUBLIC, b"OPTIONS")) == 200


def preflight(*names: str) -> list[str]:
    """What a page that asks for these headers may send."""
    asked = {"origin": "https://app.example", "access_control_request_method": "POST"}
    request = FakeRequest(PUBLIC, b"OPTIONS", **asked)
    for name in names:
        request.requestHeaders.addRawHeader("Access-Control-Request-Headers", name)
    assert ask(request, allowed_origins=("https://app.example",)) == 204
    return request.headers[b"Access-Control-Allow-Headers"].decode().split(", ")


def test_preflight_of_a_request_of_2026_07_28() -> None:
    """Its headers, among them those whose names the tools give."""
    usual = preflight()
    assert {"MCP-Protocol-Version", "Mcp-Method", "Mcp-Name"} <= {*usual}
    assert preflight("content-type, mcp-param-city,MCP-Param-Region", "mcp-param-x") == [
        *usual,
        "mcp-param-city",
        "MCP-Param-Region",
        "mcp-param-x",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "x-other",
        "cookie",
        "mcp-param-",
        "mcp-param-a b",
        "mcp-param-\xe4",
        "mcp-param-" + "x" * 101,
    ],
)
def test_preflight_for_any_other_header(name: str) -> None:
    """Not allowed, nor written into the answer."""
    assert preflight(name) == preflight()


def test_preflight_for_headers_without_end() -> None:
    names = [f"mcp-param-{number}" for number in range(1000)]
    assert preflight(",".join(names)) == preflight() + names[:MAX_PARAMS]


def test_no_listener_to_be_found() -> None:
    """A transport that tells of none is taken for public."""
    assert loopback_port(None) is None
    assert loopback_port(Wrapping(None)) is None
