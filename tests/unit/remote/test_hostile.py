"""Remote servers that break rules: whatever they send, nothing is raised and nothing is left."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import error as network

from mcpbridge.remote.calls import RESUME_TRIES
from tests.unit.remote.fake_remote import (
    INITIALIZE,
    INITIALIZED,
    Remote,
    modern,
    request,
    result,
)

PIECES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 404 X\r\n",
        b"HTTP/1.1 100 X\r\n",
        b"Content-Type: text/event-stream\r\n",
        b"Content-Type: application/json\r\n",
        b"Content-Length: 10\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Mcp-Session-Id: \xff\r\n",
        b"Set-Cookie: a\xff=b; Max-Age=x\r\n",
        b"\r\n",
        b"5\r\n",
        b"data: {}\n\n",
        b"id: 1\n",
        b"retry: 0\n",
        b"event: endpoint\ndata: /x\n\n",
        b'data: {"jsonrpc":"2.0","id":1,"result":{}}\n\n',
        b"\0\xff",
    ]
)


@given(st.lists(PIECES, max_size=12), st.sampled_from(["auto", "sse"]), st.booleans())
def test_any_bytes(pieces: list[bytes], transport: str, ends: bool) -> None:
    remote = Remote(remote_transport=transport)
    remote.send(INITIALIZE, INITIALIZED, request(2))
    for piece in pieces:
        for wire in [each for each in remote.wires if each.is_open]:
            wire.say(piece)
        remote.turn()
    if ends:
        for wire in list(remote.wires):
            wire.break_off()
        remote.turn(1)
    remote.finish()


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b"null", b"[1,2]", b"\xff", b'{"jsonrpc":"2.0","id":2}', b"{" * 10_000],
)
def test_json_that_is_no_answer(body: bytes) -> None:
    remote = Remote()
    remote.initialize(session="")
    remote.send(request(2))
    remote.wire_of(request(2)).answer(body)
    remote.turn()
    [line] = remote.receiver.lines
    assert json.loads(line)["error"]["code"] == -32603
    remote.finish()


@pytest.mark.parametrize("location", ["http://[", "\xff", ""])
def test_redirect_to_nowhere(location: str) -> None:
    remote = Remote()
    remote.send(INITIALIZE)
    remote.wires[0].respond(301, Location=location)
    remote.turn()
    assert "answered with a redirect to" in remote.receiver.death
    remote.finish()


def test_batch_that_is_answered_in_part() -> None:
    remote = Remote()
    remote.initialize("2025-03-26")
    batch = b"[%b,%b]" % (request(2), request(3))
    remote.send(batch)
    remote.wire_of(batch).answer(b"[%b]" % result(2))
    remote.turn()
    first, second = remote.receiver.lines
    assert first == b"[%b]" % result(2)
    assert json.loads(second)["id"] == 3
    remote.finish()


def test_resumption_that_breaks_off_again_and_again() -> None:
    remote = Remote()
    remote.initialize()
    remote.send(request(2))
    wire = remote.wire_of(request(2))
    wire.stream()
    wire.chunk(b"id: e1\ndata:\n\n")
    wire.break_off()
    for _ in range(RESUME_TRIES):
        remote.turn(1)
        [again] = [w for w in remote.wires if w.is_open and b"Last-Event-Id" in w.value()]
        again.break_off()
    remote.turn()
    [line] = remote.receiver.lines
    assert json.loads(line)["error"]["message"].endswith("connection lost")
    remote.finish()


def test_server_that_is_gone_when_a_message_is_posted() -> None:
    remote = Remote()
    remote.initialize()
    for wire in remote.wires:
        if wire.sent()[-1].method == "POST":
            wire.break_off()
    remote.network.refusal = network.ConnectionRefusedError()
    remote.send(result(7))
    remote.turn()
    assert "cannot be reached: connection refused" in remote.receiver.death
    remote.finish()


def test_server_that_is_gone_when_a_request_is_posted() -> None:
    remote = Remote()
    remote.network.refusal = network.DNSLookupError()
    remote.send(modern(1))
    remote.turn()
    assert "its host name cannot be resolved" in remote.receiver.death
    remote.finish()


def test_get_stream_of_a_wrong_kind() -> None:
    remote = Remote()
    remote.initialize()
    [wire] = [each for each in remote.wires if each.sent()[-1].method == "GET"]
    wire.respond(200, b"<html>", "text/html")
    remote.turn(100)
    assert sum(each.method == "GET" for each in remote.sent) == 1
    remote.finish()


def test_event_on_the_get_stream_that_is_too_large() -> None:
    remote = Remote(max_message_bytes=1000)
    remote.initialize()
    wire = remote.listen()
    wire.event(b'{"jsonrpc":"2.0","method":"m","params":"' + b"x" * 2000 + b'"}')
    [(kind, lost)] = remote.receiver.events
    assert (kind, lost.fault) == ("lost", "oversized")
    remote.finish()


def test_get_stream_that_forgets_its_events_begins_anew() -> None:
    remote = Remote()
    remote.initialize()
    wire = remote.listen()
    wire.event(b'{"jsonrpc":"2.0","method":"a"}', ident="e1")
    wire.break_off()
    remote.turn()
    body = b'{"jsonrpc":"2.0","error":{"code":-32000,"message":"unknown event"}}'
    remote.wires[-1].respond(400, body, "application/json", Connection="close")
    remote.turn(10)
    assert "last-event-id" not in remote.wires[-1].sent()[-1].headers
    assert remote.wires[-1].sent()[-1].method == "GET"
    remote.finish()


def test_stopped_while_it_connects() -> None:
    remote = Remote()
    remote.send(modern(1), modern(2, "subscriptions/listen"))
    remote.finish()
    assert remote.receiver.death == ""
    assert remote.receiver.lines == []
