"""
A bridge as a user runs it, and clients that know nothing of it.

`serving` starts the installed `twistd mcpbridge` as a process of its own and
stops it at the end, asserting that it ends as it should and that nothing of it
is left.  The clients are raw sockets: what they see is what is on the wire.
Nothing of mcpbridge is imported.

Every backend gets a number of the test's own, the *mark*, as its last
argument, and hands it to what it starts, so that its processes are found
wherever they have got to.
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

#: How long anything may take.  Nothing is proven by it: it only ends a wait for
#: what does not come.  Less than a ping's interval, so that pings do not keep
#: a hopeless wait alive.
PATIENCE = 25.0
#: A grace that no test lives to see the end of.
NEVER = "100000"
BACKENDS = Path(__file__).with_name("backends")
#: `make test` runs these tests a second time with MCPBRIDGE_FAST_PATH=off.
FAST_PATH = ("--no-fast-path",) if os.environ.get("MCPBRIDGE_FAST_PATH") == "off" else ()
LOOPBACK = ("--listen", "tcp:0:interface=127.0.0.1")
#: `twistd` ends by the signal that stopped it, once everything is stopped.
STOPPED = (0, -signal.SIGTERM, -signal.SIGINT)

_SERVING = re.compile(r"serving http://127\.0\.0\.1:(\d+)(\S*)/sse$", re.MULTILINE)


def backend(name: str, *arguments: object) -> list[str]:
    """The command line of one of the fake backends."""
    return [sys.executable, "-I", "-S", str(BACKENDS / f"{name}.py"), *map(str, arguments)]


def shell(script: str) -> list[str]:
    """A backend that is a shell script; `$0` in it is the mark."""
    return ["sh", "-c", script]


def until(what: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Wait until something is so."""
    assert eventually(what, seconds), "it did not come to that"


def request(method: str, ident: object = 1, **params: object) -> bytes:
    """A JSON-RPC request on one line."""
    return json.dumps(
        {"jsonrpc": "2.0", "id": ident, "method": method, "params": params}, separators=(",", ":")
    ).encode()


# Clients.


class Answer(NamedTuple):
    """The answer to a request; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class Wire:
    """A connection of a client, and what has arrived on it."""

    def __init__(self, port: int, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.socket.connect(("127.0.0.1", port))
        except OSError:
            self.socket.close()
            raise
        self.host = f"127.0.0.1:{port}"
        self._arrived = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave with a FIN, or with what the kernel makes of unread data."""
        self.socket.close()

    def reset(self) -> None:
        """Leave with a RST."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def half_close(self) -> None:
        """Say that nothing more is sent, and go on listening."""
        self.socket.shutdown(socket.SHUT_WR)

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.socket.sendall(data)

    def _more(self) -> bool:
        data = self.socket.recv(1 << 18)
        self._arrived += data
        return bool(data)

    def take(self, size: int) -> bytes:
        """So many bytes."""
        while len(self._arrived) < size:
            assert self._more(), f"the connection ended within {bytes(self._arrived[:200])!r}"
        return self._cut(size)

    def take_to(self, end: bytes) -> bytes:
        """Everything before `end`, which is taken too."""
        searched = 0
        while (at := self._arrived.find(end, searched)) < 0:
            searched = max(0, len(self._arrived) - len(end))
            assert self._more(), f"the connection ended within {bytes(self._arrived[:200])!r}"
        return self._cut(at + len(end))[: -len(end)]

    def _cut(self, size: int) -> bytes:
        data = bytes(self._arrived[:size])
        del self._arrived[:size]
        return data

    def ended(self) -> bool:
        """Wait for the other side's end; whether nothing came before it."""
        with contextlib.suppress(ConnectionResetError):
            while self._more():
                pass
        return not self._arrived

    def is_open(self) -> bool:
        """Whether the other side has not ended it, as far as is known now."""
        readable, _, _ = select.select([self.socket], [], [], 0)
        return not readable or bool(self.socket.recv(1, socket.MSG_PEEK))

    def read_head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of an answer."""
        first, *lines = self.take_to(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
        return int(first.split(" ", 2)[1]), headers

    def read_answer(self, *, to_head: bool = False) -> Answer:
        """A whole answer; one to a HEAD has no body."""
        status, headers = self.read_head()
        assert "event-stream" not in headers.get("content-type", ""), "this opened a stream"
        if to_head or status == 204:
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, b"".join(self.chunks()))
        return Answer(status, headers, self.take(int(headers["content-length"])))

    def chunks(self) -> Iterator[bytes]:
        """The chunks of a body, to its end."""
        while size := int(self.take_to(b"\r\n"), 16):
            yield self.take(size)
            assert self.take(2) == b"\r\n"
        assert self.take(2) == b"\r\n"

    def ask(
        self, method: str, target: str | bytes, body: bytes | None = None, *headers: str
    ) -> Answer:
        """Send a request with these header lines, and read its answer."""
        self.send(_head(self.host, method, target, body, headers) + (body or b""))
        return self.read_answer(to_head=method == "HEAD")


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
    """A server-sent event."""

    name: str
    data: bytes


class Stream(Wire):
    """
    The event stream of one session.

    `status`, `headers` and, where no stream was opened, `body` are the answer's.
    """

    def __init__(self, port: int, path: str = "/sse", receive_buffer: int | None = None) -> None:
        super().__init__(port, receive_buffer)
        self._port = port
        self._text = bytearray()
        self.body = b""
        self.endpoint = ""
        self.send(_head(self.host, "GET", path, None))
        self.status, self.headers = self.read_head()
        self._chunks = self.chunks()
        if self.status != 200:
            length = self.headers.get("content-length")
            self.body = self.take(int(length)) if length else b"".join(self._chunks)

    @property
    def ident(self) -> str:
        """The session's id."""
        return self.endpoint.partition("sessionId=")[2]

    def text(self, size: int) -> bytes:
        """So many bytes of the stream, as they stand."""
        while len(self._text) < size:
            self._text += next(self._chunks)
        data = bytes(self._text[:size])
        del self._text[:size]
        return data

    def next(self) -> Event:
        """The next event; raises `StopIteration` where the stream is complete."""
        while (at := self._text.find(b"\n\n")) < 0:
            self._text += next(self._chunks)
        lines = bytes(self._text[:at]).split(b"\n")
        del self._text[: at + 2]
        fields = [line.split(b": ", 1) for line in lines]
        assert [name for name, _ in fields] == [b"event", b"data"], lines
        return Event(fields[0][1].decode("ascii"), fields[1][1])

    def begin(self) -> Self:
        """Read what every stream begins with."""
        assert self.status == 200, (self.status, self.body)
        name, data = self.next()
        assert name == "endpoint"
        self.endpoint = data.decode("ascii")
        assert self.next() == ("message", ping(1))
        return self

    def message(self) -> bytes:
        """The next message, whatever it says."""
        name, data = self.next()
        assert name == "message"
        return data

    def rest(self) -> list[bytes]:
        """The messages to the end of the stream, which must come in due form."""
        messages = []
        while True:
            try:
                messages.append(self.message())
            except StopIteration:
                assert not self._text, "it ends within an event"
                return messages

    def post(self, body: bytes, *headers: str) -> Answer:
        """Post a message on a connection of its own."""
        with Wire(self._port) as wire:
            return wire.ask("POST", self.endpoint, body, *headers)

    def send_message(self, body: bytes) -> None:
        """Post a message that must be taken."""
        answer = self.post(body)
        assert (answer.status, answer.body) == (202, b""), answer

    def round_trip(self, body: bytes) -> bytes:
        """Post a message; the next message that comes."""
        self.send_message(body)
        return self.message()


def ping(number: int) -> bytes:
    """A ping as the bridge writes it."""
    return b'{"jsonrpc": "2.0","method": "ping","id":"ping:%d"}' % number


class Piece(NamedTuple):
    """An event of Streamable HTTP; `retry` is empty where it says none."""

    ident: str
    data: bytes
    retry: str = ""


class Response(Wire):
    """
    A request over Streamable HTTP on a connection of its own, and its answer
    as it comes: `status` and `headers` are waited for when they are asked for.
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
        self._text = bytearray()
        # Not cached by `functools`: before Python 3.12 all instances would wait for each other.
        self._head: tuple[int, dict[str, str]] | None = None
        self._body: bytes | None = None
        self._rest: Iterator[bytes] | None = None
        self.send(_head(self.host, method, path, body, headers) + (body or b""))

    @property
    def _answered(self) -> tuple[int, dict[str, str]]:
        if self._head is None:
            self._head = self.read_head()
        return self._head

    @property
    def status(self) -> int:
        """Of the answer."""
        return self._answered[0]

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer; names are in lower case."""
        return self._answered[1]

    @property
    def kind(self) -> str:
        """The Content-Type."""
        return self.headers.get("content-type", "")

    @property
    def body(self) -> bytes:
        """All of an answer that is no event stream."""
        if self._body is None:
            assert "event-stream" not in self.kind
            length = self.headers.get("content-length")
            self._body = b"".join(self._chunks) if length is None else self.take(int(length))
        return self._body

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def _chunks(self) -> Iterator[bytes]:
        if self._rest is None:
            self._rest = self.chunks()
        return self._rest

    def piece(self) -> Piece:
        """The next event; raises `StopIteration` where the stream is complete."""
        assert (self.status, self.kind) == (200, "text/event-stream"), self.body
        while True:
            while (at := self._text.find(b"\n\n")) < 0:
                self._text += next(self._chunks)
            lines = bytes(self._text[:at]).split(b"\n")
            del self._text[: at + 2]
            if lines[0].startswith(b":"):
                self.comments += 1
                continue
            fields = dict(line.split(b": ", 1) for line in lines)
            assert len(fields) == len(lines), lines
            assert fields.pop(b"event", b"message") == b"message"
            ident, retry = fields.pop(b"id", b"").decode(), fields.pop(b"retry", b"").decode()
            assert fields.keys() == {b"data"}, lines
            return Piece(ident, fields[b"data"], retry)

    def message(self) -> Any:
        """The next message, decoded; a priming event is none."""
        while not (piece := self.piece()).data:
            pass
        return json.loads(piece.data)

    def pieces(self) -> list[Piece]:
        """All events to the end of the stream, without a priming one."""
        found: list[Piece] = []
        while True:
            try:
                piece = self.piece()
            except StopIteration:
                assert not self._text, "it ends within an event"
                return found
            if piece.data:
                found.append(piece)

    def messages(self) -> list[Any]:
        """All messages to the end of the stream, decoded."""
        return [json.loads(piece.data) for piece in self.pieces()]

    def answer(self) -> Any:
        """The last message, however it comes; where it is JSON, all of it."""
        return self.messages()[-1] if "event-stream" in self.kind else self.json


class Streamable:
    """A client of Streamable HTTP, and its session once it is initialized."""

    def __init__(self, port: int, base: str = "", version: str = "2025-11-25") -> None:
        self.port = port
        self.path = f"{base}/mcp"
        self.version = version
        self.ident = ""
        self._idents = itertools.count(1)
        self._open: list[Response] = []

    @property
    def headers(self) -> list[str]:
        """What each request of a session says."""
        if not self.ident:
            return []
        return [f"Mcp-Session-Id: {self.ident}", f"MCP-Protocol-Version: {self.version}"]

    def send(
        self,
        method: str,
        body: bytes | None = None,
        *headers: str,
        receive_buffer: int | None = None,
    ) -> Response:
        """A request with these header lines; one without a value is left out."""
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
        self.ident = response.headers["mcp-session-id"]
        assert response.answer()["result"]["protocolVersion"] == self.version
        self.tell("notifications/initialized")
        return self

    def call(self, method: str, *headers: str, **params: object) -> Response:
        """A request with an id of its own."""
        return self.send("POST", request(method, next(self._idents), **params), *headers)

    def tell(self, method: str, **params: object) -> None:
        """A notification, which must be taken."""
        self.take({"jsonrpc": "2.0", "method": method, "params": params})

    def take(self, message: object) -> None:
        """A message that is no request, which must be taken."""
        with self.send("POST", json.dumps(message).encode()) as response:
            assert (response.status, response.body) == (202, b"")

    def listen(self, last: str = "", receive_buffer: int | None = None) -> Response:
        """The GET stream, or what was missed."""
        headers = [f"Last-Event-ID: {last}"] if last else []
        return self.send("GET", None, *headers, receive_buffer=receive_buffer)

    def delete(self) -> int:
        """End the session; the status."""
        with self.send("DELETE") as response:
            return response.status

    def drop(self) -> None:
        """Close all connections."""
        while self._open:
            self._open.pop().close()

    def close(self) -> None:
        """The same, and the session with them."""
        self.drop()
        if self.ident:
            with contextlib.suppress(OSError, AssertionError):
                self.delete()
        self.drop()


# The bridge.


@dataclass(eq=False)
class Bridge:
    """A bridge that serves."""

    process: subprocess.Popen[bytes] | ForkedTwistd
    folder: Path
    mark: str
    port: int = 0
    streams: list[Wire | Streamable] = field(default_factory=list)
    watchdogs: set[Process] = field(default_factory=set)

    # Its clients.

    def open(self, base: str = "", receive_buffer: int | None = None) -> Stream:
        """A session whose first two events were read."""
        return self.knock(f"{base}/sse", receive_buffer).begin()

    def knock(self, path: str = "/sse", receive_buffer: int | None = None) -> Stream:
        """What a GET for a stream is answered with."""
        stream = Stream(self.port, path, receive_buffer)
        self.streams.append(stream)
        return stream

    def wire(self) -> Wire:
        """A connection."""
        wire = Wire(self.port)
        self.streams.append(wire)
        return wire

    def streamable(self, base: str = "", version: str = "2025-11-25") -> Streamable:
        """A session of Streamable HTTP."""
        return self.visitor(base, version).initialize()

    def visitor(self, base: str = "", version: str = "2025-11-25") -> Streamable:
        """A client of Streamable HTTP that has no session yet."""
        client = Streamable(self.port, base, version)
        self.streams.append(client)
        return client

    def hang_up(self) -> None:
        """Close all of their connections; wait until nothing of their sessions is left."""
        while self.streams:
            self.streams.pop().close()
        self.wait_until_empty()
        until(lambda: self.log.count(" closed after ") == self.log.count("' opened"))

    def ask(self, method: str, target: str | bytes, body: bytes | None = None) -> Answer:
        """One request on a connection of its own."""
        with Wire(self.port) as wire:
            return wire.ask(method, target, body)

    # What it says.

    @property
    def log(self) -> str:
        """All that it has printed."""
        return (self.folder / "log").read_text(errors="replace")

    def wait_for_log(self, *texts: str) -> str:
        """The first line that holds all of these; waits for it."""

        def lines() -> list[str]:
            return [x for x in self.log.splitlines() if all(text in x for text in texts)]

        assert eventually(lines, PATIENCE), f"the log has no {texts}:\n{self.log}"
        return lines()[0]

    def wait_for_close(self, stream: Stream | Streamable) -> str:
        """Wait until nothing is left of a session; what the log says of it."""
        return self.wait_for_log(f"session {stream.ident[:8]}", " closed after ")

    # Its processes.

    def below(self) -> set[Process]:
        """What descends from it, zombies among them, but for the watchdog."""
        found = descendants(self.process.pid)
        self.watchdogs |= {each for each in found if "watchdog_program.py" in each.command}
        return found - self.watchdogs

    def marked(self) -> set[Process]:
        """What carries the mark, wherever it is, but for the bridge itself."""
        return {each for each in carrying(self.mark) if each.pid != self.process.pid}

    def backends(self) -> set[Process]:
        """All of its sessions' processes that are to be found."""
        return self.below() | self.marked()

    def watchdog(self) -> Process:
        """Its watchdog; waits until there is one."""

        def found() -> list[Process]:
            self.below()
            return [each for each in self.watchdogs if alive(each)]

        until(found)
        [watchdog] = found()
        return watchdog

    def wait_for_backends(self, count: int, running: str = "") -> set[Process]:
        """Wait until so many processes carry the mark and run a command that begins like this."""

        def found() -> set[Process]:
            return {each for each in self.marked() if each.command.startswith(running)}

        assert eventually(lambda: len(found()) == count, PATIENCE), self._told(found())
        return found()

    def wait_until_empty(self) -> None:
        """Wait until no process of any session is left, not even a zombie."""
        assert eventually(lambda: not self.backends(), PATIENCE), self._told(self.backends())

    def _told(self, processes: set[Process]) -> str:
        return "\n".join([*map(str, processes), self.log])

    # Its size.

    def rss(self) -> int:
        """Its resident memory in bytes."""
        status = (PROC / str(self.process.pid) / "status").read_text()
        [line] = [each for each in status.splitlines() if each.startswith("VmRSS:")]
        return int(line.split()[1]) * 1024

    def cpu(self) -> int:
        """The clock ticks it has computed for."""
        stat = (PROC / str(self.process.pid) / "stat").read_text().rpartition(")")[2].split()
        return int(stat[11]) + int(stat[12])

    def descriptors(self) -> int:
        """How many descriptors it has open."""
        return len(os.listdir(PROC / str(self.process.pid) / "fd"))

    # Its end.

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop it as a service manager does; nothing of it may be left."""
        self.below()
        self.process.send_signal(number)
        self.assert_stopped(STOPPED)

    def kill(self) -> None:
        """Kill it with SIGKILL: what is left of it is for the test to say."""
        self.below()
        self.process.kill()
        self.process.wait()

    def assert_stopped(self, statuses: Sequence[int]) -> None:
        """Wait for its end; nothing of it may be left."""
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the bridge does not stop:\n{self.log}") from None
        assert status in statuses, f"it ended with {status}:\n{self.log}"
        self.assert_nothing_left()

    def assert_nothing_left(self) -> None:
        """Its watchdog goes last; nothing else is there when the bridge has ended."""
        assert not self.marked(), self._told(self.marked())
        until(lambda: not any(map(alive, self.watchdogs)))

    def assert_log_clean(self) -> None:
        """Nothing went wrong that nobody expected."""
        # A backend may say on its stderr what it likes.
        log = "\n".join(line for line in self.log.splitlines() if " stderr: " not in line)
        for complaint in ("Traceback", "Unhandled", "#critical", "failed; going on"):
            assert complaint not in log, log


def _command(process: Path) -> bytes:
    """Its arguments; where its main thread has ended, they stand with another one."""
    command = (process / "cmdline").read_bytes()
    if not command:
        for thread in (process / "task").iterdir():
            command = command or (thread / "cmdline").read_bytes()
    return command


def carrying(mark: str) -> set[Process]:
    """The processes with a text among their arguments; zombies have none."""
    text, found = mark.encode(), set()
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
    Run `twistd mcpbridge` in front of a command, or of a configuration file's
    servers, until the block ends; then everything that it had must be gone.

    `clean` False: the log may hold complaints.
    """
    need_processes()
    mark = str(uuid.uuid4().int)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Nobody else's: what a test leaves, it leaves to its own next bridge.
        line = [*listen, *FAST_PATH, "--state-dir", str(folder / "state"), *options]
        if config is None:
            line += ["--", *(command or backend("echo")), mark]
        else:
            for server in config["mcpServers"].values():
                server["args"] = [*server.get("args", ()), mark]
            (folder / "config.json").write_text(json.dumps(config))
            line += ["--config", str(folder / "config.json")]
        process = _start(["-n", "--pidfile=", "mcpbridge", *line], folder, environment)
        bridge = Bridge(process, folder, mark)
        try:
            until(lambda: _SERVING.search(bridge.log) or process.poll() is not None)
            serves = _SERVING.search(bridge.log)
            assert serves is not None, bridge.log
            bridge.port = int(serves[1])
            yield bridge
            if process.poll() is None:
                bridge.stop()
            if clean:
                bridge.assert_log_clean()
        finally:
            for stream in bridge.streams:
                stream.close()
            process.kill()
            process.wait()
            for each in bridge.marked():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each.pid, signal.SIGKILL)


def run_to_end(
    *arguments: str, environment: dict[str, str] | None = None, cwd: Path | None = None
) -> tuple[int, str]:
    """Run a `twistd mcpbridge` that is to end by itself; its status and all it printed."""
    done = subprocess.run(
        [beside_python("twistd"), "-n", "--pidfile=", "mcpbridge", *arguments],
        env={**os.environ, **(environment or {})},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout.decode(errors="replace")


@contextlib.contextmanager
def bystander(command: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is none of the bridge's, for as long as the block lasts."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Do something in a thread meanwhile; what it raises is raised at the end."""
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
        thread.join(PATIENCE)
    assert not thread.is_alive()
    if failures:
        raise failures[0]
