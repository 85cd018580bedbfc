"""What was added last, within a bound."""

from mcpbridge.jsonrpc.recent_set import Recent


def test_the_oldest_is_forgotten() -> None:
    recent: Recent[int] = Recent(2)
    for number in (1, 2, 3):
        recent.add(number)
    assert [number in recent for number in (1, 2, 3)] == [False, True, True]
    assert len(recent) == 2


def test_adding_again_drops_nothing() -> None:
    recent: Recent[int] = Recent(2)
    for number in (1, 2, 2):
        recent.add(number)
    assert 1 in recent


def test_discard_returns_whether_it_was_there() -> None:
    recent: Recent[int] = Recent(2)
    recent.add(1)
    assert [recent.discard(1), recent.discard(1)] == [True, False]
    recent.add(2)
    recent.clear()
    assert not recent
