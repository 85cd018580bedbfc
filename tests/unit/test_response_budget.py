"""The budget of all answers: who gives way when it is full, who waits, who goes on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from mcpbridge.config.tuning import (
    EVENT_OVERHEAD,
    EVENTS_DROPPED,
    FULL_GROWTH,
    FULL_SECONDS,
    SLOW_SECONDS,
    TRIM_BYTES,
)
from mcpbridge.errors import EventsGone
from mcpbridge.mcp.backlog import SMALL_BYTES, Backlog, BacklogMessage
from mcpbridge.response_budget import ResponseBudget, Share
from mcpbridge.session.memory_event_store import MemoryEventStore

LIMIT = 1_000_000


class World:
    """A budget, and all that registers itself with it."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.clock = Clock()
        self.freed = 0
        self.budget = ResponseBudget(limit, self.clock, self.free)
        self.store = MemoryEventStore(budget=self.budget)

    def free(self) -> None:
        self.freed += 1

    def end(self) -> None:
        """Nothing is counted, and nothing is to happen."""
        self.clock.advance(FULL_SECONDS)
        assert self.budget.used == 0
        assert not self.budget.full
        assert self.clock.getDelayedCalls() == []


class Reader:
    """A client that takes what waits for it in so many seconds."""

    def __init__(self, world: World, size: int, slow: float = 0.0) -> None:
        self.world = world
        self.size = self.counted = size
        self.slow = slow
        self.looks = 0
        self.reasons: list[str] = []
        world.budget.behind(self)
        world.budget.take(size)

    def measure(self) -> None:
        self.looks += 1
        more, self.counted = self.size - self.counted, self.size
        self.world.budget.take(more) if more > 0 else self.world.budget.give_back(-more)
        if not self.size:
            self.world.budget.caught_up(self)

    def slowness(self) -> float:
        return self.slow

    def cut_off(self, reason: str) -> None:
        self.reasons.append(reason)
        self.size = 0
        self.measure()


class Source:
    """A backend that writes a large message, 100,000 bytes at a time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.size = 0
        self.held = False

    def write(self, size: int = 100_000) -> None:
        assert not self.held
        self.size += size
        self.world.budget.take(size)
        self.held = self.world.budget.hold(self)

    def complete(self) -> None:
        self.world.budget.give_back(self.size)
        self.world.budget.wrote(self)
        self.size = 0

    def go_on(self) -> None:
        assert self.held
        self.held = False


def test_oldest_events_of_all_sessions_are_dropped() -> None:
    """Also those of a session that says nothing any more; whoever comes back is told."""
    world = World()
    gone, other = world.store.open("gone"), world.store.open("other")
    gone.append("1", 1, b"x" * 300_000)
    other.append("1", 1, b"x" * 300_000)
    gone.append("1", 2, b"x" * 300_000)
    other.append("1", 2, b"x" * 300_000)
    assert world.budget.used <= LIMIT
    other.append("1", 3, b"x" * 300_000)
    assert world.budget.used <= LIMIT
    with pytest.raises(EventsGone):
        gone.after("1", 0)
    assert [number for number, _ in gone.after("1", 1)] == [2]
    with pytest.raises(EventsGone):
        other.after("1", 0)
    assert [number for number, _ in other.after("1", 1)] == [2, 3]
    assert not world.budget.full
    gone.close()
    other.close()
    world.end()


def test_event_larger_than_the_budget_is_not_stored() -> None:
    world = World()
    log = world.store.open("a")
    log.append("1", 1, b"x" * LIMIT)
    assert (len(log), world.budget.used) == (0, 0)
    log.append("1", 2, b"x")
    assert world.budget.used == 1 + EVENT_OVERHEAD
    log.close()
    world.end()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5000)), max_size=80))
def test_events_never_exceed_the_budget(steps: list[tuple[int, int]]) -> None:
    world = World(10_000)
    logs = [world.store.open(str(each)) for each in range(4)]
    for number, (which, size) in enumerate(steps):
        if size < 100:
            logs[which].close()
        else:
            logs[which].append("1", number, b"x" * size)
        kept = sum(log.size + EVENT_OVERHEAD * len(log) for log in logs)
        assert world.budget.used == kept <= 10_000
    for log in logs:
        log.close()
    world.end()


def test_slowest_readers_are_cut_off_after_the_events_are_dropped() -> None:
    world = World()
    log = world.store.open("a")
    log.append("1", 1, b"x" * 100_000)
    quick = Reader(world, 300_000, SLOW_SECONDS)
    slow, slower = Reader(world, 300_000, 100.0), Reader(world, 250_000, 1000.0)
    assert not slower.reasons
    Reader(world, 100_000)
    assert len(log) == 0
    assert not slower.reasons
    last = Reader(world, 100_000)
    assert slower.reasons == ["the slowest reader while the bridge is full (max_response_bytes)"]
    assert not quick.reasons
    assert not slow.reasons
    assert not last.reasons
    assert not world.budget.full
    world.budget.stop()


def test_few_events_are_dropped_at_a_time() -> None:
    """EVENTS_DROPPED: everybody waits while they do, and there may be half a million."""
    world: Any = World(100 * 1000 * (EVENT_OVERHEAD + 100))
    logs = [world.store.open(str(number)) for number in range(200)]
    for number in range(1, 501):
        for log in logs:
            log.append("1", number, b"x" * 100)
    assert sum(map(len, logs)) == 100 * 1000
    logs[0].append("2", 1, b"x" * 100)
    assert 0 < 100 * 1000 + 1 - sum(map(len, logs)) <= 100 * 1000 // EVENTS_DROPPED + 2
    for log in logs:
        log.close()
    world.end()


def test_a_full_budget_does_not_look_at_all_clients_for_each_message() -> None:
    """With thousands of them everybody would wait for that: FULL_GROWTH."""
    world: Any = World()
    readers: list[Any] = [Reader(world, 200_000) for _ in range(6)]
    looks = readers[0].looks
    log = world.store.open("a")
    for number in range(100):
        log.append("1", number + 1, b"x" * 100)
    assert readers[0].looks == looks + 100 * (100 + EVENT_OVERHEAD) // (LIMIT // FULL_GROWTH)
    # But at what comes when there was room again.
    log.close()
    for each in readers:
        each.size = 0
        each.measure()
    Reader(world, LIMIT)
    log.append("1", 101, b"x")
    assert len(log) == 0
    world.budget.stop()


def test_stopped_budget_only_counts() -> None:
    """Connections close after that: what they give back must not start a timer."""
    world: Any = World()
    reader = Reader(world, LIMIT + 1)
    world.budget.stop()
    reader.size = 0
    reader.measure()
    Reader(world, LIMIT + 1)
    assert world.clock.getDelayedCalls() == []


def test_reading_clients_are_not_cut_off() -> None:
    """Then backends wait, until the readers have taken it: it is looked at once a second."""
    world: Any = World()
    readers = [Reader(world, 200_000, SLOW_SECONDS) for _ in range(6)]
    assert world.budget.full
    source: Any = Source(world)
    source.write()
    assert source.held
    # What its clients took is found out, too.
    readers[0].size = readers[1].size = 0
    world.clock.advance(FULL_SECONDS)
    assert not source.held
    assert not world.budget.full
    source.complete()
    for each in readers:
        each.size = 0
        each.measure()
        assert not each.reasons
    world.end()


def test_backends_do_not_wait_for_each_other() -> None:
    """Each with half a message: they go on one after the other, and it never grows by two."""
    world = World()
    sources = [Source(world) for _ in range(20)]
    for _ in range(20):
        for each in sources:
            if each.size < 300_000 and not each.held:
                each.write()
    assert all(each.held for each in sources)
    most = world.budget.used
    done = 0
    while done < len(sources):
        world.clock.advance(FULL_SECONDS)
        for each in sources:
            if each.size and not each.held:
                if each.size < 300_000:
                    each.write()
                    assert world.budget.used <= most + 300_000
                else:
                    each.complete()
                    done += 1
    world.end()


def test_next_backend_waits_until_the_last_message_is_read() -> None:
    world = World()
    first: Any = Source(world)
    second: Any = Source(world)
    reader = Reader(world, LIMIT)
    first.write()
    second.write()
    assert (first.held, second.held) == (True, True)
    world.clock.advance(FULL_SECONDS)
    assert (first.held, second.held) == (False, True)
    first.write()
    assert not first.held
    first.complete()
    answer = Reader(world, 300_000)
    world.clock.pump([FULL_SECONDS] * 3)
    assert second.held
    answer.size = 0
    answer.measure()
    world.clock.advance(FULL_SECONDS)
    assert not second.held
    second.complete()
    reader.size = 0
    reader.measure()
    world.end()


def test_ended_backend_does_not_wait() -> None:
    world = World()
    reader = Reader(world, LIMIT)
    ended, other = Source(world), Source(world)
    ended.write()
    other.write()
    ended.complete()
    world.clock.advance(FULL_SECONDS)
    assert (ended.held, other.held) == (True, False)
    other.complete()
    reader.size = 0
    reader.measure()
    world.end()


def test_backlog_while_the_budget_is_full() -> None:
    """What waits for a client that is away counts; while all is full, little may wait."""
    world = World()
    room = Backlog(1000, 10 * SMALL_BYTES, world.budget)
    for _ in range(3):
        assert room.add(BacklogMessage(b"x" * SMALL_BYTES, 1)) == []
    assert world.budget.used == room.size == 3 * SMALL_BYTES
    reader = Reader(world, LIMIT)
    assert world.budget.full
    assert len(room.add(BacklogMessage(b"x" * 10, 2))) == 3
    assert room.size == 10
    reader.size = 0
    reader.measure()
    assert len(room.take()) == 1
    world.end()


def test_freed_is_called_after_enough_bytes() -> None:
    world = World(10 * TRIM_BYTES)
    for _ in range(2):
        world.budget.take(TRIM_BYTES)
        world.budget.give_back(TRIM_BYTES)
    assert world.freed == 2
    world.end()


def test_the_share_of_a_session() -> None:
    """Its own backend waits when it holds more, once."""
    told: list[Any] = []
    share = Share(10, lambda: told.append("pause"), lambda: told.append("resume"))
    for change in (10, 1, 5, -5, -1, -10):
        share.change(change)
    assert told == ["pause", "resume"]
    assert share.used == 0
