"""A request of a stateless client and its response; and what waits."""

from __future__ import annotations

import json
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

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


class Noted:
    """An outlet and a worker that note what they are told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def send(self, lines: list[bytes], final: bool) -> None:
        self.told.append((lines, final))

    def fail(self, refusal: Any) -> None:
        self.told.append(refusal)

    def cancel(self, exchange: Any) -> None:
        self.told.append("cancel")

    def pause(self, exchange: Any) -> None:
        self.told.append("pause")

    def resume(self, exchange: Any) -> None:
        self.told.append("resume")


def make(method: str = "x") -> tuple[Exchange, Noted]:
    noted = Noted()
    exchange = Exchange(own_request(method, {}), "", noted)
    exchange.assign(noted)
    return exchange, noted


def test_it_ends_once() -> None:
    exchange, noted = make()
    exchange.deliver([b"note"], False)
    exchange.deliver([ANSWER], True)
    exchange.deliver([ANSWER], True)
    exchange.fail(BackendEnded("x"))
    exchange.cancel()
    assert noted.told == [([b"note"], False), ([ANSWER], True)]


def test_a_refusal_has_its_id_and_ends_it() -> None:
    exchange, noted = make()
    exchange.fail(BackendEnded("x"))
    exchange.deliver([ANSWER], True)
    [refusal] = noted.told
    assert refusal.ident == 0


def test_what_is_cancelled_gets_nothing() -> None:
    exchange, noted = make()
    exchange.pause()
    exchange.resume()
    exchange.cancel()
    exchange.cancel()
    exchange.deliver([ANSWER], True)
    exchange.fail(BackendEnded("x"))
    assert noted.told == ["pause", "resume", "cancel"]


def test_without_a_worker_nobody_is_told() -> None:
    exchange, noted = make()
    exchange._worker = None
    exchange.pause()
    exchange.resume()
    exchange.cancel()
    assert noted.told == []
    assert exchange.over


@pytest.mark.parametrize("again", [ACKNOWLEDGED, ESCAPED])
def test_a_stream_is_acknowledged_once(again: bytes) -> None:
    exchange, noted = make("subscriptions/listen")
    exchange.deliver([ACKNOWLEDGED, UPDATED], False)
    exchange.deliver([again], False)
    exchange.deliver([again, UPDATED], False)
    exchange.deliver([ANSWER], True)
    assert noted.told == [
        ([ACKNOWLEDGED, UPDATED], False),
        ([UPDATED], False),
        ([ANSWER], True),
    ]


def test_what_may_have_changed_before_a_stream_was_opened_anew() -> None:
    """Nobody has told meanwhile."""
    exchange, noted = make("subscriptions/listen")
    promised = b'{"toolsListChanged":true,"resourceSubscriptions":["file:///a"]}'
    line = (
        b'{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged",'
        b'"params":{"notifications":%b}}' % promised
    )
    exchange.deliver([line], False)
    exchange.deliver([line, UPDATED], False)
    assert noted.told[0] == ([line], False)
    *changes, last = noted.told[1][0]
    assert last == UPDATED
    read = [json.loads(each) for each in changes]
    assert [each["method"] for each in read] == [
        "notifications/tools/list_changed",
        "notifications/resources/updated",
    ]
    assert read[1]["params"]["uri"] == "file:///a"
    assert all(SUBSCRIPTION_ID in each["params"]["_meta"] for each in read)


# What waits.


class Waiting:
    """What became of a coroutine."""

    def __init__(self, coroutine: Coroutine[Deferred[Any], Any, Any]) -> None:
        self.got: list[Any] = []
        self.deferred = Deferred.fromCoroutine(coroutine).addBoth(self.got.append)

    @property
    def failed(self) -> type[BaseException]:
        [failure] = self.got
        assert isinstance(failure, Failure)
        assert failure.value is not None
        return type(failure.value)


class Line:
    """A line, and those who wait in it for one of several places."""

    def __init__(self, limit: int = 3, timeout: float = 10.0) -> None:
        self.clock = Clock()
        self.line = RequestQueue(self.clock, limit, timeout)
        self.places = 0
        self.order: list[str] = []

    async def _wait(self, name: str, fruitless: int) -> None:
        ticket = Ticket()
        while True:
            await self.line.wait(ticket, lambda: self.places > 0)
            if not fruitless:
                break
            fruitless -= 1
        self.places -= 1
        self.order.append(name)

    def wait(self, name: str, fruitless: int = 0) -> Waiting:
        return Waiting(self._wait(name, fruitless))


def test_all_go_for_whom_there_is_something() -> None:
    world = Line()
    waiting = [world.wait(name) for name in "abc"]
    world.line.wake()
    assert world.order == []
    world.places = 2
    world.line.wake()
    assert world.order == ["a", "b"]
    world.places = 1
    world.line.wake()
    assert world.order == ["a", "b", "c"]
    assert [each.got for each in waiting] == [[None]] * 3
    assert world.clock.getDelayedCalls() == []


def test_who_went_in_vain_keeps_its_place_and_its_time() -> None:
    world = Line()
    first = world.wait("a", fruitless=1)
    world.clock.advance(6)
    second = world.wait("b")
    world.places = 1
    world.line.wake()
    # It left the place to the next one; but is still the first in line.
    assert world.order == ["b"]
    assert second.got == [None]
    world.clock.advance(3.9)
    assert first.got == []
    world.clock.advance(0.2)
    assert first.failed is ServerBusy
    assert len(world.line) == 0


def test_it_is_full() -> None:
    world = Line(limit=1)
    first, second = world.wait("a"), world.wait("b")
    assert second.failed is ServerBusy
    first.deferred.cancel()
    assert first.failed is CancelledError
    assert len(world.line) == 0
    assert world.clock.getDelayedCalls() == []


def test_the_line_stops() -> None:
    world = Line()
    first = world.wait("a")
    world.line.stop()
    assert first.failed is ShuttingDown
    assert world.wait("b").failed is ShuttingDown
    assert world.clock.getDelayedCalls() == []


def test_a_wake_within_a_wake_is_one_more_and_not_deeper() -> None:
    world = Line(limit=2000)

    async def wait(name: str) -> None:
        await world._wait(name, 0)
        world.places += 1
        world.line.wake()

    waiting = [Waiting(wait(f"{number}")) for number in range(2000)]
    world.places = 1
    world.line.wake()
    assert world.order == [f"{number}" for number in range(2000)]
    assert all(each.got == [None] for each in waiting)


def test_a_crowd() -> None:
    """One at a time; the next one when it was in vain; deep recursion for nobody."""
    crowd = SingleFlight(2000)
    done: list[int] = []

    async def work(number: int) -> None:
        while not done:
            if await crowd.is_first():
                try:
                    if number < 1500:
                        raise ValueError
                    done.append(number)
                finally:
                    crowd.done()

    begun = Waiting(crowd.is_first())
    assert begun.got == [True]
    waiting = [Waiting(work(number)) for number in range(2000)]
    waiting[1500].deferred.cancel()
    crowd.done()
    assert done == [1501]
    assert all(each.failed is ValueError for each in waiting[:1500])
    assert waiting[1500].failed is CancelledError
    assert all(each.got == [None] for each in waiting[1501:])


def test_a_crowd_is_bounded() -> None:
    crowd = SingleFlight(1)
    first, second, third = (Waiting(crowd.is_first()) for _ in range(3))
    assert (first.got, second.got) == ([True], [])
    assert third.failed is ServerBusy
    crowd.done()
    assert second.got == [False]


# Tools.


class Pages:
    """Gives pages of `tools/list` when told to."""

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


def test_what_changes_meanwhile_is_not_kept() -> None:
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


def test_pages_without_end() -> None:
    pages = Pages()
    waiting = Waiting(pages.tools.annotations("a"))
    for _ in range(TOOLS_PAGES):
        assert waiting.got == []
        pages.give("a", cursor="more")
    assert len(waiting.got) == 1
