"""Which request a line of a shared process belongs to, and that it reaches no other."""

import json
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mcpbridge.errors import SessionBusy
from mcpbridge.jsonrpc.envelope import peek, peek_again
from mcpbridge.jsonrpc.ids import own_number
from mcpbridge.jsonrpc.members import members
from mcpbridge.jsonrpc.parsed_message import with_envelope
from mcpbridge.jsonrpc.sliced_parser import MAX_MEMBERS
from mcpbridge.mcp.inflight import CANCELLED_KEPT, MAX_IN_FLIGHT
from mcpbridge.mcp.modern_request import (
    CLIENT_CAPABILITIES,
    LOG_LEVEL,
    LOG_LEVELS,
    MODERN_PROTOCOL_VERSIONS,
    PROTOCOL_VERSION,
    SUBSCRIPTION_ID,
    ModernRequest,
    read_request,
)
from mcpbridge.mcp.multiplexer import (
    _USUAL_DIGITS,
    Delivery,
    Multiplexer,
    _number_of_response,
)
from tests.examples import examples

META = {PROTOCOL_VERSION: MODERN_PROTOCOL_VERSIONS[-1], CLIENT_CAPABILITIES: {}}
LISTEN = "subscriptions/listen"
#: Where a client's id or token stands in a request's text.
#: What comes on a subscription alone (basic/patterns/subscriptions).
OF_SUBSCRIPTIONS = frozenset(
    {
        "notifications/prompts/list_changed",
        "notifications/resources/list_changed",
        "notifications/resources/updated",
        "notifications/subscriptions/acknowledged",
        "notifications/tools/list_changed",
    }
)
IDS = ["1", "1.0", '"1"', "2", '"2"', "-1", '"caf\\u00e9"', "1e0", "123456789012345678901234567890"]


def request(
    ident: str = "1", method: str = "tools/list", token: str | None = None, level: str | None = None
) -> ModernRequest:
    """A request as a client writes it, with an id and a token as they stand."""
    meta = json.dumps(META if level is None else {**META, LOG_LEVEL: level})
    if token is not None:
        meta = f'{meta[:-1]}, "progressToken":{token}}}'
    text = f'{{"jsonrpc":"2.0", "id":{ident},"method":"{method}","params":{{"_meta":{meta}}}}}'
    return read(text.encode())


def read(line: bytes) -> ModernRequest:
    envelope = peek(line) or peek_again(line)
    assert envelope is not None
    return read_request(with_envelope(line, envelope), version_header=MODERN_PROTOCOL_VERSIONS[-1])


def said(method: str, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode()


def answer(number: object, **result: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": number, "result": result}).encode()


def number_of(line: bytes) -> int:
    number = json.loads(line)["id"]
    assert isinstance(number, int)
    return number


def of_listen(number: object, method: str = "notifications/tools/list_changed") -> bytes:
    return said(method, _meta={SUBSCRIPTION_ID: number})


@pytest.fixture
def shared() -> Multiplexer[str]:
    return Multiplexer()


# Requests.


@pytest.mark.parametrize("method", ["tools/list", LISTEN])
def test_request_is_open_until_it_is_cancelled(shared: Multiplexer[str], method: str) -> None:
    """A subscription, too."""
    assert not shared.has_open()
    shared.send_to_backend(request(method=method), "a")
    assert shared.has_open()
    shared.cancel("a")
    assert not shared.has_open()


def test_only_id_and_progress_token_of_a_request_are_replaced(
    shared: Multiplexer[str],
) -> None:
    line = (
        b'{"params":{"a":[ 1.0,"\\ud800" ],'
        b'"_meta":{"x": 1e2,"%b":"%b","%b":{ }},"b":"caf\xc3\xa9"},'
        b'"id":"mine","extra":[ ],"method":"tools/list","jsonrpc":"2.0"}'
    ) % (
        PROTOCOL_VERSION.encode(),
        MODERN_PROTOCOL_VERSIONS[-1].encode(),
        CLIENT_CAPABILITIES.encode(),
    )
    assert shared.send_to_backend(read(line), "a") == line.replace(b'"mine"', b"1")
    with_token = line.replace(b'"x": 1e2', b'"progressToken":"t"').replace(b'"mine"', b"1.0")
    expected = with_token.replace(b":1.0,", b":2,").replace(b'"t"', b"2")
    assert shared.send_to_backend(read(with_token), "b") == expected


@pytest.mark.parametrize("ident", IDS)
def test_the_answer_has_the_id_as_the_client_wrote_it(shared: Multiplexer[str], ident: str) -> None:
    shared.send_to_backend(request("7"), "other")
    number = number_of(shared.send_to_backend(request(ident), "a"))
    line = b'{"jsonrpc":"2.0","id":%d,"result":{"a":[ 1,"\\ud800" ]},"x":1e2}' % number
    delivery = shared.from_backend(line)
    assert delivery == ("a", line.replace(b'"id":2', b'"id":' + ident.encode()), True)
    assert len(shared) == 1
    assert shared.from_backend(line) is None
    assert shared.dropped == {"unasked": 1}


@pytest.mark.parametrize(
    "body", ['"error":{"code":-1,"message":"no"}', '"result":null', '"result":7']
)
def test_any_response_reaches_its_client(shared: Multiplexer[str], body: str) -> None:
    shared.send_to_backend(request('"x"', LISTEN), "a")
    delivery = shared.from_backend(f'{{"jsonrpc":"2.0","id":1.0,{body}}}'.encode())
    assert delivery == ("a", f'{{"jsonrpc":"2.0","id":"x",{body}}}'.encode(), True)
    assert (len(shared), shared.subscriptions) == (0, 0)


@pytest.mark.parametrize(
    "ident",
    ["2", '"01"', '"1.0"', "1.5", "null", "0", "-1", "1e30", '"\\ud800"', "9" * 300],
)
def test_an_answer_to_no_request(shared: Multiplexer[str], ident: str) -> None:
    shared.send_to_backend(request(), "a")
    assert shared.from_backend(b'{"jsonrpc":"2.0","id":%b,"result":{}}' % ident.encode()) is None
    assert shared.dropped == {"unasked": 1}
    assert len(shared) == 1


def test_an_id_that_the_server_returns_as_text(shared: Multiplexer[str]) -> None:
    """Beside a request that is open and has the text for its client's id."""
    shared.send_to_backend(request('"1"'), "a")
    shared.send_to_backend(request("9", LISTEN), "b")
    assert shared.from_backend(answer("2")) == ("b", answer(9).replace(b" ", b""), True)
    assert shared.from_backend(answer("1")) == ("a", answer("1").replace(b" ", b""), True)


@pytest.mark.parametrize("number", [1, "1"])
def test_unexpected_answers_are_reported(number: Any) -> None:
    """But not those of a request that was cancelled, or what is no answer."""
    reported: list[tuple[str, bytes]] = []
    shared: Multiplexer[str] = Multiplexer(report=lambda *told: reported.append(told))
    shared.send_to_backend(request(), "a")
    shared.send_to_backend(request(), "b")
    shared.cancel("a")
    assert shared.from_backend(answer(number)) is None
    assert shared.from_backend(of_listen(7)) is None
    assert reported == []
    unasked = (answer(7), answer("x"), answer(None))
    for line in (*unasked, b"{", b'{"jsonrpc":"2.0"}'):
        assert shared.from_backend(line) is None
    asks = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "roots/list"}).encode()
    assert shared.from_backend(asks) is None
    expected = [("unasked", each) for each in unasked]
    expected += [("invalid", b"{"), ("invalid", b'{"jsonrpc":"2.0"}'), ("request", asks)]
    assert reported == expected


def test_a_listen_that_ends_twice_is_not_reported() -> None:
    """By a notification, and by its answer."""
    reported: list[tuple[str, bytes]] = []
    shared: Multiplexer[str] = Multiplexer(report=lambda *told: reported.append(told))
    shared.send_to_backend(request("9", LISTEN), "a")
    delivery = shared.from_backend(said("notifications/cancelled", requestId=1))
    assert delivery is not None
    assert shared.from_backend(answer(1)) is None
    assert reported == []


def test_cancelled_kept_of_all_requests() -> None:
    """CANCELLED_KEPT: the answer to the oldest is unasked like any other."""
    reported: list[tuple[str, bytes]] = []
    shared: Multiplexer[str] = Multiplexer(report=lambda *told: reported.append(told))
    for _ in range(CANCELLED_KEPT + 1):
        shared.send_to_backend(request(), "a")
        shared.cancel("a")
    for number in (2, 1):
        shared.from_backend(answer(number))
    assert reported == [("unasked", answer(1))]


def test_only_open_beside_a_cancelled_request(shared: Multiplexer[str]) -> None:
    """An answer may be that of the other one, until that has come."""
    shared.send_to_backend(request(), "a")
    shared.send_to_backend(request(), "b")
    shared.cancel("a")
    known = [shared.only_open]
    shared.from_backend(answer(1))
    assert [*known, shared.only_open] == [msgspec.UNSET, 2]


def test_tag_of(shared: Multiplexer[str]) -> None:
    shared.send_to_backend(request(level="debug", token="1"), "a")
    shared.send_to_backend(request("9", LISTEN), "b")
    progress = said("notifications/progress", progressToken=1, progress=1)
    log = said("notifications/message", level="info", data=1)
    of_a = (answer(1), answer("1"), answer(1.0), progress, log)
    of_b = (answer(2), of_listen(2), said("notifications/cancelled", requestId=2))
    asks = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "ping"}).encode()
    for tag, lines in (("a", of_a), ("b", of_b), (None, (answer(3), asks, b"{", said("x")))):
        assert [shared.tag_of(line) for line in lines] == [tag] * len(lines)


def test_numbers_are_unique(shared: Multiplexer[str]) -> None:
    numbers = []
    for _ in range(3):
        numbers.append(number_of(shared.send_to_backend(request(), "a")))
        shared.cancel("a")
        numbers.append(number_of(shared.send_to_backend(request(), "b")))
        assert shared.clear() == ["b"]
    assert numbers == list(range(1, 7))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"", "invalid"),
        (b"hello", "invalid"),
        (b"[]", "invalid"),
        (b'[{"jsonrpc":"2.0","id":1,"result":{}}]', "invalid"),
        (b'{"jsonrpc":"2.0","id":1}', "invalid"),
        (b'{"jsonrpc":"2.0"}', "invalid"),
        (b'{"jsonrpc":"1.0","id":1,"result":{}}', "invalid"),
        (b'{"jsonrpc":"2.0","id":true,"result":{}}', "invalid"),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"}', "request"),
        (b'{"jsonrpc":"2.0","id":null,"method":"elicitation/create","params":{}}', "request"),
    ],
)
def test_lines_that_are_not_for_a_client(shared: Multiplexer[str], line: bytes, why: str) -> None:
    """streamable-http, "Receiving Messages": no requests of the server, ever."""
    shared.send_to_backend(request(), "a")
    assert shared.from_backend(line) is None
    assert shared.dropped == {why: 1}
    assert len(shared) == 1


def test_an_answer_with_too_many_members_is_invalid(shared: Multiplexer[str]) -> None:
    """MAX_MEMBERS: none of them is read, so nobody knows what it says."""
    shared.send_to_backend(request(), "a")
    more = {f"member {number}": number for number in range(MAX_MEMBERS)}
    line = json.dumps({"jsonrpc": "2.0", "id": 1, "result": {}, **more}).encode()
    assert shared.from_backend(line) is None
    assert shared.dropped == {"invalid": 1}
    assert len(shared) == 1


@pytest.mark.parametrize("method", ["completion/complete", "server/discover", "tools/list", "x"])
def test_no_other_request_is_a_subscription(shared: Multiplexer[str], method: str) -> None:
    shared.send_to_backend(request(method=method, level="debug"), "a")
    assert (len(shared), shared.subscriptions) == (1, 0)
    log = said("notifications/message", level="info", data="x")
    assert shared.from_backend(log) == ("a", log, False)


def test_requests_and_subscriptions_are_bounded_apart() -> None:
    shared: Multiplexer[int] = Multiplexer()
    for tag in range(MAX_IN_FLIGHT):
        shared.send_to_backend(request(method=LISTEN), -1 - tag)
    for method in (LISTEN, "tools/list"):
        for tag in range(0 if method == LISTEN else MAX_IN_FLIGHT):
            shared.send_to_backend(request(method=method), tag)
        with pytest.raises(SessionBusy) as caught:
            shared.send_to_backend(request('"x"', method), MAX_IN_FLIGHT)
        assert caught.value.ident == "x"
    assert (len(shared), shared.subscriptions) == (MAX_IN_FLIGHT, MAX_IN_FLIGHT)
    assert shared.cancel(0) is not None
    shared.send_to_backend(request(), MAX_IN_FLIGHT)


def test_a_tag_is_in_flight_once(shared: Multiplexer[str]) -> None:
    shared.send_to_backend(request(), "a")
    with pytest.raises(AssertionError):
        shared.send_to_backend(request(), "a")


# Cancellation.


@pytest.mark.parametrize("method", ["tools/list", LISTEN])
def test_a_cancelled_request_is_forgotten(shared: Multiplexer[str], method: str) -> None:
    number = number_of(shared.send_to_backend(request(method=method, token="1"), "a"))
    line = shared.cancel("a")
    assert line is not None
    assert json.loads(line) == {
        "jsonrpc": "2.0",
        "method": "notifications/cancelled",
        "params": {"requestId": number},
    }
    assert shared.cancel("a") is None
    assert (len(shared), shared.subscriptions) == (0, 0)
    late = [answer(number), said("notifications/progress", progressToken=number), of_listen(number)]
    assert [shared.from_backend(each) for each in late] == [None] * 3
    assert shared.dropped == {"unasked": 3}


def test_undo_leaves_nothing(shared: Multiplexer[str]) -> None:
    line = said("notifications/message", level="error")
    for method in ("tools/list", LISTEN):
        shared.send_to_backend(request(method=method, level="debug"), "a")
        shared.undo("a")
        shared.undo("a")
    assert (len(shared), shared.subscriptions) == (0, 0)
    assert shared.cancel("a") is None
    assert number_of(shared.send_to_backend(request(level="debug"), "a")) == 3
    assert shared.from_backend(line) == ("a", line, False)


def test_all_are_forgotten_when_the_process_ends(shared: Multiplexer[str]) -> None:
    shared.send_to_backend(request(level="debug"), "a")
    shared.send_to_backend(request(method=LISTEN), "b")
    shared.send_to_backend(request(), "c")
    shared.cancel("c")
    assert shared.clear() == ["a", "b"]
    assert shared.clear() == []
    assert (len(shared), shared.subscriptions) == (0, 0)
    number = number_of(shared.send_to_backend(request(level="debug"), "a"))
    assert shared.from_backend(said("notifications/message", level="error")) is not None
    assert shared.from_backend(answer(number)) is not None


# Progress.


@pytest.mark.parametrize("token", IDS)
@pytest.mark.parametrize("method", ["tools/list", LISTEN])
def test_progress_has_the_token_as_the_client_wrote_it(
    shared: Multiplexer[str], token: str, method: str
) -> None:
    shared.send_to_backend(request(token="1"), "other")
    shared.send_to_backend(request(token=token, method=method), "a")
    line = (
        b'{"method":"notifications/progress",'
        b'"params":{"progress":0.50,"progressToken":%b,"x":[ ]},"jsonrpc":"2.0"}'
    )
    for spelled in (b"2", b"2.0"):
        delivery = shared.from_backend(line % spelled)
        assert delivery == ("a", line % token.encode(), False)


@pytest.mark.parametrize("token", [2, "1", 1.5, True, None, [1], "t", 3])
def test_progress_of_no_request(shared: Multiplexer[str], token: object) -> None:
    shared.send_to_backend(request(token='"t"'), "a")
    shared.send_to_backend(request(), "without")
    assert shared.from_backend(said("notifications/progress", progressToken=token)) is None
    assert shared.from_backend(b'{"jsonrpc":"2.0","method":"notifications/progress"}') is None
    assert shared.dropped == {"unasked": 2}


# Subscriptions.


@pytest.mark.parametrize("ident", IDS)
@pytest.mark.parametrize("method", [*sorted(OF_SUBSCRIPTIONS), "notifications/x"])
def test_notifications_of_a_subscription_have_its_id(
    shared: Multiplexer[str], ident: str, method: str
) -> None:
    shared.send_to_backend(request("1", LISTEN), "other")
    shared.send_to_backend(request(ident, LISTEN), "a")
    params = f'{{"_meta":{{"{SUBSCRIPTION_ID}":%s}},"a":[ ]}}'
    line = f'{{"jsonrpc":"2.0","method":"{method}","params":{params}}}'
    assert shared.from_backend((line % "2").encode()) == ("a", (line % ident).encode(), False)
    assert (len(shared), shared.subscriptions) == (0, 2)


@pytest.mark.parametrize(
    "method", ["notifications/a", "notifications/resources/updated", "notifications/x"]
)
def test_a_notification_of_a_subscription_is_unchanged_but_for_its_id(
    shared: Multiplexer[str], method: str
) -> None:
    """The ids in it are tasks or requests only where the specification says so."""
    shared.send_to_backend(request('"x"', LISTEN), "a")
    params = {
        "taskId": "1",
        "status": "working",
        "requestId": 1,
        "level": "info",
        "notifications": {"taskIds": ["1"]},
    }
    line = said(method, **params, _meta={SUBSCRIPTION_ID: 1})
    delivery = shared.from_backend(line)
    assert delivery is not None
    assert json.loads(delivery.line)["params"] == {**params, "_meta": {SUBSCRIPTION_ID: "x"}}
    assert shared.subscriptions == 1


@pytest.mark.parametrize("method", ["notifications/a", "notifications/x"])
def test_a_notification_about_a_request_ends_no_subscription(
    shared: Multiplexer[str], method: str
) -> None:
    shared.send_to_backend(request('"x"', LISTEN), "a")
    line = said(method, requestId=1, progressToken=1)
    assert shared.tag_of(line) is None
    assert shared.from_backend(line) is None
    assert shared.dropped == {"unassociated": 1}
    assert shared.subscriptions == 1


@pytest.mark.parametrize("ident", [1, 3, "2", 2.5, True, None, [2], {}, "\ud800"])
def test_notifications_of_an_unknown_subscription(shared: Multiplexer[str], ident: object) -> None:
    shared.send_to_backend(request(), "a")
    shared.send_to_backend(request(method=LISTEN), "b")
    assert shared.from_backend(of_listen(ident)) is None
    assert shared.dropped == {"unasked": 1}


@pytest.mark.parametrize(
    ("result", "mapped"),
    [
        ('{"_meta":{"a":[ ],"%s":2},"b":1e2}', '{"_meta":{"a":[ ],"%s":"x"},"b":1e2}'),
        ('{"_meta":{"%s":7}}', '{"_meta":{"%s":"x"}}'),
        ('{"_meta":[ "%s"]}', '{"_meta":[ "%s"]}'),
        ('{ "%s":2}', '{ "%s":2}'),
    ],
)
def test_the_closing_answer_of_a_subscription(
    shared: Multiplexer[str], result: str, mapped: str
) -> None:
    """subscriptions, "Graceful Closure": the answer has the subscription's id too."""
    shared.send_to_backend(request("1", LISTEN), "other")
    shared.send_to_backend(request('"x"', LISTEN), "a")
    line = '{"jsonrpc":"2.0","id":%s,"result":' + result % SUBSCRIPTION_ID + "}"
    expected = '{"jsonrpc":"2.0","id":"x","result":' + mapped % SUBSCRIPTION_ID + "}"
    assert shared.from_backend((line % 2).encode()) == ("a", expected.encode(), True)
    assert shared.subscriptions == 1


def test_a_result_without_a_subscription_id_is_unchanged(shared: Multiplexer[str]) -> None:
    shared.send_to_backend(request('"x"'), "a")
    line = answer(1, _meta={SUBSCRIPTION_ID: 1})
    delivery = shared.from_backend(line)
    assert delivery is not None
    assert json.loads(delivery.line)["result"] == json.loads(line)["result"]


def test_the_backend_ends_a_subscription(shared: Multiplexer[str]) -> None:
    """basic/patterns/cancellation: the server's only use of `notifications/cancelled`."""
    shared.send_to_backend(request("1"), "a")
    shared.send_to_backend(request('"x"', LISTEN), "b")
    for no_listen in (1, 3, "2", None, True):
        line = said("notifications/cancelled", requestId=no_listen)
        assert shared.from_backend(line) is None
    delivery = shared.from_backend(said("notifications/cancelled", requestId=2))
    assert delivery is not None
    assert (delivery.tag, delivery.final) == ("b", True)
    assert json.loads(delivery.line) == {
        "jsonrpc": "2.0",
        "id": "x",
        "result": {"resultType": "complete", "_meta": {SUBSCRIPTION_ID: "x"}},
    }
    assert (len(shared), shared.subscriptions) == (1, 0)
    assert shared.from_backend(answer(2)) is None
    assert shared.dropped == {"unasked": 6}


# What does not say of which request it is.


@pytest.mark.parametrize("wanted", LOG_LEVELS)
@pytest.mark.parametrize("level", LOG_LEVELS)
def test_logs_of_the_requested_level(shared: Multiplexer[str], wanted: str, level: str) -> None:
    shared.send_to_backend(request("1"), "without")
    shared.send_to_backend(request("1", level=wanted), "a")
    shared.send_to_backend(request("1", LISTEN), "listens")
    line = said("notifications/message", level=level, data="\ud800")
    if LOG_LEVELS.index(level) >= LOG_LEVELS.index(wanted):
        assert shared.from_backend(line) == ("a", line, False)
    else:
        assert shared.from_backend(line) is None
        assert shared.dropped == {"level": 1}


@pytest.mark.parametrize(
    "params", ['{"level":7}', '{"level":"all"}', "{}", "[]", '{"level":1e999}']
)
def test_logs_of_no_level(shared: Multiplexer[str], params: str) -> None:
    shared.send_to_backend(request(level="debug"), "a")
    line = f'{{"jsonrpc":"2.0","method":"notifications/message","params":{params}}}'
    assert shared.from_backend(line.encode()) is None
    assert shared.from_backend(b'{"jsonrpc":"2.0","method":"notifications/message"}') is None
    assert shared.dropped == {"level": 2}


def test_ambiguous_logs_reach_nobody(shared: Multiplexer[str]) -> None:
    line = said("notifications/message", level="error")
    assert shared.from_backend(line) is None
    shared.send_to_backend(request(), "without")
    assert shared.from_backend(line) is None
    shared.send_to_backend(request(level="debug"), "a")
    number = number_of(shared.send_to_backend(request(level="debug"), "b"))
    assert shared.from_backend(line) is None
    assert shared.dropped == {"unassociated": 3}
    shared.from_backend(answer(number))
    assert shared.from_backend(line) == ("a", line, False)


def test_logs_are_not_on_a_subscription(shared: Multiplexer[str]) -> None:
    """server/utilities/logging, "Per-request log level"."""
    shared.send_to_backend(request(level="debug"), "a")
    number = number_of(shared.send_to_backend(request(method=LISTEN), "b"))
    assert shared.from_backend(of_listen(number, "notifications/message")) is None
    assert shared.dropped == {"unasked": 1}


def test_logs_of_a_cancelled_request_do_not_reach_the_next(shared: Multiplexer[str]) -> None:
    line = said("notifications/message", level="error")
    number = number_of(shared.send_to_backend(request(level="debug"), "a"))
    shared.cancel("a")
    shared.send_to_backend(request(level="debug"), "b")
    assert shared.from_backend(line) is None
    assert shared.dropped == {"unassociated": 1}
    assert shared.from_backend(answer(number)) is None
    assert shared.from_backend(line) == ("b", line, False)


def test_a_cancelled_request_without_logs_does_not_affect_others(
    shared: Multiplexer[str],
) -> None:
    shared.send_to_backend(request(), "a")
    shared.send_to_backend(request(method=LISTEN), "b")
    shared.cancel("a")
    shared.cancel("b")
    shared.send_to_backend(request(level="debug"), "c")
    line = said("notifications/message", level="error")
    assert shared.from_backend(line) == ("c", line, False)


def test_cancelled_requests_are_bounded(shared: Multiplexer[str]) -> None:
    line = said("notifications/message", level="error")
    numbers = []
    for _ in range(CANCELLED_KEPT + 1):
        numbers.append(number_of(shared.send_to_backend(request(level="debug"), "x")))
        shared.cancel("x")
    shared.send_to_backend(request(level="debug"), "b")
    assert shared.from_backend(line) is None
    for number in numbers[1:]:
        assert shared.has_ambiguous_logs
        shared.from_backend(answer(number))
    assert not shared.has_ambiguous_logs
    assert shared.from_backend(line) == ("b", line, False)


def test_another_notification_reaches_nobody(shared: Multiplexer[str]) -> None:
    """It may be of one that was answered before, also where there is only one now."""
    line = said("notifications/x", a=1)
    for tag, asked in (("a", request()), ("listens", request(method=LISTEN))):
        shared.send_to_backend(asked, tag)
        assert shared.from_backend(line) is None
    assert shared.dropped == {"unassociated": 2}


def test_a_subscription_gets_no_logs(shared: Multiplexer[str]) -> None:
    """Nor does a level that it names keep them from whom they are for."""
    line = said("notifications/message", level="error")
    shared.send_to_backend(request(level="debug", method=LISTEN), "listens")
    assert shared.from_backend(line) is None
    shared.send_to_backend(request(level="debug"), "a")
    assert shared.from_backend(line) == ("a", line, False)
    shared.cancel("listens")
    assert not shared.has_ambiguous_logs
    assert shared.from_backend(line) == ("a", line, False)


@pytest.mark.parametrize("method", sorted(OF_SUBSCRIPTIONS))
def test_notifications_of_subscriptions_reach_no_request(
    shared: Multiplexer[str], method: str
) -> None:
    shared.send_to_backend(request(level="debug"), "a")
    assert shared.from_backend(said(method)) is None
    assert shared.dropped == {"unassociated": 1}


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {"jsonrpc": st.just("2.0")},
        optional={
            "id": st.sampled_from([1, 2, 3, "1", None, 1.0, True, "\ud800"]),
            "method": st.sampled_from(
                [
                    "notifications/progress",
                    "notifications/cancelled",
                    "notifications/message",
                    "notifications/tools/list_changed",
                    "ping",
                    7,
                ]
            ),
            "params": st.recursive(
                st.sampled_from([1, 2, "1", None, True, "error", "\ud800", 1.0]),
                lambda inner: (
                    st.lists(inner, max_size=2)
                    | st.dictionaries(
                        st.sampled_from(
                            [
                                "_meta",
                                SUBSCRIPTION_ID,
                                "progressToken",
                                "requestId",
                                "level",
                                "\ud800",
                            ]
                        ),
                        inner,
                    )
                ),
            ),
            "result": st.sampled_from([None, 1, {}, {"_meta": {SUBSCRIPTION_ID: "\ud800"}}]),
        },
    )
)
def test_no_line_of_the_server_raises(message: dict[str, Any]) -> None:
    shared: Multiplexer[str] = Multiplexer()
    shared.send_to_backend(request('"x"', token='"t"', level="info"), "a")
    shared.send_to_backend(request('"y"', LISTEN), "b")
    delivery = shared.from_backend(json.dumps(message).encode())
    assert shared.dropped.total() == (delivery is None)


@settings(deadline=None)
@given(st.binary())
def test_no_bytes_raise(line: bytes) -> None:
    shared: Multiplexer[str] = Multiplexer()
    shared.send_to_backend(request(), "a")
    shared.from_backend(line)
    shared.from_backend(b'{"jsonrpc":"2.0","method":"m","params":' + line + b"}")


# Any interleaving.


class SharedMachine(RuleBasedStateMachine):
    """
    Many clients with equal ids and tokens on one process.  The model has
    under each number what its client wrote, and finds by searching.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shared: Multiplexer[int] = Multiplexer()
        self.tags = 0
        #: By number: tag, id, token, whether it listens, its level.
        self.open: dict[int, tuple[int, str, str | None, bool, str | None]] = {}
        self.numbers: list[int] = []
        #: Those that wanted logs.
        self.cancelled: list[int] = []
        self.dropped: Counter[str] = Counter()

    @rule(
        ident=st.sampled_from(IDS),
        token=st.sampled_from([None, *IDS]),
        listens=st.booleans(),
        level=st.sampled_from([None, None, "debug", "error"]),
    )
    def ask(self, ident: str, token: str | None, listens: bool, level: str | None) -> None:
        self.tags += 1
        asked = request(ident, LISTEN if listens else "tools/list", token, level)
        message = json.loads(self.shared.send_to_backend(asked, self.tags))
        number = message["id"]
        assert type(number) is int
        assert number not in self.numbers
        assert message["params"]["_meta"].get("progressToken") == (number if token else None)
        self.numbers.append(number)
        self.open[number] = self.tags, ident, token, listens, level

    def expect(self, line: bytes, tag: int | None, why: str = "", final: bool = False) -> bytes:
        """The line reaches that tag, which is told before, or nobody for that reason."""
        whose = self.shared.tag_of(line)
        if tag is not None or why in ("invalid", "request", "unassociated"):
            assert whose == tag
        delivery: Delivery[int] | None = self.shared.from_backend(line)
        if tag is None:
            assert delivery is None
            self.dropped[why] += 1
            return b""
        assert delivery is not None
        assert (delivery.tag, delivery.final) == (tag, final)
        return delivery.line

    def pick(self, data: st.DataObject) -> int:
        """A number that is in use, or was, or never."""
        return data.draw(st.sampled_from([*self.numbers[-6:], *list(self.open)[:4], 10_000]))

    @rule(data=st.data(), spelled=st.sampled_from(["%d", "%d.0", '"%d"']))
    def answer(self, data: st.DataObject, spelled: str) -> None:
        number = self.pick(data)
        tag, ident, _, listens, _ = self.open.pop(number, (None, "", None, False, None))
        self.cancelled = [each for each in self.cancelled if each != number]
        text = '{"jsonrpc":"2.0","id":%s,"result":{"_meta":{"%s":%s},"n":%d}}'
        line = text % (spelled % number, SUBSCRIPTION_ID, number, number)
        seen = self.expect(line.encode(), tag, "unasked", final=True)
        within = ident if listens else str(number)
        assert tag is None or seen.decode() == text % (ident, SUBSCRIPTION_ID, within, number)

    @rule(data=st.data())
    def progress(self, data: st.DataObject) -> None:
        number = self.pick(data)
        tag, _, token, _, _ = self.open.get(number, (None, "", None, False, None))
        text = '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":%s}}'
        seen = self.expect((text % number).encode(), tag if token else None, "unasked")
        assert tag is None or token is None or seen.decode() == text % token

    @rule(data=st.data())
    def change(self, data: st.DataObject) -> None:
        number = self.pick(data)
        tag, ident, _, listens, _ = self.open.get(number, (None, "", None, False, None))
        text = '{"jsonrpc":"2.0","method":"notifications/x","params":{"_meta":{"%s":%s}}}'
        line = (text % (SUBSCRIPTION_ID, number)).encode()
        seen = self.expect(line, tag if listens else None, "unasked")
        assert not listens or seen.decode() == text % (SUBSCRIPTION_ID, ident)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        number = self.pick(data)
        tag, ident, _, listens, _ = self.open.get(number, (None, "", None, False, None))
        line = said("notifications/cancelled", requestId=number)
        seen = self.expect(line, tag if listens else None, "unasked", final=True)
        if listens:
            del self.open[number]
            assert f'"id":{ident},' in seen.decode()

    @rule(level=st.sampled_from(["info", "error"]))
    def log(self, level: str) -> None:
        line = said("notifications/message", level=level)
        wanting = [
            (tag, each)
            for tag, _, _, listens, each in self.open.values()
            if each is not None and not listens
        ]
        if len(wanting) != 1 or self.cancelled:
            self.expect(line, None, "unassociated")
        elif (wanting[0][1], level) == ("error", "info"):
            self.expect(line, None, "level")
        else:
            assert self.expect(line, wanting[0][0]) == line

    @rule()
    def say(self) -> None:
        self.expect(said("notifications/y"), None, "unassociated")

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = self.pick(data)
        tag, _, _, listens, level = self.open.pop(number, (-number, "", None, False, None))
        line = self.shared.cancel(tag)
        if tag < 0:
            assert line is None
            return
        assert line is not None
        assert json.loads(line)["params"] == {"requestId": number}
        if level is not None and not listens:
            self.cancelled.append(number)

    @rule()
    def clear(self) -> None:
        assert self.shared.clear() == [tag for tag, *_ in self.open.values()]
        self.open.clear()
        self.cancelled.clear()

    @invariant()
    def counts(self) -> None:
        listens = sum(each for _, _, _, each, _ in self.open.values())
        assert self.shared.has_ambiguous_logs is bool(self.cancelled)
        assert (len(self.shared), self.shared.subscriptions) == (len(self.open) - listens, listens)
        assert self.shared.dropped == self.dropped


TestShared = SharedMachine.TestCase
TestShared.settings = settings(max_examples=examples(100), stateful_step_count=40, deadline=None)


def test_only_open_request(shared: Multiplexer[str]) -> None:
    """Its number; none where somebody listens, who waits for messages too."""
    found: list[object] = []
    numbers: list[int] = []
    for tag in "abc":
        found.append(shared.only_open)
        numbers.append(number_of(shared.send_to_backend(request(), tag)))
    assert found == [msgspec.UNSET, numbers[0], msgspec.UNSET]


@given(
    st.dictionaries(
        st.sampled_from(["jsonrpc", "id", "method", "result", "error", "x"]),
        st.sampled_from(
            ['"2.0"', '"2\\u002e0"', "1", "0", "01", "-1", "1.0", "1e0", '"1"', "null", "{}"]
        )
        | st.sampled_from([_USUAL_DIGITS, _USUAL_DIGITS + 1, 5000]).map("9".__mul__),
    )
)
def test_a_usual_response_is_recognized_as_by_its_envelope(content: dict[str, str]) -> None:
    """Beyond `_USUAL_DIGITS` a number is looked at in the general way."""
    line = ("{" + ",".join(f'"{name}":{each}' for name, each in content.items()) + "}").encode()
    outer = members(line)
    number = 0 if outer is None else _number_of_response(outer)
    envelope = peek(line)
    if number:
        assert envelope is not None
        assert envelope.is_response
        assert own_number(envelope.id) == number
    elif content.get("jsonrpc") == '"2.0"' and content.get("id") == "1" and envelope is not None:
        assert not envelope.is_response
