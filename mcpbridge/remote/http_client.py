"""
HTTP requests to one remote server, by treq.

Of what treq can do, no redirect is followed, nothing is decompressed, and cookies live as
long as one session: a load balancer finds the same server again, and nobody else's.
Knows HTTP; must not know MCP.  Needs the extra `remote`, whose modules are imported when
a client is made.
"""

from __future__ import annotations

from http.cookiejar import DefaultCookiePolicy
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.web.client import URI, Agent, HTTPConnectionPool, ProxyAgent
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer
from zope.interface import implementer

from mcpbridge._version import __version__
from mcpbridge.config.oauth import Origin
from mcpbridge.remote.connections import KEEP_ALIVE_SECONDS, Connections
from mcpbridge.remote.problems import RemoteError, shown
from mcpbridge.remote.proxies import Proxy

#: How many cookies of a remote server are kept; if there are more, all are forgotten.
COOKIES = 50
#: So much of a large message is handed to its transport at a time.
PIECE_BYTES = 1024 * 1024
#: How many connections without a request are kept open.
KEPT_CONNECTIONS = 8

_DEFAULT_PORTS = {"http": 80, "https": 443}


@implementer(IBodyProducer)
class Body:
    """The body of a request, written in pieces as far as the connection takes them."""

    def __init__(self, data: bytes) -> None:
        self.length = len(data)
        self._data = data
        self._written = 0
        self._paused = self._stopped = False
        self._consumer: Any = None
        self._done: Deferred[None] = Deferred()

    def startProducing(self, consumer: Any) -> Deferred[None]:
        """Write the body; the `Deferred` fires when all of it has been written."""
        self._consumer = consumer
        self._write()
        return self._done

    def _write(self) -> None:
        if self._stopped:
            return
        while not self._paused and self._written < self.length:
            piece = self._data[self._written : self._written + PIECE_BYTES]
            self._written += len(piece)
            self._consumer.write(piece)
        if self._written == self.length and not self._done.called:
            self._data = b""
            self._done.callback(None)

    def pauseProducing(self) -> None:
        """Write no more: the connection has enough."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Write the rest."""
        self._paused = False
        self._write()

    def stopProducing(self) -> None:
        """Write nothing any more: the connection is gone."""
        self._stopped = True
        self._data = b""


@implementer(IAgent)
class _OneOriginAgent:
    """
    The agent below treq: it sends each request to one origin, and bounds what treq does not.

    treq cannot write an IPv6 address, so it is given another host, in place of which the
    real one stands here.
    """

    def __init__(self, agent: Any, origin: Origin) -> None:
        self._agent = agent
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        if origin.port != _DEFAULT_PORTS[origin.scheme]:
            host = f"{host}:{origin.port}"
        self._host = host.encode("ascii")
        self._scheme = origin.scheme.encode("ascii")

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: Any = None,
    ) -> Deferred[Any]:
        """Make a request to this path of the origin."""
        path = URI.fromBytes(uri).originForm
        sent = Headers() if headers is None else headers.copy()
        sent.setRawHeaders(b"Host", [self._host])
        # treq asks for gzip, and would decompress without a bound.
        sent.setRawHeaders(b"Accept-Encoding", [b"identity"])
        url = b"%b://%b%b" % (self._scheme, self._host, path)
        asked: Deferred[Any] = self._agent.request(method, url, sent, bodyProducer)
        return asked.addCallback(_not_encoded)


class _Unread(Protocol):
    """Closes the connection of a body that nobody reads."""

    transport: Any

    def connectionMade(self) -> None:
        """Close the connection."""
        self.transport.loseConnection()


def _not_encoded(response: Any) -> Any:
    """Return a response that treq can read; of its cookies, drop those that are not ASCII."""
    cookies = response.headers.getRawHeaders(b"Set-Cookie", [])
    if not all(each.isascii() for each in cookies):
        response.headers.setRawHeaders(b"Set-Cookie", [each for each in cookies if each.isascii()])
    codings = response.headers.getRawHeaders(b"Content-Encoding", [])
    if any(each.strip().lower() not in (b"", b"identity") for each in codings):
        coding = shown(codings[0].decode("latin-1"))
        response.deliverBody(_Unread())
        raise RemoteError(f"sent a response in the coding {coding!r}, which was not asked for")
    return response


class HttpClient:
    """
    Makes the requests of one session.

    `headers` are those that every request has.  `connections` lead to `origin`, or to
    the proxy that must be asked for it: one for plain HTTP.  Raises `ImportError`
    without the extra `remote`.
    """

    def __init__(
        self,
        clock: Any,
        connections: Connections,
        origin: Origin,
        headers: dict[str, str],
        proxy: Proxy | None = None,
    ) -> None:
        from treq.client import HTTPClient
        from treq.cookies import IndexableCookieJar

        self._clock = clock
        self._connections = connections
        self._headers = {"User-Agent": f"mcpbridge/{__version__}", **headers}
        self._pool = HTTPConnectionPool(clock, persistent=True)
        self._pool.maxPersistentPerHost = KEPT_CONNECTIONS
        self._pool.cachedConnectionTimeout = int(KEEP_ALIVE_SECONDS)
        agent: Any
        if proxy is not None and origin.scheme == "http":
            agent = ProxyAgent(connections, clock, self._pool)
            if proxy.authorization is not None:
                self._headers["Proxy-Authorization"] = proxy.authorization
        else:
            agent = Agent.usingEndpointFactory(clock, connections, self._pool)
        self._cookies = IndexableCookieJar()
        # An IPv6 address does not pass through treq; cookies of it are kept all the same.
        name = "ipv6.invalid" if ":" in origin.host else origin.host
        self._base = f"{origin.scheme}://{name}:{origin.port}"
        one_origin = _OneOriginAgent(agent, origin)
        self._http = HTTPClient(one_origin, self._cookies, data_to_body_producer=Body)
        # Requests without a session are of many clients, who must not get each other's cookies.
        none = IndexableCookieJar(DefaultCookiePolicy(allowed_domains=()))
        self._without_cookies = HTTPClient(one_origin, none, data_to_body_producer=Body)

    def request(
        self,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes | None = None,
        *,
        cookies: bool = True,
    ) -> Deferred[Any]:
        """
        Make a request to a target, a path with its query; return a `Deferred` of the response.

        Without `cookies` it is sent none, and none is kept.
        That is an `IResponse` of which nothing has been read.  It fails with
        `CannotConnect` if there is no connection, and with other errors if that was lost.
        """
        # Of the bytes of an event's id, each is a character here.
        own = {name: [value.encode("latin-1")] for name, value in headers.items()}
        sent = {**{name: [value.encode()] for name, value in self._headers.items()}, **own}
        http = self._http if cookies else self._without_cookies
        asked: Deferred[Any] = http.request(
            method,
            self._base + target,
            headers=Headers({name.encode("ascii"): values for name, values in sent.items()}),
            data=body,
            allow_redirects=False,
            unbuffered=True,
            reactor=self._clock,
        )
        return asked.addCallback(self._responded)

    def _responded(self, response: Any) -> Any:
        if len(self._cookies) > COOKIES:
            self._cookies.clear()
        return response

    def prepare(self) -> Deferred[None]:
        """
        Open a connection for the next request, also to see that the server is there.

        Fails with `CannotConnect`.
        """
        return self._connections.prepare()

    def close(self) -> None:
        """Close all connections at once, and open no other."""
        self._connections.close()
        self._pool.closeCachedConnections()
