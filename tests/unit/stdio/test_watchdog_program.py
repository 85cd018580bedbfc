"""
The bounds of the watchdog's program, with a clock and an engine of the test's own.
The program as a process is tested in `tests/integration`.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from mcpbridge.stdio import watchdog_program
from mcpbridge.stdio.cleanup_records import ProcessRecord
from mcpbridge.stdio.watchdog_program import (
    BIRTH_SECONDS,
    CLEAN_LOOKS,
    DIRECTORY_PREFIX,
    DIRECTORY_SECONDS,
    ENGINE_PAUSE_SECONDS,
    ENGINE_SECONDS,
    ENGINE_TRIES,
    GIVE_UP_SECONDS,
    LINE_BYTES,
    PAUSE_SECONDS,
    Records,
    kill_all,
    remove_containers,
    remove_directory,
    run_engine,
)

BASE = 1 << 40


class Time:
    """A clock that only `sleep` moves on; a loop without end fails."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        self._calls = 0

    def monotonic(self) -> float:
        self._count()
        return self.now

    def sleep(self, seconds: float) -> None:
        self._count()
        self.slept.append(seconds)
        self.now += seconds

    def _count(self) -> None:
        self._calls += 1
        assert self._calls < 10 * GIVE_UP_SECONDS / PAUSE_SECONDS, "it goes on without end"


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(watchdog_program, "time", time)
    return time


@pytest.fixture
def tagged(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that every look at the process table finds, however often they are killed."""
    found: list[Any] = []
    monkeypatch.setattr(watchdog_program, "kill_pass", lambda base: None)
    monkeypatch.setattr(watchdog_program, "find_tagged", lambda base: found)
    return found


def test_killing_is_given_up_after_a_time(time: Time, tagged: list[Any]) -> None:
    """`GIVE_UP_SECONDS`: a process in uninterruptible sleep stays; the report counts it."""
    tagged.append(SimpleNamespace(pid=2, zombie=False))
    began = time.now
    assert kill_all(BASE) == 1
    assert GIVE_UP_SECONDS <= time.now - began < GIVE_UP_SECONDS + 2 * PAUSE_SECONDS


def test_looks_at_the_process_table_have_pauses(time: Time, tagged: list[Any]) -> None:
    """`PAUSE_SECONDS` between them, and `CLEAN_LOOKS` of them must find nothing."""
    tagged.append(SimpleNamespace(pid=2, zombie=True))
    assert kill_all(BASE) == 0
    assert time.slept == [PAUSE_SECONDS] * CLEAN_LOOKS


def engine(monkeypatch: pytest.MonkeyPatch, answer: Callable[[list[str]], str]) -> list[list[str]]:
    """Have commands of the engine answered; return the list of those that were run."""
    commands: list[list[str]] = []

    def run(command: list[str], environment: dict[str, str]) -> str:
        commands.append(command)
        return answer(command)

    monkeypatch.setattr(watchdog_program, "run_engine", run)
    return commands


def remove() -> tuple[int, str]:
    return remove_containers(["docker"], "label=a=b", {"TMPDIR": "/nonexistent"})


def test_failing_engine_is_tried_a_limited_number_of_times(
    time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ENGINE_TRIES`, with `ENGINE_PAUSE_SECONDS` between them; the report says why."""

    def fail(command: list[str]) -> NoReturn:
        raise ValueError("the daemon is away")

    commands = engine(monkeypatch, fail)
    assert remove() == (0, "docker: the daemon is away")
    assert len(commands) == ENGINE_TRIES
    assert set(time.slept) == {ENGINE_PAUSE_SECONDS}


def test_remaining_container_is_removed_a_limited_number_of_times(
    time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ENGINE_TRIES`: the engine says that it has removed it, and lists it again."""
    commands = engine(monkeypatch, lambda command: {"ps": "c1\n", "rm": ""}.get(command[1], "b "))
    assert remove() == (1, "docker: containers are left")
    assert sum(command[1] == "rm" for command in commands) == ENGINE_TRIES


def test_late_containers_are_awaited_for_a_time(
    time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`BIRTH_SECONDS`: the engine may still create what a dead CLI has asked for."""
    engine(monkeypatch, lambda command: "")
    began = time.now
    assert remove() == (0, "")
    assert BIRTH_SECONDS <= time.now - began <= BIRTH_SECONDS + ENGINE_PAUSE_SECONDS


def test_engine_that_hangs_is_not_awaited(time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ENGINE_SECONDS`: a command that takes longer has failed."""

    def hang(command: list[str], *, timeout: float, **options: Any) -> NoReturn:
        time.now += timeout
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    began = time.now
    with pytest.raises(subprocess.TimeoutExpired):
        run_engine(["docker", "ps"], {})
    assert time.now - began == ENGINE_SECONDS
    _, problem = remove()
    assert f"timed out after {ENGINE_SECONDS} seconds" in problem


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory of a bridge, with files in it."""
    path = tmp_path / f"{DIRECTORY_PREFIX}x"
    path.mkdir()
    for number in range(10):
        (path / str(number)).touch()
    return path


def test_directory_is_removed_if_it_is_the_one(time: Time, directory: Path) -> None:
    """By device and inode, and only one with a name that the bridge makes."""
    found = directory.stat()
    which = (found.st_dev, found.st_ino)
    assert remove_directory(str(directory), which[0], which[1] + 1) == (0, "")
    other = directory.with_name("other")
    directory.rename(other)
    assert remove_directory(str(directory), *which) == (0, "")
    assert remove_directory(str(other), *which) == (0, "")
    assert remove_directory(directory.name, *which) == (0, "")
    other.rename(directory)
    assert remove_directory(str(directory), *which) == (1, "")
    assert not directory.exists()


def test_directory_is_given_up_after_a_time(
    time: Time, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`DIRECTORY_SECONDS`: the report says what is left."""
    real = os.unlink

    def slow(name: str, **options: int) -> None:
        time.sleep(DIRECTORY_SECONDS / 3)
        real(name, **options)

    found = directory.stat()
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", slow)
        count, problem = remove_directory(str(directory), found.st_dev, found.st_ino)
    assert (count, problem) == (1, f"{directory}: its removal was given up")
    assert 0 < len(list(directory.iterdir())) < 10


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """What is written to the descriptor of stderr."""
    written: list[bytes] = []

    def write(descriptor: int, data: bytes) -> int:
        assert descriptor == 2
        written.append(data)
        return len(data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        yield written


def record(pid: int) -> dict[str, Any]:
    return ProcessRecord(pid, 1).as_json()


def order(pid: int) -> bytes:
    return json.dumps({"add": record(pid)}).encode() + b"\n"


def test_long_line_is_dropped_and_reported(stderr: list[bytes]) -> None:
    """`LINE_BYTES`: the bridge logs what the watchdog writes to stderr."""
    records = Records()
    records.receive(order(1))
    for _ in range(8):
        records.receive(b" " * (LINE_BYTES // 2))
        assert len(records._partial) <= LINE_BYTES
    records.receive(order(2) + order(3))
    assert records.all() == [record(1), record(3)]
    [line] = stderr
    assert b"LINE_BYTES" in line


def test_line_of_the_longest_length_counts(stderr: list[bytes]) -> None:
    records = Records()
    records.receive(b" " * LINE_BYTES)
    records.receive(order(1))
    assert records.all() == [record(1)]
    assert stderr == []
