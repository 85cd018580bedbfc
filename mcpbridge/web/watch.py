"""
Whether a client still takes what is written to it.

Knows a transport and time; must not know what is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from mcpbridge.web.sockets import acknowledged, unsent

#: How often in a timeout it is looked.
LOOKS = 4


class ClientWatch:
    """
    Calls `stalled` when a client has taken no byte for `timeout` seconds
    while data waited for it.
    """

    __slots__ = (
        "_acknowledged",
        "_call",
        "_clock",
        "_pending",
        "_since",
        "_stalled",
        "_taken",
        "_timeout",
        "_transport",
        "_written",
    )

    def __init__(
        self,
        clock: IReactorTime,
        transport: Any,
        timeout: float,
        stalled: Callable[[], None],
        pending: Callable[[Any], int] = unsent,
        acknowledged: Callable[[Any], int | None] = acknowledged,
    ) -> None:
        self._clock = clock
        self._transport = transport
        self._timeout = timeout
        self._stalled = stalled
        self._pending = pending
        self._acknowledged = acknowledged
        self._written = 0
        self._taken = -1
        self._since = clock.seconds()
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Begin to look."""
        self._call = self._clock.callLater(self._timeout / LOOKS, self._look)

    def stop(self) -> None:
        """Look no more."""
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()

    def wrote(self, size: int) -> None:
        """So many bytes were written."""
        self._written += size

    def _look(self) -> None:
        waiting = self._pending(self._transport)
        # What the peer has acknowledged where the system tells, for the
        # socket's own buffer may hide a slow reader for minutes.
        taken = self._acknowledged(self._transport)
        if taken is None:
            taken = self._written - waiting
        now = self._clock.seconds()
        if not waiting or taken > self._taken:
            self._taken = taken
            self._since = now
        elif now - self._since >= self._timeout:
            self._call = None
            self._stalled()
            return
        self.start()
