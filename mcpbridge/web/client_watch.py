"""
Checks that a client reads what is written to it, and quickly enough.

Knows a transport and time; must not know what is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from mcpbridge.config.tuning import RATE_SECONDS
from mcpbridge.web.tcp import acknowledged, unsent

#: How many checks there are in a timeout: while something is unsent, and while nothing is.
LOOKS = 20
IDLE_LOOKS = 10


class ClientWatch:
    """
    Calls `stalled` with a reason, once, if a client does not read: it has
    taken no byte for `timeout` seconds while data was unsent, or over
    `RATE_SECONDS` fewer than `min_rate` bytes a second of what was unsent.

    `start` checks until `stop`, for a stream; `arm` only while something is
    unsent.  `looked` is called after each check.

    Only what was unsent *between* two checks counts for the rate: of a stream
    of small messages something is always on its way, and a client that takes
    all of it in time is not slow, however little that is.
    """

    __slots__ = (
        "_acknowledged",
        "_always",
        "_began",
        "_call",
        "_clock",
        "_gained",
        "_looked",
        "_looked_at",
        "_min_rate",
        "_owed",
        "_pending",
        "_progress",
        "_stalled",
        "_taken",
        "_timeout",
        "_transport",
        "_waited",
        "_written",
    )

    def __init__(
        self,
        clock: IReactorTime,
        transport: Any,
        timeout: float,
        min_rate: int,
        stalled: Callable[[str], None],
        pending: Callable[[Any], int] = unsent,
        acknowledged: Callable[[Any], int | None] = acknowledged,
        looked: Callable[[], None] = lambda: None,
    ) -> None:
        self._looked_at = looked
        self._clock = clock
        self._transport = transport
        self._timeout = timeout
        self._min_rate = min_rate
        self._stalled = stalled
        self._pending = pending
        self._acknowledged = acknowledged
        self._always = False
        self._written = 0
        self._call: IDelayedCall | None = None
        #: Bytes that were unsent at the last check.
        self._waited = 0
        #: The time of the last check, and how many bytes were taken by then.
        self._looked = 0.0
        self._taken = 0
        #: When the client was last seen to take something.
        self._progress = 0.0
        #: In this window of the rate: its begin, bytes taken, and bytes due.
        self._began = 0.0
        self._gained = 0
        self._owed = 0.0

    def start(self) -> None:
        """Check until `stop`."""
        self._always = True
        self._look_in(self._timeout / IDLE_LOOKS)

    def arm(self, size: int = 0) -> None:
        """Count written bytes, of which some are unsent, and check now."""
        self._written += size
        if not self._waited:
            self._look()

    def stop(self) -> None:
        """Check no more."""
        self._waited = 0
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()

    def release(self) -> None:
        """Stop for good, and drop the callbacks: they would keep a reference cycle alive."""
        self.stop()
        self._stalled = self._looked_at = _nobody

    def wrote(self, size: int) -> None:
        """Count written bytes."""
        self._written += size

    def _look_in(self, seconds: float) -> None:
        if self._call is not None and self._call.active():
            self._call.reset(seconds)
        else:
            self._call = self._clock.callLater(seconds, self._look)

    def _look(self) -> None:
        waiting = self._pending(self._transport)
        if waiting:
            reason = self._judge(waiting)
            if reason is None:
                self._look_in(self._timeout / LOOKS)
            else:
                self.stop()
                self._stalled(reason)
        elif self._always:
            self._waited = 0
            self._look_in(self._timeout / IDLE_LOOKS)
        else:
            self.stop()
        self._looked_at()

    def _judge(self, waiting: int) -> str | None:
        """Return why the client has stalled; None if it has not."""
        # What the peer has acknowledged, where the system tells: the socket's own
        # buffer may hide a slow reader for minutes.
        taken = self._acknowledged(self._transport)
        if taken is None:
            taken = self._written - waiting
        now = self._clock.seconds()
        if not self._waited:
            self._progress = now
            self._begin_window(now)
        else:
            gained = max(0, taken - self._taken)
            if gained:
                self._progress = now
            self._gained += gained
            self._owed += min(self._waited, self._min_rate * (now - self._looked))
            if now - self._progress >= self._timeout:
                return f"the client read nothing for {self._timeout:g} s"
            if now - self._began >= RATE_SECONDS:
                if self._gained < self._owed:
                    return (
                        f"the client read {self._gained} bytes in {now - self._began:.0f} s"
                        " (min_transfer_rate)"
                    )
                self._begin_window(now)
        self._waited, self._looked, self._taken = waiting, now, taken
        return None

    def _begin_window(self, now: float) -> None:
        self._began = now
        self._gained = 0
        self._owed = 0.0


def _nobody(*arguments: object) -> None:
    """Do nothing: the response is over."""
