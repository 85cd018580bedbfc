"""
The watchdog: a small process beside the bridge that cleans up if the bridge is killed.

It reads its standard input.  When that ends, the bridge has stopped or was
killed; then the watchdog kills every process that carries a tag of the
bridge, kills every process that it was told of, and removes the containers
and directories that it was told of.  Run it as `python -I -S watchdog_program.py BASE [TAG]`;
it needs only the standard library and the modules beside it.

BASE is the base of the bridge's tags, TAG the watchdog's own tag (default:
BASE).  A starting bridge runs this program to clean up after a dead one: with
the BASE of the dead bridge, a TAG of its own, and an input that ends at once.

The input is JSON, one object a line:

`{"add": RECORD}`      clean this up when the input ends
`{"drop": RECORD}`     do not clean this up
`{"reset": true}`      forget all records; all present ones follow
`{"complete": true}`   those were all

where RECORD is `{"process": [PID, START_TIME]}`, START_TIME being field 22 of
`/proc/PID/stat`; or `{"directory": [PATH, DEVICE, INODE]}`, a directory with all
that is in it, if that one is there still; or `{"containers": {"engine": [PROGRAM,
ARG, ...], "filter": FILTER, "environment": {NAME: VALUE, ...}}}`: all containers
that `ENGINE ps --filter FILTER` lists.

It writes one line to standard output when it waits, `{"ready": true}`, and its
report at the end, `{"processes": FOUND, "left": PROCESSES_LEFT, "containers":
REMOVED, "directories": REMOVED, "errors": [TEXT, ...]}`.

Everything is imported before the wait: when the bridge dies, an upgrade may
have removed the files or replaced them by another version's.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from kill_pass import kill_pass  # type: ignore[import-not-found]
    from process_tags import LIMITS  # type: ignore[import-not-found]
    from procfs import find_tagged  # type: ignore[import-not-found]
    from remove_tree import remove_tree  # type: ignore[import-not-found]
else:
    from mcpbridge.stdio.kill_pass import kill_pass
    from mcpbridge.stdio.process_tags import LIMITS
    from mcpbridge.stdio.procfs import find_tagged
    from mcpbridge.stdio.remove_tree import remove_tree

#: The watchdog gives up killing after so long.
GIVE_UP_SECONDS = 30.0
#: The pause between two looks at the process table.
PAUSE_SECONDS = 0.02
#: So many looks in a row must find nothing: a process may be born behind the
#: place in /proc that a look has passed.
CLEAN_LOOKS = 2
#: How long one command of a container engine may take.
ENGINE_SECONDS = 20.0
#: A container engine that fails is tried so often, with this pause between.
ENGINE_TRIES = 3
ENGINE_PAUSE_SECONDS = 1.0
#: How long an engine may go on creating a container after its CLI was killed.
BIRTH_SECONDS = 5.0
#: The label of a container whose anonymous volumes go with it (`containers`).
VOLUMES_LABEL = "mcpbridge.remove-volumes"
#: How the names of directories begin; no other one is removed.
DIRECTORY_PREFIX = "mcpbridge-tmp-"
#: How long the removal of one directory may take.
DIRECTORY_SECONDS = 60.0
#: A longer line of the input is dropped, and stderr says so: no record is as long.
LINE_BYTES = 1024 * 1024
#: Signals that the watchdog cannot survive, or whose default it must keep: without
#: the default of SIGCHLD the exit statuses of an engine's commands would be lost.
LEFT_ALONE = frozenset(
    {
        signal.SIGKILL,
        signal.SIGSTOP,
        signal.SIGCONT,
        signal.SIGCHLD,
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGABRT,
        signal.SIGTRAP,
        signal.SIGSYS,
    }
)

Record = dict[str, Any]


def outlive_signals() -> None:
    """
    Survive all signals but those in `LEFT_ALONE`.

    It takes a handler that does nothing, since the container engine's
    programs would inherit an ignored signal.  Python resumes a read that a
    handler has interrupted (PEP 475).
    """
    for number in signal.valid_signals() - LEFT_ALONE:
        try:
            signal.signal(number, _do_nothing)
        except (OSError, ValueError):
            # The C library reserves some signals.
            pass


def _do_nothing(number: int, frame: object) -> None:
    pass


class Records:
    """The records of what to clean up, from the lines of the input."""

    def __init__(self) -> None:
        self._table: dict[str, Record] = {}
        #: The records before a reset, until the new ones are complete.  If the input ends in
        #: between, the records of both tables count.
        self._before: dict[str, Record] = {}
        self._partial = b""
        #: True until the end of a line that is dropped.
        self._dropping = False

    def receive(self, data: bytes) -> None:
        """Take bytes of the input, in pieces of any size."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        if lines and self._dropping:
            del lines[0]
            self._dropping = False
        if len(self._partial) > LINE_BYTES and not self._dropping:
            self._dropping = True
            complain(
                f"a record of more than {LINE_BYTES} bytes (LINE_BYTES) is dropped: what it names"
                " is not cleaned up if the bridge is killed"
            )
        if self._dropping:
            self._partial = b""
        for line in lines:
            try:
                self._follow(json.loads(line))
            except (ValueError, TypeError, AttributeError):
                # The tags still lead to most processes: go on.
                continue

    def _follow(self, order: dict[str, Any]) -> None:
        if "add" in order:
            self._table[json.dumps(order["add"], sort_keys=True)] = order["add"]
        elif "drop" in order:
            self._table.pop(json.dumps(order["drop"], sort_keys=True), None)
        elif "reset" in order:
            self._before = {**self._before, **self._table}
            self._table = {}
        elif "complete" in order:
            self._before = {}

    def all(self) -> list[Record]:
        """Return all records."""
        return list({**self._before, **self._table}.values())


def read_records(descriptor: int) -> list[Record]:
    """Read the input to its end; return what is to be cleaned up."""
    records = Records()
    while data := os.read(descriptor, 65536):
        records.receive(data)
    return records.all()


def kill_all(base: int) -> int:
    """Kill all processes with a tag of this base; return how many are left."""
    give_up = time.monotonic() + GIVE_UP_SECONDS
    clean = 0
    me = os.getpid()
    left: list[int] = []
    while clean < CLEAN_LOOKS and time.monotonic() < give_up:
        try:
            kill_pass(base)
            # A zombie holds no resources, and its parent has to reap it.
            left = [each.pid for each in find_tagged(base) if not each.zombie and each.pid != me]
        except OSError:
            # A process that was not seen may still be there.
            left = [-1]
        clean = 0 if left else clean + 1
        time.sleep(PAUSE_SECONDS)
    return len(left)


def count_tagged(base: int) -> int:
    """Count the living processes of sessions with a tag of this base, as far as can be seen."""
    try:
        # `base` itself is the tag of the bridge's watchdog.
        return sum(not each.zombie and each.tag != base for each in find_tagged(base))
    except OSError:
        # The number is only for the report, so go on and kill: the bridge may have died of
        # the same lack of descriptors.
        return 0


def start_time(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since boot; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            # The name, in parentheses, may contain anything: read what follows it.
            fields = stat.read(4096).rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") and int(fields[17]) <= 1 else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def kill_process(pid: int, started: int) -> bool:
    """
    Kill a process if it is the one that was started at that time; return True if it is.

    The descriptor is opened before the time is read, so that the signal
    reaches that process or nobody (pidfd_open(2)).  Without a descriptor the
    time is proof enough: a pid is reused only after all others.
    """
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except OSError:
        process = -1
    try:
        if start_time(pid) != started:
            return False
        if process >= 0:
            signal.pidfd_send_signal(process, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    finally:
        if process >= 0:
            os.close(process)
    return True


def remove_containers(
    engine: list[str], wanted: str, environment: dict[str, str]
) -> tuple[int, str]:
    """
    Remove all containers that a filter, `label=NAME=VALUE`, finds, running or not.

    Returns their number, and an error text, "" if none is left.  The CLIs died
    with the bridge, but the engine may still create a container that one of
    them has asked for: none is left if none was found for `BIRTH_SECONDS`.
    """
    removed: set[str] = set()
    failures = 0
    why = ""
    # The folder of the cidfiles that the CLIs have written (see `containers`).
    name = f"mcpbridge-{wanted.rpartition('=')[2]}"
    shutil.rmtree(os.path.join(environment.get("TMPDIR") or "/tmp", name), ignore_errors=True)
    born_by = time.monotonic() + BIRTH_SECONDS
    listing = [*engine, "ps", "-aq", "--no-trunc", "--filter", wanted]
    while failures < ENGINE_TRIES:
        asked = time.monotonic()
        try:
            found = run_engine(listing, environment).split()
            if found:
                remove_labelled(engine, wanted, environment, found)
                removed.update(found)
                # One that is still listed after `rm` counts as a failure.
                failures += 1
                why = "containers are left"
                continue
            if asked >= born_by:
                return len(removed), ""
            failures = 0
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            failures += 1
            why = str(error)
        time.sleep(ENGINE_PAUSE_SECONDS)
    return len(removed), f"{' '.join(engine)}: {why}"


def remove_labelled(
    engine: list[str], wanted: str, environment: dict[str, str], found: list[str]
) -> None:
    """
    Remove containers whose label, read again from each of them, is the wanted one.

    An engine that does not know the filter lists other people's containers,
    too.  Raises what `run_engine` raises, and `ValueError` for another label.
    """
    name, _, value = wanted.removeprefix("label=").partition("=")
    labels = f'{{{{index .Config.Labels "{name}"}}}} {{{{index .Config.Labels "{VOLUMES_LABEL}"}}}}'
    problem = ""
    for each in found:
        try:
            inspect = [*engine, "container", "inspect", f"--format={labels}", each]
            labelled, _, volumes = run_engine(inspect, environment).strip().partition(" ")
            if labelled != value:
                raise ValueError(
                    f"container {each[:12]} does not have the label that was asked for"
                )
            run_engine(
                [*engine, "rm", "-f", *(["-v"] if volumes == "true" else []), each], environment
            )
        except ValueError as error:
            # Most often it has gone meanwhile.  One that stays must not keep the others.
            problem = str(error)
    if problem:
        raise ValueError(problem)


def remove_directory(path: str, device: int, inode: int) -> tuple[int, str]:
    """
    Remove a directory with all that is in it, if it is that one still.

    Returns 1 if it was there, and why something is left, or "".
    """
    if not os.path.isabs(path) or not os.path.basename(path).startswith(DIRECTORY_PREFIX):
        return 0, ""
    try:
        found = os.lstat(path)
    except OSError:
        return 0, ""
    if (found.st_dev, found.st_ino) != (device, inode):
        return 0, ""
    until = time.monotonic() + DIRECTORY_SECONDS
    return 1, remove_tree(path, (device, inode), lambda: time.monotonic() > until)


def run_engine(command: list[str], environment: dict[str, str]) -> str:
    """
    Run a command of a container engine; return its output.

    Raises `OSError` and `subprocess.TimeoutExpired`, and `ValueError` with the
    end of its error output if it fails.
    """
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=ENGINE_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise ValueError(done.stderr[-200:].decode("utf-8", "replace").strip())
    return done.stdout.decode("utf-8", "replace")


def clean_up(base: int, records: list[Record]) -> dict[str, Any]:
    """Kill and remove everything; return the report."""
    errors: list[str] = []
    untagged = [each["process"] for each in records if "process" in each]
    found = count_tagged(base) + sum(kill_process(pid, started) for pid, started in untagged)
    left = kill_all(base)
    removed = 0
    for each in records:
        if "containers" in each:
            what = each["containers"]
            count, why = remove_containers(what["engine"], what["filter"], what["environment"])
            removed += count
            if why:
                errors.append(why)
    directories = 0
    for each in records:
        if "directory" in each:
            # Nothing writes to it any more.
            count, why = remove_directory(*each["directory"])
            directories += count
            if why:
                errors.append(why)
    removals = {"containers": removed, "directories": directories}
    return {"processes": found, "left": left, **removals, "errors": errors}


def report(message: dict[str, Any]) -> None:
    """Write a line to standard output, if it is still read."""
    try:
        os.write(1, json.dumps(message).encode() + b"\n")
    except OSError:
        pass


def complain(text: str) -> None:
    """Write a line to standard error, which the bridge logs as long as it lives."""
    try:
        os.write(2, text.encode() + b"\n")
    except OSError:
        pass


def main(base: int, tag: int) -> int:
    """Wait, then clean up; return the exit status, 0 if nothing is left."""
    # A bridge may be the backend of another bridge, which kills everything that carries the
    # tag of that session.  This process must outlive that, so it has a tag of its own.
    for limit in LIMITS:
        resource.setrlimit(limit, (tag, tag))
    try:
        os.setsid()
    except PermissionError:
        pass
    os.chdir("/")
    report({"ready": True})
    records = read_records(0)
    done = clean_up(base, records)
    report(done)
    return 1 if done["left"] or done["errors"] else 0


if __name__ == "__main__":
    outlive_signals()
    numbers = [int(each) for each in sys.argv[1:]]
    sys.exit(main(numbers[0], numbers[-1]))
