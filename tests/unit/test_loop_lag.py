"""How late the reactor is, on a clock that a test moves."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from mcpbridge.loop_lag import LAG_LOOK_SECONDS, LAG_SECONDS, LoopLag


class World:
    """A reactor that is busy for as long as the test says."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.now = 0.0
        self.lag = LoopLag(self.clock, lambda: self.now)

    def idle(self, seconds: float) -> None:
        for _ in range(round(seconds / LAG_LOOK_SECONDS)):
            self.now += LAG_LOOK_SECONDS
            self.clock.advance(LAG_LOOK_SECONDS)


def test_an_idle_reactor_is_not_late() -> None:
    world = World()
    world.lag.start()
    world.idle(60)
    assert world.lag.longest == pytest.approx(0)
    world.lag.stop()
    assert not world.clock.getDelayedCalls()


def test_the_longest_delay_counts_for_a_while() -> None:
    world = World()
    world.lag.start()
    for lag in (0.3, 0.2):
        world.now += lag
        world.idle(LAG_LOOK_SECONDS)
    assert world.lag.longest == pytest.approx(0.3)
    world.idle(LAG_SECONDS - LAG_LOOK_SECONDS)
    assert world.lag.longest == pytest.approx(0.2)
    world.idle(LAG_LOOK_SECONDS * 2)
    assert world.lag.longest == pytest.approx(0)


def test_a_delay_that_goes_on_counts_already() -> None:
    world = World()
    world.lag.start()
    world.now += LAG_LOOK_SECONDS + 2
    assert world.lag.longest == pytest.approx(2)


def test_a_jump_of_the_time_of_day_is_no_delay() -> None:
    world = World()
    world.lag.start()
    world.clock.advance(3600)
    assert world.lag.longest == 0


def test_nothing_is_left_when_it_is_stopped() -> None:
    world = World()
    world.lag.start()
    world.now += 5
    world.idle(LAG_LOOK_SECONDS)
    assert world.lag.longest == pytest.approx(5)
    world.lag.stop()
    assert world.lag.longest == 0
    world.lag.start()
    assert world.lag.longest == 0
    world.lag.stop()
