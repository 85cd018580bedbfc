"""How many requests of a client are not answered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.jsonrpc.envelope import peek, read_message
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES
from mcpbridge.mcp.open_requests import (
    _ID_BYTES,
    CANCELLED_IDS,
    LAST_ANSWERS,
    OpenRequests,
    asks,
    is_plain_answer,
)


def line_of(message: Any) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def request(ident: Any) -> bytes:
    return line_of({"jsonrpc": "2.0", "id": ident, "method": "tools/call", "params": {}})


def answer(ident: Any, **members: Any) -> bytes:
    return line_of({"jsonrpc": "2.0", "id": ident, **(members or {"result": {}})})


def cancel(ident: Any) -> bytes:
    params = {} if ident is None else {"requestId": ident}
    return line_of({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})


def post(requests: OpenRequests, *lines: bytes) -> int:
    """Have the client post messages, which the server gets; return how many it asks for."""
    asked = 0
    for each in lines:
        line, envelope = read_message(each)
        found = requests.posted(line, envelope)
        if envelope is None or not found:
            requests.taken(line, envelope)
        asked += found
    return asked


@pytest.mark.parametrize("ident", [1, "a", "ping:1", 1.5, -1, 'with "quotes"', "é\ud800"])
def test_a_request_is_open_until_its_answer(ident: Any) -> None:
    requests = OpenRequests()
    assert post(requests, request(ident), request(2)) == 2
    assert len(requests) == 2
    for line in (
        line_of({"jsonrpc": "2.0", "method": "notifications/progress"}),
        line_of({"jsonrpc": "2.0", "id": ident, "method": "ping"}),
        b"no json",
    ):
        requests.sent(line)
    assert len(requests) == 2
    requests.sent(answer(ident))
    assert len(requests) == 1
    requests.sent(answer(2, error={"code": 1, "message": ""}))
    assert len(requests) == 0
    requests.sent(answer(5))
    requests.sent(line_of({"id": 5, "jsonrpc": "2.0", "result": 1}))
    assert len(requests) == 0


@pytest.mark.parametrize(
    ("line", "plain"),
    [
        (b'{"jsonrpc":"2.0","id":1,"result":{}}', True),
        (b'{"jsonrpc":"2.0","id":"a b","error":{}}', True),
        (b'{"result":{},"jsonrpc":"2.0","id":1}', True),
        (b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":1,"result":2}}', False),
        (b'{"jsonrpc":"2.0","id":"\\"","result":{}}', False),
        (b'{"jsonrpc": "2.0", "id": 1, "result": {}}', False),
        (b'{"jsonrpc":"2.0","method":"x","params":{"id":1,"result":2}}', False),
        (b'[{"jsonrpc":"2.0","id":1,"result":{}}]', False),
    ],
)
def test_what_is_an_answer_at_the_first_look(line: bytes, plain: bool) -> None:
    """The others are read."""
    assert (is_plain_answer(line) is not None) == plain


def test_only_what_is_no_answer_is_returned() -> None:
    requests = OpenRequests()
    assert requests.sent(answer(1)) is None
    assert requests.sent(json.dumps({"jsonrpc": "2.0", "id": 1, "result": 1}).encode()) is None
    assert requests.sent(b"[]") is None
    for message in ({"method": "x"}, {"method": "x", "id": "ping:1"}, {"method": "x\ud800"}):
        found = requests.sent(json.dumps({"jsonrpc": "2.0", **message}).encode())
        assert found is not None
        assert found.method == message["method"]


def test_batches_count_each_message() -> None:
    requests = OpenRequests()
    batch = b"[" + b",".join([request(1), request(2), cancel(1), b"5", answer(7)]) + b"]"
    assert requests.posted(batch, None, 5) == 2
    assert len(requests) == 2
    requests.taken(batch, None)
    requests.sent(b"[" + answer(1) + b"," + answer(2) + b"," + request(3) + b"]")
    assert len(requests) == 0
    assert requests.posted(b"[", None) == 0


def test_of_a_large_batch_each_message_counts() -> None:
    """It was read in slices, so that nobody has to wait, and is not read again."""
    requests = OpenRequests()
    batch = b"[" + request("x" * LARGE_BYTES) + b"," + cancel(1) + b"]"
    assert requests.posted(batch, None, 2) == 2
    requests.taken(batch, None)
    requests.give_up_cancelled()
    assert len(requests) == 2


def test_what_did_not_reach_the_server_counts_no_more() -> None:
    requests = OpenRequests()
    requests.undo(post(requests, request(1)))
    assert len(requests) == 0


def test_a_cancelled_request_is_given_up_in_the_end() -> None:
    requests = OpenRequests()
    post(requests, request(1), request(2), cancel(1), cancel(1), cancel(None))
    assert len(requests) == 2
    requests.give_up_cancelled()
    assert len(requests) == 1
    requests.sent(answer(2))
    assert len(requests) == 0


@pytest.mark.parametrize("ident", [1, "1"])
def test_the_answer_to_a_cancelled_request_may_come_nevertheless(ident: Any) -> None:
    requests = OpenRequests()
    post(requests, request(1), request(2), request(3), cancel(1))
    requests.sent(answer(ident))
    requests.give_up_cancelled()
    assert len(requests) == 2


@pytest.mark.parametrize("ident", [1, "a", 1.5])
@pytest.mark.parametrize("turned", [False, True])
def test_a_request_that_is_answered_cannot_be_cancelled_any_more(ident: Any, turned: bool) -> None:
    """So the other one, which runs, is waited for."""
    requests = OpenRequests()
    post(requests, request(ident), request(2))
    line = line_of({"result": {}, "jsonrpc": "2.0", "id": ident}) if turned else answer(ident)
    requests.sent(line)
    post(requests, cancel(ident))
    requests.give_up_cancelled()
    assert len(requests) == 1


def test_so_many_answers_are_remembered() -> None:
    requests = OpenRequests()
    post(requests, *(request(number) for number in range(LAST_ANSWERS + 2)))
    for number in range(LAST_ANSWERS + 1):
        requests.sent(answer(number))
    post(requests, cancel(1))
    requests.give_up_cancelled()
    assert len(requests) == 1
    post(requests, cancel(0))
    requests.give_up_cancelled()
    assert len(requests) == 0


def test_an_error_without_an_id_answers_nothing() -> None:
    requests = OpenRequests()
    post(requests, request(1))
    requests.sent(line_of({"jsonrpc": "2.0", "id": None, "error": {"code": 1, "message": ""}}))
    assert len(requests) == 1


def test_of_many_cancelled_requests_the_first_are_given_up() -> None:
    requests = OpenRequests()
    for number in range(CANCELLED_IDS + 5):
        post(requests, request(number), cancel(number))
    assert len(requests) == CANCELLED_IDS
    requests.give_up_cancelled()
    assert len(requests) == 0


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        (request(1), True),
        (answer(1), False),
        (cancel(1), False),
        (b"[" + cancel(1) + b"," + request(1) + b"]", True),
        (b"[" + cancel(1) + b"]", False),
    ],
)
def test_what_asks_for_something(line: bytes, asked: bool) -> None:
    assert asks(line, peek(line)) == asked


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from("rrac"))))
def test_it_is_never_below_none(steps: list[tuple[int, str]]) -> None:
    requests = OpenRequests()
    open_ids: list[int] = []
    for ident, step in steps:
        if step == "r":
            post(requests, request(ident))
            open_ids.append(ident)
        elif step == "a" and ident in open_ids:
            requests.sent(answer(ident))
            open_ids.remove(ident)
        elif step == "c":
            post(requests, cancel(ident))
        assert 0 <= len(requests) <= len(open_ids)
    for ident in open_ids:
        requests.sent(answer(ident))
    assert len(requests) == 0
    assert len(answer(5)) < _ID_BYTES


def test_other_messages_cancel_nothing() -> None:
    requests = OpenRequests()
    post(requests, request("a"), request("b"))
    post(requests, line_of({"jsonrpc": "2.0", "method": "notifications/initialized"}))
    post(requests, cancel("a"))
    # An id that has no other spelling.
    requests.sent(answer("b"))
    requests.give_up_cancelled()
    assert len(requests) == 0
