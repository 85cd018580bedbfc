"""Whose answer is it?  All short histories of pings, requests and answers."""

from itertools import product
from typing import Any

import pytest

from mcpbridge.jsonrpc.envelope import Envelope, peek
from mcpbridge.mcp.pings import PINGS_KEPT, PingLedger


def answer(ident: Any) -> Envelope:
    return Envelope("2.0", id=ident, result={})  # type: ignore[arg-type]


def request(ident: Any) -> Envelope:
    return Envelope("2.0", method="roots/list", id=ident)


def test_an_answer_is_consumed_once() -> None:
    """beat: the answer to the bridge's own ping is consumed by the bridge."""
    ledger = PingLedger()
    assert ledger.next_number() == 1
    assert ledger.is_ours(answer("ping:1"))
    assert not ledger.is_ours(answer("ping:1"))


@pytest.mark.parametrize(
    ("message", "ours"),
    [
        (b'{"jsonrpc":"2.0","id":"ping:1","result":{}}', True),
        (b'{"jsonrpc":"2.0","id":"ping:1","result":null}', True),
        (b'{"jsonrpc":"2.0","id":"\\u0070ing:1","result":{}}', True),
        (b'{"jsonrpc":"2.0","id":"ping:1","error":{"code":-32601,"message":"?"}}', True),
        (b'{"jsonrpc":"2.0","id":"ping:2","result":{}}', False),
        (b'{"jsonrpc":"2.0","id":"ping:01","result":{}}', False),
        (b'{"jsonrpc":"2.0","id":"PING:1","result":{}}', False),
        (b'{"jsonrpc":"2.0","id":1,"result":{}}', False),
        (b'{"jsonrpc":"2.0","id":null,"result":{}}', False),
        (b'{"jsonrpc":"2.0","id":"ping:1","method":"ping"}', False),
        (b'{"jsonrpc":"2.0","method":"notifications/ping"}', False),
    ],
)
def test_only_an_answer_to_an_outstanding_ping_is_ours(message: bytes, ours: bool) -> None:
    """beat: an answer to a request of the backend passes; so does all else."""
    ledger = PingLedger()
    ledger.next_number()
    envelope = peek(message)
    assert envelope is not None
    assert ledger.is_ours(envelope) is ours


@pytest.mark.parametrize(
    "sent",
    [
        Envelope("2.0", method="roots/list", id=1),
        Envelope("2.0", method="roots/list", id="one"),
        Envelope("2.0", method="notifications/ping:1"),
        answer("ping:1"),
    ],
)
def test_what_the_backend_says_otherwise_changes_nothing(sent: Envelope) -> None:
    ledger = PingLedger()
    ledger.next_number()
    ledger.backend_sent(sent)
    assert ledger.is_ours(answer("ping:1"))


def test_the_backend_may_ask_with_an_id_of_ours() -> None:
    """beat: where both have asked with one id, both answers reach the backend."""
    ledger = PingLedger()
    ledger.next_number()
    ledger.backend_sent(request("ping:1"))
    assert not ledger.is_ours(answer("ping:1"))
    assert not ledger.is_ours(answer("ping:1"))


def test_a_number_the_backend_has_used_is_left_out() -> None:
    """keep: ping numbers increase strictly."""
    ledger = PingLedger()
    for taken in ("ping:1", "ping:2", "ping:4"):
        ledger.backend_sent(request(taken))
    assert [ledger.next_number() for _ in range(3)] == [3, 5, 6]


def test_every_short_history() -> None:
    """
    keep: ping numbers increase strictly; beat: no answer to a request of the
    backend is consumed, and no ping's answer twice.
    """
    steps = ["ping", *product(["backend asks", "client answers"], ["ping:1", "ping:2"])]
    for history in product(steps, repeat=6):
        ledger = PingLedger()
        last = 0
        ours: set[str] = set()
        theirs: set[str] = set()
        for step in history:
            if step == "ping":
                number = ledger.next_number()
                assert number > last, history
                assert f"ping:{number}" not in theirs, history
                last = number
                ours.add(f"ping:{number}")
                continue
            what, ident = step
            if what == "backend asks":
                ledger.backend_sent(request(ident))
                theirs.add(ident)
                ours.discard(ident)
            else:
                assert ledger.is_ours(answer(ident)) is (ident in ours), history
                ours.discard(ident)
                theirs.discard(ident)


def test_unanswered_pings_are_bounded() -> None:
    """A client that never answers: the oldest is forgotten, nothing grows."""
    ledger = PingLedger()
    for _ in range(PINGS_KEPT + 2):
        ledger.next_number()
    consumed = [n for n in range(1, PINGS_KEPT + 3) if ledger.is_ours(answer(f"ping:{n}"))]
    assert consumed == list(range(3, PINGS_KEPT + 3))


def test_unanswered_requests_of_the_backend_are_bounded() -> None:
    ledger = PingLedger()
    for number in range(1, PINGS_KEPT + 2):
        ledger.backend_sent(request(f"ping:{number}"))
    # The oldest is forgotten, so its number is free again.
    assert ledger.next_number() == 1
    assert ledger.next_number() == PINGS_KEPT + 2
