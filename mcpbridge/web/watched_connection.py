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

from mcpbridge.config.tuning import SLOW_SECONDS
from mcpbridge.response_budget import ResponseBudget, Share
from mcpbridge.twisted_internals import OpenChannel
from mcpbridge.web.client_watch import ClientWatch
from mcpbridge.web.tcp import acknowledged, buffered, unsent

CONNECTION_DONE = Failure(ConnectionDone())


class _Site(Protocol):
    """What a connection asks of its site."""

    clock: IReactorTime
    peer_timeout: float
    min_transfer_rate: int
    responses: ResponseBudget | None


class WatchedConnection(OpenChannel):
    """
    A connection that is cut off when its client does not take an answer.

    All kinds of answers end here: what is left of a finished event stream, JSON,
    errors, and what is written without a request object.  It costs nothing as
    long as the socket takes all at once.
    """

    site: Any
    #: Set while an endless answer is written, which has a watch of its own.
    streaming = False
    log = Logger()
    #: Looks whether the client takes its answers; made when one waits for it.
    _reader: ClientWatch | None = None
    _gone = False
    #: What the session of this answer may hold; None where there is none.
    share: Share | None = None
    #: What of the answers is counted; since when, and what the client had taken then.
    _counted = 0
    _counted_for: Share | None = None
    _behind_since = 0.0
    _behind_taken = 0

    def stream_begins(self) -> None:
        """Leave it to an endless response to watch whether it is taken."""
        self.streaming = True

    def stream_ends(self) -> None:
        """Watch responses again."""
        self.streaming = False

    def count_for(self, share: Share) -> None:
        """Count what the client does not take of this response for a session as well."""
        self.share = share

    def requestDone(self, request: Any) -> None:
        """An answer is complete, and may not be taken yet."""
        size = request.sentLength
        super().requestDone(request)
        self._answer_waits(size)
        # What waits goes on to count there; the next answer may be nobody's.
        self.share = None

    def pauseProducing(self) -> None:
        """More is written than the client takes."""
        super().pauseProducing()
        if self.streaming:
            self.measure()
        else:
            self._answer_waits()

    def resumeProducing(self) -> None:
        """All is taken."""
        self.measure()
        super().resumeProducing()

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
        self._count(0)
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
                self.measure,
            )
        self._reader.arm(size)
        self.measure()

    # What waits counts: a Reader.

    def measure(self) -> None:
        """Count what waits in this process; what the system holds is not ours."""
        if not self._gone:
            self._count(buffered(self.transport))

    def slowness(self) -> float:
        """How long the client will need for it, as it goes until now."""
        seconds: float = self.site.clock.seconds() - self._behind_since
        if seconds < SLOW_SECONDS:
            return 0.0
        taken = (acknowledged(self.transport) or 0) - self._behind_taken
        return self._counted * seconds / max(taken, 1)

    def cut_off(self, reason: str) -> None:
        """Others need the room."""
        self._count(0)
        self._gone = True
        if self._reader is not None:
            self._reader.stop()
        self._cut_off(reason)

    def _count(self, size: int) -> None:
        more, self._counted = size - self._counted, size
        site: _Site = self.site
        budget = site.responses
        if budget is None or not more:
            return
        if more == size:
            # Nothing waited before.
            self._behind_since = site.clock.seconds()
            self._behind_taken = acknowledged(self.transport) or 0
            self._counted_for = self.share
            budget.behind(self)
        if self._counted_for is not None:
            self._counted_for.change(more)
        if more > 0:
            budget.take(more)
        else:
            budget.give_back(-more)
            if not size:
                budget.caught_up(self)

    def _cut_off(self, reason: str) -> None:
        self.log.info("closing a connection: {reason}", reason=reason)
        self.transport.abortConnection()
