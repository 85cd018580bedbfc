"""
State files, and what a bridge that starts makes of those of dead ones.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mcpbridge.config.tuning import CLEANUP_SECONDS, MAX_CLEANUPS
from mcpbridge.stdio.cleanup_records import (
    CleanupRecords,
    ContainersRecord,
    DirectoryRecord,
    ProcessRecord,
    Record,
)
from mcpbridge.stdio.process_tags import TAGS
from mcpbridge.stdio.recovery import REPORT_BYTES, SAVE_SECONDS, Journal, Recovery
from mcpbridge.stdio.state_file import (
    FORGET_SECONDS,
    STATE_FILE_BYTES,
    UNFINISHED_SECONDS,
    NoStateDirectory,
    Place,
    StateFile,
    candidates,
    is_safe_directory,
    open_state_directory,
    take_dead,
    why_no_state_directory,
)
from mcpbridge.stdio.watchdog import LOGGED_BYTES

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tags are for Linux")

BASE = (1 << 61) + 11 * TAGS
MINE = (1 << 61) + 2000 * TAGS
ONE = ProcessRecord(11, 1000)
ENGINE = ContainersRecord(("/usr/bin/docker",), "label=a=b", (("HOME", "/home/bridge"),))


FILES = DirectoryRecord("/tmp/mcpbridge-tmp-x", 7, 8)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return open_state_directory([str(tmp_path / "deep" / "state")])


def dead_bridge(folder: str, base: int = BASE, *records: Record, **changes: Any) -> str:
    """The file of a bridge that has died; its path."""
    file = StateFile.create(folder, base)
    file.save(records)
    file.release()
    path = Path(file.path)
    head, _, rest = path.read_text().partition("\n")
    told = json.loads(head)
    told["pid"], told["start_time"] = changes.pop("pid", 2**22 + 1), 1
    told["place"] |= {key: changes.pop(key) for key in list(changes) if key in told["place"]}
    path.write_text(json.dumps({**told, **changes}) + "\n" + rest)
    return file.path


def bases(folder: str) -> list[int]:
    """Whose files are those of dead bridges; they stay."""
    found = []
    for file in take_dead(folder):
        found.append(file.state.base)
        file.release()
    return found


# State files.


def test_state_file_identifies_the_bridge(folder: str) -> None:
    file = StateFile.create(folder, BASE)
    assert file.state.base == BASE
    assert file.state.pid == os.getpid()
    assert file.state.is_running()
    assert file.state.place == Place.here()
    assert stat.S_IMODE(os.stat(file.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert os.listdir(folder) == [os.path.basename(file.path)]
    file.save([ONE, ENGINE])
    assert file.records() == [ONE, ENGINE]
    file.save([ENGINE])
    assert file.records() == [ENGINE]
    file.save([])
    assert file.records() == []
    file.remove()
    assert os.listdir(folder) == []


def test_a_live_bridge_is_left_alone(folder: str) -> None:
    """By its lock, within one process too, and without one by its pid."""
    file = StateFile.create(folder, BASE)
    assert bases(folder) == []
    file.release()
    assert bases(folder) == []
    assert os.path.exists(file.path)


def test_dead_bridge_is_found_by_one_other_bridge(folder: str) -> None:
    """Two that start at once do not both take it."""
    dead_bridge(folder, BASE, ENGINE)
    [file] = take_dead(folder)
    assert file.records() == [ENGINE]
    assert list(take_dead(folder)) == []
    file.release()
    [file] = take_dead(folder)
    file.remove()
    assert list(take_dead(folder)) == []


def test_state_file_removed_by_another_bridge_is_skipped(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was opened before, and is locked after: nothing to clean up a second time."""
    path = dead_bridge(folder)
    lock = fcntl.flock

    def locked_late(descriptor: int, how: int) -> None:
        os.unlink(path)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", locked_late)
    assert StateFile.take(path) is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"base": 7}', '{"base": "x"}', "\0" * 100]
)
def test_unreadable_state_file_is_removed(folder: str, content: str, log_lines: list[str]) -> None:
    path = Path(dead_bridge(folder))
    path.write_text(content)
    assert bases(folder) == []
    assert not path.exists()
    [line] = log_lines
    assert line.startswith(f"removing {path}: it is no state file")


def test_truncated_state_file_loses_only_its_records(folder: str, log_lines: list[str]) -> None:
    """A full disk: the tags are still known, and the log says what may be left."""
    path = Path(dead_bridge(folder, BASE, ENGINE))
    path.write_bytes(path.read_bytes()[:-5])
    [file] = take_dead(folder)
    assert (file.state.base, file.records()) == (BASE, [])
    file.release()
    [line] = log_lines
    assert line.startswith(f"the records in {path} cannot be read")


def test_state_file_without_records_has_none(folder: str, log_lines: list[str]) -> None:
    """Its bridge was killed before it wrote any."""
    path = Path(dead_bridge(folder))
    path.write_bytes(path.read_bytes().partition(b"\n")[0] + b"\n")
    [file] = take_dead(folder)
    assert file.records() == []
    file.release()
    assert log_lines == []


def test_large_state_file_is_read_within_bounds(folder: str, log_lines: list[str]) -> None:
    """`STATE_FILE_BYTES` of each line: what does not fit counts as unreadable."""
    path = Path(dead_bridge(folder, BASE, ENGINE))
    head, records = path.read_bytes().splitlines()
    longest = records.rjust(STATE_FILE_BYTES)
    path.write_bytes(head + b"\n" + longest)
    [file] = take_dead(folder)
    assert file.records() == [ENGINE]
    file.release()
    assert log_lines == []
    path.write_bytes(head + b"\n " + longest)
    [file] = take_dead(folder)
    assert file.records() == []
    file.release()
    assert "cannot be read" in log_lines[-1]
    path.write_bytes(head.rjust(STATE_FILE_BYTES + 1) + b"\n" + records)
    assert bases(folder) == []
    assert not path.exists()


def test_unsafe_state_files_are_ignored(folder: str, tmp_path: Path) -> None:
    """What others could have written names programs to run: it is not read."""
    path = dead_bridge(folder)
    os.chmod(path, 0o666)
    assert bases(folder) == []
    os.chmod(path, 0o600)
    other = tmp_path / "elsewhere"
    os.rename(path, other)
    os.symlink(other, path)
    assert bases(folder) == []
    os.unlink(path)
    os.mkfifo(path)
    assert bases(folder) == []
    os.unlink(path)
    os.mkdir(path)
    assert bases(folder) == []
    (Path(folder) / "notes.json").write_text("{}")
    assert bases(folder) == []


def test_unfinished_files_are_removed_after_a_time(folder: str) -> None:
    path = Path(folder, "bridge-1.json.new")
    path.touch()
    assert bases(folder) == []
    assert path.exists()
    old = time.time() - UNFINISHED_SECONDS - 60
    os.utime(path, (old, old))
    assert bases(folder) == []
    assert not path.exists()


def test_a_file_system_without_locks(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No state file, and nothing half made."""

    def refused(descriptor: int, how: int) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(OSError, match="no locks"):
        StateFile.create(folder, BASE)
    assert os.listdir(folder) == []


# Directories.


def test_directories_for_state_files(tmp_path: Path) -> None:
    home = {"HOME": "/home/a"}
    runtime = {**home, "XDG_RUNTIME_DIR": str(tmp_path)}
    assert candidates("x", runtime, 1000) == [os.path.abspath("x")]
    assert candidates(None, {}, 0) == ["/run/mcpbridge", "/var/lib/mcpbridge"]
    assert candidates(None, {}, 1000) == []
    assert candidates(None, home, 1000) == ["/home/a/.local/state/mcpbridge"]
    assert candidates(None, {**home, "XDG_STATE_HOME": "/s"}, 1000) == ["/s/mcpbridge"]
    assert candidates(None, {**home, "XDG_STATE_HOME": "s"}, 1000) == [
        "/home/a/.local/state/mcpbridge"
    ]
    assert candidates(None, runtime, 1000) == [
        f"{tmp_path}/mcpbridge",
        "/home/a/.local/state/mcpbridge",
    ]
    gone = {**home, "XDG_RUNTIME_DIR": "/run/user/none"}
    assert candidates(None, gone, 1000) == ["/home/a/.local/state/mcpbridge"]
    systemd = {"STATE_DIRECTORY": "/var/lib/x:/var/lib/y"}
    assert candidates(None, systemd, 1000) == ["/var/lib/x"]


def test_first_usable_directory_is_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    wide = tmp_path / "wide"
    wide.mkdir()
    wide.chmod(0o777)
    good = str(tmp_path / "good")
    bad = [str(tmp_path / "file" / "x"), str(tmp_path / "file"), str(wide)]
    assert open_state_directory([*bad, good]) == good
    assert open_state_directory([good]) == good
    for each in bad:
        with pytest.raises(NoStateDirectory, match=each):
            open_state_directory([each])
    with pytest.raises(NoStateDirectory, match="HOME"):
        open_state_directory([])
    for each in bad:
        assert why_no_state_directory(each)
    assert why_no_state_directory(good) is None
    assert why_no_state_directory(str(tmp_path / "new" / "one")) is None
    assert why_no_state_directory("no/such/directory") is None
    (tmp_path / "link").symlink_to(tmp_path / "new")
    assert why_no_state_directory(str(tmp_path / "link" / "x"))
    assert not (tmp_path / "new").exists()
    assert is_safe_directory(good)
    assert not is_safe_directory(str(wide))
    assert not is_safe_directory(str(tmp_path / "none"))


# This bridge's own file.


def test_journal_writes_containers_at_once(folder: str) -> None:
    """And processes within `SAVE_SECONDS`, many in one go."""
    clock, records = Clock(), CleanupRecords()
    journal = Journal(clock, records)
    journal.open([folder], BASE)
    [path] = Path(folder).iterdir()

    def saved() -> list[Any]:
        return list(json.loads(path.read_text().splitlines()[1]))

    def add(*added: Record) -> None:
        for each in added:
            records.add(0, each)
            journal.changed(each)

    assert saved() == []
    add(ENGINE)
    assert saved() == [ENGINE.as_json()]
    add(ONE, ProcessRecord(12, 1))
    assert len(clock.getDelayedCalls()) == 1
    assert saved() == [ENGINE.as_json()]
    clock.advance(SAVE_SECONDS)
    assert len(saved()) == 3
    records.drop(0)
    journal.changed(ENGINE)
    assert saved() == []
    add(ONE)
    journal.close(clean=True)
    assert os.listdir(folder) == []
    assert clock.getDelayedCalls() == []
    journal.close(clean=True)


def test_state_file_stays_if_something_was_left(folder: str) -> None:
    journal = Journal(Clock(), CleanupRecords())
    journal.open([folder], BASE)
    journal.close(clean=False)
    assert len(os.listdir(folder)) == 1
    journal.open([folder], BASE)
    journal.close(clean=True)
    assert os.listdir(folder) == []


def test_missing_state_directory_is_logged_once(tmp_path: Path, log_lines: list[str]) -> None:
    (tmp_path / "file").touch()
    journal = Journal(Clock(), CleanupRecords())
    journal.open([str(tmp_path / "file" / "x")], BASE)
    journal.changed(ENGINE)
    journal.close(clean=True)
    [line] = log_lines
    assert "no state file" in line
    assert str(tmp_path / "file" / "x") in line
    assert "state_dir" in line


def test_full_disk_is_logged(
    folder: str, log_lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(Clock(), CleanupRecords())
    journal.open([folder], BASE)

    def full(*arguments: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    journal.changed(ENGINE)
    assert "No space left" in log_lines[-1]
    journal.close(clean=True)


# Recovery, with the process that cleans up played by the test.


class Spawned:
    """A process that cleans up."""

    pid = None

    def __init__(self, cleaner: Any, line: list[str]) -> None:
        self.cleaner = cleaner
        self.base, self.tag = int(line[-2]), int(line[-1])
        self.told = b""
        self.closed = self.killed = False

    def write(self, data: bytes) -> None:
        self.told += data

    def closeStdin(self) -> None:
        self.closed = True

    def signalProcess(self, name: str) -> None:
        if self.killed:
            raise ProcessExitedAlready
        assert name == "KILL"
        self.killed = True

    def end(self, *output: bytes) -> None:
        for each in output:
            self.cleaner.outReceived(each)
        self.cleaner.processEnded(Failure(ProcessDone(0)))

    def report(self, **changes: Any) -> None:
        report = {"processes": 0, "left": 0, "containers": 0, "errors": [], **changes}
        self.end(b'{"ready": true}\n{"proc', b'esses": 0}\n' + json.dumps(report).encode() + b"\n")


class Machine(Clock):
    """A reactor that spawns them."""

    broken = False

    def __init__(self) -> None:
        super().__init__()
        self.spawned: list[Spawned] = []

    def spawnProcess(self, cleaner: Any, program: str, line: list[str], env: Any) -> None:
        if self.broken:
            raise OSError("no room")
        assert program == line[0]
        self.spawned.append(Spawned(cleaner, line))
        cleaner.makeConnection(self.spawned[-1])


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    assert machine.getDelayedCalls() == []


def test_dead_bridges_are_cleaned_up_after_one_by_one(
    folder: str, machine: Machine, log_lines: list[str]
) -> None:
    first = dead_bridge(folder, BASE, ENGINE, ONE, pid=2**22 + 7)
    second = dead_bridge(folder, BASE + TAGS)
    alive = StateFile.create(folder, MINE)
    Recovery(machine, MINE).start([folder, "/no/such/folder"])
    [spawned] = machine.spawned
    assert (spawned.base, spawned.tag, spawned.closed) == (BASE, MINE, True)
    told = [json.loads(line)["add"] for line in spawned.told.splitlines()]
    assert told == [ENGINE.as_json(), ONE.as_json()]
    assert os.path.exists(first)
    spawned.report(processes=3, containers=1)
    assert not os.path.exists(first)
    assert log_lines[-1].startswith(f"a bridge that was killed (pid {2**22 + 7}) had left 3 proc")
    assert "1 containers" in log_lines[-1]
    machine.spawned[1].report()
    assert not os.path.exists(second)
    assert len(machine.spawned) == 2
    assert os.listdir(folder) == [os.path.basename(alive.path)]
    alive.remove()


def test_temporary_files_of_a_dead_bridge_are_reported(
    folder: str, machine: Machine, log_lines: list[str]
) -> None:
    dead_bridge(folder, BASE, FILES)
    Recovery(machine, MINE).start([folder])
    [spawned] = machine.spawned
    assert json.loads(spawned.told) == {"add": FILES.as_json()}
    spawned.report(directories=1)
    assert log_lines[-1].endswith("0 containers, and temporary files: they are ended")


def test_temporary_files_are_removed_after_a_restart_of_the_machine(
    folder: str, machine: Machine
) -> None:
    """No process or container of then is, so nothing else is cleaned up."""
    path = dead_bridge(folder, BASE, ONE, FILES, boot="another")
    Recovery(machine, MINE).start([folder])
    [spawned] = machine.spawned
    assert json.loads(spawned.told) == {"add": FILES.as_json()}
    spawned.report(directories=1)
    assert not os.path.exists(path)


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b'{"ready": true}\n',
        b"Traceback\n",
        b"null\n",
        b'{"left": 0}\n',
        b'{"processes": 1, "left": 1, "containers": 0, "errors": []}\n',
        b'{"processes": 1, "left": 0, "containers": 0, "errors": ["docker: away"]}\n',
    ],
)
def test_failed_cleanup_is_left_to_the_next_start(
    folder: str, machine: Machine, log_lines: list[str], output: bytes
) -> None:
    path = dead_bridge(folder)
    Recovery(machine, MINE).start([folder])
    machine.spawned[0].end(output)
    assert os.path.exists(path)
    assert bases(folder) == [BASE]
    assert "the next start tries again" in log_lines[-1]


def test_output_of_a_cleanup_is_bounded(folder: str, machine: Machine) -> None:
    """`REPORT_BYTES` of its end are kept, and the report is there."""
    path = dead_bridge(folder)
    Recovery(machine, MINE).start([folder])
    [spawned] = machine.spawned
    for _ in range(3):
        spawned.cleaner.outReceived(b"x" * (REPORT_BYTES - 1) + b"\n")
        assert len(spawned.cleaner._output) <= REPORT_BYTES
    spawned.report()
    assert not os.path.exists(path)


def test_stderr_of_a_cleanup_is_logged_and_bounded(
    folder: str, machine: Machine, log_lines: list[str]
) -> None:
    """`LOGGED_BYTES` of what is written at once."""
    dead_bridge(folder)
    Recovery(machine, MINE).start([folder])
    [spawned] = machine.spawned
    spawned.cleaner.errReceived(b"x" * LOGGED_BYTES + b"y")
    assert log_lines == [f"watchdog: {'x' * LOGGED_BYTES!r}"]
    spawned.report()


def test_cleanup_is_bounded_in_time(folder: str, machine: Machine) -> None:
    """`CLEANUP_SECONDS`."""
    dead_bridge(folder)
    Recovery(machine, MINE).start([folder])
    machine.advance(CLEANUP_SECONDS)
    assert machine.spawned[0].killed
    machine.spawned[0].end()


def test_cleanups_of_one_start_are_bounded(
    folder: str, machine: Machine, log_lines: list[str]
) -> None:
    """`MAX_CLEANUPS`."""
    for number in range(MAX_CLEANUPS + 2):
        dead_bridge(folder, BASE + number * TAGS)
    Recovery(machine, MINE).start([folder])
    for number in range(MAX_CLEANUPS):
        machine.spawned[number].report()
    assert len(machine.spawned) == MAX_CLEANUPS
    assert len(bases(folder)) == 2
    assert "the next start" in log_lines[-1]


def test_a_process_that_cannot_be_started(
    folder: str, machine: Machine, log_lines: list[str]
) -> None:
    dead_bridge(folder)
    machine.broken = True
    recovery = Recovery(machine, MINE)
    recovery.start([folder])
    assert "no room" in log_lines[-1]
    assert bases(folder) == [BASE]
    stopped: list[None] = []
    recovery.stop().addCallback(stopped.append)
    assert stopped == [None]


@pytest.mark.parametrize("output", [b"", b"null\n", b'{"left": 0}\n'])
def test_stop_interrupts_a_cleanup(
    folder: str, machine: Machine, log_lines: list[str], output: bytes
) -> None:
    """The file stays, and nothing more begins."""
    dead_bridge(folder)
    dead_bridge(folder, BASE + TAGS)
    recovery = Recovery(machine, MINE)
    recovery.start([folder])
    stopped: list[None] = []
    recovery.stop().addCallback(stopped.append)
    [spawned] = machine.spawned
    assert (spawned.killed, stopped) == (True, [])
    spawned.end(output)
    assert stopped == [None]
    assert len(machine.spawned) == 1
    assert len(bases(folder)) == 2
    assert log_lines == []


def test_after_a_reboot_no_process_is_looked_for(
    folder: str, machine: Machine, log_lines: list[str]
) -> None:
    """Numbers and tags are others' now; of containers only the operator can know."""
    plain = dead_bridge(folder, BASE, boot="before")
    contained = dead_bridge(folder, BASE + TAGS, ENGINE, ONE, boot="before")
    Recovery(machine, MINE).start([folder])
    assert machine.spawned == []
    assert not os.path.exists(plain)
    assert not os.path.exists(contained)
    [line] = log_lines
    assert "/usr/bin/docker ps -a --filter label=a=b" in line


@pytest.mark.parametrize(
    "place",
    [
        {"boot": "other", "host": "other"},
        {"pid_namespace": "pid:[1]"},
        {"pid_namespace": "pid:[1]", "host": "other"},
    ],
)
def test_a_bridge_elsewhere_is_left_alone(
    folder: str, machine: Machine, log_lines: list[str], place: Any
) -> None:
    """Another machine with the same home, another container: one line; in time it goes."""
    path = dead_bridge(folder, BASE, ENGINE, **place)
    Recovery(machine, MINE).start([folder])
    assert machine.spawned == []
    assert os.path.exists(path)
    [line] = log_lines
    assert line.startswith("1 state files of bridges on other machines")
    dead_bridge(folder, BASE, ENGINE, began=time.time() - FORGET_SECONDS - 60, **place)
    Recovery(machine, MINE).start([folder])
    assert machine.spawned == []
    assert not os.path.exists(path)


def test_renamed_machine_is_cleaned_up_but_for_containers(
    folder: str, machine: Machine, log_lines: list[str]
) -> None:
    """The processes are the same; containers may be another engine's, and are only named."""
    dead_bridge(folder, BASE, ENGINE, ONE, host="old name")
    Recovery(machine, MINE).start([folder])
    [spawned] = machine.spawned
    assert [json.loads(line)["add"] for line in spawned.told.splitlines()] == [ONE.as_json()]
    assert "/usr/bin/docker ps -a" in log_lines[0]
    spawned.report()


def test_unknown_boot_id(
    folder: str, monkeypatch: pytest.MonkeyPatch, machine: Machine, logged_failures: list[Any]
) -> None:
    """A sandbox without that file: said, and the bridge goes on."""

    def unknown() -> Place:
        raise FileNotFoundError(2, "No such file or directory", "boot_id")

    dead_bridge(folder)
    monkeypatch.setattr(Place, "here", unknown)
    recovery = Recovery(machine, MINE)
    recovery.start([folder])
    Journal(machine, CleanupRecords()).open([folder], MINE)
    assert machine.spawned == []
    assert len(logged_failures) == 1


def test_state_is_read_field_by_field(folder: str) -> None:
    """Every field of the first line comes back."""
    file = StateFile.create(folder, BASE)
    file.release()
    head = json.loads(Path(file.path).read_text().partition("\n")[0])
    assert head == {"version": 1, **dataclasses.asdict(file.state)}
    os.unlink(file.path)
