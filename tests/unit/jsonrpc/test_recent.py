"""What was added last, within a bound."""

from mcpbridge.jsonrpc.recent import Recent


def test_the_oldest_is_forgotten() -> None:
    recent: Recent[int] = Recent(2)
    for number in (1, 2, 3):
        recent.add(number)
    assert [number in recent for number in (1, 2, 3)] == [False, True, True]
    assert len(recent) == 2


def test_what_is_there_already_costs_nothing() -> None:
    recent: Recent[int] = Recent(2)
    for number in (1, 2, 2):
        recent.add(number)
    assert 1 in recent


def test_what_is_forgotten_was_there_once() -> None:
    recent: Recent[int] = Recent(2)
    recent.add(1)
    assert [recent.discard(1), recent.discard(1)] == [True, False]
    recent.add(2)
    recent.clear()
    assert not recent
