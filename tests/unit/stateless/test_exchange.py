"""A stateless request and its response, and the requests that wait."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mcpbridge.auth.access import ANYBODY
from mcpbridge.errors import BackendEnded, ServerBusy, ShuttingDown
from mcpbridge.mcp.modern_request import SUBSCRIPTION_ID
from mcpbridge.mcp.own_request import own_request
from mcpbridge.stateless.exchange import Exchange
from mcpbridge.stateless.request_queue import RequestQueue, SingleFlight, Ticket
from mcpbridge.stateless.worker import TOOLS_PAGES, ToolAnnotations

ACKNOWLEDGED = b'{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged"}'
ESCAPED = ACKNOWLEDGED.replace(b"/", b"\\/")
UPDATED = (
    b'{"jsonrpc":"2.0","method":"notifications/resources/updated",'
    b'"params":{"uri":"notifications/subscriptions/acknowledged"}}'
)
ANSWER = b'{"jsonrpc":"2.0","id":0,"result":{}}'


class Recorder:
    """A response and a worker that record their calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def send(self, lines: list[bytes], final: bool) -> None:
        self.calls.append((lines, final))

    def fail(self, refusal: Any) -> None:
        self.calls.append(refusal)

    def cancel(self, exchange: Any) -> None:
        self.calls.append("cancel")

    def pause(self, exchange: Any) -> None:
        self.calls.append("pause")

    def resume(self, exchange: Any) -> None:
        self.calls.append("resume")


def make(method: str = "x") -> tuple[Exchange, Recorder]:
    recorder = Recorder()
    exchange = Exchange(own_request(method, {}), ANYBODY, recorder)
    exchange.assign(recorder)
    return exchange, recorder


def test_exchange_ends_once() -> None:
    exchange, recorder = make()
    exchange.deliver([b"note"], False)
    exchange.deliver([ANSWER], True)
    exchange.deliver([ANSWER], True)
    exchange.fail(BackendEnded("x"))
    exchange.cancel()
    assert recorder.calls == [([b"note"], False), ([ANSWER], True)]


def test_refusal_carries_the_request_id_and_ends_the_exchange() -> None:
    exchange, recorder = make()
    exchange.fail(BackendEnded("x"))
    exchange.deliver([ANSWER], True)
    [refusal] = recorder.calls
    assert refusal.ident == 0


def test_cancelled_exchange_delivers_nothing() -> None:
    exchange, recorder = make()
    exchange.pause()
    exchange.resume()
    exchange.cancel()
    exchange.cancel()
    exchange.deliver([ANSWER], True)
    exchange.fail(BackendEnded("x"))
    assert recorder.calls == ["pause", "resume", "cancel"]


def test_exchange_without_a_worker_can_be_cancelled() -> None:
    exchange, recorder = make()
    exchange._worker = None
    exchange.pause()
    exchange.resume()
    exchange.cancel()
    assert recorder.calls == []
    assert exchange.over


@pytest.mark.parametrize("again", [ACKNOWLEDGED, ESCAPED])
def test_subscription_is_acknowledged_once(again: bytes) -> None:
    exchange, recorder = make("subscriptions/listen")
    exchange.deliver([ACKNOWLEDGED, UPDATED], False)
    exchange.deliver([again], False)
    exchange.deliver([again, UPDATED], False)
    exchange.deliver([ANSWER], True)
    assert recorder.calls == [
        ([ACKNOWLEDGED, UPDATED], False),
        ([UPDATED], False),
        ([ANSWER], True),
    ]


def test_resubscription_reports_everything_as_changed() -> None:
    """Nobody knows what changed in between."""
    exchange, recorder = make("subscriptions/listen")
    promised = b'{"toolsListChanged":true,"resourceSubscriptions":["file:///a"]}'
    line = (
        b'{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged",'
        b'"params":{"notifications":%b}}' % promised
    )
    exchange.deliver([line], False)
    exchange.deliver([line, UPDATED], False)
    assert recorder.calls[0] == ([line], False)
    *changes, last = recorder.calls[1][0]
    assert last == UPDATED
    read = [json.loads(each) for each in changes]
    assert [each["method"] for each in read] == [
        "notifications/tools/list_changed",
        "notifications/resources/updated",
    ]
    assert read[1]["params"]["uri"] == "file:///a"
    assert all(SUBSCRIPTION_ID in each["params"]["_meta"] for each in read)


# Waiting.


class Waiting:
    """The outcome of a coroutine."""

    def __init__(self, coroutine: Coroutine[Deferred[Any], Any, Any]) -> None:
        self.got: list[Any] = []
        self.deferred = Deferred.fromCoroutine(coroutine).addBoth(self.got.append)

    @property
    def failed(self) -> type[BaseException]:
        [failure] = self.got
        assert isinstance(failure, Failure)
        assert failure.value is not None
        return type(failure.value)


class WaitingRequests:
    """A queue, and requests that wait in it for capacity."""

    def __init__(self, limit: int = 3, timeout: float = 10.0) -> None:
        self.clock = Clock()
        self.queue = RequestQueue(self.clock, limit, timeout)
        self.capacity = 0
        self.order: list[str] = []

    async def _wait(self, name: str, fruitless: int) -> None:
        ticket = Ticket()
        while True:
            await self.queue.wait(ticket, lambda: self.capacity > 0, None)
            if not fruitless:
                break
            fruitless -= 1
        self.capacity -= 1
        self.order.append(name)

    def wait(self, name: str, fruitless: int = 0) -> Waiting:
        return Waiting(self._wait(name, fruitless))


def test_wake_admits_as_many_requests_as_there_is_capacity_for() -> None:
    world = WaitingRequests()
    waiting = [world.wait(name) for name in "abc"]
    world.queue.wake()
    assert world.order == []
    world.capacity = 2
    world.queue.wake()
    assert world.order == ["a", "b"]
    world.capacity = 1
    world.queue.wake()
    assert world.order == ["a", "b", "c"]
    assert [each.got for each in waiting] == [[None]] * 3
    assert world.clock.getDelayedCalls() == []


def test_request_woken_in_vain_keeps_its_turn_and_its_timeout() -> None:
    world = WaitingRequests()
    first = world.wait("a", fruitless=1)
    world.clock.advance(6)
    second = world.wait("b")
    world.capacity = 1
    world.queue.wake()
    # It left the capacity to the next request, but is still first in the queue.
    assert world.order == ["b"]
    assert second.got == [None]
    world.clock.advance(3.9)
    assert first.got == []
    world.clock.advance(0.2)
    assert first.failed is ServerBusy
    assert len(world.queue) == 0


def test_full_queue_refuses_a_request() -> None:
    world = WaitingRequests(limit=1)
    first, second = world.wait("a"), world.wait("b")
    assert second.failed is ServerBusy
    first.deferred.cancel()
    assert first.failed is CancelledError
    assert len(world.queue) == 0
    assert world.clock.getDelayedCalls() == []


def test_stopped_queue_refuses_all_requests() -> None:
    world = WaitingRequests()
    first = world.wait("a")
    world.queue.stop()
    assert first.failed is ShuttingDown
    assert world.wait("b").failed is ShuttingDown
    assert world.clock.getDelayedCalls() == []


def test_nested_wakes_do_not_recurse() -> None:
    world = WaitingRequests(limit=2000)

    async def wait(name: str) -> None:
        await world._wait(name, 0)
        world.capacity += 1
        world.queue.wake()

    waiting = [Waiting(wait(f"{number}")) for number in range(2000)]
    world.capacity = 1
    world.queue.wake()
    assert world.order == [f"{number}" for number in range(2000)]
    assert all(each.got == [None] for each in waiting)


def test_single_flight_runs_one_at_a_time() -> None:
    """The next one runs when the first one failed, and nothing recurses."""
    flight = SingleFlight(2000)
    done: list[int] = []

    async def work(number: int) -> None:
        while not done:
            if await flight.is_first():
                try:
                    if number < 1500:
                        raise ValueError
                    done.append(number)
                finally:
                    flight.done()

    begun = Waiting(flight.is_first())
    assert begun.got == [True]
    waiting = [Waiting(work(number)) for number in range(2000)]
    waiting[1500].deferred.cancel()
    flight.done()
    assert done == [1501]
    assert all(each.failed is ValueError for each in waiting[:1500])
    assert waiting[1500].failed is CancelledError
    assert all(each.got == [None] for each in waiting[1501:])


def test_single_flight_refuses_more_than_its_limit() -> None:
    flight = SingleFlight(1)
    first, second, third = (Waiting(flight.is_first()) for _ in range(3))
    assert (first.got, second.got) == ([True], [])
    assert third.failed is ServerBusy
    flight.done()
    assert second.got == [False]


# Tool annotations.


class Pages:
    """Serves pages of `tools/list` when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[str | None, Deferred[msgspec.Raw]]] = []
        self.tools = ToolAnnotations(self.page)

    async def page(self, cursor: str | None) -> msgspec.Raw:
        self.asked.append((cursor, Deferred()))
        return await self.asked[-1][1]

    def give(self, *names: str, cursor: str | None = None) -> None:
        schema = {"properties": {"a": {"type": "string", "x-mcp-header": "A"}}}
        tools = [{"name": name, "inputSchema": schema} for name in names]
        page = {"tools": tools, "nextCursor": cursor}
        self.asked[-1][1].callback(msgspec.Raw(json.dumps(page).encode()))


def test_tools_are_listed_once() -> None:
    pages = Pages()
    waiting = Waiting(pages.tools.annotations("b"))
    pages.give("a", cursor="2")
    pages.give("b")
    [[annotation]] = waiting.got
    assert annotation.header == "Mcp-Param-A"
    assert Waiting(pages.tools.annotations("c")).got == [()]
    assert Waiting(pages.tools.annotations(None)).got == [()]
    assert [cursor for cursor, _ in pages.asked] == [None, "2"]


def test_tools_list_invalidated_meanwhile_is_not_kept() -> None:
    pages = Pages()
    waiting = Waiting(pages.tools.annotations("a"))
    pages.tools.invalidate()
    pages.give("a")
    assert len(waiting.got) == 1
    again = Waiting(pages.tools.annotations("a"))
    assert again.got == []
    pages.give("a")
    assert len(again.got[0]) == 1
    assert len(pages.asked) == 2


def test_tools_list_stops_after_tools_pages() -> None:
    pages = Pages()
    waiting = Waiting(pages.tools.annotations("a"))
    for _ in range(TOOLS_PAGES):
        assert waiting.got == []
        pages.give("a", cursor="more")
    assert len(waiting.got) == 1


def test_who_needs_something_else_does_not_wait() -> None:
    """But one limit holds for all that wait."""
    flight = SingleFlight(1)
    results: list[Any] = []

    def ask(key: str) -> None:
        Deferred.fromCoroutine(flight.is_first(key)).addBoth(results.append)

    ask("a")
    ask("b")
    assert results == [True, True]
    ask("a")
    ask("b")
    assert results.pop().check(ServerBusy)
    flight.done("b")
    busy = [(flight.is_busy("a"), flight.is_busy("b"), flight.is_any_busy)]
    assert results == [True, True]
    flight.done("a")
    busy.append((flight.is_busy("a"), flight.is_busy("b"), flight.is_any_busy))
    assert busy == [(True, False, True), (False, False, False)]
    assert results == [True, True, False]
    ask("b")
    ask("b")
    assert results == [True, True, False, True]
    flight.done("b")
    assert results == [True, True, False, True, False]
