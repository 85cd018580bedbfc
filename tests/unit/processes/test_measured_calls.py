"""Requests of clients, how long they take and how they end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from mcpbridge.config.tuning import (
    CLIENT_TEXT_CHARS,
    MEASURED_CALLS,
    MEASURED_REQUESTS,
    MEASURED_SECONDS,
)
from mcpbridge.counters import OTHER, Operation, ServerCounters
from mcpbridge.errors import ServerBusy
from mcpbridge.jsonrpc.envelope import peek, read_message
from mcpbridge.jsonrpc.parsed_message import parse_message
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES
from mcpbridge.mcp.modern_request import ModernRequest, read_request
from mcpbridge.processes.measured_calls import (
    _END_BYTES,
    _LONG_BYTES,
    CANCELLED,
    NO_ANSWER,
    TOOL_ERROR,
    MeasuredSession,
    Measures,
)


class Place:
    """A session whose requests are measured, with its clock and counters."""

    def __init__(self, *tools: str) -> None:
        self.clock = Clock()
        self.counters = ServerCounters("a")
        self.measures = Measures(self.counters, self.clock, tools)
        self.session = MeasuredSession(self.measures)

    def ask(self, *messages: dict[str, Any], refused: bool = False) -> None:
        """Have the client post these messages together."""
        lines = [json.dumps({"jsonrpc": "2.0", **each}).encode() for each in messages]
        envelopes = [found for line in lines if (found := peek(line)) is not None]
        later = self.session.begin_all(lines, envelopes, None)
        for line, envelope in zip(lines, envelopes, strict=True):
            if refused:
                self.session.not_sent(line, envelope)
            elif later:
                self.session.sent(line, envelope)

    def answer(self, *messages: Any, pad: str = "", after: float = 1.0) -> None:
        """Have the server answer after so many seconds, with so much between the members."""
        self.clock.advance(after)
        separators = ("," + pad, ":" + pad)
        self.session.answered(
            [json.dumps(each, separators=separators).encode() for each in messages]
        )

    def operation(self, method: str, tool: str = "") -> Operation:
        return self.counters.operation(method, tool)

    @property
    def ends(self) -> dict[tuple[str, str], dict[str, int]]:
        """How many of each operation ended how."""
        return {
            (each.method, each.tool): {
                "": each.answered.count,
                **{error: found.count for error, found in each.errors.items()},
            }
            for each in self.counters.operations
        }


def request(ident: Any, method: str = "tools/call", **params: Any) -> dict[str, Any]:
    return {"id": ident, "method": method, "params": params}


def result(ident: Any, **members: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": ident, "result": members}


def error(ident: Any, code: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": ident, "error": {"code": code, "message": "no"}}


def test_a_request_is_measured_until_its_answer() -> None:
    place = Place()
    place.ask(request(1))
    assert (len(place.session), place.session.oldest) == (1, 0.0)
    place.answer({"jsonrpc": "2.0", "method": "notifications/progress"}, after=0.3)
    place.answer({"jsonrpc": "2.0", "id": 1, "method": "ping"}, after=0.3)
    place.answer({"jsonrpc": "2.0", "id": 2, "result": {}}, after=0.3)
    assert len(place.session) == 1
    place.answer(result(1), after=0.1)
    assert (len(place.session), place.session.oldest) == (0, None)
    found = place.operation("tools/call").answered
    assert found.count == 1
    assert found.total == pytest.approx(1.0)
    place.answer(result(1))
    assert place.ends == {("tools/call", ""): {"": 1}}


@pytest.mark.parametrize("pad", ["", " "])
@pytest.mark.parametrize("size", [0, 2 * _LONG_BYTES, LARGE_BYTES + 1])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("ident", [7, "seven", "é", "1", 1.5, -3])
@pytest.mark.parametrize("end", ["", TOOL_ERROR, "-32602"])
def test_how_an_answer_ends_is_read_from_short_and_long_ones(
    end: str, ident: Any, turned: bool, size: int, pad: str
) -> None:
    """Servers write the id first or last, with or without spaces."""
    place = Place()
    place.ask(request(ident))
    if end == "-32602":
        answer = error(ident, -32602)
        answer["error"]["message"] = "x" * size
    else:
        answer = result(ident, content=["x" * size, '"isError":true'])
        if end:
            answer["result"]["isError"] = True
    if turned:
        answer = dict(reversed(answer.items()))
        answer = {key: answer[key] for key in ("result", "error", "jsonrpc", "id") if key in answer}
    place.answer(answer, pad=pad)
    assert len(place.session) == 0
    ends = {key: count for key, count in place.ends["tools/call", ""].items() if count}
    if end == TOOL_ERROR and size > LARGE_BYTES:
        # Of what is so large, its ends are looked at, where they are as most servers write it.
        assert ends in ({TOOL_ERROR: 1}, {"": 1})
    else:
        assert ends == {end: 1}


def test_what_has_the_form_of_an_answer_and_is_none_of_ours() -> None:
    place = Place()
    place.ask(request(1))
    for line in (
        b"",
        b"x" * 2 * _LONG_BYTES,
        b'{"jsonrpc":"2.0","id":2,"result":{"a":"%b"}}' % (b"x" * _LONG_BYTES),
        b'{"jsonrpc":"2.0","id":2,"result":1}',
        b"[1,2]",
        b'{"params":{"a":"%b"},"jsonrpc":"2.0","id":1}' % (b"x" * _LONG_BYTES),
    ):
        place.session.answered([line])
        if line.endswith(b'"id":1}'):
            assert len(place.session) in (0, 1)
        else:
            assert len(place.session) == 1, line


@pytest.mark.parametrize("value", [1, "text", None, [1], True])
def test_a_result_need_not_be_an_object(value: Any) -> None:
    place = Place()
    place.ask(request(1))
    place.answer({"jsonrpc": "2.0", "id": 1, "result": value})
    assert place.ends == {("tools/call", ""): {"": 1}}


def test_errors_are_counted_by_their_codes() -> None:
    place = Place()
    for number, code in enumerate((-32601, -32601, 5, "x", 1.5, None)):
        place.ask(request(number, "tools/list"))
        place.answer(error(number, code))
    assert place.ends == {("tools/list", ""): {"": 0, "-32601": 2, "5": 1, OTHER: 3}}


def test_a_server_may_answer_with_another_spelling_of_the_id() -> None:
    place = Place()
    place.ask(request(1), request("2"))
    place.answer(result("1"), result(2))
    place.ask(request(3))
    place.answer({"jsonrpc": "2.0", "id": "3", "result": "no object"})
    assert place.ends == {("tools/call", ""): {"": 3}}


def test_answers_of_a_batch_count_each() -> None:
    place = Place()
    line = json.dumps([{"jsonrpc": "2.0", **request(n)} for n in range(3)]).encode()
    assert place.session.begin(line, None)
    place.session.sent(line, None)
    assert len(place.session) == 3
    place.clock.advance(1)
    place.session.answered([json.dumps([result(0), error(1, -1), 5]).encode()])
    assert len(place.session) == 1
    assert place.ends == {("tools/call", ""): {"": 1, "-1": 1}}
    place.session.begin(b"[", None)
    place.session.not_sent(b"[", None)
    place.session.sent(b"[", None)
    place.session.not_sent(line, None)
    assert len(place.session) == 0


def test_a_batch_may_cancel_a_request() -> None:
    place = Place()
    place.ask(request(1))
    cancel = {"method": "notifications/cancelled", "params": {"requestId": 1}}
    line = json.dumps([5, {"jsonrpc": "2.0", **cancel}]).encode()
    assert place.session.begin(line, None)
    assert len(place.session) == 1
    place.session.sent(line, None)
    assert place.ends == {("tools/call", ""): {"": 0, CANCELLED: 1}}


def test_a_cancelled_request_is_over() -> None:
    place = Place()
    place.ask(request(1), request(2))
    place.clock.advance(1)
    place.ask({"method": "notifications/cancelled", "params": {"requestId": 1}})
    place.ask({"method": "notifications/cancelled", "params": {"requestId": 5}})
    place.ask({"method": "notifications/cancelled", "params": {}})
    place.ask({"method": "notifications/initialized"})
    place.answer(result(1), result(2))
    assert place.ends == {("tools/call", ""): {"": 1, CANCELLED: 1}}


def test_what_was_refused_is_not_measured() -> None:
    place = Place()
    place.ask(request(1), request(2), {"method": "notifications/initialized"}, refused=True)
    assert len(place.session) == 0
    assert place.ends == {("tools/call", ""): {"": 0}}


def test_what_is_open_at_the_end_has_no_answer() -> None:
    place = Place()
    place.ask(request(1), request(2, "ping"))
    place.clock.advance(5)
    place.session.close()
    place.session.close()
    assert place.ends == {
        ("tools/call", ""): {"": 0, NO_ANSWER: 1},
        ("ping", ""): {"": 0, NO_ANSWER: 1},
    }
    assert place.operation("ping").errors[NO_ANSWER].total == 5


def test_of_two_requests_with_one_id_the_first_has_no_answer() -> None:
    place = Place()
    place.ask(request(1))
    place.ask(request(1))
    place.answer(result(1))
    assert place.ends == {("tools/call", ""): {"": 1, NO_ANSWER: 1}}


def test_no_more_requests_are_awaited_than_a_number() -> None:
    place = Place()
    for number in range(MEASURED_CALLS + 1):
        place.clock.advance(MEASURED_SECONDS)
        place.ask(request(number))
    assert len(place.session) == MEASURED_CALLS
    place.answer(result(0), result(1))
    assert place.ends == {("tools/call", ""): {"": 1, NO_ANSWER: 1}}


def test_of_many_requests_at_one_time_not_all_are_timed_but_all_count() -> None:
    place = Place()
    for number in range(3 * MEASURED_REQUESTS):
        place.ask(request(number))
    assert len(place.session) == MEASURED_REQUESTS
    place.ask(request("x"), refused=True)
    place.answer(*(result(number) for number in range(2 * MEASURED_REQUESTS)), after=0.1)
    assert place.ends == {("tools/call", ""): {"": 3 * MEASURED_REQUESTS}}
    found = place.operation("tools/call").answered
    assert found.total == pytest.approx(0.1 * found.count)
    place.clock.advance(MEASURED_SECONDS)
    for number in range(2 * MEASURED_REQUESTS):
        place.ask(request(number))
    assert len(place.session) == MEASURED_REQUESTS
    place.answer(error(0, -5))
    assert place.ends == {
        ("tools/call", ""): {"": 3 * MEASURED_REQUESTS, "-5": MEASURED_REQUESTS + 1}
    }
    place.session.close()
    assert sum(place.ends["tools/call", ""].values()) == 5 * MEASURED_REQUESTS


def test_requests_that_only_count_are_known_by_their_method() -> None:
    """Unless it takes more to tell which operation they are."""
    place = Place("echo")
    for number in range(MEASURED_REQUESTS):
        assert place.measures.only_counted == {}
        place.ask(request(number, "ping"))
    assert place.measures.only_counted == {"ping": place.operation("ping")}
    place.ask(request(1, "tools/call", name="echo"), request(2, "tools/call", name="other"))
    place.ask(request(3, "initialize"), request(4, "evil"))
    assert set(place.measures.only_counted) == {"ping"}
    place.clock.advance(MEASURED_SECONDS)
    assert place.measures.only_counted == {}
    assert place.clock.getDelayedCalls() == []


def test_requests_of_the_next_moment_are_timed_again() -> None:
    """What is left of a moment is not kept for the next one."""
    place = Place()
    for number in range(MEASURED_REQUESTS - 1):
        place.ask(request(number, "ping"))
    place.clock.advance(MEASURED_SECONDS)
    for number in range(MEASURED_REQUESTS):
        assert place.measures.only_counted == {}
        place.ask(request(number + MEASURED_REQUESTS, "ping"))
    assert place.measures.only_counted
    place.measures.stop()


def test_of_refused_requests_none_counts_timed_or_not() -> None:
    place = Place("echo")
    for number in range(MEASURED_REQUESTS):
        place.ask(request(number, "ping"))
    for method, params in (
        ("tools/call", {"name": "echo"}),
        ("tools/call", {"name": "other"}),
        ("evil", {}),
    ):
        place.ask(request("x", method, **params), refused=True)
    place.session.close()
    assert {key: sum(ends.values()) for key, ends in place.ends.items() if key[0] != "ping"} == {
        ("tools/call", "echo"): 0,
        ("tools/call", ""): 0,
        (OTHER, ""): 0,
    }
    place.measures.stop()


def test_only_results_that_were_seen_are_known() -> None:
    """A server may hang although requests that are not timed count like earlier ones."""
    place = Place()
    for number in range(2 * MEASURED_REQUESTS):
        place.ask(request(number))
    place.answer(result(0))
    assert place.operation("tools/call").answered.count > 1
    assert place.counters.results() == 1
    place.measures.stop()


def test_once_it_has_stopped_requests_only_count() -> None:
    place = Place()
    place.ask(request(1, "ping"))
    place.measures.stop()
    for number in range(2 * MEASURED_REQUESTS):
        place.ask(request(number + 2, "ping"))
    place.answer(result(1))
    assert place.ends == {("ping", ""): {"": 2 * MEASURED_REQUESTS + 1}}
    assert place.clock.getDelayedCalls() == []


def test_requests_that_are_not_timed_count_once_another_has_ended() -> None:
    operation = Operation("ping")
    operation.untimed = 2
    operation.fold()
    assert operation.answered.count == 0
    operation.succeeded(1.0)
    assert (operation.answered.count, operation.untimed) == (3, 0)


def test_stateless_requests_at_one_time_are_not_all_timed_but_all_count() -> None:
    place = Place()
    for _ in range(2 * MEASURED_REQUESTS):
        measured = place.measures.request(modern("server/discover"), 1)
        measured.sent([json.dumps(result(1)).encode()], True)
    measured.ended(CANCELLED)
    measured.refused(ServerBusy("later"))
    assert place.ends == {("server/discover", ""): {"": 2 * MEASURED_REQUESTS}}
    assert place.counters.traffic["stateless"].messages_out == 2 * MEASURED_REQUESTS
    assert place.counters.refusals == {"ServerBusy": 1}


def test_methods_that_clients_invent_count_together() -> None:
    place = Place()
    for number in range(300):
        place.ask(request(number, f"evil/{number}"))
        place.answer(result(number))
    assert place.ends == {(OTHER, ""): {"": 300}}
    assert place.measures.by_method == {}


def test_only_named_tools_are_measured_each_on_its_own() -> None:
    place = Place("echo")
    for number, name in enumerate(("echo", "other", None, "echo")):
        place.ask(request(number, name=name))
        place.answer(result(number))
    assert place.ends == {("tools/call", "echo"): {"": 2}, ("tools/call", ""): {"": 2}}
    place.measures.change_tools(["other"])
    place.ask(request(9, name="other"))
    place.answer(result(9))
    assert place.ends["tools/call", "other"] == {"": 1}


def test_the_client_says_who_it_is() -> None:
    place = Place()
    assert place.session.client_name == ""
    place.ask(request(1, "initialize", clientInfo={"name": "n" * 300, "version": "2"}))
    assert place.session.client_name == "n" * CLIENT_TEXT_CHARS
    place.ask(request(2, "initialize", clientInfo={"name": "a", "version": "2"}))
    assert place.session.client_name == "a 2"
    place.ask(request(3, "initialize", clientInfo=5))
    assert place.session.client_name == ""


def test_a_name_of_a_client_can_be_encoded() -> None:
    """Otherwise one client could spoil whatever shows the names of all."""
    place = Place()
    line = json.dumps({"jsonrpc": "2.0", **request(1, "initialize")}).encode()
    line = line.replace(b"{}", b'{"clientInfo":{"name":"a\\ud800b"}}')
    place.session.begin(*read_message(line))
    assert place.session.client_name == "a?b"


def test_an_answer_that_was_refused_is_about_no_request_of_the_client() -> None:
    place = Place()
    place.ask(request(1))
    line = json.dumps(result(1)).encode()
    place.session.not_sent(line, peek(line))
    place.answer(result(1))
    assert place.ends == {("tools/call", ""): {"": 1}}


def test_a_large_batch_is_not_measured() -> None:
    """It was read in slices, so that nobody has to wait, and is not read again."""
    place = Place()
    large = {"jsonrpc": "2.0", **request(1, x="y" * LARGE_BYTES)}
    assert not place.session.begin(json.dumps([large]).encode(), None)
    assert place.ends == {}


def test_names_in_a_large_message_are_read_from_its_digest() -> None:
    place = Place("echo")
    digest = json.dumps({"jsonrpc": "2.0", **request(1, name="echo")}).encode()
    envelope = peek(digest)
    assert envelope is not None
    place.session.begin_all([b"large"], [envelope], [digest])
    place.session.begin(b"large", peek(digest.replace(b"1", b"2")), digest)
    place.answer(result(1))
    assert place.ends == {("tools/call", "echo"): {"": 1}}


@given(st.binary(max_size=3 * _END_BYTES), st.binary(max_size=_END_BYTES), st.booleans())
def test_whatever_a_server_writes_is_no_trouble(head: bytes, tail: bytes, long: bool) -> None:
    place = Place()
    place.ask(request(1))
    starts = (b"", b'{"jsonrpc":"2.0","id":1,"result":', b'{"result":')
    ends = (b"", b'},"jsonrpc":"2.0","id":1}')
    for start in starts:
        for end in ends:
            place.session.answered([start + head + b"x" * (_LONG_BYTES * long) + tail + end])


# Requests of 2026-07-28.


def modern(method: str = "tools/call", **params: Any) -> ModernRequest:
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "a", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": meta}}
    message = parse_message(json.dumps(body).encode())
    assert message is not None
    return read_request(message, version_header="2026-07-28")


def test_a_stateless_request_is_measured() -> None:
    place = Place("echo")
    measured = place.measures.request(modern(name="echo"), 100)
    place.clock.advance(2)
    measured.sent([b"12345", b"678"], False)
    line = json.dumps(result(1)).encode()
    measured.sent([line], True)
    traffic = place.counters.traffic["stateless"]
    assert (traffic.messages_in, traffic.bytes_in) == (1, 100)
    assert (traffic.messages_out, traffic.bytes_out) == (3, 8 + len(line))
    assert place.operation("tools/call", "echo").answered.total == 2


@pytest.mark.parametrize(
    ("line", "end"),
    [
        (json.dumps(result(1, isError=True)), TOOL_ERROR),
        (json.dumps(result(1, isError=False)), ""),
        (json.dumps(error(1, -5)), "-5"),
        # Of what is so large, only that it is an error is known.
        (json.dumps({**error(1, -5), "x": "y" * LARGE_BYTES}), OTHER),
        (json.dumps(result(1, x="y" * LARGE_BYTES)), ""),
        ('{"jsonrpc":"2.0","id":1,"result":1}', ""),
        ("", ""),
    ],
)
def test_how_a_stateless_request_ends(line: str, end: str) -> None:
    place = Place()
    place.measures.request(modern("server/discover"), 1).sent([line.encode()], True)
    ends = place.ends["server/discover", ""]
    assert {key for key, count in ends.items() if count} == {end}


def test_a_stateless_request_that_is_refused_counts_as_both() -> None:
    place = Place()
    place.measures.request(modern(name="a"), 1).refused(ServerBusy("later"))
    place.measures.request(modern(name="a"), 1).ended(CANCELLED)
    assert place.counters.refusals == {"ServerBusy": 1}
    assert place.ends["tools/call", ""] == {"": 0, str(ServerBusy.code): 1, CANCELLED: 1}
