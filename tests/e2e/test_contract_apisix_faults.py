"""
Faults that were measured in APISIX's `mcp-bridge`: the bridge has none of them.

Each test's docstring says what has to happen instead.  No test looks at a
clock: where nothing may wait, the grace periods are longer than any test.
"""

from __future__ import annotations

import json
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import (
    NEVER,
    Bridge,
    Connection,
    SseStream,
    backend,
    in_background,
    ping,
    request,
    serving,
    shell,
    wait_until,
)

GRACES_NEVER = ("--stop-grace", NEVER, "--kill-grace", NEVER)
GRACES_SHORT = ("--stop-grace", "0.1", "--kill-grace", "0.1")


@pytest.fixture(scope="module")
def shared() -> Iterator[Bridge]:
    """A bridge in front of a backend that does what its client asks."""
    with serving("--max-sessions", "2", *GRACES_SHORT, command=backend("obey")) as bridge:
        yield bridge


@pytest.fixture
def obeying(shared: Bridge) -> Iterator[Bridge]:
    """The shared bridge for one test."""
    yield shared
    shared.close_clients()


def recording(tmp_path: Path) -> list[str]:
    """Return a backend that writes its stdin to a file called `record`."""
    return backend("record", tmp_path / "record")


def recorded(stream: SseStream, tmp_path: Path, size: int) -> bytes:
    """Return what the backend has read, once it is this many bytes."""
    while json.loads(stream.read_message())["params"]["bytes"] < size:
        pass
    return (tmp_path / "record").read_bytes()


# Sessions and processes.


@pytest.mark.parametrize("leave", [SseStream.close, SseStream.reset])
def test_backend_ends_as_soon_as_its_client_leaves(
    leave: Callable[[SseStream], None], tmp_path: Path
) -> None:
    """No timer delays its exit."""
    pings = ("--ping-interval", NEVER, "--peer-timeout", NEVER)
    with serving(*pings, *GRACES_NEVER, command=recording(tmp_path)) as bridge:
        stream = bridge.open_sse()
        stream.send_message(request("x"))
        assert recorded(stream, tmp_path, 1) == request("x") + b"\n"
        leave(stream)
        bridge.wait_until_empty()
        assert "exit status 0" in bridge.wait_for_close(stream)


def test_backend_that_ignores_eof_gets_sigterm(tmp_path: Path) -> None:
    """Its stdin is closed; SIGTERM follows after `stop_grace`."""
    options = ("--stop-grace", "0.1", "--kill-grace", NEVER)
    with serving(*options, command=backend("stubborn", tmp_path / "told", "polite")) as bridge:
        stream = bridge.open_sse()
        assert b"ready" in stream.read_message()
        stream.close()
        assert "exit status 7" in bridge.wait_for_close(stream)
        assert (tmp_path / "told").read_text() == "EOF\nSIGTERM\n"


def test_backend_that_ignores_sigterm_gets_sigkill(tmp_path: Path) -> None:
    """EOF, SIGTERM and SIGKILL come in this order, with a grace period between them."""
    # The kill grace is long enough to note the SIGTERM on a busy machine.
    options = ("--stop-grace", "0.1", "--kill-grace", "2")
    with serving(*options, command=backend("stubborn", tmp_path / "told", "deaf")) as bridge:
        stream = bridge.open_sse()
        assert b"ready" in stream.read_message()
        stream.close()
        assert "signal 9" in bridge.wait_for_close(stream)
        assert (tmp_path / "told").read_text() == "EOF\nSIGTERM\n"
        bridge.wait_until_empty()


def test_backend_gets_no_sigterm_within_its_stop_grace(tmp_path: Path) -> None:
    """With a long `stop_grace` it sees EOF only."""
    command = backend("stubborn", tmp_path / "told", "polite")
    with serving("--stop-grace", NEVER, "--kill-grace", "0.1", command=command) as bridge:
        stream = bridge.open_sse()
        assert b"ready" in stream.read_message()
        stream.close()
        wait_until(lambda: (tmp_path / "told").read_text() == "EOF\n")
        # By the time another backend has started, the kill grace would be over.
        assert b"ready" in bridge.open_sse().read_message()
        assert (tmp_path / "told").read_text() == "EOF\n"
        for each in bridge.marked_processes():
            os.kill(each.pid, signal.SIGKILL)
        assert "signal 9" in bridge.wait_for_close(stream)


def test_grandchildren_end_with_their_session() -> None:
    """The backend is `sh -c "sleep 600 & sleep 600"`, whose whole process tree must be gone."""
    with serving(*GRACES_SHORT, command=shell("sleep 600.$0 & sleep 600.$0")) as bridge:
        streams = [bridge.open_sse(), bridge.open_sse()]
        bridge.wait_for_backends(4, "sleep 600.")
        streams[0].close()
        bridge.wait_for_close(streams[0])
        # They are gone when the log says so, and only those of this session.
        sleeping = [each for each in bridge.marked_processes() if each.command.startswith("sleep")]
        assert len(sleeping) == 2
        streams[1].reset()
        bridge.wait_for_close(streams[1])
        assert not bridge.backend_processes()


def test_grandchildren_of_an_exited_backend_get_sigterm_at_once() -> None:
    """There is no grace period, because the backend has exited by itself."""
    script = "sleep 600.$0 & read line; exit 5"
    with serving("--stop-grace", NEVER, "--kill-grace", NEVER, command=shell(script)) as bridge:
        stream = bridge.open_sse()
        bridge.wait_for_backends(1, "sleep 600.")
        stream.send_message(request("x"))
        assert stream.read_remaining_messages() == []
        assert "exit status 5" in bridge.wait_for_close(stream)
        assert not bridge.backend_processes()


@pytest.mark.parametrize(
    ("method", "reason"),
    [("exit", "exit status 3"), ("crash", "signal 9")],
)
def test_exit_of_a_backend_ends_its_session_only(obeying: Bridge, method: str, reason: str) -> None:
    """
    The stream ends, the child is reaped, and the permit is free; a later POST gets 404. Other
    sessions are not affected, and the bridge does not spin.
    """
    other, stream = obeying.open_sse(), obeying.open_sse()
    assert obeying.get_sse().status == 429
    stream.send_message(request(method, status=3))
    last = b'{"jsonrpc":"2.0","method":"last words"}'
    assert stream.read_remaining_messages() == ([last] if method == "exit" else [])
    assert reason in obeying.wait_for_close(stream)
    assert len(obeying.descendants()) == 1
    assert stream.post(request("late")).status == 404
    assert other.round_trip(request("other")) == request("other")
    fresh = obeying.open_sse()
    assert fresh.round_trip(request("fresh")) == request("fresh")
    before = obeying.cpu_ticks()
    time.sleep(0.5)
    # Half a second is fifty ticks.
    assert obeying.cpu_ticks() - before < 25


def test_missing_command_is_answered_with_502() -> None:
    """The error is clear, and other requests do not hang."""
    with serving(command=["/no/such/command"]) as bridge:
        for _ in range(3):
            refused = bridge.get_sse()
            assert refused.status == 502
            assert refused.headers["content-type"] == "application/json"
            assert json.loads(refused.body) == {
                "jsonrpc": "2.0",
                "id": None,
                "error": {
                    "code": -32603,
                    "message": "cannot start '/no/such/command': it was not found",
                },
            }
        assert bridge.request("GET", "/nothing").status == 404
        assert not bridge.backend_processes()


def test_max_sessions_is_one_limit_for_all_listeners() -> None:
    """The limit applies to the whole bridge, however many listeners it has."""
    listen = ("--listen", "tcp:0:interface=127.0.0.1") * 2
    with serving("--max-sessions", "1", listen=listen) as bridge:
        wait_until(lambda: bridge.log.count("/sse\n") == 2)
        lines = [line for line in bridge.log.splitlines() if line.endswith("/sse")]
        ports = [int(line.rpartition(":")[2].removesuffix("/sse")) for line in lines]
        assert len(set(ports)) == 2
        with SseStream(ports[0]).read_opening_events() as stream:
            for port in ports:
                with SseStream(port) as refused:
                    assert refused.status == 429
            # There is one table of sessions: a message may come through either port.
            with Connection(ports[1]) as connection:
                assert connection.request("POST", stream.endpoint, request("x")).status == 202
            assert stream.read_message() == request("x")
        bridge.wait_for_log(" closed after ")
        with SseStream(ports[1]).read_opening_events():
            pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_shutdown_ends_every_open_session(tmp_path: Path, number: signal.Signals) -> None:
    """Every backend is stopped and reaped before the bridge exits."""
    servers = {}
    for name, (command, *args) in {
        "echo": backend("echo"),
        "stubborn": backend("stubborn", tmp_path / "told", "deaf"),
        "scattered": backend("scattered"),
    }.items():
        graces = {"stop_grace": 0.1, "kill_grace": 0.1}
        servers[name] = {"command": command, "args": args, **graces}
    with serving(config={"mcpServers": servers}) as bridge:
        streams = [bridge.open_sse(f"/{name}") for name in servers for _ in range(2)]
        for stream in streams[2:]:
            assert b"ready" in stream.read_message()
        bridge.stop(number)
        assert bridge.log.count("the bridge is shutting down") == len(streams)
        # Each stream is completed, so its client knows that it is over.
        for stream in streams:
            assert stream.read_remaining_messages() == []
            assert stream.read_eof()


# Messages.


def test_line_written_in_two_halves_arrives_whole() -> None:
    """The backend pauses in the middle of a line of stdout."""
    with serving(command=backend("half_line")) as bridge:
        stream = bridge.open_sse()
        assert b"half" in stream.read_message()
        # The first half has been read by the time another session is open.
        assert b"half" in bridge.open_sse().read_message()
        line = b'{"jsonrpc":"2.0","method":"first and second"}'
        assert stream.round_trip(request("go on")) == line


def test_message_rate_is_bounded_only_by_the_backend() -> None:
    """
    APISIX's plugin took ten messages a second, so these would take three minutes, longer than any
    wait in these tests.
    """
    count = 2000
    with serving() as bridge:
        stream = bridge.open_sse()
        with bridge.connect() as connection:
            head = f"POST {stream.endpoint} HTTP/1.1\r\nHost: localhost\r\n"
            body = request("x")
            one = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
            with in_background(lambda: connection.send(one * count)):
                for _ in range(count):
                    assert connection.read_response().status == 202
        for _ in range(count):
            assert stream.read_message() == body


@pytest.mark.slow
def test_post_to_an_unknown_session_stores_nothing() -> None:
    """POSTs to invented session ids get 404, and other POSTs go on."""
    with serving() as bridge:
        stream = bridge.open_sse()
        body = request("x", pad="x" * 20_000)
        with bridge.connect() as connection:

            def post(count: int) -> None:
                for _ in range(count):
                    target = f"/message?sessionId={uuid.uuid4()}"
                    assert connection.request("POST", target, body).status == 404

            post(100)
            before = bridge.rss()
            post(1000)
            assert bridge.rss() - before < 2_000_000
        assert stream.round_trip(request("real")) == request("real")


@pytest.mark.parametrize(
    "answer",
    [
        b'{"jsonrpc":"2.0","id":"ping:1","result":{}}',
        b'{"id":"ping:1","error":{"code":-32601,"message":"x"},"jsonrpc":"2.0"}',
        b'{\n  "jsonrpc": "2.0",\n  "id": "ping\\u003a1",\n  "result": {}\n}',
    ],
)
def test_bridge_consumes_the_answer_to_its_own_ping(tmp_path: Path, answer: bytes) -> None:
    with serving(command=recording(tmp_path)) as bridge:
        stream = bridge.open_sse()
        stream.send_message(answer)
        stream.send_message(request("x"))
        assert recorded(stream, tmp_path, len(request("x"))) == request("x") + b"\n"
        # Only once: no ping awaits a second answer.
        stream.send_message(answer)
        wait_until(lambda: b"ping" in (tmp_path / "record").read_bytes())


def test_answer_to_a_request_of_the_backend_passes(tmp_path: Path) -> None:
    """Even if its id is that of one of the bridge's own pings."""
    asks = tmp_path / "asks"
    asks.write_bytes(ping(1) + b"\n" + b'{"jsonrpc":"2.0","id":"mine","method":"ping"}\n')
    with serving(command=backend("stdout", asks)) as bridge:
        stream = bridge.open_sse()
        assert stream.read_message() == ping(1)
        assert json.loads(stream.read_message())["id"] == "mine"
        for ident in ("ping:1", "mine", "ping:2", "other"):
            answer = b'{"jsonrpc":"2.0","id":"%s","result":{}}' % ident.encode()
            assert stream.round_trip(answer) == answer


def test_pretty_printed_body_becomes_one_line(tmp_path: Path) -> None:
    """The line has the same JSON."""
    message = {"jsonrpc": "2.0", "id": 1, "method": "x", "params": {"text": "a\nb\r\nc", "n": [1]}}
    record = tmp_path / "record"
    record.touch()
    with serving(command=recording(tmp_path)) as bridge:
        stream = bridge.open_sse()
        for text in (
            json.dumps(message, indent=2),
            json.dumps(message, indent="\t").replace("\n", "\r\n"),
            json.dumps(message, indent=1).replace("\n", "\r"),
            "\r\n\n" + json.dumps(message) + "\r\n\r\n",
        ):
            before = record.stat().st_size
            stream.send_message(text.encode())
            line = recorded(stream, tmp_path, before + 1)[before:]
            assert line.count(b"\n") == 1
            assert line.endswith(b"\n")
            assert b"\r" not in line
            assert json.loads(line) == message


def test_one_line_body_passes_unchanged(tmp_path: Path) -> None:
    """The backend gets the same bytes."""
    bodies = [
        b'{"jsonrpc":"2.0","method":"x"}',
        b' \t{ "method" :"x", "jsonrpc":  "2.0" , "x":1.0e+5, "x":"\\u00e4\\/" }  ',
        '{"jsonrpc":"2.0","id":-0.5,"method":"ä€𝄞\u2028"}'.encode(),
        b'[{"jsonrpc":"2.0","method":"x"}, {"jsonrpc":"2.0","id":1,"method":"y"}]',
        b'{"jsonrpc":"2.0","id":12345678901234567890123,"method":"x"}',
        b'{"jsonrpc":"2.0","method":"\\ud800"}',
        request("large", pad="x" * 1_000_000),
    ]
    expected = b"".join(body + b"\n" for body in bodies)
    with serving(command=recording(tmp_path)) as bridge:
        stream = bridge.open_sse()
        for body in bodies:
            stream.send_message(body)
        assert recorded(stream, tmp_path, len(expected)) == expected


def test_blank_lines_and_carriage_returns_are_removed(tmp_path: Path) -> None:
    """
    A blank line of stdout is no event; of a line that ends with `\\r\\n`, only that `\\r` is
    removed.
    """
    (tmp_path / "lines").write_bytes(
        b'\n\r\n  \n{"jsonrpc":"2.0","method":"a"}\r\n\n\r\n'
        b'{"jsonrpc":"2.0",\r"method":"b"}\n'
        b'{"jsonrpc":"2.0","method":"c\\r\\n"}\r\r\n'
        b"\t\r\n"
        b'{"jsonrpc":"2.0","method":"d"}\n'
    )
    with serving(command=backend("stdout", tmp_path / "lines")) as bridge:
        stream = bridge.open_sse()
        assert [stream.read_message() for _ in range(4)] == [
            b'{"jsonrpc":"2.0","method":"a"}',
            # A raw `\r` would end the event's line; between tokens it is white space.
            b'{"jsonrpc":"2.0", "method":"b"}',
            b'{"jsonrpc":"2.0","method":"c\\r\\n"} ',
            b'{"jsonrpc":"2.0","method":"d"}',
        ]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"hello", -32700),
        (b'{"jsonrpc":"2.0","method":"x"', -32700),
        (b'{"jsonrpc":"2.0","method":"x"} {}', -32700),
        (b'{"jsonrpc":"2.0","method":"x","params":{"n":NaN}}', -32700),
        (b'{"jsonrpc":"2.0","method":"\xff"}', -32700),
        (b'{"jsonrpc":"2.0","method":"x","other":"\xff"}', -32700),
        (b'\xef\xbb\xbf{"jsonrpc":"2.0","method":"x"}', -32700),
        (b"[" * 100_000 + b"]" * 100_000, -32700),
        (b'{"jsonrpc":"2.0","method":"x","params":' + b"[" * 99999 + b"]" * 99999 + b"}", -32700),
        (b"sessionId=1&x=2", -32700),
        (b'"text"', -32600),
        (b"1", -32600),
        (b"null", -32600),
        (b"{}", -32600),
        (b'{"method":"x"}', -32600),
        (b'{"jsonrpc":"1.0","method":"x"}', -32600),
        (b'{"jsonrpc":"2.0"}', -32600),
        (b'{"jsonrpc":"2.0","id":1}', -32600),
        (b'{"jsonrpc":"2.0","method":1}', -32600),
        (b'{"jsonrpc":"2.0","id":[],"method":"x"}', -32600),
    ],
)
def test_invalid_body_is_refused_with_400(obeying: Bridge, body: bytes, code: int) -> None:
    """A body that is not JSON gets a JSON-RPC error, and nothing is forwarded."""
    stream = obeying.open_sse()
    with obeying.connect() as connection:
        answer = connection.request("POST", stream.endpoint, body)
        assert answer.status == 400
        assert answer.headers["content-type"] == "application/json"
        assert set(answer.json) == {"jsonrpc", "id", "error"}
        assert (answer.json["jsonrpc"], answer.json["id"]) == ("2.0", None)
        assert answer.json["error"]["code"] == code
        assert "\n" not in answer.json["error"]["message"]
        # The connection stays open, and the backend has received nothing.
        assert connection.request("POST", stream.endpoint, request("next")).status == 202
    assert stream.read_message() == request("next")


# Environment.


#: Without these, `npx` and `uvx` cannot use a proxy.
CONNECTIVITY = {
    *("CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "SSL_CERT_DIR"),
    *("SSL_CERT_FILE", "NPM_CONFIG_CACHE", "NPM_CONFIG_REGISTRY", "npm_config_cache"),
    *("npm_config_registry", "UV_CACHE_DIR", "UV_INDEX_URL", "HTTP_PROXY", "HTTPS_PROXY"),
    *("ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
}


def test_backend_gets_only_the_allowed_environment() -> None:
    """It gets HOME, PATH, LANG, proxies and what the options name, but no secret of the bridge."""
    environment = {
        "HOME": "/home/somebody",
        "LANG": "C.UTF-8",
        "LC_TIME": "de_DE.UTF-8",
        "TZ": "Europe/Berlin",
        "AWS_SECRET_ACCESS_KEY": "hidden",
        "LD_PRELOAD_NOT": "hidden",
        "NAMED": "passed on",
        "PYTHONUNBUFFERED": "1",
    }
    options = ("--pass-env", "NAMED", "--pass-env", "NOT_SET", "--env", "OURS=a=b", "--env", "E=")
    with serving(*options, command=backend("describe"), environment=environment) as bridge:
        described = json.loads(bridge.open_sse().read_message())["params"]["environment"]
        assert "/" in described["PATH"]
        expected = {name: environment[name] for name in ("HOME", "LANG", "LC_TIME", "TZ", "NAMED")}
        assert described | expected | {"OURS": "a=b", "E": ""} == described
        allowed = {"PATH", "TMPDIR", "USER", "LOGNAME", "SHELL", "TERM"} | expected.keys()
        allowed |= CONNECTIVITY
        others = {n for n in described if not n.startswith(("LC_", "XDG_"))} - allowed
        assert others == {"OURS", "E"}
        assert "hidden" not in described.values()
