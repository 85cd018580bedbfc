"""
A process that still starts when its client has left: it goes on until it has
started, so that what it does only once is done (`npx` installs a package).

It has been told who its client was, and perhaps has read that: it is given to
nobody.  Knows one process and its time; must not know who waits for it.
"""

from __future__ import annotations

from collections.abc import Callable

from mcpbridge.processes.backend_session import Adapter, BackendSession
from mcpbridge.timers import Timer


class KeptStart:
    """
    Takes the place of the client; a `Adapter`.  The process ends with its
    first message, or after so many seconds; then `over` is called.
    """

    def __init__(
        self, session: BackendSession, why: str, seconds: float, over: Callable[[], object]
    ) -> None:
        self.until = session.clock.seconds() + seconds
        #: Whether a newcomer waits for its place already.
        self.promised = False
        self.over = False
        self._session = session
        self._why = why
        self._tell = over
        self._inner: Adapter | None = session.adapter
        self._timer = Timer(session.clock)
        session.leave_client(why, self, lambda _: self._end())
        self._timer.start(seconds, lambda: self.end("it did not start in time"))

    def end(self, what: str) -> None:
        """It is needed no more."""
        self._session.life.end(f"{self._why}; its process was kept: {what}")

    def send(self, lines: list[bytes], envelopes: object = None) -> None:
        """Nobody has it."""

    def received(self, lines: list[bytes]) -> list[bytes]:
        """It has started; what it says tells of the server, and is for nobody."""
        if self._inner is not None:
            self._inner.received(lines)
        if not self.over:
            self._timer.start(0, lambda: self.end("it has started"))
        return []

    def close(self) -> None:
        """It ends."""
        self._end()
        if self._inner is not None:
            self._inner.close()

    def _end(self) -> None:
        if not self.over:
            self.over = True
            self._timer.stop()
            self._tell()
