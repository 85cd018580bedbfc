"""
Run one command of a container engine's CLI, with bounds on its time and output.
"""

from __future__ import annotations

import signal
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from mcpbridge.config.tuning import ENGINE_COMMAND_SECONDS, ENGINE_OUTPUT_BYTES
from mcpbridge.stdio.process_tree import signal_group
from mcpbridge.timers import Timer

#: The log shows so much of the end of an engine's error output.
SHOWN_ERROR_CHARS = 200


class EngineFailed(Exception):
    """A command of the engine failed; the text is its error output, or the reason."""


class EngineCommand(ProcessProtocol):
    """
    One command of an engine, bounded by `ENGINE_COMMAND_SECONDS` and `ENGINE_OUTPUT_BYTES`.

    `done` fires with its stdout, or fails with `EngineFailed`, once the
    process is reaped and its pipes are closed.
    """

    transport: Any

    def __init__(self, clock: IReactorTime) -> None:
        self._output = bytearray()
        self._errors = bytearray()
        self._problem = ""
        self._time_limit = Timer(clock)
        self.done: Deferred[str] = Deferred()

    def connectionMade(self) -> None:
        """Close its stdin, and start its time limit."""
        self._time_limit.start(
            ENGINE_COMMAND_SECONDS, self._give_up, f"no answer in {ENGINE_COMMAND_SECONDS:g} s"
        )
        self.transport.closeStdin()

    def outReceived(self, data: bytes) -> None:
        """Collect its output."""
        self._output += data
        if len(self._output) > ENGINE_OUTPUT_BYTES:
            self._output.clear()
            self._give_up(f"an answer of more than {ENGINE_OUTPUT_BYTES} bytes")

    def errReceived(self, data: bytes) -> None:
        """Keep the end of its error output, which says most."""
        self._errors = (self._errors + data)[-ENGINE_OUTPUT_BYTES:]

    def processEnded(self, reason: Failure) -> None:
        """Fire `done`: the process is reaped, and its pipes are closed."""
        self._time_limit.stop()
        if self._problem or not isinstance(reason.value, ProcessDone):
            lines = self._errors.decode("utf-8", "replace").split("\n")
            shown = " ".join(lines).strip()[-SHOWN_ERROR_CHARS:]
            self.done.errback(EngineFailed(self._problem or shown or reason.getErrorMessage()))
        else:
            self.done.callback(self._output.decode("utf-8", "replace"))

    def _give_up(self, problem: str) -> None:
        """Kill it, and close its pipes, which its descendants may hold open."""
        self._time_limit.stop()
        if not self._problem:
            self._problem = problem
            if self.transport.pid is not None:
                signal_group(self.transport.pid, signal.SIGKILL)
            self.transport.loseConnection()
