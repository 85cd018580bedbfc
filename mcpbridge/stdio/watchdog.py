"""
The bridge's side of the watchdog: start it, restart it, tell it what to clean up.

What the watchdog itself does is in `watchdog_program`.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from random import random
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IPushProducer, IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mcpbridge.config.tuning import MAX_RECORDS
from mcpbridge.rate_limited_log import RateLimitedLog
from mcpbridge.stdio.cleanup_records import CleanupRecords, DirectoryRecord, Record
from mcpbridge.stdio.process_tags import LIMITS
from mcpbridge.stdio.watchdog_program import DIRECTORY_SECONDS
from mcpbridge.timers import Timer, backoff

#: The pause before a watchdog that died is started again: the first, the longest.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0
#: A watchdog that ran for so long had started well: the next pause is the first again.
SETTLED_SECONDS = 60.0
#: How long the watchdog may take to end when the bridge stops, beside `DIRECTORY_SECONDS` if
#: there is a directory to be removed.
END_SECONDS = 5.0
#: So much of what the watchdog writes to stderr at once is logged.
LOGGED_BYTES = 500


@implementer(IPushProducer)
class Watchdog(ProcessProtocol):
    """
    Keeps one watchdog process running for the tags of one bridge.

    The watchdog waits for the end of its stdin.  The bridge holds the other
    end of that pipe, and the kernel closes it whatever the bridge dies of.
    Through the same pipe the watchdog is told what it cannot find by tags.

    A watchdog that does not read, because it was stopped, costs no memory:
    while the pipe is full nothing is written, and afterwards the table of
    records, which is bounded, is written as a whole.

    `changed` is called with each record that is added to `records` or leaves them.
    """

    log = Logger()
    transport: Any

    def __init__(
        self,
        reactor: Any,
        base: int,
        records: CleanupRecords,
        changed: Callable[[Record], None] = lambda record: None,
        *,
        jitter: Callable[[], float] = random,
    ) -> None:
        self._processes: IReactorProcess = reactor
        self._clock: IReactorTime = reactor
        self._base = base
        self._changed = changed
        self._records = records
        self._records_full_log = RateLimitedLog(reactor)
        #: True while the pipe is full; `_missed` if something was not written since.
        self._full = False
        self._missed = False
        self._stopping: Deferred[bool] | None = None
        self._running = False
        self._started = 0.0
        self._pause = backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, jitter)
        self._failures = 0
        #: The next start, or at a stop the kill.
        self._timer = Timer(reactor)

    def start(self) -> None:
        """Start a watchdog; if that fails, log it and try again later."""
        try:
            self._processes.spawnProcess(self, sys.executable, watchdog_command(self._base), {})
        except OSError as error:
            self.log.warn("cannot start the watchdog: {error}; trying again", error=str(error))
            self._start_later()

    def add(self, owner: int | str, record: Record) -> bool:
        """
        Have the watchdog clean this up, too, if the bridge dies.

        `owner` is a session's tag or any other key; `drop` takes the same.
        Returns False if `MAX_RECORDS` are kept already: then it is not cleaned up.
        """
        if self._records.is_full():
            self._log_full()
            return False
        if self._records.add(owner, record):
            self._write({"add": record.as_json()})
            self._changed(record)
        return True

    def drop(self, owner: int | str, record: Record | None = None) -> None:
        """Drop a record of an owner, or all of them: nothing is left to clean up."""
        for each in self._records.drop(owner, record):
            self._write({"drop": each.as_json()})
            self._changed(each)

    @property
    def is_running(self) -> bool:
        """True while there is a watchdog process."""
        return self._running

    def stop(self) -> Deferred[bool]:
        """
        Let the watchdog clean up once more and end, since the bridge stops.

        Returns a `Deferred` that fires with True if it reports that nothing is left.
        """
        self._timer.stop()
        if not self._running:
            return succeed(False)
        if self._stopping is None:
            self._stopping = Deferred()
            # A stopped process (SIGSTOP) would not see the end of its stdin.
            self._signal(signal.SIGCONT)
            self.transport.unregisterProducer()
            self.transport.closeStdin()
            has_directories = any(isinstance(each, DirectoryRecord) for each in self._records)
            seconds = END_SECONDS + (DIRECTORY_SECONDS if has_directories else 0)
            self._timer.start(seconds, self._signal, signal.SIGKILL)
        return self._stopping

    # ProcessProtocol.

    def connectionMade(self) -> None:
        """Tag the new watchdog, and tell it all records."""
        self._running = True
        self._started = self._clock.seconds()
        self._full = self._missed = False
        set_tag(self.transport.pid, self._base)
        self.transport.registerProducer(self, True)
        self._write_all()

    def errReceived(self, data: bytes) -> None:
        """Log what the watchdog writes to its stderr."""
        text = data[:LOGGED_BYTES].decode("utf-8", "replace")
        self.log.warn("watchdog: {text!r}", text=text)

    def processEnded(self, reason: Failure) -> None:
        """Fire the Deferred of `stop`, or start another watchdog."""
        self._running = False
        if self._stopping is None:
            self.log.warn("the watchdog ended: {reason}", reason=reason.getErrorMessage())
            if self._clock.seconds() - self._started >= SETTLED_SECONDS:
                self._failures = 0
            self._start_later()
            return
        self._timer.stop()
        stopping, self._stopping = self._stopping, None
        stopping.callback(reason.check(ProcessDone) is not None)

    # IPushProducer: the pipe to the watchdog.

    def pauseProducing(self) -> None:
        """Write nothing more: the pipe is full."""
        self._full = True

    def resumeProducing(self) -> None:
        """Write the whole table if anything was missed while the pipe was full."""
        self._full = False
        if self._missed:
            self._missed = False
            self._write_all()

    def stopProducing(self) -> None:
        """Write nothing more: this watchdog does not read, and the next one is told all."""
        self._full = True

    # Helpers.

    def _write_all(self) -> None:
        orders: list[dict[str, Any]] = [{"add": each.as_json()} for each in self._records]
        self._write({"reset": True}, *orders, {"complete": True})

    def _write(self, *orders: dict[str, Any]) -> None:
        if not self._running:
            # The next watchdog is told all records.
            return
        if self._full:
            self._missed = True
            return
        self.transport.write(b"".join(json.dumps(each).encode() + b"\n" for each in orders))

    def _log_full(self) -> None:
        if self._records_full_log.due() is not None:
            self.log.warn(
                "the watchdog knows {most} processes and containers, the maximum: it does not"
                " clean up any others if the bridge is killed",
                most=MAX_RECORDS,
            )

    def _start_later(self) -> None:
        self._timer.start(self._pause(self._failures), self.start)
        self._failures += 1

    def _signal(self, number: int) -> None:
        try:
            self.transport.signalProcess(number)
        except ProcessExitedAlready:
            pass


def set_tag(pid: int | None, tag: int) -> None:
    """
    Tag a watchdog as soon as it is spawned, before it tags itself.

    One that is stopped or killed while its interpreter starts would otherwise
    carry no tag, and no later start of a bridge would find it.
    """
    try:
        if pid is not None:
            for limit in LIMITS:
                resource.prlimit(pid, limit, (tag, tag))
    except (OSError, ValueError, AttributeError):
        # It has exited already, or this is not Linux.
        pass


def watchdog_command(base: int, tag: int | None = None) -> list[str]:
    """
    Return the command line of a watchdog for the tags of `base`.

    `tag` is the watchdog's own; `base` by default.
    """
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "watchdog_program.py")
    own = [] if tag is None else [str(tag)]
    return [sys.executable, "-I", "-S", script, str(base), *own]
