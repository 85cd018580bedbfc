"""
Connections to one remote server, for one of its sessions.

There is one place that they lead to, whatever a URL says later: the origin of the setting
`url`, directly or through a proxy.  So a redirect or a hostile endpoint gains nothing.
A connection counts as open when TLS is ready, too, so that a wrong certificate is
a failure to connect, and not of some message.

Knows TCP, TLS, proxies and the sizes of heads; must not know messages.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHandshakeListener, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from mcpbridge.config.oauth import Origin
from mcpbridge.remote.problems import CannotConnect, RemoteError, connect_reason, status_text
from mcpbridge.remote.proxies import Proxy
from mcpbridge.timers import Timer

#: The largest head of a response, with those of status 1xx before it.
HEAD_BYTES = 64 * 1024
#: How long a connection is kept that nobody uses: less than the 5 s after which the usual
#: servers close one, as a POST on it would be lost then.
KEEP_ALIVE_SECONDS = 4.0
#: How long a silent peer may be unreachable before TCP asks it for a sign of life, how long it
#: waits between two questions, and how many of these stay without an answer.
PROBE_SECONDS = 30
PROBE_PAUSE_SECONDS = 10
PROBES = 3

_HEAD_END = re.compile(rb"\n\r?\n")
_INTERIM = re.compile(rb"HTTP/[0-9.]+ 1[0-9][0-9]")
_TUNNEL_STATUS = re.compile(rb"HTTP/1\.[0-9] ([0-9]{3})")

#: Makes the TLS of a connection to a host (`IOpenSSLClientConnectionCreator`).
ConnectionCreator = Callable[[str], Any]


class _QuietFactory(Factory):
    """A factory of one protocol, which does not log each connection."""

    noisy = False

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: Any) -> Protocol:
        """Return the protocol."""
        return self._protocol


@implementer(IHandshakeListener)
class Connection(Protocol):
    """
    One connection, between the network and the HTTP client of Twisted, `inner`.

    It is the transport of that.  It bounds the head of a response, which Twisted does
    not, and it never waits for the other end when it is closed: a TLS connection, or a
    response without end, would be read on.
    """

    transport: Any

    def __init__(self, connections: Connections, *, is_tls: bool) -> None:
        self._connections = connections
        self._is_tls = is_tls
        self._inner: Any = None
        self._peer: Any = None
        #: The head of a response so far; None while none is awaited.
        self._head: bytearray | None = None
        self._interim_bytes = 0
        #: Fires with the connection when it can be used.
        self.ready: Deferred[Connection] = Deferred(lambda _: self.abortConnection())
        self._idle = Timer(connections.clock)

    def __getattr__(self, name: str) -> Any:
        if name == "transport":
            raise AttributeError(name)
        return getattr(self.transport, name)

    # From the network.

    def connectionMade(self) -> None:
        """Wait for TLS, if it is used."""
        _keep_probing(self.transport)
        if not self._is_tls:
            self._become_ready()

    def handshakeCompleted(self) -> None:
        """Note that TLS is ready: the certificate is right."""
        self._become_ready()

    def _become_ready(self) -> None:
        if not self.ready.called:
            self._connections.opened(self)
            self.ready.callback(self)

    def dataReceived(self, data: bytes) -> None:
        """Pass bytes on, and bound the head of a response."""
        if self._inner is None:
            # Nothing was asked.
            self.abortConnection()
        elif self._head is None or self._check_head(data):
            self._inner.dataReceived(data)

    def _check_head(self, data: bytes) -> bool:
        """Return False if the head is too large."""
        head = self._head
        assert head is not None
        searched = max(0, len(head) - 3)
        head += data
        while end := _HEAD_END.search(head, searched):
            if end.end() + self._interim_bytes > HEAD_BYTES:
                break
            if not _INTERIM.match(head):
                self._head = None
                return True
            self._interim_bytes += end.end()
            del head[: end.end()]
            searched = 0
        if len(head) + self._interim_bytes <= HEAD_BYTES:
            return True
        text = f"sent a response with a head of more than {HEAD_BYTES} bytes"
        self._lose(Failure(RemoteError(text)))
        return False

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        """Tell the client of Twisted, or who waits for the connection."""
        self._lose(reason)

    def _lose(self, reason: Failure) -> None:
        self._idle.stop()
        self._connections.closed(self)
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.connectionLost(reason)
        if not self.ready.called:
            self.ready.errback(reason)
        self.abortConnection()

    # For the endpoint.

    def keep(self, seconds: float) -> None:
        """Keep the connection for the next request, for so long."""
        self._idle.start(seconds, self.abortConnection)

    def give_to(self, factory: Any) -> Any:
        """Let a protocol of this factory use the connection; return the protocol."""
        self._idle.stop()
        self._inner = factory.buildProtocol(self.transport.getPeer())
        self._inner.makeConnection(self)
        return self._inner

    # ITransport, as far as it is not passed on as it is.

    def writeSequence(self, lines: Any) -> None:
        """Write the head of a request; so the head of a response is next."""
        self._head = bytearray()
        self._interim_bytes = 0
        self.transport.writeSequence(lines)

    def loseConnection(self) -> None:
        """Close the connection at once: whatever had to be written has been."""
        self.abortConnection()

    def abortConnection(self) -> None:
        """Close the connection at once."""
        if self.transport is not None:
            self.transport.abortConnection()


def _keep_probing(transport: Any) -> None:
    """Have TCP notice that the machine at the other end is gone."""
    if not hasattr(transport, "setTcpKeepAlive"):
        return
    transport.setTcpKeepAlive(True)
    transport.setTcpNoDelay(True)
    handle = getattr(transport, "socket", None)
    if isinstance(handle, socket.socket) and hasattr(socket, "TCP_KEEPIDLE"):
        for option, number in (
            (socket.TCP_KEEPIDLE, PROBE_SECONDS),
            (socket.TCP_KEEPINTVL, PROBE_PAUSE_SECONDS),
            (socket.TCP_KEEPCNT, PROBES),
        ):
            handle.setsockopt(socket.IPPROTO_TCP, option, number)


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class Connections:
    """
    The connections of one session, which `close` ends.

    It is what Twisted's `Agent` asks for an endpoint, and that endpoint, too: there is
    only one.  `endpoint` leads to the server, with TLS if `is_tls`.
    """

    def __init__(
        self, reactor: Any, endpoint: IStreamClientEndpoint, seconds: float, *, is_tls: bool
    ) -> None:
        self.clock = reactor
        self._endpoint = endpoint
        self._is_tls = is_tls
        self._seconds = seconds
        self._open: set[Connection] = set()
        self._connecting: set[Deferred[Any]] = set()
        #: An open connection for the next request.
        self._prepared: Connection | None = None
        self._closed = False

    def prepare(self) -> Deferred[None]:
        """
        Open a connection for the next request; if there is one already, only see that
        another can be opened.  Fails with `CannotConnect`.
        """
        return self._connect().addCallback(self._keep)

    def _keep(self, connection: Connection) -> None:
        if self._prepared is None and not self._closed:
            self._prepared = connection
            connection.keep(KEEP_ALIVE_SECONDS)
        else:
            connection.abortConnection()

    def endpointForURI(self, uri: Any) -> Connections:
        """Return the one endpoint that there is."""
        return self

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """Give a new connection to a protocol, or the one that is prepared."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            return succeed(prepared.give_to(protocolFactory))
        return self._connect().addCallback(lambda opened: opened.give_to(protocolFactory))

    def _connect(self) -> Deferred[Connection]:
        if self._closed:
            return fail(CannotConnect("the session has ended"))
        connection = Connection(self, is_tls=self._is_tls)
        connecting: Deferred[Any] = self._endpoint.connect(_QuietFactory(connection))
        connecting.addCallback(lambda _: connection.ready)
        connecting.addTimeout(self._seconds, self.clock)
        self._connecting.add(connecting)
        return connecting.addBoth(self._connected, connecting)

    def _connected(self, result: Any, connecting: Deferred[Any]) -> Connection:
        self._connecting.discard(connecting)
        if isinstance(result, Failure):
            # After a timeout it is another error.
            if result.check(CancelledError):
                result.raiseException()
            raise CannotConnect(connect_reason(result, self._seconds)) from None
        connection: Connection = result
        return connection

    def opened(self, connection: Connection) -> None:
        """Note that a connection can be used."""
        self._open.add(connection)

    def closed(self, connection: Connection) -> None:
        """Note that a connection is gone."""
        self._open.discard(connection)
        if self._prepared is connection:
            self._prepared = None

    def close(self) -> None:
        """Close all connections at once, and open no other."""
        self._closed = True
        for connecting in list(self._connecting):
            connecting.cancel()
        for connection in list(self._open):
            connection.abortConnection()


# The way there.


def make_endpoint(
    reactor: Any,
    origin: Origin,
    proxy: Proxy | None,
    creator: ConnectionCreator,
    seconds: float,
) -> IStreamClientEndpoint:
    """
    Return the endpoint that leads to an origin.

    `creator` makes TLS for the name of a host, and is called only where TLS is needed.
    """
    if proxy is None:
        way: Any = HostnameEndpoint(reactor, origin.host, origin.port, seconds)
    else:
        way = HostnameEndpoint(reactor, proxy.host, proxy.port, seconds)
        if proxy.tls:
            way = wrapClientTLS(creator(proxy.host), way)
        way = _ProxyEndpoint(way, proxy, seconds)
        if origin.scheme == "https":
            way = _TunnelEndpoint(way, proxy, origin)
    if origin.scheme == "https":
        way = wrapClientTLS(creator(origin.host), way)
    endpoint: IStreamClientEndpoint = way
    return endpoint


class _Tunnel(Protocol):
    """Asks a proxy for a tunnel (RFC 9110, section 9.3.6), and is that then."""

    transport: Any

    def __init__(self, proxy: Proxy, origin: Origin, factory: Any) -> None:
        self._proxy = proxy
        self._origin = origin
        self._factory = factory
        self._head = b""
        self._inner: Any = None
        #: Fires with the protocol that has the tunnel.
        self.ready: Deferred[Any] = Deferred(lambda _: self.transport.abortConnection())

    def connectionMade(self) -> None:
        """Ask."""
        host, port = self._origin.host, self._origin.port
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self._proxy.authorization is not None:
            lines.append(f"Proxy-Authorization: {self._proxy.authorization}")
        self.transport.write("\r\n".join([*lines, "", ""]).encode("ascii"))

    def dataReceived(self, data: bytes) -> None:
        """Read the answer, and pass on all that follows it."""
        if self._inner is not None:
            self._inner.dataReceived(data)
            return
        self._head += data
        end = _HEAD_END.search(self._head)
        if end is None:
            if len(self._head) > HEAD_BYTES:
                self._refuse(f"sent a head of more than {HEAD_BYTES} bytes")
            return
        status = _TUNNEL_STATUS.match(self._head)
        if status is None or not status[1].startswith(b"2"):
            code = 0 if status is None else int(status[1])
            hint = "; check the user and the password in its URL" if code == 407 else ""
            what = "is no HTTP proxy" if status is None else f"answered {status_text(code)}{hint}"
            self._refuse(what)
            return
        rest = self._head[end.end() :]
        self._head = b""
        self._inner = self._factory.buildProtocol(self.transport.getPeer())
        self._inner.makeConnection(self.transport)
        self.ready.callback(self._inner)
        if rest:
            self._inner.dataReceived(rest)

    def _refuse(self, what: str) -> None:
        if not self.ready.called:
            self.ready.errback(CannotConnect(f"the proxy {self._proxy.shown} {what}"))
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        """Tell who has the tunnel, or who waits for it."""
        if self._inner is not None:
            self._inner.connectionLost(reason)
        elif not self.ready.called:
            closed = reason is None or reason.check(ConnectionDone) is not None
            what = "closed the connection" if closed else "broke off the connection"
            self.ready.errback(CannotConnect(f"the proxy {self._proxy.shown} {what}"))


@implementer(IStreamClientEndpoint)
class _ProxyEndpoint:
    """Leads to a proxy, which its failures name."""

    def __init__(self, endpoint: IStreamClientEndpoint, proxy: Proxy, seconds: float) -> None:
        self._endpoint = endpoint
        self._proxy = proxy
        self._seconds = seconds

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """Connect to the proxy."""
        connecting: Deferred[Any] = self._endpoint.connect(protocolFactory)
        return connecting.addErrback(self._unreachable)

    def _unreachable(self, failure: Failure) -> Any:
        reason = connect_reason(failure, self._seconds)
        raise CannotConnect(f"the proxy {self._proxy.shown}: {reason}") from None


@implementer(IStreamClientEndpoint)
class _TunnelEndpoint:
    """Leads through a proxy to an origin."""

    def __init__(self, endpoint: IStreamClientEndpoint, proxy: Proxy, origin: Origin) -> None:
        self._endpoint = endpoint
        self._proxy = proxy
        self._origin = origin

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """Open a tunnel for a protocol."""
        tunnel = _Tunnel(self._proxy, self._origin, protocolFactory)
        connecting: Deferred[Any] = self._endpoint.connect(_QuietFactory(tunnel))
        return connecting.addCallback(lambda _: tunnel.ready)
