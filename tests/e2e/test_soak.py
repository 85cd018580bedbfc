"""
Many sessions and stateless requests that end in every way, and leave nothing.

`MCPBRIDGE_SOAK` is the number of them; `make soak` uses 10,000.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import (
    BACKENDS,
    TIMEOUT,
    Bridge,
    SseStream,
    StreamableHttpClient,
    backend,
    request,
    serving,
    wait_until,
)
from tests.e2e.stateless import (
    ProcessCounter,
    ToolCaller,
    TooManyRequests,
    raise_for_429,
    repeating_in_background,
    subscribe,
)
from tests.progress import Progress

CYCLES = int(os.environ.get("MCPBRIDGE_SOAK", "42"))
AT_A_TIME = 8
#: Sessions before the first look at memory: caches fill once.
WARM_UP = 14

KINDS = ("plain", "crash", "deaf", "children", "daemon", "flood", "mute")
ENDS = ("close", "reset", "half_close")
#: Every second cycle uses Streamable HTTP; `drop` leaves the session to its idle
#: timeout.
STREAMABLE_ENDS = ("delete", "drop")

#: A message that fills a pipe.
UNREAD = b'{"jsonrpc":"2.0","method":"unread","params":{"text":"%b"}}' % (b"x" * 60_000)

LIMITS = {
    "open_files": 64,
    "file_size": 1_000_000,
    "cpu_seconds": 600,
    "core": 0,
    "address_space": 1 << 32,
}
#: Limits and a user for all backends; the user needs no account.
CONFINED = (
    *("--user", "12345", "--group", "12345", "--umask", "0077", "--nice", "1", "--private-tmp"),
    *("--limits", json.dumps(LIMITS)),
)
#: An interpreter and a directory that every user can reach.
PYTHON = "/usr/bin/python3"

#: Growth that is no leak: an arena of the allocator.
GROWTH_BYTES = 6 * 1024 * 1024

pytestmark = pytest.mark.slow


def cycle(bridge: Bridge, number: int) -> str:
    """Connect, initialize, call and abort in one of the ways; return which one."""
    half, streamable = divmod(number, 2)
    kind = KINDS[half % len(KINDS)]
    ends = STREAMABLE_ENDS if streamable else ENDS
    end = ends[half // len(KINDS) % len(ends)]
    (streamable_cycle if streamable else sse_cycle)(bridge, kind, end)
    return f"{kind}, {end}"


def sse_cycle(bridge: Bridge, kind: str, end: str) -> None:
    """Run a cycle over HTTP+SSE."""
    with SseStream(bridge.port) as stream:
        stream.read_opening_events()
        assert b'"initialize"' in stream.round_trip(request("initialize", 1))
        assert kind.encode() in stream.round_trip(request(kind, 2))
        if kind == "mute":
            # Fill its pipe and the queue of the bridge.
            while stream.post(request("unread", 3, text="x" * 60_000)).status == 202:
                pass
        getattr(stream, end)()
        if end == "half_close":
            stream.read_eof() if kind != "flood" else stream.reset()


def streamable_cycle(bridge: Bridge, kind: str, end: str) -> None:
    """Run a cycle over Streamable HTTP."""
    client = StreamableHttpClient(bridge.port)
    try:
        with client.call("initialize") as response:
            client.session_id = response.headers["mcp-session-id"]
            assert response.read_final_message()["result"] == {"was": "initialize"}
        # One whose backend floods is a client that does not read.
        stream = client.open_get_stream()
        assert stream.status == 200
        assert kind in client.call(kind).read_final_message()["result"]["was"]
        if kind == "mute":
            while client.send("POST", UNREAD).status == 202:
                pass
        if end == "delete":
            # A backend that has crashed may have ended it first.
            assert client.delete() in ((200, 404) if kind == "crash" else (200,))
    finally:
        client.disconnect()


def run(one: Callable[[int], str], cycles: int) -> Counter[str]:
    """Run cycles, `AT_A_TIME` at once; each gets its number."""
    numbers, done, progress = count(), Counter[str](), Progress()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not failures and (number := next(numbers)) < cycles:
                done[one(number)] += 1
                progress.count("sessions ended", done.total(), cycles)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(AT_A_TIME)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT + cycles)
    progress.done()
    if failures:
        raise failures[0]
    return done


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A copy of the backend that every user can read, in a directory of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(BACKENDS / "roles.py", folder)
        yield folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a backend as another user")
def test_confined_sessions_that_end_in_every_way_leave_nothing(reachable: Path) -> None:
    """The same with a user, a private directory and every limit; fewer by default."""
    command = [PYTHON, "-I", "-S", str(reachable / "roles.py")]
    end_in_every_way(
        command,
        *CONFINED,
        cycles=CYCLES if "MCPBRIDGE_SOAK" in os.environ else WARM_UP,
        environment={"TMPDIR": str(reachable)},
    )
    assert [each.name for each in reachable.iterdir()] == ["roles.py"]


def test_sessions_that_end_in_every_way_leave_nothing() -> None:
    """No process, no permit, no descriptor, and memory does not grow."""
    command = ["/usr/bin/env", "python3", "-I", "-S", str(BACKENDS / "roles.py")]
    end_in_every_way(command, cycles=CYCLES)


def end_in_every_way(
    command: Sequence[str], *more: str, cycles: int, environment: dict[str, str] | None = None
) -> None:
    """End so many sessions of this command; check what is left."""
    options = ["--stop-grace", "0.2", "--kill-grace", "0.2", "--max-waiting-messages", "8"]
    # Longer than a thread here may stall between two requests.
    options += ["--idle-timeout", "4"]
    # Earlier sessions may still be ending while the next ones begin.
    limit = AT_A_TIME * 12
    options += ["--max-sessions", str(limit), *more]
    with serving(*options, command=command, environment=environment) as bridge:
        assert sum(run(lambda number: cycle(bridge, number), WARM_UP).values()) == WARM_UP
        bridge.wait_until_empty()
        descriptors, memory = bridge.count_descriptors(), bridge.rss()

        done = run(lambda number: cycle(bridge, number), cycles)

        assert sum(done.values()) == cycles
        assert len(done) == min(cycles, len(KINDS) * (len(ENDS) + len(STREAMABLE_ENDS)))
        bridge.wait_until_empty()
        wait_until(lambda: bridge.log.count(" closed after ") == WARM_UP + cycles)
        wait_until(lambda: bridge.count_descriptors() <= descriptors)
        assert bridge.rss() - memory < GROWTH_BYTES
        # Every permit was returned: the limit is reached again, and not exceeded.
        for _ in range(limit):
            bridge.open_sse()
        assert bridge.get_sse().status == 429
        bridge.close_clients()


# All transports, in front of servers of both eras.

#: Seconds a suspended call, and an idle session, waits for its client.
INPUT_SECONDS, IDLE_SECONDS = 0.7, 2.0
#: Limits of each server and of both: fewer processes than the clients want.
LIMITS = {"legacy": 5, "modern": 3}
LIMIT = 6
INITIALIZE_PARAMS: dict[str, Any] = {
    "capabilities": {"elicitation": {}},
    "clientInfo": {"name": "tests", "version": "1"},
}


class Visit:
    """One visit of a client to a server; raises `TooManyRequests` if the limits refuse it."""

    def __init__(self, bridge: Bridge, base: str, number: int) -> None:
        self.port = bridge.port
        self.base = base
        self.token = f"visit {number}"
        self.caller = ToolCaller(bridge, base)

    def sse(self) -> None:
        """Leave a session of HTTP+SSE in the middle of a call."""
        arguments = {"token": self.token}
        with SseStream(self.port, f"{self.base}/sse") as stream:
            raise_for_429(stream.status, stream.headers)
            stream.read_opening_events()
            initialize = request("initialize", 1, protocolVersion="2024-11-05", **INITIALIZE_PARAMS)
            assert b"serverInfo" in stream.round_trip(initialize)
            output = stream.round_trip(request("tools/call", 2, name="echo", arguments=arguments))
            assert self.token.encode() in output
            stream.send_message(request("tools/call", 3, name="wait", arguments=arguments))

    def streamable(self) -> None:
        """Answer a question in a session of Streamable HTTP, and delete the session."""
        client = self._session()
        try:
            call = client.call("tools/call", name="ask", arguments={"token": self.token})
            asked = call.read_message()
            assert asked["params"]["message"] == self.token, asked
            result = {"action": "accept", "content": {"answer": self.token}}
            client.post({"jsonrpc": "2.0", "id": asked["id"], "result": result})
            output = json.loads(call.read_message()["result"]["content"][0]["text"])
            assert output["answer"] == self.token
            assert client.delete() == 200
        finally:
            client.disconnect()

    def dropped(self) -> None:
        """Leave a session to its idle timeout, with a call running."""
        client = self._session()
        client.call("tools/call", name="wait", arguments={"token": self.token})
        client.disconnect()

    def _session(self) -> StreamableHttpClient:
        client = StreamableHttpClient(self.port, self.base)
        try:
            with client.call(
                "initialize", protocolVersion=client.version, **INITIALIZE_PARAMS
            ) as answer:
                raise_for_429(answer.status, answer.headers)
                client.session_id = answer.headers["mcp-session-id"]
                assert "serverInfo" in answer.read_final_message()["result"]
            client.notify("notifications/initialized")
        except BaseException:
            client.disconnect()
            raise
        return client

    # Without a session.

    def plain(self) -> None:
        """Make a stateless call."""
        assert self.caller.call("echo", self.token).tool_output["token"] == self.token

    def left(self) -> None:
        """Make a call and leave."""
        with self.caller.start_call("wait", self.token) as response:
            time.sleep(0.05)
            response.reset()

    def answered(self) -> None:
        """Answer the question of a call."""
        began = time.monotonic()
        outcome = self.caller.answer_elicitation(
            self.token, self.caller.start_elicitation(self.token), self.token
        )
        if outcome.status == 200:
            assert outcome.tool_output["answer"] == self.token
        else:
            # On a busy machine.
            assert time.monotonic() - began >= INPUT_SECONDS, outcome

    def abandoned(self) -> None:
        """Leave the question of a call unanswered."""
        self.caller.start_elicitation(self.token)

    def expired(self) -> None:
        """Answer the question of a call after `input_timeout`, which only a legacy server has."""
        asked = self.caller.start_elicitation(self.token)
        time.sleep(INPUT_SECONDS + 0.2)
        outcome = self.caller.answer_elicitation(self.token, asked, self.token)
        assert outcome.status == (400 if self.base == "/legacy" else 200), outcome

    def listening(self) -> None:
        """Subscribe and leave."""
        subscribe(self.port, self.base).close()


VISITS = (
    Visit.sse,
    Visit.plain,
    Visit.streamable,
    Visit.left,
    Visit.answered,
    Visit.dropped,
    Visit.abandoned,
    Visit.listening,
    Visit.expired,
)


def visit(bridge: Bridge, number: int) -> str:
    """Make one visit to one server as soon as the limits allow; return its kind."""
    half, which = divmod(number, len(VISITS))
    base = ("/legacy", "/modern")[half % 2]
    while True:
        try:
            VISITS[which](Visit(bridge, base, number))
        except TooManyRequests:
            time.sleep(0.1)
        else:
            return f"{VISITS[which].__name__}, {base}"


def test_mixed_transports_stay_within_the_limits_and_leave_nothing() -> None:
    """Never more processes than the limits; no process, permit or descriptor is left."""
    servers = {}
    for era, limit in LIMITS.items():
        command, *args = backend("tools", era, 0)
        servers[era] = {
            "command": command,
            "args": args,
            "base_uri": f"/{era}",
            "max_sessions": limit,
            "input_timeout": INPUT_SECONDS,
            "idle_timeout": IDLE_SECONDS,
            "queue_timeout": 1,
            "stop_grace": 0.2,
            "kill_grace": 0.2,
        }
    with serving(config={"bridge": {"max_sessions": LIMIT}, "mcpServers": servers}) as bridge:
        run(lambda number: visit(bridge, number), 2 * len(VISITS))
        bridge.wait_until_empty()
        descriptors = bridge.count_descriptors()

        counter = ProcessCounter(bridge, *(f"tools.py {era}" for era in LIMITS))
        with repeating_in_background(counter.sample):
            done = run(lambda number: visit(bridge, number), CYCLES)

        assert sum(done.values()) == CYCLES
        assert len(done) == min(CYCLES, 2 * len(VISITS))
        assert counter.samples > 10
        for era, limit in LIMITS.items():
            assert 1 < counter.max_by_name[f"tools.py {era}"] <= limit, counter.max_by_name
        assert counter.max_total <= LIMIT
        bridge.wait_until_empty()
        wait_until(lambda: bridge.log.count(" closed after ") == bridge.log.count("' opened"))
        wait_until(lambda: bridge.count_descriptors() <= descriptors)
        # Every permit was returned.
        for _ in range(LIMITS["legacy"]):
            bridge.open_sse("/legacy")
        for _ in range(LIMIT - LIMITS["legacy"]):
            bridge.open_sse("/modern")
        assert bridge.get_sse("/legacy/sse").status == bridge.get_sse("/modern/sse").status == 429
        bridge.close_clients()
