"""Find and signal process trees, with real processes."""

from __future__ import annotations

import errno
import gc
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Container, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from mcpbridge.stdio import exec_chain, kill_pass, process_tags, process_tree, procfs
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


def wait_until(condition: Any) -> None:
    """Wait until the condition is true."""
    assert eventually(condition, PATIENCE), "the condition is still false"


def out_of_session(pids: list[int], leader: int) -> list[int]:
    """Return the processes that are outside the leader's session and have called execve."""
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
    """Return all chains that work here; the shim always does."""
    links = [shutil.which(name) for name in ("env", "setsid", "prlimit", "setpriv")]
    found = [link for link in links if link is not None]
    chains: list[Chain] = [Compiled(), PythonShim()]
    if len(found) == len(links):
        env, setsid, prlimit, setpriv = found
        chains.append(UtilLinux(env, setsid, prlimit, setpriv))
    return [chain for chain in chains if works(chain)]


every_chain = pytest.mark.parametrize("chain", _chains(), ids=lambda chain: type(chain).__name__)


class Spawned:
    """Processes that are started as the launcher starts them, and ended after the test."""

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
    """
    All tags of a base are below the hard limit, and above any limit that is really meant; base 0
    means no tags.
    """
    base = process_tags.choose_base(random, hard)
    if base:
        assert base % process_tags.TAGS == 0
        assert base + process_tags.TAGS <= (2**62 if hard < 0 else min(hard, 2**62))
        assert base >= 2**30
    else:
        assert 0 <= hard < 2**41


@linux
def test_chain_starts_a_session_with_a_tag_and_keeps_the_pid(spawned: Spawned) -> None:
    """The backend is the spawned process itself."""
    process, tag = spawned.start("sleep", "600")
    wait_until(lambda: procfs.tag_of(process.pid) == tag)
    wait_until(lambda: os.getsid(process.pid) == process.pid)
    assert os.getpgid(process.pid) == process.pid
    wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")


@every_chain
def test_every_chain_sets_tag_and_session_and_resets_signals(
    spawned: Spawned, chain: Chain
) -> None:
    shell = "grep SigIgn /proc/self/status; exec sleep 600"
    process, tag = spawned.start("/bin/sh", "-c", shell, chain=chain)
    assert process.stdout is not None
    # The C library keeps two signals, 32 and 33, for itself.
    assert int(process.stdout.readline().split()[1], 16) & 0x7FFFFFFF == 0
    assert procfs.tag_of(process.pid) == tag
    assert os.getsid(process.pid) == process.pid


@every_chain
def test_every_chain_reports_a_missing_program(spawned: Spawned, chain: Chain) -> None:
    """By the exit statuses of a shell."""
    missing, _ = spawned.start("/nonexistent/command", chain=chain)
    forbidden, _ = spawned.start("/etc/passwd", chain=chain)
    assert missing.wait() == 127
    assert forbidden.wait() == 126


@every_chain
def test_every_chain_sets_the_directory(chain: Chain) -> None:
    """If Twisted set it, the whole bridge would have to be forked."""
    line = chain.wrap(["/bin/pwd", "-P"], 0, "/usr")
    assert subprocess.check_output(line) == b"/usr\n"


@every_chain
@pytest.mark.parametrize("tag", [0, 1 << 41])
def test_every_chain_sets_the_limit_on_descriptors(chain: Any, tag: int) -> None:
    """To the soft limit that the bridge had before it raised its own; the hard one stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    command = ["/bin/sh", "-c", "ulimit -Sn; ulimit -Hn"]
    for lower in (0, min(soft, 512)):
        line = replace(chain, descriptors=lower).wrap(command, tag, None)
        shown = subprocess.check_output(line).decode().split()
        expected = [lower or soft, hard]
        assert [n if n == "unlimited" else int(n) for n in shown] == [
            "unlimited" if n == resource.RLIM_INFINITY else n for n in expected
        ]


@every_chain
def test_every_chain_dies_with_its_parent(chain: Chain) -> None:
    """If the bridge is killed, each direct backend dies, even one that ignores EOF."""
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
    wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
    parent.stdin.close()
    parent.wait()
    parent.stdout.close()
    try:
        assert select.select([child], [], [], PATIENCE)[0], "the backend outlived the bridge"
    finally:
        os.close(child)


def test_compiled_launcher_exits_if_its_parent_is_already_dead() -> None:
    """The parent may die before the parent-death signal is set."""
    compiled = Compiled()
    if not os.access(compiled.path, os.X_OK):
        pytest.skip("the launcher was not built here")
    # Any pid but that of this process, which may be 1 in a container.
    line = [compiled.path, "0", str(os.getpid() + 1), "-", "0", "--", "/bin/true"]
    assert subprocess.run(line, check=False).returncode == 125
    assert subprocess.run([compiled.path], check=False, stderr=subprocess.PIPE).returncode == 125


def test_compiled_launcher_leaves_no_descriptor_open() -> None:
    """The backend gets only 0, 1 and 2."""
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


def test_chain_that_does_not_work_is_not_chosen() -> None:
    assert works(find_chain())
    assert not works(Compiled("/bin/true"))
    assert not works(Compiled("/nonexistent"))


class SlowChain:
    """A chain that works, and takes its time."""

    closes_descriptors = False
    DELAY = "import os, sys, time; time.sleep(1); os.execv(sys.argv[1], sys.argv[1:])"

    def wrap(self, command: list[str], tag: int, directory: str | None) -> list[str]:
        delay = [sys.executable, "-I", "-S", "-c", self.DELAY]
        return [*delay, *PythonShim().wrap(command, tag, directory)]


@linux
def test_chain_that_takes_too_long_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """`TRIAL_SECONDS`: the start of the bridge does not wait for it."""
    monkeypatch.setattr(exec_chain, "TRIAL_SECONDS", PATIENCE)
    assert works(SlowChain())
    monkeypatch.setattr(exec_chain, "TRIAL_SECONDS", 0.1)
    assert not works(SlowChain())


@linux
def test_processes_outside_the_group_are_found_by_their_tag(spawned: Spawned) -> None:
    """Without their group, parent and environment; no process of another session is signalled."""
    process, tag = spawned.start(sys.executable, "-S", "-c", STRAYS)
    other, other_tag = spawned.start("sleep", "600")
    assert process.stdout is not None
    process.stdout.readline()
    wait_until(lambda: len(out_of_session(spawned.found(tag), process.pid)) == 1)
    (stray,) = out_of_session(spawned.found(tag), process.pid)
    assert procfs.signal_tagged(stray, tag, signal.SIGTERM)
    assert not procfs.signal_tagged(other.pid, tag, signal.SIGKILL), "another session's"
    assert not procfs.signal_tagged(os.getpid(), tag, signal.SIGKILL), "nobody's"
    assert procfs.signal_tagged(stray, tag, signal.SIGKILL)
    wait_until(lambda: spawned.found(tag) == [process.pid])
    assert spawned.found(other_tag) == [other.pid]


@linux
def test_processes_of_other_sessions_are_skipped(spawned: Spawned) -> None:
    """Their files in /proc are not read."""
    process, tag = spawned.start("sleep", "600")
    wait_until(lambda: spawned.found(tag) == [process.pid])
    wait_until(lambda: os.getsid(process.pid) == process.pid)
    assert procfs.find_tagged(spawned.tracker.base, {process.pid}) == []


def test_nonexistent_process_has_no_tag() -> None:
    """A pid that nobody has: no tag, and no signal."""
    assert procfs.tag_of(2**22 + 5) == procfs.GONE


def test_new_tag_is_never_one_in_use() -> None:
    """Also after all tags were used once."""
    tracker = ProcessTracker(Clock(), new_base())
    first = tracker.new_tag()
    tracker.leader_started(1, first)
    tracker._last_tag = process_tags.TAGS - 1
    assert tracker.new_tag() == first + 1
    tracker.leader_exited(1)
    tracker._last_tag = process_tags.TAGS - 1
    assert tracker.new_tag() == first


class FakeTable:
    """A tracker whose process table is a list."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        #: Processor time.
        self.spent = 0.0
        self.tracker = ProcessTracker(self.clock, new_base(), processor_time=lambda: self.spent)
        self.table: list[procfs.Tagged] = []
        #: The process sessions that each reading skips.
        self.sweeps: list[Container[int]] = []
        self.error: OSError | None = None
        self.unknown: list[int] = []
        monkeypatch.setattr(procfs, "read_table", self._read)

    def _read(self, base: int, skip: Any, *others: object) -> Generator[None, None, procfs.Table]:
        self.sweeps.append(skip)
        if self.error is not None:
            raise self.error
        yield
        return procfs.Table(self.table, self.unknown)


@pytest.fixture
def fake_table(monkeypatch: pytest.MonkeyPatch) -> FakeTable:
    """A process table that the test defines."""
    return FakeTable(monkeypatch)


def test_one_reading_of_the_table_serves_all_sessions(fake_table: FakeTable) -> None:
    """It is not repeated before SWEEP_SECONDS."""
    tracker, clock = fake_table.tracker, fake_table.clock
    fake_table.table = [procfs.Tagged(7, 101, False, 1), procfs.Tagged(8, 102, True, 1)]
    answers: list[list[int]] = []
    for tag in (101, 101, 102):
        tracker.look(tag).addCallback(answers.append)
    clock.advance(0)
    assert answers == [[7], [7], []]
    assert len(fake_table.sweeps) == 1
    tracker.look(101).addCallback(answers.append)
    clock.advance(SWEEP_SECONDS / 2)
    assert len(fake_table.sweeps) == 1
    clock.advance(SWEEP_SECONDS / 2)
    assert len(fake_table.sweeps) == 2


def test_leaders_are_left_out_and_other_sessions_skipped(fake_table: FakeTable) -> None:
    """Twisted reaps the leader; processes of other sessions need not be examined."""
    tracker, clock = fake_table.tracker, fake_table.clock
    tracker.leader_started(7, 101)
    tracker.leader_started(9, 103)
    fake_table.table = [procfs.Tagged(7, 101, False, 1), procfs.Tagged(8, 101, False, 1)]
    answers: list[list[int]] = []
    tracker.look(101).addCallback(answers.append)
    clock.advance(0)
    assert answers == [[8]]
    [skipped] = fake_table.sweeps
    assert [pid in skipped for pid in (6, 7, 8, 9)] == [False, False, False, True]
    tracker.leader_exited(7)
    tracker.leader_exited(9)
    assert clock.getDelayedCalls() == []


def test_table_that_cannot_be_read_fails_the_look(fake_table: FakeTable) -> None:
    """For lack of descriptors, say: a process that was not seen is not taken for gone."""
    fake_table.error = OSError(24, "Too many open files")
    failures: list[Any] = []
    fake_table.tracker.look(101).addErrback(failures.append)
    fake_table.clock.advance(0)
    assert failures[0].check(OSError)


def test_tree_is_gone_only_after_two_empty_looks(fake_table: FakeTable) -> None:
    """A process may be created behind the position that a reading has passed."""
    clock = fake_table.clock
    tree = TaggedTree(6, 101, fake_table.tracker)
    answers: list[list[int]] = []
    fake_table.table = [procfs.Tagged(7, 101, False, 1)]
    tree.look().addCallback(answers.append)
    clock.advance(0)
    fake_table.table = []
    tree.look().addCallback(answers.append)
    clock.advance(SWEEP_SECONDS)
    assert answers == [[7]]
    clock.advance(SWEEP_SECONDS)
    assert answers == [[7], []]
    assert len(fake_table.sweeps) == 3


def test_empty_looks_must_be_consecutive(fake_table: FakeTable) -> None:
    """This holds from the first look on."""
    clock, tracker = fake_table.clock, fake_table.tracker
    tree = TaggedTree(6, 101, tracker)
    answers: list[list[int]] = []
    tree.look().addCallback(answers.append)
    clock.advance(0)
    assert answers == []
    fake_table.table = [procfs.Tagged(7, 101, False, 1)]
    clock.advance(SWEEP_SECONDS)
    assert answers == [[7]]
    # A process that ended before it could be read may have a living child.
    fake_table.table, fake_table.unknown = [], [8]
    tree.look().addCallback(answers.append)
    clock.advance(SWEEP_SECONDS)
    assert answers == [[7], [8]]
    assert CLEAN_LOOKS == 2


def test_only_looks_after_the_leaders_exit_count(fake_table: FakeTable) -> None:
    """A look may miss a process that the leader started after the look began."""
    clock, tracker = fake_table.clock, fake_table.tracker
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


def test_tree_is_freed_without_the_garbage_collector(fake_table: FakeTable) -> None:
    """Behind a look that took two readings."""
    tree = TaggedTree(6, 101, fake_table.tracker)
    answers: list[list[int]] = []
    gc.disable()
    try:
        before = sys.getrefcount(tree)
        tree.look().addCallback(answers.append)
        fake_table.clock.pump([0, SWEEP_SECONDS])
        assert (answers, sys.getrefcount(tree)) == ([[]], before)
    finally:
        gc.enable()


GROUP = """
import os, time
for leaves in (False, True):
    if os.fork() == 0:
        if leaves:
            os.setsid()
        # In one piece: the other one writes at the same time.
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(600)
time.sleep(600)
"""


@linux
def test_sigterm_for_a_group_is_not_repeated(
    spawned: Spawned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may take the second one for a demand to give up its cleanup."""
    process, tag = spawned.start(sys.executable, "-S", "-c", GROUP)
    assert process.stdout is not None
    pids = [int(process.stdout.readline()) for _ in range(2)]
    tracker = spawned.tracker
    tracker.leader_started(process.pid, tag)
    groups: list[tuple[int, int]] = []
    monkeypatch.setattr(process_tree, "signal_group", lambda *told: groups.append(told))
    signalled: list[tuple[int, int]] = []
    monkeypatch.setattr(tracker, "signal", lambda pid, *told: signalled.append((pid, told[-1])))
    [member] = [pid for pid in pids if os.getpgid(pid) == process.pid]
    [stray] = [pid for pid in pids if pid != member]
    for terminate in (TaggedTree.terminate_group, lambda tree: tree.signal_leader(signal.SIGTERM)):
        tree = TaggedTree(process.pid, tag, tracker)
        tree.signal_rest([member], signal.SIGTERM)
        assert signalled == [(member, signal.SIGTERM)]
        terminate(tree)
        assert groups == [(process.pid, signal.SIGTERM)]
        tree.signal_rest([member, stray, process_tags.DEFAULT_PID_MAX + 5], signal.SIGTERM)
        assert [pid for pid, _ in signalled[1:]] == [stray, process_tags.DEFAULT_PID_MAX + 5]
        tree.signal_rest([member], signal.SIGKILL)
        assert signalled[-1] == (member, signal.SIGKILL)
        groups.clear()
        signalled.clear()
    # Once the leader is reaped, nobody knows whose the id of the group is.
    tracker.leader_exited(process.pid)
    tree.terminate_group()
    assert groups == []
    tree.signal_rest([member], signal.SIGTERM)
    assert signalled == [(member, signal.SIGTERM)]


def test_second_kill_is_a_kill_pass(fake_table: FakeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass serves all trees that need it, before the next look."""
    passes: list[Any] = []
    monkeypatch.setattr(kill_pass, "kill_pass", lambda *told: passes.append(told))
    clock, tracker = fake_table.clock, fake_table.tracker
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
    fake_table: FakeTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*told: object) -> NoReturn:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(kill_pass, "kill_pass", fail)
    failures: list[Any] = []
    fake_table.tracker.kill(101)
    fake_table.tracker.look(101).addErrback(failures.append)
    fake_table.clock.advance(0)
    assert failures[0].check(OSError)
    fake_table.tracker.look(101).addCallback(failures.append)
    fake_table.clock.advance(SWEEP_SECONDS)
    assert failures[1:] == [[]]


def test_long_reading_is_sliced(fake_table: FakeTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request made meanwhile is served by the next reading."""
    clock, tracker = fake_table.clock, fake_table.tracker
    events: list[Any] = []

    def read(*told: object) -> Generator[None, None, procfs.Table]:
        if not events:
            tracker.look(102).addCallback(events.append)
        for _ in range(2):
            events.append("slice")
            fake_table.spent += SLICE_SECONDS
            # Waiting for a busy processor does not count as reading time.
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
    """Its pid is reserved as long as its pidfd shows that it lives."""
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
def test_held_processes_are_bounded_by_known_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes a descriptor."""
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
    """Its pidfd may take the last free descriptor."""
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
def test_failed_look_does_not_block_the_next(
    fake_table: FakeTable, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Otherwise no process tree would ever be looked at again."""
    tracker, clock = fake_table.tracker, fake_table.clock
    fake_table.table = [procfs.Tagged(7, 101, False, 1, tagged=False)]
    answers: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(UntaggedProcesses, fails, no_descriptors)
        tracker.look(101).addBoth(answers.append)
        clock.advance(0)
        assert [each.type for each in answers] == [OSError]
    fake_table.table = []
    tracker.look(101).addCallback(answers.append)
    clock.advance(SWEEP_SECONDS)
    assert answers[1:] == [[]]


def test_failed_search_for_zombies_does_not_block_looks(
    fake_table: FakeTable, monkeypatch: pytest.MonkeyPatch, logged_failures: list[Any]
) -> None:
    tracker, clock = fake_table.tracker, fake_table.clock
    monkeypatch.setattr(reaper_module, "any_exited", lambda: True)
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
    fake_table: FakeTable, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    def refuse(*told: object) -> NoReturn:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(procfs, "signal_if", refuse)
    tree = TaggedTree(None, 101, fake_table.tracker)
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        tree.signal_rest([7, 8], number)
    assert log_lines == ["cannot signal process 7: Operation not permitted"]
    fake_table.clock.advance(0)


@linux
def test_only_adopted_zombies_are_reaped(spawned: Spawned) -> None:
    """The exit status of another child is left for its owner."""
    stranger = subprocess.Popen(["true"])
    mine, tag = spawned.start("sleep", "600")
    wait_until(lambda: procfs.tag_of(mine.pid) == tag)
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
def test_children_reaped_at_once_are_bounded_by_reaped_at_once(
    spawned: Spawned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that forks endlessly leaves thousands of zombies in a second."""
    monkeypatch.setattr(reaper_module, "REAPED_AT_ONCE", 1)
    tracker, clock = spawned.tracker, spawned.tracker._clock
    assert isinstance(clock, Clock)
    started = [spawned.start("sleep", "600") for _ in range(2)]
    wait_until(lambda: all(procfs.tag_of(process.pid) == tag for process, tag in started))
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
    wait_until(lambda: procfs.tag_of(mine.pid) == tag)
    tracker = spawned.tracker
    tracker.leader_started(1, 0)
    mine.kill()
    os.waitid(os.P_PID, mine.pid, os.WEXITED | os.WNOWAIT)
    tracker.leader_exited(1)
    with pytest.raises(ChildProcessError):
        os.waitpid(mine.pid, 0)


@linux
def test_without_a_list_of_children_zombies_are_found_in_the_table(
    spawned: Spawned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a kernel without CONFIG_PROC_CHILDREN."""
    monkeypatch.setattr(procfs, "own_children", lambda: None)
    mine, tag = spawned.start("sleep", "600")
    wait_until(lambda: procfs.tag_of(mine.pid) == tag)
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
    """
    Until `setsid` has run, the child is in the group of the tests, so only the child is signalled.
    """
    process = subprocess.Popen(["sleep", "600"])
    signal_group(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    signal_group(process.pid, signal.SIGKILL)


def test_group_tree_finds_members_without_tags() -> None:
    """This is how trees are found on other systems than Linux, also after the leader's exit."""
    clock = Clock()
    # In a container the init process may not reap orphans, so this process does.
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
    wait_until(lambda: look() == [])


class Remembering:
    """A memory of processes that notes what it is told."""

    def __init__(self) -> None:
        self.pids: set[int] = set()

    def rounds(self) -> Iterator[None]:
        raise NotImplementedError

    def remember(self, pid: int, session: int, tag: int) -> None:
        self.pids.add(pid)


TAG_OF_OURS = (1 << 40) + 5


@pytest.mark.parametrize(
    ("soft", "hard", "remembered"),
    [
        (process_tags.hard_limit(), process_tags.hard_limit(), True),
        # Of another bridge, which may have thousands of them.
        (1 << 30, 1 << 30, True),
        (1, 1 << 30, True),
        (1, TAG_OF_OURS, False),
    ],
)
def test_process_that_may_have_hidden_its_tag_is_not_remembered(
    soft: int, hard: int, remembered: bool
) -> None:
    """One whose hard limit is the tag of a session may make the soft one equal again."""
    code = (
        "import resource as r, sys, time\n"
        f"[r.setrlimit(each, ({soft}, {hard})) for each in {[*process_tags.LIMITS]}]\n"
        "print(flush=True)\n"
        "time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        # A session whose leader is outside of the container would be number 0, the kernel's.
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        memory: Any = Remembering()
        reader = procfs.Reader(1 << 40, (), {}, {}, memory)
        assert reader.examine(process.pid) is None
        assert (process.pid in memory.pids) is remembered
    finally:
        process.kill()
        process.communicate()
    assert reader.examine(process.pid) is False, "it is gone"


def test_process_of_which_nothing_can_be_read_is_not_foreign() -> None:
    """It may have any tag."""
    assert not procfs.are_foreign([], 1 << 40)
