"""
The time between a bridge's decision to stop and the end of its sessions: requests that run
are finished, and none begins.

Knows servers, connections and time; must not know signals, nor how a session ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.guard import guarded
from mcpbridge.processes.endings import Stopped
from mcpbridge.server import Server
from mcpbridge.timers import Timer

#: How often to look whether requests are finished, and how often to log those that are left.
LOOK_SECONDS = 0.1
REPORT_SECONDS = 5.0
#: How long to wait for answers to requests that were cancelled, of which most never come.
CANCELLED_SECONDS = 2.0
#: How many servers a line in the log names.
NAMED_SERVERS = 5
#: Why a session ends that has no request to answer.
ENDED = Stopped("the bridge is shutting down")


class Connections(Protocol):
    """The connections of clients; a `BridgeSite`."""

    def drain(self, busy: Collection[str]) -> None:
        """Close those that are quiet and not needed by these sessions, by their ids."""

    @property
    def unfinished(self) -> int:
        """How many have something to be served or sent."""
        ...


class Drain:
    """
    Waits for the running requests of a bridge.

    `servers` returns all servers, and `connections` those of the bridge's own listeners, if
    it has any.  Nothing is counted for it while the bridge serves: it looks every
    `LOOK_SECONDS`.
    """

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        servers: Callable[[], Sequence[Server]],
        connections: Callable[[], Connections | None],
    ) -> None:
        self._clock = clock
        self._doubt_until = 0.0
        self._servers = servers
        self._connections = connections
        self._look_timer = Timer(clock)
        self._report_timer = Timer(clock)
        self._end_timer = Timer(clock)
        self._waiting: list[Deferred[None]] = []
        #: True from `start` until no request runs, or they are not waited for any more.
        self.is_running = False

    def start(self, timeout: float) -> None:
        """Refuse what is new, and begin to wait, for so many seconds at most."""
        self.is_running = True
        for server in self._servers():
            guarded(self.log, "refusing new requests", server.drain)
        self._end_timer.start(timeout, self._time_up, timeout)
        self._doubt_until = self._clock.seconds() + CANCELLED_SECONDS
        self._report_timer.start(REPORT_SECONDS, self._report)
        self._look()

    def over(self) -> Deferred[None]:
        """Return a Deferred that fires when no request runs any more, or none is waited for."""
        waiting: Deferred[None] = Deferred()
        if self.is_running:
            self._waiting.append(waiting)
        else:
            waiting.callback(None)
        return waiting

    def hurry(self) -> None:
        """Wait no longer."""
        if not self.is_running:
            return
        self.is_running = False
        for timer in (self._look_timer, self._report_timer, self._end_timer):
            timer.stop()
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def left(self) -> str:
        """Return what is waited for, as in `3 requests at 'files', 'search'`; or nothing."""
        running = {each.settings.name: each.running for each in self._servers()}
        names = [repr(name) for name, count in running.items() if count]
        count = sum(running.values())
        if not count:
            connections = self._connections()
            unfinished = 0 if connections is None else connections.unfinished
            # Responses that are not read yet, and connections that are not quiet long enough.
            return _count(unfinished, "open connection") if unfinished else ""
        more = f" and {len(names) - NAMED_SERVERS} more" if len(names) > NAMED_SERVERS else ""
        return f"{_count(count, 'request')} at {', '.join(names[:NAMED_SERVERS])}{more}"

    def _look(self) -> None:
        """End the sessions that have nothing to answer, and wait for the others."""
        self._look_timer.start(LOOK_SECONDS, self._look)
        busy: set[str] = set()
        running = 0
        for server in self._servers():
            if self._clock.seconds() >= self._doubt_until:
                guarded(self.log, "giving up cancelled requests", server.give_up_cancelled)
            guarded(self.log, "ending idle sessions", server.end_idle, ENDED)
            busy.update(server.busy_sessions())
            running += server.running
        connections = self._connections()
        if connections is not None:
            guarded(self.log, "closing connections", connections.drain, busy)
        if not running and (connections is None or not connections.unfinished):
            self.hurry()

    def _report(self) -> None:
        self._report_timer.start(REPORT_SECONDS, self._report)
        self.log.info("waiting for {left}", left=self.left() or "nothing")

    def _time_up(self, timeout: float) -> None:
        self.log.warn(
            "{left} not finished after {seconds:g} s (drain_timeout)",
            left=self.left() or "nothing",
            seconds=timeout,
        )
        self.hurry()


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
