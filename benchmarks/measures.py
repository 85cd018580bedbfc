"""
What every bridge is asked: each function takes a running server and returns plain results.

Knows the load generator's modes; must not know the goals.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from running import NotMeasured, Result, Server, checked, kill_survivors
from systems import System

MIB = 1024 * 1024


class Plan:
    """How much is measured: `quick` or not, and until when."""

    def __init__(self, quick: bool, budget: float) -> None:
        self.quick = quick
        self.budget = budget
        self.start = time.monotonic()
        self.rounds = 1 if quick else 3
        self.seconds = 0.5 if quick else 1.0
        self.warmup = 0.3

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def left(self) -> float:
        """Seconds of the budget."""
        return self.budget - self.elapsed()

    def need(self, seconds: float) -> None:
        """Raises `NotMeasured` where what comes would not be over in time."""
        if self.left() < seconds:
            raise NotMeasured("the time was over")


def echo(server: Server, plan: Plan, sessions: int, outstanding: int, size: int) -> Result:
    """Requests per second and CPU per request."""
    result = server.load(
        "echo",
        sessions=sessions,
        outstanding=outstanding,
        bytes=size,
        seconds=plan.seconds,
        warmup=plan.warmup,
        patience=2,
    )
    # A peer that loses answers is told of, and compared with all the same.
    if server.system.kind == "peer":
        result["lost"] = result.pop("unanswered", 0)
    if not checked(result)["requests"]:
        raise NotMeasured("no request was answered in time")
    return result


def stream(server: Server, plan: Plan) -> Result:
    """Notifications per second; all must arrive, in order."""
    result = checked(server.load("stream", count=10_000, seconds=plan.seconds, timeout=8))
    if not result["notifications"]:
        raise NotMeasured("notifications do not arrive")
    if result["notifications"] < result["sent"]:
        raise NotMeasured(f"only {result['notifications']} of {result['sent']} arrived")
    return result


def opening(server: Server, plan: Plan) -> Result:
    """A session with a process of its own: one at a time, and eight."""
    how = "delete" if server.system.transport == "streamable" else "fin"
    total = 30 if plan.quick else 100
    checked(server.load("open", total=5, lanes=1, close=how))
    one = checked(server.load("open", total=total, lanes=1, close=how))
    eight = checked(server.load("open", total=total * 2, lanes=8, close=how))
    return {
        "latency_ms": one["latency_ms"],
        "rate": eight["rate"],
        "server_cpu_us": eight["server_cpu_us"],
    }


Test = Callable[[Server, Plan], Result]

SESSION_TESTS: dict[str, Test] = {
    "echo-32B": lambda server, plan: echo(server, plan, 16, 4, 32),
    "latency": lambda server, plan: echo(server, plan, 1, 1, 32),
    "echo-100x1": lambda server, plan: echo(server, plan, 100, 1, 32),
    "echo-16KiB": lambda server, plan: echo(server, plan, 16, 4, 16 * 1024),
    "echo-1MiB": lambda server, plan: echo(server, plan, 4, 1, MIB),
    "stream": stream,
}
#: Of 2026-07-28; there is no session to open, and no stream.
STATELESS_TESTS = {name: SESSION_TESTS[name] for name in ("echo-32B", "latency", "echo-16KiB")}
#: What a peer is asked that is never the best.
FEW_TESTS = ("echo-32B", "latency")


def tests_of(system: System) -> dict[str, Test]:
    """What this system is asked, in this order."""
    if system.transport in ("modern", "legacy"):
        tests = dict(STATELESS_TESTS)
    else:
        tests = dict(SESSION_TESTS)
        if system.processes:
            tests["open"] = opening
    names = system.tests or (FEW_TESTS if system.once else tuple(tests))
    return {name: test for name, test in tests.items() if name in names}


# What one round is enough for.


def closing_of_peer(server: Server, how: str, tool: str = "pid") -> Result:
    """Client gone until backend gone, or its child, where that may never happen."""
    result = server.load("close", total=8, lanes=8, close=how, tool=tool, patience=2)
    kill_survivors(result)
    return result
