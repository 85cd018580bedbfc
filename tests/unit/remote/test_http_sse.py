"""Sessions at servers of HTTP+SSE, and how they are found."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from twisted.internet import error as network

from mcpbridge.remote.http_sse import ENDPOINT_BYTES, ENDPOINT_SECONDS
from tests.unit.remote.fake_remote import (
    INITIALIZE,
    INITIALIZED,
    Remote,
    Wire,
    modern,
    request,
    result,
)

PATH = b"/message?sessionId=1"


@pytest.fixture
def remote() -> Iterator[Remote]:
    remote = Remote("http://remote.test/sse", remote_transport="sse")
    yield remote
    remote.finish()


def opened(remote: Remote) -> Wire:
    """Send `initialize`, and let the server accept it."""
    remote.send(INITIALIZE)
    wire = remote.wires[0]
    wire.stream()
    wire.event(PATH, name="endpoint")
    remote.wire_of(INITIALIZE).respond(202)
    wire.event(result(1), name="message")
    assert remote.receiver.lines == [result(1)]
    remote.receiver.lines.clear()
    return wire


def test_messages_go_to_the_endpoint_and_come_on_the_stream(remote: Remote) -> None:
    remote.send(INITIALIZE, INITIALIZED)
    [get] = remote.sent
    assert get[:2] == ("GET", "/sse")
    assert get.headers["accept"] == "text/event-stream"
    wire = remote.wires[0]
    wire.stream()
    wire.event(PATH, name="endpoint")
    assert [each.target for each in remote.sent] == ["/sse", PATH.decode()]
    remote.wire_of(INITIALIZE).respond(202)
    remote.wire_of(INITIALIZED).respond(202)
    wire.event(result(1), name="message")
    wire.event(request(5, "ping"))
    wire.event(b"nonsense")
    assert remote.receiver.lines == [result(1), request(5, "ping")]
    assert remote.server.transport == "sse"


def test_probe_is_answered_without_the_server(remote: Remote) -> None:
    remote.send(modern(1, "server/discover"))
    assert not remote.sent
    [line] = remote.receiver.lines
    assert json.loads(line)["error"]["code"] == -32601


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        (b"http://evil.test/message?key=1", "named http://evil.test/message for messages"),
        (b"https://remote.test/message", "of another origin"),
        (b"//evil.test/message", "of another origin"),
        (b"http://user@remote.test/", "a path for messages that is none"),
        (b"/\xff", "a path for messages that is none"),
        (b"/" + b"a" * ENDPOINT_BYTES, "a path for messages that is none"),
    ],
)
def test_foreign_endpoint_gets_nothing(remote: Remote, endpoint: bytes, text: str) -> None:
    remote.send(INITIALIZE)
    remote.wires[0].stream()
    remote.wires[0].event(endpoint, name="endpoint")
    remote.turn()
    assert text in remote.receiver.death
    assert len(remote.sent) == 1


def test_server_that_names_no_endpoint(remote: Remote) -> None:
    remote.send(INITIALIZE)
    remote.wires[0].stream()
    remote.turn(ENDPOINT_SECONDS)
    remote.turn()
    assert "named no path for messages within 30 s" in remote.receiver.death


def test_end_of_the_stream_is_the_end_of_the_session(remote: Remote) -> None:
    wire = opened(remote)
    wire.break_off()
    remote.turn()
    assert "closed the stream, and with it the session: connection lost" in remote.receiver.death
    assert remote.backend.exit_status == "remote: stream closed"


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, "refused the credentials"),
        (302, "redirect to http://remote.test/elsewhere"),
        (500, "answered HTTP 500 (Internal Server Error) to a GET; check `url`"),
    ],
)
def test_refused_stream(remote: Remote, status: int, text: str) -> None:
    remote.send(INITIALIZE)
    remote.wires[0].respond(status, Location="/elsewhere?key=1")
    remote.turn()
    assert text in remote.receiver.death


def test_page_instead_of_a_stream(remote: Remote) -> None:
    remote.send(INITIALIZE)
    remote.wires[0].respond(200, b"<html>", "text/html")
    remote.turn()
    assert "answered a GET with the content type 'text/html'" in remote.receiver.death


def test_server_that_is_gone(remote: Remote) -> None:
    remote.network.refusal = network.ConnectionRefusedError()
    remote.send(INITIALIZE)
    remote.turn()
    assert "cannot be reached: connection refused" in remote.receiver.death


def test_stream_that_never_begins(remote: Remote) -> None:
    remote.send(INITIALIZE)
    remote.wires[0].break_off()
    # A GET is tried once more on a new connection by nobody: it was no kept one.
    remote.turn()
    assert "sent no stream: connection lost" in remote.receiver.death


def test_refused_request_is_answered(remote: Remote) -> None:
    opened(remote)
    remote.send(request(2), request(3))
    body = b'{"jsonrpc":"2.0","error":{"code":-32602,"message":"no"}}'
    remote.wire_of(request(2)).respond(400, body, "application/json")
    remote.wire_of(request(3)).respond(413)
    remote.turn()
    errors = {json.loads(each)["id"]: json.loads(each)["error"] for each in remote.receiver.lines}
    assert errors[2] == {"code": -32602, "message": "no"}
    assert "refused 'tools/list' (HTTP 413" in errors[3]["message"]
    assert not remote.receiver.death


@pytest.mark.parametrize("status", [404, 401])
def test_refused_request_that_ends_the_session(remote: Remote, status: int) -> None:
    opened(remote)
    remote.send(request(2))
    remote.wire_of(request(2)).respond(status)
    remote.turn()
    assert remote.receiver.death


def test_silent_server_ends_the_session_while_it_owes_an_answer(remote: Remote) -> None:
    wire = opened(remote)
    remote.turn(1000)
    remote.send(request(2))
    remote.wire_of(request(2)).respond(202)
    remote.turn(299)
    wire.chunk(b": ping\n\n")
    remote.turn(299)
    assert not remote.receiver.death
    remote.turn(1)
    remote.turn()
    assert "response_timeout" in remote.receiver.death


def test_oversized_event_fails_its_request() -> None:
    remote = Remote("http://remote.test/sse", remote_transport="sse", max_message_bytes=1024)
    wire = opened(remote)
    remote.send(request(2))
    remote.wire_of(request(2)).respond(202)
    wire.event(b'{"jsonrpc":"2.0","id":2,"result":{"a":"' + b"x" * 2000 + b'"}}')
    [(_, lost)] = remote.receiver.events
    assert (lost.fault, lost.ident) == ("oversized", 2)
    remote.finish()


# How the transport is found.


def test_server_that_takes_no_posts_is_asked_by_get() -> None:
    remote = Remote("http://remote.test/sse")
    remote.send(INITIALIZE, INITIALIZED)
    assert remote.sent[0].method == "POST"
    remote.wires[0].respond(405)
    [get] = [wire for wire in remote.wires if wire.is_open and wire.sent()[-1].method == "GET"]
    get.stream()
    get.event(PATH, name="endpoint")
    assert remote.sent[-1].body == INITIALIZE or remote.sent[-1].target == PATH.decode()
    [post] = [w for w in remote.wires if w.is_open and w.sent()[-1].target == PATH.decode()]
    post.respond(202)
    assert remote.sent[-1].body == INITIALIZED, "what waited is not lost"
    assert remote.server.transport == "sse"
    post.respond(202)
    remote.finish()

    # The next session asks at once.
    again = type(remote.backend)(remote.server, remote.client, remote.clock, remote.receiver)
    assert type(again._transport).__name__ == "HttpSse"
    again.stop()
    remote.turn()


def test_server_of_neither_transport() -> None:
    remote = Remote("http://remote.test/wrong")
    remote.send(INITIALIZE)
    remote.wires[0].respond(404, b"nothing here", "text/plain")
    [get] = [wire for wire in remote.wires if wire.is_open and wire.sent()[-1].method == "GET"]
    get.respond(404)
    remote.turn()
    assert remote.receiver.death == (
        "the remote server http://remote.test/wrong answered HTTP 404 (Not Found) to a POST, and"
        " answered HTTP 404 (Not Found) to a GET; check `url`"
    )
    remote.finish()


def test_modern_server_is_not_asked_by_get() -> None:
    remote = Remote()
    remote.send(INITIALIZE)
    body = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32022,"message":"no"}}'
    remote.wires[0].respond(400, body, "application/json")
    remote.turn()
    assert remote.receiver.lines == [body]
    remote.finish()


def test_transport_that_is_set_is_the_only_one() -> None:
    remote = Remote(remote_transport="streamable-http")
    remote.send(INITIALIZE)
    remote.wires[0].respond(405)
    remote.turn()
    assert "answered HTTP 405" in remote.receiver.death
    remote.finish()


def test_request_that_a_gateway_forbids_fails_alone(remote: Remote) -> None:
    opened(remote)
    remote.send(request(2))
    remote.wire_of(request(2)).respond(403, b"<html>", "text/html")
    remote.turn()
    assert b"HTTP 403" in remote.receiver.lines[0]
    assert not remote.receiver.death
