"""
The end of a stream whose caller has no access any more.

Knows time; must not know what a stream is.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from twisted.internet.interfaces import IReactorTime

from mcpbridge.processes.endings import NotAdmitted
from mcpbridge.timers import Timer

#: Why a stream ends, for the log and for errors.
EXPIRED = NotAdmitted("the access of its client has expired")


class AccessExpiry:
    """
    Calls `expired` when access has expired; until `stop`.  `until` returns when that will
    be, in seconds since the epoch: of a session later than before, after a request of it
    with a newer token.
    """

    __slots__ = ("_clock", "_expired", "_timer", "_until")

    def __init__(
        self, clock: IReactorTime, until: Callable[[], float], expired: Callable[[], object]
    ) -> None:
        self._clock = clock
        self._until = until
        self._expired = expired
        self._timer = Timer(clock)
        self._wait()

    def stop(self, result: object = None) -> None:
        """Stop; does nothing if it has stopped, or expired."""
        self._timer.stop()

    def _wait(self) -> None:
        until = self._until()
        if until != inf:
            self._timer.start(max(0.0, until - self._clock.seconds()), self._check)

    def _check(self) -> None:
        if self._until() > self._clock.seconds():
            self._wait()
        else:
            self._expired()
