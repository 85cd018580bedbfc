"""
Processes that go on starting after their clients have left.

What a process does only at its first start is done then: `npx` installs a
package.  A process that has seen its client's `initialize` is given to nobody
else: it ends once it has started.

Knows sessions that nobody uses, and time; must not know clients.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet import defer
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import STOP_SLACK_SECONDS, UNATTENDED_STARTS
from mcpbridge.processes.backend_session import Adapter, BackendSession
from mcpbridge.processes.backoff import StartBackoff
from mcpbridge.processes.waiters import FirstStart
from mcpbridge.rate_limited_log import RateLimitedLog
from mcpbridge.timers import Timer


class UnattendedStart:
    """
    The `Adapter` of a process whose client has left: ends it after its first
    message, or after so many seconds, and then calls `over`.
    """

    def __init__(
        self, session: BackendSession, why: str, seconds: float, over: Callable[[], object]
    ) -> None:
        #: When it ends at the latest, in seconds of the clock.
        self.deadline = session.clock.seconds() + seconds
        #: True while a new process waits for its permit.
        self.promised = False
        self.over = False
        self._session = session
        self._why = why
        self._tell_over = over
        self._inner: Adapter | None = session.adapter
        self._timer = Timer(session.clock)
        session.leave_client(why, self, lambda _: self._set_over())
        self._timer.start(seconds, lambda: self.end("it did not start in time"))

    def end(self, why: str) -> None:
        """End the process."""
        self._session.life.end(f"{self._why}; its process was kept: {why}")

    def send(self, lines: list[bytes], envelopes: object = None) -> None:
        """Do nothing: there is no client."""

    def received(self, lines: list[bytes]) -> list[bytes]:
        """End the process soon, as it has started; let the era be learned from its answer."""
        if self._inner is not None:
            self._inner.received(lines)
        if not self.over:
            self._timer.start(0, lambda: self.end("it has started"))
        return []

    def close(self) -> None:
        """The session is over."""
        self._set_over()
        if self._inner is not None:
            self._inner.close()

    def _set_over(self) -> None:
        if not self.over:
            self.over = True
            self._timer.stop()
            self._tell_over()


class UnattendedStarts:
    """The unattended starts of one server, at most `UNATTENDED_STARTS`, each with its permit."""

    log = Logger()

    def __init__(
        self, settings: ServerSettings, clock: IReactorTime, backoff: StartBackoff
    ) -> None:
        self._settings = settings
        self._clock = clock
        #: By session, until nothing of the process is left.
        self._starts: dict[BackendSession, UnattendedStart] = {}
        self._first = FirstStart(backoff, clock, settings.max_waiting_requests)
        self._departures = RateLimitedLog(clock)

    def __len__(self) -> int:
        return len(self._starts)

    def keep(self, session: BackendSession, why: str) -> bool:
        """
        Let the process of a session start without its client, which has left.
        It ends when it has started, or `start_timeout` after it was opened.

        Returns False, and leaves the session as it is, where no more may be
        kept or the time is over.
        """
        age = self._clock.seconds() - session.opened_at
        left = self._settings.start_timeout - age
        if len(self._starts) >= UNATTENDED_STARTS or left <= 0:
            return False
        self._starts[session] = UnattendedStart(session, why, left, self._first.over)
        self._departures.add()
        count = self._departures.due()
        if count is not None:
            self.log.warn(
                "server {server!r}: a client left after {seconds:.1f} s, before its process"
                " answered; the process goes on starting for up to {timeout:g} s (start_timeout),"
                " so that what it installs is there for the next one. With `warm`, processes are"
                " started before clients come. Clients that left since the last such line: {count}",
                server=self._settings.name,
                seconds=age,
                timeout=self._settings.start_timeout,
                count=count,
            )
        return True

    def unclaimed(self) -> BackendSession | None:
        """Return one whose permit is not promised yet."""
        return next((each for each, start in self._starts.items() if not start.promised), None)

    def end(self, session: BackendSession) -> None:
        """End one: another server needs its permit."""
        start = self._starts[session]
        start.promised = True
        start.end("another process needed its slot")

    def end_all(self, why: str) -> None:
        """End all of them."""
        for session, start in list(self._starts.items()):
            if session.receiving:
                start.promised = True
                start.end(why)

    async def outlast(self, session: BackendSession) -> bool:
        """
        Wait until nothing of one is left, and return whether that came in
        time.  It is not ended, since it is ahead of any other process that
        this server could start instead.
        """
        start = self._starts[session]
        start.promised = True
        patience = start.deadline - self._clock.seconds()
        patience += self._settings.stop_grace + self._settings.kill_grace + STOP_SLACK_SECONDS
        try:
            await session.gone().addTimeout(max(0.0, patience), self._clock)
        except defer.TimeoutError:
            return False
        finally:
            start.promised = False
        return True

    async def wait_for_first(self) -> None:
        """Wait for the server's first start, if it is one of these (`FirstStart`)."""
        await self._first.wait(lambda: any(not start.over for start in self._starts.values()))

    def closed(self, session: BackendSession) -> None:
        """Nothing of a process is left; it may be one of these."""
        self._starts.pop(session, None)

    def stop(self) -> None:
        """Let nobody wait any more: the bridge stops."""
        self._first.over()
