"""The watchdog as a process: what it survives, and what it cleans up."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mcpbridge.stdio import process_tags, watchdog_program
from mcpbridge.stdio.cleanup_records import ContainersRecord, ProcessRecord, Record
from mcpbridge.stdio.exec_chain import PythonShim
from mcpbridge.stdio.watchdog import watchdog_command
from mcpbridge.stdio.watchdog_program import Records, kill_process, start_time
from tests.real.processes import eventually

PATIENCE = 60
#: Unique to this run, so that it kills no process of another run of the tests.
BASE = process_tags.choose_base(os.urandom(8), -1)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tags are for Linux")

#: An engine whose containers are files; it notes its commands in a file.
ENGINE = """#!/bin/sh
cd "$STORE" || exit 1
echo "$*" >> asked
case "$1 $2" in
    "-H ps"|"ps -aq") test -e broken && { echo "daemon is away" >&2; exit 1; }
        ls containers ;;
    "container inspect") test -e "containers/$4" && echo "b " ;;
    "rm -f") shift 2; test -e stubborn || (cd containers && rm "$@") ;;
esac
"""


class RunningWatchdog:
    """A waiting watchdog, and the bridge's end of its pipe."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={}
        )
        assert self.process.stdout is not None
        assert json.loads(self.process.stdout.readline()) == {"ready": True}

    def add_records(self, *records: Record) -> None:
        assert self.process.stdin is not None
        for each in records:
            self.process.stdin.write(json.dumps({"add": each.as_json()}).encode() + b"\n")
        self.process.stdin.flush()

    def end_bridge(self) -> dict[str, Any]:
        """Close the pipe, as when the bridge dies; return the watchdog's report."""
        output, self.complaints = self.process.communicate(timeout=PATIENCE)
        return dict(json.loads(output))


@contextlib.contextmanager
def running_watchdog(command: Sequence[str] | None = None) -> Iterator[RunningWatchdog]:
    watchdog = RunningWatchdog(command or watchdog_command(BASE))
    try:
        yield watchdog
    finally:
        watchdog.process.kill()
        watchdog.process.communicate()


@contextlib.contextmanager
def sleeping(tag: int = 0) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with a tag, or without one."""
    command = ["sleep", "600"]
    process = subprocess.Popen(PythonShim().wrap(command, tag, None) if tag else command)
    try:
        if tag:
            assert eventually(lambda: b"sleep" in cmdline(process.pid)[:5], PATIENCE)
        yield process
    finally:
        process.kill()
        process.wait()


def cmdline(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def record_of(process: subprocess.Popen[bytes]) -> ProcessRecord:
    started = start_time(process.pid)
    assert started is not None
    return ProcessRecord(process.pid, started)


def ended(process: subprocess.Popen[bytes]) -> bool:
    return process.wait(PATIENCE) == -signal.SIGKILL


def test_watchdog_kills_tagged_processes() -> None:
    """Also processes that the bridge had stopped before it died."""
    with (
        running_watchdog() as watchdog,
        sleeping(BASE + 1) as one,
        sleeping(BASE + 2) as frozen,
        sleeping(BASE + process_tags.TAGS) as stranger,
        sleeping() as untagged,
    ):
        frozen.send_signal(signal.SIGSTOP)
        report = watchdog.end_bridge()
        assert ended(one)
        assert ended(frozen)
        assert stranger.poll() is None
        assert untagged.poll() is None
    assert report == {"processes": 2, "left": 0, "containers": 0, "directories": 0, "errors": []}
    assert watchdog.process.returncode == 0


def test_watchdog_survives_signals() -> None:
    """All that can be ignored; it still notices the end of its input."""
    outlived = signal.valid_signals() - watchdog_program.LEFT_ALONE
    assert {signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGPIPE} < outlived
    with running_watchdog() as watchdog:
        for number in outlived:
            watchdog.process.send_signal(number)
        assert watchdog.end_bridge()["left"] == 0
    assert watchdog.process.returncode == 0


def test_waiting_watchdog_needs_no_files(tmp_path: Path) -> None:
    """The package may be upgraded or removed while it runs."""
    folder = tmp_path / "release" / "stdio"
    folder.mkdir(parents=True)
    for source in Path(watchdog_program.__file__).parent.glob("*.py"):
        shutil.copy(source, folder)
    program = str(folder / "watchdog_program.py")
    # -X importtime: a line on stderr for each module that is imported.
    command = [sys.executable, "-I", "-S", "-X", "importtime", program, str(BASE)]
    engine = ContainersRecord(("/no/such/engine",), "label=x")
    with running_watchdog(command) as watchdog, sleeping(BASE + 1) as backend, sleeping() as lost:
        assert watchdog.process.stderr is not None
        os.set_blocking(watchdog.process.stderr.fileno(), False)
        imported = watchdog.process.stderr.read()
        assert b"procfs" in imported
        os.set_blocking(watchdog.process.stderr.fileno(), True)
        shutil.rmtree(tmp_path / "release")
        watchdog.add_records(record_of(lost), engine)
        report = watchdog.end_bridge()
        assert ended(backend)
        assert ended(lost)
    assert watchdog.complaints == b""
    assert (report["processes"], report["left"]) == (2, 0)
    assert "/no/such/engine" in report["errors"][0]
    assert watchdog.process.returncode == 1


def test_watchdog_kills_recorded_processes_and_no_others() -> None:
    """A pid may belong to another process by now."""
    with running_watchdog() as watchdog, sleeping() as lost, sleeping() as other:
        old = record_of(other)
        watchdog.add_records(record_of(lost), ProcessRecord(old.pid, old.start_time - 1))
        watchdog.add_records(ProcessRecord(2**22 + 1, 5))
        report = watchdog.end_bridge()
        assert ended(lost)
        assert other.poll() is None
    assert report["processes"] == 1


def test_recorded_process_is_killed_without_a_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old kernels and some sandboxes have none; the start time identifies the process."""

    def refused(pid: int) -> int:
        raise OSError("not here")

    monkeypatch.setattr(os, "pidfd_open", refused)
    with sleeping() as lost:
        record = record_of(lost)
        assert not kill_process(record.pid, record.start_time + 1)
        assert lost.poll() is None
        assert kill_process(record.pid, record.start_time)
        assert ended(lost)


def test_zombie_has_no_start_time() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert start_time(process.pid) is None
    process.wait()
    assert start_time(process.pid) is None


class Store:
    """A fake engine whose containers are files, with a record for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engine = folder / "docker"
        self.engine.write_text(ENGINE)
        self.engine.chmod(0o755)
        (folder / "containers").mkdir()

    def run(self, *names: str) -> None:
        for name in names:
            (self.folder / "containers" / name).touch()

    def left(self) -> list[str]:
        return sorted(os.listdir(self.folder / "containers"))

    def asked(self) -> list[str]:
        return (self.folder / "asked").read_text().splitlines()

    @property
    def record(self) -> ContainersRecord:
        environment = {"PATH": os.environ["PATH"], "STORE": str(self.folder)}
        return ContainersRecord(
            (str(self.engine),), "label=a=b", tuple(sorted(environment.items()))
        )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_watchdog_removes_containers(store: Store) -> None:
    store.run("c1", "c2")
    with running_watchdog() as watchdog:
        watchdog.add_records(store.record, store.record)
        report = watchdog.end_bridge()
    assert report == {"processes": 0, "left": 0, "containers": 2, "directories": 0, "errors": []}
    assert store.left() == []
    listing = "ps -aq --no-trunc --filter label=a=b"
    asked = [each for each in store.asked() if "inspect" not in each]
    assert asked[:3] == [listing, "rm -f c1", "rm -f c2"]
    # Containers that the dead CLIs requested may still be created, so the watchdog keeps looking.
    assert set(asked[3:]) == {listing}


@pytest.mark.parametrize(("trouble", "says"), [("broken", "daemon is away"), ("stubborn", "left")])
def test_failing_engine_is_tried_engine_tries_times(store: Store, trouble: str, says: str) -> None:
    """The report says what is left."""
    store.run("c1")
    (store.folder / trouble).touch()
    with running_watchdog() as watchdog:
        watchdog.add_records(store.record)
        report = watchdog.end_bridge()
    assert says in report["errors"][0]
    assert watchdog.process.returncode == 1
    assert sum("ps" in each for each in store.asked()) >= watchdog_program.ENGINE_TRIES
    assert store.left() == ["c1"]


def test_engines_do_not_inherit_ignored_signals(store: Store, tmp_path: Path) -> None:
    """The programs of an engine may need signals that the watchdog ignores."""
    store.engine.write_text(f"#!/bin/sh\ngrep SigIgn /proc/self/status > {tmp_path}/ignored\n")
    with running_watchdog() as watchdog:
        watchdog.add_records(store.record)
        watchdog.end_bridge()
    ignored = int((tmp_path / "ignored").read_text().split()[1], 16)
    # The C library keeps two more signals for itself.
    assert not [each for each in signal.valid_signals() if ignored >> (each - 1) & 1]


def test_watchdog_of_the_next_bridge_kills_a_stopped_watchdog() -> None:
    """As it kills everything of a dead bridge."""
    with (
        running_watchdog() as stopped,
        running_watchdog(watchdog_command(BASE, BASE + process_tags.TAGS)) as new,
    ):
        stopped.process.send_signal(signal.SIGSTOP)
        with sleeping(BASE + 1) as backend:
            report = new.end_bridge()
            assert ended(backend)
        assert ended(stopped.process)
        assert new.process.returncode == 0
    assert report["processes"] == 1


def order(*orders: Any) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in orders)


ONE, TWO = ProcessRecord(1, 1).as_json(), ProcessRecord(2, 1).as_json()


def test_records_may_be_split_across_reads() -> None:
    data = order({"add": ONE}, {"add": TWO}, {"drop": ONE})
    for size in (1, 7, len(data)):
        records = Records()
        for at in range(0, len(data), size):
            records.receive(data[at : at + size])
        assert records.all() == [TWO]


def test_records_after_an_incomplete_reset_are_all_kept() -> None:
    """The bridge may die while it sends its table again."""
    records = Records()
    records.receive(order({"add": ONE}, {"reset": True}, {"add": TWO}))
    assert records.all() == [ONE, TWO]
    records.receive(order({"reset": True}))
    assert records.all() == [ONE, TWO]
    records.receive(order({"add": TWO}, {"complete": True}))
    assert records.all() == [TWO]


@pytest.mark.parametrize("noise", [b"{\n", b"[1]\n", b"7\n", b'"x"\n', b"null\n", b"\xff\n", b"\n"])
def test_invalid_lines_are_skipped(noise: bytes) -> None:
    records = Records()
    records.receive(noise + order({"add": ONE}, {"unknown": 1}) + noise)
    assert records.all() == [ONE]


def test_failed_count_does_not_prevent_killing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without free files or memory, which the bridge may have died of."""

    def no_files(base: int) -> list[Any]:
        raise OSError(errno.ENFILE, "Too many open files in system")

    killed: list[int] = []

    def kill_all(base: int) -> int:
        killed.append(base)
        return 0

    monkeypatch.setattr(watchdog_program, "find_tagged", no_files)
    monkeypatch.setattr(watchdog_program, "kill_all", kill_all)
    report = watchdog_program.clean_up(BASE, [])
    assert (killed, report["processes"], report["left"]) == ([BASE], 0, 0)
