"""Work that is done once for all who ask for it at one time."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed

from mcpbridge.shared_work import SharedWork


class Starts:
    """Starts work that a test finishes."""

    def __init__(self) -> None:
        self.running: list[Deferred[int]] = []

    def __call__(self) -> Deferred[int]:
        self.running.append(Deferred())
        return self.running[-1]


def joined(work: SharedWork[int], found: list[object]) -> Deferred[int]:
    waiter = work.join()
    assert waiter is not None
    waiter.addBoth(found.append)
    return waiter


def test_those_who_ask_meanwhile_share_a_result() -> None:
    starts, found = Starts(), list[object]()
    work = SharedWork(starts, 10)
    for _ in range(3):
        joined(work, found)
    assert len(starts.running) == 1
    starts.running[0].callback(5)
    assert found == [5, 5, 5]
    joined(work, found)
    assert len(starts.running) == 2


def test_no_more_than_the_limit_wait() -> None:
    starts = Starts()
    work = SharedWork(starts, 2)
    first, second = work.join(), work.join()
    assert first is not None
    assert second is not None
    assert work.join() is None
    first.addErrback(lambda failure: failure.trap(CancelledError)).cancel()
    assert work.join() is not None


def test_a_failure_is_for_all_who_wait() -> None:
    starts, found = Starts(), list[object]()
    work = SharedWork(starts, 10)
    for _ in range(2):
        joined(work, found)
    starts.running[0].errback(ValueError("x"))
    assert [type(each.value) for each in found] == [ValueError, ValueError]  # type: ignore[attr-defined]


def test_a_start_that_raises_fails_the_work() -> None:
    def start() -> Deferred[int]:
        raise ValueError("x")

    found = list[object]()
    joined(SharedWork(start, 1), found)
    assert len(found) == 1
    joined(SharedWork(lambda: succeed(3), 1), found)
    assert found[1] == 3


def test_a_failure_for_which_nobody_waits_is_logged(logged_failures: list[Any]) -> None:
    starts = Starts()
    work = SharedWork(starts, 1)
    waiter = work.join()
    assert waiter is not None
    waiter.addErrback(lambda failure: failure.trap(CancelledError)).cancel()
    starts.running[0].errback(ValueError("x"))
    assert len(logged_failures) == 1
    joined(work, [])
    assert len(starts.running) == 2
