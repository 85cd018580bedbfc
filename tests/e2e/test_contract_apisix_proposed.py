"""
Behaviour that APISIX's pull request #13482 and related ones proposed for
`mcp-bridge`.  Each test's docstring says what was proposed.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mcpbridge.errors import SettingError
from mcpbridge.processes.permits import SessionLimiter
from tests.e2e.harness import NEVER, Bridge, Connection, SseStream, backend, request, serving
from tests.real.processes import PROC

#: An observer whose every method raises.
RAISING = """
from zope.interface import implementer
from mcpbridge.interfaces import ISessionObserver

@implementer(ISessionObserver)
class Raising:
    def __init__(self, settings):
        pass

    def session_opened(self, session):
        raise RuntimeError("opened")

    def message_passed(self, session, to_backend, line):
        raise RuntimeError("passed")

    def session_closed(self, session, reason):
        raise RuntimeError("closed")
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Bridge]:
    """A bridge with a limit of one session, and an access log."""
    with serving("--max-sessions", "1", "--access-log") as bridge:
        yield bridge


@pytest.fixture
def single(shared: Bridge) -> Iterator[Bridge]:
    """The shared bridge for one test."""
    yield shared
    shared.close_clients()


# The limit.


def test_session_beyond_max_sessions_is_refused_with_429(single: Bridge) -> None:
    """The body is JSON with a line feed, and the response has `Retry-After`."""
    single.open_sse()
    refused = single.get_sse()
    assert refused.status == 429
    assert refused.body == b'{"error_msg":"too many concurrent MCP sessions"}\n'
    assert refused.headers["content-type"] == "application/json"
    assert int(refused.headers["retry-after"]) > 0


def test_permit_is_taken_before_a_process_starts(tmp_path: Path) -> None:
    """Without a permit, no stream is opened and no process started."""
    script = f'echo started >> {tmp_path}/starts; exec "$@"'
    command = ["sh", "-c", script, "sh", *backend("echo")]
    with serving("--max-sessions", "1", command=command) as bridge:
        stream = bridge.open_sse()
        assert stream.round_trip(request("x")) == request("x")
        for _ in range(20):
            refused = bridge.get_sse()
            assert refused.status == 429
            assert "event-stream" not in refused.headers["content-type"]
        stream.close()
        bridge.wait_until_empty()
        assert (tmp_path / "starts").read_text() == "started\n"


def test_limiter_counts_each_permit_once() -> None:
    """The count never falls below zero, even if a permit is released twice."""
    limiter = SessionLimiter(2)
    first, second = limiter.acquire(), limiter.acquire()
    assert first is not None
    assert second is not None
    assert limiter.acquire() is None
    first.release()
    first.release()
    assert limiter.taken == 1
    third = limiter.acquire()
    assert third is not None
    assert limiter.acquire() is None
    for permit in (first, second, third, third):
        permit.release()
    assert limiter.taken == 0


@pytest.mark.parametrize("limit", [None, "2", True, 0, -1, 2.0])
def test_limiter_refuses_an_invalid_limit(limit: int) -> None:
    """A limit that is not a positive integer is refused, never taken as unlimited."""
    with pytest.raises(SettingError, match="max_sessions"):
        SessionLimiter(limit)


def test_failed_requests_hold_no_permit(single: Bridge) -> None:
    """A request that is answered with 400, 404, 405 or 429 leaves no permit taken."""
    for _ in range(3):
        assert single.request("GET", "/nothing").status == 404
        assert (
            single.request("POST", f"/message?sessionId={uuid.uuid4()}", request("x")).status == 404
        )
        assert single.request("HEAD", "/sse").status == 405
        stream = single.open_sse()
        assert stream.post(b"").status == 400
        assert single.get_sse().status == 429
        stream.close()
        single.wait_for_close(stream)


def test_command_that_cannot_start_holds_no_permit(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    with serving("--max-sessions", "1", command=[str(tool)]) as bridge:
        for _ in range(3):
            assert bridge.get_sse().status == 502
        tool.symlink_to("/bin/cat")
        tool.unlink()
        tool.write_text('#!/bin/sh\nexec cat "$0"\n')
        assert bridge.get_sse().status == 502
        tool.chmod(0o755)
        bridge.get_sse().read_opening_events()


# The client goes away.


@pytest.mark.parametrize("leave", [SseStream.close, SseStream.reset, SseStream.half_close])
def test_session_ends_at_once_when_its_client_goes_away(leave: Callable[[SseStream], None]) -> None:
    """
    The client leaves with FIN, RST or half-close.  All grace periods and intervals are longer than
    the test, so no timer delays the end of the backend.
    """
    never = ("--ping-interval", NEVER, "--stop-grace", NEVER, "--kill-grace", NEVER)
    with serving("--max-sessions", "1", "--peer-timeout", NEVER, *never) as bridge:
        stream = bridge.open_sse()
        assert stream.round_trip(request("x")) == request("x")
        leave(stream)
        closed = bridge.wait_for_close(stream)
        assert "the client went away" in closed
        assert "exit status 0" in closed
        bridge.wait_until_empty()
        # Its state is removed, and its permit returned.
        target = f"/message?sessionId={stream.session_id}"
        assert bridge.request("POST", target, request("x")).status == 404
        bridge.open_sse()


def test_open_stream_uses_tcp_keepalive(single: Bridge) -> None:
    """So the kernel notices if the network of a client fails."""
    stream = single.open_sse()
    with closing(_bridge_side(single, stream)) as connection:
        option = connection.getsockopt
        assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        # This option would also end slow clients; see test_backpressure.
        assert option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
        idle = option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        interval = option(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL)
        assert idle + interval * option(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) <= 60


def _bridge_side(bridge: Bridge, connection: Connection) -> socket.socket:
    """Return the bridge's end of a connection, duplicated from its descriptors."""
    pid = bridge.process.pid
    there = f"0100007F:{bridge.port:04X}"
    here = f"0100007F:{connection.socket.getsockname()[1]:04X}"
    rows = [row.split() for row in (PROC / "net/tcp").read_text().splitlines()]
    [inode] = [row[9] for row in rows if row[1:3] == [there, here]]
    [number] = [
        int(name)
        for name in os.listdir(PROC / str(pid) / "fd")
        if os.readlink(PROC / str(pid) / "fd" / name) == f"socket:[{inode}]"
    ]
    process = os.pidfd_open(pid)
    try:
        # pidfd_getfd(2), which Python has no name for.
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = libc.syscall(438, process, number, 0)
    finally:
        os.close(process)
    if descriptor < 0:
        pytest.skip(f"pidfd_getfd: {os.strerror(ctypes.get_errno())}")
    return socket.socket(fileno=descriptor)


def test_failing_observer_skips_no_step(tmp_path: Path) -> None:
    """A step that raises an error does not prevent the others."""
    (tmp_path / "raising.py").write_text(RAISING)
    command, *args = backend("echo")
    server = {"command": command, "args": args, "observers": ["raising.Raising"], "max_sessions": 1}
    config = {"mcpServers": {"one": server}}
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with serving(config=config, environment={"PYTHONPATH": path}, clean=False) as bridge:
        for _ in range(2):
            stream = bridge.open_sse("/one")
            assert stream.round_trip(request("x")) == request("x")
            stream.close()
            bridge.wait_for_close(stream)
            bridge.wait_until_empty()
        stream = bridge.open_sse("/one")
        bridge.stop()
        for raised in ("opened", "passed", "closed"):
            assert f"builtins.RuntimeError: {raised}" in bridge.log
        assert bridge.log.count("an observer failed; going on") == 3 + 4 + 3
        assert "could not be ended" not in bridge.log
        assert bridge.log.count(" closed after ") == 3


# Session ids, and the queue towards a backend.


def test_unknown_session_id_is_refused_with_404(single: Bridge) -> None:
    """The same applies to a missing `sessionId` and to that of an ended session."""
    stream = single.open_sse()
    ended = stream.session_id
    stream.close()
    single.wait_for_close(stream)
    living = single.open_sse().session_id
    with single.connect() as connection:
        for query in (
            "",
            "?",
            "?sessionId",
            "?sessionId=",
            f"?sessionId={ended}",
            f"?sessionId={uuid.uuid4()}",
            f"?sessionId={living.upper()}",
            f"?sessionId={living}x",
            f"?sessionId={living[:-1]}",
            f"?sessionId={living}&sessionId={living}",
            f"?sessionid={living}",
            "?sessionId=%ff%00",
        ):
            answer = connection.request("POST", f"/message{query}", request("x"))
            assert answer.status == 404, query
            assert answer.json["error"]["code"] == -32001


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (("--max-waiting-messages", "3"), 100_000),
        (("--max-waiting-bytes", "300000"), 100_000),
    ],
)
def test_queue_to_a_backend_refuses_more_than_its_limits(
    tmp_path: Path, options: tuple[str, ...], size: int
) -> None:
    """The limits are in messages and in bytes; an accepted message is never dropped."""
    gate = tmp_path / "gate"
    with serving(*options, command=backend("gated", gate)) as bridge:
        stream = bridge.open_sse()
        taken = 0
        while (answer := stream.post(request("x", taken, pad="x" * size))).status == 202:
            taken += 1
            assert taken < 100
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json["error"]["code"] == -32000
        # Two fill the pipe and the transport's buffer; three more may wait.
        assert taken >= 4
        gate.touch()
        # Every message that was answered with 202 arrives, and no other.
        assert [json.loads(stream.read_message())["id"] for _ in range(taken)] == list(range(taken))
        assert stream.round_trip(request("last")) == request("last")


# Standard error.

STDERR = [
    (b"plain text", "plain text"),
    (b'quotes " and \\ back', 'quotes \\" and \\\\ back'),
    (b"control \x00\x01\x1b[31m\x7f", "control \\u0000\\u0001\\u001b[31m\x7f"),
    (b"tab\tand\rreturn", "tab\\tand\\rreturn"),
    ("ümläut 𝄞".encode(), "ümläut 𝄞"),
    (b"invalid \xff\xc3\x28 \xed\xa0\x80", "invalid \ufffd\ufffd( \ufffd\ufffd\ufffd"),
    (b'{"jsonrpc":"2.0"}', '{\\"jsonrpc\\":\\"2.0\\"}'),
    ("line\u2028separator\u0085".encode(), "line\u2028separator\u0085"),
    (b"data: x", "data: x"),
]


def _write_stderr(tmp_path: Path) -> Path:
    odd = tmp_path / "odd"
    odd.write_bytes(b"".join(line + b"\n" for line, _ in STDERR))
    return odd


def test_stderr_lines_become_notifications(tmp_path: Path) -> None:
    """
    They have exactly these bytes, without spaces, and are valid JSON whatever the line contains.
    """
    with serving(command=backend("stderr", _write_stderr(tmp_path))) as bridge:
        stream = bridge.open_sse()
        for line, escaped in STDERR:
            message = stream.read_message()
            assert message == (
                b'{"jsonrpc":"2.0","method":"notifications/stderr","params":{"content":"'
                + escaped.encode()
                + b'"}}'
            )
            content = json.loads(message)["params"]["content"]
            assert content == line.decode("utf-8", "replace")


def test_no_stderr_notifications_option_turns_them_off(tmp_path: Path) -> None:
    odd = _write_stderr(tmp_path)
    with serving("--no-stderr-notifications", command=backend("stderr", odd)) as bridge:
        stream = bridge.open_sse()
        assert stream.round_trip(request("x")) == request("x")
        assert stream.round_trip(request("y")) == request("y")
        stream.close()
        # The log still has the last of them.
        assert "data: x" in bridge.wait_for_close(stream)


def test_long_stderr_line_is_cut_at_64_kib(tmp_path: Path) -> None:
    """The session goes on."""
    long = tmp_path / "long"
    long.write_bytes(b"y" * 300_000 + b"\nnext\n")
    with serving(command=backend("stderr", long)) as bridge:
        stream = bridge.open_sse()
        assert json.loads(stream.read_message())["params"]["content"] == "y" * 65536
        assert json.loads(stream.read_message())["params"]["content"] == "next"
        assert stream.round_trip(request("x")) == request("x")


def test_every_end_of_a_session_returns_its_permit(single: Bridge) -> None:
    """A long series of sessions never runs out of permits."""
    for leave in (SseStream.close, SseStream.reset, SseStream.half_close) * 7:
        stream = single.open_sse()
        leave(stream)
        single.wait_for_close(stream)
    assert not single.backend_processes()
