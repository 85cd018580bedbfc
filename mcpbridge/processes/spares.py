"""
Spare processes: started before anyone needs them (`warm`), and kept until someone does.

Knows when one is started, replaced or given out; must not know what it will
be used for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import (
    MAX_BACKOFF_SECONDS,
    SETTLED_SECONDS,
    SPARE_OUTPUT_BYTES,
    STARVED_SECONDS,
    WARM_SECONDS,
    WARM_STAGGER_SECONDS,
)
from mcpbridge.errors import BackendFailed, ShuttingDown
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.backoff import StartBackoff
from mcpbridge.processes.start_check import ProcessStarter
from mcpbridge.timers import Timer


class OutputBuffer:
    """The `Adapter` of a spare process: keeps its messages for whoever gets it."""

    def __init__(self, session: BackendSession) -> None:
        self._session = session
        self._size = 0
        self.lines: list[bytes] = []

    def send(self, lines: list[bytes], envelopes: object = None) -> None:
        """Do nothing: without a client there is nothing to send."""

    def received(self, lines: list[bytes]) -> list[bytes]:
        """Keep the messages; beyond `SPARE_OUTPUT_BYTES` the rest stays in the pipe."""
        self.lines += lines
        self._size += sum(map(len, lines))
        if self._size > SPARE_OUTPUT_BYTES:
            self._session.pause_backend()
        return []

    def close(self) -> None:
        """Do nothing: no timer runs."""


class SpareProcesses:
    """
    Keeps `warm` processes of one server ready.

    They are started one at a time and `WARM_SECONDS` apart, so that the start
    of the bridge is no storm of processes; never beyond the limits; and each
    is replaced when it is older than `max_process_age`.  One timer does all of
    it: `look` sets it to the next time at which there is something to do, and
    a step that is under way looks again at its end.
    """

    log = Logger()

    def __init__(
        self,
        settings: ServerSettings,
        clock: IReactorTime,
        backoff: StartBackoff,
        starter: ProcessStarter,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._backoff = backoff
        self._starter = starter
        #: The oldest first.
        self._sessions: deque[BackendSession] = deque()
        self._enabled = False
        #: True while a step is under way.
        self._stepping = False
        #: True where the limits allowed no spare process when one was due.
        self._starved = False
        #: No spare process is started or replaced before.
        self._earliest = 0.0
        self._timer = Timer(clock)

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[BackendSession]:
        return iter(self._sessions)

    def start(self, before: int = 0) -> None:
        """Begin to keep processes ready, after so many other servers have begun."""
        self._enabled = self._settings.warm > 0
        self._wait(WARM_SECONDS + before * WARM_STAGGER_SECONDS)

    def stop(self) -> None:
        """Start no more; the pool ends those that run."""
        self._enabled = False
        self._timer.stop()

    def take(self) -> BackendSession | None:
        """Give out the oldest one, which has had most time to start; None without one."""
        if not self._sessions:
            return None
        session = self._sessions.popleft()
        lines = cast("OutputBuffer", session.adapter).lines
        session.adapt(None)
        if self._age(session) >= SETTLED_SECONDS:
            self._backoff.succeeded()
        if lines:
            # The session has no sink in this turn.  What the backend writes now must
            # not overtake what it wrote before, so both wait for the next turn.
            session.pause_backend()
            self._clock.callLater(0, self._deliver, session, lines)
        self._wait(WARM_SECONDS)
        return session

    def newest(self) -> BackendSession | None:
        """Return the one that gives way first, as it has had least time to start."""
        return self._sessions[-1] if self._sessions else None

    def discard(self, session: BackendSession) -> None:
        """Keep this one no more, if it is a spare process: it is about to be ended."""
        if session in self._sessions:
            self._sessions.remove(session)

    def lost(self, session: BackendSession) -> None:
        """
        Handle the end of a process, if it is a spare one.  Where nobody ended
        it and it did not live long, that is a failed start.
        """
        if session not in self._sessions:
            return
        self._sessions.remove(session)
        why = session.reason or "it ended before it was used"
        # Nobody reads what it still writes.
        session.life.end(why)
        if self._starter.stopping:
            return
        if self._age(session) < MAX_BACKOFF_SECONDS:
            self._starter.fail(why, session)
        else:
            self._backoff.succeeded()
            self.look()

    def capacity_freed(self) -> None:
        """A process is gone: a spare one may start in its place, if nobody else does."""
        if self._starved:
            self._starved = False
            self._earliest = self._clock.seconds() + WARM_SECONDS
        self.look()

    def look(self) -> None:
        """Set the timer to the next time at which there is something to do."""
        self._timer.stop()
        if self._starter.stopping or not self._enabled or self._stepping:
            return
        due = self._due()
        if due is not None:
            self._timer.start(max(0.0, due - self._clock.seconds()), self._begin_step)

    def _due(self) -> float | None:
        """Return when a spare process is to be started or replaced; None: never."""
        if len(self._sessions) < self._settings.warm:
            now = self._clock.seconds()
            return max(self._earliest, now + self._backoff.wait(now))
        if not self._settings.max_process_age:
            return None
        return max(self._earliest, self._sessions[0].opened_at + self._settings.max_process_age)

    def _wait(self, seconds: float) -> None:
        """Start and replace nothing for so long."""
        self._earliest = self._clock.seconds() + seconds
        self.look()

    def _begin_step(self) -> None:
        Deferred.fromCoroutine(self._step()).addErrback(self._step_failed)

    def _step_failed(self, failure: Failure) -> None:
        self.log.failure("keeping processes ready failed", failure)
        self._starter.fail("an internal error of the bridge, which its log describes")

    async def _step(self) -> None:
        """End one that is too old, and start one where one is missing."""
        self._stepping = True
        try:
            self._retire()
            if len(self._sessions) < self._settings.warm:
                await self._add()
        finally:
            self._stepping = False
            self._wait(STARVED_SECONDS if self._starved else WARM_SECONDS)

    def _retire(self) -> None:
        age = self._settings.max_process_age
        if self._sessions and age and self._sessions[0].opened_at + age <= self._clock.seconds():
            session = self._sessions.popleft()
            if self._age(session) >= SETTLED_SECONDS:
                self._backoff.succeeded()
            session.life.end("it reached max_process_age")

    async def _add(self) -> None:
        permit = self._starter.acquire()
        self._starved = permit is None
        if self._starved:
            return
        try:
            session = await self._starter.start_process(permit)
        except ShuttingDown:
            return
        except BackendFailed as error:
            self._starter.fail(str(error))
            return
        session.adapt(OutputBuffer(session))
        if not self._enabled:
            # Meanwhile the server has got other settings, or the bridge stops.
            session.life.end("no more processes are kept ready")
            return
        self._sessions.append(session)
        self._starter.announce_capacity()

    def has_settled(self, session: BackendSession, since: float) -> bool:
        """Tell whether one was started after a time, and has lived for `SETTLED_SECONDS`."""
        return session.opened_at >= since and self._age(session) >= SETTLED_SECONDS

    def _age(self, session: BackendSession) -> float:
        return self._clock.seconds() - session.opened_at

    def _deliver(self, session: BackendSession, lines: list[bytes]) -> None:
        """Pass on what a process wrote while nobody used it."""
        if session.receiving:
            session.resume_backend()
            session.messages_received(lines)
