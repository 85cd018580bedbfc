"""
Finding and signalling process trees, with real processes.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from mcpbridge.stdio import kill_pass, process_tags, procfs
from mcpbridge.stdio import reaper as reaper_module
from mcpbridge.stdio import untagged_processes as untagged_module
from mcpbridge.stdio.cleanup_records import CleanupRecords, ProcessRecord
from mcpbridge.stdio.exec_chain import Chain, Compiled, PythonShim, UtilLinux, find_chain, works
from mcpbridge.stdio.prctl import set_child_subreaper
from mcpbridge.stdio.process_tags import new_base
from mcpbridge.stdio.process_tracker import (
    SLICE_SECONDS,
    SWEEP_REST_FACTOR,
    SWEEP_SECONDS,
    ProcessTracker,
)
from mcpbridge.stdio.process_tree import (
    CLEAN_LOOKS,
    GroupTree,
    TaggedTree,
    signal_group,
)
from mcpbridge.stdio.reaper import REAP_SECONDS
from mcpbridge.stdio.untagged_processes import UntaggedProcesses
from tests.real.processes import eventually

#: How long anything may take, which is less than any process here sleeps.
PATIENCE = 60

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tags are for Linux")

#: A tree in which everything has left the group: setsid, a double fork, no environment.
STRAYS = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.execve(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(600)"], {})
    os._exit(0)
print("ready", flush=True)
time.sleep(600)
"""


def until(condition: Any) -> None:
    """Wait, with a generous bound, until something is so."""
    assert eventually(condition, PATIENCE), "it did not come to that"


def out_of_session(pids: list[int], leader: int) -> list[int]:
    """Those that are in no session of the leader, and have become what they were to be."""
    found = []
    for pid in pids:
        try:
            # In this order: one that is just exiting has neither, and one
            # that is still to become another program has both.
            if (
                os.getsid(pid) != leader
                and not Path(f"/proc/{pid}/environ").read_bytes()
                and Path(f"/proc/{pid}/cmdline").read_bytes()
            ):
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            # One that was only on the way.
            continue
    return found


def _chains() -> list[Chain]:
    """All that work here; the shim does everywhere."""
    links = [shutil.which(name) for name in ("env", "setsid", "prlimit", "setpriv")]
    found = [link for link in links if link is not None]
    chains: list[Chain] = [Compiled(), PythonShim()]
    if len(found) == len(links):
        chains.append(UtilLinux(*found))
    return [chain for chain in chains if works(chain)]


every_chain = pytest.mark.parametrize("chain", _chains(), ids=lambda chain: type(chain).__name__)


class Spawned:
    """Processes started as the launcher starts them, ended whatever happens."""

    def __init__(self) -> None:
        self.tracker = ProcessTracker(Clock(), new_base())
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(
        self, program: str, *arguments: str, chain: Chain | None = None
    ) -> tuple[subprocess.Popen[bytes], int]:
        tag = self.tracker.new_tag()
        path = shutil.which(program) or program
        line = (chain or find_chain()).wrap([path, *arguments], tag, None)
        process = subprocess.Popen(line, stdout=subprocess.PIPE)
        self.processes.append(process)
        return process, tag

    def found(self, tag: int) -> list[int]:
        return [
            each.pid
            for each in procfs.find_tagged(self.tracker.base)
            if each.tag == tag and not each.zombie
        ]

    def end(self) -> None:
        for each in procfs.find_tagged(self.tracker.base):
            procfs.signal_tagged(each.pid, each.tag, signal.SIGKILL)
        for process in self.processes:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def spawned() -> Iterator[Spawned]:
    """The processes of one test."""
    processes = Spawned()
    yield processes
    processes.end()


@given(st.binary(min_size=8, max_size=8), st.integers(-1, 2**64))
def test_base_leaves_room_for_all_tags(random: bytes, hard: int) -> None:
    """A base is 0, or all of its tags are below the hard limit and above what a limit may mean."""
    base = process_tags.choose_base(random, hard)
    if base:
        assert base % process_tags.TAGS == 0
        assert base + process_tags.TAGS <= (2**62 if hard < 0 else min(hard, 2**62))
        assert base >= 2**30
    else:
        assert 0 <= hard < 2**41


@linux
def test_chain_gives_session_tag_and_keeps_the_pid(spawned: Spawned) -> None:
    """The backend is the process that was spawned: leader of its session, with its tag."""
    process, tag = spawned.start("sleep", "600")
    until(lambda: procfs.tag_of(process.pid) == tag)
    until(lambda: os.getsid(process.pid) == process.pid)
    assert os.getpgid(process.pid) == process.pid
    until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")


@every_chain
def test_chains_do_the_same(spawned: Spawned, chain: Chain) -> None:
    """However it is done: the tag, a session of its own, and no signal is ignored."""
    shell = "grep SigIgn /proc/self/status; exec sleep 600"
    process, tag = spawned.start("/bin/sh", "-c", shell, chain=chain)
    assert process.stdout is not None
    # The C library keeps two signals, 32 and 33, for itself.
    assert int(process.stdout.readline().split()[1], 16) & 0x7FFFFFFF == 0
    assert procfs.tag_of(process.pid) == tag
    assert os.getsid(process.pid) == process.pid


@every_chain
def test_chains_report_a_missing_program(spawned: Spawned, chain: Chain) -> None:
    """A command that cannot be run ends with the statuses of a shell."""
    missing, _ = spawned.start("/nonexistent/command", chain=chain)
    forbidden, _ = spawned.start("/etc/passwd", chain=chain)
    assert missing.wait() == 127
    assert forbidden.wait() == 126


@every_chain
def test_chains_set_the_directory(chain: Chain) -> None:
    """The spawn itself needs none, and so no fork of the whole bridge."""
    line = chain.wrap(["/bin/pwd", "-P"], 0, "/usr")
    assert subprocess.check_output(line) == b"/usr\n"


@every_chain
def test_chains_die_with_their_parent(chain: Chain) -> None:
    """If the bridge is killed, every direct backend dies, also one that ignores EOF."""
    program = (
        "import os, subprocess, sys;"
        "from mcpbridge.stdio.exec_chain import *;"
        f"p = subprocess.Popen({chain!r}.wrap(['/bin/sleep', '600'], 0, None));"
        "print(p.pid, flush=True); sys.stdin.read(); os.kill(os.getpid(), 9)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    pid = int(parent.stdout.readline())
    child = os.pidfd_open(pid)
    until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    parent.stdin.close()
    parent.wait()
    parent.stdout.close()
    try:
        assert select.select([child], [], [], PATIENCE)[0], "the backend outlived the bridge"
    finally:
        os.close(child)


def test_compiled_launcher_notices_a_parent_that_is_already_dead() -> None:
    """The parent-death signal races with a parent that has died before."""
    compiled = Compiled()
    if not os.access(compiled.path, os.X_OK):
        pytest.skip("the launcher was not built here")
    # Not this process, whatever its number: in a container it may be 1.
    line = [compiled.path, "0", str(os.getpid() + 1), "-", "--", "/bin/true"]
    assert subprocess.run(line, check=False).returncode == 125
    assert subprocess.run([compiled.path], check=False, stderr=subprocess.PIPE).returncode == 125


def test_compiled_launcher_leaves_no_descriptor_open() -> None:
    """Only 0, 1 and 2 reach the backend."""
    compiled = Compiled()
    if not os.access(compiled.path, os.X_OK):
        pytest.skip("the launcher was not built here")
    extra = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(extra, True)
    try:
        line = compiled.wrap(["/bin/sh", "-c", "echo /proc/self/fd/*"], 0, None)
        shown = subprocess.check_output(line, close_fds=False).decode().split()
    finally:
        os.close(extra)
    # The fourth is the one that the shell lists them with.
    assert {os.path.basename(path) for path in shown} <= {"0", "1", "2", "3"}


def test_find_chain_tries_before_it_trusts() -> None:
    """A chain that does not do what it should is not taken."""
    assert works(find_chain())
    assert not works(Compiled("/bin/true"))
    assert not works(Compiled("/nonexistent"))


@linux
def test_strays_are_found_by_their_tag_alone(spawned: Spawned) -> None:
    """beat: the whole tree is gone, also what left group, parent and environment behind."""
    process, tag = spawned.start(sys.executable, "-S", "-c", STRAYS)
    other, other_tag = spawned.start("sleep", "600")
    assert process.stdout is not None
    process.stdout.readline()
    until(lambda: len(out_of_session(spawned.found(tag), process.pid)) == 1)
    (stray,) = out_of_session(spawned.found(tag), process.pid)
    assert procfs.signal_tagged(stray, tag, signal.SIGTERM)
    assert not procfs.signal_tagged(other.pid, tag, signal.SIGKILL), "another session's"
    assert not procfs.signal_tagged(os.getpid(), tag, signal.SIGKILL), "nobody's"
    assert procfs.signal_tagged(stray, tag, signal.SIGKILL)
    until(lambda: spawned.found(tag) == [process.pid])
    assert spawned.found(other_tag) == [other.pid]


@linux
def test_processes_of_other_sessions_are_skipped(spawned: Spawned) -> None:
    """The files of other sessions' processes are not read."""
    process, tag = spawned.start("sleep", "600")
    until(lambda: spawned.found(tag) == [process.pid])
    until(lambda: os.getsid(process.pid) == process.pid)
    assert procfs.find_tagged(spawned.tracker.base, {process.pid}) == []


def test_gone_process_has_no_tag() -> None:
    """A pid that nobody has: no tag, and no signal."""
    assert procfs.tag_of(2**22 + 5) == procfs.GONE


def test_tags_differ_and_skip_those_in_use() -> None:
    """No two living sessions have the same tag, also after all were used once."""
    tracker = ProcessTracker(Clock(), new_base())
    first = tracker.new_tag()
    tracker.leaders[1] = first
    tracker._last_tag = process_tags.TAGS - 1
    assert tracker.new_tag() == first + 1


class FoundTable:
    """A tracker whose table of processes is a list."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        #: Processor time.
        self.spent = 0.0
        self.tracker = ProcessTracker(self.clock, new_base(), processor_time=lambda: self.spent)
        self.table: list[procfs.Tagged] = []
        self.sweeps: list[set[int]] = []
        self.error: OSError | None = None
        self.unknown: list[int] = []
        monkeypatch.setattr(procfs, "read_table", self._read)

    def _read(self, base: int, skip: Any, *others: object) -> Generator[None, None, procfs.Table]:
        self.sweeps.append(set(skip))
        if self.error is not None:
            raise self.error
        yield
        return procfs.Table(self.table, self.unknown)


@pytest.fixture
def found_table(monkeypatch: pytest.MonkeyPatch) -> FoundTable:
    """A table of processes of the test's own."""
    return FoundTable(monkeypatch)


def test_one_sweep_answers_all_that_ask(found_table: FoundTable) -> None:
    """However many sessions end at once, the table is read once, and not again too soon."""
    tracker, clock = found_table.tracker, found_table.clock
    found_table.table = [procfs.Tagged(7, 101, False, 1), procfs.Tagged(8, 102, True, 1)]
    answers: list[list[int]] = []
    for tag in (101, 101, 102):
        tracker.look(tag).addCallback(answers.append)
    clock.advance(0)
    assert answers == [[7], [7], []]
    assert len(found_table.sweeps) == 1
    tracker.look(101).addCallback(answers.append)
    clock.advance(SWEEP_SECONDS / 2)
    assert len(found_table.sweeps) == 1
    clock.advance(SWEEP_SECONDS / 2)
    assert len(found_table.sweeps) == 2


def test_leaders_are_not_counted_and_others_sessions_skipped(found_table: FoundTable) -> None:
    """The leader is Twisted's to reap; what is surely another session's is not looked at."""
    tracker, clock = found_table.tracker, found_table.clock
    tracker.leader_started(7, 101)
    tracker.leader_started(9, 103)
    found_table.table = [procfs.Tagged(7, 101, False, 1), procfs.Tagged(8, 101, False, 1)]
    answers: list[list[int]] = []
    tracker.look(101).addCallback(answers.append)
    clock.advance(0)
    assert answers == [[8]]
    assert found_table.sweeps == [{9}]
    tracker.leader_exited(7)
    tracker.leader_exited(9)
    assert clock.getDelayedCalls() == []


def test_table_that_cannot_be_read_fails_the_look(found_table: FoundTable) -> None:
    """Out of descriptors, what was not seen is not taken for gone."""
    found_table.error = OSError(24, "Too many open files")
    failures: list[Any] = []
    found_table.tracker.look(101).addErrback(failures.append)
    found_table.clock.advance(0)
    assert failures[0].check(OSError)


def test_tree_is_gone_only_after_two_empty_looks(found_table: FoundTable) -> None:
    """A process may be born behind the place that a look has passed."""
    clock = found_table.clock
    tree = TaggedTree(6, 101, found_table.tracker)
    answers: list[list[int]] = []
    found_table.table = [procfs.Tagged(7, 101, False, 1)]
    tree.look().addCallback(answers.append)
    clock.advance(0)
    found_table.table = []
    tree.look().addCallback(answers.append)
    clock.advance(SWEEP_SECONDS)
    assert answers == [[7]]
    clock.advance(SWEEP_SECONDS)
    assert answers == [[7], []]
    assert len(found_table.sweeps) == 3


def test_empty_looks_must_be_consecutive(found_table: FoundTable) -> None:
    """promise: nothing is called gone before it is proven, the first time too."""
    clock, tracker = found_table.clock, found_table.tracker
    tree = TaggedTree(6, 101, tracker)
    answers: list[list[int]] = []
    tree.look().addCallback(answers.append)
    clock.advance(0)
    assert answers == []
    found_table.table = [procfs.Tagged(7, 101, False, 1)]
    clock.advance(SWEEP_SECONDS)
    assert answers == [[7]]
    # What was gone before it could be read may have a child that lives.
    found_table.table, found_table.unknown = [], [8]
    tree.look().addCallback(answers.append)
    clock.advance(SWEEP_SECONDS)
    assert answers == [[7], [8]]
    assert CLEAN_LOOKS == 2


def test_only_looks_after_the_leaders_exit_count(found_table: FoundTable) -> None:
    """What a leader has started after a look has begun, that look may not have seen."""
    clock, tracker = found_table.clock, found_table.tracker
    tracker.leader_started(6, 101)
    tree = TaggedTree(6, 101, tracker)
    answers: list[list[int]] = []
    tree.look().addCallback(answers.append)
    tracker.leader_exited(6)
    clock.pump([0, SWEEP_SECONDS])
    assert answers == []
    clock.advance(SWEEP_SECONDS)
    assert answers == [[]]
    assert clock.getDelayedCalls() == []


def test_second_kill_is_a_kill_pass(
    found_table: FoundTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass for all trees that need it, before the next look."""
    passes: list[Any] = []
    monkeypatch.setattr(kill_pass, "kill_pass", lambda *told: passes.append(told))
    clock, tracker = found_table.clock, found_table.tracker
    trees = [TaggedTree(None, tag, tracker) for tag in (101, 102)]
    for tree in trees:
        tree.signal_rest([], signal.SIGTERM)
        tree.signal_rest([], signal.SIGKILL)
    clock.advance(SWEEP_SECONDS)
    assert passes == []
    for tree in trees:
        tree.signal_rest([], signal.SIGKILL)
    clock.advance(SWEEP_SECONDS)
    assert passes == [(tracker.base, {101, 102}, {}, {}, 0)]


def test_failed_kill_pass_fails_the_looks(
    found_table: FoundTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*told: object) -> NoReturn:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(kill_pass, "kill_pass", fail)
    failures: list[Any] = []
    found_table.tracker.kill(101)
    found_table.tracker.look(101).addErrback(failures.append)
    found_table.clock.advance(0)
    assert failures[0].check(OSError)
    found_table.tracker.look(101).addCallback(failures.append)
    found_table.clock.advance(SWEEP_SECONDS)
    assert failures[1:] == [[]]


def test_long_reading_is_sliced(found_table: FoundTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks meanwhile gets an answer of a reading that began later."""
    clock, tracker = found_table.clock, found_table.tracker
    events: list[Any] = []

    def read(*told: object) -> Generator[None, None, procfs.Table]:
        if not events:
            tracker.look(102).addCallback(events.append)
        for _ in range(2):
            events.append("slice")
            found_table.spent += SLICE_SECONDS
            # On a busy machine it waits for the processor, which is not what it has read.
            clock.rightNow += 10 * SLICE_SECONDS
            clock.callLater(0, events.append, "others")
            yield
        return procfs.Table([], [])

    monkeypatch.setattr(procfs, "read_table", read)
    events.clear()
    tracker.look(101).addCallback(events.append)
    clock.advance(0)
    assert events == ["slice", "others", "slice", "others", []]
    # For a tenth of one processor: it rests for ten times as long as it has read.
    clock.advance(SWEEP_REST_FACTOR * 2 * SLICE_SECONDS - 0.001)
    assert len(events) == 5
    clock.advance(0.001)
    assert len(events) == 10


@linux
def test_untagged_process_is_held_until_it_ends() -> None:
    """Its number is its own as long as a descriptor of it says that it lives."""
    records = CleanupRecords()
    untagged = UntaggedProcesses(records)
    process = subprocess.Popen(["sleep", "600"])
    untagged.hold(process.pid, 101, lambda: False)
    assert untagged.tags() == {}
    for _ in range(2):
        untagged.hold(process.pid, 101, lambda: True)
    assert untagged.tags() == {process.pid: 101}
    started = procfs.start_time(process.pid)
    assert started is not None
    assert list(records) == [ProcessRecord(process.pid, started)]
    assert records._owned.keys() == {101}
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert untagged.tags() == {}
    assert list(records) == []
    # An adopted one is reaped.
    with pytest.raises(ChildProcessError):
        os.waitpid(process.pid, 0)
    process.wait()


@linux
def test_held_processes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """KNOWN_PROCESSES: each takes a descriptor."""
    monkeypatch.setattr(untagged_module, "KNOWN_PROCESSES", 1)
    untagged = UntaggedProcesses(CleanupRecords())
    processes = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    for each in processes:
        untagged.hold(each.pid, 101, lambda: True)
    assert untagged.tags() == {processes[0].pid: 101}
    for each in processes:
        each.kill()
        os.waitid(os.P_PID, each.pid, os.WEXITED | os.WNOWAIT)
    assert untagged.tags() == {}
    for each in processes:
        each.wait()


def no_descriptors(*told: object) -> NoReturn:
    raise OSError(errno.EMFILE, "Too many open files")


@linux
def test_process_is_not_held_without_free_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The descriptor of the process may be the last that the bridge can have."""
    monkeypatch.setattr(procfs, "start_time", no_descriptors)
    records = CleanupRecords()
    untagged = UntaggedProcesses(records)
    process = subprocess.Popen(["sleep", "600"])
    before = os.listdir("/proc/self/fd")
    untagged.hold(process.pid, 101, lambda: True)
    untagged.hold(process.pid, 101, no_descriptors)
    assert os.listdir("/proc/self/fd") == before
    assert (untagged.tags(), list(records)) == ({}, [])
    process.kill()
    process.wait()


@pytest.mark.parametrize("fails", ["hold", "tags"])
def test_every_look_is_answered(
    found_table: FoundTable, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Otherwise no tree of any session would be looked at, or killed, ever again."""
    tracker, clock = found_table.tracker, found_table.clock
    found_table.table = [procfs.Tagged(7, 101, False, 1, tagged=False)]
    answers: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(UntaggedProcesses, fails, no_descriptors)
        tracker.look(101).addBoth(answers.append)
        clock.advance(0)
        assert [each.type for each in answers] == [OSError]
    found_table.table = []
    tracker.look(101).addCallback(answers.append)
    clock.advance(SWEEP_SECONDS)
    assert answers[1:] == [[]]


def test_failed_search_for_zombies_does_not_block_looks(
    found_table: FoundTable, monkeypatch: pytest.MonkeyPatch, logged_failures: list[Any]
) -> None:
    tracker, clock = found_table.tracker, found_table.clock
    monkeypatch.setattr(procfs, "own_children", lambda: None)
    with monkeypatch.context() as patch:
        patch.setattr(UntaggedProcesses, "tags", no_descriptors)
        tracker.leader_started(7, 101)
        clock.advance(REAP_SECONDS)
        clock.advance(0)
    assert [each.type for each in logged_failures] == [OSError]
    answers: list[Any] = []
    tracker.look(101).addCallback(answers.append)
    clock.advance(SWEEP_SECONDS)
    assert answers == [[]]
    tracker.leader_exited(7)


@linux
def test_failed_signal_is_logged_once(
    found_table: FoundTable, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    def refuse(*told: object) -> NoReturn:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(procfs, "signal_if", refuse)
    tree = TaggedTree(None, 101, found_table.tracker)
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        tree.signal_rest([7, 8], number)
    assert log_lines == ["cannot signal process 7: Operation not permitted"]
    found_table.clock.advance(0)


@linux
def test_adopted_zombies_are_reaped_and_no_other(spawned: Spawned) -> None:
    """No zombie remains, and the status of somebody else's child is not taken."""
    stranger = subprocess.Popen(["true"])
    mine, tag = spawned.start("sleep", "600")
    until(lambda: procfs.tag_of(mine.pid) == tag)
    tracker, clock = spawned.tracker, spawned.tracker._clock
    assert isinstance(clock, Clock)
    tracker.leader_started(1, 0)
    mine.kill()
    os.waitid(os.P_PID, stranger.pid, os.WEXITED | os.WNOWAIT)
    os.waitid(os.P_PID, mine.pid, os.WEXITED | os.WNOWAIT)
    clock.advance(REAP_SECONDS)
    with pytest.raises(ChildProcessError):
        os.waitpid(mine.pid, 0)
    assert stranger.wait() == 0
    tracker.leader_exited(1)
    assert clock.getDelayedCalls() == []


@linux
def test_children_reaped_at_once_are_bounded(
    spawned: Spawned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REAPED_AT_ONCE: a process that forks without end leaves thousands in a second."""
    monkeypatch.setattr(reaper_module, "REAPED_AT_ONCE", 1)
    tracker, clock = spawned.tracker, spawned.tracker._clock
    assert isinstance(clock, Clock)
    started = [spawned.start("sleep", "600") for _ in range(2)]
    until(lambda: all(procfs.tag_of(process.pid) == tag for process, tag in started))
    processes = [process for process, _ in started]
    children = [each.pid for each in processes]
    assert set(children) <= set(procfs.own_children() or ())
    monkeypatch.setattr(procfs, "own_children", lambda: children)
    tracker.leader_started(1, 0)
    for each in processes:
        each.kill()
        os.waitid(os.P_PID, each.pid, os.WEXITED | os.WNOWAIT)
    delays: list[float] = []
    later = clock.callLater

    def note(delay: float, *call: Any) -> Any:
        delays.append(delay)
        return later(delay, *call)

    monkeypatch.setattr(clock, "callLater", note)
    clock.advance(REAP_SECONDS)
    assert delays == [0, REAP_SECONDS]
    for pid in children:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, 0)
    tracker.leader_exited(1)
    assert clock.getDelayedCalls() == []


@linux
def test_no_zombie_outlives_the_last_session(spawned: Spawned) -> None:
    mine, tag = spawned.start("sleep", "600")
    until(lambda: procfs.tag_of(mine.pid) == tag)
    tracker = spawned.tracker
    tracker.leader_started(1, 0)
    mine.kill()
    os.waitid(os.P_PID, mine.pid, os.WEXITED | os.WNOWAIT)
    tracker.leader_exited(1)
    with pytest.raises(ChildProcessError):
        os.waitpid(mine.pid, 0)


@linux
def test_without_a_list_of_children_the_table_is_read(
    spawned: Spawned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel without CONFIG_PROC_CHILDREN."""
    monkeypatch.setattr(procfs, "own_children", lambda: None)
    mine, tag = spawned.start("sleep", "600")
    until(lambda: procfs.tag_of(mine.pid) == tag)
    tracker, clock = spawned.tracker, spawned.tracker._clock
    assert isinstance(clock, Clock)
    tracker.leader_started(1, 0)
    mine.kill()
    os.waitid(os.P_PID, mine.pid, os.WEXITED | os.WNOWAIT)
    clock.advance(REAP_SECONDS)
    clock.advance(0)
    with pytest.raises(ChildProcessError):
        os.waitpid(mine.pid, 0)
    tracker.leader_exited(1)
    assert clock.getDelayedCalls() == []


def test_group_before_setsid_is_not_signalled() -> None:
    """Until `setsid` has run the child's group is our own: the child alone is signalled."""
    process = subprocess.Popen(["sleep", "600"])
    signal_group(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    signal_group(process.pid, signal.SIGKILL)


def test_group_tree_knows_members_without_tags() -> None:
    """Elsewhere than on Linux: the group, after its leader has exited too."""
    clock = Clock()
    # In a container the first process may reap nobody, and then it is for this one to do.
    adopts = set_child_subreaper(True)
    process = subprocess.Popen(
        ["sh", "-c", "sleep 600 & echo $!"], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    member = int(process.stdout.readline())
    process.wait()
    process.stdout.close()
    set_child_subreaper(False)
    tree = GroupTree(process.pid, clock)
    answers: list[list[int]] = []

    def look() -> list[int]:
        tree.look().addCallback(answers.append)
        clock.advance(SWEEP_SECONDS)
        return answers[-1]

    assert look() == [process.pid]
    tree.signal_rest([process.pid], signal.SIGKILL)
    if adopts:
        os.waitpid(member, 0)
    until(lambda: look() == [])
