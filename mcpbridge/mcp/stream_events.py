"""
The types that the router of a session shares with the connections that carry
its streams and with the store that keeps their events.

Knows no logic.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

#: Why a message of the server reached nobody: it answers no request that is
#: open (never made, answered, cancelled); it is no JSON-RPC message, which a
#: client could make nothing of; there was no room for it to wait; the session
#: ended, or a client that takes JSON alone left, before it was read.
DropReason = Literal["unasked", "invalid", "no room", "unread"]


class Event(NamedTuple):
    """A message as a client gets it: `ident` is `{stream}-{number}`."""

    ident: str
    line: bytes


class StreamSink(Protocol):
    """A connection to the client, attached to one logical stream."""

    @property
    def takes_events(self) -> bool:
        """Whether it can carry more than answers; False where they must be JSON."""
        ...

    def answer(self, line: bytes) -> bool:
        """
        Write this, the only message of the stream, as all of the response, if
        possible: nobody can come back to it.  Return False where nothing was done.
        """
        ...

    def send(self, events: list[Event], final: bool) -> None:
        """Write events, in order; with `final` they are the last, and the response ends."""

    def end(self) -> None:
        """End the response: the stream is over."""

    def unwritten(self) -> int:
        """Return how many of the last events of the GET stream the network does not have yet."""
        ...

    def displaced(self) -> None:
        """
        End the response, as another connection has taken the stream over;
        never write what is unwritten.
        """


class EventStore(Protocol):
    """What is kept for resumption: one session's part of an `IEventStore`."""

    def append(self, stream: str, number: int, line: bytes) -> None:
        """Keep an event; the numbers of a stream are 1, 2, 3 and on."""

    def after(self, stream: str, number: int) -> list[tuple[int, bytes]]:
        """Return the events of a stream after that one, in order.  Raise `EventsGone`."""
        ...
