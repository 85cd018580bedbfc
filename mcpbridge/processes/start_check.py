"""
Checks whether a server can be started, with a process that serves no client.

A process that fails while it reads a client's first messages may fail because
of them: a `clientInfo` that an older server cannot take, capabilities that it
does not expect.  To count that as a failed start would let one client keep
the server down for all.  So the bridge starts a process of its own then, sends
it what no caller has a part in, and counts only what comes of that.

It does so again while the server is known to fail: clients are told to come later, and
a load balancer sends none, so that nobody else would find out that it works again.

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
from mcpbridge.config.tuning import (
    BACKOFF_SECONDS,
    CHECK_SECONDS,
    MAX_BACKOFF_SECONDS,
    REMOTE_BACKOFF_SECONDS,
    SETTLED_SECONDS,
)
from mcpbridge.errors import BackendBusy, BackendFailed, ShuttingDown, UnknownSession
from mcpbridge.jsonrpc.members import request_line
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.backoff import StartBackoff
from mcpbridge.processes.era import find_answer
from mcpbridge.timers import Timer
from mcpbridge.timers import backoff as backoff_pauses
from mcpbridge.translation.handshake import initialize_params

#: All that a client can declare: a server that ends where one of these is
#: missing is not to be taken for one that cannot be started.
_CAPABILITIES = b'{"elicitation":{},"roots":{},"sampling":{}}'
_IDENT = 0


class ProcessStarter(Protocol):
    """Starts processes that no client has asked for; a `ProcessPool`."""

    #: True once no process is started any more.
    stopping: bool
    #: Since when, and why, no process can be started at all; None where one could be.
    cannot_start: tuple[float, str] | None

    def acquire(self) -> Any:
        """Return a permit that is free; None where there is none."""
        ...

    def acquire_spare(self) -> Any:
        """Return a permit if another one is free beside it; None otherwise."""
        ...

    def has_settled_since(self, time: float) -> bool:
        """Tell whether a process is kept ready that was started since, and has settled."""
        ...

    async def start_process(self, permit: Any) -> BackendSession:
        """Start a process with this permit.  Raises `BackendFailed` and `ShuttingDown`."""
        ...

    def fail(self, why: str, session: BackendSession | None = None) -> None:
        """
        Note that a process was of no use, so the server is left alone for a while; `session`
        is that process, if it was started.
        """

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

    `check_request` returns the request that the process is sent, with the id 0.  Its
    process gives way to one that somebody needs; such a check has no outcome.
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
        self._wanted = self._running = self._stopped = self._gave_way = False
        self._earliest = float("-inf")
        self._timer = Timer(clock)
        self._recovery = Timer(clock)
        self._doubt = Timer(clock)
        #: The pauses while the system starts no process, and how many there were in a row.
        longest = REMOTE_BACKOFF_SECONDS if settings.is_remote else MAX_BACKOFF_SECONDS
        self._pause = backoff_pauses(BACKOFF_SECONDS, longest)
        self._tries = 0
        #: The process of a check, until nothing of it is left.
        self.process: BackendSession | None = None

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
        if not self._wanted or not self._may_begin():
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
            self._wanted = False
            self._begin(permit, doubted=True)

    def try_now(self) -> None:
        """
        Check the server without any doubt, if there are two permits, so that one is left for
        a client.  While it is known to fail this does nothing: `recover` sees to that.
        """
        if self._may_begin() and not self._is_failing and not self._settings.env_from:
            permit = self._starter.acquire_spare()
            if permit is not None:
                self._begin(permit)

    def recover(self, after: float = 0.0) -> None:
        """
        Check a server that is known to fail when its pause is over, and until it works
        again, but not before some seconds `after` now.  Where processes are kept ready, these
        come first.
        """
        if self._stopped or self._settings.env_from or not self._is_failing:
            return
        due, now = self._recovery.due, self._clock.seconds()
        if self._backoff.failures:
            delay = max(after, self._until_next_try(now))
        elif due is None:
            # Clients are not told to wait, as an attempt costs no process.
            delay = self._pause(self._tries)
            self._tries += 1
        else:
            return
        if due is None or due > now + delay:
            self._recovery.start(delay, self._try_recovery)

    def discard(self, session: BackendSession) -> None:
        """Expect no outcome of a process, if it is that of a check: it is about to be ended."""
        if session is self.process:
            self._gave_way = True

    def stop(self) -> None:
        """Begin no more checks."""
        self._stopped = True
        for timer in (self._timer, self._recovery, self._doubt):
            timer.stop()

    @property
    def _is_failing(self) -> bool:
        return bool(self._backoff.failures) or self._starter.cannot_start is not None

    def _may_begin(self) -> bool:
        return not (self._running or self._stopped or self._starter.stopping)

    def _until_next_try(self, now: float) -> float:
        return self._backoff.wait(now) + (SETTLED_SECONDS if self._settings.warm else 0.0)

    def _try_recovery(self) -> None:
        if not self._is_failing:
            self._tries = 0
        if not self._is_failing or not self._may_begin():
            return
        now = self._clock.seconds()
        if self._backoff.wait(now):
            self._recovery.start(self._until_next_try(now), self._try_recovery)
            return
        permit = self._starter.acquire()
        if permit is not None:
            self._begin(permit, counts=self._backoff.failures > 0)
        elif self._starter.has_settled_since(self._backoff.failed_at or 0.0):
            self._backoff.succeeded()
        else:
            self._recovery.start(CHECK_SECONDS, self._try_recovery)

    def _begin(self, permit: Any, *, counts: bool = True, doubted: bool = False) -> None:
        """
        Begin a check.  Clients of a server that is known to fail wait for its outcome, which
        is to be known soon; but not for long, as a client may have more patience than the
        bridge.
        """
        self._running, self._gave_way = True, False
        self._backoff.in_doubt = True
        self._doubt.start(CHECK_SECONDS, self._end_doubt)
        checking = Deferred.fromCoroutine(self._check(permit, counts=counts, doubted=doubted))
        checking.addErrback(self._check_failed)

    def _end_doubt(self) -> None:
        self._backoff.in_doubt = False
        self._doubt.stop()

    def _check_failed(self, failure: Failure) -> None:
        self.log.failure("checking whether a server starts failed", failure)
        self._starter.fail("an internal error of the bridge, which its log describes")

    async def _check(self, permit: Any, *, counts: bool, doubted: bool) -> None:
        """
        Check once, because the server is `doubted` or for another reason.  Unless it `counts`,
        that the system starts no process is known already, and keeps no client from trying.
        """
        successes = self._backoff.successes
        try:
            why, session = await self._why_not(permit)
        except ShuttingDown:
            return
        finally:
            self._running = False
            self._end_doubt()
            self._earliest = self._clock.seconds() + CHECK_SECONDS
        if successes != self._backoff.successes:
            # Meanwhile a process has worked for a caller, so the server can be started.
            return
        if why is None:
            self._tries = 0
            self._backoff.succeeded()
        elif self._stopped or self._starter.stopping:
            # The bridge has ended the process, and not the process itself.
            return
        elif self._gave_way:
            self._wanted = self._wanted or doubted
            self.look()
            self.recover(CHECK_SECONDS)
        elif not counts and self._starter.cannot_start is not None:
            self.recover()
        else:
            # The backoff may be shorter than `CHECK_SECONDS`, and is what counts now.
            self._earliest = float("-inf")
            self._starter.fail(why, session)

    async def _why_not(self, permit: Any) -> tuple[str | None, BackendSession | None]:
        """Start a process and return why it is of no use, None where it answers, and it."""
        try:
            session = await self._starter.start_process(permit)
        except BackendFailed as error:
            return str(error), None
        self.process = session
        session.gone().addCallback(self._forget, session)
        request = CheckRequest(session)
        session.adapt(request)
        try:
            await request.ask(self._request_line(), self._settings.start_timeout)
        except BackendFailed as error:
            session.life.end(f"it cannot be used: {error}")
            return str(error), session
        session.life.end("it has shown that the server can be started")
        return None, session

    def _forget(self, _: None, session: BackendSession) -> None:
        if self.process is session:
            self.process = None
