"""
Delayed calls that are replaced and cancelled.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Timer:
    """At most one call that is to come."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._call: IDelayedCall | None = None

    def start(self, seconds: float, call: Callable[[], object]) -> None:
        """Make this call then, in place of any other."""
        self.stop()
        self._call = self._clock.callLater(seconds, call)

    def stop(self) -> None:
        """Make none."""
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()
