"""A connection that is lost is freed at once, with the transport that Twisted made for it."""

from __future__ import annotations

import gc
import socket
import weakref
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.tcp import Server
from twisted.internet.testing import MemoryReactor

from mcpbridge.web.watched_connection import CONNECTION_DONE
from tests.unit.web.test_fast_path import World


class Listening:
    """A listener, as far as its connections ask for it."""

    _realPortNumber = 0

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 0)


def test_lost_connection_is_freed_without_the_garbage_collector() -> None:
    """Nothing that Twisted keeps of its transport leads back to it."""
    world = World(fast_path=True)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, address = listening.accept()
    connection: Any = world.site.buildProtocol(None)
    listener: Any = Listening()
    transport: Any = Server(ours, connection, address, listener, 0, MemoryReactor())
    connection.makeConnection(transport)
    theirs.close()
    freed = weakref.ref(connection)
    gc.collect()
    gc.disable()
    try:
        transport.connectionLost(CONNECTION_DONE)
        del connection
        assert freed() is None
    finally:
        gc.enable()
