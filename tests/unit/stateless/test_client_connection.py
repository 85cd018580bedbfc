"""Which connection a stateless request belongs to, on the fast path and through twisted.web."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.tuning import CANCEL_SECONDS
from mcpbridge.server import Server
from mcpbridge.session.memory_event_store import MemoryEventStore
from mcpbridge.testing import CLEANLY
from mcpbridge.web.fast_path import FastPath
from mcpbridge.web.root import Branch, SecuredResource, Serving
from mcpbridge.web.routes import Routes
from mcpbridge.web.site import BridgeSite
from mcpbridge.web.stateless_http import PROXY_HEADERS, _connection
from mcpbridge.web.transport_security import TransportSecurity
from tests.fakes import no_jitter
from tests.unit.web.test_fast_path import _Unlimited
from tests.unit.web.test_fast_path_stateless import asking
from tests.unit.web.test_stateless_http import USUAL, Launcher, Legacy, answer

PROXY = "192.0.2.1"
both_ways = pytest.mark.parametrize("fast_path", [True, False], ids=["fast path", "twisted.web"])


class Instant(Legacy):
    """A legacy server that answers at once."""

    def send(self, line: bytes) -> None:
        super().send(line)
        message = json.loads(line)
        if message["method"] == "x":
            self.receiver.messages_received([answer(message["id"], {})])


class Broken(Legacy):
    """A legacy server that does not answer, and whose `resume` raises."""

    def resume(self) -> None:
        raise RuntimeError("a defect")


class Site:
    """A site in front of a legacy server."""

    def __init__(self, *, fast_path: bool, **settings: Any) -> None:
        self.clock = Clock()
        self.launcher = Launcher()
        self.launcher.kind = Instant
        server_settings = ServerSettings(command="x", **settings)
        self.server = Server(
            server_settings,
            self.clock,
            jitter=no_jitter,
            launcher=self.launcher,
            limiter=_Unlimited(),
            event_store=MemoryEventStore(),
        )
        self.server.era.modern = False
        root = Branch()
        root.leaf = Routes(self.server, self.clock).resource()
        every = BridgeSettings(
            servers=(server_settings,), allowed_hosts=("h",), trusted_proxies=(PROXY,)
        )
        security = TransportSecurity(every)
        self.site = BridgeSite(
            SecuredResource(partial(Serving, security, root)),
            self.clock,
            every,
            FastPath([self.server], security, {}) if fast_path else None,
            seconds=self.clock.seconds,
        )

    def connect(self, peer: Any = None) -> Any:
        channel: Any = self.site.buildProtocol(None)
        channel.makeConnection(StringTransport(peerAddress=peer))
        return channel

    def ask(self, channel: Any, **headers: str) -> None:
        """Send a request and check that it is answered."""
        self.send(channel, **headers)
        assert channel.transport.value().startswith(b"HTTP/1.1 200")

    def send(self, channel: Any, **headers: str) -> None:
        """Send a request."""
        body = asking()
        given = {**USUAL, "Mcp-Method": "x", "Content-Length": str(len(body)), **headers}
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in given.items()]
        head = "\r\n".join(["POST /mcp HTTP/1.1", *lines])
        channel.transport.clear()
        channel.dataReceived(head.encode("ascii") + b"\r\n\r\n" + body)
        self.clock.advance(0)

    @property
    def started(self) -> int:
        return len(self.launcher.backends)

    @property
    def running(self) -> int:
        return sum("stop" not in each.events for each in self.launcher.backends)


@both_ways
def test_connection_keeps_its_process_until_it_is_lost(fast_path: bool) -> None:
    site = Site(fast_path=fast_path)
    first, second = site.connect(), site.connect()
    for _ in range(3):
        site.ask(first)
        site.ask(second)
    assert (site.started, site.running) == (2, 2)
    first.connectionLost(CLEANLY)
    assert (site.started, site.running) == (2, 1)
    site.ask(second)
    # A new connection from the same address and port.
    site.ask(site.connect())
    assert (site.started, site.running) == (3, 2)


def test_lost_connection_is_forgotten_even_if_its_process_fails(logged_failures: list[Any]) -> None:
    """Otherwise it would be counted for ever, and the bridge would wait for it when it stops."""
    site = Site(fast_path=True)
    site.launcher.kind = Broken
    channel = site.connect()
    site.send(channel)
    closed: list[None] = []
    site.site.close_connections().addCallback(closed.append)
    channel.connectionLost(CLEANLY)
    assert (closed, site.site.channels) == ([None], set())
    assert [each.type for each in logged_failures] == [RuntimeError]
    # The process, which does not answer, ends too.
    site.clock.advance(CANCEL_SECONDS)
    assert (site.started, site.running) == (1, 0)


def test_stop_ends_processes_even_if_the_dispatcher_fails(logged_failures: list[Any]) -> None:
    def fail() -> None:
        raise RuntimeError("a defect")

    site = Site(fast_path=True)
    channel = site.connect()
    site.ask(channel)
    site.server.stateless.stop = fail  # type: ignore[method-assign]
    site.server.stop()
    assert site.running == 0
    assert [each.type for each in logged_failures] == [RuntimeError]
    channel.connectionLost(CLEANLY)


def test_fast_path_and_twisted_web_share_a_connection() -> None:
    """A request that the fast path leaves to twisted.web reaches the same process."""
    site = Site(fast_path=True)
    channel = site.connect()
    site.ask(channel)
    site.ask(channel, TE="trailers")
    assert site.started == 1


@both_ways
@pytest.mark.parametrize("header", sorted(PROXY_HEADERS))
def test_forwarded_request_belongs_to_no_connection(fast_path: bool, header: str) -> None:
    """The proxy's connection may carry another client's request next."""
    site = Site(fast_path=fast_path)
    channel = site.connect()
    for _ in range(3):
        site.ask(channel, **{header: "x"})
    assert (site.started, site.running) == (3, 0)
    site.ask(channel)
    assert (site.started, site.running) == (4, 1)


@both_ways
@pytest.mark.parametrize(
    ("peer", "started"),
    [
        (IPv4Address("TCP", PROXY, 5), 3),
        (UNIXAddress(None), 3),
        (IPv4Address("TCP", "192.0.2.2", 5), 1),
    ],
)
def test_connection_of_a_proxy_keeps_no_process(fast_path: bool, peer: Any, started: int) -> None:
    """Neither that of a trusted proxy nor one to a UNIX socket."""
    site = Site(fast_path=fast_path)
    channel = site.connect(peer)
    for _ in range(3):
        site.ask(channel)
    assert site.started == started


@both_ways
def test_reuse_by_identity_shares_a_process_between_connections(fast_path: bool) -> None:
    site = Site(fast_path=fast_path, reuse="identity")
    for _ in range(3):
        site.ask(site.connect())
    assert site.started == 1


def test_channel_of_another_site_is_no_client_connection() -> None:
    """It would not report that it is lost."""

    class Request:
        channel = object()

    assert _connection(Request()) is None
    Request.channel = None
    assert _connection(Request()) is None
