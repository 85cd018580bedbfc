"""
Behaviour of APISIX's `mcp-bridge` that existing routes and clients rely on: the
bridge keeps it.  Each test's docstring says what it relies on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import (
    Bridge,
    Connection,
    Event,
    SseStream,
    backend,
    ping,
    request,
    run_to_end,
    serving,
    shell,
)

UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture(scope="module")
def shared() -> Iterator[Bridge]:
    """A bridge in front of the echo backend."""
    with serving() as bridge:
        yield bridge


@pytest.fixture
def echo(shared: Bridge) -> Iterator[Bridge]:
    """The shared bridge for one test; its sessions end with the test."""
    yield shared
    shared.close_clients()


def describe(bridge: Bridge, base: str = "") -> Any:
    """Return the arguments and environment that a backend reports."""
    stream = bridge.open_sse(base)
    described = json.loads(stream.read_message())["params"]
    stream.close()
    return described


# Configuration.


def test_command_is_found_through_path_and_run_without_a_shell(tmp_path: Path) -> None:
    (tmp_path / "a server; exit 3").symlink_to(backend("describe")[0])
    command = ["a server; exit 3", *backend("describe")[1:], "$HOME `id` *"]
    with serving("--env", f"PATH={tmp_path}", command=command) as bridge:
        assert describe(bridge)["arguments"] == ["$HOME `id` *"]


def test_command_is_required() -> None:
    """`command` is a string that is not empty."""
    status, output = run_to_end()
    assert status == 1
    assert output.startswith(
        "mcpbridge: COMMAND is missing: give the command line of an MCP server,"
    )
    status, output = run_to_end("--", "")
    assert status == 1
    expected = 'expected a non-empty string, got ""'
    assert output == f"mcpbridge: COMMAND (command): {expected}\n"


def test_args_pass_unchanged() -> None:
    """`args` is a list of strings, empty by default; no shell interprets them."""
    args = ["", "two words", "*", "$HOME", "--max-sessions", "a=b", "ä", '"quoted"', "--"]
    with serving(command=backend("describe", *args)) as bridge:
        assert describe(bridge)["arguments"] == args
    server = {"command": backend("describe")[0], "args": [*backend("describe")[1:], *args]}
    with serving(config={"mcpServers": {"one": server}}) as bridge:
        assert describe(bridge, "/one")["arguments"] == args


def test_base_uri_is_a_literal_prefix() -> None:
    """`base_uri` is never a pattern; the endpoint event begins with it."""
    command, *args = backend("echo")
    bases = ["/a.b+c", "/mcp/(x|y)/*", "/{name}", "/a/b/c/d"]
    servers = {base: {"command": command, "args": args, "base_uri": base} for base in bases}
    with serving(config={"mcpServers": servers}) as bridge:
        for base in bases:
            stream = bridge.open_sse(base)
            assert stream.endpoint == f"{base}/message?sessionId={stream.session_id}"
            assert stream.round_trip(request(base)) == request(base)
            for other in (f"{base}x/sse", f"/x{base}/sse"):
                assert bridge.request("GET", other).status == 404
        for other in ("/sse", "/aXbbc/sse", "/a.bbc/sse", "/mcp/x/sse", "/x/sse"):
            assert bridge.request("GET", other).status == 404


def test_base_uri_is_empty_by_default(echo: Bridge) -> None:
    assert echo.open_sse().endpoint.startswith("/message?sessionId=")


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), ("10", '"10"'), (True, "true")])
def test_max_sessions_must_be_an_integer(tmp_path: Path, value: object, shown: str) -> None:
    """`0`, `"10"` and `true` are errors that name the field."""
    servers = {"one": {"command": "cat", "max_sessions": value}}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"mcpServers": servers}))
    assert run_to_end("--config", str(config)) == (
        1,
        (
            f"mcpbridge: {config}:1: mcpServers.one.max_sessions: expected an integer ≥ 1,"
            f" got {shown}\n"
        ),
    )


@pytest.mark.parametrize(
    ("value", "shown"), [("0", "0"), ("-1", "-1"), ("ten", '"ten"'), ("1.5", '"1.5"'), ("", '""')]
)
def test_max_sessions_option_must_be_a_positive_integer(value: str, shown: str) -> None:
    assert run_to_end("--max-sessions", value, "--", "cat") == (
        1,
        f"mcpbridge: --max-sessions (max_sessions): expected an integer ≥ 1, got {shown}\n",
    )


def test_max_sessions_is_100_by_default() -> None:
    """Session 101 is refused."""
    with serving(command=shell("exec cat")) as bridge:
        for _ in range(100):
            bridge.open_sse()
        assert bridge.get_sse().status == 429
        bridge.clients[0].close()
        bridge.wait_for_log(" closed after ")
        bridge.open_sse()


# HTTP.


def test_sse_stream_begins_with_its_endpoint_and_a_ping(echo: Bridge) -> None:
    """The status, the headers and the first two events are exactly these."""
    stream = echo.get_sse()
    assert stream.status == 200
    assert stream.headers["content-type"] == "text/event-stream"
    assert stream.headers["cache-control"] == "no-cache"
    assert stream.headers["x-accel-buffering"] == "no"
    expected = (
        b"event: endpoint\ndata: /message?sessionId=%s\n\n"
        b"event: message\n"
        b'data: {"jsonrpc": "2.0","method": "ping","id":"ping:1"}\n\n'
    )
    text = stream.read_bytes(len(expected) - 2 + 36)
    ident = text[(at := expected.index(b"%s")) : at + 36]
    assert text == expected % ident
    assert UUID4.fullmatch(ident.decode())


def test_session_ids_are_random_uuids(echo: Bridge) -> None:
    """They are lower-case UUIDs of version 4."""
    idents = set()
    for _ in range(20):
        stream = echo.open_sse()
        idents.add(stream.session_id)
        stream.close()
    assert len(idents) == 20
    assert all(UUID4.fullmatch(ident) for ident in idents)


def test_pings_are_numbered_within_each_session() -> None:
    """`ping:2`, `ping:3` and so on follow at a configurable interval."""
    with serving("--ping-interval", "0.05") as bridge:
        streams = [bridge.open_sse(), bridge.open_sse()]
        for number in range(2, 6):
            for stream in streams:
                assert stream.read_event() == Event("message", ping(number))


def test_ping_interval_0_sends_no_pings() -> None:
    """Not even the first."""
    with serving("--ping-interval", "0") as bridge:
        stream = bridge.get_sse()
        stream.endpoint = stream.read_event().data.decode()
        assert stream.round_trip(request("x")) == request("x")


def test_each_line_of_stdout_is_an_event(tmp_path: Path) -> None:
    """Each message is one `event: message` whose data is the unchanged line."""
    lines = [
        b'{"jsonrpc":"2.0","method":"a"}',
        b'  { "jsonrpc" : "2.0",\t"method" : "b" }  ',
        '{"jsonrpc":"2.0","method":"ä€𝄞"}'.encode(),
        b'{"jsonrpc":"2.0","method":"\\u0041\\/\\ud800"}',
        b'[{"jsonrpc":"2.0","method":"c"},{"jsonrpc":"2.0","method":"d"}]',
        b'{"jsonrpc":"2.0","id":1.50,"result":{"x":1e5,"x":2}}',
        b'{"jsonrpc":"2.0","method":"data: x"}',
        b'{"jsonrpc":"2.0","id":"long","result":"' + b"x" * 1_000_000 + b'"}',
        b'{"not":"json-rpc"}',
    ]
    (tmp_path / "lines").write_bytes(b"\n".join([*lines, b""]))
    with serving(command=backend("stdout", tmp_path / "lines")) as bridge:
        stream = bridge.open_sse()
        assert [stream.read_event() for _ in lines] == [Event("message", line) for line in lines]


@pytest.mark.parametrize(
    "content_type",
    [None, "application/json", "text/plain", "application/x-www-form-urlencoded", "nonsense"],
)
def test_post_is_accepted_whatever_its_content_type(echo: Bridge, content_type: str | None) -> None:
    """The response is 202 with an empty body."""
    stream = echo.open_sse()
    headers = [f"Content-Type: {content_type}"] if content_type else []
    answer = stream.post(request("x"), *headers)
    assert (answer.status, answer.body) == (202, b"")
    assert answer.headers["content-length"] == "0"
    assert stream.read_message() == request("x")


def test_multipart_body_is_not_parsed_as_a_form(echo: Bridge) -> None:
    """The Content-Type is not checked here either."""
    stream = echo.open_sse()
    assert stream.post(request("x"), "Content-Type: multipart/form-data; boundary=x").status == 202
    assert stream.read_message() == request("x")


def test_empty_or_missing_body_is_refused_with_400(echo: Bridge) -> None:
    stream = echo.open_sse()
    with echo.connect() as connection:
        for body in (None, b"", b" \r\n"):
            answer = connection.request("POST", stream.endpoint, body)
            assert answer.status == 400
            assert answer.json == {
                "jsonrpc": "2.0",
                "id": None,
                "error": {
                    "code": -32600,
                    "message": "the body is empty; expected one JSON-RPC message",
                },
            }


@pytest.mark.parametrize(
    ("method", "target", "statuses"),
    [
        *((method, "/sse", {404, 405}) for method in ("HEAD", "POST", "PUT", "DELETE", "PATCH")),
        *((method, "/message", {404, 405}) for method in ("GET", "HEAD", "PUT", "DELETE")),
        ("OPTIONS", "/sse", {200, 204, 404, 405}),
        ("OPTIONS", "/message", {200, 204, 404, 405}),
        *(
            ("GET", path, {404, 405})
            for path in ("//", "/sse//", "/sse/x", "/SSE", "/x", "/messages")
        ),
        ("POST", "/", {404, 405}),
        ("TRACE", "/sse", {404, 405}),
        ("NONSENSE", "/sse", {404, 405}),
    ],
)
def test_other_methods_and_paths_are_refused(
    echo: Bridge, method: str, target: str, statuses: set[int]
) -> None:
    """The status is 404 or 405, and no stream is opened, not even by HEAD on `/sse`."""
    before = echo.log.count(" opened")
    with echo.connect() as connection:
        answer = connection.request(method, target)
        assert answer.status in statuses
        assert "event-stream" not in answer.headers["content-type"]
        # The connection is free again, so the answer was complete.
        if method != "NONSENSE":
            assert connection.request("GET", "/nothing").status == 404
    assert echo.log.count(" opened") == before


def test_two_clients_have_separate_backends(echo: Bridge) -> None:
    """Each client gets only its own responses; closing one session leaves the other working."""
    first, second = echo.open_sse(), echo.open_sse()
    assert first.session_id != second.session_id
    before = echo.backend_processes()
    assert len(before) >= 2
    for number in range(50):
        first.send_message(request("first", number))
        second.send_message(request("second", number))
    for number in range(50):
        assert first.read_message() == request("first", number)
        assert second.read_message() == request("second", number)
    first.close()
    echo.wait_for_close(first)
    assert second.round_trip(request("alone")) == request("alone")


def test_messages_of_a_session_stay_in_order(echo: Bridge) -> None:
    """Messages arrive in the order in which they were posted."""
    stream = echo.open_sse()
    bodies = [request("x", number, pad="y" * (number * 97 % 5000)) for number in range(200)]
    with Connection(echo.port) as connection:
        for body in bodies:
            assert connection.request("POST", stream.endpoint, body).status == 202
    assert [stream.read_message() for _ in bodies] == bodies


def test_session_outlives_the_connections_of_its_posts(echo: Bridge) -> None:
    """It belongs to the connection of its stream."""
    stream: SseStream = echo.open_sse()
    for _ in range(3):
        with echo.connect() as connection:
            assert connection.request("POST", stream.endpoint, request("x")).status == 202
        assert stream.read_message() == request("x")
