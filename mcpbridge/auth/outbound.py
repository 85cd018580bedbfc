"""
The HTTP requests of the bridge itself: to an authorization server, and to nobody else.

What an authorization server names in its metadata decides where the bridge connects to.
So that nobody can point it at an inner service, a host that is not configured is reached
over https alone, and at public addresses alone.  That is checked with each address at the
moment when it is connected to: a name that resolves to another address the second time
gains nothing.

It is Twisted's bare `Agent`: no redirect is followed, no cookie kept, nothing decompressed,
and no proxy taken from the environment.  Clients that add comforts would have to be kept
from each of these.

Knows HTTP and addresses; must not know what is fetched.  Needs the extra `auth`, for TLS,
whose modules are imported when a client is made.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import urlencode

from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IReactorPluggableNameResolver,
    IReactorTCP,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import Agent, ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer
from zope.interface import implementer

from mcpbridge.trust import trust_root

#: The largest answer that is read.
ANSWER_BYTES = 512 * 1024
#: How long an answer may take, from looking up the host to its last byte.
ANSWER_SECONDS = 10.0
#: How long one attempt to connect to one address may take.
CONNECT_SECONDS = 5.0

#: IPv6 addresses that a gateway translates to the IPv4 address in their last 32 bits
#: (RFC 6052, RFC 8215).
_TRANSLATED = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
#: All that is assigned for global unicast (RFC 4291, section 2.4).
_UNICAST = IPv6Network("2000::/3")


class OutboundError(Exception):
    """There is no usable answer.  Its text is for the log, and has no secret."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request, whatever its status; `cache_control` in lower case."""

    status: int
    body: bytes
    cache_control: str = ""


class Fetcher(typing.Protocol):
    """What fetches: `OutboundClient`, or a fake."""

    def fetch(
        self,
        url: str,
        *,
        public_only: bool,
        form: Mapping[str, str] | None = None,
        authorization: bytes | None = None,
    ) -> Deferred[Answer]:
        """
        Get a URL, or post a form to it.  Fails with `OutboundError` and nothing else.

        With `public_only` it connects to public addresses over https alone.
        """


def is_public(address: str) -> bool:
    """Tell whether an IP address is one of the public Internet's, for one host."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    if isinstance(found, IPv6Address):
        inner = _embedded(found)
        if inner is not None:
            return is_public(str(inner))
        if found not in _UNICAST:
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that packets to an IPv6 address may end at."""
    if any(address in network for network in _TRANSLATED):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped or address.sixtofour:
        return address.ipv4_mapped or address.sixtofour
    return address.teredo[1] if address.teredo else None


@implementer(IReactorTime, IReactorTCP, IReactorPluggableNameResolver)
class PublicReactor:
    """
    A reactor that connects to public addresses alone.

    `HostnameEndpoint` resolves a name, and then asks this for a connection to each
    address, so nothing lies between the check and the connection.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def connectTCP(self, host: str, *arguments: Any, **named: Any) -> Any:
        """Connect; raises `OutboundError` for any other address."""
        if not is_public(host):
            raise OutboundError("its host has an address that is not public")
        return self._reactor.connectTCP(host, *arguments, **named)


@implementer(IAgentEndpointFactory)
class _Connections:
    """
    Makes the endpoint of one request, and closes what was connected.

    An answer that is given up may go on for ever, and a TLS connection reads on until the
    other end agrees to close it, so it is aborted.
    """

    def __init__(self, reactor: Any, policy: Any, public_only: bool) -> None:
        self._reactor = PublicReactor(reactor) if public_only else reactor
        self._policy = policy
        self._public_only = public_only
        self._connected: list[Any] = []

    def endpointForURI(self, uri: Any) -> IStreamClientEndpoint:
        """Return the endpoint to connect to."""
        host = uri.host.decode("ascii").strip("[]")
        endpoint: Any = HostnameEndpoint(self._reactor, host, uri.port, CONNECT_SECONDS)
        if uri.scheme == b"https":
            endpoint = wrapClientTLS(self._policy.creatorForNetloc(uri.host, uri.port), endpoint)
        elif self._public_only:
            raise OutboundError("it is not https")
        return _Endpoint(endpoint, self._connected)

    def close(self) -> None:
        """Abort the connection, if there is one."""
        for protocol in self._connected:
            protocol.transport.abortConnection()
        self._connected.clear()


@implementer(IStreamClientEndpoint)
class _Endpoint:
    """An endpoint that keeps what it has connected."""

    def __init__(self, endpoint: IStreamClientEndpoint, connected: list[Any]) -> None:
        self._endpoint = endpoint
        self._connected = connected

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        """Connect, and keep the protocol."""
        # Twisted would log two lines for each connection.
        protocolFactory.noisy = False
        return self._endpoint.connect(protocolFactory).addCallback(self._keep)

    def _keep(self, protocol: Any) -> Any:
        self._connected.append(protocol)
        return protocol


@implementer(IBodyProducer)
class _Body:
    """The body of a request, which is written at once."""

    def __init__(self, data: bytes) -> None:
        self.length = len(data)
        self._data = data

    def startProducing(self, consumer: Any) -> Deferred[None]:
        """Write the body."""
        consumer.write(self._data)
        return succeed(None)

    def pauseProducing(self) -> None:
        """There is nothing to pause."""

    def resumeProducing(self) -> None:
        """Nor to resume."""

    def stopProducing(self) -> None:
        """Nor to stop."""


class OutboundClient:
    """
    A client for the few requests to an authorization server.

    `authorities` are certificates in PEM: those whose signatures are accepted, in place of
    the system's.  Raises `ImportError` without the extra `auth`, and `ValueError` for
    authorities that cannot be read.
    """

    def __init__(self, reactor: Any, authorities: bytes | None = None) -> None:
        from twisted.web.client import BrowserLikePolicyForHTTPS

        trusted = trust_root(authorities)
        self._reactor = self._clock = reactor
        self._policy = BrowserLikePolicyForHTTPS(trusted)

    def fetch(
        self,
        url: str,
        *,
        public_only: bool,
        form: Mapping[str, str] | None = None,
        authorization: bytes | None = None,
    ) -> Deferred[Answer]:
        """Do what `Fetcher` says."""
        fetching = Deferred.fromCoroutine(self._fetch(url, public_only, form, authorization))
        timeout = self._clock.callLater(ANSWER_SECONDS, fetching.cancel)
        return fetching.addBoth(_ended, timeout)

    async def _fetch(
        self,
        url: str,
        public_only: bool,
        form: Mapping[str, str] | None,
        authorization: bytes | None,
    ) -> Answer:
        headers = Headers({b"Accept": [b"application/json"], b"User-Agent": [b"mcpbridge"]})
        body = None
        if authorization is not None:
            headers.setRawHeaders(b"Authorization", [authorization])
        if form is not None:
            body = _Body(urlencode(form).encode("ascii"))
            headers.setRawHeaders(b"Content-Type", [b"application/x-www-form-urlencoded"])
        connections = _Connections(self._reactor, self._policy, public_only)
        agent = Agent.usingEndpointFactory(self._reactor, connections)
        method = b"GET" if form is None else b"POST"
        try:
            response: Any = await agent.request(method, url.encode("ascii"), headers, body)
            reader = _BodyReader()
            response.deliverBody(reader)
            content = await reader.done
        finally:
            connections.close()
        cache_control = ",".join(response.headers.getRawHeaders("Cache-Control", [])).lower()
        return Answer(response.code, content, cache_control)


class _BodyReader(Protocol):
    """Collects a body of at most `ANSWER_BYTES`; `done` fires with it."""

    def __init__(self) -> None:
        self.done: Deferred[bytes] = Deferred()
        self._pieces: list[bytes] = []
        self._size = 0

    def dataReceived(self, data: bytes) -> None:
        """Keep a piece, or nothing when there is too much."""
        self._size += len(data)
        if self._size <= ANSWER_BYTES:
            self._pieces.append(data)
        elif not self.done.called:
            self._pieces.clear()
            self.done.errback(OutboundError(f"the answer has more than {ANSWER_BYTES} bytes"))

    def connectionLost(self, reason: Failure = None) -> None:  # type: ignore[assignment]
        """Pass the body on if it is complete."""
        if self.done.called:
            return
        if reason.check(ResponseDone):
            self.done.callback(b"".join(self._pieces))
        else:
            self.done.errback(OutboundError("the answer is incomplete"))


def _ended(result: Answer | Failure, timeout: Any) -> Answer | Failure:
    """Return any failure as an `OutboundError`, with what is behind it."""
    in_time = timeout.active()
    if in_time:
        timeout.cancel()
    if not isinstance(result, Failure):
        return result
    if not in_time:
        return Failure(OutboundError(f"no answer within {ANSWER_SECONDS:g} s"))
    if result.check(OutboundError):
        return Failure(result.value)
    # What failed inside of TLS or of a response is in a list of reasons.
    reasons = getattr(result.value, "reasons", None) or [result]
    error = getattr(reasons[0], "value", result.value)
    return Failure(OutboundError(f"{type(error).__name__}: {error}"[:200]))
