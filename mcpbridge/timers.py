"""
A delayed call that can be replaced and cancelled.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Timer:
    """At most one delayed call at a time."""

    __slots__ = ("_call", "_clock", "_function")

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._call: IDelayedCall | None = None
        self._function: Callable[[], object] | None = None

    @property
    def is_running(self) -> bool:
        """Whether a call is still to come."""
        return self._call is not None

    @property
    def due(self) -> float | None:
        """When the call is to come, on the clock; None where none is."""
        return None if self._call is None else self._call.getTime()

    def start(self, seconds: float, function: Callable[[], object]) -> None:
        """Call this function in so many seconds, in place of any other."""
        self.stop()
        self._function = function
        self._call = self._clock.callLater(seconds, self._fire)

    def stop(self) -> None:
        """Cancel the call, if there is one."""
        call, self._call = self._call, None
        if call is not None:
            self._function = None
            call.cancel()

    def _fire(self) -> None:
        function, self._function = self._function, None
        self._call = None
        if function is not None:
            function()
