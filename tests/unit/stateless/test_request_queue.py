"""The order in which waiting requests proceed, and how many are asked whether they may."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mcpbridge.errors import ServerBusy
from mcpbridge.stateless.request_queue import RequestQueue, Ticket


def test_oldest_ticket_goes_first_even_when_it_waits_again() -> None:
    """A request that found its process taken stays ahead of those that came later."""
    clock = Clock()
    queue = RequestQueue(clock, limit=2, timeout=100)
    capacity = 0
    served: list[str] = []

    def wait(name: str, ticket: Ticket, then: Callable[[], object]) -> None:
        waiting = Deferred.fromCoroutine(queue.wait(ticket, lambda: capacity > len(served), None))

        def proceed(_: None) -> None:
            served.append(name)
            then()

        waiting.addCallback(proceed)

    early = Ticket()
    wait("early", early, lambda: wait("early again", early, list))
    clock.advance(1)
    wait("late", Ticket(), list)
    capacity = 1
    queue.wake()
    capacity = 2
    queue.wake()
    assert served == ["early", "early again"]
    capacity = 3
    queue.wake()
    assert served == ["early", "early again", "late"]
    assert len(queue) == 0


class Lines:
    """
    A queue whose requests wait for a worker of their line, or for capacity for
    their address; `asked` counts how often they were asked.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.states: list[bool] = []
        self.queue = RequestQueue(self.clock, 1000, 100.0, self.states.append)
        self.free: Counter[object] = Counter()
        self.asked = 0
        self.served: list[int] = []
        self.waiting: list[Deferred[None]] = []

    def wait(self, line: str, address: str) -> Deferred[None]:
        number = len(self.waiting)

        def may_proceed() -> bool:
            self.asked += 1
            return bool(self.free[line] or self.free[address])

        def proceed(_: object) -> None:
            self.free[line if self.free[line] else address] -= 1
            self.served.append(number)

        asking = self.queue.wait(Ticket(), may_proceed, address, line)
        waiting = Deferred.fromCoroutine(asking).addCallback(proceed)
        waiting.addErrback(lambda _: None)
        self.waiting.append(waiting)
        self.clock.advance(0.01)
        return waiting


def test_a_freed_worker_asks_the_first_of_its_line_and_not_everybody() -> None:
    world = Lines()
    for number in range(300):
        world.wait("ab"[number % 2], "address")
    world.free["b"] = 1
    world.queue.wake("b")
    assert world.served == [1]
    # The first of all for capacity, the first of line `b`, and the one behind it.
    assert world.asked <= 4
    world.asked = 0
    world.queue.wake("a")
    assert world.served == [1]
    assert world.asked == 1
    world.queue.stop()


def test_capacity_goes_to_whoever_waits_longest() -> None:
    world = Lines()
    for line, address in (("a", "x"), ("b", "y"), ("c", "x")):
        world.wait(line, address)
    world.free["y"] = 1
    world.queue.wake()
    assert world.served == [1]
    world.free["x"] = 2
    world.queue.wake("a")
    assert world.served == [1, 0, 2]
    assert len(world.queue) == 0
    assert world.states == [True, False]


def test_one_that_has_left_or_waited_too_long_is_in_no_line() -> None:
    world = Lines()
    first, _, third = (world.wait("a", each) for each in "xyx")
    first.cancel()
    world.clock.advance(99.9)
    third.cancel()
    assert len(world.queue) == 1
    world.clock.advance(1)
    assert len(world.queue) == 0
    world.free["a"] = 3
    world.queue.wake("a")
    assert world.served == []
    assert world.queue._lines == {}
    assert world.queue._for_capacity == {}
    assert world.clock.getDelayedCalls() == []


def test_a_request_that_a_stop_ends_lets_no_other_proceed() -> None:
    clock = Clock()
    queue = RequestQueue(clock, limit=9, timeout=100)
    ended: list[Any] = []

    def wait(then: Callable[[], object]) -> None:
        def over(outcome: object) -> None:
            ended.append(outcome)
            then()

        Deferred.fromCoroutine(queue.wait(Ticket(), lambda: True, None)).addBoth(over)

    wait(queue.wake)
    wait(list)
    queue.stop()
    assert len(ended) == 2
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("again", [False, True])
def test_one_that_waits_again_is_asked_once_for_each_wake(again: bool) -> None:
    """Its `may_proceed` may be wrong, and must not keep the queue busy for ever."""
    clock = Clock()
    queue = RequestQueue(clock, limit=9, timeout=100)
    turns: list[str] = []

    async def wait(name: str) -> None:
        ticket = Ticket()
        while True:
            await queue.wait(ticket, lambda: True, None, "line")
            turns.append(name)
            if not again:
                return

    waiting = [Deferred.fromCoroutine(wait(name)) for name in "ab"]
    queue.wake("line")
    assert turns == ["a", "b"]
    for each in waiting:
        each.addErrback(lambda failure: failure.trap(ServerBusy))
    clock.advance(100)
    assert len(queue) == 0


LINES, ADDRESSES = st.sampled_from("abc"), st.sampled_from("xyz")


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("wait"), LINES, ADDRESSES),
            st.tuples(st.just("leave"), st.integers(0, 30), st.none()),
            st.tuples(st.just("free"), LINES | ADDRESSES, st.none()),
        ),
        max_size=40,
    )
)
def test_order_is_that_of_asking_everybody(steps: list[tuple[str, Any, Any]]) -> None:
    """Compare with the obvious queue: whoever waits longest and can use what is free has it."""
    world = Lines()
    model: list[tuple[int, str, str]] = []
    expected: list[int] = []
    for what, one, two in steps:
        if what == "wait":
            model.append((len(world.waiting), one, two))
            world.wait(one, two)
        elif what == "leave":
            if one < len(world.waiting):
                world.waiting[one].cancel()
                model = [each for each in model if each[0] != one]
        else:
            world.free[one] = 1
            first = next((each for each in model if one in each[1:]), None)
            if first is not None:
                model.remove(first)
                expected.append(first[0])
            world.queue.wake(*([one] if one in "abc" else []))
            if first is None:
                world.free[one] = 0
        assert world.served == expected
        assert len(world.queue) == len(model)
    world.queue.stop()
