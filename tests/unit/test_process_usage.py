"""What process trees use, read at most every few seconds."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mcpbridge.process_usage import USAGE_SECONDS, USAGE_WAITERS, RecentUsage, Usage, Usages

FIRST, SECOND = {1: Usage(1, 1, 1)}, {1: Usage(2, 2, 2)}


class World:
    """Readings that a test finishes."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.readings: list[Deferred[Usages]] = []
        self.recent = RecentUsage(self.clock, self.read)

    def read(self) -> Deferred[Usages]:
        self.readings.append(Deferred())
        return self.readings[-1]

    def get(self) -> list[Usages]:
        found: list[Usages] = []
        self.recent.get().addCallback(found.append)
        return found


def test_an_answer_is_good_for_a_while() -> None:
    world = World()
    first, second = world.get(), world.get()
    assert len(world.readings) == 1
    world.readings[0].callback(FIRST)
    assert first == second == [FIRST]
    world.clock.advance(USAGE_SECONDS - 0.1)
    assert world.get() == [FIRST]
    assert len(world.readings) == 1
    world.clock.advance(0.1)
    third = world.get()
    assert third == []
    world.readings[1].callback(SECOND)
    assert third == [SECOND]


def test_it_is_read_again_after_the_time_of_day_was_set_back() -> None:
    world = World()
    world.get()
    world.clock.advance(100)
    world.readings[0].callback(FIRST)
    world.clock.rightNow = 0.0
    world.get()
    assert len(world.readings) == 2


def test_too_many_get_the_answer_before() -> None:
    world = World()
    world.get()
    world.readings[0].callback(FIRST)
    world.clock.advance(USAGE_SECONDS)
    waiting = [world.get() for _ in range(USAGE_WAITERS)]
    assert world.get() == [FIRST]
    world.readings[1].callback(SECOND)
    assert waiting == [[SECOND]] * USAGE_WAITERS


def test_it_never_fails(logged_failures: list[Any]) -> None:
    world = World()
    found = world.get()
    world.readings[0].errback(OSError("no descriptors"))
    assert found == [{}]
    assert len(logged_failures) == 1
    # Nor is it tried for each who asks.
    assert world.get() == [{}]
    assert len(world.readings) == 1


def test_usage_adds_up() -> None:
    assert Usage(1, 2, 3).plus(Usage(10, 20, 30)) == Usage(11, 22, 33)
