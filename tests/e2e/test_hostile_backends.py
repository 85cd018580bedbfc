"""
Backends that crash, daemonize, fork again and again or hide from their tags,
beside well-behaved clients: no process is left, and no healthy session suffers.

`MCPBRIDGE_SOAK` is the number of hostile sessions, `MCPBRIDGE_HEALTHY` the
number of healthy ones; `make soak` uses 10,000 and 200.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.e2e.harness import (
    Bridge,
    SseStream,
    StreamableHttpClient,
    backend,
    request,
    serving,
    wait_until,
)
from tests.e2e.stateless import TooManyRequests, raise_for_429, send
from tests.e2e.test_killed_bridge import EVERY_ORDER, Kill
from tests.e2e.test_soak import CYCLES, GROWTH_BYTES, run
from tests.engine.running import Engine, running_engine
from tests.real.processes import Process, alive

HEALTHY = int(os.environ.get("MCPBRIDGE_HEALTHY", "12"))
HEALTHY_THREADS = 4
KINDS = ("crash", "deaf", "helper", "shell", "renew", "thread", "limit", "cleared")
ENDS = ("close", "reset", "delete", "drop")
WARM_UP = 2 * len(KINDS)
#: Earlier sessions may still be ending while the next ones begin.
LIMIT = 96

pytestmark = pytest.mark.slow

Result = TypeVar("Result")


def hostile(bridge: Bridge, number: int) -> str:
    """Run one hostile visit as soon as the limits allow; return its kind."""
    return when_allowed(partial(misbehave, bridge, number))


def when_allowed(what: Callable[[], Result]) -> Result:
    """Do something as soon as enough of the earlier sessions are gone."""
    while True:
        try:
            return what()
        except TooManyRequests:
            time.sleep(0.1)


def misbehave(bridge: Bridge, number: int) -> str:
    """Run a session or a stateless call whose backend misbehaves; return its kind."""
    number, stateless = divmod(number, 4)
    if stateless == 3:
        return crash_in_a_call(bridge, "/modern" if number % 2 else "/legacy")
    kind = KINDS[number % len(KINDS)]
    end = ENDS[number // len(KINDS) % len(ENDS)]
    if stateless == 2 and number % 5 == 0:
        return in_a_container(bridge)
    if end in ("close", "reset"):
        with SseStream(bridge.port, "/hostile/sse") as stream:
            raise_for_429(stream.status, stream.headers)
            stream.read_opening_events()
            stream.round_trip(request("initialize", 1, protocolVersion="2024-11-05"))
            assert kind.encode() in stream.round_trip(request(kind, 2))
            getattr(stream, end)()
        return f"{kind}, {end}"
    client = StreamableHttpClient(bridge.port, "/hostile")
    try:
        begin(client)
        assert client.call(kind).read_final_message()["result"]["was"] == kind
        if end == "delete":
            # A backend that has crashed may have ended it first.
            assert client.delete() in ((200, 404) if kind == "crash" else (200,))
    finally:
        client.disconnect()
    return f"{kind}, {end}"


def begin(client: StreamableHttpClient) -> None:
    """Open the session; raise `TooManyRequests` if the limits allow none now."""
    with client.call("initialize", protocolVersion=client.version) as answer:
        raise_for_429(answer.status, answer.headers)
        assert answer.status == 200, answer.body
        message = answer.read_final_message()
        # A backend that has died has an error for an answer, and its session no id.
        assert "serverInfo" in message.get("result", {}), message
        client.session_id = answer.headers["mcp-session-id"]


def in_a_container(bridge: Bridge) -> str:
    """Run a session whose container outlives its client, the engine's CLI."""
    client = StreamableHttpClient(bridge.port, "/container")
    try:
        begin(client)
        assert client.call("deaf").read_final_message()["result"]["was"] == "deaf"
        assert client.delete() == 200
    finally:
        client.disconnect()
    return "deaf, in a container"


def crash_in_a_call(bridge: Bridge, base: str) -> str:
    """Make a stateless call whose process exits; the client gets an error."""
    params: dict[str, Any] = {"name": "do", "arguments": {"exit": 3}}
    # `one_tool.py` reads it, and a bridge leaves no other `_meta` to a legacy server.
    params["_meta"] = {"progressToken": "token"}
    with send(bridge.port, base, "tools/call", **params) as response:
        # A call that met the ending process of another one gets `Retry-After`.
        assert response.status in (200, 502, 503, 429), response.body
        if response.status == 200:
            assert "error" in response.read_final_message()
    return f"exit, {base}"


class HealthySessions:
    """Clients that ping, and sometimes open a new session; `longest` is the longest wait."""

    def __init__(self, bridge: Bridge, count: int) -> None:
        self.pings = 0
        self.longest = 0.0
        self._bridge = bridge
        self._count = count
        self._over = threading.Event()
        self._hit: list[BaseException] = []

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Run the clients until the block ends, then check that none failed."""
        share = self._count // HEALTHY_THREADS
        threads = [
            threading.Thread(target=self._work, args=(share,)) for _ in range(HEALTHY_THREADS)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
        assert not self._hit, f"{len(self._hit)} of them, first: {self._hit[0]!r}"
        assert self.pings > self._count

    def _work(self, share: int) -> None:
        clients = [StreamableHttpClient(self._bridge.port, "/healthy") for _ in range(share)]
        turn = 0
        try:
            for client in clients:
                client.initialize()
            while not self._over.is_set():
                client = clients[turn % share]
                turn += 1
                began = time.monotonic()
                with client.call("ping") as response:
                    assert response.status == 200, (response.status, response.body)
                    assert response.read_final_message()["result"]["was"] == "ping"
                self.longest = max(self.longest, time.monotonic() - began)
                self.pings += 1
                client.disconnect()
                if turn % 50 == 0:
                    assert client.delete() == 200
                    client.disconnect()
                    client.session_id = ""
                    when_allowed(partial(begin, client))
        except BaseException as failure:
            self._hit.append(failure)
        finally:
            for client in clients:
                client.close()


@pytest.fixture
def engine() -> Iterator[Engine]:
    with running_engine() as engine:
        yield engine


def test_hostile_backends_leave_nothing_and_harm_no_healthy_session(
    tmp_path: Path, engine: Engine
) -> None:
    """No process, container, permit or descriptor is left."""
    graces = {"stop_grace": 0.2, "kill_grace": 0.2, "idle_timeout": 4}
    servers = {}
    for name, line in {
        "hostile": backend("hostile"),
        "healthy": backend("hostile"),
        "legacy": backend("one_tool", "legacy", tmp_path / "legacy"),
        "modern": backend("one_tool", "modern", tmp_path / "modern"),
    }.items():
        command, *args = line
        servers[name] = {"command": command, "args": args, "base_uri": f"/{name}", **graces}
    servers["hostile"]["max_sessions"] = LIMIT
    servers["container"] = {
        "command": str(engine.bin / "docker"),
        "args": ["run", "-i", "--rm", "image", *backend("hostile")],
        "env": {"DOCKER_HOST": str(engine.socket)},
        "base_uri": "/container",
        **graces,
    }
    servers["healthy"] |= {"max_sessions": 4 * HEALTHY, "idle_timeout": 300}
    with serving(config={"mcpServers": servers}) as bridge:
        run(lambda number: hostile(bridge, number), WARM_UP)
        bridge.wait_until_empty()
        descriptors, memory = bridge.count_descriptors(), bridge.rss()

        healthy = HealthySessions(bridge, HEALTHY)
        with healthy.at_work():
            done = run(lambda number: hostile(bridge, number), CYCLES)

        print(
            f"{CYCLES} ends beside {HEALTHY} healthy sessions, which pinged {healthy.pings} times;"
            f" the longest wait was {1000 * healthy.longest:.0f} ms"
        )
        assert sum(done.values()) == CYCLES
        bridge.wait_until_empty()
        wait_until(lambda: bridge.log.count(" closed after ") == bridge.log.count("' opened"))
        wait_until(lambda: bridge.count_descriptors() <= descriptors)
        assert bridge.rss() - memory < GROWTH_BYTES + HEALTHY * 64 * 1024
        assert engine.containers() == []
        # Every permit was returned: the limit is reached again, and not exceeded.
        for _ in range(LIMIT):
            bridge.open_sse("/hostile")
        assert bridge.get_sse("/hostile/sse").status == 429
        bridge.close_clients()


def kill_bridge(bridge: Bridge, watchdog: Process) -> None:
    """Kill the bridge only: the watchdog cleans up."""
    bridge.process.kill()


@pytest.mark.parametrize("kill", [kill_bridge, *EVERY_ORDER])
def test_killed_bridge_leaves_no_hostile_backend(tmp_path: Path, kill: Kill) -> None:
    """The watchdog ends them; if it was killed too, the next start does."""
    options = ["--state-dir", str(tmp_path), "--stop-grace", "0.2", "--kill-grace", "0.2"]
    command = backend("hostile")
    with serving(*options, "--max-sessions", str(LIMIT), command=command) as bridge:
        watchdog = bridge.wait_for_watchdog()
        for number in range(max(2 * len(KINDS), min(LIMIT, CYCLES // 100))):
            client = bridge.open_streamable_http()
            kind = KINDS[number % len(KINDS)]
            assert client.call(kind).read_final_message()["result"]["was"] == kind
        kill(bridge, watchdog)
        bridge.process.wait()
        if kill is kill_bridge:
            wait_until(lambda: not bridge.marked_processes())
        with serving(*options, command=command) as following:
            following.wait_for_log(f"a bridge that was killed (pid {bridge.process.pid}) had left")
            wait_until(lambda: not bridge.marked_processes())
            wait_until(lambda: not alive(watchdog))
    assert list(tmp_path.iterdir()) == []
