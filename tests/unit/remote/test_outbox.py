"""Which message may be posted when."""

from __future__ import annotations

import pytest

from mcpbridge.errors import BackendBusy, UnknownSession
from mcpbridge.mcp.posted_message import PostedMessage, read_posted
from mcpbridge.remote.outbox import REQUESTS_AT_ONCE, SUBSCRIPTIONS_AT_ONCE, Outbox
from tests.unit.remote.fake_remote import INITIALIZE, INITIALIZED, modern, request, result


class Posts:
    """An outbox, and what it has let pass."""

    def __init__(self, most: int = 10, size: int = 10_000) -> None:
        self.lines: list[bytes] = []
        self.outbox = Outbox(self._post, most, size)

    def _post(self, message: PostedMessage) -> None:
        self.lines.append(message.line)

    def put(self, *lines: bytes) -> None:
        for line in lines:
            self.outbox.put(read_posted(line))

    def answered(self, line: bytes) -> None:
        self.outbox.answered(read_posted(line))


def test_requests_run_at_once_up_to_a_bound() -> None:
    posts = Posts()
    requests = [request(each) for each in range(REQUESTS_AT_ONCE + 2)]
    posts.put(*requests)
    assert posts.lines == requests[:REQUESTS_AT_ONCE]
    assert posts.outbox.waiting == (2, 2 * len(requests[-1]))
    posts.answered(requests[0])
    assert posts.lines == requests[: REQUESTS_AT_ONCE + 1]


def test_subscriptions_have_a_bound_of_their_own() -> None:
    posts = Posts()
    listens = [modern(each, "subscriptions/listen") for each in range(SUBSCRIPTIONS_AT_ONCE + 1)]
    posts.put(*listens, modern(0))
    assert posts.lines == [*listens[:-1], modern(0)]
    posts.answered(listens[0])
    assert posts.lines[-1] == listens[-1]


def test_notifications_and_answers_keep_their_order() -> None:
    posts = Posts()
    posts.put(request(1), INITIALIZED, result(5), request(2))
    assert posts.lines == [request(1), INITIALIZED]
    posts.outbox.accepted()
    assert posts.lines == [request(1), INITIALIZED, result(5)]
    posts.outbox.accepted()
    assert posts.lines[-1] == request(2)


def test_answer_passes_requests_that_wait_for_room() -> None:
    posts = Posts()
    posts.put(*map(request, range(REQUESTS_AT_ONCE + 1)), result(5))
    assert posts.lines[-1] == result(5)
    posts.answered(request(0))
    assert posts.lines[-1] == request(REQUESTS_AT_ONCE), "which need not wait for the answer"


def test_initialize_runs_alone() -> None:
    posts = Posts()
    posts.put(request(1), INITIALIZE, INITIALIZED)
    assert posts.lines == [request(1)]
    posts.answered(request(1))
    assert posts.lines == [request(1), INITIALIZE]
    posts.answered(INITIALIZE)
    assert posts.lines[-1] == INITIALIZED


def test_what_waits_is_bounded() -> None:
    posts = Posts(most=2)
    posts.put(INITIALIZE)
    posts.outbox.check(50)
    posts.put(request(2))
    posts.outbox.check(1)
    with pytest.raises(BackendBusy, match="1 messages"):
        posts.outbox.check(2)
    posts = Posts(size=10)
    posts.put(INITIALIZE, request(2))
    with pytest.raises(BackendBusy):
        posts.outbox.check(1)


def test_waiting_request_can_be_withdrawn() -> None:
    posts = Posts()
    posts.put(INITIALIZE, request(2), modern(3, "subscriptions/listen"))
    assert posts.outbox.withdraw(2)
    assert not posts.outbox.withdraw(2)
    assert not posts.outbox.withdraw(1)
    assert posts.outbox.waiting[0] == 1
    assert posts.outbox.withdraw(3)
    assert posts.outbox.waiting == (0, 0)


def test_all_that_waits_can_be_taken() -> None:
    posts = Posts()
    posts.put(INITIALIZE, INITIALIZED, request(2), result(3))
    assert [each.line for each in posts.outbox.take_all()] == [INITIALIZED, request(2), result(3)]
    with pytest.raises(UnknownSession):
        posts.outbox.check(1)
    posts.answered(INITIALIZE)
    assert posts.lines == [INITIALIZE]
