"""
Warnings about backends that failed, with advice for the operator, and a record of the last
failures.

There is one line for a cause, not one for each client: it is repeated at most
once in `COMPLAIN_SECONDS`.  Knows sessions and how they ended; must not know
clients.
"""

from __future__ import annotations

from collections.abc import Callable
from time import time
from typing import NamedTuple

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.config.settings import ServerSettings
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.stderr_log import ServerStderr, printable, readable
from mcpbridge.rate_limited_log import RateLimitedLogByCause, times
from mcpbridge.timers import Timer

_CLEAN_EXIT = "exit status 0"
_BEFORE = " before it answered anything"
_SILENT = (
    "a process has written nothing to stdout for {seconds:g} s (start_timeout); it may be"
    " installing something, or waiting for something that it does not get"
)
#: What the exit status of a shell, or of `env`, means.
_HINTS = {
    "exit status 126": "; status 126 most often means that a command may not be executed",
    "exit status 127": "; status 127 most often means that a command was not found",
}
#: How many failures of a server are kept for operators to see, and how much of each text.
KEPT_FAILURES = 5
FAILURE_CHARS = 1000


class Failure(NamedTuple):
    """
    A failure of a server, for people: when, in seconds since the epoch, and what.

    `session` is the label of its session, `exit` how its process ended, and `stderr` what the
    process wrote last, each line without control characters; empty where there is nothing.
    """

    when: float
    what: str
    session: str = ""
    exit: str = ""
    stderr: tuple[str, ...] = ()


class Failures:
    """
    Logs the failures of one server's backends; `stderr` tells where to look for more.

    `recent` are the last `KEPT_FAILURES`, the newest first.  A failure that is like an earlier
    one takes its place, so that one that is repeated does not hide the others.  `now` returns
    the time in seconds since the epoch.
    """

    log = Logger()

    def __init__(
        self,
        settings: ServerSettings,
        clock: IReactorTime,
        stderr: ServerStderr,
        now: Callable[[], float] = time,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._stderr = stderr
        self._now = now
        self.recent: list[Failure] = []
        #: Processes without a client whose start has failed, with why, until they are gone.
        self._failed_starts: dict[BackendSession, str] = {}
        self._complaints = RateLimitedLogByCause(clock)
        #: Sessions that clients have, with the timers for backends that write nothing.
        self._watched: dict[BackendSession, Timer] = {}

    def not_opened(self, label: str, why: str) -> None:
        """Warn of a backend that could not be started."""
        self._record(Failure(self._now(), f"no process could be started: {why}", label))
        count = self._complaints.add(("not opened", why))
        if count is not None:
            self.log.warn(
                "session {session} of {server!r} not opened: {reason}{times}",
                session=label,
                server=self._settings.name,
                reason=why,
                times=times(count),
            )

    def start_failed(self, session: BackendSession, why: str, *, gone: bool = False) -> None:
        """
        Record a process without a client that was of no use, once it is `gone`; `StartBackoff`
        logs that.
        """
        if not gone:
            self._failed_starts[session] = why
        elif not session.output_ended:
            # Otherwise its end was recorded.
            self._record_of(session, f"a start failed: {why}")

    def _record(self, failure: Failure) -> None:
        """Keep a failure, in the place of one that is like it or of the oldest."""
        failure = failure._replace(what=failure.what[:FAILURE_CHARS])
        others = [each for each in self.recent if each.what != failure.what]
        self.recent = [failure, *others][:KEPT_FAILURES]

    def _record_of(self, session: BackendSession, what: str) -> None:
        self._record(
            Failure(
                self._now(),
                what,
                session.label,
                session.backend.exit_status or "",
                tuple(printable(line) for line in session.stderr_tail),
            )
        )

    def watch(self, session: BackendSession) -> None:
        """Watch a client's session; warn if its backend is silent for `start_timeout`."""
        self._watched[session] = timer = Timer(self._clock)
        timer.start(self._settings.start_timeout, self._check_silence, session)

    def _check_silence(self, session: BackendSession) -> None:
        if not session.messages_in and not session.has_output:
            # The client has not sent anything yet.
            self._watched[session].start(self._settings.start_timeout, self._check_silence, session)
            return
        if session.has_output or session.leaving:
            return
        self._record_of(session, _SILENT.format(seconds=self._settings.start_timeout))
        count = self._complaints.add("silent")
        if count is not None:
            self.log.warn(
                "session {session} of {server!r}: the backend has written nothing for {seconds:g} s"
                " (start_timeout); the session goes on. It may be installing something, or waiting"
                " for something that it does not get; {advice}{times}",
                session=session.label,
                server=self._settings.name,
                seconds=self._settings.start_timeout,
                advice=self._advice(session),
                times=times(count),
            )

    def closed(self, session: BackendSession, *, warn: bool = True) -> None:
        """
        Warn of the end of a session if its backend is to blame; with `warn`
        False, only stop watching the session.

        A process without a client that ends before it writes a message is a
        failed start, which `StartBackoff` logs.
        """
        timer = self._watched.pop(session, None)
        failed_start = self._failed_starts.pop(session, "")
        if timer is not None:
            timer.stop()
        if warn and failed_start:
            what = f"a start failed: {failed_start}"
            if failed_start == session.reason:
                # It ended by itself.
                what = f"{_end_of(session)}{_BEFORE}"
            self._record_of(session, what)
        if not (warn and session.output_ended):
            return
        if timer is None and not session.has_output:
            if not failed_start:
                self._record_of(session, f"{_end_of(session)}{_BEFORE}")
            return
        if not session.announced:
            return
        status = session.backend.exit_status
        if session.has_output and status in (None, _CLEAN_EXIT):
            return
        before = "" if session.has_output else _BEFORE
        self._record_of(session, f"{_end_of(session)}{before}")
        count = self._complaints.add(("ended", session.has_output, session.reason))
        if count is None:
            return
        self.log.warn(
            "session {session} of {server!r} failed: {reason}{before}; {advice}{hint}{times}",
            session=session.label,
            server=self._settings.name,
            reason=session.reason,
            before=before,
            advice=self._advice(session),
            hint=_HINTS.get(status or "", ""),
            times=times(count),
        )

    def misbehaved(self, session: BackendSession, fault: str, what: str) -> None:
        """Warn of a backend's mistake; `fault` is its kind, which is rate limited."""
        self._record_of(session, what)
        count = self._complaints.add(("misbehaved", fault))
        if count is not None:
            self.log.warn(
                "session {session} of {server!r}: {what}{times}",
                session=session.label,
                server=self._settings.name,
                what=what,
                times=times(count),
            )

    def _advice(self, session: BackendSession) -> str:
        """Say where to look and what to try.  Arguments may hold passwords and are not shown."""
        settings = self._settings
        if settings.is_remote:
            return "look into the log of the remote server"
        command = f"run {settings.command!r}{' with its arguments' if settings.args else ''}"
        if not session.stderr_tail:
            return f"it has written nothing to stderr: {command} yourself to see what it does"
        where = self._stderr.where()
        place = f" is {where}" if where else f" ended with {readable(session.stderr_tail[-1])!r}"
        return f"its stderr{place}; if that does not tell, {command} yourself"


def _end_of(session: BackendSession) -> str:
    """Say how the process of a session ended by itself, and what that may mean."""
    status = session.backend.exit_status
    hint = _HINTS.get(status or "", "")
    if status is None or status in session.reason:
        return f"{session.reason}{hint}"
    return f"the backend ended ({status}){hint}"
