"""Who gets a place for a process, and that whoever waits is told of every place there is."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

from mcpbridge.config import CANCEL_SECONDS
from mcpbridge.errors import BackendFailed, CannotStart, ServerBusy
from mcpbridge.session.group import Group
from mcpbridge.session.line import Place, WaitingLine, outlived
from tests.fakes import Call, Legacy, Modern, Scripted, World

either = pytest.mark.parametrize("kind", [Legacy, Modern])


class Listened(Legacy):
    """One that can be listened to."""

    capabilities: ClassVar[dict[str, Any]] = {"tools": {"listChanged": True}, "resources": {}}


def side_by_side(kind: type[Scripted] = Legacy) -> tuple[World, World]:
    """Two servers of a bridge that has two places."""
    one = World(kind)
    one.over_all.limit = 2
    return one, World(kind, beside=one)


# Whose place it is.


@pytest.mark.parametrize("whose", ["kind", "server", "session"])
def test_the_place_is_for_whom_a_process_was_ended(whose: str) -> None:
    """Not for whoever comes while it ends, however often that is."""
    one = World(Legacy, limit=1 if whose != "server" else 4)
    other = World(Legacy, beside=one) if whose == "server" else one
    one.over_all.limit = 1
    one.call("before")
    one.run()
    taken: list[Any] = []
    if whose == "session":
        Deferred.fromCoroutine(one.pool.take()).addBoth(taken.append)
    else:
        first = other.call("first", able={})
    later = one.call("later")
    one.run(1)
    if whose == "session":
        [session] = taken
        assert not isinstance(session, Failure)
        session.life.end("enough")
    else:
        assert first.result["token"] == "first"
    one.run(1)
    one.run(1)
    assert later.result["token"] == "later"
    one.end()


# Who is told.


def test_a_process_of_another_server_has_nothing_to_do_any_more() -> None:
    one, other = side_by_side()
    one.call("a", "wait")
    other.call("b", "wait")
    one.run()
    waiting = other.call("c")
    one.run(0.1)
    assert not waiting.ends
    one.backends[0].finish("a")
    one.run(1)
    assert waiting.result["token"] == "c"
    other.stop()
    one.end()


@either
def test_a_spare_process_is_there_after_all(kind: type[Scripted]) -> None:
    world = World(kind, limit=1, warm=1)
    world.launcher.slow = True
    world.pool.start()
    world.run(0.2)
    waiting = world.call("a")
    world.run(1)
    world.launcher.finish()
    world.run(1)
    assert waiting.result["token"] == "a"
    world.end()


def test_another_server_cannot_start_what_had_a_place() -> None:
    one, other = side_by_side()
    other.call("b", "wait")
    one.run()
    one.launcher.slow = True
    failing = one.call("a")
    one.run()
    waiting = other.call("c")
    one.run(0.1)
    launching, _ = one.launcher.waiting.pop()
    launching.errback(CannotStart("no"))
    one.run(1)
    assert isinstance(failing.refusal, BackendFailed)
    assert waiting.result["token"] == "c"
    other.stop()
    one.end()


def test_nobody_listens_any_more() -> None:
    """The process that was only kept for that is not needed."""
    world = World(Listened, limit=1)
    listening = world.listen()
    world.run()
    waiting = world.call("a", able={})
    world.run(1)
    assert not waiting.ends
    listening.leave()
    world.run(1)
    assert waiting.result["token"] == "a"
    world.end()


@either
def test_a_process_that_takes_no_more_will_leave_its_place(kind: type[Scripted]) -> None:
    """Who comes while it still speaks waits for that, and is not refused."""
    world = World(kind, limit=1)
    world.call("a")
    world.run()
    world.backends[0].close_input()
    waiting = world.call("b")
    world.run()
    assert not waiting.ends
    world.backends[0].die()
    world.run(1)
    assert waiting.result["token"] == "b"
    world.end()


def test_who_stands_in_line_keeps_the_place_in_it() -> None:
    """Woken in vain, it goes on waiting, however many have come meanwhile."""
    world = World(Legacy, limit=1, max_waiting_requests=1)
    line = WaitingLine(world.clock, 1, 10.0)
    place = Place()
    done: list[Any] = []
    free = [True]
    Deferred.fromCoroutine(line.wait(place, lambda: free[0])).addCallback(done.append)
    line.wake()
    assert done == [None]
    newcomer = Deferred.fromCoroutine(line.wait(Place(), lambda: False)).addErrback(lambda _: None)
    again = Deferred.fromCoroutine(line.wait(place, lambda: False))
    refused: list[Any] = []
    Deferred.fromCoroutine(line.wait(Place(), lambda: False)).addErrback(refused.append)
    assert isinstance(refused[0].value, ServerBusy)
    assert not again.called
    again.addErrback(lambda _: None)
    line.stop()
    assert newcomer.called


def test_another_group_of_the_kind_is_not_forgotten() -> None:
    """One that was forgotten before may end later: its processes stay in reach."""
    world = World(Listened)
    world.call("a")
    world.run()
    leases = world.stateless._leases
    [(kind, group)] = leases._groups.items()
    leases._forget_empty(Group(kind))
    assert leases._groups == {kind: group}
    world.run(world.settings.idle_timeout)
    world.run(1)
    assert leases._groups == {}
    world.end()


# What is too much, or of no use.


def test_a_process_gets_no_more_requests_than_it_may_have() -> None:
    """Also where they come at once, and wait for its list of tools."""
    world = World(Modern, limit=4, max_process_requests=2, concurrency=16)
    for number in range(16):
        world.call(f"{number}", "wait")
    world.run()
    assert [len(each.calls) for each in world.backends] == [2] * 4
    world.end()


def test_who_wants_logs_is_not_passed_for_ever() -> None:
    """It needs a process to itself; those who come later wait until it had one."""
    world = World(Modern, limit=1)
    world.call("0", "wait")
    world.run()
    logging = world.call("logs", level="info")
    for number in range(1, 4):
        world.call(f"{number}", "wait")
        world.run(0.1)
        world.backends[0].finish(f"{number - 1}")
        world.run(0.1)
    assert logging.result["token"] == "logs"
    world.end()


@pytest.mark.parametrize("listened", [True, False])
def test_who_wants_logs_gets_a_process_of_which_they_can_be_told(listened: bool) -> None:
    """Not one where a cancelled request may still log; others may have that."""
    world = World(Modern, limit=1)
    if listened:
        world.listen()
        world.run()
    cancelled = world.call("a", "wait", level="debug")
    world.run()
    cancelled.leave()
    world.run(1)
    [first] = world.live
    assert world.call("b").exchange is not None
    world.run()
    assert world.live == [first]
    logging = world.call("c", "wait", level="debug")
    world.run(1)
    [second] = world.live
    assert second is not first
    second.say({"method": "notifications/message", "params": {"level": "info", "data": "c's"}})
    second.finish("c")
    world.run()
    assert [each.get("method", "answer") for each in logging.lines] == [
        "notifications/message",
        "answer",
    ]
    world.end()


@either
@pytest.mark.parametrize("how", ["waits", "leaves"])
def test_a_process_that_does_not_list_its_tools_is_for_nobody(
    kind: type[Scripted], how: str
) -> None:
    """The next caller would wait in vain, too."""

    class Hangs(kind):  # type: ignore[misc,valid-type]
        def tools_list(self, message: dict[str, Any]) -> None:
            if self is not world.backends[-1] or len(world.backends) < 3:
                return
            super().tools_list(message)

    world = World(Hangs)
    for _ in range(2):
        call = world.call("a")
        world.run(1)
        if how == "leaves":
            call.leave()
            world.run(CANCEL_SECONDS)
        if how == "waits" or kind is Modern:
            world.run(world.settings.start_timeout)
        world.run(1)
    call = world.call("b")
    world.run(1)
    assert len(world.backends) == 3 or (how == "leaves" and kind is Modern)
    assert len(world.live) == 1
    world.end()


REGION = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}


def test_a_late_page_of_tools_is_not_taken_for_another() -> None:
    """What a header must say of an argument stays known."""

    class Pages(Legacy):
        held: ClassVar[list[dict[str, Any]]] = []
        hold = True

        def tools_list(self, message: dict[str, Any]) -> None:
            if message["params"].get("cursor") is None:
                tools = [{"name": "t", "inputSchema": REGION}]
                self.answer(message["id"], {"tools": tools, "nextCursor": "2"})
            elif self.hold:
                self.held.append(message)
            else:
                self.late(message)

        def late(self, message: dict[str, Any]) -> None:
            tools = [{"name": "u", "inputSchema": {"type": "object"}}]
            self.answer(message["id"], {"tools": tools})

    def call() -> Call:
        arguments = {"token": "a", "do": "echo", "region": "eu"}
        return world.request("tools/call", {"name": "t", "arguments": arguments})

    Pages.held.clear()
    world = World(Pages, limit=1)
    first = call()
    world.run()
    [page] = Pages.held
    first.leave()
    world.run()
    Pages.hold = False
    second = call()
    world.run()
    world.backends[0].late(page)
    world.run(1)
    world.run(1)
    assert len(world.backends) == 1
    for each in (second, call()):
        world.run(1)
        assert each.refusal is not None
        assert "Mcp-Param-Region" in str(each.refusal)
    world.end()


# A client that leaves while something is begun that others have a use for.


@pytest.mark.parametrize("known", [True, False])
@either
def test_a_server_that_is_slower_than_its_clients_gets_ready(
    kind: type[Scripted], known: bool
) -> None:
    class Slow(kind):  # type: ignore[misc,valid-type]
        def _hear(self, message: dict[str, Any]) -> None:
            first = message.get("method") in ("initialize", "server/discover")
            self.clock.callLater(4 if first else 0, super()._hear, message)

    world = World(Slow, limit=1, known=known)
    for _ in range(5):
        call = world.call("a")
        world.run(3)
        if call.ends:
            break
        call.leave()
    assert call.result["token"] == "a"
    # One more is thrown away where it tells by an error that it is older.
    assert len(world.backends) == (1 if known or kind is Modern else 2)
    world.end()


@either
def test_what_was_begun_for_who_has_left_ends_with_the_bridge(kind: type[Scripted]) -> None:
    world = World(kind)
    world.launcher.mute = True
    world.call("a")
    world.run(1)
    world.call("b").leave()
    world.end()


@pytest.mark.parametrize("cancelled", [True, False])
@pytest.mark.parametrize("how", ["done", "refused", "fails"])
def test_work_that_outlives_its_caller(
    how: str, cancelled: bool, logged_failures: list[Any]
) -> None:
    started: Deferred[str] = Deferred()
    unwanted: list[str] = []
    got: list[Any] = []

    async def work() -> str:
        return await started

    waiting = Deferred.fromCoroutine(outlived(work(), unwanted.append)).addBoth(got.append)
    if cancelled:
        waiting.cancel()
        assert got[0].check(CancelledError)
    if how == "done":
        started.callback("it")
    else:
        started.errback(BackendFailed("no") if how == "refused" else ZeroDivisionError())
    assert unwanted == ["it"] * (cancelled and how == "done")
    assert len(logged_failures) == (cancelled and how == "fails")
    if not cancelled:
        [result] = got
        expected = {"refused": BackendFailed, "fails": ZeroDivisionError}
        assert result == "it" if how == "done" else result.check(expected[how])
