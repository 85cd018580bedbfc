"""
A bound on how fast output that nobody reads is taken from a backend.

Knows bytes and time; must not know what is read, nor who reads.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from mcpbridge.config.tuning import UNREAD_BYTES_PER_SECOND
from mcpbridge.timers import Timer

#: The bytes are counted in windows of so many seconds.
WINDOW_SECONDS = 1.0


class Throttle:
    """
    Pauses a backend that writes more than `UNREAD_BYTES_PER_SECOND` to nobody.

    A backend that logs without end, or sends notifications while no client
    listens, would otherwise keep a whole core busy with output that is thrown
    away.  The backend is not ended: it waits in its `write` until the window
    is over, or until `release` is called because a client reads again.
    """

    __slots__ = ("_began", "_clock", "_pause", "_resume", "_size", "_window")

    def __init__(
        self, clock: IReactorTime, pause: Callable[[], object], resume: Callable[[], object]
    ) -> None:
        self._clock = clock
        self._pause = pause
        self._resume = resume
        self._began = clock.seconds()
        self._size = 0
        #: Runs while the backend is paused, until the window is over.
        self._window = Timer(clock)

    @property
    def pausing(self) -> bool:
        """True while the backend is paused by this throttle."""
        return self._window.is_running

    def count(self, size: int) -> None:
        """Count so many bytes that nobody has read."""
        now = self._clock.seconds()
        if now - self._began >= WINDOW_SECONDS:
            self._began = now
            self._size = 0
        self._size += size
        if self._size > UNREAD_BYTES_PER_SECOND and not self._window.is_running:
            self._window.start(self._began + WINDOW_SECONDS - now, self._resume)
            self._pause()

    def release(self) -> None:
        """Let the backend go on at once."""
        if self._window.is_running:
            self._window.stop()
            self._size = 0
            self._resume()
