"""
Whether a server can be started, found out without a client.

A process that fails while it hears a client's first words may fail because of
these words: a `clientInfo` that an older server cannot take, capabilities that
it does not expect.  To count that as a failed start would let one client keep
the server down for all.  So the bridge starts a process of its own then, says
what no caller has a part in, and only what comes of that counts.

Knows processes, time and when it is due; must not know clients.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge._version import __version__
from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import CHECK_SECONDS
from mcpbridge.errors import BackendBusy, BackendFailed, Stopping, UnknownSession
from mcpbridge.jsonrpc.envelope import peek, peek_again
from mcpbridge.jsonrpc.ids import is_answer_to
from mcpbridge.jsonrpc.members import request_line
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.backoff import StartBackoff
from mcpbridge.timers import Timer
from mcpbridge.translation.handshake import initialize_params

#: All that a client can declare: a server that ends where one of these is
#: missing is not to be taken for one that cannot be started.
_CAPABILITIES = b'{"elicitation":{},"roots":{},"sampling":{}}'
_IDENT = 0


def neutral_initialize() -> bytes:
    """An `initialize` of the bridge's own."""
    params = initialize_params(_CAPABILITIES, None, __version__)
    return request_line(_IDENT, "initialize", params)


class Greeting:
    """
    A process that hears nothing but the bridge's first words; a `Adapter`.

    Any answer will do, an error too: what a server refuses it has read.
    """

    def __init__(self, session: BackendSession) -> None:
        self._session = session
        #: Fires with the answer; None while nothing has been said.
        self._answered: Deferred[None] | None = None

    async def say(self, line: bytes, patience: float) -> None:
        """Say it, and wait for the answer.  Raises `BackendFailed`."""
        try:
            self._session.backend.send(line)
            self._answered = Deferred()
            self._answered.addTimeout(patience, self._session.clock)
            await self._answered
        except defer.TimeoutError:
            raise BackendFailed(f"no answer to the first message in {patience:g} s") from None
        except (BackendBusy, UnknownSession) as error:
            raise BackendFailed(str(error)) from None

    def send(self, lines: list[bytes], envelopes: object = None) -> None:
        """Nobody has it."""

    def received(self, lines: list[bytes]) -> list[bytes]:
        """Look for the answer; nobody hears of the rest."""
        for line in lines:
            envelope = peek(line) or peek_again(line)
            if envelope is None or not envelope.is_response:
                continue
            if not is_answer_to(envelope.id, _IDENT):
                continue
            if self._answered is not None and not self._answered.called:
                self._answered.callback(None)
        return []

    def close(self) -> None:
        """It has ended, or was told to."""
        if self._answered is not None and not self._answered.called:
            self._answered.errback(BackendFailed(self._session.reason))


class StartCheck:
    """
    Starts at most one process at a time, and at most one in `CHECK_SECONDS`
    while these can be started.

    `acquire` gives a permit or None, `start` a process for it; `greeting` the
    line that it is told.  `failed` is called with why it was of no use.
    """

    log = Logger()

    def __init__(
        self,
        settings: ServerSettings,
        clock: IReactorTime,
        backoff: StartBackoff,
        *,
        acquire: Callable[[], Any],
        start: Callable[[Any], Coroutine[Deferred[Any], Any, BackendSession]],
        failed: Callable[[str], object],
        greeting: Callable[[], bytes] = neutral_initialize,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._backoff = backoff
        self._acquire = acquire
        self._start = start
        self._failed = failed
        self._greeting = greeting
        self._wanted = self._running = self._stopped = False
        self._earliest = float("-inf")
        self._timer = Timer(clock)

    def doubt(self, why: str) -> None:
        """
        A process was of no use to a caller: find out whose fault that is.

        While the server is known to be down there is nothing to find out; and
        what fails during a check was begun before its outcome is known.
        """
        if not self._running:
            self._wanted = True
            self.look()

    def look(self) -> None:
        """Begin, where that is wanted and due, and there is room for a process."""
        if not self._wanted or self._running or self._stopped:
            return
        now = self._clock.seconds()
        if self._backoff.wait(now):
            self._wanted = False
            return
        delay = self._earliest - now
        if delay > 0:
            self._timer.start(delay, self.look)
            return
        # Where there is no room the server has processes, and this is done when one has ended.
        permit = self._acquire()
        if permit is not None:
            self._timer.stop()
            self._wanted, self._running = False, True
            self._backoff.in_doubt = True
            Deferred.fromCoroutine(self._check(permit)).addErrback(self._not_checked)

    def stop(self) -> None:
        """Begin no more."""
        self._stopped = True
        self._timer.stop()

    def _not_checked(self, failure: Failure) -> None:
        self.log.failure("checking whether a server starts failed", failure)

    async def _check(self, permit: Any) -> None:
        successes = self._backoff.successes
        try:
            why = await self._why_not(permit)
        except Stopping:
            return
        finally:
            self._running = self._backoff.in_doubt = False
            self._earliest = self._clock.seconds() + CHECK_SECONDS
        if successes != self._backoff.successes:
            # Meanwhile it has worked for somebody, so it can be started.
            return
        if why is None:
            self._backoff.succeeded()
        else:
            # The pause is over before the next one is due: it is no longer than the server is down.
            self._earliest = float("-inf")
            self._failed(why)

    async def _why_not(self, permit: Any) -> str | None:
        try:
            session = await self._start(permit)
        except BackendFailed as error:
            return str(error)
        greeting = Greeting(session)
        session.adapt(greeting)
        try:
            await greeting.say(self._greeting(), self._settings.start_timeout)
        except BackendFailed as error:
            session.life.end(f"it is of no use: {error}")
            return str(error)
        session.life.end("it has shown that the server can be started")
        return None
