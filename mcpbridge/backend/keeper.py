"""
The keeper of the guardian: one guardian process for the whole bridge.

Knows how the guardian is started, and started again; what it does is in
`guardian`.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

#: The pause before a guardian that died is started again: at first, at most.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0
#: How long the guardian may take to end when the bridge stops.
END_SECONDS = 5.0


class Keeper(ProcessProtocol):
    """
    Keeps a guardian for the tags of one bridge.

    Its stdin is the sign of life of the bridge: the bridge holds the other
    end, and the kernel closes it whatever the bridge dies of.
    """

    log = Logger()
    transport: Any

    def __init__(self, reactor: Any, base: int) -> None:
        self._processes: IReactorProcess = reactor
        self._clock: IReactorTime = reactor
        self._base = base
        self._stopping: Deferred[None] | None = None
        self._running = False
        self._pause = FIRST_PAUSE_SECONDS
        self._again: IDelayedCall | None = None

    def start(self) -> None:
        """Start a guardian; where that fails, say so and try again later."""
        self._again = None
        script = os.path.join(os.path.dirname(__file__), "guardian.py")
        line = [sys.executable, "-I", "-S", script, str(self._base)]
        try:
            self._processes.spawnProcess(self, line[0], line, {})
        except OSError as error:
            self.log.warn("no guardian: {error}", error=str(error))
            self._try_later()
        else:
            self._running = True

    def stop(self) -> Deferred[None]:
        """The bridge has stopped: let the guardian look once more, and end."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if not self._running:
            return succeed(None)
        if self._stopping is None:
            self._stopping = Deferred()
            self.transport.closeStdin()
            self._again = self._clock.callLater(END_SECONDS, self._kill)
        return self._stopping

    def errReceived(self, data: bytes) -> None:
        """The guardian complains."""
        self.log.warn("guardian: {text!r}", text=data[:500].decode("utf-8", "replace"))

    def processEnded(self, reason: Failure) -> None:
        """The guardian is gone: as it should, or it is started again."""
        self._running = False
        if self._stopping is None:
            self.log.warn("the guardian ended: {reason}", reason=reason.getErrorMessage())
            self._try_later()
            return
        if self._again is not None:
            self._again.cancel()
            self._again = None
        stopping, self._stopping = self._stopping, None
        stopping.callback(None)

    def _try_later(self) -> None:
        self._again = self._clock.callLater(self._pause, self.start)
        self._pause = min(self._pause * 2, LONGEST_PAUSE_SECONDS)

    def _kill(self) -> None:
        self._again = None
        try:
            self.transport.signalProcess(signal.SIGKILL)
        except ProcessExitedAlready:
            pass
