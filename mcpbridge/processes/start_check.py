"""
Checks whether a server can be started, with a process that serves no client.

A process that fails while it reads a client's first messages may fail because
of them: a `clientInfo` that an older server cannot take, capabilities that it
does not expect.  To count that as a failed start would let one client keep
the server down for all.  So the bridge starts a process of its own then, sends
it what no caller has a part in, and counts only what comes of that.

Knows processes, time and when a check is due; must not know clients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge._version import __version__
from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import CHECK_SECONDS
from mcpbridge.errors import BackendBusy, BackendFailed, ShuttingDown, UnknownSession
from mcpbridge.jsonrpc.members import request_line
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.backoff import StartBackoff
from mcpbridge.processes.era import find_answer
from mcpbridge.timers import Timer
from mcpbridge.translation.handshake import initialize_params

#: All that a client can declare: a server that ends where one of these is
#: missing is not to be taken for one that cannot be started.
_CAPABILITIES = b'{"elicitation":{},"roots":{},"sampling":{}}'
_IDENT = 0


class ProcessStarter(Protocol):
    """Starts processes that no client has asked for; a `ProcessPool`."""

    #: True once no process is started any more.
    stopping: bool

    def acquire(self) -> Any:
        """Return a permit that is free; None where there is none."""
        ...

    async def start_process(self, permit: Any) -> BackendSession:
        """Start a process with this permit.  Raises `BackendFailed` and `ShuttingDown`."""
        ...

    def fail(self, why: str) -> None:
        """Note that a process was of no use, so the server is left alone for a while."""

    def announce_capacity(self) -> None:
        """There may be a process, or capacity for one: tell those who wait."""


def neutral_initialize() -> bytes:
    """Return an `initialize` of the bridge's own, with the id 0."""
    params = initialize_params(_CAPABILITIES, None, __version__)
    return request_line(_IDENT, "initialize", params)


class CheckRequest:
    """
    The `Adapter` of a process that is sent one request by the bridge.

    Any answer will do, an error too: what a server refuses it has read.
    """

    def __init__(self, session: BackendSession) -> None:
        self._session = session
        #: Fires with the answer; None before the request is sent.
        self._answered: Deferred[None] | None = None

    async def ask(self, line: bytes, seconds: float) -> None:
        """
        Send the request with the id 0, and wait so many seconds for its
        answer.  Raises `BackendFailed`.
        """
        try:
            self._session.backend.send(line)
            self._answered = Deferred()
            self._answered.addTimeout(seconds, self._session.clock)
            await self._answered
        except defer.TimeoutError:
            raise BackendFailed(f"no answer to the first message in {seconds:g} s") from None
        except (BackendBusy, UnknownSession) as error:
            raise BackendFailed(str(error)) from None

    def send(self, lines: list[bytes], envelopes: object = None) -> None:
        """Do nothing: there is no client."""

    def received(self, lines: list[bytes]) -> list[bytes]:
        """Look for the answer and drop everything else."""
        answered = self._answered
        if answered is not None and not answered.called and find_answer(lines, _IDENT) is not None:
            answered.callback(None)
        return []

    def close(self) -> None:
        """Fail the wait: the process has ended, or was told to."""
        if self._answered is not None and not self._answered.called:
            self._answered.errback(BackendFailed(self._session.reason))


class StartCheck:
    """
    Checks one server, with at most one process at a time, and at most once in
    `CHECK_SECONDS` while it can be started.

    `check_request` returns the request that the process is sent, with the id 0.
    """

    log = Logger()

    def __init__(
        self,
        settings: ServerSettings,
        clock: IReactorTime,
        backoff: StartBackoff,
        starter: ProcessStarter,
        check_request: Callable[[], bytes] = neutral_initialize,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._backoff = backoff
        self._starter = starter
        self._request_line = check_request
        self._wanted = self._running = self._stopped = False
        self._earliest = float("-inf")
        self._timer = Timer(clock)

    def doubt(self, why: str) -> None:
        """
        Check the server, because a process was of no use to a caller.

        With `env_from` there is nothing to check: without the variables of a
        client a process shows nothing, and with them it may fail because of
        these.  While the server is known to be down there is nothing to find out; and
        what fails during a check was begun before its outcome is known.
        """
        if not self._running and not self._settings.env_from:
            self._wanted = True
            self.look()

    def look(self) -> None:
        """Begin a check that is wanted and due, if there is a permit."""
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
        # Without a permit there are processes of the server; the end of one calls this again.
        permit = self._starter.acquire()
        if permit is not None:
            self._timer.stop()
            self._wanted, self._running = False, True
            self._backoff.in_doubt = True
            Deferred.fromCoroutine(self._check(permit)).addErrback(self._check_failed)

    def stop(self) -> None:
        """Begin no more checks."""
        self._stopped = True
        self._timer.stop()

    def _check_failed(self, failure: Failure) -> None:
        self.log.failure("checking whether a server starts failed", failure)

    async def _check(self, permit: Any) -> None:
        successes = self._backoff.successes
        try:
            why = await self._why_not(permit)
        except ShuttingDown:
            return
        finally:
            self._running = self._backoff.in_doubt = False
            self._earliest = self._clock.seconds() + CHECK_SECONDS
        if successes != self._backoff.successes:
            # Meanwhile a process has worked for a caller, so the server can be started.
            return
        if why is None:
            self._backoff.succeeded()
        else:
            # The backoff may be shorter than `CHECK_SECONDS`, and is what counts now.
            self._earliest = float("-inf")
            self._starter.fail(why)

    async def _why_not(self, permit: Any) -> str | None:
        """Start a process and return why it is of no use; None where it answers."""
        try:
            session = await self._starter.start_process(permit)
        except BackendFailed as error:
            return str(error)
        request = CheckRequest(session)
        session.adapt(request)
        try:
            await request.ask(self._request_line(), self._settings.start_timeout)
        except BackendFailed as error:
            session.life.end(f"it cannot be used: {error}")
            return str(error)
        session.life.end("it has shown that the server can be started")
        return None
