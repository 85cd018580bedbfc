"""TLS connections of tests: a client and a server that exchange bytes in memory, or by TCP."""

from __future__ import annotations

from typing import Any

from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IProtocolNegotiationFactory
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.certificates import Authority, Pair


class Recorded(Protocol):
    """A protocol that keeps what it receives, and why it was lost."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = reason


@implementer(IOpenSSLClientConnectionCreator, IProtocolNegotiationFactory)
class TlsClient(Factory):
    """
    A client that trusts an authority, and shows a certificate if it has one.

    It speaks TLS up to `newest`, and offers `protocols`.
    """

    noisy = False
    protocol = Recorded

    def __init__(
        self,
        trusted: Authority,
        pair: Pair | None = None,
        newest: int = SSL.TLS1_3_VERSION,
        protocols: tuple[bytes, ...] = (b"h2", b"http/1.1"),
    ) -> None:
        self._context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        self._context.set_max_proto_version(newest)
        if newest < SSL.TLS1_2_VERSION:
            self._context.set_cipher_list(b"ALL:@SECLEVEL=0")
        store = self._context.get_cert_store()
        assert store is not None
        store.add_cert(X509.from_cryptography(trusted.certificate))
        self._context.set_verify(SSL.VERIFY_PEER)
        if pair is not None:
            self._context.use_certificate(pair.certificate)
            self._context.use_privatekey(pair.key)
            for each in pair.chain:
                self._context.add_extra_chain_cert(each)
        self._context.set_alpn_protos(list(protocols))

    def clientConnectionForTLS(self, protocol: object) -> SSL.Connection:
        return SSL.Connection(self._context, None)

    def acceptableProtocols(self) -> list[bytes]:
        return []

    def secured(self, clock: Any) -> TLSMemoryBIOFactory:
        """Return the factory of its connections."""
        return TLSMemoryBIOFactory(self, True, self, clock=clock)


class InMemory:
    """A connection of such a client to a server, complete as soon as it is made."""

    @classmethod
    def of(cls, certificates: Any, client: TlsClient) -> InMemory:
        """Connect to a server that keeps what it receives."""
        clock = Clock()
        served = Factory.forProtocol(Recorded)
        served.noisy = False
        return cls(TLSMemoryBIOFactory(certificates, False, served, clock=clock), client, clock)

    def __init__(self, server: TLSMemoryBIOFactory, client: TlsClient, clock: Clock) -> None:
        self._clock = clock
        factories = (server, client.secured(clock))
        self._ends: list[tuple[Any, StringTransport]] = []
        for factory in factories:
            protocol = factory.buildProtocol(None)
            transport = StringTransport()
            protocol.makeConnection(transport)
            self._ends.append((protocol, transport))
        self.server: Any = self._ends[0][0]
        self.client: Any = self._ends[1][0]
        self.client.write(b"hello")
        self._exchange()

    def _exchange(self) -> None:
        moved = True
        while moved:
            self._clock.advance(1)
            moved = False
            for (_, source), (target, _) in zip(self._ends, reversed(self._ends), strict=True):
                data = source.value()
                if data:
                    source.clear()
                    target.dataReceived(data)
                    moved = True

    @property
    def accepted(self) -> bool:
        """True if the server got what the client has sent."""
        found: bytes = self.server.wrappedProtocol.received
        return found == b"hello"

    @property
    def shown(self) -> x509.Certificate:
        """The certificate of the server."""
        certificate = self.client.getPeerCertificate().to_cryptography()
        assert isinstance(certificate, x509.Certificate)
        return certificate
