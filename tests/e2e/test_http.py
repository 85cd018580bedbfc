"""HTTP answers, startup messages, and secrets that the log never holds."""

from __future__ import annotations

import json
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcpbridge.tap import Options
from tests.e2e.harness import LOOPBACK, Bridge, backend, request, run_to_end, serving, wait_until

UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def shared() -> Iterator[Bridge]:
    """Three servers: one at the root, and two below each other."""
    command, *args = backend("echo")
    servers: dict[str, Any] = {
        name: {"command": command, "args": args, "base_uri": base}
        for name, base in {"root": "", "outer": "/a", "inner": "/a/b"}.items()
    }
    servers["described"] = {"command": command, "args": backend("describe", "of its own")[1:]}
    servers["limited"] = {"command": command, "args": args, "max_sessions": 1}
    with serving(config={"mcpServers": servers}) as bridge:
        yield bridge


@pytest.fixture
def bridge(shared: Bridge) -> Iterator[Bridge]:
    """The shared bridge for one test."""
    yield shared
    shared.close_clients()


def error(code: int, message: str) -> dict[str, Any]:
    """Return a JSON-RPC error without an id."""
    return {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}


NOTHING = error(-32000, "nothing is served at this path")
LOOK_HERE = error(
    -32000,
    "nothing is served at this path; MCP is at /mcp, /a/mcp, /a/b/mcp and 2 more",
)
LOOK_AT_A = error(-32000, "nothing is served at this path; MCP is at /a/mcp and /a/sse")
LOOK_AT_B = error(-32000, "nothing is served at this path; MCP is at /a/b/mcp and /a/b/sse")
NO_SESSION = error(-32001, "no such session, or it has ended")


# Bad input.


@pytest.mark.parametrize(
    ("method", "target", "status", "body"),
    [
        ("GET", "//", 404, LOOK_HERE),
        ("GET", "/nothing", 404, NOTHING),
        ("GET", "//sse", 404, LOOK_HERE),
        ("GET", "/sse//", 404, LOOK_HERE),
        ("GET", "/a//sse", 404, LOOK_AT_A),
        ("GET", "//a/sse", 404, LOOK_HERE),
        ("GET", "/a", 404, LOOK_AT_A),
        ("GET", "/a/", 404, LOOK_AT_A),
        ("GET", "/a/b", 404, LOOK_AT_B),
        ("GET", "/a/b/c/sse", 404, NOTHING),
        ("GET", "/a/sse/b/sse", 404, NOTHING),
        ("GET", "/a%2Fsse", 404, LOOK_HERE),
        ("GET", "/a%2Fb/sse", 404, LOOK_HERE),
        ("GET", "/sse%00", 404, NOTHING),
        ("GET", "/sse%20", 404, NOTHING),
        ("GET", "/%ff/sse", 404, LOOK_HERE),
        ("GET", "/%ff", 404, LOOK_HERE),
        ("GET", "/sse%ff", 404, LOOK_HERE),
        ("GET", "/.", 404, NOTHING),
        ("GET", "/a/../sse", 404, NOTHING),
        ("GET", "/<x>", 404, NOTHING),
        ("GET", "/" + "x" * 5000, 404, NOTHING),
        ("POST", "//", 404, LOOK_HERE),
        ("POST", "/nothing", 404, NOTHING),
        ("GET", "/message", 405, error(-32000, "this path takes POST")),
        ("PUT", "/message", 405, error(-32000, "this path takes POST")),
        ("DELETE", f"/message?sessionId={UNKNOWN}", 405, error(-32000, "this path takes POST")),
        ("POST", "/sse", 405, error(-32000, "this path takes GET")),
        ("PUT", "/a/b/sse", 405, error(-32000, "this path takes GET")),
        ("POST", "/message", 404, NO_SESSION),
        ("POST", "/message?", 404, NO_SESSION),
        ("POST", "/message?sessionId=", 404, NO_SESSION),
        ("POST", f"/message?sessionId={UNKNOWN}", 404, NO_SESSION),
        ("POST", f"/message?sessionId={UNKNOWN}&sessionId={UNKNOWN}", 404, NO_SESSION),
        ("POST", "/message?sessionId=" + "x" * 5000, 404, NO_SESSION),
        ("POST", "/message?sessionId=%ff%00%0d%0a", 404, NO_SESSION),
        ("POST", f"/a/message?sessionId={UNKNOWN}", 404, NO_SESSION),
    ],
)
def test_bad_requests_get_an_exact_status_and_json_body(
    bridge: Bridge, method: str, target: str | bytes, status: int, body: dict[str, Any]
) -> None:
    """The connection stays open."""
    with bridge.connect() as connection:
        for _ in range(2):
            answer = connection.request(method, target, b"x" if method in ("POST", "PUT") else None)
            assert answer.status == status
            assert answer.json == body
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers.get("connection", "").lower() != "close"
        if status == 405:
            assert answer.headers["allow"] in body["error"]["message"]


def test_method_that_is_none_of_http_is_refused(bridge: Bridge) -> None:
    """The connection is closed: nobody knows where such a request ends."""
    with bridge.connect() as connection:
        answer = connection.request("NONSENSE", "/sse")
        assert answer.status == 405
        assert answer.json == error(-32000, "the method is not one of HTTP")
        assert answer.headers["allow"] == "DELETE, GET, OPTIONS, POST"
        assert answer.headers["connection"] == "close"
        assert connection.read_eof()


@pytest.mark.parametrize("target", ["/sse", "/a/sse", "/a/b/sse"])
def test_head_on_sse_opens_no_stream(bridge: Bridge, target: str) -> None:
    """405, no body, no backend, and the connection is free again."""
    before = bridge.log.count("' opened")
    with bridge.connect() as connection:
        for _ in range(2):
            answer = connection.request("HEAD", target)
            assert answer.status == 405
            assert answer.headers["allow"] == "GET"
            assert "event-stream" not in answer.headers["content-type"]
        assert connection.request("GET", "//").status == 404
    assert bridge.log.count("' opened") == before


@pytest.mark.parametrize("target", ["//", "/nothing", "/message"])
def test_head_is_answered_without_a_body(bridge: Bridge, target: str) -> None:
    with bridge.connect() as connection:
        assert connection.request("HEAD", target).status in (404, 405)
        assert connection.request("GET", "//").json == LOOK_HERE


@pytest.mark.parametrize("target", ["/sse", "/message", "/a/b/sse", "/nothing", "*"])
def test_options_opens_no_stream(bridge: Bridge, target: str) -> None:
    """The answer is complete."""
    with bridge.connect() as connection:
        answer = connection.request("OPTIONS", target)
        assert answer.status in (200, 204, 404, 405)
        assert connection.request("GET", "//").status == 404


@pytest.mark.parametrize(
    "body", [b"", b"no JSON", b"\xff", b"{}", request("x"), b"[" * 100_000, b"x" * 20_000_000]
)
def test_unknown_session_is_404_whatever_the_body(bridge: Bridge, body: bytes) -> None:
    """Even one that is too large."""
    answer = bridge.request("POST", f"/message?sessionId={UNKNOWN}", body)
    assert answer.status == 404
    assert answer.json == NO_SESSION


def test_session_id_is_unknown_to_other_servers(bridge: Bridge) -> None:
    stream = bridge.open_sse("/a")
    for base in ("", "/a/b", "/limited"):
        target = f"{base}/message?sessionId={stream.session_id}"
        assert bridge.request("POST", target, request("x")).status == 404
    assert stream.round_trip(request("x")) == request("x")


def test_connection_stays_open_after_refusals(bridge: Bridge) -> None:
    """202, 400 and 404 in turn, pipelined."""
    stream = bridge.open_sse()
    one = request("x")
    head = f"POST {stream.endpoint} HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
    good = f"{head}{len(one)}\r\n\r\n".encode() + one
    bad = f"{head}4\r\n\r\nnope".encode()
    lost = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with bridge.connect() as connection:
        connection.send((good + bad + lost) * 10)
        statuses = [connection.read_response().status for _ in range(30)]
        assert statuses == [202, 400, 404] * 10
        assert connection.is_open()
    assert all(stream.read_message() == one for _ in range(10))


def test_needlessly_encoded_path_is_decoded(bridge: Bridge) -> None:
    stream = bridge.get_sse("/%61/%73se")
    assert stream.status == 200
    assert stream.read_opening_events().endpoint.startswith("/a/message?sessionId=")


def test_query_of_sse_is_ignored(bridge: Bridge) -> None:
    assert bridge.get_sse("/sse?token=x&y=%ff").read_opening_events().round_trip(
        request("x")
    ) == request("x")


def test_session_id_is_found_among_other_arguments(bridge: Bridge) -> None:
    stream = bridge.open_sse()
    target = f"/message?a=1&sessionId={stream.session_id}&b=%ff"
    assert bridge.request("POST", target, request("x")).status == 202
    assert stream.read_message() == request("x")


def test_chunked_body_is_accepted(bridge: Bridge) -> None:
    stream, body = bridge.open_sse(), request("x")
    with bridge.connect() as connection:
        connection.send(f"POST {stream.endpoint} HTTP/1.1\r\nHost: localhost\r\n".encode())
        connection.send(b"Transfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(body), 7):
            part = body[at : at + 7]
            connection.send(b"%x\r\n%s\r\n" % (len(part), part))
        connection.send(b"0\r\n\r\n")
        assert connection.read_response().status == 202
        assert connection.request("GET", "//").status == 404
    assert stream.read_message() == body


def test_http_1_0_client_gets_an_unchunked_stream(bridge: Bridge) -> None:
    """The connection is closed at its end."""
    with bridge.connect() as connection:
        connection.send(b"GET /sse HTTP/1.0\r\n\r\n")
        status, headers = connection.read_head()
        assert status == 200
        assert "transfer-encoding" not in headers
        assert connection.read_until(b"\n\n").startswith(
            b"event: endpoint\ndata: /message?sessionId="
        )


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /a/\xc3\xa4/sse HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /message HTTP/1.1\r\nHost: localhost\r\nContent-Length: many\r\n\r\n",
        b"POST /message HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000,
    ],
)
def test_invalid_http_ends_only_its_own_connection(bridge: Bridge, garbage: bytes) -> None:
    """No client sees a traceback."""
    stream = bridge.open_sse()
    with bridge.connect() as connection:
        try:
            connection.send(garbage)
            connection.half_close()
            connection.read_eof()
        except OSError:
            pass
        assert b"Traceback" not in connection._buffer
    assert stream.round_trip(request("x")) == request("x")


# Several servers.


def test_each_server_of_a_file_has_its_own_base_and_command(bridge: Bridge) -> None:
    """One base may lie below another."""
    endpoints = {base: bridge.open_sse(base) for base in ("", "/a", "/a/b")}
    for base, stream in endpoints.items():
        assert stream.endpoint == f"{base}/message?sessionId={stream.session_id}"
        assert stream.round_trip(request(base)) == request(base)
    described = json.loads(bridge.open_sse("/described").read_message())
    assert described["params"]["arguments"] == ["of its own"]


def test_full_server_does_not_affect_others(bridge: Bridge) -> None:
    bridge.open_sse("/limited")
    assert bridge.get_sse("/limited/sse").status == 429
    bridge.open_sse("/a")


def test_bridge_max_sessions_limits_all_servers_together() -> None:
    command, *args = backend("echo")
    servers = {name: {"command": command, "args": args} for name in ("one", "two")}
    with serving(config={"mcpServers": servers, "bridge": {"max_sessions": 2}}) as bridge:
        first = bridge.open_sse("/one")
        bridge.open_sse("/two")
        assert bridge.get_sse("/one/sse").status == 429
        assert bridge.get_sse("/two/sse").status == 429
        first.close()
        bridge.wait_for_close(first)
        bridge.open_sse("/two")


def test_startup_prints_the_served_urls(shared: Bridge) -> None:
    served = re.findall(r"serving (http://\S+)$", shared.log, re.MULTILINE)
    origin = f"http://127.0.0.1:{shared.port}"
    bases = ("", "/a", "/a/b", "/described", "/limited")
    assert served == [f"{origin}{base}/{name}" for base in bases for name in ("mcp", "sse")]


def has_ipv6() -> bool:
    """Return True if this machine has an IPv6 loopback address."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_listen_option_overrides_the_listeners_of_a_file() -> None:
    command, *args = backend("echo")
    # Not every container has the other one.
    interface, host = ("\\:\\:1", "[::1]") if has_ipv6() else ("127.0.0.2", "127.0.0.2")
    bridge_object = {"listen": ["tcp:0:interface=127.0.0.1", f"tcp:0:interface={interface}"]}
    config = {"mcpServers": {"one": {"command": command, "args": args}}, "bridge": bridge_object}
    with serving(config=config, listen=()) as bridge:
        wait_until(lambda: bridge.log.count("serving http://") == 4)
        assert f"serving http://{host}:" in bridge.log
    with serving(config=config) as bridge:
        bridge.open_sse("/one")
        assert bridge.log.count("serving http://") == 2


def test_public_path_is_advertised_as_the_endpoint() -> None:
    """For a proxy that rewrites paths."""
    with serving("--base-uri", "/in", "--public-path", "/out/side") as bridge:
        stream = bridge.open_sse("/in")
        assert stream.endpoint == f"/out/side/message?sessionId={stream.session_id}"
        target = f"/in/message?sessionId={stream.session_id}"
        assert bridge.request("POST", target, request("x")).status == 202


#: As recorded from Chromium 156: `<img>`, a fetch with `no-cors`, an iframe,
#: `window.open`; Accept, Sec-Fetch-Mode, Sec-Fetch-Dest.
FROM_A_PAGE = [
    ("image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", "no-cors", "image"),
    ("text/event-stream", "no-cors", "empty"),
    ("text/html,application/xhtml+xml,*/*;q=0.8", "navigate", "iframe"),
    ("text/html,application/xhtml+xml,*/*;q=0.8", "navigate", "document"),
]


def test_pages_of_other_sites_start_no_backend() -> None:
    """On every route and on both paths; a page with an allowed Origin gets its stream."""
    allowed = "https://app.example"
    agent = "User-Agent: Mozilla/5.0 (X11; Linux x86_64) Chrome/156.0"
    with serving("--allow-origin", allowed) as bridge:
        for site in ("cross-site", "same-site"):
            for accept, mode, dest in FROM_A_PAGE:
                fetch = [f"Sec-Fetch-Mode: {mode}", f"Sec-Fetch-Dest: {dest}", agent]
                fetch += [f"Sec-Fetch-Site: {site}", f"Accept: {accept}"]
                with bridge.connect() as connection:
                    for method, body in (("GET", None), ("POST", request("initialize"))):
                        for path in ("/sse", "/mcp", f"/message?sessionId={UNKNOWN}"):
                            answer = connection.request(method, path, body, *fetch)
                            assert (answer.status, answer.json["error"]["code"]) == (403, -32000)
        with bridge.connect() as connection:
            assert (
                connection.request("GET", "/sse", None, agent, "Accept: image/*, */*").status == 403
            )
            ahead = ("Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate", "Sec-Purpose: prefetch")
            assert connection.request("GET", "/sse", None, agent, *ahead).status == 403
            rebound = connection.request("GET", "/sse", None, agent, "Host: attacker.example")
            assert rebound.status == 403
        assert bridge.descendants() == set()
        for sender in ("Sec-Fetch-Site: same-origin", f"Origin: {allowed}", "Accept: */*"):
            with bridge.connect() as connection:
                connection.send(
                    f"GET /sse HTTP/1.1\r\nHost: {connection.host}\r\n{sender}\r\n\r\n".encode()
                )
                assert connection.read_head()[0] == 200
        bridge.close_clients()


# The log.


def test_logs_hold_no_session_id_and_no_message(tmp_path: Path) -> None:
    """Neither the log nor the access log has a whole session id or any part of a message."""
    with serving("--access-log", command=backend("obey")) as bridge:
        first, second = bridge.open_sse(), bridge.open_sse()
        for stream in (first, second):
            assert stream.round_trip(request("SECRET-WORD")) == request("SECRET-WORD")
            assert stream.post(b"SECRET-WORD").status == 400
            assert stream.post(b'{"jsonrpc":"SECRET-WORD"}').status == 400
            assert bridge.request("GET", stream.endpoint).status == 405
            with bridge.connect() as connection:
                ident = stream.session_id
                target = f"{stream.endpoint}&x=1&sessionid={ident}&SessionID={ident}"
                assert connection.request("POST", target, request("SECRET-WORD")).status == 202
                assert connection.request("POST", f"/x{stream.endpoint}", b"x").status == 404
                escaped = stream.endpoint.replace("sessionId", "session%49d")
                assert connection.request("POST", escaped, request("SECRET-WORD")).status == 202
                assert (
                    connection.request("POST", f"/message/{stream.session_id}", b"x").status == 404
                )
        second.send_message(request("crash"))
        assert b"SECRET-WORD" in second.read_remaining_messages()[0]
        first.close()
        bridge.wait_for_close(first)
        bridge.wait_for_close(second)
        bridge.stop()
        for stream in (first, second):
            assert stream.session_id[:8] in bridge.log
            assert stream.session_id[:9] not in bridge.log
            assert stream.session_id[9:] not in bridge.log
        assert "SECRET-WORD" not in bridge.log
        assert "127.0.0.1 POST /message?sessionId=" in bridge.log
        assert " 202 " in bridge.log
        assert " 405 " in bridge.log


def test_access_log_is_off_by_default() -> None:
    """Nothing is logged of a single request unless it is asked for."""
    with serving() as bridge:
        assert bridge.request("GET", "/nothing").status == 404
        bridge.stop()
        assert "/nothing" not in bridge.log


def test_access_log_has_one_line_per_request() -> None:
    """Nothing that a client sends can forge a line."""
    with serving("--access-log") as bridge:
        before = len(bridge.log.splitlines())
        bridge.request("GET", "/a%0d%0aforged")
        bridge.request("GET", "/%1b[31m%e2%80%a8x?\\n")
        wait_until(lambda: bridge.log.count(" 404 ") == 2)
        assert len(bridge.log.splitlines()) == before + 2
        assert "\x1b" not in bridge.log


def test_log_accounts_for_a_closed_session() -> None:
    """Closed: reason, duration, messages and bytes each way, exit status, last lines of stderr."""
    script = 'echo "one \\"odd\\" line" >&2; read line; echo "{}"; exit 4'
    with serving(command=["sh", "-c", script]) as bridge:
        stream = bridge.open_sse()
        assert b"odd" in stream.read_message()
        stream.send_message(request("x"))
        assert stream.read_remaining_messages() == [b"{}"]
        line = bridge.wait_for_close(stream)
        sent = f"in 1 messages ({len(request('x'))} B), out 2 ("
        assert re.search(r"closed after \d+\.\d s: the backend ", line)
        assert sent in line
        assert "backend: exit status 4" in line
        assert 'last stderr: one "odd" line' in line


# The start.


def complaint(*arguments: str) -> str:
    """Return the plugin's error about a command line, without starting a process."""
    with pytest.raises(SystemExit) as caught:
        Options().parseOptions(arguments)
    return str(caught.value.code)


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("--max-sessions", "0", "0"),
        ("--stop-grace", "-1", "-1.0"),
        ("--kill-grace", "x", '"x"'),
        ("--ping-interval", "nan", '"nan"|nan|null'),
        ("--peer-timeout", "0", "0.0"),
        ("--max-message-bytes", "1e6", '"1e6"'),
        ("--max-waiting-messages", "0", "0"),
        ("--max-waiting-bytes", "-5", "-5"),
        ("--base-uri", "x", '"x"'),
        ("--base-uri", "/x/", '"/x/"'),
        ("--base-uri", "/x?y", '"/x\\?y"'),
        ("--base-uri", "/x y", '"/x y"'),
        ("--base-uri", "/%41", '"/%41"'),
        ("--env", "NAME", '"NAME"'),
        ("--env", "=x", "a value without a name"),
        ("--pass-env", "A=B", r'.*"A=\.\.\.".*'),
        ("--listen", "tcp:many", ".*tcp:many.*"),
        ("--listen", "nonsense:1", ".*nonsense:1.*"),
        ("--cwd", "", '""'),
    ],
)
def test_invalid_option_is_one_clear_line(name: str, value: str, got: str) -> None:
    """It names the setting, what was expected and what was given."""
    output = complaint(name, value, "--", "cat")
    key = r"\([a-z_.]+\)"
    assert re.fullmatch(f"mcpbridge: {name} {key}: expected .+, got ({got})", output), output


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "expected `}`, got the end of the file"),
        ("[]", "expected an object with `mcpServers`, got .+"),
        ("[" * 100_000, "nested too deeply, .+"),
        ("{}", "expected an object of named servers, `mcpServers` .+"),
        ('{"servers":{}}', "servers: expected at least one server .+"),
        ('{"mcpServers":{}}', "mcpServers: expected at least one server .+"),
        ('{"mcpServers":{"a":[]}}', "mcpServers.a: expected an object, got .+"),
        ('{"mcpServers":{"a":{}}}', "mcpServers.a: there is no `command`, nor .+"),
        ('{"mcpServers":{"a":{"command":""}}}', "mcpServers.a.command: expected .+"),
        ('{"mcpServers":{"a":{"command":"x","args":"y"}}}', "mcpServers.a.args: expected .+"),
        (
            '{"mcpServers":{"a":{"command":"x","max_session":1}}}',
            "mcpServers.a.max_session: unknown key .+; did you mean `max_sessions`.",
        ),
        (
            '{"mcpServers":{"a":{"command":"x","env":{"A":1}}}}',
            "mcpServers.a.env.A: expected a string, got .+",
        ),
        (
            '{"mcpServers":{"a":{"command":"x"},"a":{"command":"y"}}}',
            "mcpServers.a: duplicate key; it is set again in line 1",
        ),
        (
            '{"mcpServers":{"a":{"command":"x","url":"http://x"}}}',
            "mcpServers.a.url: expected either `command` or `url`, got both",
        ),
        (
            '{"mcpServers":{"a":{"command":"x"}},"bridge":[]}',
            "bridge: expected an object, got .+",
        ),
        (
            '{"mcpServers":{"a":{"command":"x"}},"bridge":{"listen":"tcp:1"}}',
            "bridge.listen: expected .+",
        ),
        (
            '{"mcpServers":{"a":{"command":"x"}},"bridge":{"max_sessions":true}}',
            "bridge.max_sessions: expected an integer ≥ 1, got true",
        ),
        (
            (
                '{"mcpServers":{"a":{"command":"x"},"b":{"command":"x","base_uri":"/a"}},'
                '"bridge":{"strict":true}}'
            ),
            "mcpServers.b.base_uri: the path .+",
        ),
    ],
)
def test_invalid_file_is_one_clear_line_with_its_position(
    tmp_path: Path, content: str, says: str
) -> None:
    file = tmp_path / "config.json"
    file.write_text(content)
    output = complaint("--config", str(file))
    assert re.fullmatch(rf"mcpbridge: {file}:\d+(:\d+)?: {says}", output), output


def test_invalid_setting_starts_nothing(tmp_path: Path) -> None:
    """twistd prints that line only, and exits with status 1."""
    options = ("--listen", "tcp:many", "--max-sessions", "3")
    status, output = run_to_end(*options, "--", "touch", "started", cwd=tmp_path)
    assert status == 1
    assert output == f"{complaint(*options, '--', 'cat')}\n"
    assert list(tmp_path.iterdir()) == []


def test_missing_file_is_named(tmp_path: Path) -> None:
    status, output = run_to_end("--config", str(tmp_path / "none.json"))
    assert status == 1
    assert output.count("\n") == 1
    assert output.startswith(f"mcpbridge: --config: expected a readable file, got {tmp_path}/none")


def test_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    """It names the endpoint, and twistd exits with status 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        status, output = run_to_end(*LOOPBACK, "--listen", endpoint, "--", "cat", cwd=tmp_path)
    assert status == 1
    complaints = [line for line in output.splitlines() if "mcpbridge: " in line]
    assert len(complaints) == 1
    assert endpoint in complaints[0]
    assert "in use" in complaints[0]
    assert "Traceback" not in output
    assert "serving" not in output


def test_missing_command_may_appear_later(tmp_path: Path) -> None:
    """
    A command that cannot be found is reported at startup and does not stop the
    bridge: each session looks it up again, is answered with 502 and JSON before
    any stream header, and works once the command exists.
    """
    tool = tmp_path / "bin" / "tool"
    options = ("--env", f"PATH={tool.parent}", "--max-sessions", "1")
    with serving(*options, command=["tool"]) as bridge:
        bridge.wait_for_log("'tool': cannot start 'tool': it was not found")
        for _ in range(3):
            refused = bridge.get_sse()
            assert refused.status == 502
            assert refused.headers["content-type"] == "application/json"
            assert json.loads(refused.body) == error(
                -32603, "cannot start 'tool': it was not found in the backend's PATH"
            )
        tool.parent.mkdir()
        tool.write_text("#!/bin/sh\nexec /bin/cat -\n")
        assert "is not executable" in bridge.get_sse().body.decode()
        tool.chmod(stat.S_IRWXU)
        stream = bridge.open_sse()
        assert stream.post(request("x")).status == 202
        stream.close()
        bridge.wait_for_close(stream)
        tool.unlink()
        assert bridge.get_sse().status == 502


def test_missing_command_does_not_affect_other_servers(tmp_path: Path) -> None:
    command, *args = backend("echo")
    servers: dict[str, Any] = {
        "missing": {"command": "/no/such/command"},
        "nowhere": {"command": command, "args": args, "cwd": str(tmp_path / "none")},
        "works": {"command": command, "args": args},
    }
    with serving(config={"mcpServers": servers}) as bridge:
        bridge.wait_for_log("'missing'", "was not found")
        bridge.wait_for_log("'nowhere'", "does not exist")
        assert bridge.get_sse("/missing/sse").status == 502
        assert bridge.get_sse("/nowhere/sse").status == 502
        assert bridge.open_sse("/works").round_trip(request("x")) == request("x")


def test_invalid_executable_ends_its_session(tmp_path: Path) -> None:
    """The log gives the reason."""
    tool = tmp_path / "tool"
    tool.write_bytes(b"\x7fELF nonsense")
    tool.chmod(stat.S_IRWXU)
    with serving(command=[str(tool)]) as bridge:
        bridge.open_sse().read_remaining_messages()
        line = bridge.wait_for_log(" closed after ")
        assert "exit status 126" in line or "exit status 127" in line
        bridge.wait_until_empty()


def test_cwd_is_the_backends_directory(tmp_path: Path) -> None:
    """A relative command is looked up there too."""
    (tmp_path / "run").symlink_to(backend("describe")[0])
    command = ["./run", *backend("describe")[1:]]
    with serving("--cwd", str(tmp_path), command=command) as bridge:
        described = json.loads(bridge.open_sse().read_message())["params"]
        assert described["directory"] == str(tmp_path)


def test_stderr_is_logged_while_the_backend_runs() -> None:
    """So the operator can see what a hanging or installing backend prints."""
    script = 'printf "one\\033[31m\\n" >&2; read line; cat > /dev/null'
    with serving(command=["sh", "-c", script]) as bridge:
        stream = bridge.open_sse()
        line = f"'sh' {stream.session_id[:8]} stderr: one\\x1b[31m"
        wait_until(lambda: line in bridge.log)
        assert stream.is_open()
        assert "\x1b" not in bridge.log
        stream.close()
        bridge.wait_for_close(stream)


def test_last_stderr_of_a_backend_is_logged() -> None:
    """However soon it ends; one warning tells what to do about all such ends."""
    with serving(command=["sh", "-c", "echo last words >&2; exit 3"]) as bridge:
        for _ in range(2):
            stream = bridge.open_sse()
            assert "last stderr: last words" in bridge.wait_for_close(stream)
        assert bridge.log.count("stderr: last words\n") >= 2
        assert bridge.log.count("failed: ") == 1
        assert "before it answered anything; its stderr is above" in bridge.log
