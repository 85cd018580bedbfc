"""
Clean up after bridges that were killed together with their watchdogs.

`Journal` writes this bridge's own state file; `Recovery` finds those of dead
bridges, and runs a watchdog to clean up after each.  `state_file` describes
the file, `watchdog_program` what a watchdog does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.config.tuning import CLEANUP_SECONDS, MAX_CLEANUPS
from mcpbridge.guard import guarded
from mcpbridge.stdio.cleanup_records import (
    CleanupRecords,
    ContainersRecord,
    DirectoryRecord,
    ProcessRecord,
    Record,
)
from mcpbridge.stdio.state_file import (
    FORGET_SECONDS,
    NoStateDirectory,
    Place,
    StateFile,
    is_safe_directory,
    open_state_directory,
    take_dead,
)
from mcpbridge.stdio.watchdog import LOGGED_BYTES, set_tag, watchdog_command
from mcpbridge.timers import Timer

#: Records of processes are written to the state file after so long, all others at once.
SAVE_SECONDS = 1.0
#: So much of the end of a watchdog's output is kept: its report is shorter.
REPORT_BYTES = 64 * 1024
#: The members of a report.
_REPORTED = {"processes", "left", "containers", "errors"}


class Journal:
    """Keeps this bridge's state file up to date, if there is a directory for it."""

    log = Logger()

    def __init__(self, clock: IReactorTime, records: CleanupRecords) -> None:
        self._records = records
        self._file: StateFile | None = None
        self._timer = Timer(clock)

    def open(self, folders: Sequence[str], base: int) -> None:
        """Make the file in the first usable one of these directories, or log why there is none."""
        try:
            self._file = StateFile.create(open_state_directory(folders), base)
        except (OSError, NoStateDirectory) as error:
            self.log.info(
                "no state file ({error}): if this bridge and its watchdog are killed together, the"
                " next start cannot clean up what they leave; set state_dir",
                error=str(error),
            )
        else:
            self._save()

    def changed(self, record: Record) -> None:
        """Write the records soon: this one was added or dropped."""
        if self._file is None:
            return
        if not isinstance(record, ProcessRecord):
            self._save()
        elif not self._timer.is_running:
            self._timer.start(SAVE_SECONDS, self._save)

    def close(self, *, clean: bool) -> None:
        """Stop writing; remove the file if the bridge has left nothing (`clean`)."""
        self._timer.stop()
        file, self._file = self._file, None
        if file is not None:
            if clean:
                file.remove()
            else:
                file.release()

    def _save(self) -> None:
        self._timer.stop()
        if self._file is None:
            return
        try:
            self._file.save(self._records)
        except OSError as error:
            self.log.warn(
                "cannot write the state file {path}: {error}",
                path=self._file.path,
                error=error.strerror,
            )


class Cleaner(ProcessProtocol):
    """
    A watchdog that cleans up after one dead bridge.

    `done` fires with its report, or with None if it made none.
    """

    log = Logger()
    transport: Any

    def __init__(self, clock: IReactorTime, records: Sequence[Record], tag: int) -> None:
        self._tag = tag
        self._records = records
        self._output = b""
        self._time_limit = Timer(clock)
        self.done: Deferred[dict[str, Any] | None] = Deferred()

    def connectionMade(self) -> None:
        """Send it all records, and end its input: the bridge is dead."""
        set_tag(self.transport.pid, self._tag)
        orders = [json.dumps({"add": each.as_json()}) for each in self._records]
        self.transport.write("".join(f"{each}\n" for each in orders).encode())
        self.transport.closeStdin()
        self._time_limit.start(CLEANUP_SECONDS, self.kill)

    def outReceived(self, data: bytes) -> None:
        """Keep the end of its output: the last line is its report."""
        self._output = (self._output + data)[-REPORT_BYTES:]

    def errReceived(self, data: bytes) -> None:
        """Log what it writes to stderr."""
        self.log.warn("watchdog: {text!r}", text=data[:LOGGED_BYTES].decode("utf-8", "replace"))

    def processEnded(self, reason: Failure) -> None:
        """Read the report, and fire `done`."""
        self._time_limit.stop()
        try:
            report = json.loads(self._output.splitlines()[-1])
        except (IndexError, ValueError):
            report = None
        # An upgrade may have replaced the program by one that reports otherwise.
        whole = isinstance(report, dict) and report.keys() >= _REPORTED
        self.done.callback(report if whole else None)

    def kill(self) -> None:
        """Kill it; the state file stays for the next start."""
        try:
            self.transport.signalProcess("KILL")
        except ProcessExitedAlready:
            pass


class Recovery:
    """
    Cleans up after dead bridges of this user, one after the other.

    A watchdog process does it, since it would block the reactor.  `tag` is
    that process's own: this bridge's base, which no session has.
    """

    log = Logger()

    def __init__(self, reactor: Any, tag: int) -> None:
        self._processes: IReactorProcess = reactor
        self._clock: IReactorTime = reactor
        self._tag = tag
        self._cleaner: Cleaner | None = None
        self._dead: Iterator[StateFile] = iter(())
        #: So many more bridges are cleaned up after.
        self._left = 0
        #: So many files were left to bridges elsewhere.
        self._elsewhere = 0
        self._stopping = False
        self._stopped: Deferred[None] | None = None

    def start(self, folders: Sequence[str]) -> None:
        """Look for state files of dead bridges in these directories, and clean up."""
        self._stopping = False
        self._left = MAX_CLEANUPS
        self._elsewhere = 0
        safe = [folder for folder in folders if is_safe_directory(folder)]
        self._dead = (file for folder in safe for file in take_dead(folder))
        guarded(self.log, "looking for bridges that were killed", self._next)

    def stop(self) -> Deferred[None]:
        """Interrupt the present cleanup, which the next start repeats; fires when it has ended."""
        self._stopping = True
        if self._cleaner is None:
            return succeed(None)
        if self._stopped is None:
            self._stopped = Deferred()
            self._cleaner.kill()
        return self._stopped

    def _next(self) -> None:
        here = Place.here()
        for file in self._dead:
            if self._stopping:
                file.release()
                return
            if not self._left:
                file.release()
                self.log.warn(
                    "more bridges were killed than one start cleans up after (MAX_CLEANUPS);"
                    " the next start goes on"
                )
                break
            if self._may_clean(file, here):
                self._left -= 1
                self._clean(file)
                return
        if self._elsewhere:
            self.log.info(
                "{count} state files of bridges on other machines or in other PID namespaces"
                " are left alone",
                count=self._elsewhere,
            )

    def _may_clean(self, file: StateFile, here: Place) -> bool:
        """Return True if pids and container engines mean the same here as to that bridge."""
        place = file.state.place
        same_boot = (place.boot, place.pid_namespace) == (here.boot, here.pid_namespace)
        if same_boot and place.host == here.host:
            return True
        if not same_boot and (place.host != here.host or place.boot == here.boot):
            # That is another machine, or a container on this one: a bridge there cleans up.
            if file.age() > FORGET_SECONDS:
                file.remove()
            else:
                self._elsewhere += 1
                file.release()
            return False
        self._leave_containers(file)
        if same_boot:
            # The machine was renamed since.
            return True
        # The machine was restarted since: no process is left, but perhaps files are.
        if any(isinstance(each, DirectoryRecord) for each in file.records()):
            return True
        file.remove()
        return False

    def _leave_containers(self, file: StateFile) -> None:
        for each in file.records():
            if isinstance(each, ContainersRecord):
                self.log.warn(
                    "a bridge that was killed (pid {pid}, on {host!r} before a restart or under"
                    " another name) may have left containers: look at"
                    " `{engine} ps -a --filter {filter}`",
                    pid=file.state.pid,
                    host=file.state.place.host,
                    engine=" ".join(each.engine),
                    filter=each.filter,
                )

    def _clean(self, file: StateFile) -> None:
        records = [each for each in file.records() if _may_clean_up(each, file.state.place)]
        cleaner = Cleaner(self._clock, records, self._tag)
        cleaner.done.addCallback(self._cleaned, file)
        cleaner.done.addErrback(lambda why: self.log.failure("recovery failed", why))
        line = watchdog_command(file.state.base, self._tag)
        self._cleaner = cleaner
        try:
            self._processes.spawnProcess(cleaner, sys.executable, line, {})
        except OSError as error:
            self._cleaner = None
            file.release()
            self.log.warn(
                "cannot clean up after a bridge that was killed (pid {pid}): {error}",
                pid=file.state.pid,
                error=str(error),
            )

    def _cleaned(self, report: dict[str, Any] | None, file: StateFile) -> None:
        self._cleaner = None
        pid = file.state.pid
        if report is None or report["left"] or report["errors"]:
            file.release()
            if not self._stopping:
                self.log.warn(
                    "a bridge that was killed (pid {pid}) may have left something that cannot be"
                    " ended: {report}; the next start tries again",
                    pid=pid,
                    report=report or "the watchdog did not report",
                )
        else:
            file.remove()
            self.log.info(
                "a bridge that was killed (pid {pid}) had left {processes} processes and"
                " {containers} containers{files}: they are ended",
                pid=pid,
                processes=report["processes"],
                containers=report["containers"],
                files=", and temporary files" if report.get("directories") else "",
            )
        if self._stopping:
            stopped, self._stopped = self._stopped, None
            if stopped is not None:
                stopped.callback(None)
        else:
            self._next()


def _may_clean_up(record: Record, place: Place) -> bool:
    """Return True if a record of a bridge at this place means the same thing here."""
    here = Place.here()
    match record:
        case DirectoryRecord():
            return True
        case ProcessRecord():
            return (place.boot, place.pid_namespace) == (here.boot, here.pid_namespace)
    return place == here
