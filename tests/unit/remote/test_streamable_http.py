"""Sessions at servers of Streamable HTTP, and requests of 2026-07-28."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from twisted.internet import error as network

from mcpbridge.errors import BackendBusy, UnknownSession
from mcpbridge.mcp.inflight import MAX_IN_FLIGHT
from mcpbridge.remote.calls import (
    CANCELLED_SECONDS,
    LINGER_SECONDS,
    MAX_RETRY_SECONDS,
    MIN_RETRY_SECONDS,
    RESUME_TRIES,
    RESUMED_SECONDS,
    retry_seconds,
)
from mcpbridge.remote.deliveries import ACCEPT_SECONDS
from mcpbridge.remote.listening import LISTEN_TRIES, LONGEST_PAUSE_SECONDS
from mcpbridge.remote.outbox import REQUESTS_AT_ONCE
from mcpbridge.remote.tool_headers import MAX_PAGES
from tests.unit.remote.fake_remote import (
    INITIALIZE,
    INITIALIZED,
    Remote,
    Wire,
    modern,
    request,
    result,
)


@pytest.fixture
def remote() -> Iterator[Remote]:
    remote = Remote(headers={"Authorization": "Bearer secret"})
    yield remote
    remote.finish()


def error(lines: list[bytes], ident: int) -> str:
    """Return the text of the only line, an error that answers a request."""
    [line] = lines
    answer = json.loads(line)
    assert answer["id"] == ident
    return str(answer["error"]["message"])


# A session.


def test_initialize_opens_a_session(remote: Remote) -> None:
    remote.send(INITIALIZE)
    [sent] = remote.sent
    assert sent[:2] == ("POST", "/mcp?key=secret")
    assert sent.body == INITIALIZE
    assert sent.headers["host"] == "remote.test"
    assert sent.headers["accept"] == "application/json, text/event-stream"
    assert sent.headers["accept-encoding"] == "identity"
    assert sent.headers["authorization"] == "Bearer secret"
    assert "mcp-session-id" not in sent.headers
    answer = result(1, '{"protocolVersion":"2025-06-18"}')
    remote.wires[0].answer(answer, Mcp_Session_Id="the-session")
    assert remote.receiver.lines == [answer]

    remote.send(request(2))
    headers = remote.sent[-1].headers
    assert headers["mcp-session-id"] == "the-session"
    assert headers["mcp-protocol-version"] == "2025-06-18"
    assert len(remote.wires) == 1, "the connection is used again"


def test_what_follows_initialize_waits_for_the_session(remote: Remote) -> None:
    remote.send(INITIALIZE, INITIALIZED, request(2), request(3))
    assert [each.body for each in remote.sent] == [INITIALIZE]
    remote.wires[0].answer(result(1), Mcp_Session_Id="s")
    assert [each.body for each in remote.sent] == [INITIALIZE, INITIALIZED]
    remote.wire_of(INITIALIZED).respond(202)
    bodies = {each.body for each in remote.sent}
    assert {request(2), request(3)} <= bodies


def test_several_requests_run_at_once_and_answers_come_in_any_order(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2), request(3))
    remote.wire_of(request(3)).answer(result(3))
    remote.wire_of(request(2)).answer(result(2))
    assert remote.receiver.lines == [result(3), result(2)]


def test_events_of_a_stream_pass_in_order(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2))
    wire = remote.wire_of(request(2))
    wire.stream()
    progress = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{}}'
    question = request(7, "sampling/createMessage")
    wire.chunk(b": keepalive\n\n")
    wire.event(progress, name="message", ident="1")
    wire.event(question)
    wire.event(b"not a message")
    wire.event(b"", name="message")
    wire.event(progress, name="other")
    wire.event(b"")
    wire.event(result(2))
    wire.end_stream()
    assert remote.receiver.lines == [progress, question, result(2)]
    remote.turn()
    assert [each[1] for each in remote.receiver.events] == ["invalid"]
    # The client's answer to the question.
    remote.send(result(7))
    remote.wire_of(result(7)).respond(202)


def test_message_over_several_lines_becomes_one(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2), request(3))
    pretty = b'{\n  "jsonrpc": "2.0",\r\n  "id": 2,\n  "result": {}\n}\n'
    remote.wire_of(request(2)).answer(pretty)
    wire = remote.wire_of(request(3))
    wire.stream()
    wire.chunk(b'data: {"jsonrpc":"2.0",\ndata: "id":3,"result":{}}\n\n')
    assert remote.receiver.lines == [
        b'{   "jsonrpc": "2.0",    "id": 2,   "result": {} }',
        b'{"jsonrpc":"2.0", "id":3,"result":{}}',
    ]


def test_stream_that_goes_on_after_the_answer_is_closed(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2))
    wire = remote.wire_of(request(2))
    wire.stream()
    wire.event(result(2))
    assert wire.is_open
    remote.turn(LINGER_SECONDS)
    assert not wire.is_open


def test_stop_deletes_the_session(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2))
    busy = remote.wire_of(request(2))
    stopped = remote.stop()
    assert not busy.is_open
    [wire] = [each for each in remote.wires if each.sent()[-1].method == "DELETE"]
    assert wire.sent()[-1].headers["mcp-session-id"] == "s1"
    assert not stopped
    wire.respond(200)
    remote.turn()
    assert stopped == [None]
    assert remote.backend.exit_status == "remote: session closed"
    with pytest.raises(UnknownSession):
        remote.backend.send(request(3))
    assert remote.stop() == [None], "a second stop is over, too"


def test_stop_does_not_wait_for_ever(remote: Remote) -> None:
    remote.initialize()
    stopped = remote.stop()
    remote.turn(remote.settings.stop_grace - 0.01)
    assert not stopped
    remote.turn(0.01)
    remote.turn()
    assert stopped == [None]


def test_batch_is_split_unless_the_revision_has_batches() -> None:
    batch = b"[%b,%b]" % (request(2), request(3))
    remote = Remote()
    remote.initialize("2025-06-18")
    remote.send(batch)
    assert {request(2), request(3)} <= {each.body for each in remote.sent}
    remote.finish()

    remote = Remote()
    remote.initialize("2025-03-26")
    remote.send(batch)
    both = b"[%b,%b]" % (result(2), result(3))
    remote.wire_of(batch).answer(both)
    assert remote.receiver.lines == [both]
    remote.finish()


def test_paused_backend_reads_nothing(remote: Remote) -> None:
    remote.initialize()
    listening = remote.listen()
    remote.backend.pause()
    remote.send(request(2))
    wire = remote.wire_of(request(2))
    wire.stream()
    assert [listening.paused, wire.paused] == [True, True]
    remote.backend.resume()
    assert [listening.paused, wire.paused] == [False, False]


def test_answer_to_another_request_is_dropped(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2), request(3))
    remote.wire_of(request(2)).answer(result(3))
    remote.turn()
    assert "other than the answer" in error(remote.receiver.lines, 2)
    remote.receiver.lines.clear()
    remote.wire_of(request(3)).answer(b'{"jsonrpc":"2.0","id":"3","result":{}}')
    assert len(remote.receiver.lines) == 1, "a number that comes back as text is the same id"


def test_full_queue_refuses_messages_and_stores_nothing() -> None:
    remote = Remote(max_waiting_messages=2)
    remote.send(INITIALIZE, request(2), request(3))
    with pytest.raises(BackendBusy):
        remote.backend.send(request(4))
    with pytest.raises(BackendBusy):
        remote.backend.send(request(4) + b"\n" + request(5))
    remote.wires[0].answer(result(1))
    assert len(remote.sent) == 3
    remote.finish()


# The stream for what belongs to no request.


def test_get_stream_is_opened_once_initialized(remote: Remote) -> None:
    remote.initialize()
    wire = remote.listen()
    assert wire.sent()[-1].headers["accept"] == "text/event-stream"
    assert wire.sent()[-1].headers["mcp-session-id"] == "s1"
    changed = b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}'
    wire.event(changed)
    wire.event(b"[]")
    wire.event(result(9))
    assert remote.receiver.lines == [changed]


def test_server_without_a_session_is_not_listened_to(remote: Remote) -> None:
    remote.initialize(session="")
    assert all(each.method == "POST" for each in remote.sent)


@pytest.mark.parametrize("status", [405, 404, 400, 403])
def test_server_without_a_get_stream_is_served(remote: Remote, status: int) -> None:
    remote.initialize()
    [wire] = [each for each in remote.wires if each.sent()[-1].method == "GET"]
    wire.respond(status)
    remote.turn(100)
    assert sum(each.method == "GET" for each in remote.sent) == 1
    assert not remote.receiver.death


def test_broken_get_stream_is_opened_at_once_and_resumed(remote: Remote) -> None:
    remote.initialize()
    wire = remote.listen()
    wire.event(b'{"jsonrpc":"2.0","method":"a"}', ident="e7")
    wire.break_off()
    remote.turn()
    again = remote.wires[-1]
    assert again.sent()[-1].headers["last-event-id"] == "e7"
    again.respond(404)
    remote.turn()
    assert "ended the session" in remote.receiver.death
    assert remote.backend.exit_status == "remote: session ended"


def test_death_shows_in_the_get_stream(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2))
    remote.network.refusal = network.ConnectionRefusedError()
    remote.listen().break_off()
    remote.wire_of(request(2)).break_off()
    remote.turn()
    remote.turn()
    assert remote.receiver.death == (
        "the remote server http://remote.test/mcp cannot be reached: connection refused"
    )
    assert remote.backend.exit_status == "remote: connection refused"


def test_stream_that_ends_is_opened_again_after_the_pause_that_the_server_wants(
    remote: Remote,
) -> None:
    remote.initialize()
    wire = remote.listen()
    wire.chunk(b"retry: 3000\nid: a\ndata:\n\n")
    wire.end_stream()
    count = len(remote.sent)
    remote.turn(2.9)
    assert len(remote.sent) == count
    remote.turn(0.2)
    assert remote.sent[-1].headers["last-event-id"] == "a" or len(remote.sent) == count + 1


def test_get_stream_is_given_up_after_many_tries(remote: Remote) -> None:
    remote.initialize()
    for _ in range(LISTEN_TRIES):
        [wire] = [w for w in remote.wires if w.is_open and w.sent()[-1].method == "GET"]
        wire.respond(503, Connection="close")
        remote.turn(2 * LONGEST_PAUSE_SECONDS)
    assert sum(each.method == "GET" for each in remote.sent) == LISTEN_TRIES
    assert [each[:2] for each in remote.receiver.events] == [("misbehaved", "listening")]


# Errors of a session.


@pytest.mark.parametrize("status", [404, 400])
def test_session_that_is_over_at_the_server_ends(remote: Remote, status: int) -> None:
    remote.initialize()
    remote.send(request(2))
    body = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"No valid session ID"}}'
    remote.wire_of(request(2)).respond(status, body, "application/json")
    remote.turn()
    assert "has ended the session" in remote.receiver.death


def test_error_of_json_rpc_answers_its_request(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2))
    body = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32602,"message":"no"}}'
    remote.wire_of(request(2)).respond(400, body, "application/json")
    remote.turn()
    assert remote.receiver.lines == [body.replace(b"null", b"2")]


@pytest.mark.parametrize(
    ("status", "headers", "text"),
    [
        (401, {}, "refused the credentials (HTTP 401 (Unauthorized)); check `headers`"),
        (407, {}, "the proxy wants other credentials"),
        (307, {"Location": "https://evil.test/mcp?key=1"}, "redirect to https://evil.test/mcp,"),
    ],
)
def test_status_that_ends_a_session(
    remote: Remote, status: int, headers: dict[str, str], text: str
) -> None:
    remote.initialize()
    remote.send(request(2))
    remote.wire_of(request(2)).respond(status, b"<html>", "text/html", **headers)
    remote.turn()
    assert text in remote.receiver.death
    assert "secret" not in remote.receiver.death
    assert len({wire.protocol for wire in remote.wires}) == len(remote.wires)


@pytest.mark.parametrize("status", [418, 500, 502, 503, 504])
def test_other_status_fails_one_request(remote: Remote, status: int) -> None:
    remote.initialize()
    remote.send(request(2), request(3))
    remote.wire_of(request(2)).respond(status)
    remote.turn()
    assert f"answered HTTP {status}" in error(remote.receiver.lines, 2)
    assert not remote.receiver.death
    remote.wire_of(request(3)).answer(result(3))
    assert remote.receiver.lines[1:] == [result(3)]


def deleted(remote: Remote) -> list[str]:
    """Stop; return the ids of sessions that the server is told to end."""
    remote.stop()
    return [each.headers["mcp-session-id"] for each in remote.sent if each.method == "DELETE"]


def test_session_that_fails_here_is_ended_at_the_server(remote: Remote) -> None:
    remote.initialize()
    remote.send(result(7))
    remote.wire_of(result(7)).break_off()
    remote.turn()
    assert remote.receiver.death
    assert deleted(remote) == ["s1"]


def test_session_whose_initialize_is_of_no_use_is_ended_at_the_server(remote: Remote) -> None:
    remote.send(INITIALIZE)
    remote.wires[0].stream(Mcp_Session_Id="s1")
    remote.turn(300)
    remote.turn()
    assert remote.receiver.death
    assert deleted(remote) == ["s1"]


def test_session_that_is_over_at_the_server_is_not_ended_again(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2))
    remote.wire_of(request(2)).respond(404)
    remote.turn()
    assert remote.receiver.death
    assert deleted(remote) == []


def test_server_that_cannot_be_reached_is_not_told(remote: Remote) -> None:
    remote.initialize()
    remote.network.refusal = network.ConnectionRefusedError()
    remote.listen().break_off()
    remote.turn()
    assert remote.receiver.death
    assert deleted(remote) == []


def test_wrong_content_type_fails_one_request(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2), request(3))
    remote.wire_of(request(2)).respond(200, b"<html>", "text/html")
    remote.turn()
    assert "content type 'text/html'; check `url`" in error(remote.receiver.lines, 2)
    remote.receiver.lines.clear()
    remote.wire_of(request(3)).respond(200)
    remote.turn()
    assert "no content type" in error(remote.receiver.lines, 3)


def test_answer_may_come_on_the_get_stream(remote: Remote) -> None:
    remote.initialize()
    listening = remote.listen()
    remote.send(request(2))
    remote.wire_of(request(2)).respond(202)
    listening.event(result(2))
    assert remote.receiver.lines == [result(2)]


def test_answer_cannot_come_on_a_stream_that_is_not_there(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2))
    remote.wire_of(request(2)).respond(202)
    [wire] = [each for each in remote.wires if each.sent()[-1].method == "GET"]
    wire.respond(405)
    remote.turn()
    assert "a stream that it does not have" in error(remote.receiver.lines, 2)
    remote.receiver.lines.clear()
    remote.send(request(3))
    remote.wire_of(request(3)).respond(202)
    remote.turn()
    assert "no content type" in error(remote.receiver.lines, 3)


def test_refused_notification_is_logged(remote: Remote) -> None:
    remote.initialize()
    line = b'{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}'
    remote.send(line)
    body = b'{"jsonrpc":"2.0","error":{"code":-32600,"message":"not now"}}'
    remote.wire_of(line).respond(400, body, "application/json")
    remote.turn()
    [(_, fault, what)] = remote.receiver.events
    assert fault == "refused"
    assert "'notifications/roots/list_changed' (HTTP 400 (Bad Request)): not now" in what


def test_notification_that_is_never_accepted_ends_the_session(remote: Remote) -> None:
    remote.initialize()
    remote.send(result(7))
    remote.turn(ACCEPT_SECONDS)
    remote.turn()
    assert "did not accept a client's answer to its request within" in remote.receiver.death


def test_notification_whose_connection_breaks_ends_the_session(remote: Remote) -> None:
    remote.initialize()
    remote.send(result(7))
    remote.wire_of(result(7)).break_off()
    remote.turn()
    assert "connection lost" in remote.receiver.death


def test_invalid_session_id_is_not_used(remote: Remote) -> None:
    remote.send(INITIALIZE)
    remote.wires[0].answer(result(1), Mcp_Session_Id="a b")
    remote.turn()
    assert "invalid characters" in remote.receiver.death


def test_lost_connection_fails_one_request_if_the_server_is_there(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2))
    remote.wire_of(request(2)).break_off()
    remote.turn()
    assert "did not answer: connection lost" in error(remote.receiver.lines, 2)
    assert not remote.receiver.death


def test_lost_connection_ends_the_session_if_the_server_is_gone(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2))
    remote.network.refusal = network.ConnectionRefusedError()
    remote.wire_of(request(2)).break_off()
    remote.turn()
    assert "connection refused" in remote.receiver.death


def test_stream_that_ends_without_the_answer_fails_its_request(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2))
    wire = remote.wire_of(request(2))
    wire.stream()
    wire.end_stream()
    remote.turn()
    assert "ended the stream before the answer" in error(remote.receiver.lines, 2)


def test_lost_initialize_ends_the_session(remote: Remote) -> None:
    remote.send(INITIALIZE)
    remote.wires[0].break_off()
    remote.turn()
    assert "did not answer: connection lost" in remote.receiver.death


# Resumption.


def test_stream_with_ids_is_resumed(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2))
    wire = remote.wire_of(request(2))
    wire.stream()
    wire.chunk(b"id: e1\nretry: 500\ndata:\n\n")
    wire.end_stream()
    remote.turn(0.49)
    gets = [each for each in remote.sent if "last-event-id" in each.headers]
    assert not gets
    remote.turn(0.02)
    [again] = [w for w in remote.wires if "last-event-id" in w.sent()[-1].headers]
    assert again.sent()[-1].headers["last-event-id"] == "e1"
    assert again.sent()[-1].headers["mcp-session-id"] == "s1"
    again.stream()
    again.event(result(2), ident="e2")
    assert remote.receiver.lines == [result(2)]


def test_resumption_has_an_end(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2))
    wire = remote.wire_of(request(2))
    wire.stream()
    wire.chunk(b"id: e1\ndata:\n\n")
    wire.break_off()
    for _ in range(RESUME_TRIES):
        remote.turn(1)
        [again] = [w for w in remote.wires if w.is_open and "last-event-id" in w.sent()[-1].headers]
        again.respond(400, Connection="close")
    remote.turn()
    assert "did not resume the stream: HTTP 400" in error(remote.receiver.lines, 2)


def resumption(remote: Remote) -> Wire:
    """Return the connection on which a stream has been resumed last."""
    return [w for w in remote.wires if w.is_open and "last-event-id" in w.sent()[-1].headers][-1]


@pytest.mark.parametrize("sign", [b": nothing\n\n", b"id: e2\ndata:\n\n"])
def test_stream_that_is_resumed_without_end_is_given_up_in_time(
    remote: Remote, sign: bytes
) -> None:
    remote.initialize()
    remote.send(request(2))
    wire = remote.wire_of(request(2))
    wire.stream()
    wire.chunk(b"id: e1\nretry: 10000\ndata:\n\n")
    wire.end_stream()
    for _ in range(29):
        remote.turn(10)
        again = resumption(remote)
        again.stream()
        again.chunk(sign)
        again.end_stream()
    remote.turn(10)
    remote.turn()
    if sign.startswith(b"id"):
        # Its id is new once: from then on it brings nothing.
        assert not remote.receiver.lines
        remote.turn(10)
        remote.turn()
    assert "has sent nothing for 300 s" in error(remote.receiver.lines, 2)


def test_resumed_stream_that_stays_open_is_alive(remote: Remote) -> None:
    """`RESUMED_SECONDS`"""
    remote.initialize()
    remote.send(request(2))
    wire = remote.wire_of(request(2))
    wire.stream()
    wire.chunk(b"id: e1\ndata:\n\n")
    wire.end_stream()
    remote.turn(1)
    again = resumption(remote)
    again.stream()
    for _ in range(4):
        remote.turn(max(250, RESUMED_SECONDS))
        again.chunk(b": still here\n\n")
    again.event(result(2))
    assert remote.receiver.lines == [result(2)]


def test_id_of_an_event_comes_back_byte_by_byte(remote: Remote) -> None:
    remote.initialize()
    wire = remote.listen()
    wire.chunk("id: é1\ndata: {}\n\n".encode())
    wire.break_off()
    remote.turn()
    assert remote.wires[-1].sent()[-1].headers["last-event-id"].encode("latin-1") == "é1".encode()


def test_pause_before_resumption_is_bounded() -> None:
    assert retry_seconds(None) == 1
    assert retry_seconds(0) == MIN_RETRY_SECONDS
    assert retry_seconds(10**9) == MAX_RETRY_SECONDS


# Time.


def test_request_without_an_answer_fails_and_is_cancelled(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2))
    remote.turn(remote.settings.response_timeout)
    remote.turn()
    assert "has sent nothing for 300 s (response_timeout)" in error(remote.receiver.lines, 2)
    [cancelled] = [each.body for each in remote.sent if b"cancelled" in each.body]
    assert json.loads(cancelled)["params"]["requestId"] == 2


def test_whatever_the_server_sends_prolongs_the_time(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2))
    wire = remote.wire_of(request(2))
    wire.stream()
    for _ in range(3):
        remote.turn(299)
        wire.chunk(b": still here\n\n")
    assert not remote.receiver.lines
    remote.turn(300)
    remote.turn()
    assert "response_timeout" in error(remote.receiver.lines, 2)


def test_initialize_without_an_answer_ends_the_session(remote: Remote) -> None:
    remote.send(INITIALIZE)
    remote.turn(300)
    remote.turn()
    assert "response_timeout" in remote.receiver.death


# 2026-07-28.


def test_modern_request_says_everything_in_its_headers(remote: Remote) -> None:
    remote.send(modern(1, "tools/call", b'"name":"gr\xc3\xbc\xc3\x9fe"'))
    headers = remote.sent[0].headers
    assert headers["mcp-protocol-version"] == "2026-07-28"
    assert headers["mcp-method"] == "tools/call"
    assert headers["mcp-name"] == "=?base64?Z3LDvMOfZQ==?="


def test_cancelling_a_modern_request_closes_its_response(remote: Remote) -> None:
    remote.send(modern(1), modern(2))
    wire = remote.wire_of(modern(1))
    wire.stream()
    remote.send(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}')
    assert not wire.is_open
    assert len(remote.sent) == 2
    remote.wire_of(modern(2)).answer(result(2))
    assert remote.receiver.lines == [result(2)]


def test_subscription_stays_open_without_a_limit_of_time(remote: Remote) -> None:
    remote.send(modern(1, "subscriptions/listen", b'"notifications":{}'))
    remote.wires[0].stream()
    remote.turn(10_000)
    changed = b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}'
    remote.wires[0].event(changed)
    assert remote.receiver.lines == [changed]
    remote.wires[0].event(result(1))
    assert remote.receiver.lines == [changed, result(1)]


def test_broken_modern_stream_is_not_resumed(remote: Remote) -> None:
    remote.send(modern(1))
    remote.wires[0].stream()
    remote.wires[0].event(b'{"jsonrpc":"2.0","method":"notifications/x"}', ident="e1")
    remote.wires[0].break_off()
    remote.turn()
    assert "did not answer" in error(remote.receiver.lines[1:], 1)
    assert not remote.receiver.death


def test_unavailable_server_fails_one_modern_request(remote: Remote) -> None:
    remote.send(modern(1))
    remote.wires[0].respond(503)
    remote.turn()
    assert "HTTP 503" in error(remote.receiver.lines, 1)
    assert not remote.receiver.death


@pytest.mark.parametrize("status", [400, 404, 405, 406])
def test_legacy_server_answers_the_probe_with_an_error(remote: Remote, status: int) -> None:
    remote.send(modern(1, "server/discover"))
    remote.wires[0].respond(status, b"Not here", "text/plain")
    remote.turn()
    assert f"HTTP {status}" in error(remote.receiver.lines, 1)
    assert not remote.receiver.death


def test_session_that_a_probe_has_opened_is_deleted(remote: Remote) -> None:
    remote.send(modern(1, "server/discover"))
    body = b'{"jsonrpc":"2.0","id":"x","error":{"code":-32600,"message":"Missing session ID"}}'
    remote.wires[0].respond(400, body, "application/json", Mcp_Session_Id="stray")
    assert remote.receiver.death == ""
    remote.turn()
    assert "Missing session ID" in error(remote.receiver.lines, 1)
    remote.stop()
    assert remote.sent[-1].method == "DELETE"
    assert remote.sent[-1].headers["mcp-session-id"] == "stray"


LISTED = (
    '{"tools":[{"name":"t","inputSchema":{"properties":'
    '{"region":{"type":"string","x-mcp-header":"Region"}}}}]}'
)
CALL = modern(1, "tools/call", b'"name":"t","arguments":{"region":"us west"}')
MISMATCH = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32020,"message":"Mcp-Param-Region"}}'


def test_headers_of_a_tool_are_known_from_its_list(remote: Remote) -> None:
    remote.send(modern(5))
    remote.wires[0].answer(result(5, LISTED))
    remote.send(CALL)
    assert remote.sent[-1].headers["mcp-param-region"] == "us west"


def test_headers_of_a_tool_are_found_out_when_a_call_is_refused(remote: Remote) -> None:
    remote.send(CALL)
    assert "mcp-param-region" not in remote.sent[-1].headers
    remote.wires[0].respond(400, MISMATCH, "application/json")
    [listing] = [wire for wire in remote.wires if b"tools/list" in wire.sent()[-1].body]
    listing.answer(result(0, LISTED))
    [again] = [wire for wire in remote.wires if wire.sent()[-1].body == CALL]
    assert again.sent()[-1].headers["mcp-param-region"] == "us west"
    again.answer(result(1))
    assert remote.receiver.lines == [result(1)], "nobody sees the list"


def test_call_is_refused_if_the_list_of_tools_does_not_help(remote: Remote) -> None:
    remote.send(CALL)
    remote.wires[0].respond(400, MISMATCH, "application/json")
    pages = 0
    while not remote.receiver.lines:
        pages += 1
        remote.wires[0].answer(result(0, '{"tools":[],"nextCursor":"more"}'))
        remote.turn()
    assert pages == MAX_PAGES
    assert remote.receiver.lines == [MISMATCH]


@pytest.mark.parametrize("status", [400, 500])
def test_call_is_refused_if_the_list_of_tools_is_refused(remote: Remote, status: int) -> None:
    remote.send(CALL)
    remote.wires[0].respond(400, MISMATCH, "application/json")
    remote.wires[0].respond(status)
    remote.turn()
    assert remote.receiver.lines == [MISMATCH]


# Cancellation.


def cancellation(ident: int) -> bytes:
    return b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%d}}' % ident


def test_cancellation_of_a_session_is_posted(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2), request(3), cancellation(2))
    assert remote.wire_of(request(2)).is_open
    remote.wire_of(cancellation(2)).respond(202)
    remote.send(cancellation(9))
    remote.wire_of(cancellation(9)).respond(202)


def test_request_that_waits_is_cancelled_without_the_server(remote: Remote) -> None:
    remote.send(INITIALIZE, request(2), cancellation(2))
    remote.wires[0].answer(result(1), Mcp_Session_Id="s")
    assert [each.body for each in remote.sent] == [INITIALIZE]


def test_late_cancellation_of_a_modern_request_is_for_nobody(remote: Remote) -> None:
    remote.send(modern(1))
    remote.wires[0].answer(result(1))
    remote.send(cancellation(1))
    assert len(remote.sent) == 1


def test_forbidden_request_of_a_session_fails_alone(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2))
    body = b'{"jsonrpc":"2.0","id":2,"error":{"code":-32000,"message":"not yours"}}'
    remote.wire_of(request(2)).respond(403, body, "application/json")
    remote.turn()
    assert remote.receiver.lines == [body]


def test_answer_that_is_an_error_teaches_nothing(remote: Remote) -> None:
    remote.send(INITIALIZE)
    body = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"no"}}'
    remote.wires[0].answer(body)
    assert remote.receiver.lines == [body]
    assert remote.server.transport == "auto"


# The probe, by which the era of the server is found out.

DISCOVER = modern(1, "server/discover")


@pytest.mark.parametrize("status", [408, 425, 429, 502, 503, 504])
def test_probe_that_a_server_cannot_answer_now_says_nothing_of_its_era(status: int) -> None:
    for body in (b"<html>", b'{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"no"}}'):
        remote = Remote()
        remote.send(DISCOVER)
        remote.wires[0].respond(status, body, "application/json")
        remote.turn()
        assert f"answered HTTP {status}" in remote.receiver.death
        assert not remote.receiver.lines
        remote.finish()


def test_lost_probe_says_nothing_of_the_era(remote: Remote) -> None:
    remote.send(DISCOVER)
    remote.wires[0].break_off()
    remote.turn()
    assert "did not answer: connection lost" in remote.receiver.death
    assert not remote.receiver.lines


def test_probe_that_is_forbidden_ends_the_session(remote: Remote) -> None:
    remote.send(DISCOVER)
    body = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"no"}}'
    remote.wires[0].respond(403, body, "application/json")
    remote.turn()
    assert "refused the credentials" in remote.receiver.death


@pytest.mark.parametrize("status", [200, 202, 404, 500])
def test_server_known_to_be_modern_is_taken_for_a_legacy_one_at_the_second_odd_response(
    remote: Remote, status: int
) -> None:
    remote.server.is_modern = True
    remote.send(DISCOVER)
    remote.wires[0].respond(status, b"<html>", "text/html")
    remote.turn()
    assert f"HTTP {status}" in remote.receiver.death
    assert not remote.receiver.lines

    again = Remote()
    again.server.is_modern = remote.server.is_modern
    again.send(DISCOVER)
    again.wires[0].respond(status, b"<html>", "text/html")
    again.turn()
    assert f"HTTP {status}" in error(again.receiver.lines, 1)
    again.finish()


def test_probe_in_use_fails_alone(remote: Remote) -> None:
    remote.send(DISCOVER)
    remote.wires[0].answer(result(1))
    assert remote.server.is_modern
    remote.receiver.lines.clear()
    again = modern(2, "server/discover")
    remote.send(again)
    remote.wire_of(again).respond(503)
    remote.turn()
    assert "HTTP 503" in error(remote.receiver.lines, 2)
    assert not remote.receiver.death


# One request must not end others.


@pytest.mark.parametrize("status", [401, 403, 307, 404, 503])
def test_status_of_one_modern_request_ends_no_other(remote: Remote, status: int) -> None:
    remote.send(modern(1), modern(2))
    remote.wire_of(modern(2)).respond(status, b"<html>", "text/html", Location="/x?key=1")
    remote.turn()
    assert f"HTTP {status}" in error(remote.receiver.lines, 2) or status == 307
    assert "key" not in error(remote.receiver.lines, 2)
    assert not remote.receiver.death
    remote.wire_of(modern(1)).answer(result(1))
    assert remote.receiver.lines[1:] == [result(1)]


def test_request_that_a_gateway_forbids_ends_no_session(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2), result(7))
    remote.wire_of(request(2)).respond(403, b"<html>", "text/html")
    remote.wire_of(result(7)).respond(403, b"<html>", "text/html")
    remote.turn()
    assert "HTTP 403" in error(remote.receiver.lines, 2)
    assert not remote.receiver.death


def test_initialize_that_is_forbidden_ends_the_session(remote: Remote) -> None:
    remote.send(INITIALIZE)
    remote.wires[0].respond(403, b"<html>", "text/html")
    remote.turn()
    assert "refused the credentials" in remote.receiver.death


@pytest.mark.parametrize("line", [modern(2), request(2)])
def test_new_connection_that_fails_ends_no_other_request(remote: Remote, line: bytes) -> None:
    before = modern(1) if line == modern(2) else request(1)
    remote.send(before)
    wire = remote.wire_of(before)
    wire.stream()
    remote.network.refusal = network.ConnectionRefusedError()
    remote.send(line)
    remote.turn()
    assert "cannot be reached: connection refused" in error(remote.receiver.lines, 2)
    assert not remote.receiver.death
    # The server is gone: the last connection says so.
    wire.break_off()
    remote.turn()
    assert "cannot be reached: connection refused" in remote.receiver.death


def test_new_connection_that_fails_is_the_end_if_nothing_else_is_connected(
    remote: Remote,
) -> None:
    remote.network.refusal = network.ConnectionRefusedError()
    remote.send(modern(1))
    remote.turn()
    assert "cannot be reached: connection refused" in remote.receiver.death


def test_get_stream_waits_for_the_requests_of_a_server_that_opens_no_connection(
    remote: Remote,
) -> None:
    remote.initialize()
    listening = remote.listen()
    remote.send(request(2))
    wire = remote.wire_of(request(2))
    wire.stream()
    remote.network.refusal = network.ConnectionRefusedError()
    listening.break_off()
    remote.turn()
    assert not remote.receiver.death
    wire.event(result(2))
    wire.break_off()
    assert remote.receiver.lines == [result(2)]
    remote.turn(MIN_RETRY_SECONDS)
    remote.turn()
    assert "cannot be reached: connection refused" in remote.receiver.death


def test_as_many_requests_run_as_one_process_of_a_modern_server_may_have() -> None:
    remote = Remote(concurrency=REQUESTS_AT_ONCE + 2)
    remote.send(*[modern(each) for each in range(REQUESTS_AT_ONCE + 3)])
    assert len(remote.sent) == REQUESTS_AT_ONCE + 2
    remote.finish()


def test_no_subscription_waits_for_others_to_end() -> None:
    remote = Remote()
    remote.send(*[modern(each, "subscriptions/listen") for each in range(MAX_IN_FLIGHT)])
    assert len(remote.sent) == MAX_IN_FLIGHT
    remote.finish()


# Cookies.


def test_requests_without_a_session_share_no_cookies(remote: Remote) -> None:
    remote.send(modern(1))
    remote.wires[0].answer(result(1), Set_Cookie="session=of-somebody")
    remote.send(modern(2))
    assert "cookie" not in remote.sent[-1].headers
    assert remote.sent[-1].body == modern(2)


def test_cookie_that_is_not_ascii_is_dropped(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2))
    remote.wire_of(request(2)).answer(result(2), Set_Cookie="a=\xe9\r\nSet-Cookie: b=1")
    assert remote.receiver.lines == [result(2)]
    remote.send(request(3))
    assert remote.wire_of(request(3)).sent()[-1].headers["cookie"] == "b=1"


@pytest.mark.parametrize("how", ["stays open", "ends", "breaks", "is resumable"])
def test_cancelled_request_is_not_waited_for_and_gets_no_error(remote: Remote, how: str) -> None:
    remote.initialize()
    remote.send(request(2), cancellation(2))
    remote.wire_of(cancellation(2)).respond(202)
    wire = remote.wire_of(request(2))
    wire.stream()
    if how == "is resumable":
        wire.chunk(b"id: e1\ndata:\n\n")
    if how == "breaks":
        wire.break_off()
    elif how != "stays open":
        wire.end_stream()
    remote.turn(CANCELLED_SECONDS)
    remote.turn(300)
    assert not remote.receiver.lines
    assert how != "stays open" or not wire.is_open
    assert sum(b"cancelled" in each.body for each in remote.sent) == 1
    assert not any("last-event-id" in each.headers for each in remote.sent)


def test_answer_to_a_cancelled_request_may_come_yet(remote: Remote) -> None:
    remote.initialize()
    remote.send(request(2), cancellation(2))
    remote.wire_of(cancellation(2)).respond(202)
    remote.wire_of(request(2)).answer(result(2))
    assert remote.receiver.lines == [result(2)]


@pytest.mark.parametrize("status", [401, 404, 307])
def test_resumption_shows_that_the_session_is_over(remote: Remote, status: int) -> None:
    remote.initialize()
    remote.send(request(2))
    wire = remote.wire_of(request(2))
    wire.stream()
    wire.chunk(b"id: e1\ndata:\n\n")
    wire.end_stream()
    remote.turn(1)
    resumption(remote).respond(status, Location="/x")
    remote.turn()
    assert remote.receiver.death
