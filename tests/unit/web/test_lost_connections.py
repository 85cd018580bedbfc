"""Connections that their clients have closed take turns, unless a stream must be detached."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.testing import StringTransport

from mcpbridge.pacer import PACED_SECONDS
from tests.unit.web.test_fast_path import CALL, IDENT, World, post, post_mcp

STREAM = b"GET /b/sse HTTP/1.1\r\nHost: h\r\n\r\n"
MCP_STREAM = (
    b"GET /b/mcp HTTP/1.1\r\nHost: h\r\nAccept: text/event-stream\r\n"
    b"Mcp-Session-Id: %b\r\n\r\n" % IDENT.encode()
)


@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize(
    ("data", "waits"),
    [
        pytest.param(b"", True, id="nothing was sent"),
        pytest.param(post(CALL), True, id="idle"),
        pytest.param(STREAM, True, id="its session ends with it"),
        pytest.param(STREAM + post(CALL), False, id="the same, with a request behind it"),
        pytest.param(MCP_STREAM, False, id="the client may come back for this stream"),
        pytest.param(post_mcp(CALL), False, id="a request that waits for its response"),
        pytest.param(post(CALL)[:30], False, id="a request that is arriving"),
    ],
)
def test_what_waits_for_its_turn(data: bytes, waits: bool, fast_path: bool) -> None:
    """Messages for a stream would be written to a connection that nobody reads."""
    world = World(fast_path=fast_path)
    if data:
        world.channel.dataReceived(data)

    def whole_iteration() -> None:
        world.clock.rightNow += PACED_SECONDS

    world.site.pacer.run("others", whole_iteration)
    lost: list[bool] = []
    world.channel.lose_in_turn(lambda: lost.append(True))
    assert lost == ([] if waits else [True])
    world.clock.advance(0)
    assert lost == [True]
    world.channel.connectionLost()


@pytest.mark.parametrize("fast_path", [True, False])
def test_client_that_comes_back_at_once_is_not_refused(fast_path: bool) -> None:
    """Its old connection, which counts until its turn has come, gives way to the new one."""
    world = World(fast_path=fast_path, max_connections=1)
    world.channel.dataReceived(STREAM)

    def whole_iteration() -> None:
        world.clock.rightNow += PACED_SECONDS

    world.site.pacer.run("others", whole_iteration)
    lost: list[bool] = []

    def lose() -> None:
        lost.append(True)
        world.channel.connectionLost()

    world.channel.lose_in_turn(lose)
    assert not lost
    channel: Any = world.site.buildProtocol(None)
    transport = StringTransport()
    channel.makeConnection(transport)
    assert lost
    channel.dataReceived(post(CALL))
    assert transport.value().startswith(b"HTTP/1.1 202 ")
    channel.connectionLost()


def test_connection_whose_stream_is_over_may_have_another_one() -> None:
    """Whether its session ends with it is asked of each stream anew."""
    world = World(fast_path=True)
    world.channel.dataReceived(STREAM)
    assert world.channel.ends_session
    [session] = [each for ident, each in world.server.sessions.items() if ident != IDENT]
    session.life.end("test")
    assert not world.channel.ends_session
    world.channel.dataReceived(MCP_STREAM)
    assert world.channel.streaming
    assert not world.channel.ends_session
    world.channel.connectionLost()
