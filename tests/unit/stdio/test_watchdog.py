"""
What the guardian is told, and when it is started again; the guardian itself
is in `test_guardian`.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mcpbridge.config.tuning import COMPLAIN_SECONDS, MAX_RECORDS
from mcpbridge.stdio import procfs, watchdog_program
from mcpbridge.stdio.cleanup_records import (
    CleanupRecords,
    Containers,
    MarkedProcess,
    Record,
    read_record,
)
from mcpbridge.stdio.process_tags import TAGS
from mcpbridge.stdio.watchdog import (
    END_SECONDS,
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    SETTLED_SECONDS,
    Watchdog,
    set_tag,
)

ONE = MarkedProcess(11, 1000)
TWO = MarkedProcess(12, 1001)
ENGINE = Containers(("/usr/bin/docker", "--context", "x"), "label=a=b", (("HOME", "/root"),))


class Guardian:
    """The process's transport, and what the guardian has read of its stdin."""

    pid = None

    def __init__(self, keeper: Watchdog) -> None:
        self.keeper = keeper
        self.producer: Any = None
        self.records = watchdog_program.Records()
        self.written = 0
        self.signals: list[int] = []
        self.closed = False
        self.exited = False

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += len(data)
        self.records.receive(data)

    def closeStdin(self) -> None:
        assert self.producer is None, "what waits for a producer does not close"
        self.closed = True

    def signalProcess(self, number: int) -> None:
        if self.exited:
            raise ProcessExitedAlready
        self.signals.append(number)

    def end(self, error: Exception | None = None) -> None:
        self.exited = True
        self.keeper.processEnded(Failure(error or ProcessTerminated(signal=signal.SIGKILL)))

    @property
    def told(self) -> set[Record]:
        return {read_record(each) for each in self.records.all()}


class Machine(Clock):
    """A reactor that spawns guardians."""

    def __init__(self) -> None:
        super().__init__()
        self.guardians: list[Guardian] = []
        self.broken = False
        self.commands: list[list[str]] = []

    def spawnProcess(self, keeper: Watchdog, program: str, line: list[str], env: Any) -> Any:
        if self.broken:
            raise OSError("no room")
        assert program == line[0]
        self.commands.append(line)
        self.guardians.append(Guardian(keeper))
        keeper.makeConnection(self.guardians[-1])
        return self.guardians[-1]


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def keeper(machine: Machine) -> Watchdog:
    keeper = Watchdog(machine, 1 << 40, CleanupRecords())
    keeper.start()
    return keeper


def test_the_guardian_is_told_and_forgets(machine: Machine, keeper: Watchdog) -> None:
    [guardian] = machine.guardians
    assert keeper.tell(7, ONE)
    assert keeper.tell(7, ENGINE)
    assert keeper.tell(8, TWO)
    assert guardian.told == {ONE, TWO, ENGINE}
    keeper.forget(7, ONE)
    assert guardian.told == {TWO, ENGINE}
    keeper.forget(7)
    keeper.forget("nobody")
    assert guardian.told == {TWO}


def test_a_record_of_two_owners_goes_with_the_last(machine: Machine, keeper: Watchdog) -> None:
    """The containers of one engine belong to all sessions that have one."""
    for owner in ("a", "b"):
        assert keeper.tell(owner, ENGINE)
        assert keeper.tell(owner, ENGINE)
    keeper.forget("a")
    assert machine.guardians[0].told == {ENGINE}
    keeper.forget("b")
    assert machine.guardians[0].told == set()


def test_a_new_guardian_is_told_everything(
    machine: Machine, keeper: Watchdog, log_lines: list[str]
) -> None:
    """Also what was told while there was none."""
    keeper.tell(1, ONE)
    keeper.tell(1, TWO)
    machine.guardians[0].end()
    keeper.tell(2, ENGINE)
    keeper.forget(1, TWO)
    machine.advance(FIRST_PAUSE_SECONDS)
    assert machine.guardians[1].told == {ONE, ENGINE}
    assert any("the guardian ended" in line for line in log_lines)


def test_before_the_start_it_is_only_noted(machine: Machine) -> None:
    keeper = Watchdog(machine, 1 << 40, CleanupRecords())
    keeper.tell(1, ONE)
    keeper.start()
    assert machine.guardians[0].told == {ONE}


def test_a_guardian_that_does_not_read_costs_no_memory(machine: Machine, keeper: Watchdog) -> None:
    """While the pipe is full nothing is written; then the table, once."""
    [guardian] = machine.guardians
    keeper.tell("engine", ENGINE)
    keeper.pauseProducing()
    before = guardian.written
    for number in range(10 * MAX_RECORDS):
        keeper.tell(number, MarkedProcess(number, number))
        keeper.forget(number)
    keeper.tell(1, TWO)
    assert guardian.written == before
    keeper.resumeProducing()
    assert guardian.told == {ENGINE, TWO}
    written = guardian.written
    keeper.resumeProducing()
    assert guardian.written == written


def test_records_are_bounded(machine: Machine, keeper: Watchdog, log_lines: list[str]) -> None:
    """`MAX_RECORDS`: nobody is told of others, and the log says so once a minute."""
    for number in range(MAX_RECORDS):
        assert keeper.tell("all", MarkedProcess(number, 1))
    assert not keeper.tell("one more", ONE)
    assert not keeper.tell("one more", ONE)
    [line] = [each for each in log_lines if str(MAX_RECORDS) in each]
    assert "not cleaned up" in line
    machine.advance(COMPLAIN_SECONDS)
    assert not keeper.tell("one more", ONE)
    assert len([each for each in log_lines if str(MAX_RECORDS) in each]) == 2
    assert len(machine.guardians[0].told) == MAX_RECORDS
    keeper.forget("all", MarkedProcess(5, 1))
    assert keeper.tell("one more", ONE)


def test_pauses_between_starts(machine: Machine, keeper: Watchdog) -> None:
    """They grow up to a longest one, and start anew for one that has run for some time."""
    pause = FIRST_PAUSE_SECONDS
    for _ in range(12):
        count = len(machine.guardians)
        machine.guardians[-1].end()
        machine.advance(pause * 0.99)
        assert len(machine.guardians) == count
        machine.advance(pause * 0.01 + 1e-6)
        assert len(machine.guardians) == count + 1
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
    assert pause == LONGEST_PAUSE_SECONDS
    machine.advance(SETTLED_SECONDS)
    machine.guardians[-1].end()
    count = len(machine.guardians)
    machine.advance(FIRST_PAUSE_SECONDS)
    assert len(machine.guardians) == count + 1


def test_one_that_cannot_be_started_is_tried_again(machine: Machine, log_lines: list[str]) -> None:
    machine.broken = True
    keeper = Watchdog(machine, 1 << 40, CleanupRecords())
    keeper.start()
    assert any("no guardian: no room" in line for line in log_lines)
    machine.broken = False
    machine.advance(FIRST_PAUSE_SECONDS)
    assert len(machine.guardians) == 1


def test_one_that_ends_while_it_is_spawned_is_started_again(machine: Machine) -> None:
    """Twisted may reap it before `spawnProcess` returns."""

    class Hasty(Machine):
        def spawnProcess(self, *arguments: Any) -> Any:
            spawned = super().spawnProcess(*arguments)
            if len(self.guardians) == 1:
                spawned.end()
            return spawned

    hasty = Hasty()
    keeper = Watchdog(hasty, 1 << 40, CleanupRecords())
    keeper.start()
    hasty.advance(FIRST_PAUSE_SECONDS)
    assert len(hasty.guardians) == 2
    stopped: list[bool] = []
    keeper.stop().addCallback(stopped.append)
    hasty.guardians[1].end(ProcessDone(0))
    assert stopped == [True]
    assert hasty.getDelayedCalls() == []


def test_the_stop_wakes_the_guardian_first(machine: Machine, keeper: Watchdog) -> None:
    """One that somebody stopped (SIGSTOP) would not notice the end of its stdin."""
    [guardian] = machine.guardians
    stopped: list[bool] = []
    keeper.stop().addCallback(stopped.append)
    assert (guardian.signals, guardian.closed, stopped) == (
        [signal.SIGCONT],
        True,
        [],
    )
    guardian.end(ProcessDone(0))
    assert stopped == [True]
    assert machine.getDelayedCalls() == []


def test_a_guardian_that_does_not_end_is_killed(machine: Machine, keeper: Watchdog) -> None:
    [guardian] = machine.guardians
    stopped: list[bool] = []
    keeper.stop().addCallback(stopped.append)
    machine.advance(END_SECONDS)
    assert guardian.signals == [signal.SIGCONT, signal.SIGKILL]
    guardian.end()
    assert stopped == [False]


def test_the_stop_while_there_is_no_guardian(machine: Machine, keeper: Watchdog) -> None:
    machine.guardians[0].end()
    stopped: list[bool] = []
    keeper.stop().addCallback(stopped.append)
    assert stopped == [False]
    assert machine.getDelayedCalls() == []


def test_a_guardian_that_has_exited_is_not_signalled(machine: Machine, keeper: Watchdog) -> None:
    [guardian] = machine.guardians
    guardian.exited = True
    keeper.stop()
    machine.advance(END_SECONDS)
    guardian.end()
    assert guardian.signals == []


def test_changes_are_passed_on(machine: Machine) -> None:
    """Whoever keeps the state file gets to know of each."""
    seen: list[tuple[Record, bool]] = []
    records = CleanupRecords()
    keeper = Watchdog(machine, 1 << 40, records, lambda each: seen.append((each, each in records)))
    keeper.tell(1, ONE)
    keeper.tell(1, ONE)
    keeper.tell(2, ONE)
    keeper.forget(1)
    keeper.forget(2)
    assert seen == [(ONE, True), (ONE, False)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tags are for Linux")
def test_the_guardian_has_its_tag_before_it_runs() -> None:
    """One that is stopped at once is found by it all the same."""
    base = (1 << 61) + 5 * TAGS
    process = subprocess.Popen(["sleep", "600"])
    set_tag(process.pid, base)
    assert procfs.tag_of(process.pid) == base
    process.kill()
    process.wait()
    set_tag(process.pid, base)
    set_tag(None, base)


@pytest.mark.parametrize("record", [ONE, ENGINE, Containers(("/x",), "label=y")])
def test_a_record_survives_json(record: Record) -> None:
    assert read_record(json.loads(json.dumps(record.as_json()))) == record


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"process": []},
        {"process": [1]},
        {"process": ["1", 2]},
        {"process": [1, 2, 3]},
        {"containers": {}},
        {"containers": {"engine": [], "filter": "x", "environment": {}}},
        {"containers": {"engine": "docker", "filter": "x", "environment": {}}},
        {"containers": {"engine": [1], "filter": "x", "environment": {}}},
        {"containers": {"engine": ["x"], "filter": None, "environment": {}}},
        {"containers": {"engine": ["x"], "filter": "x", "environment": []}},
        {"containers": {"engine": ["x"], "filter": "x", "environment": {"A": 1}}},
    ],
)
def test_what_is_no_record(value: Any) -> None:
    with pytest.raises(ValueError, match="not a record"):
        read_record(value)


_RECORDS = st.integers(0, 3).map(lambda number: MarkedProcess(number, 0))
_STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "drop", "all"]), st.integers(0, 2), _RECORDS), max_size=40
)


@given(_STEPS)
def test_records_are_those_that_have_an_owner(steps: list[tuple[str, int, Record]]) -> None:
    records, model = CleanupRecords(), set[tuple[int, Record]]()
    for step, owner, record in steps:
        before = {each for _, each in model}
        if step == "add":
            model.add((owner, record))
            assert records.add(owner, record) == (record not in before)
            continue
        wanted = None if step == "all" else record
        model = {
            each for each in model if each[0] != owner or (wanted is not None and each[1] != wanted)
        }
        after = {each for _, each in model}
        assert set(records.drop(owner, wanted)) == before - after
        assert set(records) == after
        assert records._size == len(model)


@given(_STEPS, st.lists(st.integers(0, 2), max_size=10), st.data())
def test_the_guardian_knows_what_the_bridge_knows(
    steps: list[tuple[str, int, Record]], pauses: list[int], data: st.DataObject
) -> None:
    """Whatever order things come in, and whenever its pipe is full."""
    machine = Machine()
    keeper = Watchdog(machine, 1 << 40, CleanupRecords())
    keeper.start()
    for step, owner, record in steps:
        match data.draw(st.sampled_from(["", "full", "empty", "end"])):
            case "full":
                keeper.pauseProducing()
            case "empty":
                keeper.resumeProducing()
            case "end":
                machine.guardians[-1].end()
                machine.advance(LONGEST_PAUSE_SECONDS)
        if step == "add":
            keeper.tell(owner, record)
        else:
            keeper.forget(owner, None if step == "all" else record)
    keeper.resumeProducing()
    assert machine.guardians[-1].told == set(keeper._records)
