"""Questions that wait for their turn."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock

from mcpbridge.auth.question_queue import QuestionQueue
from mcpbridge.auth.shared_places import SharedPlaces


class Asked:
    """A queue of which two questions are asked at a time, one of each address."""

    def __init__(self, waiting: int = 100, asked: int = 2, asked_of_address: int = 1) -> None:
        self.clock = Clock()
        self.waiting = SharedPlaces(waiting, waiting)
        self.asked = SharedPlaces(asked, asked_of_address)
        self.queue: QuestionQueue[str] = QuestionQueue(self.clock, self.waiting, self.asked, 10.0)
        #: What is being asked; what was cancelled.
        self.open: dict[str, Deferred[Any]] = {}
        self.cancelled: list[str] = []

    def ask(self, key: str, address: str | None = None) -> tuple[Deferred[Any], list[Any]] | None:
        found = self.queue.ask(key, lambda: self._start(key), address)
        if found is None:
            return None
        results: list[Any] = []
        found.addCallbacks(results.append, lambda failure: results.append(type(failure.value)))
        return found, results

    def _start(self, key: str) -> Deferred[str | None]:
        def cancel(work: Deferred[Any]) -> None:
            self.cancelled.append(key)
            work.callback(None)

        work: Deferred[str | None] = Deferred(cancel)
        self.open[key] = work
        return work

    def answer(self, key: str) -> None:
        self.open.pop(key).callback(key.upper())

    def is_empty(self) -> bool:
        return (len(self.queue), len(self.waiting), len(self.asked)) == (
            0,
            0,
            0,
        ) and not self.clock.getDelayedCalls()


def got(asked: tuple[Deferred[Any], list[Any]] | None) -> list[Any]:
    assert asked is not None
    return asked[1]


def test_an_address_at_its_share_lets_others_go_first() -> None:
    world = Asked()
    waiting = [world.ask(*each) for each in (("a", "x"), ("b", "x"), ("c", "y"), ("d", None))]
    assert list(world.open) == ["a", "c"]
    world.answer("c")
    assert list(world.open) == ["a", "d"]
    world.answer("a")
    assert list(world.open) == ["d", "b"]
    world.answer("d")
    world.answer("b")
    assert [got(each) for each in waiting] == [["A"], ["B"], ["C"], ["D"]]
    assert world.is_empty()


def test_one_question_is_asked_once() -> None:
    world = Asked()
    waiting = [world.ask("a", "x"), world.ask("a", "y")]
    world.answer("a")
    assert [got(each) for each in waiting] == [["A"], ["A"]]
    assert world.is_empty()


def test_nothing_is_asked_for_those_who_have_left() -> None:
    world = Asked()
    for key in "abc":
        world.ask(key)
    two = [world.ask("d"), world.ask("d")]
    for each in two:
        assert each is not None
        assert len(world.queue) == 4
        each[0].cancel()
    assert [got(each) for each in two] == [[CancelledError]] * 2
    assert (len(world.queue), len(world.waiting)) == (3, 3)
    for key in "abc":
        world.answer(key)
    assert "d" not in world.open
    assert world.is_empty()


def test_what_is_being_asked_goes_on_for_the_next_one() -> None:
    world = Asked()
    first = world.ask("a")
    assert first is not None
    first[0].cancel()
    assert (len(world.queue), len(world.waiting), len(world.asked)) == (1, 0, 1)
    second = world.ask("a")
    world.answer("a")
    assert got(second) == ["A"]
    assert world.is_empty()


def test_what_is_not_asked_in_time_has_no_answer() -> None:
    world = Asked(asked=1)
    world.ask("a")
    late = world.ask("b")
    world.clock.advance(10)
    assert got(late) == [None]
    world.answer("a")
    assert "b" not in world.open
    assert world.is_empty()


def test_only_so_many_wait() -> None:
    world = Asked(waiting=3)
    for _ in range(3):
        world.ask("a")
    assert world.ask("a") is None
    world.answer("a")
    assert world.ask("a") is not None
    world.queue.stop()
    assert world.is_empty()


def test_stop_answers_all() -> None:
    world = Asked(asked=1)
    waiting = [world.ask("a"), world.ask("b")]
    world.queue.stop()
    assert [got(each) for each in waiting] == [[None], [None]]
    assert (world.cancelled, list(world.open)) == (["a"], ["a"])
    assert world.ask("c") is None
    assert world.is_empty()


def test_one_who_is_answered_may_make_another_give_up() -> None:
    world = Asked()
    first, second = world.queue.ask("a", lambda: world._start("a"), None), world.ask("a")
    assert first is not None
    assert second is not None
    first.addCallback(lambda _: second[0].cancel())
    world.answer("a")
    assert got(second) == [CancelledError]
    assert world.is_empty()


def test_answers_at_once_do_not_recurse() -> None:
    world = Asked(waiting=3000, asked=1)
    world.ask("a")
    results: list[Any] = []
    for number in range(2000):
        found = world.queue.ask(number, lambda: succeed("x"), None)
        assert found is not None
        found.addCallback(results.append)
    world.answer("a")
    assert results == ["x"] * 2000
    assert world.is_empty()
