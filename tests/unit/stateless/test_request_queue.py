"""The order in which waiting requests proceed."""

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mcpbridge.stateless.request_queue import RequestQueue, Ticket


def test_oldest_ticket_goes_first_even_when_it_waits_again() -> None:
    """A request that found its process taken stays ahead of those that came later."""
    clock = Clock()
    queue = RequestQueue(clock, limit=2, timeout=100)
    capacity = 0
    served: list[str] = []

    def wait(name: str, ticket: Ticket, then: Callable[[], object]) -> None:
        waiting = Deferred.fromCoroutine(queue.wait(ticket, lambda: capacity > len(served)))

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
