"""
The signal handlers of a bridge that `twistd` or `mcpbridge` runs.

The first signal to stop finishes running requests, the second waits for them no longer, and
the third kills the processes.

An embedded bridge installs none of them: signals belong to its application.  Knows
signals, terminals and log files; must not know sessions.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger, globalLogPublisher

from mcpbridge.timers import Timer
from mcpbridge.twisted_internals import is_twistd_handler, observed_files

#: The kernel sends SIGHUP before it has hung up the whole terminal session: a terminal
#: that is still there after this time stays.
HANGUP_SECONDS = 0.5

Handler = Callable[[int, Any], None]


class Stoppable(Protocol):
    """What the signals stop; a `Bridge`."""

    def drain(self) -> Deferred[None]:
        """Finish what runs, and begin nothing; fires when the reactor may stop."""
        ...

    def draining_for(self) -> str:
        """Return what `drain` waits for, in a few words; nothing if for nothing."""
        ...

    def hurry(self) -> None:
        """Have the Deferred of `drain` fire now."""

    def kill(self) -> None:
        """Kill all processes at once."""

    def longest_stop(self) -> float:
        """Return how many seconds the stop of the reactor takes at most."""
        ...


class SignalHandlers:
    """
    The handlers of one service.

    `running` tells whether the service runs, and `bridge` is what is stopped; `report` logs
    a line for each session, `reload` reads the settings again, logs what has changed, and
    returns False if there is no file of them, and `has_terminal` tells whether the process
    has a controlling terminal.  All of them are called in the reactor's thread, not in a
    signal handler.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        running: Callable[[], bool],
        bridge: Stoppable,
        report: Callable[[], None],
        reload: Callable[[], bool] = lambda: False,
        has_terminal: Callable[[], bool] = lambda: has_controlling_terminal(),
    ) -> None:
        self._reactor = reactor
        self._running = running
        self._bridge = bridge
        self._report = report
        self._reload = reload
        self._has_terminal = has_terminal
        self._had_terminal = False
        self._look_timer = Timer(reactor)
        #: How many signals to stop have come.
        self._stops = 0
        #: The handlers that `restore` puts back.
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """
        Handle SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2, unless another handler is installed; and
        SIGTERM, until the reactor has a handler of its own (`install_stop`).

        A signal that was ignored when the process started (`nohup`) stays ignored.
        """
        self._had_terminal = self._has_terminal()
        for number, handle in (
            (signal.SIGHUP, self._hangup),
            (signal.SIGQUIT, self._quit),
            (signal.SIGUSR1, self._report),
            (signal.SIGUSR2, self._usr2),
            (signal.SIGTERM, partial(self._stop, "SIGTERM")),
        ):
            before = signal.getsignal(number)
            # twistd rotates its own log file at SIGUSR1; this module does that as well.
            if before == signal.SIG_DFL or is_twistd_handler(before):
                self._before[number] = before
                signal.signal(number, self._in_reactor(handle))

    def install_stop(self) -> None:
        """
        Replace the reactor's own handlers of SIGINT and SIGTERM, which it has installed by
        the time it runs; handlers of others stay.

        The reactor's own would stop it at once, and have twistd die of the signal at the end.
        """
        for number, own, name in (
            (signal.SIGINT, self._reactor.sigInt, "SIGINT"),
            (signal.SIGTERM, self._reactor.sigTerm, "SIGTERM"),
        ):
            if signal.getsignal(number) == own:
                signal.signal(number, self._in_reactor(partial(self._stop, name)))

    def restore(self) -> None:
        """Put back the handlers that `install` has replaced."""
        self._look_timer.stop()
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)

    # The handlers.

    def _in_reactor(self, handle: Callable[[], None]) -> Handler:
        """Make a handler that calls another in the reactor, as a signal may interrupt anything."""
        return lambda number, frame: self._reactor.callFromThread(handle)

    def _stop(self, name: str, why: str = "received") -> None:
        """Stop, or stop more quickly than before."""
        if not self._stops and not self._running():
            # The service stops already, whoever has told it to.
            self._stops = 1
        self._stops += 1
        if self._stops == 1:
            self._begin(name, why)
        elif self._stops == 2:
            self._hurry(name)
        elif self._stops == 3:
            self.log.warn("{signal}: killing the processes of all sessions", signal=name)
            self._bridge.kill()
        else:
            self.log.info("{signal}: the processes were killed already", signal=name)

    def _begin(self, name: str, why: str) -> None:
        drained = self._bridge.drain()
        left = self._bridge.draining_for()
        self.log.info(
            "{signal}: {reason}, shutting down{when}",
            signal=name,
            reason=why,
            when=f"; waiting for {left}, which the next signal gives up" if left else "",
        )
        drained.addCallback(lambda _: self._stop_reactor())
        drained.addErrback(lambda failure: self.log.failure("the bridge did not stop", failure))

    def _stop_reactor(self) -> None:
        if self._running():
            self._reactor.stop()

    def _hurry(self, name: str) -> None:
        left = self._bridge.draining_for()
        if left:
            self.log.warn(
                "{signal}: {left} given up; sessions end within {seconds:g} s, and the next signal"
                " kills their processes",
                signal=name,
                left=left,
                seconds=self._bridge.longest_stop(),
            )
        else:
            self._stopping_already(name)
        self._bridge.hurry()

    def _stopping_already(self, name: str) -> None:
        self.log.info(
            "{signal}: already stopping, which may take up to {seconds:g} s; the next signal kills"
            " the processes",
            signal=name,
            seconds=self._bridge.longest_stop(),
        )

    def _quit(self) -> None:
        self._stop("SIGQUIT")

    def _hangup(self) -> None:
        if not self._had_terminal:
            self._read_again()
        elif not self._has_terminal():
            self._terminal_gone()
        elif not self._look_timer.is_running:
            # Either its terminal is about to be gone, or somebody has sent the signal.
            self._look_timer.start(HANGUP_SECONDS, self._look_at_terminal)

    def _look_at_terminal(self) -> None:
        if self._has_terminal():
            self._read_again()
        else:
            self._terminal_gone()

    def _read_again(self) -> None:
        """Open the log files again, and read the settings."""
        reopened = ", ".join(reopen_log_files(self.log))
        if reopened:
            self.log.info("SIGHUP: reopened {files}", files=reopened)
        if self._stops or not self._running():
            self.log.warn("SIGHUP: the bridge is stopping, and does not read its settings again")
            return
        if not self._reload() and not reopened:
            self.log.info(
                "SIGHUP: there is no log file to reopen, and the settings are from no file"
                " (--config)"
            )

    def _terminal_gone(self) -> None:
        # It may come several times for one hangup, and nobody hurries with it.
        if not self._stops:
            self._stop("SIGHUP", "the terminal is gone")

    def _usr2(self) -> None:
        self.log.info(
            "SIGUSR2 does nothing; SIGUSR1 lists the sessions, SIGHUP reads the settings again"
        )


def has_controlling_terminal() -> bool:
    """Tell whether this process has a controlling terminal that has not hung up (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def reopen_log_files(log: Logger, publisher: Any = globalLogPublisher) -> Iterator[str]:
    """
    Reopen the files that Twisted logs to; yield their paths.

    A file that cannot be opened again is kept open, with a warning: a log in a renamed
    file is better than none.
    """
    for file in observed_files(publisher):
        reopen, path = getattr(file, "reopen", None), getattr(file, "path", None)
        if not callable(reopen) or not isinstance(path, str):
            continue
        try:
            # `reopen` closes the old file first, so make sure that a new one can be opened.
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666))
            reopen()
        except OSError as error:
            log.warn("cannot reopen {path}: {error}", path=path, error=error.strerror)
        else:
            yield path
