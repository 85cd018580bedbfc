"""Failed attempts to authenticate: when their answers are given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from mcpbridge.auth import failed_attempts
from mcpbridge.auth.failed_attempts import _LAST_COUNTED, _LOOKS, FailedAttempts, TooManyDelayed
from mcpbridge.config.tuning import (
    ATTEMPT_ADDRESSES,
    ATTEMPT_DELAY_SECONDS,
    ATTEMPT_FORGOTTEN_SECONDS,
    ATTEMPTS_FREE,
    DELAYED_ANSWERS,
    DELAYED_OF_ADDRESS,
    MAX_ATTEMPT_DELAY_SECONDS,
)

ADDRESS = "192.0.2.1"


def fail_freely(attempts: FailedAttempts, address: str = ADDRESS) -> None:
    for _ in range(ATTEMPTS_FREE):
        assert attempts.failed(address) == 0


def one_after_another(attempts: FailedAttempts, clock: Clock, count: int) -> list[float]:
    """Fail so often, each time after the answer to the last attempt."""
    delays = []
    for _ in range(count):
        delays.append(attempts.failed(ADDRESS))
        clock.advance(delays[-1])
    return delays


def test_delay_doubles_after_the_first_failures() -> None:
    """`ATTEMPTS_FREE`, `ATTEMPT_DELAY_SECONDS` and `MAX_ATTEMPT_DELAY_SECONDS`."""
    clock = Clock()
    attempts = FailedAttempts(clock)
    delays = one_after_another(attempts, clock, ATTEMPTS_FREE + 12)
    assert delays[:ATTEMPTS_FREE] == [0] * ATTEMPTS_FREE
    grown = delays[ATTEMPTS_FREE:]
    assert grown[:6] == [ATTEMPT_DELAY_SECONDS * 2**n for n in range(6)]
    assert grown[5] == MAX_ATTEMPT_DELAY_SECONDS
    assert set(grown[5:]) == {MAX_ATTEMPT_DELAY_SECONDS}


def test_failures_are_forgotten_one_by_one() -> None:
    """`ATTEMPT_FORGOTTEN_SECONDS`."""
    clock = Clock()
    attempts = FailedAttempts(clock)
    fail_freely(attempts)
    clock.advance(ATTEMPT_FORGOTTEN_SECONDS)
    assert attempts.failed(ADDRESS) == 0
    assert attempts.failed(ADDRESS) == ATTEMPT_DELAY_SECONDS
    clock.advance(ATTEMPT_FORGOTTEN_SECONDS * (ATTEMPTS_FREE + 1))
    fail_freely(attempts)
    assert attempts.failed(ADDRESS) == ATTEMPT_DELAY_SECONDS


def test_number_of_failures_that_are_remembered_is_limited() -> None:
    """After a thousand of them the address is free again as soon as after `_LAST_COUNTED`."""
    clock = Clock()
    attempts = FailedAttempts(clock)
    one_after_another(attempts, clock, 1000)
    clock.advance(ATTEMPT_FORGOTTEN_SECONDS * (_LAST_COUNTED - ATTEMPTS_FREE))
    assert attempts.failed(ADDRESS) == ATTEMPT_DELAY_SECONDS
    clock.advance(ATTEMPT_FORGOTTEN_SECONDS * _LAST_COUNTED)
    fail_freely(attempts)


def test_addresses_do_not_know_each_other() -> None:
    attempts = FailedAttempts(Clock())
    fail_freely(attempts)
    assert attempts.failed(ADDRESS) == ATTEMPT_DELAY_SECONDS
    fail_freely(attempts, "192.0.2.2")


def test_exempt_addresses_have_no_limit() -> None:
    attempts = FailedAttempts(Clock())
    assert {attempts.failed(None) for _ in range(1000)} == {0}
    assert len(attempts) == 0


def test_delayed_answers_of_an_address_are_limited(log_lines: list[str]) -> None:
    """`DELAYED_OF_ADDRESS`; the time to come back is that of the first answer, in whole seconds."""
    clock = Clock()
    attempts = FailedAttempts(clock)
    fail_freely(attempts)
    delays = [attempts.failed(ADDRESS) for _ in range(DELAYED_OF_ADDRESS)]
    assert delays == sorted(delays)
    for _ in range(3):
        with pytest.raises(TooManyDelayed) as refused:
            attempts.failed(ADDRESS)
        assert refused.value.retry_after == 1
    assert len(log_lines) == 1
    assert "fails to authenticate too often" in log_lines[0]
    clock.advance(delays[0])
    assert attempts.failed(ADDRESS) == MAX_ATTEMPT_DELAY_SECONDS
    clock.advance(delays[-1])
    assert attempts.failed(ADDRESS) == MAX_ATTEMPT_DELAY_SECONDS


@given(st.lists(st.floats(0, 10), max_size=80))
def test_coming_back_as_told_succeeds(pauses: list[float]) -> None:
    clock = Clock()
    attempts = FailedAttempts(clock)
    waiting: list[float] = []
    for pause in pauses:
        clock.advance(pause)
        try:
            delay = attempts.failed(ADDRESS)
        except TooManyDelayed as refused:
            clock.advance(refused.retry_after)
            delay = attempts.failed(ADDRESS)
        waiting = [due for due in waiting if due > clock.seconds()]
        if delay:
            waiting.append(clock.seconds() + delay)
        assert len(waiting) <= DELAYED_OF_ADDRESS


def test_delayed_answers_of_all_addresses_are_limited() -> None:
    """`DELAYED_ANSWERS`: others who fail are refused; those that are free are not."""
    clock = Clock()
    attempts = FailedAttempts(clock)
    for number in range(DELAYED_ANSWERS):
        fail_freely(attempts, str(number))
        assert attempts.failed(str(number)) == ATTEMPT_DELAY_SECONDS
    fail_freely(attempts)
    with pytest.raises(TooManyDelayed) as refused:
        attempts.failed(ADDRESS)
    assert refused.value.retry_after == 1
    clock.advance(ATTEMPT_DELAY_SECONDS)
    assert attempts.failed(ADDRESS) == 2 * ATTEMPT_DELAY_SECONDS


def test_table_of_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ATTEMPT_ADDRESSES`: further ones count as one, and nobody is forgotten for them."""
    monkeypatch.setattr(failed_attempts, "ATTEMPT_ADDRESSES", 20)
    assert ATTEMPT_ADDRESSES > 20
    clock = Clock()
    attempts = FailedAttempts(clock)
    for _ in range(ATTEMPTS_FREE):
        for number in range(20):
            assert attempts.failed(str(number)) == 0
    for number in range(ATTEMPTS_FREE):
        assert attempts.failed(f"other{number}") == 0
    assert attempts.failed("another") == ATTEMPT_DELAY_SECONDS
    assert len(attempts) == 20
    for number in range(20):
        assert attempts.failed(str(number)) == ATTEMPT_DELAY_SECONDS


def test_forgotten_addresses_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few are looked at for each new one: `_LOOKS`."""
    monkeypatch.setattr(failed_attempts, "ATTEMPT_ADDRESSES", 20)
    clock = Clock()
    attempts = FailedAttempts(clock)
    for number in range(20):
        attempts.failed(str(number))
    clock.advance(ATTEMPT_FORGOTTEN_SECONDS)
    attempts.failed("new")
    assert len(attempts) == 20 - _LOOKS + 1
    for number in range(40):
        attempts.failed(f"other{number}")
        clock.advance(ATTEMPT_FORGOTTEN_SECONDS / 10)
    assert len(attempts) <= 20
