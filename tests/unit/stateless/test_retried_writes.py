"""Messages refused by a full pipe are sent when it has room, even if the process sends nothing."""

from __future__ import annotations

import pytest

from mcpbridge.config.tuning import CANCEL_SECONDS, SAY_AGAIN_SECONDS
from mcpbridge.translation.legacy_requests import OWN_KEPT
from tests.fakes import World
from tests.unit.stateless.test_busy_pipes import MANY, Shared, Slow, listen, one_process


@pytest.mark.parametrize("works", [False, True])
def test_subscription_is_sent_when_the_pipe_has_room(works: bool) -> None:
    """Once, and even if the process sends nothing itself."""
    world = World(Slow, limit=2)
    if works:
        world.call("a", "wait")
    world.call("b")
    world.run()
    for each in world.live:
        each.busy = True
    listening = listen(world, "file:///a")
    world.run(SAY_AGAIN_SECONDS)
    for each in world.live:
        assert each.told == []
        each.busy = False
    world.run(SAY_AGAIN_SECONDS)
    assert [each.told for each in world.live] == [[("file:///a", True)]] * (1 + works)
    for each in world.live:
        each.busy = True
    listening.disconnect()
    world.end()


def test_cancellation_is_sent_when_the_pipe_has_room() -> None:
    """Otherwise the process would keep working for nobody."""
    world, process = one_process(Shared)
    call = world.call("a", "wait")
    world.run()
    process.busy = True
    call.disconnect()
    world.run(SAY_AGAIN_SECONDS)
    process.busy = False
    world.run(SAY_AGAIN_SECONDS)
    assert process.cancelled == ["a"]
    call = world.call("b", "wait")
    world.run()
    process.busy = True
    call.disconnect()
    world.end()


def test_closed_stdin_leaves_nothing_unsent_or_unanswered() -> None:
    world, process = one_process(Slow)
    process.closed = True
    listen(world, *MANY[:OWN_KEPT])
    assert process.receiver.sink._unsent == {}
    assert process.receiver.sink.translator.requests.unanswered == 0
    process.close_input()
    process.die()
    world.end()


def test_unsent_tools_list_ends_no_process() -> None:
    """It was never sent, so no answer is awaited."""
    world = World(Slow, limit=1)
    world.request("server/discover")
    world.run()
    [process] = world.live
    process.busy = True
    call = world.call("a")
    world.run()
    assert call.refusal is not None
    process.busy = False
    again = world.call("b")
    world.run(CANCEL_SECONDS)
    world.run(SAY_AGAIN_SECONDS)
    assert world.live == [process]
    assert again.result["token"] == "b"
    world.end()
