"""How long a remote server may send nothing."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from mcpbridge.config.tuning import SMALL_BYTES
from mcpbridge.jsonrpc.envelope import Envelope
from mcpbridge.remote.bodies import MessageReader
from mcpbridge.remote.context import Bodies
from mcpbridge.remote.silence import QUESTIONS_KEPT, Silence
from tests.unit.remote.fake_remote import Remote, request, result


class Owed:
    """Something that a server owes."""

    def __init__(self) -> None:
        self.heard_at = 0.0
        self.is_overdue = False

    def overdue(self) -> None:
        self.is_overdue = True


def question(ident: int | str, method: str = "elicitation/create") -> Envelope:
    return Envelope("2.0", method, ident)


def test_time_does_not_count_while_nothing_is_read() -> None:
    remote = Remote()
    remote.initialize()
    remote.send(request(2))
    wire = remote.wire_of(request(2))
    wire.stream()
    remote.turn(200)
    remote.backend.pause()
    remote.turn(900)
    remote.backend.resume()
    remote.turn(299)
    wire.event(result(2))
    assert remote.receiver.lines == [result(2)]
    remote.finish()


def test_time_does_not_count_while_the_server_waits_for_its_client() -> None:
    remote = Remote()
    remote.initialize()
    remote.send(request(2))
    wire = remote.wire_of(request(2))
    wire.stream()
    wire.event(request(7, "elicitation/create"))
    remote.turn(1000)
    remote.send(result(7))
    remote.wire_of(result(7)).respond(202)
    remote.turn(299)
    assert len(remote.receiver.lines) == 1
    remote.turn(1)
    remote.turn()
    assert b"response_timeout" in remote.receiver.lines[1]
    remote.finish()


def test_time_counts_again_once_all_questions_are_over() -> None:
    clock = Clock()
    silence = Silence(clock, 10.0)
    for ends in (
        lambda: silence.client_answered(b'[{"jsonrpc":"2.0","id":"7","result":{}},1]'),
        lambda: silence.server_sent([Envelope("2.0", "notifications/cancelled")]),
    ):
        owed = Owed()
        silence.watch(owed)
        silence.server_sent([question(7), question(8, "ping")])
        clock.advance(25)
        assert not owed.is_overdue
        ends()
        clock.advance(20)
        assert owed.is_overdue
    assert not clock.getDelayedCalls()


def test_questions_are_forgotten_with_what_is_owed_and_beyond_a_bound() -> None:
    """`QUESTIONS_KEPT`: no server fills the memory with requests."""
    clock = Clock()
    silence = Silence(clock, 10.0)
    owed = Owed()
    silence.server_sent([question(7)])
    silence.watch(owed)
    silence.server_sent([question(8)])
    silence.unwatch(owed)
    silence.watch(owed)
    silence.server_sent([question(number) for number in range(QUESTIONS_KEPT + 1)])
    for number in range(1, QUESTIONS_KEPT + 1):
        silence.client_answered(result(number))
    clock.advance(10)
    assert owed.is_overdue


def test_body_that_waits_for_room_in_the_budget_is_not_silent() -> None:
    class Full:
        def hold(self, source: object) -> bool:
            return True

        def __getattr__(self, name: str) -> Any:
            return lambda *_: None

    bodies = Bodies()
    heard: list[int] = []
    budget: Any = Full()
    reader = MessageReader(
        bodies, lambda _: None, lambda: heard.append(1), budget, 10 * SMALL_BYTES
    )
    reader.makeConnection(StringTransport())
    bodies.begun(reader)
    reader.dataReceived(b"x" * (SMALL_BYTES + 1))
    held = [bodies.is_any_held]
    reader.go_on()
    assert [*held, bodies.is_any_held] == [True, False]
    assert len(heard) == 2, "its time begins again"
