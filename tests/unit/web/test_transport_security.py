"""Host, Origin and Sec-Fetch-Site: which browsers and pages may use the bridge."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.web.http_headers import Headers
from twisted.web.resource import Resource, getChildForRequest

from mcpbridge.config.settings import BridgeSettings
from mcpbridge.config.tuning import COMPLAIN_SECONDS
from mcpbridge.errors import Forbidden
from mcpbridge.web.root import Branch, SecuredResource, Serving
from mcpbridge.web.transport_security import (
    KNOWN_LISTENERS,
    MAX_PARAMS,
    PREFLIGHT_SECONDS,
    TransportSecurity,
    loopback_port,
)


class FakeRequest:
    """A request on a connection to a listener with this address."""

    def __init__(self, address: Any, method: bytes = b"GET", **headers: Any) -> None:
        self.method = method
        self.clientproto = b"HTTP/1.1"
        headers = {"host": "127.0.0.1:8808", **headers}
        self.requestHeaders = Headers(
            {
                name.replace("_", "-"): [value]
                for name, value in headers.items()
                if value is not None
            }
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
    """A wrapper around a transport."""

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
    """A resource behind the checks."""

    isLeaf = True

    def render(self, request: Any) -> bytes:
        return b"page"


LOOPBACK = IPv4Address("TCP", "127.0.0.1", 8808)
PUBLIC = IPv4Address("TCP", "0.0.0.0", 8808)


def ask(request: FakeRequest, path: str = "page", **settings: Any) -> int:
    """Return the status of the response."""
    request.code = 200
    request.prepath, request.postpath = [], path.encode().split(b"/")
    root = Branch()
    root.leaf = root.branch(b"mcp").leaf = Page()
    gated = SecuredResource(partial(Serving, TransportSecurity(BridgeSettings(**settings)), root))
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
        (PUBLIC, "anything.example", 200),
        (UNIXAddress(b"/run/x"), "anything.example", 200),
        (IPv4Address("TCP", "no address", 1), "anything.example", 200),
    ],
)
def test_host_on_loopback_must_be_a_name_of_loopback(address: Any, host: str, status: int) -> None:
    """This stops DNS rebinding; on public addresses any valid Host is accepted."""
    assert ask(FakeRequest(address, host=host)) == status


@pytest.mark.parametrize("address", [LOOPBACK, PUBLIC])
@pytest.mark.parametrize("hosts", [(), ("tools.example",)])
def test_missing_host_is_refused_unless_http_1_0(address: Any, hosts: Any) -> None:
    """No browser sends HTTP/1.0."""
    request = FakeRequest(address, host=None)
    assert ask(request, allowed_hosts=hosts) == 400
    request.clientproto = b"HTTP/1.0"
    assert ask(request, allowed_hosts=hosts) == 200


@pytest.mark.parametrize("proto", [b"HTTP/1.1", b"HTTP/1.0"])
@pytest.mark.parametrize("address", [LOOPBACK, PUBLIC])
def test_repeated_host_is_refused(address: Any, proto: bytes) -> None:
    """Even if each is valid."""
    request = FakeRequest(address)
    request.clientproto = proto
    request.requestHeaders.addRawHeader("Host", "127.0.0.1:8808")
    assert ask(request) == 400


@pytest.mark.parametrize(
    ("host", "valid"),
    [
        ("mcp.example", True),
        ("mcp.example:", True),
        ("mcp.example:08808", True),
        ("my_server-1~x", True),
        ("%c3%a4.example:1", True),
        ("[::1]:1", True),
        ("[fe80::1%25eth0]", True),
        ("mcp.example:evil", False),
        ("mcp.example:1:2", False),
        ("mcp.example:-1", False),
        ("mcp.example:+1", False),
        ("mcp.example: 1", False),
        ("mcp.example:1\xb2", False),
        ("mcp.example:\uff11".encode().decode("latin-1"), False),
        (":8808", False),
        ("::1", False),
        ("[::1", False),
        ("[::1]x", False),
        ("[mcp.example]", False),
        ("mcp.example/", False),
        ("user@mcp.example", False),
        ("mcp.example, other.example", False),
        ("mcp example", False),
        ("http://mcp.example", False),
        ("%zz", False),
        ("\xff", False),
    ],
)
@pytest.mark.parametrize("hosts", [(), ("mcp.example",)])
def test_invalid_host_is_refused_with_400(host: str, valid: bool, hosts: Any) -> None:
    """RFC 9112, section 3.2; whichever hosts are allowed."""
    for address in (LOOPBACK, PUBLIC):
        status = ask(FakeRequest(address, host=host.encode("latin-1")), allowed_hosts=hosts)
        assert (status == 400) == (not valid)
        assert TransportSecurity(BridgeSettings(allowed_hosts=hosts)).allows_host(
            host.encode("latin-1"), 8808 if address is LOOPBACK else None
        ) == (status == 200)


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
def test_allowed_hosts_excludes_all_other_hosts(address: Any, host: str, status: int) -> None:
    """An entry with a port allows that port, one without a port allows any."""
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
def test_origin_must_be_allowed_or_the_bridges_own(origin: str, allowed: Any, status: int) -> None:
    """Any other `Origin` is refused with 403 before anything else."""
    request = FakeRequest(LOOPBACK, host="localhost:8808", origin=origin)
    assert ask(request, allowed_origins=allowed) == status
    readable = request.headers.get(b"Access-Control-Allow-Origin")
    assert readable == (origin.encode() if status == 200 else None)


def test_preflight_of_an_allowed_origin_names_methods_and_headers() -> None:
    asked = {"origin": "https://app.example", "access_control_request_method": "POST"}
    request = FakeRequest(PUBLIC, b"OPTIONS", **asked)
    assert ask(request, allowed_origins=("https://app.example",)) == 204
    assert b"POST" in request.headers[b"Access-Control-Allow-Methods"]
    assert b"Mcp-Session-Id" in request.headers[b"Access-Control-Allow-Headers"]
    assert int(request.headers[b"Access-Control-Max-Age"]) == PREFLIGHT_SECONDS
    assert ask(FakeRequest(PUBLIC, b"OPTIONS", **asked)) == 403
    assert ask(FakeRequest(PUBLIC, b"OPTIONS")) == 200


def preflight(*names: str, headers: tuple[str, ...] = ()) -> list[str]:
    """Return the headers that a preflight for these headers allows."""
    asked = {"origin": "https://app.example", "access_control_request_method": "POST"}
    request = FakeRequest(PUBLIC, b"OPTIONS", **asked)
    for name in names:
        request.requestHeaders.addRawHeader("Access-Control-Request-Headers", name)
    origins = ("https://app.example",)
    assert ask(request, allowed_origins=origins, allowed_headers=headers) == 204
    return request.headers[b"Access-Control-Allow-Headers"].decode().split(", ")


def test_preflight_allows_the_headers_of_2026_07_28() -> None:
    """Among them `Mcp-Param-*`, whose names come from the tools."""
    usual = preflight()
    assert {"MCP-Protocol-Version", "Mcp-Method", "Mcp-Name"} <= {*usual}
    assert preflight("content-type, mcp-param-city,MCP-Param-Region", "mcp-param-x") == [
        *usual,
        "mcp-param-city",
        "MCP-Param-Region",
        "mcp-param-x",
    ]


def test_preflight_allows_trace_context_and_allowed_headers() -> None:
    """W3C Trace Context, Baggage and the setting `allowed_headers`."""
    usual = preflight()
    assert {"traceparent", "tracestate", "baggage"} <= {*usual}
    named = preflight("x-request-id", headers=("X-Request-Id", "X-Tenant"))
    assert named == [*usual, "X-Request-Id", "X-Tenant"]


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
def test_preflight_does_not_allow_or_repeat_other_headers(name: str) -> None:
    assert preflight(name) == preflight()


def test_preflight_allows_at_most_max_params_headers() -> None:
    names = [f"mcp-param-{number}" for number in range(1000)]
    assert preflight(",".join(names)) == preflight() + names[:MAX_PARAMS]


def test_transport_without_a_listener_is_not_loopback() -> None:
    assert loopback_port(None) is None
    assert loopback_port(Wrapping(None)) is None


def test_addresses_of_more_than_known_listeners_are_classified_as_well() -> None:
    """`KNOWN_LISTENERS` bounds what is cached."""
    for number in range(KNOWN_LISTENERS + 10):
        host = f"127.0.{number // 256}.{number % 256}"
        assert loopback_port(Listening(IPv4Address("TCP", host, 80))) == 80
        assert loopback_port(Listening(IPv4Address("TCP", host.replace("127", "10"), 80))) is None


# Requests that a page of another site can make a browser send.

CHROMIUM = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0"
NAVIGATION = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
#: As recorded from Chromium 156: what a page can ask for without an Origin,
#: and with which Accept, Sec-Fetch-Mode and Sec-Fetch-Dest that comes.
EMBEDDED = {
    "img": ("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", "no-cors", "image"),
    "script": ("*/*", "no-cors", "script"),
    "style": ("text/css,*/*;q=0.1", "no-cors", "style"),
    "video": ("*/*", "no-cors", "video"),
    "object": (NAVIGATION, "navigate", "object"),
    "iframe, or a form in it": (NAVIGATION, "navigate", "iframe"),
    "link rel=preload": ("*/*", "no-cors", "empty"),
    "fetch, no-cors": ("*/*", "no-cors", "empty"),
    "fetch, no-cors, Accept": ("text/event-stream", "no-cors", "empty"),
    "window.open, location, a link": (NAVIGATION, "navigate", "document"),
}


def browser(
    kind: str, site: str | None = None, address: Any = LOOPBACK, **headers: Any
) -> FakeRequest:
    """Return a browser's request; `site` None: plain http to another machine, or an old browser."""
    accept, mode, dest = EMBEDDED[kind]
    fetch = {"sec_fetch_site": site, "sec_fetch_mode": mode, "sec_fetch_dest": dest}
    return FakeRequest(
        address,
        **{"user_agent": CHROMIUM, "accept": accept, **(fetch if site else {}), **headers},
    )


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site", "what is to come", ""])
@pytest.mark.parametrize("path", ["sse", "mcp/sse", "mcp/mcp", "mcp/message"])
@pytest.mark.parametrize("kind", EMBEDDED)
def test_page_of_another_site_starts_no_backend(kind: str, path: str, site: str) -> None:
    """`<img src=".../sse">` has no Origin and the right Host, and is refused with 403."""
    request = browser(kind, "x")
    request.requestHeaders.setRawHeaders("Sec-Fetch-Site", [site])
    assert ask(request, path) == 403
    request = browser(kind, "x", address=PUBLIC)
    request.requestHeaders.setRawHeaders("Sec-Fetch-Site", [site])
    assert ask(request, path, allowed_origins=("*",)) == 403


@pytest.mark.parametrize("site", ["same-origin", "none"])
@pytest.mark.parametrize("kind", EMBEDDED)
def test_same_origin_page_or_user_may_open_a_stream(kind: str, site: str) -> None:
    """`none` is a URL that the user has typed."""
    assert ask(browser(kind, site), "sse") == 200


@pytest.mark.parametrize("path", ["page", "", "mcp", "mcp/", "sse//", "mcp/sse/x", "favicon.ico"])
def test_link_of_another_site_may_open_a_path_without_a_backend(path: str) -> None:
    """Embedding it is refused."""
    link = browser("window.open, location, a link", "cross-site")
    assert ask(link, path) == (200 if path in ("page", "mcp/sse/x", "favicon.ico") else 404)
    assert ask(browser("iframe, or a form in it", "cross-site"), path) == 403
    assert ask(browser("img", "same-site"), path) == 403
    post = browser("window.open, location, a link", "cross-site")
    post.method = b"POST"
    assert ask(post, path) == 403


def test_allowed_origin_may_be_another_site() -> None:
    """Its page may read the response."""
    for site in ("cross-site", "same-site"):
        request = browser("fetch, no-cors, Accept", site, origin="https://app.example")
        assert ask(request, "sse", allowed_origins=("https://app.example",)) == 200
        assert request.headers[b"Access-Control-Allow-Origin"] == b"https://app.example"
        assert ask(request, "sse") == 403


@pytest.mark.parametrize("field", ["sec_purpose", "purpose", "x_moz"])
@pytest.mark.parametrize("site", [None, "none", "same-origin"])
@pytest.mark.parametrize("value", ["prefetch", "prefetch;prerender", "Prefetch"])
def test_prefetch_starts_no_backend(field: str, site: str | None, value: str) -> None:
    """Speculation rules of any page look as if the user had typed the URL."""
    request = browser("window.open, location, a link", site, **{field: value})
    request.requestHeaders.setRawHeaders("Accept", ["text/event-stream"])
    assert ask(request, "sse") == 403
    assert ask(request, "page") == 200


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("kind", EMBEDDED)
def test_browser_without_fetch_metadata_must_accept_event_streams(kind: str, method: bytes) -> None:
    """Over plain http to another machine, only `User-Agent` shows that it is a browser."""
    for path in ("sse", "mcp/sse", "mcp/mcp"):
        request = browser(kind, address=PUBLIC)
        request.method = method
        assert ask(request, path) == (200 if "event-stream" in EMBEDDED[kind][0] else 403)
    assert ask(browser(kind, accept="text/html, Text/Event-Stream;q=0.5"), "sse") == 200
    assert ask(browser(kind, accept=None), "sse") == 403


@pytest.mark.parametrize("address", [LOOPBACK, PUBLIC])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"accept": "*/*", "user_agent": "curl/8.5.0"},
        {"accept": "*/*", "user_agent": "node", "sec_fetch_mode": "cors", "accept_language": "*"},
        {"accept": "text/event-stream", "user_agent": "python-httpx/0.28.1"},
        {"purpose": "monitoring"},
    ],
)
def test_clients_other_than_browsers_are_accepted(headers: Any, address: Any) -> None:
    """Node's fetch sends `Sec-Fetch-Mode` but is no browser; curl accepts any type."""
    assert ask(FakeRequest(address, **headers), "sse") == 200
    if address is PUBLIC:
        assert ask(FakeRequest(address, host="any.example:1", **headers), "sse") == 200


# DNS rebinding where the listener is not on loopback.


@pytest.mark.parametrize(
    ("host", "hosts", "own"),
    [
        ("attacker.example:8808", (), False),
        ("attacker.example", (), False),
        ("bridge:8808", (), False),
        ("127.0.0.1.attacker.example", (), False),
        ("localhost.", (), False),
        ("192.168.1.5:8808", (), True),
        ("[2001:db8::5]:8808", (), True),
        ("localhost:8808", (), True),
        ("LOCALHOST", (), True),
        ("mcp.example", ("mcp.example",), True),
        ("mcp.example:8808", ("mcp.example",), True),
        ("mcp.example:8808", ("mcp.example:8808",), True),
    ],
)
@pytest.mark.parametrize("address", [PUBLIC, UNIXAddress(b"/run/x")])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_origin_that_equals_host_is_accepted_only_if_rebinding_is_impossible(
    host: str, hosts: Any, own: bool, address: Any, scheme: str
) -> None:
    """That is so for addresses, loopback names and `allowed_hosts`."""
    request = FakeRequest(address, host=host, origin=f"{scheme}://{host.lower()}")
    assert ask(request, "mcp/mcp", allowed_hosts=hosts) == (200 if own else 403)
    readable = request.headers.get(b"Access-Control-Allow-Origin")
    assert (readable is not None) == own
    known = FakeRequest(address, host=host, origin="https://app.example")
    allowed = ("https://app.example",)
    assert ask(known, "mcp/mcp", allowed_hosts=hosts, allowed_origins=allowed) == 200


@pytest.mark.parametrize("path", ["sse", "mcp/mcp", "page"])
@pytest.mark.parametrize(
    ("marks", "status"),
    [
        ({"user_agent": CHROMIUM}, 403),
        ({"user_agent": "mozilla/5.0"}, 403),
        ({"sec_fetch_site": "same-origin"}, 403),
        ({"sec_fetch_site": "none", "sec_fetch_mode": "navigate"}, 403),
        ({"sec_fetch_site": "none"}, 403),
        ({"sec_fetch_dest": "empty"}, 403),
        # A program on the engine of a browser.
        ({"sec_fetch_site": "none", "sec_fetch_mode": "no-cors", "user_agent": CHROMIUM}, 200),
        ({"sec_fetch_mode": "cors", "user_agent": "node"}, 200),
        ({}, 200),
    ],
)
def test_browser_at_an_unknown_host_is_refused(marks: Any, status: int, path: str) -> None:
    """A same-origin GET has no Origin, so the browser is recognised by other headers."""
    request = FakeRequest(PUBLIC, host="attacker.example", accept="text/event-stream", **marks)
    assert ask(request, path) == status
    assert ask(request, path, allowed_hosts=("attacker.example",)) == 200
    for host in ("192.168.1.5", "[2001:db8::5]:1", "bridge:8808", "localhost"):
        request = FakeRequest(PUBLIC, host=host, accept="text/event-stream", **marks)
        assert ask(request, path) == 200


def test_refusal_names_the_option_that_would_allow_the_request() -> None:
    security = TransportSecurity(BridgeSettings())

    def refusal(address: Any, **headers: Any) -> str:
        with pytest.raises(Forbidden) as caught:
            security.check(FakeRequest(address, **headers), loopback_port(Listening(address)))
        return str(caught.value)

    host, origin = "--allowed-hosts (allowed_hosts)", "--allowed-origins (allowed_origins)"
    assert host in refusal(LOOPBACK, host="evil.example")
    assert origin in refusal(LOOPBACK, origin="http://evil.example")
    assert origin in refusal(LOOPBACK, sec_fetch_site="cross-site")
    assert host in refusal(PUBLIC, host="evil.example", origin="http://evil.example")
    assert host in refusal(PUBLIC, host="evil.example", user_agent=CHROMIUM)


def test_refusals_are_logged_once_in_complain_seconds(log_lines: list[str]) -> None:
    """Malformed requests are not logged: no setting would allow them."""
    clock = Clock()
    security = TransportSecurity(BridgeSettings(), clock)
    gated = SecuredResource(partial(Serving, security, Branch()))

    def send(**headers: Any) -> None:
        getChildForRequest(gated, FakeRequest(LOOPBACK, **headers))

    for _ in range(3):
        send(host="evil.example")
    send(host="localhost:8808", origin="https://evil.example")
    send(host="a b")
    assert log_lines == [
        (
            "a request was refused (403): the Host 'evil.example' is not one of this server;"
            " name it with --allowed-hosts (allowed_hosts) if it should be"
        ),
        (
            "a request was refused (403): the Origin 'https://evil.example' is not allowed;"
            " name it with --allowed-origins (allowed_origins) if it should be"
        ),
    ]
    clock.advance(COMPLAIN_SECONDS)
    send(host="evil.example")
    assert log_lines[2].endswith("if it should be (3 times since it was last logged)")


def test_refused_headers_cannot_forge_log_lines(log_lines: list[str]) -> None:
    security = TransportSecurity(BridgeSettings(), Clock())
    host = "evil\x1b[31m\r\n" + "x" * 1000
    gated = SecuredResource(partial(Serving, security, Branch()))
    getChildForRequest(gated, FakeRequest(LOOPBACK, host="localhost:8808", origin=host))
    (line,) = log_lines
    assert line.isprintable()
    assert len(line) < 400


def test_the_host_of_the_public_url_is_allowed() -> None:
    """It need not be named twice, and only that one is."""
    for url, host, status in (
        ("https://mcp.example.org", b"mcp.example.org", 200),
        ("https://MCP.example.org:8443", b"mcp.example.org:8443", 200),
        ("https://mcp.example.org:8443", b"mcp.example.org", 403),
        ("https://mcp.example.org", b"other.example.org", 403),
        ("https://mcp.example.org", b"", 403),
        (None, b"", 403),
    ):
        security = TransportSecurity(BridgeSettings(public_url=url))
        assert security.allows_host(host, 8808) is (status == 200), (url, host)
        named = TransportSecurity(BridgeSettings(public_url=url, allowed_hosts=("a.example",)))
        assert named.allows_host(host, None) is (status == 200)
        assert named.allows_host(b"a.example", None)
