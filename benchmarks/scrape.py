"""
Measures for how long a scrape of the metrics keeps the reactor from its clients.

`python benchmarks/scrape.py [--servers N] [--tools N] [--sessions N] [--scrapes N]`; prints
milliseconds.  The servers have no processes: their counters are filled, and a timer that is
due each millisecond notes how late it fires, and how much processor time has passed, which
other programs on the machine do not change.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple, cast

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import LoopingCall, deferLater, react

from mcpbridge import Bridge, BridgeSettings, ServerSettings
from mcpbridge.admin.metrics import Exposition
from mcpbridge.memory import keep_collections_short
from mcpbridge.testing import FakeLauncher, RecordingSink

TICK_SECONDS = 0.001
METHODS = (
    *("initialize", "ping", "tools/list", "resources/list", "resources/read", "prompts/list"),
    *("prompts/get", "completion/complete", "logging/setLevel", "resources/templates/list"),
)
ERRORS = ("-32601", "-32602", "tool_error", "cancelled", "no_answer")
ACCEPTS = {"text": "text/plain", "OpenMetrics": "application/openmetrics-text"}


class View:
    """A bridge as the admin listener sees it."""

    condition = "serving"

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bridge, name)


class Lag:
    """
    How late a timer fires, at most, since the last look, and how much processor time has
    passed between two of its calls; both in milliseconds.
    """

    def __init__(self) -> None:
        self._due, self._used = time.perf_counter(), time.thread_time()
        self._late = self._busy = 0.0

    def __call__(self) -> None:
        now, used = time.perf_counter(), time.thread_time()
        self._late = max(self._late, now - self._due)
        self._busy = max(self._busy, used - self._used)
        self._due, self._used = now + TICK_SECONDS, used

    def take(self) -> Longest:
        """Return both, and begin anew."""
        found = Longest(self._late * 1000, self._busy * 1000)
        self._late = self._busy = 0.0
        return found


class Longest(NamedTuple):
    """The longest delay of a timer, and the most processor time between two, in milliseconds."""

    late: float
    busy: float

    def __str__(self) -> str:
        return f"{self.late:.1f} ms, of processor time {self.busy:.1f} ms"


class Scrape(NamedTuple):
    """The figures of one scrape."""

    lag: Longest
    milliseconds: float
    size: int


def filled(reactor: Any, servers: int, tools: int, sessions: int) -> Bridge:
    """Return a bridge whose servers have many operations, and sessions with fake backends."""
    settings = BridgeSettings(
        listen=(),
        max_sessions=sessions + servers,
        servers=tuple(
            ServerSettings(
                name=f"server {number}",
                command="x",
                base_uri=f"/{number}",
                max_sessions=sessions + 1,
                max_sessions_per_address=None,
            )
            for number in range(servers)
        ),
    )
    bridge = Bridge(settings, reactor, launcher=FakeLauncher())
    for server in bridge.servers:
        named = [("tools/call", f"tool_{number}") for number in range(tools)]
        for operation in [*((method, "") for method in METHODS), *named]:
            found = server.counters.operation(*operation)
            for milliseconds in range(1, 2000, 100):
                found.succeeded(milliseconds / 1000)
            for error in ERRORS[: 1 + len(found.method) % len(ERRORS)]:
                found.failed(error, 0.1)
    for number in range(sessions):
        opened = bridge.servers[number % servers].open_session(
            cast("Any", lambda session: RecordingSink())
        )
        ensureDeferred(opened).addErrback(lambda failure: failure.printTraceback())
    return bridge


async def measure(reactor: Any, arguments: argparse.Namespace) -> None:
    """Scrape, and print the figures."""
    bridge = filled(reactor, arguments.servers, arguments.tools, arguments.sessions)
    keep_collections_short()
    exposition = Exposition(cast("Any", View(bridge)), reactor)
    lag = Lag()
    ticking = LoopingCall(lag)
    ticking.clock = reactor
    ticking.start(TICK_SECONDS, now=False).addErrback(lambda failure: failure.printTraceback())
    await deferLater(reactor, 0.1)
    lag.take()
    await deferLater(reactor, 1)
    print(f"lag without scrapes: {lag.take()}")
    await exposition.text("")
    print(f"lag of the first scrape, which imports the library: {lag.take()}")
    for name, accept in ACCEPTS.items():
        scrapes = [await scrape(exposition, reactor, lag, accept) for _ in range(arguments.scrapes)]
        longest = Longest(*(max(each) for each in zip(*(x.lag for x in scrapes), strict=True)))
        taken = sum(each.milliseconds for each in scrapes) / len(scrapes)
        print(
            f"{name}: longest lag {longest}; a scrape takes {taken:.0f} ms for"
            f" {scrapes[-1].size / 1e6:.1f} MB"
        )
    ticking.stop()


async def scrape(exposition: Exposition, reactor: Any, lag: Lag, accept: str) -> Scrape:
    """Scrape once."""
    await deferLater(reactor, 0.05)
    lag.take()
    began = time.perf_counter()
    _, body = await exposition.text(accept)
    taken = time.perf_counter() - began
    # A slice that ends the scrape makes the next timer late.
    await deferLater(reactor, 2 * TICK_SECONDS)
    return Scrape(lag.take(), taken * 1000, len(body))


def main(reactor: Any) -> Deferred[None]:
    """Read the arguments, and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=int, default=64)
    parser.add_argument("--tools", type=int, default=20)
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--scrapes", type=int, default=10)
    return ensureDeferred(measure(reactor, parser.parse_args()))


if __name__ == "__main__":
    react(main)
