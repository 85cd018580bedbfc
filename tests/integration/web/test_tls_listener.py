"""An `https:` listener of a real bridge: clients with and without certificates, and rotation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from mcpbridge import Bridge, BridgeSettings, ServerSettings
from mcpbridge.web.listeners import make_endpoint
from mcpbridge.web.tls import client_certificate
from tests.certificates import SERVER, Authority, Pair
from tests.tls import Recorded, TlsClient

CA = Authority("Servers")
CLIENTS = Authority("Clients")
FIRST, SECOND = (CA.issue(name, usage=SERVER) for name in ("first", "second"))
GET = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Listener:
    """A bridge with one listener, and its clients."""

    def __init__(self, reactor: Any, folder: Path) -> None:
        self.reactor = reactor
        self.folder = folder
        certificate, key = FIRST.write(folder)
        authority = folder / "ca.pem"
        authority.write_bytes(CLIENTS.pem)
        self.description = (
            f"https:0:interface=127.0.0.1:certificate={certificate}:key={key}:clientCA={authority}"
        )
        self.bridge = Bridge(
            BridgeSettings(
                servers=(ServerSettings(command="x", launcher="tests.thirdparty.ParrotLauncher"),),
                listen=(self.description,),
                child_subreaper=False,
            ),
            reactor,
        )
        self.bridge.startService()
        self._connections: list[tuple[Any, Recorded]] = []

    async def connect(
        self, pair: Pair | None = None, port: int | None = None, **client: Any
    ) -> Any:
        """Return the client's side of a connection: its `TLSMemoryBIOProtocol`."""
        if port is None:
            port = int(self.bridge.urls()[0].split(":")[2].partition("/")[0])
        endpoint = TCP4ClientEndpoint(self.reactor, "127.0.0.1", port)
        factory = TlsClient(CA, pair, **client).secured(self.reactor)
        protocol: Any = await endpoint.connect(factory)
        self._connections.append((protocol, protocol.wrappedProtocol))
        return protocol

    async def until(self, what: Any) -> None:
        """Wait until a condition holds, at most a minute."""
        deadline = self.reactor.seconds() + 60
        while not what():
            assert self.reactor.seconds() < deadline, "it did not come to that"
            await deferLater(self.reactor, 0.01)

    async def answered(self, connection: Any) -> bool:
        """Send a request; tell whether it was answered, rather than the connection lost."""
        recorded: Recorded = connection.wrappedProtocol
        recorded.received = b""
        connection.write(GET)
        await self.until(lambda: b"\r\n\r\n" in recorded.received or recorded.lost is not None)
        return recorded.received.startswith(b"HTTP/1.1 404 ")

    async def stop(self) -> None:
        for protocol, recorded in self._connections:
            if recorded.lost is None:
                protocol.abortConnection()
        await self.until(lambda: all(recorded.lost for _, recorded in self._connections))
        await self.bridge.stopService()


@pytest.fixture
def listener(running_reactor: Any, tmp_path: Path) -> Iterator[Listener]:
    started = Listener(running_reactor, tmp_path)
    yield started
    pytest_twisted.blockon(Deferred.fromCoroutine(started.stop()))


def shown(connection: Any) -> Any:
    return connection.getPeerCertificate().to_cryptography()


@pytest_twisted.ensureDeferred
async def test_urls_are_https(listener: Listener) -> None:
    assert listener.bridge.urls()[0].startswith("https://127.0.0.1:")


@pytest.mark.parametrize("newest", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
@pytest_twisted.ensureDeferred
async def test_only_a_wrong_client_certificate_is_refused(listener: Listener, newest: int) -> None:
    """Others are served meanwhile."""
    alice = await listener.connect(CLIENTS.issue("alice"), newest=newest)
    nobody = await listener.connect(newest=newest)
    assert await listener.answered(alice)
    assert await listener.answered(nobody)
    mallory = await listener.connect(CA.issue("alice"), newest=newest)
    assert not await listener.answered(mallory)
    assert await listener.answered(alice)
    assert await listener.answered(nobody)


@pytest_twisted.ensureDeferred
async def test_certificate_is_replaced_while_an_old_connection_lives(
    listener: Listener, log_lines: list[str]
) -> None:
    """A broken file in between is noticed, and breaks nothing."""
    deadline = listener.reactor.seconds() + 60

    async def connect_until(what: Callable[[], bool]) -> None:
        """Connect anew, and be served, until a condition holds."""
        while not what():
            assert listener.reactor.seconds() < deadline, "it did not come to that"
            connection = await listener.connect()
            assert await listener.answered(connection)
            certificates.append(shown(connection))
            await deferLater(listener.reactor, 0.05)

    certificates: list[Any] = []
    old = await listener.connect()
    assert await listener.answered(old)
    assert shown(old) == FIRST.certificate
    (listener.folder / "tls.crt").write_bytes(SECOND.pem[:-40])
    broken = "TLS: the files have changed and cannot be used"
    await connect_until(lambda: any(line.startswith(broken) for line in log_lines))
    assert set(certificates) == {FIRST.certificate}
    SECOND.write(listener.folder)
    await connect_until(lambda: SECOND.certificate in certificates)
    assert await listener.answered(old)
    assert shown(old) == FIRST.certificate


class Seen(Protocol):
    """Answers with the client certificate of its connection."""

    def dataReceived(self, data: bytes) -> None:
        transport: Any = self.transport
        transport.write((client_certificate(transport) or b"none") + b".")


@pytest_twisted.ensureDeferred
async def test_server_sees_the_certificate_of_a_connection(
    listener: Listener, running_reactor: Any
) -> None:
    factory = Factory.forProtocol(Seen)
    factory.noisy = False
    alice = CLIENTS.issue("alice")
    port: Any = await make_endpoint(running_reactor, listener.description).listen(factory)
    seen = []
    for pair in (alice, None):
        connection = await listener.connect(pair, port=port.getHost().port)
        connection.write(b"?")
        recorded = connection.wrappedProtocol
        await listener.until(lambda recorded=recorded: recorded.received.endswith(b"."))
        seen.append(recorded.received)
    assert seen == [alice.der + b".", b"none."]
    await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_plain_connection_has_no_certificate(
    listener: Listener, running_reactor: Any
) -> None:
    factory = Factory.forProtocol(Seen)
    factory.noisy = False
    port: Any = await make_endpoint(running_reactor, "tcp:0:interface=127.0.0.1").listen(factory)
    client = Factory.forProtocol(Recorded)
    client.noisy = False
    host = port.getHost()
    plain: Any = await TCP4ClientEndpoint(running_reactor, host.host, host.port).connect(client)
    plain.transport.write(b"?")
    await listener.until(lambda: plain.received == b"none.")
    plain.transport.abortConnection()
    await listener.until(lambda: plain.lost is not None)
    await port.stopListening()
