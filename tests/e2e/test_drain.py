"""
A bridge that is told to stop finishes what runs, refuses what has not begun, and leaves an
inherited socket to the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from tests.e2e.harness import (
    NEVER,
    TIMEOUT,
    Bridge,
    backend,
    processes_with_argument,
    request,
    serving,
    wait_until,
)
from tests.e2e.stateless import PREFIX, VERSION, send, subscribe
from tests.real.parts import beside_python

pytestmark = pytest.mark.slow

REQUESTS = 1000
CONNECTIONS = 100


class Answer(NamedTuple):
    """The status of a response, its fields with names in lower case, and its last message."""

    status: int
    fields: dict[str, str]
    message: Any


class Http:
    """A connection that is kept as long as the bridge keeps it."""

    def __init__(self, port: int) -> None:
        OPENED.append(self)
        self._port = port
        self.reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, method: str, target: str, body: bytes, *fields: str) -> None:
        """Send a request.  Raises `ConnectionRefusedError`."""
        if self.reader is None or self.reader.at_eof():
            await self.close()
            self.reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        lines = [f"{method} {target} HTTP/1.1", f"Host: 127.0.0.1:{self._port}", *fields]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
        assert self._writer is not None
        self._writer.write(head.encode() + body)

    async def head(self) -> tuple[int, dict[str, str]]:
        """Read the head of a response."""
        assert self.reader is not None
        text = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = text.strip().split("\r\n")
        return int(first.split()[1]), {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }

    async def chunks(self) -> Any:
        """Yield the chunks of a body."""
        assert self.reader is not None
        while size := int(await self.reader.readline(), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)

    async def receive(self) -> Answer:
        """Read a response that has an end."""
        status, fields = await self.head()
        assert self.reader is not None
        message = None
        if fields.get("transfer-encoding") == "chunked":
            events = b"".join([chunk async for chunk in self.chunks()])
            datas = [line[6:] for line in events.split(b"\n") if line.startswith(b"data: {")]
            message = json.loads(datas[-1])
        elif size := int(fields["content-length"]):
            message = json.loads(await self.reader.readexactly(size))
        if fields.get("connection") == "close":
            await self.close()
        return Answer(status, fields, message)

    async def close(self) -> None:
        """Close the connection; the next request gets another one."""
        writer, self.reader, self._writer = self._writer, None, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


#: All that were made, to be closed at the end of a test.
OPENED: list[Http] = []
T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine, and close its connections."""

    async def run_and_close() -> T:
        try:
            return await work
        finally:
            while OPENED:
                await OPENED.pop().close()

    return asyncio.run(run_and_close())


def written(folder: Path) -> Path:
    """Return the file of the calls that `delayed.py` has got."""
    path = folder / "begun"
    path.touch()
    return path


def call(word: str, ident: object, **more: object) -> bytes:
    """Return a tool call."""
    return request("tools/call", ident, name="say", arguments={"word": word}, **more)


ACCEPT = ("Accept: application/json, text/event-stream", "Content-Type: application/json")
Caller = Callable[[Http, str], Awaitable[Answer]]


async def mcp_session(port: int) -> Callable[[Http, bytes], Awaitable[Answer]]:
    """Open a session of Streamable HTTP; return what posts a message to it."""
    http = Http(port)
    parameters = {"protocolVersion": "2025-11-25", "capabilities": {}}
    await http.send("POST", "/mcp", request("initialize", 0, **parameters), *ACCEPT)
    answer = await http.receive()
    session = f"Mcp-Session-Id: {answer.fields['mcp-session-id']}"

    async def post(http: Http, body: bytes) -> Answer:
        await http.send("POST", "/mcp", body, *ACCEPT, session)
        return await http.receive()

    return post


def mcp_calls(post: Callable[[Http, bytes], Awaitable[Answer]]) -> Caller:
    """Return what calls a tool in a session."""
    numbers = itertools.count(1)

    async def ask(http: Http, word: str) -> Answer:
        return await post(http, call(word, next(numbers)))

    return ask


async def mcp_caller(port: int) -> Caller:
    """Open a session of Streamable HTTP; return what calls a tool in it."""
    return mcp_calls(await mcp_session(port))


async def sse_caller(port: int) -> Caller:
    """Do the same with HTTP+SSE."""
    stream = Http(port)
    await stream.send("GET", "/sse", b"")
    await stream.head()
    answers: dict[str, asyncio.Future[Any]] = {}
    opened: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def read() -> None:
        left = b""
        with contextlib.suppress(asyncio.IncompleteReadError):
            async for chunk in stream.chunks():
                *events, left = (left + chunk).split(b"\n\n")
                for event in events:
                    data = event.partition(b"data: ")[2]
                    if event.startswith(b"event: endpoint"):
                        opened.set_result(data.decode())
                    elif b'"result"' in data:
                        message = json.loads(data)
                        answers.pop(message["id"]).set_result(message)
        for each in answers.values():
            each.set_exception(AssertionError("the stream ended before the answer"))

    reading = asyncio.ensure_future(read())
    endpoint = await opened

    async def ask(http: Http, word: str) -> Answer:
        answers[word] = asyncio.get_running_loop().create_future()
        try:
            await http.send("POST", endpoint, call(word, word), "Content-Type: application/json")
        except ConnectionRefusedError:
            del answers[word]
            raise
        accepted = await http.receive()
        if accepted.status == 202:
            assert not reading.cancelled()
            return accepted._replace(status=200, message=await answers[word])
        del answers[word]
        return accepted

    return ask


async def modern_caller(port: int) -> Caller:
    """Return what calls a tool without a session."""
    meta = {
        f"{PREFIX}protocolVersion": VERSION,
        f"{PREFIX}clientInfo": {"name": "tests", "version": "1"},
        f"{PREFIX}clientCapabilities": {},
    }
    fields = [f"MCP-Protocol-Version: {VERSION}", "Mcp-Method: tools/call", "Mcp-Name: say"]

    async def ask(http: Http, word: str) -> Answer:
        await http.send("POST", "/mcp", call(word, 1, _meta=meta), *ACCEPT, *fields)
        return await http.receive()

    await ask(Http(port), "first")
    return ask


async def in_flight(
    make_caller: Callable[[int], Awaitable[Caller]], port: int, stop: Callable[[], None]
) -> dict[str, str]:
    """
    Make `REQUESTS` calls over `CONNECTIONS`, stop the bridge while they run, and return what
    became of each.
    """
    ask = await make_caller(port)
    words = iter([f"w{number}" for number in range(REQUESTS)])
    outcomes: dict[str, str] = {}

    async def work() -> None:
        http = Http(port)
        for word in words:
            try:
                answer = await ask(http, word)
            except ConnectionRefusedError:
                outcomes[word] = "not connected"
                continue
            if answer.status == 200:
                assert answer.message["result"]["content"][0]["text"] == word
                outcomes[word] = "answered"
            else:
                assert (answer.status, answer.fields["retry-after"]) == (503, "5")
                assert answer.message["error"]["message"] == "the bridge is shutting down"
                outcomes[word] = "refused"
            if len(outcomes) == REQUESTS // 3:
                stop()
        await http.close()

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
    return outcomes


@pytest.mark.parametrize(
    ("make_caller", "era"),
    [(sse_caller, "legacy"), (mcp_caller, "legacy"), (modern_caller, "modern")],
    ids=["sse", "mcp", "2026-07-28"],
)
def test_requests_in_flight_are_answered_or_have_not_begun(
    make_caller: Callable[[int], Awaitable[Caller]], era: str, tmp_path: Path
) -> None:
    begun = written(tmp_path)
    with serving(
        *("--drain-timeout", NEVER, "--concurrency", "80"),
        command=backend("delayed", era, begun, 0.1),
    ) as bridge:
        bridge.descendants()

        def stop() -> None:
            bridge.process.send_signal(signal.SIGTERM)

        outcomes = run(in_flight(make_caller, bridge.port, stop))
        bridge.assert_stopped((0,))
        assert len(outcomes) == REQUESTS
        got = Counter(begun.read_text().split())
        assert set(got.values()) == {1}
        answered = {word for word, outcome in outcomes.items() if outcome == "answered"}
        assert len(answered) >= REQUESTS // 3
        assert set(got) - {"first"} == answered, Counter(outcomes.values())


def test_what_waits_for_its_client_is_finished(tmp_path: Path) -> None:
    """Its answers still pass on the connections that there are; new requests do not."""
    begun = written(tmp_path)
    command = backend("delayed", "legacy", begun, 0)
    with serving("--drain-timeout", NEVER, command=command) as bridge:

        async def talk() -> None:
            post = await mcp_session(bridge.port)
            ask = mcp_calls(post)
            first, second = Http(bridge.port), Http(bridge.port)
            await ask(second, "before")
            calling = asyncio.ensure_future(ask(first, "ask"))
            await asyncio.to_thread(wait_until, lambda: "ask" in begun.read_text())
            bridge.process.send_signal(signal.SIGTERM)
            bridge.wait_for_log("shutting down; waiting for 1 request at ")
            # Longer than connections stay that nobody needs.
            await asyncio.sleep(1)
            assert (await ask(second, "late")).status == 503
            reply = {"jsonrpc": "2.0", "id": "question", "result": {"roots": []}}
            assert (await post(second, json.dumps(reply).encode())).status == 202
            answer = await calling
            assert answer.message["result"]["content"][0]["text"] == "ask"

        bridge.descendants()
        run(talk())
        bridge.assert_stopped((0,))
        assert begun.read_text().split() == ["before", "ask"]


def test_streams_end_with_their_last_event(tmp_path: Path) -> None:
    """The GET stream says when to come back; what is given up gets an error."""
    begun = written(tmp_path)
    command = backend("delayed", "legacy", begun, 0)
    with serving("--drain-timeout", "1", command=command) as bridge:
        bridge.descendants()
        client = bridge.open_streamable_http()
        stream = client.open_get_stream()
        assert stream.read_event().retry == "1000"
        hanging = client.call("tools/call", name="say", arguments={"word": "hang"})
        sse = bridge.open_sse()
        wait_until(lambda: begun.exists() and "hang" in begun.read_text())
        bridge.process.send_signal(signal.SIGTERM)
        # Its session has no request, and ends at once.
        assert sse.read_remaining_messages() == []
        bridge.wait_for_log("1 request at ", "not finished after 1 s (drain_timeout)")
        error = hanging.read_final_message()["error"]
        assert error["message"] == "the session has ended: the bridge is shutting down"
        # No event, but a field: the last thing before the end of the body.
        stream.read_until(b"\r\nretry: 1000\n\n\r\n0\r\n\r\n")
        bridge.assert_stopped((0,))


def test_subscriptions_end_in_order(tmp_path: Path) -> None:
    command = backend("delayed", "legacy", written(tmp_path), 0)
    with serving("--drain-timeout", "100000", command=command) as bridge:
        bridge.descendants()
        with subscribe(bridge.port) as subscription:
            bridge.process.send_signal(signal.SIGTERM)
            assert "result" in subscription.read_final_message()
        bridge.assert_stopped((0,))


def test_second_signal_waits_no_longer_and_third_kills(tmp_path: Path) -> None:
    """Exit status 0 all the same, and nothing is left."""
    command = backend("stubborn")
    graces = ("--stop-grace", "100000", "--kill-grace", "100000")
    with serving("--drain-timeout", "100000", *graces, command=command) as bridge:
        stream = bridge.open_sse()
        stream.send_message(request("x"))
        bridge.descendants()
        bridge.process.send_signal(signal.SIGTERM)
        bridge.wait_for_log("SIGTERM: received, shutting down; waiting for 1 request at 'python'")
        bridge.process.send_signal(signal.SIGINT)
        bridge.wait_for_log("SIGINT: 1 request at 'python' given up; sessions end within 200010 s")
        bridge.process.send_signal(signal.SIGTERM)
        bridge.wait_for_log("SIGTERM: killing the processes of all sessions")
        bridge.assert_stopped((0,))
        assert list((bridge.folder / "state").iterdir()) == []


# Service managers.


#: Execute a command with an inherited socket, as systemd does.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="web")
os.execv(sys.argv[2], sys.argv[2:])
"""


@contextlib.contextmanager
def activated(
    listener: socket.socket, folder: Path, *options: str, command: list[str], domain: str = "INET"
) -> Iterator[Bridge]:
    """Run a bridge on a socket of this process."""
    folder.mkdir()
    log = folder / "log"
    listen = ["--listen", f"systemd:domain={domain}:name=web", "--state-dir", str(folder / "state")]
    line = [beside_python("mcpbridge"), *listen, *options, "--", *command, "inherited"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", ACTIVATE, str(listener.fileno()), *line],
            pass_fds=[listener.fileno()],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: "serving " in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield Bridge(process, folder, "inherited")
    finally:
        process.kill()
        process.wait()


def test_restart_with_an_inherited_socket_loses_no_connection(tmp_path: Path) -> None:
    """Who connects between the two waits for the second one."""
    count = 500
    command = backend("delayed", "modern", written(tmp_path), 0.05)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        port = listener.getsockname()[1]

        async def talk(stop: asyncio.Event) -> Counter[str]:
            outcomes: Counter[str] = Counter()
            numbers = iter(range(count))

            async def work() -> None:
                for number in numbers:
                    if number == count // 2:
                        stop.set()
                    outcomes[await one(number)] += 1

            async def one(number: int) -> str:
                ask = modern
                while True:
                    http = Http(port)
                    answer = await ask(http, f"c{number}")
                    await http.close()
                    if answer.status != 503:
                        return str(answer.status)

            modern = await modern_caller(port)
            await asyncio.gather(*(work() for _ in range(20)))
            return outcomes

        async def restart() -> Counter[str]:
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            with contextlib.ExitStack() as stack:
                old = stack.enter_context(activated(listener, tmp_path / "old", command=command))
                talking = asyncio.ensure_future(talk(stop))
                await stop.wait()
                old.process.send_signal(signal.SIGTERM)
                assert await loop.run_in_executor(None, old.process.wait, TIMEOUT) == 0
                new = await loop.run_in_executor(
                    None,
                    lambda: stack.enter_context(
                        activated(listener, tmp_path / "new", command=command)
                    ),
                )
                outcomes = await talking
                new.process.send_signal(signal.SIGTERM)
                assert await loop.run_in_executor(None, new.process.wait, TIMEOUT) == 0
                return outcomes

        assert run(restart()) == {"200": count}
    assert not processes_with_argument("inherited")


def test_an_inherited_unix_socket_stays_as_it_is(tmp_path: Path) -> None:
    """Neither its mode nor its path changes, and it goes on to take connections."""
    path = tmp_path / "socket"
    command = backend("delayed", "legacy", written(tmp_path), 0)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(16)
        with activated(listener, tmp_path / "one", command=command, domain="UNIX") as bridge:
            assert path.stat().st_mode & 0o777 == 0o600
            bridge.process.send_signal(signal.SIGTERM)
            assert bridge.process.wait(TIMEOUT) == 0
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            listener.accept()[0].close()


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(tmp_path: Path, *, abstract: bool) -> None:
    name = f"@mcpbridge-{os.getpid()}-{time.time_ns()}" if abstract else str(tmp_path / "notify")
    begun = written(tmp_path)
    program, *arguments = backend("delayed", "legacy", begun, 0)
    config = {
        "mcpServers": {"a": {"command": program, "args": arguments, "pass_env": ["*"]}},
        "bridge": {"listen": ["tcp:0:interface=127.0.0.1"]},
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(TIMEOUT)
        manager.bind("\0" + name[1:] if abstract else name)

        def told() -> dict[str, str]:
            lines = manager.recv(4096).decode().split("\n")
            return dict(line.split("=", 1) for line in lines)

        def told_else() -> dict[str, str]:
            while (message := told()) == {"WATCHDOG": "1"}:
                pass
            return message

        environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "200000"}
        with serving(
            "--drain-timeout", NEVER, config=config, listen=(), environment=environment
        ) as bridge:
            ready = told()
            assert (ready["READY"], ready["MAINPID"]) == ("1", str(bridge.process.pid))
            assert ready["STATUS"] == "serving 1 server"
            # The listeners are open by then.
            assert bridge.request("GET", "/").status == 200
            assert [told() for _ in range(3)] == [{"WATCHDOG": "1"}] * 3
            client = bridge.open_streamable_http("/a")
            [process] = bridge.wait_for_backends(1)
            inherited = Path(f"/proc/{process.pid}/environ").read_bytes()
            assert not any(each.encode() in inherited for each in environment)
            bridge.process.send_signal(signal.SIGHUP)
            reloading = told_else()
            assert (reloading["RELOADING"], reloading["MONOTONIC_USEC"].isdecimal()) == ("1", True)
            assert told_else()["READY"] == "1"
            client.call("tools/call", name="say", arguments={"word": "hang"})
            wait_until(lambda: "hang" in begun.read_text())
            bridge.descendants()
            bridge.process.send_signal(signal.SIGTERM)
            stopping = told_else()
            assert (stopping["STOPPING"], stopping["STATUS"]) == ("1", "finishing 1 request at 'a'")
            assert int(stopping["EXTEND_TIMEOUT_USEC"]) > 20_000_000
            bridge.process.send_signal(signal.SIGTERM)
            bridge.assert_stopped((0,))
            assert told_else()["STATUS"] == "ending sessions"


def test_requests_of_2026_that_wait_are_refused(tmp_path: Path) -> None:
    """They have not begun."""
    begun = written(tmp_path)
    command = backend("delayed", "modern", begun, 0)
    limits = ("--concurrency", "1", "--max-sessions", "1", "--drain-timeout", NEVER)
    with serving(*limits, command=command) as bridge:
        bridge.descendants()
        first = send(bridge.port, "", "tools/call", name="say", arguments={"word": "hang"})
        wait_until(lambda: "hang" in begun.read_text())
        second = send(bridge.port, "", "tools/call", name="say", arguments={"word": "late"})
        # It was received by then.
        assert bridge.request("GET", "/").status == 200
        with first, second:
            bridge.process.send_signal(signal.SIGTERM)
            assert (second.status, second.headers["retry-after"]) == (503, "5")
            assert begun.read_text().split() == ["hang"]
            bridge.process.send_signal(signal.SIGTERM)
            assert first.status == 502
        bridge.assert_stopped((0,))
