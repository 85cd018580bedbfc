"""
What a stream's messages are to the connections that carry them and to the
store that keeps them: the words that both sides of the router share.

Knows no logic.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Event(NamedTuple):
    """A message as a client gets it: `ident` is `{stream}-{number}`."""

    ident: str
    line: bytes


class StreamSink(Protocol):
    """A connection to the client, attached to one logical stream."""

    @property
    def takes_events(self) -> bool:
        """Whether it can carry more than answers; not where they must be JSON."""
        ...

    def answer(self, line: bytes) -> bool:
        """
        Write this, the only message of the stream, as all of the response,
        where that can be: nobody can come back to it.  False: nothing was done.
        """
        ...

    def send(self, events: list[Event], final: bool) -> None:
        """Write these, in order; with `final` they are the stream's last, and the response ends."""

    def end(self) -> None:
        """The stream is over, nothing more comes: the response ends."""

    def unwritten(self) -> int:
        """How many of the last events of the GET stream the network does not have yet."""
        ...

    def displaced(self) -> None:
        """
        Another connection has taken the stream over: the response ends, and
        what is unwritten of it is never written.
        """


class EventStore(Protocol):
    """What is kept for resumption: one session's part of an `IEventStore`."""

    def append(self, stream: str, number: int, line: bytes) -> None:
        """Keep an event; the numbers of a stream are 1, 2, 3 and on."""

    def after(self, stream: str, number: int) -> list[tuple[int, bytes]]:
        """The events of a stream after that one, in order.  Raises `EventsGone`."""
        ...
