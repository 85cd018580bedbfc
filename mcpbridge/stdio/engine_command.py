"""
One command of a container engine's CLI: its output, its bounds, its end.
"""

from __future__ import annotations

import signal
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from mcpbridge.config.tuning import ENGINE_COMMAND_SECONDS, ENGINE_OUTPUT_BYTES
from mcpbridge.stdio.process_tree import signal_group

#: How much of an engine's complaint the log shows.
COMPLAINT_CHARS = 200


class EngineFailed(Exception):
    """A command of the engine failed; the text is what it said."""


class EngineCommand(ProcessProtocol):
    """
    One command of an engine, with a time limit and a bound on its output.

    `done` fires with its stdout, or fails with `EngineFailed`, once the
    process is reaped and its pipes are closed.
    """

    transport: Any

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._output = bytearray()
        self._errors = bytearray()
        self._problem = ""
        self._limit: IDelayedCall | None = None
        self.done: Deferred[str] = Deferred()

    def connectionMade(self) -> None:
        """It runs, and gets no input."""
        self._limit = self._clock.callLater(
            ENGINE_COMMAND_SECONDS, self._give_up, f"no answer in {ENGINE_COMMAND_SECONDS:g} s"
        )
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        """Part of its answer."""
        self._output += data
        if len(self._output) > ENGINE_OUTPUT_BYTES:
            self._output.clear()
            self._give_up(f"an answer of more than {ENGINE_OUTPUT_BYTES} bytes")

    def errReceived(self, data: bytes) -> None:
        """Part of a complaint; its end says most."""
        self._errors = (self._errors + data)[-ENGINE_OUTPUT_BYTES:]

    def processEnded(self, reason: Failure) -> None:
        """It is reaped, and its pipes are closed."""
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
        if self._problem or not isinstance(reason.value, ProcessDone):
            lines = self._errors.decode("utf-8", "replace").split("\n")
            said = " ".join(lines).strip()[-COMPLAINT_CHARS:]
            self.done.errback(EngineFailed(self._problem or said or reason.getErrorMessage()))
        else:
            self.done.callback(self._output.decode("utf-8", "replace"))

    def _give_up(self, problem: str) -> None:
        """End it; what it has started may hold its pipes, so they are closed too."""
        if self._limit is not None and self._limit.active():
            self._limit.cancel()
        self._limit = None
        if not self._problem:
            self._problem = problem
            if self.transport.pid is not None:
                signal_group(self.transport.pid, signal.SIGKILL)
            self.transport.loseConnection()
