"""
The site: how connections are closed when the bridge stops.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.web.resource import Resource

from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.web.client_addresses import Peer
from mcpbridge.web.site import CLOSE_SECONDS, BridgeSite


class FakeChannel:
    """A connection that does not close before the test says so."""

    peer = Peer("192.0.2.1")

    def __init__(self) -> None:
        self.transport = self
        self.told: list[str] = []

    def loseConnection(self) -> None:
        self.told.append("close")

    def abortConnection(self) -> None:
        self.told.append("abort")


def test_connections_that_do_not_close_are_aborted() -> None:
    """After `CLOSE_SECONDS`, and then as often again."""
    clock = Clock()
    settings = BridgeSettings(servers=(ServerSettings(command="x"),))
    site = BridgeSite(Resource(), clock, settings)
    channels: list[Any] = [FakeChannel(), FakeChannel()]
    for each in channels:
        assert site.opened(each)
    closed: list[None] = []
    site.close_connections().addCallback(closed.append)
    clock.advance(CLOSE_SECONDS * 0.9)
    site.closed(channels[0])
    assert channels[1].told == ["close"]
    clock.advance(CLOSE_SECONDS * 0.2)
    assert channels[1].told == ["close", "abort"]
    clock.advance(CLOSE_SECONDS)
    assert channels[1].told == ["close", "abort", "abort"]
    assert closed == []
    site.closed(channels[1])
    assert closed == [None]
    assert channels[0].told == ["close"]
    assert clock.getDelayedCalls() == []
