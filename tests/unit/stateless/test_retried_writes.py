"""What a process did not take is said when it takes it, also where it says nothing itself."""

from __future__ import annotations

import pytest

from mcpbridge.config.tuning import CANCEL_SECONDS, SAY_AGAIN_SECONDS
from mcpbridge.translation.legacy_requests import OWN_KEPT
from tests.fakes import World
from tests.unit.stateless.test_busy_pipes import MANY, Shared, Slow, listen, one_process


@pytest.mark.parametrize("works", [False, True])
def test_a_pipe_that_is_free_again_is_enough(works: bool) -> None:
    """A process that says nothing more is told what it did not take, and once."""
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
    listening.leave()
    world.end()


def test_a_cancellation_is_said_when_the_pipe_is_free_again() -> None:
    """The process would work for nobody until it has an answer."""
    world, process = one_process(Shared)
    call = world.call("a", "wait")
    world.run()
    process.busy = True
    call.leave()
    world.run(SAY_AGAIN_SECONDS)
    process.busy = False
    world.run(SAY_AGAIN_SECONDS)
    assert process.cancelled == ["a"]
    call = world.call("b", "wait")
    world.run()
    process.busy = True
    call.leave()
    world.end()


def test_nothing_is_left_for_a_process_that_closed_its_stdin() -> None:
    world, process = one_process(Slow)
    process.closed = True
    listen(world, *MANY[:OWN_KEPT])
    assert process.receiver.sink._unsent == {}
    assert process.receiver.sink.translator.requests.unanswered == 0
    process.close_input()
    process.die()
    world.end()


def test_a_list_of_tools_that_could_not_be_asked_for_ends_no_process() -> None:
    """It was never asked: its answer is not waited for."""
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
