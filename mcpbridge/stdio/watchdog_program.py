"""
The watchdog: one small process beside the bridge, for the day it is killed.

It reads its standard input.  When that ends, the bridge has stopped or was
killed with SIGKILL; then the watchdog kills every process that carries a tag
of the bridge and every process that it was told of, and removes the
containers that it was told of.  Run as `python -I -S watchdog_program.py BASE [TAG]`;
it needs nothing but the standard library and the modules beside it.

BASE is the base of the bridge's tags, TAG the watchdog's own (default: BASE).
A bridge that starts runs this program for a bridge that is dead: with the
BASE of the dead one, a TAG of its own, and an input that ends at once.

The input is JSON, one object a line:

`{"add": RECORD}`      clean this up when the input ends
`{"drop": RECORD}`     no longer
`{"reset": true}`      the whole table follows
`{"complete": true}`   that was all of it

where RECORD is `{"process": [PID, START_TIME]}`, START_TIME being field 22 of
`/proc/PID/stat`, or `{"containers": {"engine": [PROGRAM, ARG, ...], "filter":
FILTER, "environment": {NAME: VALUE, ...}}}`: all containers that `ENGINE ps
--filter FILTER` lists.

On standard output there is one line when it waits, `{"ready": true}`, and one
at the end, `{"processes": FOUND, "left": PROCESSES_LEFT, "containers":
REMOVED, "errors": [TEXT, ...]}`.

Everything is imported before the wait.  By the time the bridge is dead the
files may be gone or of another version: an upgrade in place, a release
folder that was swapped.
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
else:
    from mcpbridge.stdio.kill_pass import kill_pass
    from mcpbridge.stdio.process_tags import LIMITS
    from mcpbridge.stdio.procfs import find_tagged

#: How long the watchdog goes on killing before it gives up.
GIVE_UP_SECONDS = 30.0
#: Between two looks.
PAUSE_SECONDS = 0.02
#: How many looks in a row must find nothing: a process may be born behind
#: the place in /proc that a look has passed.
CLEAN_LOOKS = 2
#: How long one command of a container engine may take.
ENGINE_SECONDS = 20.0
#: How often a container engine that fails is tried, and the pause between.
ENGINE_TRIES = 3
ENGINE_PAUSE_SECONDS = 1.0
#: How long an engine may go on creating a container after its CLI was killed.
BIRTH_SECONDS = 5.0
#: The label of a container whose anonymous volumes go with it (`containers`).
VOLUMES_LABEL = "mcpbridge.remove-volumes"
#: A longer line of the input is dropped: no record is as long.
LINE_BYTES = 1024 * 1024
#: Signals that the watchdog does not survive, or must leave alone.  SIGCHLD
#: has to keep its default for the engines' exit statuses to be known.
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
    Do nothing at all signals but those in `LEFT_ALONE`.

    By a handler: what is ignored, the container engine's programs would
    inherit.  A read that a handler interrupts goes on by itself (PEP 475).
    """
    for number in signal.valid_signals() - LEFT_ALONE:
        try:
            signal.signal(number, _do_nothing)
        except (OSError, ValueError):
            # The C library keeps some for itself.
            pass


def _do_nothing(number: int, frame: object) -> None:
    pass


class Records:
    """What the bridge wants to be cleaned up, from the lines of the input."""

    def __init__(self) -> None:
        self._table: dict[str, Record] = {}
        #: The table that a reset has begun to replace, until it is complete:
        #: where the input ends in between, what stands in either counts.
        self._before: dict[str, Record] = {}
        self._partial = b""

    def receive(self, data: bytes) -> None:
        """Bytes of the input, in pieces of any size."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > LINE_BYTES:
            self._partial = b""
        for line in lines:
            try:
                self._follow(json.loads(line))
            except (ValueError, TypeError, AttributeError):
                # Not worth to fail: the tags are still there.
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
        """All records."""
        return list({**self._before, **self._table}.values())


def read_records(descriptor: int) -> list[Record]:
    """Read the input to its end; return what is to be cleaned up."""
    records = Records()
    while data := os.read(descriptor, 65536):
        records.receive(data)
    return records.all()


def kill_all(base: int) -> int:
    """Kill what carries a tag of this base; return how many processes are left."""
    give_up = time.monotonic() + GIVE_UP_SECONDS
    clean = 0
    me = os.getpid()
    left: list[int] = []
    while clean < CLEAN_LOOKS and time.monotonic() < give_up:
        try:
            kill_pass(base)
            # A zombie holds nothing, and is its parent's to reap.
            left = [each.pid for each in find_tagged(base) if not each.zombie and each.pid != me]
        except OSError:
            # What was not seen is not gone.
            left = [-1]
        clean = 0 if left else clean + 1
        time.sleep(PAUSE_SECONDS)
    return len(left)


def count_tagged(base: int) -> int:
    """How many processes of sessions carry a tag of this base and live, as far as is seen."""
    try:
        # `base` itself is the tag of the bridge's watchdog.
        return sum(not each.zombie and each.tag != base for each in find_tagged(base))
    except OSError:
        # This is for the report alone, and must keep nothing from being killed:
        # the bridge may have died of what the system lacks.
        return 0


def start_time(pid: int) -> int | None:
    """When a process was started, in clock ticks since the boot; None where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            # The name, in parentheses, may hold anything: read behind it.
            fields = stat.read(4096).rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") and int(fields[17]) <= 1 else int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def kill_process(pid: int, started: int) -> bool:
    """
    Kill a process if it (still) is the one that was started at that time.

    Returns whether it was there.  The descriptor is opened before the time is
    read, so that the signal goes to that process or to nobody (pidfd_open(2));
    where there is none, the time says enough: a number is used again only
    after all others.
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

    Returns how many, and what went wrong: "" where none is left.  The CLIs
    died with the bridge, and what they had asked the engine for it may still
    create: nothing is left when for `BIRTH_SECONDS` nothing was found.
    """
    removed: set[str] = set()
    failures = 0
    why = ""
    # What the CLIs have written, see `engine`.
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
    Remove containers, once their label was read again from themselves: a
    filter that an engine does not know must not cost others theirs.

    Raises what `run_engine` raises; `ValueError` too where the label is another.
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
            # Most often it has gone meanwhile.  One that stays keeps no other from going.
            problem = str(error)
    if problem:
        raise ValueError(problem)


def run_engine(command: list[str], environment: dict[str, str]) -> str:
    """
    Run a command of a container engine; its output.

    Raises `OSError`, `subprocess.TimeoutExpired` and `ValueError` with the
    end of what it printed to its standard error where it fails.
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
    """Kill and remove everything; what was done, as it is reported."""
    errors: list[str] = []
    marked = [each["process"] for each in records if "process" in each]
    found = count_tagged(base) + sum(kill_process(pid, started) for pid, started in marked)
    left = kill_all(base)
    removed = 0
    for each in records:
        if "containers" in each:
            what = each["containers"]
            count, why = remove_containers(what["engine"], what["filter"], what["environment"])
            removed += count
            if why:
                errors.append(why)
    return {"processes": found, "left": left, "containers": removed, "errors": errors}


def say(message: dict[str, Any]) -> None:
    """A line on standard output, where somebody still reads it."""
    try:
        os.write(1, json.dumps(message).encode() + b"\n")
    except OSError:
        pass


def main(base: int, tag: int) -> int:
    """Wait, then clean up; the exit status is 0 when nothing is left."""
    # A bridge may itself be the backend of another, which would kill all that
    # carries the tag of that session: this process carries one of its own.
    for limit in LIMITS:
        resource.setrlimit(limit, (tag, tag))
    try:
        os.setsid()
    except PermissionError:
        pass
    os.chdir("/")
    say({"ready": True})
    records = read_records(0)
    report = clean_up(base, records)
    say(report)
    return 1 if report["left"] or report["errors"] else 0


if __name__ == "__main__":
    outlive_signals()
    numbers = [int(each) for each in sys.argv[1:]]
    sys.exit(main(numbers[0], numbers[-1]))
