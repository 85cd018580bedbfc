"""
A plain request of MCP 2026-07-28 and its answer, most often one message.

Waits for it without a request object of twisted.web; where it turns out that
more than one message is to be written, the ordinary channel is handed a
request to write to.  Knows one exchange; must not know sockets, nor what is
read of a request.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.errors import Refused
from mcpbridge.mcp.modern_request import ModernRequest
from mcpbridge.stateless.client_connection import ClientConnection
from mcpbridge.stateless.exchange import Exchange, ExchangeSink


class PendingExchange:
    """
    An exchange, and what stands in for its response until the first message
    is there.

    `work` has the request worked on, and raises nothing but that it was
    cancelled.  `answer` is called with a message that is all of the answer,
    `refuse` with what is said instead of one; `hand_over` when an ordinary
    response has to take its place, which it does by `take_over` before that
    returns.
    """

    log = Logger()

    def __init__(
        self,
        asked: ModernRequest,
        identity: str,
        *,
        connection: ClientConnection | None = None,
        work: Callable[[Exchange], Coroutine[Deferred[Any], Any, None]],
        answer: Callable[[bytes], None],
        refuse: Callable[[Refused], None],
        hand_over: Callable[[], None],
        client: str | None = None,
    ) -> None:
        self.exchange = Exchange(asked, identity, self, connection, client=client)
        self._work = work
        self._answer = answer
        self._refuse = refuse
        self._hand_over = hand_over
        self._response: ExchangeSink | None = None
        self._working: Deferred[None] | None = None

    def begin(self, begun: Callable[[], None]) -> None:
        """
        Have it worked on; `begun` is called when it need not wait for that any
        more.  The answer may be there when this returns.
        """
        self._working = Deferred.fromCoroutine(self._work(self.exchange))
        self._working.addCallback(lambda _: begun())
        self._working.addErrback(self._stopped)

    def take_over(self, response: ExchangeSink) -> None:
        """What comes from now on is for this response."""
        self._response = response

    def detach(self) -> None:
        """The connection is gone, which is how a client cancels."""
        self.exchange.cancel()
        if self._working is not None:
            self._working.cancel()

    def _stopped(self, failure: Failure) -> None:
        if failure.check(CancelledError) is None:
            self.log.failure("a request failed", failure)

    # What an exchange asks: Outlet.

    def send(self, lines: list[bytes], final: bool) -> None:
        """Messages of the server's: the answer alone, or more."""
        if self._response is None and final and len(lines) == 1:
            self._answer(lines[0])
            return
        if self._response is None:
            self._hand_over()
        if self._response is None:
            # The connection is closing: nobody will read it.  The work that
            # has brought this may be running just now, and ends by itself.
            self.exchange.cancel()
        else:
            self._response.send(lines, final)

    def fail(self, refusal: Refused) -> None:
        """An answer of the bridge's."""
        if self._response is None:
            self._refuse(refusal)
        else:
            self._response.fail(refusal)
