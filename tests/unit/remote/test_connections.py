"""Connections to a remote server, and how HTTP is bounded on them."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from twisted.internet import error as network
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mcpbridge.config.oauth import origin_of
from mcpbridge.config.tuning import ENDLESS_FACTOR, SMALL_BYTES
from mcpbridge.remote import connections as module
from mcpbridge.remote.bodies import ERROR_BODY_BYTES, ERROR_BODY_SECONDS
from mcpbridge.remote.connections import HEAD_BYTES, KEEP_ALIVE_SECONDS, Connections
from mcpbridge.remote.http_client import COOKIES, KEPT_CONNECTIONS, PIECE_BYTES, Body, HttpClient
from mcpbridge.remote.problems import (
    SHOWN_CHARS,
    CannotConnect,
    connect_reason,
    lost_reason,
    shown,
    shown_url,
    status_text,
)
from mcpbridge.remote.proxies import Proxy
from mcpbridge.response_budget import ResponseBudget
from tests.unit.remote.fake_remote import INITIALIZE, Network, Remote, modern, request, result


def failed(remote: Remote, ident: int = 2) -> bytes:
    remote.turn()
    [line] = remote.receiver.lines
    assert b'"id":%d' % ident in line
    return line


@pytest.fixture
def remote() -> Any:
    remote = Remote()
    remote.initialize(session="")
    remote.send(request(2))
    yield remote
    remote.finish()


# Heads.


def test_endless_head_is_given_up(remote: Remote) -> None:
    wire = remote.wire_of(request(2))
    wire.say(b"HTTP/1.1 200 OK\r\n")
    for _ in range(HEAD_BYTES // 1000 + 1):
        wire.say(b"X-Header: " + b"x" * 988 + b"\r\n")
    assert not wire.is_open
    assert b"with a head of more than 65536 bytes" in failed(remote)


def test_endless_interim_responses_are_given_up(remote: Remote) -> None:
    wire = remote.wire_of(request(2))
    for _ in range(HEAD_BYTES // 20):
        wire.say(b"HTTP/1.1 103 Hint\r\n\r\n")
    assert not wire.is_open
    failed(remote)


def test_interim_responses_are_ignored(remote: Remote) -> None:
    wire = remote.wire_of(request(2))
    wire.say(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hint\r\nLink: a\r\n\r\n")
    wire.answer(result(2))
    assert remote.receiver.lines == [result(2)]


def test_head_may_come_byte_by_byte(remote: Remote) -> None:
    wire = remote.wire_of(request(2))
    body = result(2)
    text = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    for byte in text % (len(body), body):
        wire.say(bytes([byte]))
    assert remote.receiver.lines == [body]


@pytest.mark.parametrize(
    "head",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 two\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 20_000 + b"\r\n\r\n",
    ],
)
def test_response_that_is_no_http(remote: Remote, head: bytes) -> None:
    remote.wire_of(request(2)).say(head)
    assert b"did not answer" in failed(remote)


def test_compressed_response_is_refused(remote: Remote) -> None:
    wire = remote.wire_of(request(2))
    wire.answer(b"\x1f\x8b", Content_Encoding="gzip")
    assert b"in the coding 'gzip', which was not asked for" in failed(remote)
    assert not wire.is_open


# Bodies.


def test_message_that_is_too_large_is_not_kept() -> None:
    remote = Remote(max_message_bytes=2000)
    remote.initialize(session="")
    remote.send(request(2), request(3))
    remote.wire_of(request(2)).answer(result(2, '"' + "x" * 3000 + '"'))
    [(_, lost)] = remote.receiver.events
    assert (lost.fault, lost.ident) == ("oversized", 2)
    wire = remote.wire_of(request(3))
    wire.stream()
    wire.event(result(3, '"' + "x" * 3000 + '"'))
    assert remote.receiver.events[1][1].ident == 3
    remote.finish()


@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
def test_body_without_end_is_given_up(kind: str) -> None:
    remote = Remote(max_message_bytes=1000)
    remote.initialize(session="")
    remote.send(request(2))
    wire = remote.wire_of(request(2))
    wire.say(b"HTTP/1.1 200 OK\r\nContent-Type: " + kind.encode() + b"\r\n\r\ndata: ")
    for _ in range(ENDLESS_FACTOR + 20):
        wire.say(b"x" * 1000)
    assert not wire.is_open
    assert b"without end" in failed(remote)
    remote.finish()


def test_explanation_of_an_error_is_bounded(remote: Remote) -> None:
    wire = remote.wire_of(request(2))
    wire.say(b"HTTP/1.1 418 Teapot\r\nContent-Length: 999999\r\n\r\n")
    wire.say(b"x" * (ERROR_BODY_BYTES - 1))
    assert not remote.receiver.lines
    wire.say(b"xx")
    assert not wire.is_open
    assert b"HTTP 418" in failed(remote)


def test_explanation_of_an_error_may_not_take_long(remote: Remote) -> None:
    wire = remote.wire_of(request(2))
    wire.say(b"HTTP/1.1 418 Teapot\r\nContent-Length: 99\r\n\r\n")
    remote.turn(ERROR_BODY_SECONDS)
    assert not wire.is_open
    assert b"HTTP 418" in failed(remote)


def test_large_messages_wait_while_the_budget_is_full() -> None:
    remote = Remote()
    budget = ResponseBudget(SMALL_BYTES, remote.clock)
    remote.backend._context.budget = budget
    remote.initialize(session="")
    remote.send(request(2))
    wire = remote.wire_of(request(2))
    wire.stream()
    budget.take(SMALL_BYTES)
    wire.chunk(b"data: " + b"x" * 2 * SMALL_BYTES)
    assert [wire.paused] == [True]
    assert budget.used > 3 * SMALL_BYTES
    remote.backend.pause()
    remote.backend.resume()
    assert [wire.paused] == [True]
    budget.give_back(SMALL_BYTES)
    remote.turn(2)
    assert [wire.paused] == [False], "one at a time may go on"
    remote.finish()
    assert budget.used == 0
    budget.stop()


# Connections.


def test_prepared_connection_is_used_first_and_not_kept_for_long() -> None:
    remote = Remote()
    prepared: list[None] = []
    remote.client.prepare().addCallback(prepared.append)
    remote.client.prepare().addCallback(prepared.append)
    assert (len(prepared), len(remote.wires)) == (2, 2)
    assert not remote.wires[1].is_open, "it has only shown that the server is there"
    remote.send(INITIALIZE)
    assert len(remote.wires) == 2
    remote.wires[0].answer(result(1))
    remote.client.prepare()
    remote.turn(KEEP_ALIVE_SECONDS + 1)
    assert not any(wire.is_open for wire in remote.wires)
    remote.client.prepare()
    remote.wires[-1].say(b"unasked")
    assert not remote.wires[-1].is_open
    remote.finish()


def test_idle_connections_are_few() -> None:
    remote = Remote()
    lines = [modern(each) for each in range(1, KEPT_CONNECTIONS + 3)]
    remote.send(*lines)
    assert len(remote.wires) == len(lines)
    for number, line in enumerate(lines, 1):
        remote.wire_of(line).answer(result(number))
    assert sum(wire.is_open for wire in remote.wires) == KEPT_CONNECTIONS
    remote.finish()


def test_closed_connections_open_no_other() -> None:
    remote = Remote()
    remote.finish()
    reasons: list[Failure] = []
    remote.client.prepare().addErrback(reasons.append)
    assert isinstance(reasons[0].value, CannotConnect)


class Slow(Network):
    """A network in which nobody answers."""

    def connect(self, protocolFactory: Any) -> Deferred[Any]:
        return Deferred()


def test_connecting_takes_no_longer_than_it_may() -> None:
    clock, reasons = Clock(), list[Failure]()
    connections = Connections(clock, Slow(), 10.0, is_tls=False)
    connections.prepare().addErrback(reasons.append)
    clock.advance(10)
    assert str(reasons[0].value) == "no connection within 10 s (connect_timeout)"
    connections.prepare().addErrback(reasons.append)
    connections.close()
    assert reasons[1].check(CancelledError)


def test_host_of_ipv6_and_a_port() -> None:
    remote = Remote("http://[::1]:8080/mcp")
    remote.send(INITIALIZE)
    assert remote.sent[0].headers["host"] == "[::1]:8080"
    remote.finish()


def test_cookies_live_as_long_as_the_session(remote: Remote) -> None:
    remote.wire_of(request(2)).answer(result(2), Set_Cookie="server=7")
    remote.send(request(3))
    wire = remote.wire_of(request(3))
    assert wire.sent()[-1].headers["cookie"] == "server=7"
    text = "\r\n".join(f"Set-Cookie: c{number}=1" for number in range(COOKIES + 1))
    wire.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + text.encode() + b"\r\n\r\n")
    remote.send(request(4))
    assert "cookie" not in remote.wire_of(request(4)).sent()[-1].headers


class Consumer:
    """A transport that is full after each piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.body: Body | None = None

    def write(self, data: bytes) -> None:
        self.pieces.append(data)
        if self.body is not None:
            self.body.pauseProducing()


def test_large_body_is_written_piece_by_piece() -> None:
    data = b"x" * (2 * PIECE_BYTES + 1)
    body, consumer, done = Body(data), Consumer(), list[None]()
    consumer.body = body
    body.startProducing(consumer).addCallback(done.append)
    assert list(map(len, consumer.pieces)) == [PIECE_BYTES]
    body.resumeProducing()
    assert not done
    body.resumeProducing()
    assert done
    assert b"".join(consumer.pieces) == data
    half = Body(data)
    consumer.body = half
    half.startProducing(consumer)
    half.stopProducing()
    half.resumeProducing()
    assert len(consumer.pieces) == 4


# Proxies.

PROXY = Proxy("p.test", 3128, False, "Basic bWU6c2VjcmV0")


def test_plain_http_asks_the_proxy_for_the_whole_url() -> None:
    clock, wires = Clock(), Network()
    connections = Connections(clock, wires, 10.0, is_tls=False)
    client = HttpClient(clock, connections, origin_of("http://a.test:81/"), {}, PROXY)
    client.request("POST", "/mcp?a=b", {}, b"{}").addErrback(lambda _: None)
    [sent] = wires.wires[0].sent()
    assert sent.target == "http://a.test:81/mcp?a=b"
    assert sent.headers["host"] == "a.test:81"
    assert sent.headers["proxy-authorization"] == PROXY.authorization
    client.close()


def tunnel(host: str = "https://a.test/") -> tuple[Network, list[Any], Any]:
    """Return a network with the proxy, what comes of the tunnel, and its endpoint."""
    wires = Network()
    endpoint = module._TunnelEndpoint(wires, PROXY, origin_of(host))
    outcome: list[Any] = []
    from twisted.internet.protocol import Factory

    from tests.tls import Recorded

    endpoint.connect(Factory.forProtocol(Recorded)).addBoth(outcome.append)
    return wires, outcome, endpoint


def test_tunnel_through_a_proxy() -> None:
    wires, outcome, _ = tunnel("https://[2001:db8::1]/")
    [wire] = wires.wires
    assert wire.value() == (
        b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n"
        b"Proxy-Authorization: Basic bWU6c2VjcmV0\r\n\r\n"
    )
    wire.say(b"HTTP/1.1 200 OK\r\nVia: p")
    assert not outcome
    wire.say(b"\r\n\r\nfirst")
    wire.say(b"second")
    assert outcome[0].received == b"firstsecond"
    wire.break_off()
    assert outcome[0].lost


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 407 No\r\n\r\n", "(Proxy Authentication Required); check the user and the"),
        (b"HTTP/1.1 502 No\r\n\r\n", "the proxy p.test:3128 answered HTTP 502 (Bad Gateway)"),
        (b"SSH-2.0\r\n\r\n", "the proxy p.test:3128 is no HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * HEAD_BYTES, "sent a head of more than"),
        (b"", "the proxy p.test:3128 broke off the connection"),
    ],
)
def test_proxy_that_gives_no_tunnel(answer: bytes, text: str) -> None:
    wires, outcome, _ = tunnel()
    if answer:
        wires.wires[0].say(answer)
        assert not wires.wires[0].is_open
    else:
        wires.wires[0].break_off()
    assert text in str(outcome[0].value)
    assert "secret" not in str(outcome[0].value)


def test_proxy_that_cannot_be_reached_is_named() -> None:
    wires = Network()
    wires.refusal = network.ConnectionRefusedError()
    outcome: list[Any] = []
    endpoint = module._ProxyEndpoint(wires, PROXY, 10)
    endpoint.connect(None).addBoth(outcome.append)
    assert str(outcome[0].value) == "the proxy p.test:3128: connection refused"


# Texts.


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (network.ConnectionRefusedError(), "connection refused"),
        (network.DNSLookupError(), "its host name cannot be resolved"),
        (network.TimeoutError(), "no connection within 7 s (connect_timeout)"),
        (network.NoRouteError(string="x"), "No route to host: x"),
        (network.ConnectionLost(), "connection lost"),
        (CannotConnect("a reason"), "a reason"),
        (KeyError(), "KeyError"),
        (ValueError("a\nb"), "ValueError: a?b"),
    ],
)
def test_reasons(error: Exception, text: str) -> None:
    assert connect_reason(Failure(error), 7) == text


def test_what_others_wrote_is_cut() -> None:
    assert shown("x" * 1000) == "x" * SHOWN_CHARS
    assert lost_reason(Failure(network.ConnectionDone())) == "connection lost"
    assert status_text(299) == "HTTP 299"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://me:secret@a.test:81/b?key=1", "https://a.test:81/b"),
        ("http://[::1]/mcp", "http://[::1]/mcp"),
        ("/elsewhere?key=1", "/elsewhere"),
        ("http://[", "(not a URL)"),
        (
            "https://a.test/api/mcp/s/NDk4ZjQ2ZDAtYjM5Zi00OWE4/mcp",
            "https://a.test/api/mcp/s/***/mcp",
        ),
        ("https://a.test/550e8400-e29b-41d4-a716-446655440000/sse", "https://a.test/***/sse"),
        ("https://a.test/deadbeefdeadbeefdeadbeef", "https://a.test/***"),
        ("https://a.test/aKeyOfLettersAlone", "https://a.test/***"),
        ("https://a.test/v1/key%3Dx/123456", "https://a.test/v1/***/***"),
    ],
)
def test_urls_are_shown_without_secrets(url: str, text: str) -> None:
    assert shown_url(url) == text


def test_silent_machines_are_probed() -> None:
    numbers = (module.PROBE_SECONDS, module.PROBE_PAUSE_SECONDS, module.PROBES)
    options: list[tuple[Any, ...]] = []

    class Socket(socket.socket):
        def setsockopt(self, *arguments: Any) -> None:
            options.append(arguments)

    class Transport:
        alive = False

        def __init__(self) -> None:
            self.socket = Socket()

        def setTcpKeepAlive(self, on: bool) -> None:
            self.alive = on

        def setTcpNoDelay(self, on: bool) -> None:
            pass

    transport = Transport()
    module._keep_probing(transport)
    transport.socket.close()
    assert transport.alive
    assert tuple(option[2] for option in options) == numbers
