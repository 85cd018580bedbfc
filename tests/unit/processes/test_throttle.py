"""The bound on how fast output that nobody reads is taken from a backend."""

from __future__ import annotations

from twisted.internet.task import Clock

from mcpbridge.config.tuning import UNREAD_BYTES_PER_SECOND
from mcpbridge.processes.throttle import WINDOW_SECONDS, Throttle


class Made:
    """A throttle, and the calls that it made."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.told: list[str] = []
        self.throttle = Throttle(
            self.clock, lambda: self.told.append("pause"), lambda: self.told.append("resume")
        )


def test_output_within_the_bound_does_not_pause_the_backend() -> None:
    made = Made()
    made.throttle.count(UNREAD_BYTES_PER_SECOND)
    assert made.told == []
    assert not made.throttle.pausing


def test_beyond_unread_bytes_per_second_the_backend_waits_for_the_next_window() -> None:
    made = Made()
    made.clock.advance(WINDOW_SECONDS / 4)
    made.throttle.count(UNREAD_BYTES_PER_SECOND + 1)
    made.throttle.count(1)  # what was read already
    assert made.told == ["pause"]
    assert made.throttle.pausing
    made.clock.advance(WINDOW_SECONDS / 2)
    assert made.told == ["pause"]
    made.clock.advance(WINDOW_SECONDS / 4)
    assert made.told == ["pause", "resume"]
    # A window of its own.
    made.throttle.count(UNREAD_BYTES_PER_SECOND)
    assert made.told == ["pause", "resume"]
    made.throttle.count(1)
    assert made.told == ["pause", "resume", "pause"]
    made.throttle.release()


def test_a_slow_backend_is_never_paused() -> None:
    made = Made()
    for _ in range(10):
        made.throttle.count(UNREAD_BYTES_PER_SECOND)
        made.clock.advance(WINDOW_SECONDS)
    assert made.told == []


def test_release_lets_the_backend_go_on_at_once() -> None:
    made = Made()
    made.throttle.release()
    assert made.told == []
    made.throttle.count(UNREAD_BYTES_PER_SECOND + 1)
    made.throttle.release()
    assert made.told == ["pause", "resume"]
    assert made.clock.getDelayedCalls() == []
    made.throttle.count(UNREAD_BYTES_PER_SECOND)
    assert made.told == ["pause", "resume"]
