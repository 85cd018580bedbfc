"""
The signal handlers of a bridge that `twistd` or `mcpbridge` runs.

An embedded bridge installs none of them: signals belong to its application.  Knows
signals, terminals and log files; must not know sessions.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from twisted.logger import Logger, globalLogPublisher

from mcpbridge.timers import Timer
from mcpbridge.twisted_internals import is_twistd_handler, observed_files

#: The kernel sends SIGHUP before it has hung up the whole terminal session: a terminal
#: that is still there after this time stays.
HANGUP_SECONDS = 0.5

Handler = Callable[[int, Any], None]


class SignalHandlers:
    """
    The handlers of one service.

    `running` tells whether the service runs, `longest_stop` how many seconds it may
    take to stop; `report` logs a line for each session, `reload` reads the settings again,
    logs what has changed, and returns False if there is no file of them, and `has_terminal`
    tells whether the process has a controlling terminal.  All of them are called in the
    reactor's thread, not in a signal handler.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        running: Callable[[], bool],
        longest_stop: Callable[[], float],
        report: Callable[[], None],
        reload: Callable[[], bool] = lambda: False,
        has_terminal: Callable[[], bool] = lambda: has_controlling_terminal(),
    ) -> None:
        self._reactor = reactor
        self._running = running
        self._longest_stop = longest_stop
        self._report = report
        self._reload = reload
        self._has_terminal = has_terminal
        self._had_terminal = False
        self._look_timer = Timer(reactor)
        self._told_to_stop = False
        #: The handlers that `restore` puts back.
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """
        Handle SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2, unless another handler is installed.

        A signal that was ignored when the process started (`nohup`) stays ignored.
        """
        self._had_terminal = self._has_terminal()
        for number, handle in (
            (signal.SIGHUP, self._hangup),
            (signal.SIGQUIT, self._quit),
            (signal.SIGUSR1, self._report),
            (signal.SIGUSR2, self._usr2),
        ):
            before = signal.getsignal(number)
            # twistd rotates its own log file at SIGUSR1; this module does that as well.
            if before == signal.SIG_DFL or is_twistd_handler(before):
                self._before[number] = before
                signal.signal(number, self._in_reactor(handle))

    def install_stop(self) -> None:
        """
        Wrap the reactor's own handlers of SIGINT and SIGTERM, which it has installed by
        the time it runs; handlers of others stay.
        """
        for number, own in (
            (signal.SIGINT, self._reactor.sigInt),
            (signal.SIGTERM, self._reactor.sigTerm),
        ):
            if signal.getsignal(number) == own:
                signal.signal(number, self._once(own))

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

    def _once(self, stop: Handler) -> Handler:
        """Make a handler that stops the reactor, which may be told so only once."""

        def received(number: int, frame: Any) -> None:
            if self._may_stop():
                stop(number, frame)
            else:
                self._reactor.callFromThread(self._stopping_already, signal.Signals(number).name)

        return received

    def _may_stop(self) -> bool:
        first = self._running() and not self._told_to_stop
        self._told_to_stop = True
        return first

    def _stopping_already(self, name: str) -> None:
        self.log.info(
            "{signal}: already stopping, which may take up to {seconds:g} s",
            signal=name,
            seconds=self._longest_stop(),
        )

    def _stop(self, name: str, why: str) -> None:
        if self._may_stop():
            self.log.info("{signal}: {reason}, shutting down", signal=name, reason=why)
            self._reactor.stop()
        else:
            self._stopping_already(name)

    def _quit(self) -> None:
        self._stop("SIGQUIT", "received")

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
        if self._told_to_stop or not self._running():
            return
        if not self._reload() and not reopened:
            self.log.info(
                "SIGHUP: there is no log file to reopen, and the settings are from no file"
                " (--config)"
            )

    def _terminal_gone(self) -> None:
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
