"""
The HTTP connection that stateless requests come on.

Knows whether it is still open and who has to be told when it is lost; must
not know sockets.
"""

from __future__ import annotations

from typing import Protocol

from twisted.logger import Logger

from mcpbridge.guard import guarded


class ConnectionObserver(Protocol):
    """Who keeps something for a connection."""

    def connection_lost(self, connection: ClientConnection) -> None:
        """Nothing of it is wanted any more.  Called once."""


class ClientConnection:
    """
    One HTTP connection, as what works on its requests knows it.

    Two of them are equal only where they are the same object.  An address and
    a port would not do: both are used again as soon as the connection is
    closed, and the next client would get what was kept for the last one.
    """

    __slots__ = ("_observers", "lost")

    log = Logger()

    def __init__(self) -> None:
        self.lost = False
        # As an ordered set; one for each server that the connection uses.
        self._observers: dict[ConnectionObserver, None] = {}

    def observe(self, observer: ConnectionObserver) -> None:
        """Tell this observer when the connection is lost; it may ask for that again and again."""
        if not self.lost:
            self._observers[observer] = None

    def lose(self) -> None:
        """The connection is lost: tell all observers, whatever one of them raises."""
        self.lost = True
        observers, self._observers = self._observers, {}
        for observer in observers:
            guarded(self.log, "an observer of a connection", observer.connection_lost, self)
