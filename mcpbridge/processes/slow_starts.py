"""
Lines of the log that say what a client is waiting for while its process starts.

The first start of a server may take minutes, as `npx` and `uvx` install it first.  Knows
sessions that have answered nothing yet; must not know who waits for them.
"""

from __future__ import annotations

import os

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import MAX_STARTING_LOG_SECONDS, STARTING_LOG_SECONDS
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.stderr_log import printable
from mcpbridge.rate_limited_log import RateLimitedLogByCause, times
from mcpbridge.timers import Timer

#: What programs do at their first start, by their names.
_HINTS = {
    **dict.fromkeys(
        ("npx", "bunx", "pnpx", "npm", "pnpm", "bun", "yarn", "uvx", "uv", "pipx"),
        "may be downloading a package",
    ),
    **dict.fromkeys(("docker", "podman", "nerdctl"), "may be pulling an image"),
}
#: How much of the last line of stderr is shown.
_STDERR_CHARS = 200


class _Start:
    """A session that waits for the first answer of its process, and since when."""

    __slots__ = ("lines", "logged", "since", "timer")

    def __init__(self, clock: IReactorTime) -> None:
        self.timer = Timer(clock)
        self.since = clock.seconds()
        #: How many lines were due so far.
        self.lines = 0
        #: True once one of them was written.
        self.logged = False


class SlowStarts:
    """
    Logs the starts of one server that take long, and their ends.

    A line is due `STARTING_LOG_SECONDS` after the session was opened, and again after twice
    as long.  Where many sessions wait, one line stands for all of them.
    """

    log = Logger()

    def __init__(self, settings: ServerSettings, clock: IReactorTime) -> None:
        self._settings = settings
        self._clock = clock
        #: By session, until its process has answered or the session ends.
        self._starts: dict[BackendSession, _Start] = {}
        self._lines = RateLimitedLogByCause(clock)

    def opened(self, session: BackendSession) -> None:
        """Watch a session that somebody uses from now on."""
        if not session.has_output:
            self._starts[session] = start = _Start(self._clock)
            start.timer.start(STARTING_LOG_SECONDS, self._look, session, start)

    def answered(self, session: BackendSession) -> None:
        """Note the first message of a session's process."""
        start = self._forget(session)
        if start is not None and start.logged:
            self.log.info(
                "session {session} of {server!r}: answered after {seconds:.0f} s",
                session=session.label,
                server=self._settings.name,
                identity=session.caller_name,
                seconds=self._clock.seconds() - start.since,
            )

    def ended(self, session: BackendSession) -> None:
        """Watch a session no more: it has ended, or is about to."""
        self._forget(session)

    def _forget(self, session: BackendSession) -> _Start | None:
        start = self._starts.pop(session, None)
        if start is not None:
            start.timer.stop()
        return start

    def _look(self, session: BackendSession, start: _Start) -> None:
        if session.leaving:
            self._forget(session)
            return
        if not session.messages_in:
            # Nobody waits yet: the client has not sent anything.
            start.since = self._clock.seconds()
            start.timer.start(STARTING_LOG_SECONDS, self._look, session, start)
            return
        start.lines += 1
        pause = min(STARTING_LOG_SECONDS * 2**start.lines, MAX_STARTING_LOG_SECONDS)
        start.timer.start(pause, self._look, session, start)
        count = self._lines.add(start.lines)
        if count is None:
            return
        start.logged = True
        self.log.info(
            "session {session} of {server!r}: waiting for its first answer for {seconds:.0f} s"
            "{hint}{stderr}{times}",
            session=session.label,
            server=self._settings.name,
            identity=session.caller_name,
            seconds=self._clock.seconds() - start.since,
            hint=self._hint(),
            stderr=_last_line(session),
            times=times(count),
        )

    def _hint(self) -> str:
        program = os.path.basename(self._settings.command)
        what = _HINTS.get(program)
        return "" if what is None else f"; {program} {what}"


def _last_line(session: BackendSession) -> str:
    tail = session.stderr_tail
    return f" (last stderr: {printable(tail[-1], _STDERR_CHARS)})" if tail else ""
