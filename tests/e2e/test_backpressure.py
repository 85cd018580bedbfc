"""
Clients and backends that do not read, and messages beyond their limits:
memory stays bounded, no accepted message is lost, and other sessions go on.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.e2e.harness import (
    NEVER,
    Bridge,
    SseStream,
    backend,
    in_background,
    request,
    serving,
    wait_until,
)
from tests.real.processes import eventually

MEGABYTE = 1_000_000
DONE = b'{"jsonrpc":"2.0","method":"done"}'
#: A client with this receive buffer leaves the rest to the bridge.
SMALL = 4096


def flood(size: int, line: int, tmp_path: Path) -> list[str]:
    """Return a backend that writes this many bytes after its first message; see `taken`."""
    return backend("flood", size, line, tmp_path / "taken")


def taken(tmp_path: Path) -> int:
    """Return how many bytes of its flood the backend has written."""
    path = tmp_path / "taken"
    return int(path.read_text() or 0) if path.exists() else 0


def wait_until_stuck(tmp_path: Path) -> int:
    """Wait until the backend cannot write any more; return how much it wrote."""
    wait_until(lambda: taken(tmp_path))
    while True:
        before = taken(tmp_path)
        if not eventually(lambda: taken(tmp_path) != before, 0.5):  # noqa: B023
            return before


# A client that does not read.


@pytest.mark.slow
@pytest.mark.parametrize("line", [200, 60_000])
def test_client_that_does_not_read_costs_bounded_memory(tmp_path: Path, line: int) -> None:
    """200 MB offered to a sleeping client grow the bridge by less than 2 MB; none of it is lost."""
    size = 200 * MEGABYTE
    options = ("--peer-timeout", NEVER, "--ping-interval", NEVER)
    with serving(*options, command=flood(size, line, tmp_path)) as bridge:
        # What the first session allocates once does not count as growth.
        warm = bridge.open_sse(receive_buffer=SMALL)
        warm.send_message(request("begin"))
        wait_until_stuck(tmp_path)
        warm.reset()
        bridge.wait_for_close(warm)
        (tmp_path / "taken").unlink()
        before = bridge.rss()
        stream = bridge.open_sse(receive_buffer=SMALL)
        stream.send_message(request("begin"))
        # What it has written is in sockets and pipes, not in the bridge.
        assert wait_until_stuck(tmp_path) < size / 10
        assert bridge.rss() - before < 2 * MEGABYTE
        # The session still works: its client can post.
        stream.send_message(request("meanwhile"))
        assert bridge.rss() - before < 2 * MEGABYTE
        if line > 1000:
            assert sum(1 for _ in iter(stream.read_message, DONE)) == size // line
            assert stream.read_message() == request("meanwhile")


def test_late_reader_gets_every_message(tmp_path: Path) -> None:
    """The messages of the flood arrive complete and in order."""
    size, line = 20 * MEGABYTE, 1000
    # A slow machine takes longer than the pings' interval for it.
    with serving("--ping-interval", NEVER, command=flood(size, line, tmp_path)) as bridge:
        stream = bridge.open_sse(receive_buffer=SMALL)
        stream.send_message(request("begin"))
        assert wait_until_stuck(tmp_path) < size
        messages = list(iter(stream.read_message, DONE))
        assert len(messages) == size // line
        assert set(map(len, messages)) == {line - 1}
        assert len(set(messages)) == 1


def test_no_pings_are_queued_on_a_full_stream(tmp_path: Path) -> None:
    """A client that reads late does not find a backlog of pings."""
    size, interval = 20 * MEGABYTE, 0.02
    options = ("--ping-interval", str(interval), "--peer-timeout", NEVER)
    with serving(*options, command=flood(size, 1000, tmp_path)) as bridge:
        began = time.monotonic()
        stream = bridge.open_sse(receive_buffer=SMALL)
        stream.send_message(request("begin"))
        written = wait_until_stuck(tmp_path) // 1000
        # It has been stuck for as long as twenty-five pings; now for a hundred more.
        at_most = (time.monotonic() - began) / interval
        time.sleep(100 * interval)
        messages = list(iter(stream.read_message, DONE))
        flooding = [at for at, message in enumerate(messages) if b'"flood"' in message]
        assert len(flooding) == size // 1000
        # What the backend had written by then comes with the pings of before,
        # and not with those of the time in which the stream was full.
        assert flooding[written - 1] - (written - 1) <= at_most
        # Pings go on when there is room.
        while b'"ping"' not in stream.read_message():
            pass


@pytest.mark.slow
def test_client_that_reads_nothing_is_dropped_after_peer_timeout(tmp_path: Path) -> None:
    """The log gives the reason; a client with nothing to take stays."""
    command = flood(200 * MEGABYTE, 1000, tmp_path)
    with serving("--peer-timeout", "2", command=command) as bridge:
        idle, stream = bridge.open_sse(), bridge.open_sse(receive_buffer=SMALL)
        stream.send_message(request("begin"))
        line = bridge.wait_for_close(stream)
        assert "the client read nothing for 2 s" in line
        assert bridge.request("POST", stream.endpoint, request("x")).status == 404
        # A client that has nothing to take stays.
        assert bridge.log.count(" closed after ") == 1
        idle.send_message(request("begin"))
        assert b'"flood"' in idle.read_message()


@pytest.mark.slow
def test_slow_client_is_not_dropped(tmp_path: Path) -> None:
    """A client that takes a little now and then stays, however long that goes on."""
    command = flood(200 * MEGABYTE, 1000, tmp_path)
    # Longer than this process may stall on a busy machine.
    with serving("--peer-timeout", "5", command=command) as bridge:
        slow, dead = bridge.open_sse(receive_buffer=SMALL), bridge.open_sse(receive_buffer=SMALL)
        slow.send_message(request("begin"))
        assert b'"flood"' in slow.read_message()
        dead.send_message(request("begin"))
        while " closed after " not in bridge.log:
            slow.read_bytes(20_000)
            eventually(lambda: " closed after " in bridge.log, 0.01)
        assert dead.session_id[:8] in bridge.wait_for_log(" closed after ")
        assert slow.post(request("x")).status == 202


# A backend that does not read.


def post_until_busy(stream: SseStream, size: int) -> int:
    """Post until the answer is 503; return how many messages were accepted before."""
    count = 0
    while True:
        answer = stream.post(request("x", count, pad="x" * size))
        if answer.status != 202:
            break
        count += 1
        assert count < 3000
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json["jsonrpc"] == "2.0"
    assert answer.json["id"] is None
    assert "already wait" in answer.json["error"]["message"]
    return count


@pytest.mark.parametrize(
    ("options", "size", "least", "most"),
    [
        (("--max-waiting-messages", "7"), 70_000, 8, 11),
        (("--max-waiting-bytes", "500000"), 100_000, 6, 9),
        (("--max-waiting-messages", "1"), 70_000, 2, 4),
    ],
)
def test_queue_of_a_backend_that_does_not_read_is_bounded(
    tmp_path: Path, options: tuple[str, ...], size: int, least: int, most: int
) -> None:
    """
    Beyond the limits a POST gets 503 with `Retry-After`.  When the backend starts to
    read, every message that was accepted arrives once and in order, and the queue is free.
    """
    gate = tmp_path / "gate"
    with serving(*options, command=backend("gated", gate)) as bridge:
        stream = bridge.open_sse()
        count = post_until_busy(stream, size)
        # Besides the queue, one or two are in the pipe and the transport.
        assert least <= count <= most
        assert stream.post(request("small")).status == 503
        gate.touch()
        for ident in range(count):
            assert json.loads(stream.read_message())["id"] == ident
        assert stream.round_trip(request("free")) == request("free")


def test_default_limit_is_1024_waiting_messages(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with serving(command=backend("gated", gate)) as bridge:
        stream = bridge.open_sse()
        with bridge.connect() as connection:
            # More than the pipe and the transport hold.
            full = request("x", pad="x" * 140_000)
            assert connection.request("POST", stream.endpoint, full).status == 202
            for _ in range(1024):
                assert connection.request("POST", stream.endpoint, request("x")).status == 202
            assert connection.request("POST", stream.endpoint, request("x")).status == 503
        gate.touch()
        assert stream.read_message() == full
        assert all(stream.read_message() == request("x") for _ in range(1024))


def test_empty_queue_takes_any_message_within_max_message_bytes(tmp_path: Path) -> None:
    """Only bytes that wait already count, so one message may exceed `max_waiting_bytes`."""
    gate = tmp_path / "gate"
    with serving("--max-waiting-bytes", "1000", command=backend("gated", gate)) as bridge:
        stream = bridge.open_sse()
        large = [request("x", number, pad="x" * MEGABYTE) for number in range(2)]
        for body in large:
            stream.send_message(body)
        assert stream.post(request("small")).status == 503
        gate.touch()
        for body in large:
            assert stream.read_message() == body


def test_waiting_messages_are_freed_with_their_session(tmp_path: Path) -> None:
    """The bridge's memory does not grow."""
    options = ("--max-waiting-bytes", "3000000")
    with serving(*options, command=backend("gated", tmp_path / "gate")) as bridge:

        def visit() -> None:
            stream = bridge.open_sse()
            assert post_until_busy(stream, MEGABYTE) >= 3
            stream.close()
            bridge.wait_for_close(stream)

        visit()
        visit()
        before = bridge.rss()
        for _ in range(5):
            visit()
        # Each had more than three.
        assert bridge.rss() - before < 6 * MEGABYTE


# Messages beyond the limit.


def chunked(data: bytes, size: int = 50_000) -> bytes:
    """Encode a body in chunks."""
    parts = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_413_reaches_a_client_that_is_still_sending(coding: str) -> None:
    """
    A client that reads only after sending everything gets a 413 with a JSON body, and its
    session goes on.
    """
    data = request("x", pad="x" * (20 * MEGABYTE))
    with serving("--max-message-bytes", "100000") as bridge:
        stream = bridge.open_sse()
        before = bridge.rss()
        with bridge.connect() as connection:
            head = f"POST {stream.endpoint} HTTP/1.1\r\nHost: localhost\r\n"
            if coding == "length":
                connection.send(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            else:
                connection.send(
                    f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunked(data)
                )
            answer = connection.read_response()
            assert answer.status == 413
            assert answer.headers["content-type"] == "application/json"
            assert answer.json == {
                "jsonrpc": "2.0",
                "id": None,
                "error": {"code": -32000, "message": "a message may have 100000 bytes"},
            }
            assert connection.read_eof()
        # Nothing of it was stored.
        assert bridge.rss() - before < 2 * MEGABYTE
        assert stream.round_trip(request("y")) == request("y")


@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_413_comes_before_the_body_is_sent(coding: str) -> None:
    """The answer does not wait for the rest of the body."""
    with serving("--max-message-bytes", "1000") as bridge:
        stream = bridge.open_sse()
        with bridge.connect() as connection:
            head = f"POST {stream.endpoint} HTTP/1.1\r\nHost: localhost\r\n"
            if coding == "length":
                connection.send(f"{head}Content-Length: 100000000\r\n\r\n".encode())
            else:
                connection.send(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
                connection.send(b"%x\r\n" % 5000 + b"x" * 5000 + b"\r\n")
            assert connection.read_response().status == 413
        assert stream.round_trip(request("y")) == request("y")


def test_413_answers_expect_100_continue(tmp_path: Path) -> None:
    """A client that sends `Expect: 100-continue` gets the 413 and no 100."""
    with serving("--max-message-bytes", "1000") as bridge:
        stream = bridge.open_sse()
        with bridge.connect() as connection:
            head = f"POST {stream.endpoint} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            connection.send(f"{head}Content-Length: 5000\r\n\r\n".encode())
            assert connection.read_response().status == 413
        with bridge.connect() as connection:
            connection.send(f"{head}Content-Length: {len(request('y'))}\r\n\r\n".encode())
            assert connection.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
            connection.send(request("y"))
            assert connection.read_response().status == 202
        assert stream.read_message() == request("y")


def test_message_of_max_message_bytes_passes() -> None:
    """It passes both ways; one byte more is refused with 413."""
    with serving("--max-message-bytes", "5000") as bridge:
        stream = bridge.open_sse()
        body = request("x", pad="x" * (5000 - len(request("x", pad=""))))
        assert len(body) == 5000
        assert stream.round_trip(body) == body
        assert stream.post(body + b" ").status == 413
        assert stream.round_trip(body) == body


@pytest.mark.slow
def test_default_limit_of_a_message_is_16_mib() -> None:
    """The limit holds in both directions."""
    with serving() as bridge:
        stream = bridge.open_sse()
        body = request("x", pad="x" * (16 * 1024 * 1024 - len(request("x", pad=""))))
        assert stream.round_trip(body) == body
        assert stream.post(body + b" ").status == 413


def test_endless_line_ends_its_session() -> None:
    """The log gives the reason, and memory does not grow."""
    options = ("--max-message-bytes", "1000000", "--stop-grace", "0.1", "--kill-grace", "0.1")
    with serving(*options, command=backend("endless")) as bridge:
        first = bridge.open_sse()
        assert first.read_remaining_messages() == []
        bridge.wait_for_close(first)
        before = bridge.rss()
        for _ in range(10):
            stream = bridge.open_sse()
            assert stream.read_remaining_messages() == []
            reason = "the backend wrote an unterminated line of more than 64000000 bytes"
            assert reason in bridge.wait_for_close(stream)
        # 1 MB of each 64 MB line is kept for a while; kept for good, that would be 10 MB.
        assert bridge.rss() - before < 6 * MEGABYTE
        bridge.wait_until_empty()


def test_lines_around_an_oversized_one_arrive(tmp_path: Path) -> None:
    """The session goes on after a line beyond `max_message_bytes`."""
    good = request("good") + b"\n"
    (tmp_path / "lines").write_bytes(good * 3 + b"{" + b"x" * 2000 + b"\n" + good)
    command = backend("stdout", tmp_path / "lines")
    with serving("--max-message-bytes", "1000", command=command) as bridge:
        stream = bridge.open_sse()
        assert [stream.read_message() for _ in range(4)] == [request("good")] * 4
        bridge.wait_for_log("wrote a message of 2001 bytes", "max_message_bytes")
        assert stream.round_trip(request("y")) == request("y")


TOO_LARGE = ("--max-message-bytes", "20000")


@pytest.mark.parametrize("where", ["first", "last"])
def test_oversized_answer_on_sse_fails_its_call_only(where: str) -> None:
    """The session and its state stay."""
    with serving(*TOO_LARGE, command=backend("large_answers")) as bridge:
        stream = bridge.open_sse()
        assert stream.post(request("x", "big", where=where, size=50_000)).status == 202
        failed = json.loads(stream.read_message())
        assert (failed["id"], failed["error"]["code"]) == ("big", -32603)
        assert "max_message_bytes" in failed["error"]["message"]
        assert stream.post(request("x", 2, size=5)).status == 202
        assert json.loads(stream.read_message()) == {
            "jsonrpc": "2.0",
            "id": 2,
            "result": {"pad": "xxxxx"},
        }


def test_oversized_messages_on_mcp_cost_only_themselves() -> None:
    """An answer fails its call, a question is refused, a notification is lost."""
    with serving(*TOO_LARGE, command=backend("large_answers")) as bridge:
        client = bridge.open_streamable_http()
        for where in ("first", "last", "middle"):
            with client.call("x", where=where, size=50_000) as answer:
                assert answer.json["error"]["code"] == -32603, where
        stream = client.open_get_stream()
        client.notify("notify", size=50_000)
        client.notify("ask", size=50_000)
        error = stream.read_message()
        assert (error["method"], error["params"]["error"]["code"]) == (
            "notifications/heard",
            -32603,
        )
        assert client.call("x", size=5).read_final_message()["result"] == {"pad": "xxxxx"}


@pytest.mark.parametrize("where", ["first", "last", "middle"])
def test_oversized_answer_to_a_stateless_request_fails_it_only(where: str) -> None:
    """The process serves the next request."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    head = ["MCP-Protocol-Version: 2026-07-28", "Mcp-Method: resources/templates/list"]
    with serving(*TOO_LARGE, command=backend("large_answers")) as bridge:
        client = bridge.new_client()
        for size, failed in ((50_000, True), (5, False)):
            message = request("resources/templates/list", where=where, size=size, _meta=meta)
            with client.send("POST", message, *head) as answer:
                assert ("error" in answer.json) is failed
                assert answer.json["id"] == 1


# Other sessions.


def round_trips(stream: SseStream, count: int) -> None:
    """Make this many round trips on one connection."""
    for number in range(count):
        assert stream.round_trip(request("x", number)) == request("x", number)


def mixed(tmp_path: Path) -> dict[str, object]:
    """Return the configuration of an echo, a flood and two backends that misbehave."""
    return {
        "mcpServers": {
            name: {"command": line[0], "args": line[1:], "kill_grace": 0.1, "stop_grace": 0.1}
            for name, line in {
                "echo": backend("echo"),
                "flood": flood(10**12, 1000, tmp_path),
                "gated": backend("gated", tmp_path / "gate"),
                "endless": backend("endless"),
            }.items()
        }
    }


def test_stuck_session_does_not_delay_others(tmp_path: Path) -> None:
    """One session's client sleeps, another one's backend does not read."""
    with serving(config=mixed(tmp_path)) as bridge:
        other = bridge.open_sse("/echo")
        sleeping = bridge.open_sse("/flood", receive_buffer=SMALL)
        sleeping.send_message(request("begin"))
        wait_until_stuck(tmp_path)
        post_until_busy(bridge.open_sse("/gated"), 500_000)
        round_trips(other, 50)
        assert bridge.open_sse("/echo").round_trip(request("new")) == request("new")


def test_flooding_session_does_not_delay_others(tmp_path: Path) -> None:
    """Round trips go on at full load, even while other backends die."""
    with serving(config=mixed(tmp_path)) as bridge:
        other, flooding = bridge.open_sse("/echo"), bridge.open_sse("/flood")
        flooding.send_message(request("begin"))
        arrived = [0]
        over = False

        def read() -> None:
            while not over:
                arrived[0] += len(flooding.read_message())

        with in_background(read):
            try:
                wait_until(lambda: arrived[0])
                for _ in range(3):
                    before = arrived[0]
                    round_trips(other, 20)
                    bridge.open_sse("/endless")
                    wait_until(lambda: arrived[0] > before)  # noqa: B023
            finally:
                over = True


def test_clients_that_never_finish_a_request_delay_nobody(tmp_path: Path) -> None:
    with serving() as bridge:
        other = bridge.open_sse()
        for start in (
            b"G",
            b"GET /sse HTTP/1.1\r\n",
            b"POST /message HTTP/1.1\r\nHost: localhost\r\n",
        ):
            for _ in range(20):
                bridge.connect().send(start)
        round_trips(other, 20)
        _close_all_but(bridge, other)
        round_trips(other, 5)


def _close_all_but(bridge: Bridge, kept: SseStream) -> None:
    for connection in bridge.clients:
        if connection is not kept:
            connection.close()


def test_client_that_sends_behind_its_open_stream_is_dropped() -> None:
    """Requests behind an open stream can never be answered; too many end the session."""
    with serving() as bridge:
        stream = bridge.open_sse()
        with in_background(lambda: _send_on(stream)):
            bridge.wait_for_log("on a connection with an open stream")
            assert "the client went away" in bridge.wait_for_close(stream)


def _send_on(stream: SseStream) -> None:
    try:
        for _ in range(100):
            stream.send(b"GET /sse HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
    except OSError:
        pass
