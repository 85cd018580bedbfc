"""
The bridge's side of the watchdog: one watchdog process for the whole bridge.

Knows how the watchdog is started, and started again, and what it is told;
what it does is in `watchdog_program`.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mcpbridge.config.tuning import MAX_RECORDS
from mcpbridge.rate_limited_log import RateLimitedLog
from mcpbridge.stdio.cleanup_records import CleanupRecords, Record
from mcpbridge.stdio.process_tags import LIMITS

#: The pause before a watchdog that died is started again: at first, at most.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0
#: A watchdog that has run for so long is no failed start: the pause is the first again.
SETTLED_SECONDS = 60.0
#: How long the watchdog may take to end when the bridge stops.
END_SECONDS = 5.0


@implementer(IPushProducer)
class Watchdog(ProcessProtocol):
    """
    Keeps a watchdog for the tags of one bridge.

    Its stdin is the sign of life of the bridge: the bridge holds the other
    end, and the kernel closes it whatever the bridge dies of.  The watchdog
    is told through it what the tags do not find.

    A watchdog that does not read (stopped, say) costs no memory: while the
    pipe is full nothing is written, and then the table of records, which is
    bounded, is written as a whole.

    `changed` is called with each record that `records` has more or less.
    """

    log = Logger()
    transport: Any

    def __init__(
        self,
        reactor: Any,
        base: int,
        records: CleanupRecords,
        changed: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self._processes: IReactorProcess = reactor
        self._clock: IReactorTime = reactor
        self._base = base
        self._changed = changed
        self._records = records
        self._complaints = RateLimitedLog(reactor)
        #: Whether the pipe is full, and whether the watchdog has missed something since.
        self._full = False
        self._missed = False
        self._stopping: Deferred[bool] | None = None
        self._running = False
        self._started = 0.0
        self._pause = FIRST_PAUSE_SECONDS
        self._again: IDelayedCall | None = None

    def start(self) -> None:
        """Start a watchdog; where that fails, say so and try again later."""
        self._again = None
        try:
            self._processes.spawnProcess(self, sys.executable, watchdog_command(self._base), {})
        except OSError as error:
            self.log.warn("cannot start the watchdog: {error}; trying again", error=str(error))
            self._try_later()

    def tell(self, owner: int | str, record: Record) -> bool:
        """
        Have the watchdog clean this up too if the bridge dies.

        `owner` is a session's tag or any other key; see `forget`.  Returns
        False where `MAX_RECORDS` are kept already: then it is not.
        """
        if self._records.is_full():
            self._complain()
            return False
        if self._records.add(owner, record):
            self._write({"add": record.as_json()})
            self._changed(record)
        return True

    def forget(self, owner: int | str, record: Record | None = None) -> None:
        """A record of an owner, or all that it has, needs no cleaning up any more."""
        for each in self._records.drop(owner, record):
            self._write({"drop": each.as_json()})
            self._changed(each)

    def stop(self) -> Deferred[bool]:
        """
        The bridge has stopped: let the watchdog look once more, and end.

        Fires with whether it says that nothing is left.
        """
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if not self._running:
            return succeed(False)
        if self._stopping is None:
            self._stopping = Deferred()
            # One that was stopped (SIGSTOP) would not notice.
            self._signal(signal.SIGCONT)
            self.transport.unregisterProducer()
            self.transport.closeStdin()
            self._again = self._clock.callLater(END_SECONDS, self._kill)
        return self._stopping

    # ProcessProtocol.

    def connectionMade(self) -> None:
        """The watchdog was spawned: it gets to know what the one before knew."""
        self._running = True
        self._started = self._clock.seconds()
        self._full = self._missed = False
        set_tag(self.transport.pid, self._base)
        self.transport.registerProducer(self, True)
        self._write_all()

    def errReceived(self, data: bytes) -> None:
        """The watchdog complains."""
        self.log.warn("watchdog: {text!r}", text=data[:500].decode("utf-8", "replace"))

    def processEnded(self, reason: Failure) -> None:
        """The watchdog is gone: as it should, or it is started again."""
        self._running = False
        if self._stopping is None:
            self.log.warn("the watchdog ended: {reason}", reason=reason.getErrorMessage())
            if self._clock.seconds() - self._started >= SETTLED_SECONDS:
                self._pause = FIRST_PAUSE_SECONDS
            self._try_later()
            return
        if self._again is not None:
            self._again.cancel()
            self._again = None
        stopping, self._stopping = self._stopping, None
        stopping.callback(reason.check(ProcessDone) is not None)

    # IPushProducer, for the pipe.

    def pauseProducing(self) -> None:
        """The pipe is full."""
        self._full = True

    def resumeProducing(self) -> None:
        """The pipe is empty: what was missed since is in the whole table."""
        self._full = False
        if self._missed:
            self._missed = False
            self._write_all()

    def stopProducing(self) -> None:
        """The watchdog reads no more: it is about to end, and another one will be told."""
        self._full = True

    # What follows from them.

    def _write_all(self) -> None:
        """The whole table, in one piece."""
        orders: list[dict[str, Any]] = [{"add": each.as_json()} for each in self._records]
        self._write({"reset": True}, *orders, {"complete": True})

    def _write(self, *orders: dict[str, Any]) -> None:
        if not self._running:
            # The next one is told everything.
            return
        if self._full:
            self._missed = True
            return
        self.transport.write(b"".join(json.dumps(each).encode() + b"\n" for each in orders))

    def _complain(self) -> None:
        if self._complaints.due() is not None:
            self.log.warn(
                "the watchdog is told of {most} processes and containers already, the most it"
                " may be: others are not cleaned up by it if the bridge is killed",
                most=MAX_RECORDS,
            )

    def _try_later(self) -> None:
        self._again = self._clock.callLater(self._pause, self.start)
        self._pause = min(self._pause * 2, LONGEST_PAUSE_SECONDS)

    def _signal(self, number: int) -> None:
        try:
            self.transport.signalProcess(number)
        except ProcessExitedAlready:
            pass

    def _kill(self) -> None:
        self._again = None
        self._signal(signal.SIGKILL)


def set_tag(pid: int | None, tag: int) -> None:
    """
    Give a watchdog its tag as soon as it is spawned, before it does so itself.

    One that is stopped or killed while its interpreter starts would carry
    none, and no later start would find it.
    """
    try:
        if pid is not None:
            for limit in LIMITS:
                resource.prlimit(pid, limit, (tag, tag))
    except (OSError, ValueError, AttributeError):
        # It has exited already, or this is not Linux: it does it itself.
        pass


def watchdog_command(base: int, tag: int | None = None) -> list[str]:
    """The command line of a watchdog for the tags of `base`, with a tag of its own."""
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "watchdog_program.py")
    own = [] if tag is None else [str(tag)]
    return [sys.executable, "-I", "-S", script, str(base), *own]
