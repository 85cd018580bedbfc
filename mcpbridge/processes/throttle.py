"""
A bound on how fast output that nobody reads is taken from a backend.

Knows bytes and time; must not know what is read, nor who reads.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from mcpbridge.config.tuning import UNREAD_BYTES_PER_SECOND

#: The bytes are counted in windows of so many seconds.
WINDOW_SECONDS = 1.0


class Throttle:
    """
    Pauses a backend that writes more than `UNREAD_BYTES_PER_SECOND` to nobody.

    A backend that logs without end, or sends notifications while no client
    listens, would otherwise keep a whole core busy with output that is thrown
    away.  The backend is not ended: it waits in its `write` until the window
    is over, or until `release` is called because somebody reads again.
    """

    __slots__ = ("_began", "_clock", "_over", "_pause", "_resume", "_size")

    def __init__(
        self, clock: IReactorTime, pause: Callable[[], None], resume: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._pause = pause
        self._resume = resume
        self._began = clock.seconds()
        self._size = 0
        self._over: IDelayedCall | None = None

    @property
    def pausing(self) -> bool:
        """Whether the backend is paused by this throttle now."""
        return self._over is not None

    def thrown_away(self, size: int) -> None:
        """Count so many bytes that nobody has read."""
        now = self._clock.seconds()
        if now - self._began >= WINDOW_SECONDS:
            self._began = now
            self._size = 0
        self._size += size
        if self._size > UNREAD_BYTES_PER_SECOND and self._over is None:
            self._over = self._clock.callLater(
                self._began + WINDOW_SECONDS - now, self._window_over
            )
            self._pause()

    def release(self) -> None:
        """Let the backend go on at once."""
        over, self._over = self._over, None
        if over is not None:
            over.cancel()
            self._size = 0
            self._resume()

    def _window_over(self) -> None:
        self._over = None
        self._resume()
