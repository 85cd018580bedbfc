"""
The canary of a server: now and then has a process started that nobody uses, so that a
failure is known before a client meets it (`canary_interval`).

Knows time, and whether clients were answered meanwhile; must not know how a server is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from random import random

from twisted.internet.interfaces import IReactorTime

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import CANARY_JITTER
from mcpbridge.timers import Timer


class Canary:
    """
    Calls `check` every `canary_interval` seconds, or somewhat sooner, unless a client has
    got a result since the last time: that proves as much, and costs no process.

    The first time comes at random within the first interval, so that the servers of a bridge
    take turns.  `results` returns how many requests of clients have got a
    result, or None while processes with older settings may answer, and `jitter` a number from 0
    to 1.
    """

    def __init__(
        self,
        settings: ServerSettings,
        clock: IReactorTime,
        check: Callable[[], object],
        results: Callable[[], int | None],
        jitter: Callable[[], float] = random,
    ) -> None:
        self._interval = settings.canary_interval
        self._check = check
        self._results = results
        self._jitter = jitter
        self._seen: int | None = None
        self._timer = Timer(clock)

    def start(self) -> None:
        """Begin, where the settings say so."""
        if self._interval:
            self._seen = self._results()
            self._timer.start(self._interval * self._jitter(), self._due)

    def stop(self) -> None:
        """Have nothing checked any more."""
        self._timer.stop()

    def _due(self) -> None:
        pause = self._interval * (1 - CANARY_JITTER * self._jitter())
        self._timer.start(pause, self._due)
        before, self._seen = self._seen, self._results()
        if before is None or self._seen is None or self._seen == before:
            self._check()
