"""One piece of work for all who ask for it meanwhile."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred

from mcpbridge.auth.shared_work import SharedWork


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
