"""
What went wrong with backends, as warnings that say what to do.

One line for a cause and not one for a client: the same is said once in
`COMPLAIN_SECONDS`.  Knows sessions and how they ended; must not know clients.
"""

from __future__ import annotations

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from mcpbridge.config.settings import ServerSettings
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.stderr import ServerStderr, readable
from mcpbridge.rate_limited_log import RateLimitedLogByCause, times

_CLEAN_EXIT = "exit status 0"
#: What a shell, or `env`, says with its exit status.
_HINTS = {
    "exit status 126": "; status 126 most often means that a command may not be executed",
    "exit status 127": "; status 127 most often means that a command was not found",
}


class Failures:
    """The failures of one server's backends; `stderr` is where to look for more."""

    log = Logger()

    def __init__(self, settings: ServerSettings, clock: IReactorTime, stderr: ServerStderr) -> None:
        self._settings = settings
        self._clock = clock
        self._stderr = stderr
        self._complaints = RateLimitedLogByCause(clock)
        #: Sessions of clients that are not over, and when it is looked whether they were answered.
        self._watched: dict[BackendSession, IDelayedCall] = {}

    def not_opened(self, label: str, why: str) -> None:
        """A backend could not be started."""
        count = self._complaints.add(("not opened", why))
        if count is not None:
            self.log.warn(
                "session {label} of {server!r} not opened: {why}{times}",
                label=label,
                server=self._settings.name,
                why=why,
                times=times(count),
            )

    def watch(self, session: BackendSession) -> None:
        """A client has this session: say so if its backend is silent, or dies without a word."""
        self._watched[session] = self._later(session)

    def _later(self, session: BackendSession) -> IDelayedCall:
        return self._clock.callLater(self._settings.start_timeout, self._look, session)

    def _look(self, session: BackendSession) -> None:
        """Its time is over."""
        if not session.messages_in and not session.heard:
            # Its client has not asked for anything yet.
            self._watched[session] = self._later(session)
            return
        if session.heard or session.leaving:
            return
        count = self._complaints.add("silent")
        if count is not None:
            self.log.warn(
                "session {label} of {server!r}: the backend has said nothing for {seconds:g} s"
                " (start_timeout); the session goes on. It may still install something, or wait"
                " for what it does not get; {advice}{times}",
                label=session.label,
                server=self._settings.name,
                seconds=self._settings.start_timeout,
                advice=self._advice(session),
                times=times(count),
            )

    def closed(self, session: BackendSession, *, said: bool = True) -> None:
        """
        Nothing is left of a session: warn if its backend is to blame.

        A process without a client that dies before it says anything is a
        failed start, which is said elsewhere.
        """
        timer = self._watched.pop(session, None)
        if timer is not None and timer.active():
            timer.cancel()
        if not (said and session.announced and session.output_ended):
            return
        if timer is None and not session.heard:
            return
        status = session.backend.exit_status
        if session.heard and status in (None, _CLEAN_EXIT):
            return
        count = self._complaints.add(("ended", session.heard, session.reason))
        if count is None:
            return
        self.log.warn(
            "session {label} of {server!r} failed: {reason}{before}; {advice}{hint}{times}",
            label=session.label,
            server=self._settings.name,
            reason=session.reason,
            before="" if session.heard else " before it had answered anything",
            advice=self._advice(session),
            hint=_HINTS.get(status or "", ""),
            times=times(count),
        )

    def misbehaved(self, session: BackendSession, fault: str, what: str) -> None:
        """A backend makes a mistake of this kind, and `what` says which."""
        count = self._complaints.add(("misbehaved", fault))
        if count is not None:
            self.log.warn(
                "session {label} of {server!r}: {what}{times}",
                label=session.label,
                server=self._settings.name,
                what=what,
                times=times(count),
            )

    def _advice(self, session: BackendSession) -> str:
        """Where to look, and what to try.  Arguments may hold passwords: they are not shown."""
        settings = self._settings
        command = f"run {settings.command!r}{' with its arguments' if settings.args else ''}"
        if not session.stderr_tail:
            return f"it has written nothing to stderr: {command} yourself to see what it does"
        where = self._stderr.where()
        place = f" is {where}" if where else f" ended with {readable(session.stderr_tail[-1])!r}"
        return f"its stderr{place}; if that does not tell, {command} yourself"
