"""Find and kill processes that are hard to find, with real processes."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.stdio import kill_pass, process_tags, procfs
from mcpbridge.stdio.exec_chain import find_chain
from mcpbridge.stdio.process_tags import Machine
from tests.real.processes import eventually

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tags are for Linux")

ORPHANS = Path(__file__).parents[2] / "e2e" / "backends" / "orphans.py"
BASE = process_tags.choose_base(os.urandom(8), -1)
TAG = BASE + 1
#: How a process can be found: what holds on a machine.
MACHINES = {
    "all": Machine(tags=True),
    "hidden": Machine(tags=True, hidden=True),
    "no proc": Machine(tags=True, proc=False),
    "no pidfds": Machine(tags=True, pidfds=False),
}


def wait_until(condition: Any) -> None:
    """Wait until the condition is true."""
    assert eventually(condition, 60), "the condition is still false"


class Backend:
    """A backend as the launcher starts it; `runs` tells whether any of its processes is left."""

    def __init__(self, folder: Path, how: str, tag: int = TAG) -> None:
        self.folder = folder
        line = [sys.executable, "-I", "-S", str(ORPHANS), how, str(folder)]
        self.leader = subprocess.Popen(
            find_chain().wrap(line, tag, None), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.leader.stdout is not None
        self.leader.stdout.readline()

    def runs(self) -> bool:
        for name in os.listdir(self.folder):
            with (self.folder / name).open("wb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return True
        return False

    def found(self, **proofs: Any) -> list[procfs.Tagged]:
        reading = procfs.read_table(BASE, **proofs)
        while True:
            try:
                next(reading)
            except StopIteration as done:
                table: procfs.Table = done.value
                assert not table.unknown
                # Where the first process reaps late, zombies of other tests are there too.
                living = [each for each in table.found if not each.zombie]
                return [each for each in living if each.pid != self.leader.pid]

    def end(self) -> None:
        self.leader.kill()
        for _ in range(1000):
            kill_pass.kill_pass(BASE, None, {self.leader.pid: TAG})
            if not self.runs():
                break
        assert self.leader.stdin is not None
        assert self.leader.stdout is not None
        self.leader.stdin.close()
        self.leader.stdout.close()
        self.leader.wait()


@pytest.fixture
def backends(tmp_path: Path) -> Iterator[Any]:
    """Start backends, and end them after the test."""
    started: list[Backend] = []

    def start(how: str, tag: int = TAG) -> Backend:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Backend(folder, how, tag))
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture(params=MACHINES)
def every_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test for each kind of machine."""
    here = MACHINES[request.param]
    monkeypatch.setattr(procfs, "machine", lambda: here)
    if not here.pidfds:
        monkeypatch.setattr(procfs, "_open", lambda pid: None)
    if not here.proc:
        monkeypatch.setattr(procfs, "_stat", lambda pid: [])


@pytest.mark.parametrize("how", ["renew-1", "renew-5", "threads", "limit"])
def test_forking_process_cannot_outrun_a_kill_pass(backends: Any, how: str) -> None:
    """A process that keeps replacing itself is stopped, then killed, in one pass or a few."""
    backend = backends(how)
    backend.leader.kill()
    backend.leader.wait()
    assert backend.found()
    for _ in range(5):
        kill_pass.kill_pass(BASE, {TAG})
        if not eventually(backend.runs, 0):
            break
    wait_until(lambda: not backend.runs())
    assert not backend.found()


@pytest.mark.usefixtures("every_machine")
@pytest.mark.parametrize("how", ["threads", "limit", "limits"])
def test_processes_are_found_on_every_kind_of_machine(backends: Any, how: str) -> None:
    """Also if /proc hides processes or is missing, and if pidfd_open(2) is refused."""
    backend = backends(how)
    # It is not reaped yet, so its pid still identifies its session.
    backend.leader.kill()
    os.waitid(os.P_PID, backend.leader.pid, os.WEXITED | os.WNOWAIT)
    sessions = {backend.leader.pid: TAG}
    found = backend.found(sessions=sessions, since=backend.leader.pid)
    assert {each.tag for each in found} == {TAG}
    assert {each.tagged for each in found} == {how != "limits"}
    assert kill_pass.kill_pass(BASE, {TAG}, sessions, {}, backend.leader.pid) >= len(found)
    wait_until(lambda: not backend.runs())


def test_untagged_process_without_proof_is_spared(backends: Any) -> None:
    """Neither its parent nor a session whose leader was reaped is a proof."""
    backend = backends("limits")
    backend.leader.kill()
    backend.leader.wait()
    assert backend.found() == []
    assert kill_pass.kill_pass(BASE) == 0
    assert backend.runs()


def test_other_tags_are_spared(backends: Any) -> None:
    ours, other = backends("limit"), backends("limit", TAG + 1)
    assert kill_pass.kill_pass(BASE, {TAG}) == 2
    wait_until(lambda: not ours.runs())
    assert other.runs()
    assert other.leader.poll() is None


def test_failed_kill_pass_kills_what_it_stopped(
    backends: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stays stopped."""
    backend = backends("limit")
    examine = procfs.Reader.examine

    def fail(self: procfs.Reader, pid: int) -> procfs.Tagged | bool | None:
        found = examine(self, pid)
        if pid < backend.leader.pid:
            raise OSError(24, "Too many open files")
        return found

    monkeypatch.setattr(procfs.Reader, "examine", fail)
    with pytest.raises(OSError, match="Too many"):
        kill_pass.kill_pass(BASE)
    monkeypatch.undo()
    wait_until(lambda: not backend.runs())


def test_process_gone_before_it_was_read_leads_to_another_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A table is complete only if every listed process could be read."""
    rounds: list[int] = []

    def listing() -> list[int]:
        rounds.append(process_tags.DEFAULT_PID_MAX + 5 + len(rounds))
        return [*rounds, os.getpid()] if len(rounds) < last else [os.getpid()]

    monkeypatch.setattr(procfs, "listed_processes", listing)

    def read() -> procfs.Table:
        reading = procfs.read_table(BASE)
        while True:
            try:
                next(reading)
            except StopIteration as done:
                table: procfs.Table = done.value
                return table

    last = 3
    assert read() == procfs.Table([], [])
    assert len(rounds) == 3
    last = 10**9
    assert read().unknown
    assert len(rounds) == 3 + procfs.ROUNDS


def test_process_that_became_a_zombie_leads_to_another_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have forked after it was listed."""
    first = process_tags.DEFAULT_PID_MAX + 5
    listings = [[first], [first + 1, first], [first + 1, first]]
    monkeypatch.setattr(procfs, "listed_processes", lambda: listings.pop(0))

    def examine(self: procfs.Reader, pid: int) -> procfs.Tagged:
        self.examined.add(pid)
        return procfs.Tagged(pid, TAG, pid == first, 1)

    monkeypatch.setattr(procfs.Reader, "examine", examine)
    monkeypatch.setattr(kill_pass, "newest_process", lambda: 0)
    with pytest.raises(StopIteration) as done:
        next(procfs.read_table(BASE))
    table: procfs.Table = done.value.value
    assert [(each.pid, each.zombie) for each in table.found] == [(first, True), (first + 1, False)]
    assert table.unknown == []
    listings[:] = [[first], [first + 1, first], [first + 1, first]]
    assert kill_pass.kill_pass(BASE, {TAG}) == 1


def test_tag_survives_the_change_of_one_limit(backends: Any) -> None:
    """`ulimit -m` changes one of the two limits."""
    backend = backends("ending")
    pid = backend.leader.pid
    assert procfs.limits_of(pid) == procfs._limits_in_file(pid)
    assert procfs.tag_of(pid) == TAG
    for limit in process_tags.LIMITS:
        resource.prlimit(pid, limit, (1 << 30, 1 << 30))
        cleared = limit == process_tags.LIMITS[-1]
        assert procfs.limits_of(pid) == procfs._limits_in_file(pid)
        assert procfs.tag_of(pid) == (1 << 30 if cleared else TAG)
    resource.prlimit(pid, process_tags.LIMITS[0], (1 << 29, 1 << 30))
    assert procfs.tag_of(os.getpid()) == procfs.NONE
    assert procfs._limits_in_file(process_tags.DEFAULT_PID_MAX + 5) is None


def test_without_pidfds_a_process_is_checked_twice_before_a_signal(
    backends: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backends("ending")
    monkeypatch.setattr(procfs, "_open", lambda pid: None)
    answers = [True, False]
    assert not procfs.signal_if(backend.leader.pid, signal.SIGKILL, lambda: answers.pop(0))
    assert answers == []
    times = [1, 2]
    monkeypatch.setattr(procfs, "start_time", lambda pid: times.pop(0))
    assert not procfs.signal_if(backend.leader.pid, signal.SIGKILL, lambda: True)
    assert backend.leader.poll() is None


@pytest.mark.parametrize(
    ("here", "words"),
    [
        (MACHINES["all"], []),
        (MACHINES["hidden"], ["hidepid"]),
        (MACHINES["no proc"], ["no /proc"]),
        (MACHINES["no pidfds"], ["pidfd_open"]),
        (Machine(tags=False), ["only the backends themselves are"]),
        (Machine(tags=True, proc=False, pidfds=False), ["no /proc", "pidfd_open"]),
    ],
)
def test_shortcomings_of_the_machine_are_reported(
    here: Machine, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_tags, "machine", lambda: here)
    said = process_tags.shortcomings()
    assert len(said) == len(words)
    assert all(word in each for word, each in zip(words, said, strict=True))


@pytest.mark.parametrize(
    ("options", "able", "hides"),
    [
        ("rw", False, False),
        ("rw,hidepid=invisible", False, True),
        ("rw,hidepid=2", False, True),
        ("rw,hidepid=off", False, False),
        ("rw,hidepid=0,gid=4", False, False),
        ("rw,gid=1000,hidepid=2", False, False),
        ("rw,gid=1000,hidepid=ptraceable", False, True),
        ("rw,gid=1001,hidepid=noaccess", False, True),
        ("rw,hidepid=2", True, False),
    ],
)
def test_hidepid_is_recognised(
    options: str, able: bool, hides: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the mount options of /proc, if they apply to this process."""
    monkeypatch.setattr(os, "getegid", lambda: 1000)
    monkeypatch.setattr(os, "getgroups", list)
    mounts = [
        "21 1 0:5 / / rw - ext4 /dev/vda rw",
        "22 21 0:6 / /proc rw,nosuid - proc proc rw,hidepid=2",
        f"23 21 0:6 / /proc rw,nosuid - proc proc {options}\n",
    ]
    status = [f"CapEff:\t{1 << 19 if able else 0:016x}\n"]
    assert process_tags.hides(mounts, status) is hides


@given(st.integers(0, 400), st.integers(1, 400))
def test_possible_processes_are_all_pids_since_the_oldest(since: int, newest: int) -> None:
    """Also if the numbers have wrapped around."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_tags, "newest_process", lambda: newest)
        numbers = set(process_tags.possible_processes(since))
    assert {since or 1, newest} <= numbers
    if since and since <= newest:
        assert numbers == set(range(since, newest + 1))


#: Begins a session, starts a sleeper in its group that carries a tag, and sleeps too.
SUPERVISOR = """
import os, resource, subprocess, sys, time
os.setsid()
child = subprocess.Popen(["sleep", "600"])
for limit in (resource.RLIMIT_RSS, 10):
    resource.prlimit(child.pid, limit, (int(sys.argv[1]),) * 2)
print(child.pid, flush=True)
print(child.wait(), flush=True)
time.sleep(600)
"""


def test_group_of_a_watchdog_that_is_starting_is_not_killed() -> None:
    """It is tagged with the base itself, and still in the group of what started the bridge."""
    command = [sys.executable, "-I", "-S", "-c", SUPERVISOR, str(BASE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        try:
            supervisor.stdout.readline()
            assert kill_pass.kill_pass(BASE) == 1
            assert int(supervisor.stdout.readline()) == -signal.SIGKILL
            assert supervisor.poll() is None
        finally:
            supervisor.kill()
