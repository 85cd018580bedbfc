"""
The HTTP connection whose client must take what is written to it.

Knows what waits in a transport, and for how long; must not know what it says.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel

from mcpbridge.web.sockets import acknowledged, unsent
from mcpbridge.web.watch import ClientWatch

CONNECTION_DONE = Failure(ConnectionDone())


class _Site(Protocol):
    """What a connection asks of its site."""

    clock: IReactorTime
    peer_timeout: float
    min_transfer_rate: int


class WatchedChannel(HTTPChannel):
    """
    A connection that is cut off when its client does not take an answer.

    All kinds of answers end here: what is left of a finished event stream, JSON,
    errors, and what is written without a request object.  It costs nothing as
    long as the socket takes all at once.
    """

    site: Any
    transport: Any
    #: Set while an endless answer is written, which has a watch of its own.
    streaming = False
    log = Logger()
    #: Looks whether the client takes its answers; made when one waits for it.
    _reader: ClientWatch | None = None
    _gone = False

    def requestDone(self, request: Any) -> None:
        """An answer is complete, and may not be taken yet."""
        size = request.sentLength
        super().requestDone(request)
        self._answer_waits(size)

    def pauseProducing(self) -> None:
        """More is written than the client takes."""
        super().pauseProducing()
        if not self.streaming:
            self._answer_waits()

    def loseConnection(self) -> None:
        """Close when all that was written is taken."""
        super().loseConnection()
        self._answer_waits()

    def timeoutConnection(self) -> None:
        """Idle for too long; where an answer is not taken, it is the watch that decides."""
        if unsent(self.transport):
            self._answer_waits()
            self.setTimeout(self.timeOut)
        else:
            super().timeoutConnection()

    def connectionLost(self, reason: Failure = CONNECTION_DONE) -> None:
        """Gone: nothing is taken any more."""
        self._gone = True
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.stop()
        super().connectionLost(reason)

    def _answer_waits(self, size: int = 0) -> None:
        """Of an answer of so many bytes some may not be taken: see that they are, in time."""
        if self._gone:
            return
        if self._reader is None:
            site: _Site = self.site
            self._reader = ClientWatch(
                site.clock,
                self.transport,
                site.peer_timeout,
                site.min_transfer_rate,
                self._cut_off,
                unsent,
                acknowledged,
            )
        self._reader.arm(size)

    def _cut_off(self, reason: str) -> None:
        self.log.info("closing a connection: {reason}", reason=reason)
        self.transport.abortConnection()
