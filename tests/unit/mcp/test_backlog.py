"""What waits for a client, and what gives way."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.config.tuning import SMALL_BYTES
from mcpbridge.mcp.backlog import Backlog, BacklogMessage


def notification(line: bytes) -> BacklogMessage:
    return BacklogMessage(line, msgspec.UNSET)


def request(line: bytes, ident: int) -> BacklogMessage:
    return BacklogMessage(line, ident)


def test_the_oldest_notification_gives_way_first() -> None:
    backlog = Backlog(3, 100)
    first, second, third = request(b"r1", 1), notification(b"n1"), notification(b"n2")
    assert [backlog.add(each) for each in (first, second, third)] == [[], [], []]
    assert backlog.add(request(b"r2", 2)) == [second]
    assert backlog.add(request(b"r3", 3)) == [third]
    assert backlog.add(notification(b"n3")) == [notification(b"n3")]
    assert backlog.add(request(b"r4", 4)) == [first]
    assert (len(backlog), backlog.size) == (3, 6)
    assert [line for line, *_ in backlog.take()] == [b"r2", b"r3", b"r4"]
    assert (len(backlog), backlog.size) == (0, 0)
    assert backlog.take() == []


def test_backlogs_in_which_nothing_waits_share_their_queues() -> None:
    """And nothing else: there is one for each session, and a message belongs to one client."""
    first, second = Backlog(3, 100), Backlog(3, 100)
    assert first._notifications is second._notifications is second._requests
    for _ in range(2):
        first.add(request(b"r", 1))
        first.add(notification(b"n"))
        assert (len(first), len(second)) == (2, 0)
        assert second.take() == []
        assert [line for line, *_ in first.take()] == [b"r", b"n"]
        assert first._notifications is second._notifications is first._requests


def test_a_removed_request_waits_no_more() -> None:
    budget = Counted(100)
    backlog = Backlog(3, 100, budget)
    for each in (request(b"r1", 1), notification(b"n"), BacklogMessage(b"r2", 2, 7.0)):
        backlog.add(each)
    assert [backlog.remove_request(3), backlog.remove_request(1), backlog.remove_request(1)] == [
        False,
        True,
        False,
    ]
    assert (len(backlog), backlog.size, budget.used, backlog.oldest_request) == (2, 3, 3, 7.0)
    assert backlog.take_oldest_request() == BacklogMessage(b"r2", 2, 7.0)
    assert (len(backlog), backlog.size, budget.used, backlog.oldest_request) == (1, 1, 1, None)


@pytest.mark.parametrize("large", [notification(b"x" * 11), request(b"x" * 11, 1)])
def test_a_message_that_cannot_fit_displaces_nothing(large: BacklogMessage) -> None:
    backlog = Backlog(3, 10)
    assert backlog.add(notification(b"x" * 10)) == []
    assert backlog.add(large) == [large]
    assert len(backlog) == 1


@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.booleans())),
    max_events=st.integers(1, 5),
    max_bytes=st.integers(1, 20),
)
def test_any_sequence_of_messages(
    sizes: list[tuple[int, bool]], max_events: int, max_bytes: int
) -> None:
    """Within the bounds at every step, in order, and everything is somewhere once."""
    backlog = Backlog(max_events, max_bytes)
    model: list[BacklogMessage] = []
    for at, (size, asks) in enumerate(sizes):
        line = b"%d" % at + b"x" * size
        waiter = request(line, at) if asks else notification(line)
        gone = []
        if len(line) > max_bytes:
            gone.append(waiter)
        else:
            model.append(waiter)
            while len(model) > max_events or sum(len(each.line) for each in model) > max_bytes:
                victim = next((w for w in model if w.request_id is msgspec.UNSET), model[0])
                model.remove(victim)
                gone.append(victim)
        assert backlog.add(waiter) == gone
        assert len(backlog) == len(model) <= max_events
        assert backlog.size == sum(len(each.line) for each in model) <= max_bytes
    assert backlog.take() == model


class Counted:
    """A budget that is full beyond its limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.full = False

    def take(self, size: int) -> None:
        self.used += size
        self.full = self.used > self.limit

    def give_back(self, size: int) -> None:
        self.take(-size)


def test_a_full_budget_leaves_room_for_small_bytes() -> None:
    """SMALL_BYTES: the oldest give way until no more than that waits."""
    budget = Counted(3 * SMALL_BYTES)
    backlog = Backlog(100, 10 * SMALL_BYTES, budget)
    half = b"x" * (SMALL_BYTES // 2)
    waiters = [notification(half) for _ in range(6)]
    assert [backlog.add(each) for each in waiters] == [[]] * 6
    assert (budget.used, budget.full) == (3 * SMALL_BYTES, False)
    # One more byte, and it is full; with what gives way it is not any more.
    assert backlog.add(notification(b"x")) == waiters[:1]
    assert (budget.used, backlog.size) == (backlog.size, 5 * len(half) + 1)
    budget.take(3 * SMALL_BYTES)
    assert backlog.add(notification(b"y")) == waiters[1:5]
    assert backlog.size == len(half) + 2 <= SMALL_BYTES
    assert len(backlog.take()) == 3
    assert budget.used == 3 * SMALL_BYTES
