"""The client that asks an authorization server, over real sockets."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import ssl
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from mcpbridge.auth import outbound
from mcpbridge.auth.outbound import (
    ANSWER_BYTES,
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    Answer,
    OutboundClient,
    OutboundError,
    PublicReactor,
)

# Twisted's own use of pyOpenSSL.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


class Pages(Resource):
    """Answers with functions of the request, by path, and keeps the requests."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.by_path: dict[bytes, Callable[[Request], Any]] = {}
        self.requests: list[Request] = []

    def render(self, request: Request) -> Any:
        self.requests.append(request)
        return self.by_path[request.path](request)


class Served:
    """Pages at a port of this machine, over TLS if there is a certificate."""

    def __init__(self, reactor: Any, certificate: Any = None) -> None:
        self.pages = Pages()
        site = Site(self.pages)
        if certificate is None:
            self.port = reactor.listenTCP(0, site, interface="127.0.0.1")
        else:
            self.port = reactor.listenSSL(0, site, certificate.options(), interface="127.0.0.1")
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.port.getHost().port}"


@pytest.fixture
def served(running_reactor: Any) -> Iterator[Served]:
    one = Served(running_reactor)
    yield one
    pytest_twisted.blockon(one.port.stopListening())


def certificate_for(address: str) -> tuple[bytes, Any]:
    """Return a certificate in PEM for an address of this machine, and with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return certificate, ssl.PrivateCertificate.loadPEM(certificate + private)


async def problem(fetching: Deferred[Answer]) -> str:
    with pytest.raises(OutboundError) as caught:
        await fetching
    return str(caught.value)


@pytest_twisted.ensureDeferred
async def test_a_page_is_fetched(running_reactor: Any, served: Served) -> None:
    def page(request: Request) -> bytes:
        request.setHeader("Cache-Control", "Max-Age=7")
        request.addCookie("session", "1")
        return b"{}"

    served.pages.by_path[b"/x"] = page
    client = OutboundClient(running_reactor)
    for _ in range(2):
        answer = await client.fetch(served.url + "/x", public_only=False)
        assert answer == Answer(200, b"{}", "max-age=7")
    for request in served.pages.requests:
        assert request.method == b"GET"
        assert request.getHeader("Accept-Encoding") is None
        assert request.getHeader("Cookie") is None
        assert request.getHeader("User-Agent") == "mcpbridge"


@pytest_twisted.ensureDeferred
async def test_a_request_is_not_logged(
    running_reactor: Any, served: Served, log_lines: list[str]
) -> None:
    served.pages.by_path[b"/x"] = lambda request: b"{}"
    await OutboundClient(running_reactor).fetch(served.url + "/x", public_only=False)
    assert not [line for line in log_lines if "HTTP11ClientFactory" in line]


@pytest_twisted.ensureDeferred
async def test_a_form_is_posted(running_reactor: Any, served: Served) -> None:
    def page(request: Request) -> bytes:
        assert request.content is not None
        return request.content.read()

    served.pages.by_path[b"/x"] = page
    client = OutboundClient(running_reactor)
    answer = await client.fetch(
        served.url + "/x",
        public_only=False,
        form={"token": "a+b/&=", "hint": "é"},
        authorization=b"Basic YTpi",
    )
    assert answer.body == b"token=a%2Bb%2F%26%3D&hint=%C3%A9"
    [request] = served.pages.requests
    assert request.method == b"POST"
    assert request.getHeader("Content-Type") == "application/x-www-form-urlencoded"
    assert request.getHeader("Authorization") == "Basic YTpi"


@pytest_twisted.ensureDeferred
async def test_a_redirect_is_an_answer(running_reactor: Any, served: Served) -> None:
    def elsewhere(request: Request) -> bytes:
        request.redirect(b"/secret")
        return b""

    served.pages.by_path[b"/x"] = elsewhere
    answer = await OutboundClient(running_reactor).fetch(served.url + "/x", public_only=False)
    assert answer.status == 302
    assert [request.path for request in served.pages.requests] == [b"/x"]


@pytest_twisted.ensureDeferred
async def test_nothing_is_decompressed(running_reactor: Any, served: Served) -> None:
    bomb = gzip.compress(b"0" * (ANSWER_BYTES * 100))
    assert len(bomb) < ANSWER_BYTES

    def page(request: Request) -> bytes:
        request.setHeader("Content-Encoding", "gzip")
        return bomb

    served.pages.by_path[b"/x"] = page
    answer = await OutboundClient(running_reactor).fetch(served.url + "/x", public_only=False)
    assert answer.body == bomb


@pytest_twisted.ensureDeferred
async def test_an_answer_has_a_bound(running_reactor: Any, served: Served) -> None:
    served.pages.by_path[b"/most"] = lambda _: b"x" * ANSWER_BYTES
    served.pages.by_path[b"/more"] = lambda _: b"x" * (ANSWER_BYTES + 1)
    client = OutboundClient(running_reactor)
    answer = await client.fetch(served.url + "/most", public_only=False)
    assert len(answer.body) == ANSWER_BYTES
    why = await problem(client.fetch(served.url + "/more", public_only=False))
    assert str(ANSWER_BYTES) in why


class Endless:
    """A page that goes on as long as somebody reads it."""

    def __init__(self) -> None:
        self.ended: Deferred[object] = Deferred()

    def __call__(self, request: Request) -> int:
        request.notifyFinish().addBoth(lambda _: self.ended.callback(None))
        self._request = request
        request.registerProducer(self, False)
        return NOT_DONE_YET

    def resumeProducing(self) -> None:
        self._request.write(b"x" * 10_000)

    def stopProducing(self) -> None:
        pass


@pytest.mark.parametrize("secure", [False, True])
@pytest_twisted.ensureDeferred
async def test_an_endless_answer_is_given_up(running_reactor: Any, secure: bool) -> None:
    authorities, certificate = certificate_for("127.0.0.1")
    served = Served(running_reactor, certificate if secure else None)
    page = Endless()
    served.pages.by_path[b"/x"] = page
    client = OutboundClient(running_reactor, authorities)
    why = await problem(client.fetch(served.url + "/x", public_only=False))
    assert str(ANSWER_BYTES) in why
    await page.ended
    await served.port.stopListening()


@pytest_twisted.ensureDeferred
async def test_a_cut_answer_is_none(running_reactor: Any, served: Served) -> None:
    def page(request: Request) -> int:
        request.setHeader("Content-Length", "10")
        request.write(b"12345")
        assert request.transport is not None
        running_reactor.callLater(0, request.transport.loseConnection)
        return NOT_DONE_YET

    served.pages.by_path[b"/x"] = page
    client = OutboundClient(running_reactor)
    assert "incomplete" in await problem(client.fetch(served.url + "/x", public_only=False))


@pytest.mark.parametrize("starts", [False, True])
@pytest_twisted.ensureDeferred
async def test_an_answer_that_does_not_come_is_given_up(
    running_reactor: Any, served: Served, starts: bool
) -> None:
    """With a clock of its own, which decides how long an answer may take."""
    arrived: Deferred[object] = Deferred()
    ended: Deferred[object] = Deferred()

    def page(request: Request) -> int:
        request.notifyFinish().addBoth(lambda _: ended.callback(None))
        if starts:
            request.write(b"{")
        arrived.callback(None)
        return NOT_DONE_YET

    clock = Clock()
    served.pages.by_path[b"/x"] = page
    client = OutboundClient(running_reactor)
    client._clock = clock
    fetching = client.fetch(served.url + "/x", public_only=False)
    await arrived
    clock.advance(ANSWER_SECONDS - 1)
    assert not fetching.called
    clock.advance(1)
    assert "no answer" in await problem(fetching)
    await ended


@pytest_twisted.ensureDeferred
async def test_a_fetch_can_be_cancelled(running_reactor: Any, served: Served) -> None:
    page = Endless()
    served.pages.by_path[b"/x"] = page
    fetching = OutboundClient(running_reactor).fetch(served.url + "/x", public_only=False)
    fetching.cancel()
    await problem(fetching)
    assert served.pages.requests == []


@pytest_twisted.ensureDeferred
async def test_nobody_listens(running_reactor: Any) -> None:
    port = Served(running_reactor)
    await port.port.stopListening()
    client = OutboundClient(running_reactor)
    assert "refused" in await problem(client.fetch(port.url, public_only=False))


# TLS.


@pytest_twisted.ensureDeferred
async def test_only_the_configured_authorities_are_trusted(
    running_reactor: Any, logged_failures: list[Any]
) -> None:
    authorities, certificate = certificate_for("127.0.0.1")
    served = Served(running_reactor, certificate)
    served.pages.by_path[b"/x"] = lambda _: b"{}"
    client = OutboundClient(running_reactor, authorities)
    assert (await client.fetch(served.url + "/x", public_only=False)).body == b"{}"
    for other in (None, certificate_for("127.0.0.1")[0]):
        client = OutboundClient(running_reactor, other)
        assert "certificate" in await problem(client.fetch(served.url + "/x", public_only=False))
    await served.port.stopListening()


@pytest_twisted.ensureDeferred
async def test_a_certificate_of_another_host_is_refused(running_reactor: Any) -> None:
    authorities, certificate = certificate_for("127.0.0.2")
    served = Served(running_reactor, certificate)
    client = OutboundClient(running_reactor, authorities)
    assert await problem(client.fetch(served.url + "/x", public_only=False))
    assert served.pages.requests == []
    await served.port.stopListening()


# Hosts that are not configured.


@pytest_twisted.ensureDeferred
async def test_an_inner_host_is_not_connected_to(running_reactor: Any, served: Served) -> None:
    client = OutboundClient(running_reactor)
    port = served.port.getHost().port
    for host in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]", "2130706433"):
        why = await problem(client.fetch(f"https://{host}:{port}/x", public_only=True))
        assert "not public" in why, host
    assert "not https" in await problem(client.fetch(served.url, public_only=True))
    assert served.pages.requests == []


class Resolved:
    """A reactor that resolves a name to other addresses each time, and notes connections."""

    def __init__(self, reactor: Any, *answers: list[str]) -> None:
        self._reactor = reactor
        self._answers = iter(answers)
        self.connected: list[str] = []
        self.nameResolver = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def resolveHostName(self, receiver: Any, host: str, portNumber: int) -> None:
        receiver.resolutionBegan(None)
        for address in next(self._answers):
            receiver.addressResolved(IPv4Address("TCP", address, portNumber))
        receiver.resolutionComplete()

    def connectTCP(self, host: str, *arguments: Any, **named: Any) -> Any:
        self.connected.append(host)
        raise OSError(f"{host} is not reached by a test")


@pytest_twisted.ensureDeferred
async def test_a_name_that_changes_its_address_gains_nothing(running_reactor: Any) -> None:
    """DNS rebinding: what is checked is the address that is connected to."""
    reactor = Resolved(running_reactor, ["8.8.8.8"], ["10.0.0.1"], ["169.254.169.254", "8.8.4.4"])
    client = OutboundClient(running_reactor)
    client._reactor = reactor
    fetch = lambda: client.fetch("https://keys.example.org/", public_only=True)  # noqa: E731
    await problem(fetch())
    assert reactor.connected == ["8.8.8.8"]
    assert "not public" in await problem(fetch())
    assert reactor.connected == ["8.8.8.8"]
    await problem(fetch())
    assert reactor.connected == ["8.8.8.8", "8.8.4.4"]


def test_a_connection_has_a_timeout(running_reactor: Any) -> None:
    """It is that of `HostnameEndpoint`, for each address."""
    endpoint: Any = outbound._Connections(running_reactor, None, False).endpointForURI(
        _Uri(b"http", b"127.0.0.1", 80)
    )
    assert endpoint._endpoint._timeout == CONNECT_SECONDS


class _Uri:
    def __init__(self, scheme: bytes, host: bytes, port: int) -> None:
        self.scheme, self.host, self.port = scheme, host, port


def test_the_check_is_at_the_connection() -> None:
    calls: list[Any] = []

    class Reactor:
        def connectTCP(self, *arguments: Any, **named: Any) -> str:
            calls.append(arguments)
            return "connector"

    public: Any = PublicReactor(Reactor())
    assert public.connectTCP("8.8.8.8", 443, None) == "connector"
    with pytest.raises(OutboundError):
        public.connectTCP("keys.example.org", 443, None)
    assert calls == [("8.8.8.8", 443, None)]
