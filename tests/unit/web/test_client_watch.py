"""Clients that do not read what is written to them, or read it too slowly, are detected."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from mcpbridge.config.tuning import RATE_SECONDS
from mcpbridge.web.client_watch import IDLE_LOOKS, LOOKS, ClientWatch

TIMEOUT = 60.0
RATE = 500


class Peer:
    """
    A client, its connection and its watch; `says`: whether the system reports acknowledged bytes.
    """

    def __init__(self, *, rate: int = RATE, says: bool = True) -> None:
        self.clock = Clock()
        self.waiting = 0
        self.taken = 7
        self.reasons: list[str] = []
        self.watch = ClientWatch(
            self.clock,
            self,
            TIMEOUT,
            rate,
            self.reasons.append,
            lambda _: self.waiting,
            lambda _: self.taken if says else None,
        )

    def write(self, size: int) -> None:
        self.waiting += size
        self.watch.arm(size)

    def take(self, size: int) -> None:
        size = min(size, self.waiting)
        self.waiting -= size
        self.taken += size

    def live(self, seconds: float, size: int = 0, every: float = 1) -> None:
        """Let time pass; the client reads `size` bytes at each interval."""
        end = self.clock.seconds() + seconds
        due = self.clock.seconds() + every
        while self.clock.seconds() < end and not self.reasons:
            self.clock.advance(0.5)
            if self.clock.seconds() >= due:
                due += every
                self.take(size)


both = pytest.mark.parametrize("says", [True, False])


@both
def test_client_that_reads_nothing_is_reported_after_the_timeout(says: bool) -> None:
    """At most a tenth late, and only once."""
    peer = Peer(says=says)
    peer.write(14_000_000)
    peer.live(TIMEOUT - 0.5)
    assert not peer.reasons
    peer.live(0.1 * TIMEOUT)
    assert peer.reasons == ["the client read nothing for 60 s"]
    assert peer.clock.getDelayedCalls() == []


def test_client_is_checked_so_often_in_a_timeout() -> None:
    """`IDLE_LOOKS` times in a timeout while nothing is unsent, and `LOOKS` times otherwise."""
    peer = Peer(rate=0)
    looks: list[float] = []

    def waiting(_: object) -> int:
        looks.append(peer.clock.seconds())
        return peer.waiting

    peer.watch = ClientWatch(
        peer.clock, peer, TIMEOUT, 0, peer.reasons.append, waiting, lambda _: peer.taken
    )
    peer.watch.start()
    peer.live(TIMEOUT)
    assert len(looks) == IDLE_LOOKS
    peer.write(1000)
    looks.clear()
    peer.live(TIMEOUT, 1, every=TIMEOUT / 4)
    assert len(looks) == LOOKS
    peer.watch.stop()


@both
def test_client_below_the_rate_is_reported(says: bool) -> None:
    """2 KB every 20 s are not enough to keep a large response waiting."""
    peer = Peer(says=says)
    peer.write(14_000_000)
    peer.live(2 * RATE_SECONDS, 2000, every=20)
    [reason] = peer.reasons
    assert "min_transfer_rate" in reason
    assert peer.clock.seconds() <= 1.1 * RATE_SECONDS


@both
@pytest.mark.parametrize(("size", "every"), [(1000, 1), (55_000, 50), (RATE + 10, 1)])
def test_client_at_the_rate_is_not_reported(says: bool, size: int, every: float) -> None:
    """Whether it reads often or rarely."""
    peer = Peer(says=says)
    peer.write(1_000_000)
    peer.live(600, size, every)
    assert not peer.reasons


def test_rate_0_allows_any_rate() -> None:
    peer = Peer(rate=0)
    peer.write(1_000_000)
    peer.live(600, 1, every=50)
    assert not peer.reasons


@both
def test_small_messages_that_are_always_read_are_no_stall(says: bool) -> None:
    """At each check something is unread, but always something new."""
    peer = Peer(says=says)
    for _ in range(1200):
        peer.clock.advance(0.5)
        peer.take(peer.waiting)
        peer.write(20)
    assert not peer.reasons
    peer.watch.stop()
    assert peer.clock.getDelayedCalls() == []


def test_watch_stops_when_everything_is_read() -> None:
    """When it is armed again, the whole timeout applies again."""
    peer = Peer()
    peer.write(1000)
    peer.live(50)
    peer.take(1000)
    peer.live(10)
    assert peer.clock.getDelayedCalls() == []
    peer.watch.arm()
    assert peer.clock.getDelayedCalls() == []
    peer.write(1000)
    peer.live(50)
    assert not peer.reasons
    peer.live(15)
    assert peer.reasons


def test_started_watch_checks_without_being_armed() -> None:
    """It notices bytes that the system took and the client does not acknowledge."""
    peer = Peer()
    peer.watch.start()
    peer.live(300)
    assert not peer.reasons
    peer.waiting = 10
    peer.live(TIMEOUT - 0.5)
    assert not peer.reasons
    peer.live(0.2 * TIMEOUT)
    assert peer.reasons
    assert peer.clock.getDelayedCalls() == []


def test_stopped_watch_leaves_no_delayed_call() -> None:
    peer: Any = Peer()
    peer.watch.start()
    peer.write(5)
    peer.watch.stop()
    peer.watch.stop()
    assert peer.clock.getDelayedCalls() == []


def test_nobody_is_told_of_a_client_once_its_response_is_over() -> None:
    peer = Peer()
    peer.write(14_000_000)
    peer.watch.release()
    assert peer.clock.getDelayedCalls() == []
    peer.watch.arm()
    peer.live(2 * TIMEOUT)
    assert peer.reasons == []
