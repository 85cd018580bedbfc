"""
The bridge's side of the watchdog: what it is told, and when it is started again.
The program itself is tested in `tests/integration`.
"""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mcpbridge.config.tuning import COMPLAIN_SECONDS, MAX_RECORDS
from mcpbridge.stdio import watchdog_program
from mcpbridge.stdio.cleanup_records import (
    CleanupRecords,
    ContainersRecord,
    DirectoryRecord,
    ProcessRecord,
    Record,
    read_record,
)
from mcpbridge.stdio.watchdog import (
    END_SECONDS,
    FIRST_PAUSE_SECONDS,
    LOGGED_BYTES,
    LONGEST_PAUSE_SECONDS,
    SETTLED_SECONDS,
    Watchdog,
)
from mcpbridge.stdio.watchdog_program import DIRECTORY_SECONDS

ONE = ProcessRecord(11, 1000)
TWO = ProcessRecord(12, 1001)
FOLDER = DirectoryRecord("/tmp/mcpbridge-tmp-x", 7, 8)
ENGINE = ContainersRecord(
    ("/usr/bin/docker", "--context", "x"), "label=a=b", (("HOME", "/home/bridge"),)
)


class WatchdogProcess:
    """The process's transport, and what the watchdog has read of its stdin."""

    pid = None

    def __init__(self, protocol: Watchdog) -> None:
        self.protocol = protocol
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
        self.protocol.processEnded(Failure(error or ProcessTerminated(signal=signal.SIGKILL)))

    @property
    def told(self) -> set[Record]:
        return {read_record(each) for each in self.records.all()}


class Machine(Clock):
    """A reactor that spawns watchdog processes."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[WatchdogProcess] = []
        self.broken = False
        self.commands: list[list[str]] = []

    def spawnProcess(self, protocol: Watchdog, program: str, line: list[str], env: Any) -> Any:
        if self.broken:
            raise OSError("no room")
        assert program == line[0]
        self.commands.append(line)
        self.processes.append(WatchdogProcess(protocol))
        protocol.makeConnection(self.processes[-1])
        return self.processes[-1]


def make_watchdog(machine: Machine) -> Watchdog:
    """Its pauses are the shortest that they may be."""
    return Watchdog(machine, 1 << 40, CleanupRecords(), jitter=lambda: 0.0)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def watchdog(machine: Machine) -> Watchdog:
    watchdog = make_watchdog(machine)
    watchdog.start()
    return watchdog


def test_records_are_added_and_dropped(machine: Machine, watchdog: Watchdog) -> None:
    [process] = machine.processes
    assert watchdog.add(7, ONE)
    assert watchdog.add(7, ENGINE)
    assert watchdog.add(8, TWO)
    assert process.told == {ONE, TWO, ENGINE}
    watchdog.drop(7, ONE)
    assert process.told == {TWO, ENGINE}
    watchdog.drop(7)
    watchdog.drop("nobody")
    assert process.told == {TWO}


def test_record_of_two_owners_stays_until_the_last_drops_it(
    machine: Machine, watchdog: Watchdog
) -> None:
    """The containers of one engine belong to all sessions that have one."""
    for owner in ("a", "b"):
        assert watchdog.add(owner, ENGINE)
        assert watchdog.add(owner, ENGINE)
    watchdog.drop("a")
    assert machine.processes[0].told == {ENGINE}
    watchdog.drop("b")
    assert machine.processes[0].told == set()


def test_a_new_watchdog_is_told_everything(
    machine: Machine, watchdog: Watchdog, log_lines: list[str]
) -> None:
    """Also what was told while there was none."""
    watchdog.add(1, ONE)
    watchdog.add(1, TWO)
    machine.processes[0].end()
    watchdog.add(2, ENGINE)
    watchdog.drop(1, TWO)
    machine.advance(FIRST_PAUSE_SECONDS)
    assert machine.processes[1].told == {ONE, ENGINE}
    assert any("the watchdog ended" in line for line in log_lines)


def test_records_before_the_start_are_sent_at_the_start(machine: Machine) -> None:
    watchdog = make_watchdog(machine)
    watchdog.add(1, ONE)
    watchdog.start()
    assert machine.processes[0].told == {ONE}


def test_a_watchdog_that_does_not_read_costs_no_memory(
    machine: Machine, watchdog: Watchdog
) -> None:
    """While the pipe is full nothing is written; then the table, once."""
    [process] = machine.processes
    watchdog.add("engine", ENGINE)
    watchdog.pauseProducing()
    before = process.written
    for number in range(10 * MAX_RECORDS):
        watchdog.add(number, ProcessRecord(number, number))
        watchdog.drop(number)
    watchdog.add(1, TWO)
    assert process.written == before
    watchdog.resumeProducing()
    assert process.told == {ENGINE, TWO}
    written = process.written
    watchdog.resumeProducing()
    assert process.written == written


def test_records_are_bounded(machine: Machine, watchdog: Watchdog, log_lines: list[str]) -> None:
    """`MAX_RECORDS`: nobody is told of others, and the log says so once a minute."""
    for number in range(MAX_RECORDS):
        assert watchdog.add("all", ProcessRecord(number, 1))
    assert not watchdog.add("one more", ONE)
    assert not watchdog.add("one more", ONE)
    [line] = [each for each in log_lines if str(MAX_RECORDS) in each]
    assert "does not clean up any others" in line
    machine.advance(COMPLAIN_SECONDS)
    assert not watchdog.add("one more", ONE)
    assert len([each for each in log_lines if str(MAX_RECORDS) in each]) == 2
    assert len(machine.processes[0].told) == MAX_RECORDS
    watchdog.drop("all", ProcessRecord(5, 1))
    assert watchdog.add("one more", ONE)


def test_pauses_between_starts(machine: Machine, watchdog: Watchdog) -> None:
    """They grow up to a longest one, and start anew for one that has run for some time."""
    pause = FIRST_PAUSE_SECONDS
    for _ in range(12):
        count = len(machine.processes)
        machine.processes[-1].end()
        machine.advance(pause * 0.99)
        assert len(machine.processes) == count
        machine.advance(pause * 0.01 + 1e-6)
        assert len(machine.processes) == count + 1
        pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
    assert pause == LONGEST_PAUSE_SECONDS
    machine.advance(SETTLED_SECONDS)
    machine.processes[-1].end()
    count = len(machine.processes)
    machine.advance(FIRST_PAUSE_SECONDS)
    assert len(machine.processes) == count + 1


def test_pauses_vary(machine: Machine) -> None:
    """By up to the first pause, so that many bridges do not retry at one time."""
    watchdog = Watchdog(machine, 1 << 40, CleanupRecords(), jitter=lambda: 0.5)
    watchdog.start()
    machine.processes[0].end()
    machine.advance(FIRST_PAUSE_SECONDS * 1.49)
    assert len(machine.processes) == 1
    machine.advance(FIRST_PAUSE_SECONDS * 0.02)
    assert len(machine.processes) == 2


def test_watchdog_that_cannot_be_started_is_retried(machine: Machine, log_lines: list[str]) -> None:
    machine.broken = True
    watchdog = make_watchdog(machine)
    watchdog.start()
    assert any("cannot start the watchdog: no room" in line for line in log_lines)
    machine.broken = False
    machine.advance(FIRST_PAUSE_SECONDS)
    assert len(machine.processes) == 1


def test_watchdog_that_ends_during_its_spawn_is_restarted(machine: Machine) -> None:
    """Twisted may reap it before `spawnProcess` returns."""

    class Hasty(Machine):
        def spawnProcess(self, *arguments: Any) -> Any:
            spawned = super().spawnProcess(*arguments)
            if len(self.processes) == 1:
                spawned.end()
            return spawned

    hasty = Hasty()
    watchdog = make_watchdog(hasty)
    watchdog.start()
    hasty.advance(FIRST_PAUSE_SECONDS)
    assert len(hasty.processes) == 2
    stopped: list[bool] = []
    watchdog.stop().addCallback(stopped.append)
    hasty.processes[1].end(ProcessDone(0))
    assert stopped == [True]
    assert hasty.getDelayedCalls() == []


def test_stop_continues_a_stopped_watchdog_first(machine: Machine, watchdog: Watchdog) -> None:
    """One that somebody stopped (SIGSTOP) would not notice the end of its stdin."""
    [process] = machine.processes
    stopped: list[bool] = []
    watchdog.stop().addCallback(stopped.append)
    assert (process.signals, process.closed, stopped) == (
        [signal.SIGCONT],
        True,
        [],
    )
    process.end(ProcessDone(0))
    assert stopped == [True]
    assert machine.getDelayedCalls() == []


def test_a_watchdog_that_does_not_end_is_killed(machine: Machine, watchdog: Watchdog) -> None:
    [process] = machine.processes
    stopped: list[bool] = []
    watchdog.stop().addCallback(stopped.append)
    machine.advance(END_SECONDS)
    assert process.signals == [signal.SIGCONT, signal.SIGKILL]
    process.end()
    assert stopped == [False]


def test_a_watchdog_may_remove_a_directory(machine: Machine, watchdog: Watchdog) -> None:
    """`DIRECTORY_SECONDS` in addition, while there is a record of one."""
    [process] = machine.processes
    watchdog.add("private_tmp", FOLDER)
    assert watchdog.is_running
    watchdog.stop()
    machine.advance(END_SECONDS + DIRECTORY_SECONDS - 1)
    assert process.signals == [signal.SIGCONT]
    machine.advance(1)
    assert process.signals == [signal.SIGCONT, signal.SIGKILL]
    process.end()
    assert not watchdog.is_running


def test_stderr_in_the_log_is_bounded(
    machine: Machine, watchdog: Watchdog, log_lines: list[str]
) -> None:
    """`LOGGED_BYTES` of what is written at once."""
    watchdog.errReceived(b"x" * LOGGED_BYTES + b"y")
    [line] = log_lines
    assert line == f"watchdog: {'x' * LOGGED_BYTES!r}"


def test_stop_without_a_watchdog(machine: Machine, watchdog: Watchdog) -> None:
    machine.processes[0].end()
    stopped: list[bool] = []
    watchdog.stop().addCallback(stopped.append)
    assert stopped == [False]
    assert machine.getDelayedCalls() == []


def test_a_watchdog_that_has_exited_is_not_signalled(machine: Machine, watchdog: Watchdog) -> None:
    [process] = machine.processes
    process.exited = True
    watchdog.stop()
    machine.advance(END_SECONDS)
    process.end()
    assert process.signals == []


def test_changes_of_records_are_reported(machine: Machine) -> None:
    """Whoever keeps the state file gets to know of each."""
    seen: list[tuple[Record, bool]] = []
    records = CleanupRecords()
    watchdog = Watchdog(
        machine, 1 << 40, records, lambda each: seen.append((each, each in records))
    )
    watchdog.add(1, ONE)
    watchdog.add(1, ONE)
    watchdog.add(2, ONE)
    watchdog.drop(1)
    watchdog.drop(2)
    assert seen == [(ONE, True), (ONE, False)]


@pytest.mark.parametrize("record", [ONE, ENGINE, ContainersRecord(("/x",), "label=y"), FOLDER])
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
        {"directory": ["/x", 1]},
        {"directory": [1, 1, 1]},
        {"directory": ["/x", 1, "1"]},
        {"containers": {}},
        {"containers": {"engine": [], "filter": "x", "environment": {}}},
        {"containers": {"engine": "docker", "filter": "x", "environment": {}}},
        {"containers": {"engine": [1], "filter": "x", "environment": {}}},
        {"containers": {"engine": ["x"], "filter": None, "environment": {}}},
        {"containers": {"engine": ["x"], "filter": "x", "environment": []}},
        {"containers": {"engine": ["x"], "filter": "x", "environment": {"A": 1}}},
    ],
)
def test_invalid_records_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="not a record"):
        read_record(value)


_RECORDS = st.integers(0, 3).map(lambda number: ProcessRecord(number, 0))
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
def test_the_watchdog_knows_what_the_bridge_knows(
    steps: list[tuple[str, int, Record]], pauses: list[int], data: st.DataObject
) -> None:
    """Whatever order things come in, and whenever its pipe is full."""
    machine = Machine()
    watchdog = make_watchdog(machine)
    watchdog.start()
    for step, owner, record in steps:
        match data.draw(st.sampled_from(["", "full", "empty", "end"])):
            case "full":
                watchdog.pauseProducing()
            case "empty":
                watchdog.resumeProducing()
            case "end":
                machine.processes[-1].end()
                machine.advance(LONGEST_PAUSE_SECONDS)
        if step == "add":
            watchdog.add(owner, record)
        else:
            watchdog.drop(owner, None if step == "all" else record)
    watchdog.resumeProducing()
    assert machine.processes[-1].told == set(watchdog._records)
