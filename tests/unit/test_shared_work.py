"""One piece of work for all who ask for it meanwhile."""

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


# Work that is stopped, and results that come at once.


class Work:
    """Work whose results the test gives."""

    def __init__(self) -> None:
        self.started: list[Deferred[str]] = []
        self.cancelled = 0
        self.flight = SharedWork(self._start)

    def _start(self) -> Deferred[str]:
        self.started.append(Deferred(self._cancel))
        return self.started[-1]

    def _cancel(self, work: Deferred[str]) -> None:
        self.cancelled += 1
        work.callback("cancelled")


def test_all_get_the_result_of_one_piece_of_work() -> None:
    work, results = Work(), list[str]()
    for _ in range(3):
        work.flight.wait().addCallback(results.append)
        work.flight.run()
    assert (len(work.started), len(work.flight), work.flight.is_running) == (1, 3, True)
    work.started[0].callback("done")
    assert (results, len(work.flight), work.flight.is_running) == (["done"] * 3, 0, False)
    work.flight.run()
    assert len(work.started) == 2
    work.started[1].callback("again")
    assert results == ["done"] * 3


def test_who_gives_up_gets_nothing_and_disturbs_nobody() -> None:
    work, results = Work(), list[object]()
    gone = work.flight.wait()
    first = work.flight.wait()
    second = work.flight.wait()
    second.addErrback(lambda failure: results.append(failure.check(CancelledError)))
    first.addCallback(results.append).addCallback(lambda _: second.cancel())
    third = work.flight.wait().addCallback(results.append)
    work.flight.run()
    gone.cancel()
    gone.addErrback(lambda failure: failure.trap(CancelledError))
    assert len(work.flight) == 3
    work.started[0].callback("done")
    assert results == ["done", CancelledError, "done"]
    assert third.called


def test_work_that_is_stopped_ends_for_all() -> None:
    work, results = Work(), list[str]()
    work.flight.stop("nothing")
    work.flight.wait().addCallback(results.append)
    work.flight.stop("not started")
    work.flight.wait().addCallback(results.append)
    work.flight.run()
    work.flight.stop("stopped")
    assert (results, work.cancelled, work.flight.is_running) == (
        ["not started", "stopped"],
        1,
        False,
    )


def test_work_may_be_done_at_once() -> None:
    def start() -> Deferred[str]:
        done: Deferred[str] = Deferred()
        done.callback("now")
        return done

    flight, results = SharedWork(start), list[str]()
    for _ in range(2):
        flight.wait().addCallback(results.append)
        flight.run()
    assert (results, flight.is_running) == (["now", "now"], False)
