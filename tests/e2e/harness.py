"""
Run `twistd mcpbridge`, and connect to it as clients do.

`serving` starts it in a process of its own, a fork of the `fork_server`, and stops
it at the end of the block.  It asserts that the bridge exits as it should and leaves no
process behind.  The clients are raw sockets, so that tests see the bytes on the
wire; this module imports nothing of mcpbridge.

Each backend gets a number that is unique to the test, the *marker*, as its last
argument, and passes it on to the processes that it starts.  That is how tests
find these processes, whoever their parent is.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.e2e.fork_server import ForkedTwistd
from tests.real.parts import beside_python, need_processes
from tests.real.processes import PROC, Process, alive, descendants, eventually

#: Seconds before a wait fails.  No assertion is about this time: it only ends a
#: wait for something that never comes.  It is shorter than the ping interval, so
#: that pings do not prolong such a wait.
TIMEOUT = 25.0
#: A grace period in seconds, longer than any test runs.
NEVER = "100000"
BACKENDS = Path(__file__).with_name("backends")
#: `make test` runs these tests a second time with MCPBRIDGE_FAST_PATH=off.
FAST_PATH = ("--no-fast-path",) if os.environ.get("MCPBRIDGE_FAST_PATH") == "off" else ()
LOOPBACK = ("--listen", "tcp:0:interface=127.0.0.1")
#: Most fake backends never answer, and a stop of the bridge is not to wait for them.
NO_DRAIN = ("--drain-timeout", "0")
#: Exit statuses of a bridge that was stopped.
STOPPED = (0,)

_SERVING = re.compile(r"serving http://127\.0\.0\.1:(\d+)(\S*)/sse$", re.MULTILINE)


def backend(name: str, *arguments: object) -> list[str]:
    """Return the command line of one of the fake backends."""
    return [sys.executable, "-I", "-S", str(BACKENDS / f"{name}.py"), *map(str, arguments)]


def shell(script: str) -> list[str]:
    """Return the command line of a shell script; `$0` in it is the marker."""
    return ["sh", "-c", script]


def wait_until(condition: Callable[[], Any], seconds: float = TIMEOUT) -> None:
    """Wait until the condition is true; fail after this many seconds."""
    assert eventually(condition, seconds), f"not true after {seconds} seconds: {condition}"


def request(method: str, request_id: object = 1, **params: object) -> bytes:
    """Return a JSON-RPC request on one line."""
    return json.dumps(
        {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params},
        separators=(",", ":"),
    ).encode()


# Clients.


class HttpResponse(NamedTuple):
    """A complete HTTP response; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded from JSON."""
        return json.loads(self.body)


class Connection:
    """A client's TCP connection, with a buffer of the bytes received on it."""

    def __init__(self, port: int, receive_buffer: int | None = None, address: str = "") -> None:
        self.socket = socket.socket()
        self.socket.settimeout(TIMEOUT)
        if address:
            self.socket.bind((address, 0))
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        self.host = f"127.0.0.1:{port}"
        self._buffer = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; with unread data, the kernel sends a RST instead of a FIN."""
        self.socket.close()

    def reset(self) -> None:
        """Close the connection with a RST."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def half_close(self) -> None:
        """Send a FIN, but go on reading."""
        self.socket.shutdown(socket.SHUT_WR)

    def send(self, data: bytes) -> None:
        """Send all of the data."""
        self.socket.sendall(data)

    def _receive(self) -> bool:
        data = self.socket.recv(1 << 18)
        self._buffer += data
        return bool(data)

    def read(self, size: int) -> bytes:
        """Read this many bytes."""
        while len(self._buffer) < size:
            assert self._receive(), f"the connection ended within {bytes(self._buffer[:200])!r}"
        return self._consume(size)

    def read_until(self, end: bytes) -> bytes:
        """Read up to `end`, and return what comes before it."""
        searched = 0
        while (at := self._buffer.find(end, searched)) < 0:
            searched = max(0, len(self._buffer) - len(end))
            assert self._receive(), f"the connection ended within {bytes(self._buffer[:200])!r}"
        return self._consume(at + len(end))[: -len(end)]

    def _consume(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def read_eof(self) -> bool:
        """Wait until the bridge closes; return True if no data was left to read before."""
        with contextlib.suppress(ConnectionResetError):
            while self._receive():
                pass
        return not self._buffer

    def is_open(self) -> bool:
        """Return True if the bridge has not closed the connection, as far as is known now."""
        readable, _, _ = select.select([self.socket], [], [], 0)
        return not readable or bool(self.socket.recv(1, socket.MSG_PEEK))

    def read_head(self) -> tuple[int, dict[str, str]]:
        """Read the status and the headers of a response."""
        first, *lines = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
        return int(first.split(" ", 2)[1]), headers

    def read_response(self, *, to_head: bool = False) -> HttpResponse:
        """Read a complete response; `to_head`: a response to HEAD, which has no body."""
        status, headers = self.read_head()
        assert "event-stream" not in headers.get("content-type", ""), (
            "the response is an event stream"
        )
        if to_head or status == 204:
            return HttpResponse(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return HttpResponse(status, headers, b"".join(self.read_chunks()))
        return HttpResponse(status, headers, self.read(int(headers["content-length"])))

    def read_chunks(self) -> Iterator[bytes]:
        """Yield the chunks of a body, up to its end."""
        while size := int(self.read_until(b"\r\n"), 16):
            yield self.read(size)
            assert self.read(2) == b"\r\n"
        assert self.read(2) == b"\r\n"

    def request(
        self, method: str, target: str | bytes, body: bytes | None = None, *headers: str
    ) -> HttpResponse:
        """Send a request with these header lines, and read its response."""
        self.send(_head(self.host, method, target, body, headers) + (body or b""))
        return self.read_response(to_head=method == "HEAD")


def _head(
    host: str, method: str, target: str | bytes, body: bytes | None, headers: Sequence[str] = ()
) -> bytes:
    if isinstance(target, str):
        target = target.encode("ascii")
    names = [header.partition(":")[0].lower() for header in headers]
    lines = [*([] if "host" in names else [f"Host: {host}"]), *headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    text = "".join(f"{line}\r\n" for line in lines).encode("latin-1")
    return method.encode("ascii") + b" " + target + b" HTTP/1.1\r\n" + text + b"\r\n"


class Event(NamedTuple):
    """A server-sent event of HTTP+SSE."""

    name: str
    data: bytes


class SseStream(Connection):
    """
    The event stream of one HTTP+SSE session.

    `status` and `headers` are those of the response to the GET; `body` is set if
    the response is an error instead of a stream.
    """

    def __init__(self, port: int, path: str = "/sse", receive_buffer: int | None = None) -> None:
        super().__init__(port, receive_buffer)
        self._port = port
        self._event_buffer = bytearray()
        self.body = b""
        self.endpoint = ""
        self.send(_head(self.host, "GET", path, None))
        self.status, self.headers = self.read_head()
        self._chunks = self.read_chunks()
        if self.status != 200:
            length = self.headers.get("content-length")
            self.body = self.read(int(length)) if length else b"".join(self._chunks)

    @property
    def session_id(self) -> str:
        """The id of the session, from the endpoint event."""
        return self.endpoint.partition("sessionId=")[2]

    def read_bytes(self, size: int) -> bytes:
        """Read this many bytes of the stream, undecoded."""
        while len(self._event_buffer) < size:
            self._event_buffer += next(self._chunks)
        data = bytes(self._event_buffer[:size])
        del self._event_buffer[:size]
        return data

    def read_event(self) -> Event:
        """Read the next event; raise `StopIteration` at the end of the stream."""
        while (at := self._event_buffer.find(b"\n\n")) < 0:
            self._event_buffer += next(self._chunks)
        lines = bytes(self._event_buffer[:at]).split(b"\n")
        del self._event_buffer[: at + 2]
        fields = [line.split(b": ", 1) for line in lines]
        assert [name for name, _ in fields] == [b"event", b"data"], lines
        return Event(fields[0][1].decode("ascii"), fields[1][1])

    def read_opening_events(self) -> Self:
        """Read the two events that every stream begins with: the endpoint and a ping."""
        assert self.status == 200, (self.status, self.body)
        name, data = self.read_event()
        assert name == "endpoint"
        self.endpoint = data.decode("ascii")
        assert self.read_event() == ("message", ping(1))
        return self

    def read_message(self) -> bytes:
        """Read the next message, undecoded."""
        name, data = self.read_event()
        assert name == "message"
        return data

    def read_remaining_messages(self) -> list[bytes]:
        """Read all messages up to the end of the stream, which must be properly terminated."""
        messages = []
        while True:
            try:
                messages.append(self.read_message())
            except StopIteration:
                assert not self._event_buffer, "the stream ends within an event"
                return messages

    def post(self, body: bytes, *headers: str) -> HttpResponse:
        """Post a message on a new connection."""
        with Connection(self._port) as connection:
            return connection.request("POST", self.endpoint, body, *headers)

    def send_message(self, body: bytes) -> None:
        """Post a message, which must be accepted with 202."""
        answer = self.post(body)
        assert (answer.status, answer.body) == (202, b""), answer

    def round_trip(self, body: bytes) -> bytes:
        """Post a message, and read the next message of the stream."""
        self.send_message(body)
        return self.read_message()


def ping(number: int) -> bytes:
    """Return a ping as the bridge writes it."""
    return b'{"jsonrpc": "2.0","method": "ping","id":"ping:%d"}' % number


class ResumableEvent(NamedTuple):
    """A server-sent event of Streamable HTTP; `event_id` and `retry` are empty if absent."""

    event_id: str
    data: bytes
    retry: str = ""


class Response(Connection):
    """
    The response to a Streamable HTTP request that has a connection to itself.

    It is read as far as needed: reading `status` or `headers` waits for the head
    of the response.
    """

    def __init__(
        self,
        port: int,
        method: str,
        path: str,
        body: bytes | None,
        headers: Sequence[str],
        receive_buffer: int | None = None,
    ) -> None:
        super().__init__(port, receive_buffer)
        self.comments = 0
        self._event_buffer = bytearray()
        # Not cached by `functools`: before Python 3.12 all instances would wait for each other.
        self._head: tuple[int, dict[str, str]] | None = None
        self._body: bytes | None = None
        self._rest: Iterator[bytes] | None = None
        self.send(_head(self.host, method, path, body, headers) + (body or b""))

    @property
    def _status_and_headers(self) -> tuple[int, dict[str, str]]:
        if self._head is None:
            self._head = self.read_head()
        return self._head

    @property
    def status(self) -> int:
        """The status of the response."""
        return self._status_and_headers[0]

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response; names are in lower case."""
        return self._status_and_headers[1]

    @property
    def content_type(self) -> str:
        """The Content-Type of the response."""
        return self.headers.get("content-type", "")

    @property
    def body(self) -> bytes:
        """The complete body of a response that is not an event stream."""
        if self._body is None:
            assert "event-stream" not in self.content_type
            length = self.headers.get("content-length")
            self._body = b"".join(self._chunks) if length is None else self.read(int(length))
        return self._body

    @property
    def json(self) -> Any:
        """The body, decoded from JSON."""
        return json.loads(self.body)

    @property
    def _chunks(self) -> Iterator[bytes]:
        if self._rest is None:
            self._rest = self.read_chunks()
        return self._rest

    def read_event(self) -> ResumableEvent:
        """Read the next event; raise `StopIteration` at the end of the stream."""
        assert (self.status, self.content_type) == (200, "text/event-stream"), self.body
        while True:
            while (at := self._event_buffer.find(b"\n\n")) < 0:
                self._event_buffer += next(self._chunks)
            lines = bytes(self._event_buffer[:at]).split(b"\n")
            del self._event_buffer[: at + 2]
            if lines[0].startswith(b":"):
                self.comments += 1
                continue
            fields = dict(line.split(b": ", 1) for line in lines)
            assert len(fields) == len(lines), lines
            assert fields.pop(b"event", b"message") == b"message"
            event_id = fields.pop(b"id", b"").decode()
            retry = fields.pop(b"retry", b"").decode()
            assert fields.keys() == {b"data"}, lines
            return ResumableEvent(event_id, fields[b"data"], retry)

    def read_message(self) -> Any:
        """Read the next message, decoded; skip priming events, which have no data."""
        while not (event := self.read_event()).data:
            pass
        return json.loads(event.data)

    def read_remaining_events(self) -> list[ResumableEvent]:
        """Read all events up to the end of the stream, except priming events."""
        found: list[ResumableEvent] = []
        while True:
            try:
                event = self.read_event()
            except StopIteration:
                assert not self._event_buffer, "the stream ends within an event"
                return found
            if event.data:
                found.append(event)

    def read_remaining_messages(self) -> list[Any]:
        """Read all messages up to the end of the stream, decoded."""
        return [json.loads(event.data) for event in self.read_remaining_events()]

    def read_final_message(self) -> Any:
        """Read the last message of an event stream, or the whole of a JSON body."""
        return (
            self.read_remaining_messages()[-1] if "event-stream" in self.content_type else self.json
        )


class StreamableHttpClient:
    """A client of Streamable HTTP, with a session once it is initialized."""

    def __init__(self, port: int, base: str = "", version: str = "2025-11-25") -> None:
        self.port = port
        self.path = f"{base}/mcp"
        self.version = version
        self.session_id = ""
        self._request_ids = itertools.count(1)
        self._open: list[Response] = []

    @property
    def headers(self) -> list[str]:
        """The header lines that each request of a session has."""
        if not self.session_id:
            return []
        return [f"Mcp-Session-Id: {self.session_id}", f"MCP-Protocol-Version: {self.version}"]

    def send(
        self,
        method: str,
        body: bytes | None = None,
        *headers: str,
        receive_buffer: int | None = None,
    ) -> Response:
        """Send a request with these header lines; leave out one without a value."""
        given = {"Accept": "application/json, text/event-stream"}
        if body is not None:
            given["Content-Type"] = "application/json"
        for line in (*self.headers, *headers):
            name, _, value = line.partition(": ")
            given[name] = value
        lines = [f"{name}: {value}" for name, value in given.items() if value]
        response = Response(self.port, method, self.path, body, lines, receive_buffer)
        self._open.append(response)
        return response

    def initialize(self) -> Self:
        """Open the session."""
        response = self.call("initialize", protocolVersion=self.version)
        assert response.status == 200, response.body
        self.session_id = response.headers["mcp-session-id"]
        assert response.read_final_message()["result"]["protocolVersion"] == self.version
        self.notify("notifications/initialized")
        return self

    def call(self, method: str, *headers: str, **params: object) -> Response:
        """Send a JSON-RPC request with a new id."""
        return self.send("POST", request(method, next(self._request_ids), **params), *headers)

    def notify(self, method: str, **params: object) -> None:
        """Send a notification, which must be accepted with 202."""
        self.post({"jsonrpc": "2.0", "method": method, "params": params})

    def post(self, message: object) -> None:
        """Send a notification, a response or a batch, which must be accepted with 202."""
        with self.send("POST", json.dumps(message).encode()) as response:
            assert (response.status, response.body) == (202, b"")

    def open_get_stream(
        self, last_event_id: str = "", receive_buffer: int | None = None
    ) -> Response:
        """Open the GET stream, or resume a stream after this event."""
        headers = [f"Last-Event-ID: {last_event_id}"] if last_event_id else []
        return self.send("GET", None, *headers, receive_buffer=receive_buffer)

    def delete(self) -> int:
        """End the session with DELETE; return the status."""
        with self.send("DELETE") as response:
            return response.status

    def disconnect(self) -> None:
        """Close all connections, but keep the session."""
        while self._open:
            self._open.pop().close()

    def close(self) -> None:
        """Close all connections and end the session."""
        self.disconnect()
        if self.session_id:
            with contextlib.suppress(OSError, AssertionError):
                self.delete()
        self.disconnect()


# The bridge.


@dataclass(eq=False)
class Bridge:
    """A running bridge, its log, its processes and its clients."""

    process: subprocess.Popen[bytes] | ForkedTwistd
    folder: Path
    marker: str
    port: int = 0
    clients: list[Connection | StreamableHttpClient] = field(default_factory=list)
    watchdogs: set[Process] = field(default_factory=set)

    # Its clients.

    def open_sse(self, base: str = "", receive_buffer: int | None = None) -> SseStream:
        """Open an HTTP+SSE session, and read its opening events."""
        return self.get_sse(f"{base}/sse", receive_buffer).read_opening_events()

    def get_sse(self, path: str = "/sse", receive_buffer: int | None = None) -> SseStream:
        """Send a GET for an HTTP+SSE stream; the response may be an error."""
        stream = SseStream(self.port, path, receive_buffer)
        self.clients.append(stream)
        return stream

    def connect(self) -> Connection:
        """Open a connection."""
        connection = Connection(self.port)
        self.clients.append(connection)
        return connection

    def open_streamable_http(
        self, base: str = "", version: str = "2025-11-25"
    ) -> StreamableHttpClient:
        """Open a session of Streamable HTTP."""
        return self.new_client(base, version).initialize()

    def new_client(self, base: str = "", version: str = "2025-11-25") -> StreamableHttpClient:
        """Return a client of Streamable HTTP without a session."""
        client = StreamableHttpClient(self.port, base, version)
        self.clients.append(client)
        return client

    def close_clients(self) -> None:
        """Close all clients, and wait until nothing of their sessions is left."""
        while self.clients:
            self.clients.pop().close()
        self.wait_until_empty()
        wait_until(lambda: self.log.count(" closed after ") == self.log.count("' opened"))

    def request(self, method: str, target: str | bytes, body: bytes | None = None) -> HttpResponse:
        """Send a request on a new connection, and read its response."""
        with Connection(self.port) as connection:
            return connection.request(method, target, body)

    # Its log.

    @property
    def log(self) -> str:
        """Everything that the bridge has printed."""
        return (self.folder / "log").read_text(errors="replace")

    def admin_address(self) -> str:
        """Return the host and port of its admin listener, which is on loopback."""
        found = re.search(r"127\.0\.0\.1:\d+", self.wait_for_log("admin listener at"))
        assert found is not None, self.log
        return found[0]

    def wait_for_log(self, *texts: str) -> str:
        """Wait for a line of the log that contains all of these texts; return it."""

        def lines() -> list[str]:
            return [x for x in self.log.splitlines() if all(text in x for text in texts)]

        assert eventually(lines, TIMEOUT), f"the log has no {texts}:\n{self.log}"
        return lines()[0]

    def wait_for_close(self, stream: SseStream | StreamableHttpClient) -> str:
        """Wait until the log reports that a session is closed; return that line."""
        return self.wait_for_log(f"session {stream.session_id[:8]}", " closed after ")

    # Its processes.

    def descendants(self) -> set[Process]:
        """Return the bridge's descendants, including zombies, without the watchdog."""
        found = descendants(self.process.pid)
        self.watchdogs |= {each for each in found if "watchdog_program.py" in each.command}
        return found - self.watchdogs

    def marked_processes(self) -> set[Process]:
        """Return all processes that have the marker, except the bridge itself."""
        return {
            each for each in processes_with_argument(self.marker) if each.pid != self.process.pid
        }

    def backend_processes(self) -> set[Process]:
        """Return all processes of sessions: descendants, and processes with the marker."""
        return self.descendants() | self.marked_processes()

    def wait_for_watchdog(self) -> Process:
        """Wait until the watchdog runs; return it."""

        def found() -> list[Process]:
            self.descendants()
            return [each for each in self.watchdogs if alive(each)]

        wait_until(found)
        [watchdog] = found()
        return watchdog

    def wait_for_backends(self, count: int, running: str = "") -> set[Process]:
        """Wait until this many processes have the marker and a command with this prefix."""

        def found() -> set[Process]:
            return {each for each in self.marked_processes() if each.command.startswith(running)}

        assert eventually(lambda: len(found()) == count, TIMEOUT), self._describe(found())
        return found()

    def wait_until_empty(self) -> None:
        """Wait until no process of a session is left, not even a zombie."""
        assert eventually(lambda: not self.backend_processes(), TIMEOUT), self._describe(
            self.backend_processes()
        )

    def _describe(self, processes: set[Process]) -> str:
        return "\n".join([*map(str, processes), self.log])

    # Its resources.

    def rss(self) -> int:
        """Return the resident memory of the bridge in bytes."""
        status = (PROC / str(self.process.pid) / "status").read_text()
        [line] = [each for each in status.splitlines() if each.startswith("VmRSS:")]
        return int(line.split()[1]) * 1024

    def cpu_ticks(self) -> int:
        """Return the CPU time that the bridge has used, in clock ticks."""
        stat = (PROC / str(self.process.pid) / "stat").read_text().rpartition(")")[2].split()
        return int(stat[11]) + int(stat[12])

    def count_descriptors(self) -> int:
        """Return how many descriptors the bridge has open."""
        return len(os.listdir(PROC / str(self.process.pid) / "fd"))

    # Its end.

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop the bridge as a service manager does; no process may be left."""
        self.descendants()
        self.process.send_signal(number)
        self.assert_stopped(STOPPED)

    def kill(self) -> None:
        """Kill the bridge with SIGKILL, without a check of what is left."""
        self.descendants()
        self.process.kill()
        self.process.wait()

    def assert_stopped(self, statuses: Sequence[int]) -> None:
        """Wait until the bridge exits with one of these statuses; no process may be left."""
        try:
            status = self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the bridge does not stop:\n{self.log}") from None
        assert status in statuses, f"the bridge ended with {status}:\n{self.log}"
        self.assert_nothing_left()

    def assert_nothing_left(self) -> None:
        """Assert that no backend is left, and wait for the watchdog, which exits last."""
        assert not self.marked_processes(), self._describe(self.marked_processes())
        wait_until(lambda: not any(map(alive, self.watchdogs)))

    def assert_log_clean(self) -> None:
        """Assert that the log has no traceback and no other sign of a defect."""
        # The stderr of a backend may contain anything.
        log = "\n".join(line for line in self.log.splitlines() if " stderr: " not in line)
        for sign in ("Traceback", "Unhandled", "#critical", "failed; going on"):
            assert sign not in log, log


def _command(process: Path) -> bytes:
    """Return the arguments; if the main thread has ended, another thread has them."""
    command = (process / "cmdline").read_bytes()
    if not command:
        for thread in (process / "task").iterdir():
            command = command or (thread / "cmdline").read_bytes()
    return command


def processes_with_argument(marker: str) -> set[Process]:
    """Return the processes with this text in their arguments, which zombies do not have."""
    text, found = marker.encode(), set()
    for name in os.listdir(PROC):
        if name.isdigit():
            with contextlib.suppress(OSError):
                command = _command(PROC / name)
                if text in command:
                    stat = (PROC / name / "stat").read_text(errors="replace")
                    started = stat.rpartition(")")[2].split()[19]
                    found.add(Process(int(name), started, command.replace(b"\0", b" ").decode()))
    return found


def _start(
    arguments: Sequence[str], folder: Path, environment: dict[str, str] | None
) -> subprocess.Popen[bytes] | ForkedTwistd:
    """Start `twistd` in a folder, with the file `log` as its output."""
    log = folder / "log"
    log.touch()
    if environment is None:
        return ForkedTwistd(arguments, folder, log)
    # Python reads some variables only when it starts.
    with log.open("wb") as output:
        return subprocess.Popen(
            [beside_python("twistd"), *arguments],
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


@contextlib.contextmanager
def serving(
    *options: str,
    command: Sequence[str] = (),
    config: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
    listen: Sequence[str] = LOOPBACK,
    clean: bool = True,
) -> Iterator[Bridge]:
    """
    Run `twistd mcpbridge` in front of a command, or of the servers of a
    configuration file, until the block ends; then no process may be left.

    With an `environment`, even an empty one, it is started as a program, whose
    Python reads these variables and which inherits what this process has set.

    With `clean` False, the log may have tracebacks.  Unless there is a `--drain-timeout`, a
    stop of the bridge does not wait for running requests.
    """
    need_processes()
    marker = str(uuid.uuid4().int)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Its own state directory: only the next bridge of the same test cleans up after it.
        line = [*listen, *FAST_PATH, "--state-dir", str(folder / "state"), *options]
        if "--drain-timeout" not in options:
            line += NO_DRAIN
        if config is None:
            line += ["--", *(command or backend("echo")), marker]
        else:
            for server in config["mcpServers"].values():
                if "url" not in server:
                    server["args"] = [*server.get("args", ()), marker]
            (folder / "config.json").write_text(json.dumps(config))
            line += ["--config", str(folder / "config.json")]
        process = _start(["-n", "--pidfile=", "mcpbridge", *line], folder, environment)
        bridge = Bridge(process, folder, marker)
        try:
            wait_until(lambda: _SERVING.search(bridge.log) or process.poll() is not None)
            serves = _SERVING.search(bridge.log)
            assert serves is not None, bridge.log
            bridge.port = int(serves[1])
            yield bridge
            if process.poll() is None:
                bridge.stop()
            if clean:
                bridge.assert_log_clean()
        finally:
            for stream in bridge.clients:
                stream.close()
            process.kill()
            process.wait()
            for each in bridge.marked_processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each.pid, signal.SIGKILL)


def run_to_end(
    *arguments: str, environment: dict[str, str] | None = None, cwd: Path | None = None
) -> tuple[int, str]:
    """Run a `twistd mcpbridge` that exits by itself; return its status and its output."""
    done = subprocess.run(
        [beside_python("twistd"), "-n", "--pidfile=", "mcpbridge", *arguments],
        env={**os.environ, **(environment or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT,
        check=False,
    )
    return done.returncode, done.stdout.decode(errors="replace")


@contextlib.contextmanager
def unrelated_process(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that has nothing to do with the bridge until the block ends."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def in_background(work: Callable[[], object]) -> Iterator[None]:
    """Call a function in a thread during the block; raise its exception at the end."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as failure:  # raised again below
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(TIMEOUT)
    assert not thread.is_alive()
    if failures:
        raise failures[0]
