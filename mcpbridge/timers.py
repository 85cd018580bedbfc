"""
Timers and pauses between retries, on top of `IReactorTime.callLater`.
"""

from __future__ import annotations

from collections.abc import Callable
from random import random

from twisted.application.internet import backoffPolicy
from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Timer:
    """A delayed call that can be replaced and cancelled; at most one is pending."""

    __slots__ = ("_call", "_clock")

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._call: IDelayedCall | None = None

    @property
    def is_running(self) -> bool:
        """True while a call is pending."""
        return self._call is not None

    @property
    def due(self) -> float | None:
        """The time of the pending call, on the clock; None if there is none."""
        return None if self._call is None else self._call.getTime()

    def start(self, seconds: float, call: Callable[..., object], *arguments: object) -> None:
        """Make this call after so many seconds, instead of a pending one."""
        self.stop()
        self._call = self._clock.callLater(seconds, self._fire, call, arguments)

    def stop(self) -> None:
        """Cancel the pending call, if any."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _fire(self, call: Callable[..., object], arguments: tuple[object, ...]) -> None:
        # Cleared first: the call may start the timer again, and a call that was made
        # would keep its object alive until the garbage collector comes.
        self._call = None
        call(*arguments)


def backoff(
    first: float, longest: float, jitter: Callable[[], float] = random
) -> Callable[[int], float]:
    """
    Return a function from the number of earlier attempts to the pause before the next.

    The pause is `first` seconds, then twice the one before, and at most
    `longest`.  `jitter` returns a number from 0 to 1: that part of `first` is
    added, so that what failed at one time is not retried at one time.
    """
    return backoffPolicy(first, longest, 2.0, jitter=lambda: first * jitter())
