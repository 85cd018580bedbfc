"""
A bridge that finishes what runs: bytes of connections on one side, fake backends on the other.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.task import Clock

from mcpbridge.drain import CANCELLED_SECONDS, LOOK_SECONDS, NAMED_SERVERS, REPORT_SECONDS, Drain
from mcpbridge.errors import ShuttingDown
from mcpbridge.web.site import QUIET_SECONDS
from tests.unit.test_reload import NOTE, Place, make, server, settings_of
from tests.unit.web.test_refusals import CALL, FAST, MODERN_CALL, ORDINARY, TakesBatches, message
from tests.unit.web.test_stateless_http import Modern, answer

__all__ = ["make"]

each_way = pytest.mark.parametrize("way", [FAST, ORDINARY])
SHUTTING_DOWN = b"the bridge is shutting down"


class Draining:
    """The drain of a place, and whether it is over."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.over: list[None] = []
        place.bridge.drain().addCallback(self.over.append)

    def wait(self, seconds: float) -> bool:
        """Let time pass in small steps; return whether the drain is over."""
        self.place.reactor.pump([LOOK_SECONDS] * round(seconds / LOOK_SECONDS))
        return bool(self.over)


def refused(connection: Any) -> bool:
    """Tell whether the answer on a connection is the refusal, after which it closes."""
    if connection.status() != 503:
        return False
    assert connection.header("Retry-After") == "5"
    assert SHUTTING_DOWN in connection.read
    return True


def test_a_bridge_without_requests_is_drained_at_once(make: Any) -> None:
    place = make(server("a"))
    assert place.bridge.condition == "serving"
    draining = Draining(place)
    assert place.bridge.condition == "draining"
    assert draining.over == [None]
    assert place.bridge.draining_for() == ""
    place.bridge.stopService()
    assert place.bridge.condition == "stopping"


def test_no_time_to_drain_refuses_nothing(make: Any) -> None:
    place = make(server("a"), drain_timeout=0)
    ident = place.open("a")
    place.status("a", CALL, session=ident)
    assert Draining(place).over == [None]
    assert place.bridge.condition == "serving"


@each_way
def test_request_of_a_session_is_finished(make: Any, way: str) -> None:
    """The last response says that its connection closes."""
    place = make(server("a"))
    ident = place.open("a")
    client = place.connect(way=way)
    client.send("POST", "/a/mcp", CALL, session=ident)
    assert client.status() == 0
    draining = Draining(place)
    assert not draining.wait(20)
    assert place.bridge.draining_for() == "1 request at 'a'"
    place.respond()
    assert client.status() == 200
    assert b"result" in client.read
    assert client.header("Connection") == "close"
    assert client.transport.disconnecting
    client.close()
    assert draining.wait(LOOK_SECONDS)
    [backend] = place.launcher.backends
    assert backend.events == ["stop"]


def test_cancelled_request_of_http_sse_is_not_waited_for_long(make: Any) -> None:
    """Most servers do not answer it; and the session counts as ended by the stop."""
    place = make(server("a"))
    _, path = place.stream("a")
    for body in (
        CALL,
        b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}',
    ):
        client = place.connect()
        client.send("POST", path, body)
        assert client.status() == 202
    draining = Draining(place)
    assert not draining.wait(CANCELLED_SECONDS - 2 * LOOK_SECONDS)
    assert draining.wait(1)
    assert place.bridge.servers[0].counters.sessions_closed == {"shutdown": 1}


@each_way
def test_request_of_http_sse_is_finished(make: Any, way: str) -> None:
    place = make(server("a"))
    stream, path = place.stream("a")
    client = place.connect(way=way)
    client.send("POST", path, CALL)
    assert client.status() == 202
    draining = Draining(place)
    assert not draining.wait(20)
    place.respond()
    # Another one may be made meanwhile: refused before it begins.
    late = place.connect(way=way)
    late.send("POST", path, message("tools/call", 2, name="t"))
    assert refused(late)
    assert draining.wait(2)
    written = stream.written()
    assert b'"result"' in written
    assert written.endswith(b"0\r\n\r\n")


@each_way
def test_request_of_2026_is_finished(make: Any, way: str) -> None:
    place = make(server("a"))
    place.launcher.kind = Modern
    client = place.connect(way=way)
    client.send("POST", "/a/mcp", MODERN_CALL, version="2026-07-28")
    place.reactor.pump([0] * 20)
    assert client.status() == 0
    draining = Draining(place)
    assert not draining.wait(1)
    assert place.bridge.draining_for() == "1 request at 'a'"
    late = place.connect(way=way)
    late.send("POST", "/a/mcp", MODERN_CALL, version="2026-07-28")
    assert refused(late)
    place.respond(resultType="complete", content=[])
    assert client.status() == 200
    client.close()
    late.close()
    assert draining.wait(1)


@each_way
def test_new_requests_and_sessions_are_refused(make: Any, way: str) -> None:
    """Also for a session that has ended for that, or never was."""
    place = make(server("a"))
    busy, idle = place.open("a"), place.open("a")
    client = place.connect(way=way)
    client.send("POST", "/a/mcp", CALL, session=busy)
    Draining(place)
    for ident in (busy, idle, "0" * 36):
        late = place.connect(way=way)
        late.send("POST", "/a/mcp", message("tools/call", 7, name="t"), session=ident)
        assert refused(late), late.read
    assert place.status("a", way=way) == 503
    assert SHUTTING_DOWN in place.read
    stream = place.connect(way=way)
    stream.send("GET", "/a/sse")
    assert refused(stream)
    [working, ended] = place.launcher.backends
    assert (working.events, ended.events) == ([], ["stop"])
    assert [json.loads(each).get("id") for each in working.sent].count(7) == 0


@each_way
def test_what_belongs_to_running_requests_passes(make: Any, way: str) -> None:
    place = make(server("a"))
    place.launcher.kind = TakesBatches
    ident = place.open("a")
    stream, path = place.stream("a")
    client = place.connect()
    client.send("POST", "/a/mcp", CALL, session=ident)
    place.connect().send("POST", path, CALL)
    draining = Draining(place)
    reply = b'{"jsonrpc":"2.0","id":"q","result":{}}'
    for target, session in (("/a/mcp", ident), (path, "")):
        for body in (reply, NOTE):
            other = place.connect(way=way)
            other.send("POST", target, body, session=session)
            assert other.status() == 202
    for backend in place.launcher.backends:
        assert json.loads(backend.sent[-2]) == json.loads(reply)
    assert not draining.over
    assert not stream.transport.disconnecting


def test_sessions_that_wait_for_a_process_are_refused(make: Any) -> None:
    """It would be started for nothing."""
    place = make(server("a"))
    place.launcher.hold = True
    Draining(place)
    stream = place.connect()
    stream.send("GET", "/a/sse")
    assert refused(stream)
    assert place.launcher.backends == []


def test_idle_connections_close_when_they_are_quiet(make: Any) -> None:
    """What is on its way as the bridge is told to stop gets an answer."""
    place = make(server("a"))
    quiet, late = place.connect(), place.connect()
    place.reactor.advance(QUIET_SECONDS)
    late.channel._active_at = place.reactor.seconds()
    draining = Draining(place)
    assert quiet.transport.disconnecting
    assert not late.transport.disconnecting
    assert draining.over == []
    assert place.bridge.draining_for() == "1 open connection"
    late.send("POST", "/a/mcp", CALL, session="0" * 36)
    assert refused(late)
    assert late.header("Connection") == "close"
    quiet.close()
    late.close()
    assert draining.wait(LOOK_SECONDS)


def test_connections_of_busy_sessions_stay(make: Any) -> None:
    """Their clients may answer on them; a proxy may do so for any client."""
    place = make(server("a"), trusted_proxies=("198.51.100.1",))
    ident, other = place.open("a"), place.open("a")
    connections = {
        name: place.connect(host)
        for name, host in [
            ("needed", "192.0.2.1"),
            ("not needed", "192.0.2.1"),
            ("proxy", "198.51.100.1"),
        ]
    }
    connections["needed"].send("POST", "/a/mcp", NOTE, session=ident)
    connections["not needed"].send("POST", "/a/mcp", NOTE, session=other)
    client = place.connect()
    client.send("POST", "/a/mcp", CALL, session=ident)
    draining = Draining(place)
    draining.wait(QUIET_SECONDS + LOOK_SECONDS)
    closing = {name: each.transport.disconnecting for name, each in connections.items()}
    assert closing == {"needed": False, "not needed": True, "proxy": False}
    place.respond(0)
    draining.wait(2 * LOOK_SECONDS)
    assert all(each.transport.disconnecting for each in connections.values())


def test_get_stream_says_when_to_come_back(make: Any) -> None:
    place = make(server("a"))
    ident = place.open("a")
    stream = place.connect()
    stream.send("GET", "/a/mcp", session=ident)
    assert b"id: 0-0" in stream.written()
    Draining(place)
    written = stream.written()
    assert b"retry: 1000\n\n" in written
    assert written.endswith(b"0\r\n\r\n")


def test_time_is_up(make: Any, log_lines: list[str]) -> None:
    """Every few seconds the log says what is waited for."""
    place = make(server("a"), server("b"), drain_timeout=2 * REPORT_SECONDS + 1)
    for name in ("a", "a", "b"):
        client = place.connect()
        client.send("POST", f"/{name}/mcp", CALL, session=place.open(name))
    draining = Draining(place)
    del log_lines[:]
    assert not draining.wait(2 * REPORT_SECONDS + 0.5)
    waits = [each for each in log_lines if "waiting" in each]
    assert waits == ["waiting for 3 requests at 'a', 'b'"] * 2
    assert draining.wait(1)
    assert log_lines[-1] == "3 requests at 'a', 'b' not finished after 11 s (drain_timeout)"
    # Whoever asks later is told at once.
    assert Draining(place).over == [None]


def test_hurry_ends_the_drain(make: Any) -> None:
    place = make(server("a"))
    client = place.connect()
    client.send("POST", "/a/mcp", CALL, session=place.open("a"))
    first, second = Draining(place), Draining(place)
    place.bridge.hurry()
    assert (first.over, second.over) == ([None], [None])
    place.bridge.hurry()
    assert place.bridge.draining_for() == ""


def test_stop_ends_the_drain(make: Any) -> None:
    place = make(server("a"))
    client = place.connect()
    client.send("POST", "/a/mcp", CALL, session=place.open("a"))
    draining = Draining(place)
    place.bridge.stopService()
    assert draining.over == [None]
    assert b"the session has ended: the bridge is shutting down" in client.written()


def test_kill_reaches_all_processes(make: Any) -> None:
    place = make(server("a"))
    place.open("a")
    place.stream("a")
    place.bridge.kill()
    assert [each.events for each in place.launcher.backends] == [["kill"]] * 2


def test_other_settings_are_refused(make: Any) -> None:
    place = make(server("a"))
    Draining(place)
    with pytest.raises(ShuttingDown):
        place.bridge.reload(settings_of(server("a"), server("b")))
    assert place.names == ["a"]


def test_many_servers_are_not_all_named() -> None:
    class Busy:
        running = 2

        def __init__(self, number: int) -> None:
            self.settings = server(f"s{number}")

    servers: Any = [Busy(number) for number in range(NAMED_SERVERS + 2)]
    drain = Drain(Clock(), lambda: servers, lambda: None)
    assert drain.left() == "14 requests at 's0', 's1', 's2', 's3', 's4' and 2 more"


def test_batch_with_a_request_is_refused(make: Any) -> None:
    place = make(server("a"))
    _, path = place.stream("a")
    place.connect().send("POST", path, CALL)
    Draining(place)
    [backend] = place.launcher.backends
    before = len(backend.sent)
    late = place.connect()
    late.send("POST", path, b"[" + NOTE + b"," + message("tools/call", 3) + b"]")
    assert refused(late)
    assert len(backend.sent) == before


def test_answer_without_its_own_id_is_found(make: Any) -> None:
    """The server writes 1 as "1"."""
    place = make(server("a"))
    stream, path = place.stream("a")
    place.connect().send("POST", path, CALL)
    draining = Draining(place)
    [backend] = place.launcher.backends
    backend.receiver.messages_received([answer("1", {})])
    place.turn()
    assert draining.wait(1)
    assert b'"result"' in stream.written()
