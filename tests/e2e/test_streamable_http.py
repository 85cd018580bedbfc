"""
Streamable HTTP with sessions: every status, which stream carries which message,
resumption, and how a session ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mcpbridge.mcp.stream_delivery import TAKEOVER_SECONDS, TAKEOVERS
from tests.e2e.harness import (
    NEVER,
    Bridge,
    Response,
    StreamableHttpClient,
    backend,
    request,
    serving,
    wait_until,
)
from tests.e2e.test_backpressure import SMALL, taken, wait_until_stuck
from tests.real.processes import eventually

UNKNOWN = "00000000-0000-4000-8000-000000000000"
NEW, OLD = "2025-11-25", "2025-03-26"
SUPPORTED = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]
LARGE = 200_000
#: Longer than this process may stall between two requests on a busy machine.
IDLE = ("--idle-timeout", "4")


@pytest.fixture(scope="module")
def shared() -> Iterator[Bridge]:
    """One command, served with a setting of its own below each base."""
    command, *args = backend("script")
    settings: dict[str, dict[str, Any]] = {
        "": {"max_message_bytes": LARGE},
        "/json": {"json_response": True},
        "/one": {"max_sessions": 1},
        "/told": {"stderr_in_errors": True},
        "/kept": {"keepalive_interval": 0.2},
        "/none": {"command": "/no/such/command"},
    }
    servers = {
        base.strip("/") or "root": {"command": command, "args": args, "base_uri": base, **more}
        for base, more in settings.items()
    }
    with serving(config={"mcpServers": servers}) as bridge:
        yield bridge


@pytest.fixture
def bridge(shared: Bridge) -> Iterator[Bridge]:
    """The shared bridge for one test."""
    yield shared
    shared.close_clients()


@pytest.fixture
def client(bridge: Bridge) -> StreamableHttpClient:
    """A session of the newest revision that has sessions."""
    return bridge.open_streamable_http()


def progress(token: object, number: int) -> dict[str, Any]:
    params = {"progressToken": token, "progress": number}
    return {"method": "notifications/progress", "params": params}


def numbers(messages: list[Any]) -> list[int]:
    """Return the progress values in the order in which they arrived."""
    return [each["params"]["progress"] for each in messages if "progress" in each["params"]]


def slow_call(
    client: StreamableHttpClient, gate: str, now: int, later: int, **more: object
) -> Response:
    """Make a call that reports progress, waits at a gate, and reports the rest."""
    return client.call(
        "tools/call",
        _meta={"progressToken": gate},
        send=[progress(gate, each) for each in range(now)],
        gate=gate,
        then=[progress(gate, each) for each in range(now, now + later)],
        **more,
    )


def json_answer(ask: Callable[[], Response]) -> Response:
    """
    Return an answer that is not a stream, asking again if it is: an answer that
    takes seconds becomes a stream, which may happen on a busy machine.
    """
    for _ in range(5):
        answer = ask()
        if "event-stream" not in answer.content_type:
            break
    return answer


def notification(method: str, **params: object) -> dict[str, Any]:
    return {"method": method, "params": params}


# Statuses and headers.


def test_single_answer_is_json(client: StreamableHttpClient) -> None:
    """200 as `application/json`; the session's id is not repeated."""
    answer = json_answer(lambda: client.call("ping"))
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert answer.json["result"] == {"was": "ping"}
    assert "mcp-session-id" not in answer.headers


def test_notification_before_the_answer_makes_a_stream(client: StreamableHttpClient) -> None:
    """200 as `text/event-stream`."""
    answer = slow_call(client, "a", 2, 0)
    client.notify("open", gate="a")
    assert (answer.status, answer.content_type) == (200, "text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert "mcp-session-id" not in answer.headers
    *before, last = answer.read_remaining_messages()
    assert numbers(before) == [0, 1]
    assert last["result"] == {"was": "tools/call"}


def test_answer_to_initialize_carries_the_session_id(bridge: Bridge) -> None:
    """An id of visible ASCII, and another one for each session."""
    clients = [bridge.open_streamable_http() for _ in range(2)]
    assert clients[0].session_id != clients[1].session_id
    assert all(33 <= ord(c) <= 126 for client in clients for c in client.session_id)


@pytest.mark.parametrize(
    "message",
    [
        {"method": "notifications/x"},
        {"id": 7, "result": {}},
        {"id": 7, "error": {"code": -1, "message": "no"}},
    ],
)
def test_notifications_and_responses_are_accepted_with_202(
    client: StreamableHttpClient, message: dict[str, Any]
) -> None:
    """The response has no body."""
    with client.send("POST", json.dumps({"jsonrpc": "2.0", **message}).encode()) as answer:
        assert (answer.status, answer.body) == (202, b"")


PING = request("ping", 99)
AS_JSON = "Accept: application/json"
AS_EVENTS = "Accept: text/event-stream"


@pytest.mark.parametrize(
    ("method", "body", "headers", "status", "code", "text"),
    [
        ("POST", PING, ["Mcp-Session-Id: "], 400, -32000, "Mcp-Session-Id"),
        ("GET", None, ["Mcp-Session-Id: "], 405, -32000, "Mcp-Session-Id"),
        ("DELETE", None, ["Mcp-Session-Id: "], 400, -32000, "Mcp-Session-Id"),
        ("POST", b"no JSON", [], 400, -32700, "JSON"),
        ("POST", b"\xff", [], 400, -32700, ""),
        ("POST", b"", [], 400, -32600, ""),
        ("POST", b"7", [], 400, -32600, ""),
        ("POST", request("initialize", 99), [], 400, -32600, "initialized already"),
        ("POST", b"[" + PING + b"]", [], 400, -32600, "batch"),
        ("POST", PING, [f"Mcp-Session-Id: {UNKNOWN}"], 404, -32001, "no such session"),
        ("GET", None, [f"Mcp-Session-Id: {UNKNOWN}"], 404, -32001, "no such session"),
        ("DELETE", None, [f"Mcp-Session-Id: {UNKNOWN}"], 404, -32001, "no such session"),
        ("POST", PING, ["Accept: text/html"], 406, -32000, "application/json or text/event-stream"),
        ("POST", PING, ["Accept: */*;q=0"], 406, -32000, "application/json or text/event-stream"),
        ("GET", None, [AS_JSON], 406, -32000, "text/event-stream"),
        ("POST", b"x" * (LARGE + 1), [], 413, -32000, str(LARGE)),
        ("POST", PING, ["Content-Type: text/plain"], 415, -32000, "application/json"),
        ("POST", PING, ["Content-Type: "], 415, -32000, "application/json"),
        ("GET", None, ["Last-Event-ID: x"], 400, -32000, "Last-Event-ID"),
        ("GET", None, ["Last-Event-ID: 0-5"], 400, -32000, "Last-Event-ID"),
        ("GET", None, ["Last-Event-ID: 9-1"], 400, -32000, "Last-Event-ID"),
    ],
)
def test_refusals_are_json_rpc_errors_without_an_id(
    client: StreamableHttpClient,
    method: str,
    body: bytes | None,
    headers: list[str],
    status: int,
    code: int,
    text: str,
) -> None:
    """400, 404, 406, 413 and 415; the session goes on."""
    with client.send(method, body, *headers) as answer:
        assert (answer.status, answer.content_type) == (status, "application/json")
        assert (answer.json["jsonrpc"], answer.json["id"]) == ("2.0", None)
        assert answer.json["error"]["code"] == code
        assert text in answer.json["error"]["message"]
    assert client.call("ping").status == 200


VERSIONS = ["2024-01-01", "1.0", "x" * 200, "2025-13-45", "2026-07-28", "2026-07-29"]
NOTICE = b'{"jsonrpc":"2.0","method":"notifications/x"}'


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("method", "body"), [("POST", PING), ("POST", NOTICE), ("GET", None), ("DELETE", None)]
)
def test_unsupported_version_is_refused_with_400(
    client: StreamableHttpClient, method: str, body: bytes | None, version: str
) -> None:
    """The error lists the supported versions; a version without sessions is refused too."""
    with client.send(method, body, f"MCP-Protocol-Version: {version}") as answer:
        assert answer.status == 400
        error = answer.json["error"]
    assert error["code"] == -32022
    assert error["data"] == {"supported": SUPPORTED, "requested": version[:40]}


@pytest.mark.parametrize("version", ["", *SUPPORTED])
def test_every_supported_version_is_accepted(client: StreamableHttpClient, version: str) -> None:
    """The header may name any supported version in any session, or be missing."""
    header = f"MCP-Protocol-Version: {version}"
    with client.send("POST", PING, header) as answer:
        assert answer.status == 200


def test_stateless_request_ignores_its_session_id(bridge: Bridge) -> None:
    """A complete request of 2026-07-28 is treated as one even with a session's id."""
    client = bridge.open_streamable_http()
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}
    message = request("ping", _meta={**meta, "io.modelcontextprotocol/clientCapabilities": {}})
    headers = ["MCP-Protocol-Version: 2026-07-28", "Mcp-Method: ping"]
    with client.send("POST", message, *headers) as answer:
        assert (answer.status, answer.json["error"]["code"]) == (404, -32601)
    assert client.call("ping").status == 200


@pytest.mark.parametrize("version", ["2025-13-45", "2027-01-01"])
@pytest.mark.parametrize("body", [PING, NOTICE])
def test_unknown_version_without_a_session_is_refused(
    bridge: Bridge, body: bytes, version: str
) -> None:
    """The answer is 400 with -32022, whatever the message is."""
    header = f"MCP-Protocol-Version: {version}"
    with bridge.new_client().send("POST", body, header) as answer:
        assert (answer.status, answer.json["error"]["code"]) == (400, -32022)
        assert answer.json["error"]["data"]["requested"] == version


@pytest.mark.parametrize("batch", [False, True])
def test_request_with_id_null_is_refused(bridge: Bridge, batch: bool) -> None:
    """The answer is 400 with -32600, and nothing reaches the backend."""
    client = bridge.open_streamable_http(version="2025-03-26")
    message = b'{"jsonrpc":"2.0","id":null,"method":"echo"}'
    body = b"[%b,%b]" % (PING, message) if batch else message
    with client.send("POST", body) as answer:
        assert (answer.status, answer.json["error"]["code"]) == (400, -32600)
        assert "id" in answer.json["error"]["message"]
    with client.send("POST", b'{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"x"}}') as it:
        assert it.status == 202, "an error about an unreadable message has no id"


@pytest.mark.parametrize(
    "accept", ["application/json", "application/*", "*/*", "", "text/event-stream;q=0, */*"]
)
def test_client_that_accepts_json_gets_json(client: StreamableHttpClient, accept: str) -> None:
    """Only `text/event-stream` alone, or what excludes JSON, gets events."""
    with client.call("ping", f"Accept: {accept}") as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")


@pytest.mark.parametrize("accept", [AS_EVENTS, "Accept: application/json;q=0, */*;q=0.1"])
def test_client_that_accepts_only_events_gets_events(
    client: StreamableHttpClient, accept: str
) -> None:
    with client.call("ping", accept) as answer:
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        assert answer.read_final_message()["result"] == {"was": "ping"}


def assert_answered_with_json(client: StreamableHttpClient) -> None:
    """Check that the progress of a call that accepts only JSON goes to the GET stream."""
    call = client.call(
        "tools/call", AS_JSON, _meta={"progressToken": 1}, send=[progress(1, 1)], gate="a"
    )
    stream = client.open_get_stream()
    assert stream.read_message()["method"] == "notifications/progress"
    client.notify("open", gate="a")
    assert (call.content_type, call.json["result"]) == ("application/json", {"was": "tools/call"})


def test_progress_goes_to_the_get_stream_of_a_client_that_accepts_only_json(
    client: StreamableHttpClient,
) -> None:
    """Questions too; the answer is JSON, however long it takes."""
    assert_answered_with_json(client)


@pytest.mark.parametrize("accept", ["text/html", "*/*;q=0", "application/json;q=0"])
def test_notifications_and_responses_need_no_accept(
    client: StreamableHttpClient, accept: str
) -> None:
    """They have no answer."""
    for body in (NOTICE, b'{"jsonrpc":"2.0","id":"x","result":{}}'):
        with client.send("POST", body, f"Accept: {accept}") as answer:
            assert answer.status == 202


def test_initialize_without_an_acceptable_type_opens_no_session(bridge: Bridge) -> None:
    """It is refused before a backend starts."""
    before = bridge.log.count("' opened")
    with bridge.new_client().call("initialize", "Accept: text/html") as answer:
        assert answer.status == 406
    assert bridge.log.count("' opened") == before


def test_trailing_slash_is_served(bridge: Bridge) -> None:
    """`/mcp/` is served like `/mcp`, on the fast path and through twisted.web."""
    client = bridge.new_client()
    client.path += "/"
    client.initialize()
    assert client.call("ping").status == 200
    assert client.call("ping", "Accept: */*").status == 200
    stream = client.open_get_stream()
    assert stream.status == 200
    with client.send("DELETE") as answer:
        assert answer.status == 200


def test_incomplete_stateless_request_opens_no_session(bridge: Bridge) -> None:
    """A request of 2026-07-28 without its `_meta` is refused before a backend starts."""
    before = bridge.log.count("' opened")
    header = "MCP-Protocol-Version: 2026-07-28"
    with bridge.new_client().send("POST", request("server/discover"), header) as answer:
        assert (answer.status, answer.json["error"]["code"]) == (400, -32602)
    assert bridge.log.count("' opened") == before


def test_request_id_in_flight_is_refused(client: StreamableHttpClient) -> None:
    """The answer is 400, and the first request goes on."""
    first = client.send("POST", request("slow", 5, gate="a"))
    wait_until(lambda: client.send("POST", request("twin", 5)).status == 400)
    with client.send("POST", request("twin", 5)) as answer:
        assert answer.json["id"] is None, "an error with the id would end the first request"
        assert "5" in answer.json["error"]["message"]
        assert answer.json["error"]["data"] == {"requestId": 5}
    client.notify("open", gate="a")
    assert first.read_final_message() == {"jsonrpc": "2.0", "id": 5, "result": {"was": "slow"}}
    assert client.send("POST", request("again", 6)).status == 200


def test_foreign_origin_is_refused_with_403(client: StreamableHttpClient) -> None:
    """The check comes before any other."""
    for method, body in (("POST", PING), ("GET", None), ("DELETE", None)):
        with client.send(method, body, "Origin: http://evil.example") as answer:
            assert (answer.status, answer.json["id"]) == (403, None)
    own = f"Origin: http://127.0.0.1:{client.port}"
    assert client.send("POST", PING, own).status == 200


@pytest.mark.parametrize("method", ["PUT", "PATCH", "HEAD"])
def test_other_methods_are_refused_with_405(bridge: Bridge, method: str) -> None:
    """The `Allow` header names the supported methods."""
    with bridge.connect() as connection:
        answer = connection.request(method, "/mcp", b"x" if method != "HEAD" else None)
        assert answer.status == 405
        assert answer.headers["allow"] == "DELETE, GET, POST"
        assert connection.request("GET", "/nothing").status == 404


def test_second_get_takes_over(client: StreamableHttpClient) -> None:
    """The first stream ends, and the second one gets what follows."""
    first = client.open_get_stream()
    second = client.open_get_stream()
    assert (first.status, second.status) == (200, 200)
    client.notify("notifications/x")
    assert second.read_message()["method"] == "got/list_changed"
    assert first.read_remaining_messages() == []


def test_takeovers_of_the_get_stream_are_bounded(client: StreamableHttpClient) -> None:
    """After `TAKEOVERS` the next GET gets 429 with `Retry-After`, and the stream stays open."""
    for _ in range(TAKEOVERS + 1):
        last = client.open_get_stream()
        assert last.status == 200
    with client.open_get_stream() as refused:
        assert (refused.status, refused.json["error"]["code"]) == (429, -32000)
        assert 1 <= int(refused.headers["retry-after"]) <= TAKEOVER_SECONDS
    client.notify("notifications/x")
    assert last.read_message()["method"] == "got/list_changed"


def test_question_during_several_calls_goes_to_the_newest(client: StreamableHttpClient) -> None:
    """This holds while no GET stream is open."""
    log = {"method": "notifications/message", "params": {"level": "info", "data": "here"}}
    first = client.send("POST", request("slow", 5, send=[log], gate="a"))
    assert first.read_message() == {"jsonrpc": "2.0", **log}
    asked = {"id": "q", "method": "elicitation/create"}
    second = client.send("POST", request("asks", 6, send=[asked], gate="a"))
    assert second.read_message() == {"jsonrpc": "2.0", **asked}
    client.notify("open", gate="a")
    assert first.read_remaining_messages()[-1]["result"] == {"was": "slow"}
    assert second.read_remaining_messages()[-1]["result"] == {"was": "asks"}


def test_session_beyond_max_sessions_is_refused_with_429(bridge: Bridge) -> None:
    """The response is a JSON-RPC error with `Retry-After`."""
    client = bridge.open_streamable_http("/one")
    with bridge.new_client("/one").call("initialize") as answer:
        assert answer.status == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert (answer.json["id"], answer.json["error"]["code"]) == (None, -32000)
        assert "mcp-session-id" not in answer.headers
    assert bridge.get_sse("/one/sse").status == 429
    assert client.delete() == 200
    bridge.wait_for_close(client)
    bridge.open_streamable_http("/one")


def test_backend_that_cannot_start_is_502(bridge: Bridge) -> None:
    with bridge.new_client("/none").call("initialize") as answer:
        assert (answer.status, answer.json["error"]["code"]) == (502, -32603)
        assert "mcp-session-id" not in answer.headers


def test_session_ids_of_the_two_transports_are_separate(
    bridge: Bridge, client: StreamableHttpClient
) -> None:
    """An id of HTTP+SSE is unknown on `/mcp`, and the reverse."""
    stream = bridge.open_sse()
    with client.send("POST", PING, f"Mcp-Session-Id: {stream.session_id}") as answer:
        assert answer.status == 404
    assert client.send("DELETE", None, f"Mcp-Session-Id: {stream.session_id}").status == 404
    assert bridge.request("POST", f"/message?sessionId={client.session_id}", PING).status == 404
    assert client.call("ping").status == 200


def test_session_id_is_unknown_to_other_servers(
    bridge: Bridge, client: StreamableHttpClient
) -> None:
    with bridge.new_client("/json").send("POST", PING, *client.headers) as answer:
        assert answer.status == 404


# Batches.


@pytest.mark.parametrize("base", ["", "/json"])
def test_batch_of_requests_is_answered_on_one_response(bridge: Bridge, base: str) -> None:
    """Every request of the batch is answered (2025-03-26)."""
    client = bridge.open_streamable_http(base, OLD)
    ones = [request("a", 11), request("b", 12), b'{"jsonrpc":"2.0","method":"notifications/x"}']
    with client.send("POST", b"[" + b",".join(ones) + b"]") as answer:
        assert answer.status == 200
        messages = (
            answer.json if "json" in answer.content_type else answer.read_remaining_messages()
        )
    assert {each["id"]: each["result"]["was"] for each in messages} == {11: "a", 12: "b"}
    got = client.open_get_stream().read_message()
    assert (got["method"], got["params"]["method"]) == ("got/list_changed", "notifications/x")


def test_batch_of_one_request_is_answered_by_a_batch(bridge: Bridge) -> None:
    """JSON-RPC 2.0, section 6: the answer to an array is an array."""
    client = bridge.open_streamable_http("", OLD)
    with json_answer(lambda: client.send("POST", b"[" + PING + b"]")) as answer:
        assert answer.json == [{"jsonrpc": "2.0", "id": 99, "result": {"was": "ping"}}]


def test_batch_of_notifications_or_responses_is_accepted_with_202(bridge: Bridge) -> None:
    """A batch of 2025-03-26 may consist of either."""
    client = bridge.open_streamable_http("", OLD)
    client.post([{"jsonrpc": "2.0", "method": "notifications/x"}] * 2)
    client.post([{"jsonrpc": "2.0", "id": 1, "result": {}}] * 2)
    stream = client.open_get_stream()
    methods = [stream.read_message()["params"].get("method") for _ in range(4)]
    assert methods == ["notifications/x", "notifications/x", None, None]


@pytest.mark.parametrize(
    "body", [b"[]", b"[7]", b"[{}]", b"[" + PING + b"," + request("initialize", 100) + b"]"]
)
def test_invalid_batches_are_refused_with_400(bridge: Bridge, body: bytes) -> None:
    """A batch may not be empty, hold other values, or contain `initialize`."""
    client = bridge.open_streamable_http("", OLD)
    with client.send("POST", body) as answer:
        assert (answer.status, answer.json["error"]["code"]) == (400, -32600)
    assert client.send("POST", PING).status == 200


# Which message on which stream.


def test_each_message_goes_to_exactly_one_stream(client: StreamableHttpClient) -> None:
    """Progress goes to the stream of its request, `list_changed` to the GET stream."""
    stream = client.open_get_stream()
    first, second = (slow_call(client, gate, 1, 1) for gate in "ab")
    assert [each.read_message()["params"]["progressToken"] for each in (first, second)] == [
        "a",
        "b",
    ]
    changed = notification("notifications/tools/list_changed")
    mixed = [
        progress("b", 8),
        changed,
        progress("a", 9),
        notification("notifications/message", data=1),
    ]
    client.notify("do", send=mixed)
    assert stream.read_message()["method"] == "notifications/tools/list_changed"
    # It might belong to either.
    assert stream.read_message()["method"] == "notifications/message"
    for each, gate, expected in ((second, "b", [8, 1]), (first, "a", [9, 1])):
        client.notify("open", gate=gate)
        *before, last = each.read_remaining_messages()
        assert numbers(before) == expected
        assert {one["params"]["progressToken"] for one in before} == {gate}
        assert last["result"] == {"was": "tools/call"}
    client.notify("do", send=[notification("the end/list_changed")])
    assert stream.read_message()["method"] == "the end/list_changed"


def test_server_request_during_a_call_goes_to_its_stream(client: StreamableHttpClient) -> None:
    """The backend gets the client's answer."""
    stream = client.open_get_stream()
    ask = {"id": "s-1", "method": "sampling/createMessage", "params": {}}
    call = client.call("tools/call", send=[ask], gate="a")
    assert call.read_message()["id"] == "s-1"
    client.post({"jsonrpc": "2.0", "id": "s-1", "result": {"role": "assistant"}})
    got = stream.read_message()
    assert (got["params"]["id"], got["params"]["result"]) == ("s-1", {"role": "assistant"})
    client.notify("open", gate="a")
    assert call.read_message()["result"] == {"was": "tools/call"}


def test_messages_wait_for_the_get_stream(client: StreamableHttpClient) -> None:
    """They are delivered when it opens, in order and once."""
    changed = [notification(f"{number}/list_changed") for number in range(5)]
    client.call("first", send=[*changed, {"id": 1, "method": "roots/list"}]).read_final_message()
    # The backend's request goes to the stream of the only call.
    stream = client.open_get_stream()
    assert [stream.read_message()["method"] for _ in range(5)] == [
        each["method"] for each in changed
    ]
    stream.close()
    client.notify("do", send=[notification("later/list_changed")])
    wait_until(lambda: client.open_get_stream().status == 200)
    assert client.call("ping").status == 200


# Resumption.


def test_resumption_delivers_exactly_the_missed_events(client: StreamableHttpClient) -> None:
    """With Last-Event-ID the client gets each missed event once, in order."""
    call = slow_call(client, "a", 3, 4)
    prime = call.read_event()
    assert (prime.data, prime.retry) == (b"", "1000")
    seen = [call.read_event() for _ in range(2)]
    call.reset()
    client.notify("open", gate="a")
    # The answer to this comes after all messages of the call.
    assert client.call("ping").status == 200
    resumed = client.open_get_stream(seen[-1].event_id)
    missed = resumed.read_remaining_events()
    messages = [json.loads(event.data) for event in missed]
    assert numbers(messages[:-1]) == [2, 3, 4, 5, 6]
    assert messages[-1]["result"] == {"was": "tools/call"}
    idents = [event.event_id for event in (*seen, *missed)]
    assert len(set(idents)) == len(idents) == 8
    assert len({ident.partition("-")[0] for ident in (prime.event_id, *idents)}) == 1
    # A second resumption, from the beginning, replays everything again.
    assert client.open_get_stream(prime.event_id).read_remaining_events() == [*seen, *missed]


def test_resumed_stream_takes_over_a_running_call(client: StreamableHttpClient) -> None:
    """It does so even before the bridge knows that the old connection is gone."""
    call = slow_call(client, "a", 3, 2)
    # All three are read first: a backend's lines may arrive one by one.
    _prime, first, *_rest = [call.read_event() for _ in range(4)]
    resumed = client.open_get_stream(first.event_id)
    assert [resumed.read_message()["params"]["progress"] for _ in range(2)] == [1, 2]
    # The old connection is over, without the answer.
    assert call.read_remaining_messages() == []
    client.notify("open", gate="a")
    *rest, last = resumed.read_remaining_messages()
    assert numbers(rest) == [3, 4]
    assert last["result"] == {"was": "tools/call"}


def test_silent_call_can_be_resumed(client: StreamableHttpClient) -> None:
    """After a while it becomes a stream with an event id."""
    call = client.call("tools/call", gate="a")
    prime = call.read_event()
    assert (prime.data, bool(prime.event_id)) == (b"", True)
    call.reset()
    client.notify("open", gate="a")
    assert client.open_get_stream(prime.event_id).read_final_message()["result"] == {
        "was": "tools/call"
    }


def test_get_stream_can_be_resumed(client: StreamableHttpClient) -> None:
    """Missed and new messages are delivered in order, each once."""
    client.notify("do", send=[notification(f"{number}/list_changed") for number in range(3)])
    stream = client.open_get_stream()
    prime, *events = (stream.read_event() for _ in range(3))
    assert prime.data == b""
    resumed = client.open_get_stream(events[0].event_id)
    assert resumed.read_message()["method"] == "1/list_changed"
    assert resumed.read_message()["method"] == "2/list_changed"
    resumed.reset()
    client.notify("do", send=[notification("3/list_changed")])
    again = client.open_get_stream(events[-1].event_id)
    assert [again.read_message()["method"][0] for _ in range(2)] == ["2", "3"]


def test_resumption_after_a_discarded_event_is_refused(client: StreamableHttpClient) -> None:
    """The answer is 400 with the reason."""
    call = slow_call(client, "a", 1100, 0)
    first = [call.read_event() for _ in range(2)][-1]
    client.notify("open", gate="a")
    last = call.read_remaining_events()[-1]
    with client.open_get_stream(first.event_id) as resumed:
        assert (resumed.status, resumed.json["error"]["code"]) == (400, -32000)
        assert "Last-Event-ID" in resumed.json["error"]["message"]
    assert client.open_get_stream(
        f"{last.event_id.partition('-')[0]}-1000"
    ).read_remaining_messages()


@pytest.mark.parametrize("version", ["2025-03-26", "2025-06-18"])
def test_clients_before_2025_11_25_get_no_priming_event(bridge: Bridge, version: str) -> None:
    """The id of the first event still serves for resumption."""
    client = bridge.open_streamable_http("", version)
    call = slow_call(client, "a", 2, 1)
    first = call.read_event()
    assert (json.loads(first.data)["params"]["progress"], first.retry) == (0, "")
    call.reset()
    client.notify("open", gate="a")
    *rest, last = client.open_get_stream(first.event_id).read_remaining_messages()
    assert numbers(rest) == [1, 2]
    assert last["result"] == {"was": "tools/call"}


def test_disconnect_does_not_cancel_the_call(client: StreamableHttpClient) -> None:
    """The backend is not notified, and the call goes on."""
    stream = client.open_get_stream()
    call = client.call("tools/call", gate="a", then=[notification("after/list_changed")])
    client.call("ping").read_final_message()
    call.reset()
    client.notify("open", gate="a")
    assert stream.read_message()["method"] == "after/list_changed"


@pytest.mark.parametrize("number", [0, 1])
def test_cancelled_notification_reaches_the_backend(
    client: StreamableHttpClient, number: int
) -> None:
    """It has the right id, and the stream of the request ends."""
    stream = client.open_get_stream()
    other = slow_call(client, "b", 1, 0)
    send = [*[progress("x", 0)] * number, notification("began/list_changed")]
    params = {"_meta": {"progressToken": "x"}, "send": send, "gate": "a"}
    call = client.send("POST", request("tools/call", "x-1", **params))
    other.read_message()
    assert stream.read_message()["method"] == "began/list_changed"
    client.notify("notifications/cancelled", requestId="x-1")
    got = stream.read_message()["params"]
    assert (got["method"], got["params"]) == ("notifications/cancelled", {"requestId": "x-1"})
    if number:
        last = [call.read_event() for _ in range(2)][-1]
        assert call.read_remaining_events() == []
        # A client that resumes gets 204, and does not come again.
        assert client.open_get_stream(last.event_id).status == 204
    elif "event-stream" in call.content_type:
        # After a few seconds the response is a stream, here without an event.
        assert call.read_remaining_events() == []
    else:
        assert (call.status, call.body) == (202, b"")
    client.notify("open", gate="b")
    assert other.read_message()["result"] == {"was": "tools/call"}
    # A late response is dropped.
    client.notify("open", gate="a")
    client.notify("do", send=[notification("the end/list_changed")])
    assert stream.read_message()["method"] == "the end/list_changed"


# JSON alone.


def test_json_response_setting_answers_with_json_only(bridge: Bridge) -> None:
    """However long the response takes, and also after notifications."""
    client = bridge.open_streamable_http("/json")
    with client.call("ping", AS_JSON) as answer:
        assert (answer.status, answer.content_type) == (200, "application/json")
    assert_answered_with_json(client)


def test_cancelled_request_with_json_response_has_no_answer(bridge: Bridge) -> None:
    """It gets neither an invented answer nor events."""
    client = bridge.open_streamable_http("/json")
    call = client.send("POST", request("tools/call", 7, gate="a"), AS_JSON)
    wait_until(lambda: client.send("POST", request("x", 7), AS_JSON).status == 400)
    client.notify("notifications/cancelled", requestId=7)
    assert (call.status, call.body) == (202, b"")


# Keep-alive.


def test_open_streams_get_keepalive_comments(bridge: Bridge) -> None:
    """Other events on the stream do not suppress them."""
    client = bridge.open_streamable_http("/kept")
    stream, call = client.open_get_stream(), slow_call(client, "a", 1, 0)
    for each in (stream, call):
        each.read_event()
        for _ in range(3):
            each.read_until(b": keepalive\n\n")
    client.notify("open", gate="a")
    client.notify("do", send=[notification("x/list_changed")])
    # More comments may have come meanwhile.
    stream.read_until(b"x/list_changed")


# The end.


def test_delete_ends_the_session_at_once(client: StreamableHttpClient, bridge: Bridge) -> None:
    """The streams end, the process tree ends, and the id is unknown."""
    stream = client.open_get_stream()
    assert stream.read_event().data == b""
    call = slow_call(client, "a", 1, 0)
    call.read_message()
    assert client.delete() == 200
    [error] = call.read_remaining_messages()
    assert error["error"]["code"] == -32000
    assert "the client ended it" in error["error"]["message"]
    assert stream.read_remaining_messages() == []
    for method, body in (("POST", PING), ("GET", None), ("DELETE", None)):
        assert client.send(method, body).status == 404
    bridge.wait_for_close(client)
    bridge.wait_until_empty()


def test_delete_does_not_wait_for_the_backend() -> None:
    """It is answered even if the backend takes for ever to end."""
    script = (
        "trap '' TERM; read line;"
        ' echo \'{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25"}}\';'
        " read line; while :; do sleep 0.1; done"
    )
    options = ("--stop-grace", NEVER, "--kill-grace", NEVER)
    with serving(*options, command=["sh", "-c", script]) as bridge:
        client = bridge.open_streamable_http()
        assert client.delete() == 200
        left = bridge.marked_processes()
        assert left
        for each in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)
        bridge.wait_for_close(client)
        bridge.wait_until_empty()


@pytest.mark.parametrize("base", ["", "/told", "/json"])
def test_exit_of_the_backend_fails_open_requests(bridge: Bridge, base: str) -> None:
    """The error has the exit status, and stderr only if the setting allows it."""
    client = bridge.open_streamable_http(base)
    silent = client.call("tools/call", gate="never")
    loud = slow_call(client, "for ever", 1, 0)
    stream = client.open_get_stream()
    if base != "/json":
        loud.read_message()
        assert stream.read_event().data == b""
    client.notify("do", stderr="it hurts", exit=42)
    for each in (silent, loud):
        error = each.read_final_message()["error"]
        assert error["code"] == -32000
        assert "42" in error["message"]
        assert error.get("data") == ({"stderr": ["it hurts"]} if base == "/told" else None)
    assert (silent.content_type == "application/json") or base != "/json"
    assert not [each for each in stream.read_remaining_messages() if "id" in each]
    assert client.call("ping").status == 404
    bridge.wait_for_close(client)


def test_failed_initialize_opens_no_session(bridge: Bridge) -> None:
    """The backend's error is passed on."""
    client = bridge.new_client()
    with client.call("initialize", exit=3) as answer:
        assert answer.status == 200
        assert "mcp-session-id" not in answer.headers, "no session was opened"
        assert "3" in answer.read_final_message()["error"]["message"]
    bridge.wait_for_log(" closed after ", "exit status 3")


def test_client_that_leaves_before_its_session_id_leaves_no_session() -> None:
    """Its process is ended if it does not answer within `start_timeout`."""
    command, *args = backend("script")
    server = {"command": command, "args": args, "base_uri": "", "start_timeout": 2}
    with serving(config={"mcpServers": {"slow": server}}) as bridge:
        call = bridge.new_client().call("initialize", gate="never")
        wait_until(lambda: "' opened" in bridge.log)
        call.reset()
        bridge.wait_for_log(" closed after ", "it did not start in time")
        bridge.wait_until_empty()


def test_idle_sessions_end_after_idle_timeout() -> None:
    """30 abandoned sessions leave nothing; one with an open stream stays."""
    with serving(*IDLE, command=backend("script")) as bridge:
        kept = bridge.open_streamable_http()
        stream = kept.open_get_stream()
        assert stream.read_event().data == b""
        abandoned = []
        for number in range(30):
            client = bridge.open_streamable_http()
            abandoned.append(client)
            # Some leave a stream, some a call; a slow machine has ended them already.
            if number % 3 == 1:
                assert client.open_get_stream().status in (200, 404)
            elif number % 3 == 2:
                assert slow_call(client, "never", 1, 0).status in (200, 404)
            client.disconnect()
        wait_until(lambda: bridge.log.count(" closed after ") == 30)
        for client in abandoned:
            assert "idle for 4 s" in bridge.wait_for_close(client)
        wait_until(lambda: len(bridge.marked_processes()) == 1)
        assert kept.call("ping").status == 200
        assert abandoned[0].call("ping").status == 404
        kept.disconnect()
        bridge.wait_for_close(kept)
        bridge.wait_until_empty()


def test_output_of_a_backend_does_not_keep_its_session() -> None:
    """However much it writes, the session ends when its client stays away."""
    with serving(*IDLE, command=backend("script")) as bridge:
        client = bridge.open_streamable_http()
        client.notify("do", flood=10**12, line=200, note="/dev/null")
        client.disconnect()
        assert "idle for 4 s" in bridge.wait_for_close(client)
        bridge.wait_until_empty()


def test_idle_timeout_0_keeps_idle_sessions() -> None:
    with serving("--idle-timeout", "0", command=backend("script")) as bridge:
        client = bridge.open_streamable_http()
        client.disconnect()
        assert not eventually(lambda: " closed after " in bridge.log, 0.5)
        assert client.call("ping").status == 200


# A client that does not read.


def flood(client: StreamableHttpClient, size: int, line: int, tmp_path: Path) -> Response:
    """Open a GET stream without reading it, and let the backend write `size` bytes to it."""
    stream = client.open_get_stream(receive_buffer=SMALL)
    assert stream.read_event().data == b""
    client.notify("do", flood=size, line=line, note=str(tmp_path / "taken"))
    return stream


@pytest.mark.slow
def test_client_that_does_not_read_costs_bounded_memory(tmp_path: Path) -> None:
    """100 MB offered grow the bridge by less than 2 MB; other sessions are not affected."""
    size = 100_000_000
    options = ("--peer-timeout", NEVER)
    with serving(*options, command=backend("script")) as bridge:
        warm = bridge.open_streamable_http()
        flood(warm, size, 200, tmp_path)
        wait_until_stuck(tmp_path)
        assert warm.delete() == 200
        bridge.wait_for_close(warm)
        (tmp_path / "taken").unlink()
        client, other = bridge.open_streamable_http(), bridge.open_streamable_http()
        before = bridge.rss()
        stream = flood(client, size, 200, tmp_path)
        assert wait_until_stuck(tmp_path) < size / 10
        assert bridge.rss() - before < 2_000_000
        assert other.call("ping").status == 200
        # Its backend waits, and goes on when the client reads.
        stuck = taken(tmp_path)
        for _ in range(20_000):
            stream.read_message()
        wait_until(lambda: taken(tmp_path) > stuck)


def test_stream_whose_client_reads_nothing_is_closed_after_peer_timeout(tmp_path: Path) -> None:
    """The session goes on, and may open another stream."""
    with serving("--peer-timeout", "0.8", command=backend("script")) as bridge:
        client = bridge.open_streamable_http()
        stream = flood(client, 12_000_000, 1000, tmp_path)
        # Nobody reads, so the backend goes on only once the connection is gone.
        wait_until(lambda: taken(tmp_path) > 11_900_000)
        assert " closed after " not in bridge.log
        assert client.call("ping").status == 200
        stream.close()
        again = client.open_get_stream()
        assert again.read_message()["method"] == "flood/list_changed"
