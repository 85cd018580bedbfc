"""Places to wait in, and what an address may have of them."""

from __future__ import annotations

from mcpbridge.auth.shared_places import SharedPlaces


def test_there_are_only_so_many_places() -> None:
    places = SharedPlaces(3, 2)
    assert [places.take(each) for each in ("a", "b", None, "c", None)] == [True] * 3 + [False] * 2
    places.give_back("a")
    assert len(places) == 2
    assert places.take("c")


def test_an_address_has_only_its_share() -> None:
    places = SharedPlaces(10, 2)
    assert [places.take("a") for _ in range(3)] == [True, True, False]
    assert [places.take(None) for _ in range(3)] == [True] * 3
    assert places.take("b")
    places.give_back("a")
    assert [places.take("a") for _ in range(2)] == [True, False]


def test_an_address_without_places_is_forgotten() -> None:
    places = SharedPlaces(2, 1)
    for number in range(1000):
        assert places.take(str(number))
        places.give_back(str(number))
    assert (len(places), places._of_addresses) == (0, {})
