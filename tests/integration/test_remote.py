"""A remote server over real sockets: TLS, proxies, and a whole bridge before it."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.web.resource import Resource
from twisted.web.server import Site
from zope.interface.verify import verifyObject

from mcpbridge import Bridge, BridgeSettings, ServerSettings
from mcpbridge.config import tuning
from mcpbridge.config.oauth import origin_of
from mcpbridge.errors import CannotStart, SettingError
from mcpbridge.interfaces import IBackend, IBackendLauncher
from mcpbridge.remote import tls
from mcpbridge.remote.connections import make_endpoint
from mcpbridge.remote.launcher import RemoteLauncher
from tests.certificates import SERVER, Authority
from tests.unit.remote.fake_remote import Receiver, modern

AUTHORITY = Authority()
NAMES = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]


class Remote(Resource):
    """Answers each request with its headers."""

    isLeaf = True

    def render_POST(self, request: Any) -> bytes:
        message = json.loads(request.content.read())
        sent = {
            n.decode().lower(): v[0].decode() for n, v in request.requestHeaders.getAllRawHeaders()
        }
        request.setHeader("Content-Type", "application/json")
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": sent}
        return json.dumps(answer).encode()


class Waiting(Receiver):
    """A session that waits for its first message."""

    def __init__(self) -> None:
        super().__init__()
        self.got: Deferred[dict[str, Any]] = Deferred()

    def messages_received(self, lines: list[bytes]) -> None:
        super().messages_received(lines)
        self.got.callback(json.loads(lines[0]))


class Tunnel(Protocol):
    """A proxy that lets everybody have a tunnel whose credentials are right."""

    transport: Any

    def connectionMade(self) -> None:
        self.head = b""
        self.far: Any = None

    def dataReceived(self, data: bytes) -> None:
        if self.far is not None:
            self.far.transport.write(data)
            return
        self.head += data
        if b"\r\n\r\n" not in self.head:
            return
        self.factory.heads.append(self.head)
        if b"Basic bWU6c2VjcmV0" not in self.head:
            self.transport.write(b"HTTP/1.1 407 No\r\n\r\n")
            self.transport.loseConnection()
            return
        from twisted.internet import reactor

        port = int(self.head.split(b" ")[1].rpartition(b":")[2])
        far = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        connectProtocol(far, Far(self)).addCallback(self.opened)

    def opened(self, far: Any) -> None:
        self.far = far
        self.transport.write(b"HTTP/1.1 200 Connected\r\n\r\n")

    def connectionLost(self, reason: Any = None) -> None:
        if self.far is not None:
            self.far.transport.loseConnection()


class Far(Protocol):
    """The far end of a tunnel."""

    transport: Any

    def __init__(self, near: Tunnel) -> None:
        self.near = near

    def dataReceived(self, data: bytes) -> None:
        self.near.transport.write(data)

    def connectionLost(self, reason: Any = None) -> None:
        self.near.transport.loseConnection()


Serve = Callable[..., int]


@pytest.fixture
def serve(running_reactor: Any) -> Iterator[Serve]:
    """Serve the remote server, or another factory; return its port."""
    ports: list[Any] = []

    def start(context: Any = None, factory: Any = None) -> int:
        site = factory or Site(Remote(), parsePOSTFormSubmission=False)
        if factory is None:
            site.displayTracebacks = False
        listen = running_reactor.listenTCP if context is None else running_reactor.listenSSL
        rest = () if context is None else (context,)
        ports.append(listen(0, site, *rest, interface="127.0.0.1"))
        return int(ports[-1].getHost().port)

    yield start
    for port in ports:
        pytest_twisted.blockon(port.stopListening())


def context_of(folder: Path, *, names: Any = NAMES, authority: Authority = AUTHORITY) -> Any:
    certificate, key = authority.issue(names=names, usage=SERVER).write(folder)
    return ssl.DefaultOpenSSLContextFactory(str(key), str(certificate))


async def ask(launcher: RemoteLauncher) -> dict[str, Any]:
    """Ask the remote server one thing; return the headers that it has got."""
    receiver = Waiting()
    backend: Any = await launcher.launch(receiver, "label")
    verifyObject(IBackend, backend)
    backend.send(modern(1))
    answer = await receiver.got
    await backend.stop()
    result: dict[str, Any] = answer["result"]
    return result


def launcher_of(url: str, reactor: Any, environment: Any = None, **settings: Any) -> RemoteLauncher:
    server = ServerSettings(command="", url=url, **settings)
    return RemoteLauncher(server, reactor, environment or {})


@pytest_twisted.ensureDeferred
async def test_plain_http(serve: Serve, running_reactor: Any) -> None:
    url = f"http://127.0.0.1:{serve()}/mcp?key=secret"
    launcher = launcher_of(url, running_reactor, headers={"X-Key": "value"})
    verifyObject(IBackendLauncher, launcher)
    assert launcher.check() is None
    assert (await ask(launcher))["x-key"] == "value"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest_twisted.ensureDeferred
async def test_tls_by_name_and_by_address(
    serve: Serve, running_reactor: Any, tmp_path: Path, host: str
) -> None:
    port = serve(context_of(tmp_path))
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(AUTHORITY.pem)
    launcher = launcher_of(f"https://{host}:{port}/", running_reactor, ca_file=str(ca_file))
    assert launcher.check() is None
    assert (await ask(launcher))["host"] == f"{host}:{port}"

    # The file is read again for new sessions.
    ca_file.write_bytes(Authority("Another").pem + b"\n")
    with pytest.raises(CannotStart, match="TLS failed: certificate verify failed"):
        await ask(launcher)
    ca_file.write_bytes(b"nothing")
    with pytest.raises(CannotStart, match="ca_file has no certificate in PEM"):
        await ask(launcher)
    ca_file.write_bytes(b"x" * (tuning.CERTIFICATE_FILE_BYTES + 1))
    assert "ca_file has more than 1048576 bytes" in str(launcher.check())
    ca_file.unlink()
    assert "ca_file cannot be read" in str(launcher.check())


@pytest_twisted.ensureDeferred
async def test_wrong_certificates(serve: Serve, running_reactor: Any, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(AUTHORITY.pem)
    other = [x509.DNSName("other.test")]
    port = serve(context_of(tmp_path, names=other))
    for host in ("localhost", "127.0.0.1"):
        launcher = launcher_of(f"https://{host}:{port}/", running_reactor, ca_file=str(ca_file))
        with pytest.raises(CannotStart, match="is not for this host name"):
            await ask(launcher)
    with pytest.raises(CannotStart, match="TLS failed"):
        await ask(launcher_of(f"https://localhost:{port}/", running_reactor))


@pytest_twisted.ensureDeferred
async def test_proxies(
    serve: Serve, running_reactor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A loopback address is never reached through a proxy, but for this test.
    monkeypatch.setattr("mcpbridge.config.oauth.Origin.is_loopback", False)
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(AUTHORITY.pem)
    port = serve(context_of(tmp_path))
    proxy: Any = Factory.forProtocol(Tunnel)
    proxy.heads = []
    through = serve(factory=proxy)
    url = f"https://localhost:{port}/"

    def launcher(user: str, **settings: Any) -> RemoteLauncher:
        environment = {"HTTPS_PROXY": f"http://{user}@127.0.0.1:{through}"}
        return launcher_of(url, running_reactor, environment, ca_file=str(ca_file), **settings)

    sent = await ask(launcher("me:secret", headers={"Authorization": "Bearer mine"}))
    assert sent["authorization"] == "Bearer mine"
    assert "proxy-authorization" not in sent
    assert proxy.heads[0].startswith(b"CONNECT localhost:%d " % port)
    assert b"mine" not in proxy.heads[0]
    with pytest.raises(CannotStart, match="Proxy Authentication Required") as caught:
        await ask(launcher("me:wrong"))
    assert "wrong" not in str(caught.value)
    socks = launcher_of(url, running_reactor, {"all_proxy": "socks5://me:secret@p:1"})
    assert "names a proxy that is neither http nor https" in str(socks.check())
    tls_proxy = {"HTTPS_PROXY": f"https://127.0.0.1:{through}"}
    assert launcher_of(url, running_reactor, tls_proxy).check() is None


def test_few_hosts_are_kept() -> None:
    made = tls.ClientTls(None)
    made.refresh()
    made.refresh()
    first = made.creator("a.test")
    assert made.creator("a.test") is first
    for number in range(tls.KEPT_HOSTS):
        made.creator(f"{number}.test")
    assert made.creator("a.test") is not first


def test_addresses_of_ipv6_are_connected_to() -> None:
    # Not all machines have one to connect to.
    origin = origin_of("http://[::1]:81/")
    endpoint = make_endpoint(MemoryReactorClock(), origin, None, lambda host: None, 10)
    assert "::1" in repr(endpoint)


@pytest_twisted.ensureDeferred
async def test_server_that_is_not_there(serve: Serve, running_reactor: Any) -> None:
    launcher = launcher_of("http://127.0.0.1:1/mcp?key=secret", running_reactor)
    with pytest.raises(CannotStart) as caught:
        await ask(launcher)
    text = "the remote server http://127.0.0.1:1/mcp cannot be reached: connection refused"
    assert str(caught.value) == text


def test_bridge_says_which_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "treq", None)
    server = ServerSettings(name="far", command="", url="http://127.0.0.1:1/mcp")
    with pytest.raises(SettingError, match=r"mcpServers\.far\.url: expected the extra `remote`"):
        Bridge(BridgeSettings(servers=(server,), listen=()))
