"""Directories for the temporary files of backends: made, recorded, removed off the reactor."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mcpbridge.config.tuning import PRIVATE_TMP_REMOVALS, PRIVATE_TMP_SECONDS, PRIVATE_TMP_WAITING
from mcpbridge.stdio.cleanup_records import DirectoryRecord
from mcpbridge.stdio.private_tmp import (
    PrivateDirectories,
    PrivateDirectory,
    PrivateFolder,
    in_daemon_thread,
)
from tests.fakes import CleanupTable


class Made:
    """The directories of one server; the test plays the threads."""

    def __init__(self, parent: Path, *, transient: bool = False) -> None:
        self.parent = parent
        self.records = CleanupTable()
        self.folder = PrivateFolder(str(parent), self.records, transient=transient)
        self.clock = Clock()
        self.directories = PrivateDirectories(self.folder, self.in_thread, self.clock)
        self.work: list[tuple[Callable[[], str], Deferred[str]]] = []

    def in_thread(self, work: Callable[[], str]) -> Deferred[str]:
        done: Deferred[str] = Deferred()
        self.work.append((work, done))
        return done

    def run(self) -> None:
        """Do what the oldest thread has to do."""
        work, done = self.work.pop(0)
        done.callback(work())

    def new(self, *files: str) -> tuple[PrivateDirectory, Path]:
        """A directory with these files in it, and its path."""
        made = self.directories.new("0c8a4a3e")
        path = Path(made.variables["TMPDIR"])
        for name in files:
            (path / name).touch()
        return made, path


def fired(removed: Deferred[None]) -> list[None]:
    """A list to which the result is added; a `Deferred` that waits for another counts as called."""
    results: list[None] = []
    removed.addCallback(results.append)
    return results


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def test_each_process_has_a_directory_in_that_of_the_bridge(made: Made) -> None:
    assert list(made.parent.iterdir()) == []
    (first, one), (_, other) = made.new(), made.new()
    assert one != other
    assert first.variables == dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(one))
    assert stat.S_IMODE(one.stat().st_mode) == 0o700
    [folder] = made.parent.iterdir()
    assert one.parent == other.parent == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o711
    found = folder.stat()
    record = DirectoryRecord(str(folder), found.st_dev, found.st_ino)
    assert list(made.records.values()) == [record]


def test_empty_directory_is_removed_at_once(made: Made) -> None:
    directory, path = made.new()
    removed = fired(directory.remove(False))
    assert removed == [None]
    assert not path.exists()
    assert made.work == []
    # The program may have removed it itself.
    assert fired(directory.remove())


def test_directory_with_files_is_removed_in_a_thread(made: Made) -> None:
    directory, path = made.new("file")
    removed = fired(directory.remove(True))
    assert not removed
    assert path.exists()
    made.run()
    assert removed == [None]
    assert not path.exists()


def test_few_directories_are_emptied_at_a_time(made: Made) -> None:
    """`PRIVATE_TMP_REMOVALS`, for each server."""
    directories = [made.new("file")[0] for _ in range(PRIVATE_TMP_REMOVALS + 2)]
    removed = [fired(each.remove()) for each in directories]
    assert len(made.work) == PRIVATE_TMP_REMOVALS
    made.run()
    assert len(made.work) == PRIVATE_TMP_REMOVALS
    while made.work:
        made.run()
    assert all(removed)


def test_removal_that_takes_long_is_given_up(
    made: Made, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    """`PRIVATE_TMP_SECONDS`: the session ends, with a warning."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    directory, path = made.new(*map(str, range(10)))
    removed = fired(directory.remove())
    real = os.unlink

    def slow(name: str, **options: int) -> None:
        now[0] += PRIVATE_TMP_SECONDS / 4
        real(name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", slow)
        made.run()
    assert removed == [None]
    assert len(list(path.iterdir())) == 5
    [line] = log_lines
    assert line == (
        f"temporary files of 0c8a4a3e are left: {path}: its removal was given up; they are tried"
        " again when the bridge stops"
    )
    made.folder.stop()
    assert len(made.records) == 1, "the watchdog removes it"


def test_removal_that_hangs_or_does_not_begin_keeps_no_session(
    made: Made, log_lines: list[str]
) -> None:
    """`PRIVATE_TMP_SECONDS` count from the end of the process tree."""
    directories = [made.new("file") for _ in range(PRIVATE_TMP_REMOVALS + 1)]
    removed = [fired(each.remove()) for each, _ in directories]
    made.clock.advance(PRIVATE_TMP_SECONDS - 1)
    assert not any(removed)
    made.clock.advance(1)
    assert removed == [[None]] * len(directories)
    assert log_lines == [
        f"temporary files of 0c8a4a3e are left: {path}: its removal takes more than 60 s and goes"
        " on; they are tried again when the bridge stops"
        for _, path in directories
    ]
    # What comes late is no news, but done.
    while made.work:
        made.run()
    assert removed == [[None]] * len(directories)
    assert not any(path.exists() for _, path in directories)
    assert len(log_lines) == len(directories)


def test_late_failure_of_a_removal_is_no_second_end(made: Made) -> None:
    directory, _ = made.new("file")
    removed = fired(directory.remove())
    made.clock.advance(PRIVATE_TMP_SECONDS)
    made.work[0][1].errback(Failure(RuntimeError("the disk came back")))
    assert removed == [None]


def test_late_removal_takes_the_folder_along(tmp_path: Path) -> None:
    made = Made(tmp_path, transient=True)
    directory, _ = made.new("file")
    fired(directory.remove())
    made.clock.advance(PRIVATE_TMP_SECONDS)
    made.run()
    assert list(tmp_path.iterdir()) == []


def test_few_removals_wait(made: Made, log_lines: list[str]) -> None:
    """`PRIVATE_TMP_WAITING`: one more is left for the end of the bridge at once."""
    directory, path = made.new("file")
    for _ in range(PRIVATE_TMP_REMOVALS + PRIVATE_TMP_WAITING):
        assert not fired(directory.remove())
    assert fired(directory.remove()) == [None]
    [line] = log_lines
    assert f"{path}: too many others are being removed;" in line
    made.folder.stop()
    while made.work:
        made.run()
    assert made.clock.getDelayedCalls() == []


def test_stop_interrupts_removals(made: Made, log_lines: list[str]) -> None:
    """The watchdog follows at once: what is left is no news."""
    directory, path = made.new("file")
    removed = fired(directory.remove())
    made.folder.interrupt()
    made.run()
    assert removed == [None]
    assert path.exists()
    assert log_lines == []
    made.folder.stop()
    # The bridge may be started again.
    again, _ = made.new("file")
    assert not fired(again.remove())
    made.run()


def test_what_is_left_at_the_end_is_reported(made: Made, log_lines: list[str]) -> None:
    made.folder.report_rest()
    _, path = made.new("file")
    made.folder.report_rest()
    [line] = log_lines
    assert f"left in {path.parent}, which" in line
    (path / "file").unlink()
    path.rmdir()
    path.parent.rmdir()
    made.folder.report_rest()
    assert len(log_lines) == 1


def test_unexpected_error_ends_the_session_too(made: Made, logged_failures: list[Failure]) -> None:
    directory, path = made.new("file")
    removed = fired(directory.remove())
    made.work[0][1].errback(Failure(RuntimeError("no thread")))
    assert removed == [None]
    assert path.exists()
    assert len(logged_failures) == 1


def test_folder_goes_when_the_bridge_stops(made: Made) -> None:
    directory, _ = made.new()
    made.folder.stop()
    assert len(made.records) == 1
    directory.remove()
    assert len(list(made.parent.iterdir())) == 1
    made.folder.stop()
    assert made.records == {}
    assert list(made.parent.iterdir()) == []
    made.folder.stop()


def test_folder_of_a_launcher_alone_goes_with_its_last_directory(tmp_path: Path) -> None:
    made = Made(tmp_path, transient=True)
    (first, _), (second, _) = made.new(), made.new("file")
    second.remove()
    made.run()
    assert len(list(tmp_path.iterdir())) == 1
    first.discard()
    assert list(tmp_path.iterdir()) == []
    assert made.records == {}
    made.new()[0].remove()
    assert list(tmp_path.iterdir()) == []


def test_folder_that_somebody_has_removed_is_made_again(made: Made) -> None:
    directory, path = made.new()
    directory.remove()
    path.parent.rmdir()
    _, other = made.new()
    assert other.parent != path.parent
    [record] = made.records.values()
    assert record.path == str(other.parent)


@pytest.mark.parametrize("link", [False, True])
def test_folder_that_somebody_has_replaced_is_not_used(made: Made, link: bool) -> None:
    """Whoever owns it could have its files given away."""
    _, path = made.new()
    path.rmdir()
    path.parent.rmdir()
    elsewhere = made.parent / "elsewhere"
    elsewhere.mkdir()
    if link:
        path.parent.symlink_to(elsewhere)
    else:
        path.parent.mkdir()
    _, other = made.new()
    assert other.parent != path.parent
    assert not list(elsewhere.iterdir())
    assert not list(path.parent.iterdir())


def test_links_are_not_given_away(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is done in the folder that was made, whatever has its name."""
    given: list[dict[str, object]] = []
    monkeypatch.setattr(os, "chown", lambda name, uid, gid, **how: given.append(how))
    PrivateDirectories(made.folder, made.in_thread, made.clock, 1, 2).new("")
    [how] = given
    assert how["follow_symlinks"] is False
    assert isinstance(how["dir_fd"], int)


def test_missing_parent_is_an_error(tmp_path: Path) -> None:
    made = Made(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        made.new()
    assert made.records == {}


def test_directory_that_cannot_be_given_away_is_not_left(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **how: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    directories = PrivateDirectories(made.folder, made.in_thread, made.clock, 1, 2)
    with pytest.raises(PermissionError):
        directories.new("")
    [folder] = made.parent.iterdir()
    assert list(folder.iterdir()) == []


class Reactor(Clock):
    """A clock that other threads may call."""

    def __init__(self) -> None:
        super().__init__()
        self.called = threading.Event()

    def callFromThread(self, function: Callable[..., None], *arguments: object) -> None:
        self.callLater(0, function, *arguments)
        self.called.set()


def test_thread_reports_to_the_reactor() -> None:
    reactor = Reactor()
    done: list[object] = []
    in_daemon_thread(reactor, lambda: threading.current_thread().name).addBoth(done.append)
    assert reactor.called.wait(60)
    assert done == []
    reactor.advance(0)
    assert done == ["mcpbridge private_tmp"]


def test_thread_that_fails_reports_that() -> None:
    reactor = Reactor()
    done: list[Failure] = []

    def fail() -> str:
        raise ValueError

    in_daemon_thread(reactor, fail).addErrback(done.append)
    assert reactor.called.wait(60)
    reactor.advance(0)
    assert done[0].check(ValueError)
