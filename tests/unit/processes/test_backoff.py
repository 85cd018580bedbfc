"""When a server that cannot be started is tried again."""

from __future__ import annotations

import pytest

from mcpbridge.config.tuning import (
    BACKOFF_SECONDS,
    MAX_BACKOFF_SECONDS,
    REMOTE_BACKOFF_SECONDS,
    STILLBORN_STARTS,
)
from mcpbridge.errors import ServerDown
from mcpbridge.processes.backoff import StartBackoff
from tests.fakes import no_jitter


def test_the_pause_doubles_to_its_maximum_and_is_reset() -> None:
    backoff, now, pauses = StartBackoff("cat", no_jitter), 100.0, []
    for _ in range(2000):
        pauses.append(backoff.failed(now, "no"))
        now += pauses[-1]
    assert pauses[:7] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, MAX_BACKOFF_SECONDS]
    assert set(pauses[6:]) == {MAX_BACKOFF_SECONDS}
    backoff.succeeded()
    assert (backoff.wait(now), str(backoff)) == (0.0, "ready")
    assert backoff.failed(now, "no") == BACKOFF_SECONDS


def test_the_longest_pause_may_be_shorter() -> None:
    backoff, now = StartBackoff("cat", no_jitter, REMOTE_BACKOFF_SECONDS), 100.0
    for _ in range(5):
        now += backoff.failed(now, "no")
    assert backoff.failed(now, "no") == REMOTE_BACKOFF_SECONDS


def test_each_pause_varies_by_a_part_of_the_first(log_lines: list[str]) -> None:
    parts = iter([0.5, 0.25])
    backoff = StartBackoff("cat", lambda: next(parts))
    assert backoff.failed(10.0, "no") == BACKOFF_SECONDS * 1.5
    assert log_lines[-1].endswith("the next try is in 1.5 s")
    with pytest.raises(ServerDown, match=r"tries again in 2 s") as raised:
        backoff.check(10.0)
    assert raised.value.retry_after == 2
    backoff.check(10.0 + BACKOFF_SECONDS * 1.5)
    assert backoff.failed(20.0, "no") == BACKOFF_SECONDS * 2.25


def test_failures_while_the_server_is_down_count_once() -> None:
    """Sixteen starts that were begun together count as one failure."""
    backoff = StartBackoff("cat", no_jitter)
    assert [backoff.failed(0.25, "no") for _ in range(16)] == [1.0] * 16
    assert backoff.failed(0.75, "why not") == 0.5
    assert str(backoff) == "down after 1 failed start: why not"
    assert backoff.failed(1.25, "no") == 2.0
    assert str(backoff) == "down after 2 failed starts: no"


def test_a_failure_without_a_reason_counts() -> None:
    backoff = StartBackoff("cat", no_jitter)
    backoff.failed(0.0, "")
    assert str(backoff).startswith("down")


def test_server_down_tells_when_to_retry() -> None:
    backoff = StartBackoff("cat", no_jitter)
    backoff.check(0.0)
    backoff.failed(0.0, "it was not found")
    with pytest.raises(ServerDown) as raised:
        backoff.check(0.5)
    assert str(raised.value) == (
        "the server 'cat' cannot be started (it was not found); the bridge tries again in 1 s"
    )
    assert (raised.value.status, raised.value.retry_after) == (503, 1)
    backoff.check(1.0)


def test_many_silent_deaths_in_a_row_raise_a_doubt() -> None:
    """Each may be the client's fault, but many in a row may be the server's."""
    backoff = StartBackoff("cat", no_jitter)
    doubts = [backoff.stillborn() for _ in range(STILLBORN_STARTS)]
    assert doubts == [False] * (STILLBORN_STARTS - 1) + [True]
    backoff.check(0.0)
    assert backoff.stillborn()
    backoff.succeeded()
    assert not backoff.stillborn()
