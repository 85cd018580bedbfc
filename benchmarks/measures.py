"""
What is measured: each function takes running servers and returns plain results.

Knows the load generator's modes; must not know the goals.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace

from running import (
    NotMeasured,
    Result,
    Server,
    checked,
    echo_command,
    kill_survivors,
    on_core,
    parse,
    running,
)
from systems import BUILD, System, bridge_command

MIB = 1024 * 1024
#: The largest echo of a bridge that takes messages of 16 MiB.
LARGEST = 16 * MIB - 4096


class Plan:
    """How much is measured: `quick` or not, and until when."""

    def __init__(self, quick: bool, budget: float) -> None:
        self.quick = quick
        self.start = time.monotonic()
        self.stop = self.start + budget
        self.rounds = 1 if quick else 3
        self.seconds = 0.5 if quick else 1.5
        self.warmup = 0.3 if quick else 0.8

    def left(self) -> float:
        """Seconds of the budget."""
        return self.stop - time.monotonic()

    def need(self, seconds: float) -> None:
        """Raises `NotMeasured` where what comes would not be over in time."""
        if self.left() < seconds:
            raise NotMeasured("the time was over")


# What every system is asked.


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
    if not server.system.ours:
        result["lost"] = result.pop("unanswered", 0)
    return checked(result)


def stream(server: Server, plan: Plan) -> Result:
    """Notifications per second; all must arrive, in order."""
    result = checked(server.load("stream", count=10_000, seconds=plan.seconds, timeout=8))
    if not result["notifications"]:
        raise NotMeasured("notifications do not arrive")
    if result["notifications"] < result["sent"]:
        raise NotMeasured(f"only {result['notifications']} of {result['sent']} arrived")
    return result


COMMON: dict[str, Callable[[Server, Plan], Result]] = {
    "echo-32B": lambda server, plan: echo(server, plan, 16, 4, 32),
    "latency": lambda server, plan: echo(server, plan, 1, 1, 32),
    "echo-100x1": lambda server, plan: echo(server, plan, 100, 1, 32),
    "echo-16KiB": lambda server, plan: echo(server, plan, 16, 4, 16 * 1024),
    "echo-1MiB": lambda server, plan: echo(server, plan, 4, 1, MIB),
    "stream": stream,
}


def opening(server: Server, plan: Plan) -> Result:
    """A session with a process of its own: one at a time, and eight."""
    how = "delete" if server.system.transport == "streamable" else "fin"
    total = 30 if plan.quick else 100
    checked(server.load("open", total=5, lanes=1, close=how))
    one = checked(server.load("open", total=total, lanes=1, close=how))
    eight = checked(server.load("open", total=total * 2, lanes=8, close=how))
    return {"p50": one["latency_ms"]["p50"], "p99": one["latency_ms"]["p99"], "rate": eight["rate"]}


def own_exit() -> float:
    """Milliseconds the backend itself needs from end of file to its exit."""
    line = [str(BUILD / "load"), "exit", "--total", "50", "--", *echo_command()]
    done = subprocess.run(on_core(1, line), capture_output=True, timeout=60, check=False)
    return float(parse(done.stdout)["gone_ms"]["p50"])


def closing(server: Server, plan: Plan, how: str) -> Result:
    """Client gone until backend gone."""
    result = server.load("close", total=20 if plan.quick else 60, lanes=1, close=how, patience=3)
    kill_survivors(result)
    if result["never"]:
        raise NotMeasured(f"{result['never']} backends were left after 3 s")
    return checked(result)


def closing_of_peer(server: Server, how: str) -> Result:
    """The same where it may never happen."""
    result = server.load("close", total=8, lanes=8, close=how, patience=3)
    kill_survivors(result)
    return result


# What only mcpbridge is asked, each with a server of its own.


def idle_memory(system: System, plan: Plan, few: int, many: int) -> Result:
    """KiB of a live session with nothing to do: `many` of them opened on top of a `few`."""
    plan.need(30)
    with running(system) as server, server.holding("open", total=few, after="keep", lanes=8):
        time.sleep(0.5)
        before = server.rss()
        with server.holding("open", total=many, after="keep", lanes=8) as opened:
            time.sleep(0.5)
            after = server.rss()
    checked(opened)
    return {
        "kib": (after - before) / many,
        "sessions": many,
        "seconds": opened["seconds"],
        "p50_by_part": opened["parts_p50_ms"],
        "few": few,
    }


def churn(system: System, plan: Plan, total: int) -> Result:
    """Memory while sessions are opened and closed: after each fifth of them."""
    how = "delete" if system.transport == "streamable" else "fin"
    points = []
    with running(system) as server:
        for part in range(6):
            # The first part is a warm-up.
            plan.need(2 if plan.quick else 20)
            checked(server.load("open", total=total // 5 if part else 200, close=how, timeout=90))
            time.sleep(0.3)
            points.append(server.rss())
    return {"sessions": total, "kib": points, "growth_kib": points[-1] - points[0]}


def stubborn(system: System, plan: Plan) -> Result:
    """A backend that ignores end of file and SIGTERM, until it is gone."""
    plan.need(10)
    with running(system, "--stubborn") as server:
        result = server.load("close", total=4, lanes=4, patience=10)
    kill_survivors(result)
    return checked(result)


def refusals(mcpbridge: str, folder: str, system: System, plan: Plan) -> Result:
    """429 beyond the limit, and what the live sessions feel of it."""
    plan.need(10)
    limited = replace(system, command=bridge_command(mcpbridge, folder, max_sessions=16))
    seconds = 1 if plan.quick else 3
    with running(limited) as server:
        result = server.load(
            "refuse",
            sessions=16,
            pace=800,
            refusals=5100,
            connections=16,
            seconds=seconds,
            warmup=plan.warmup,
        )
    if result.get("other_answers"):
        raise NotMeasured(f"{result['other_answers']} answers were not 429")
    return checked(result)


def slow_reader(system: System, plan: Plan) -> Result:
    """Growth while a client sleeps to which 200 MB are offered."""
    plan.need(15)
    with running(system) as server:
        result = server.load(
            "slow-reader",
            count=2_100_000,
            seconds=1.5 if plan.quick else 4,
            after="close" if plan.quick else "keep",
            timeout=40,
        )
    checked(result)
    if not plan.quick and result["notifications"] != result["count"]:
        raise NotMeasured(f"{result['notifications']} of {result['count']} arrived")
    return {**result, "growth_kib": result["rss_most_kib"] - result["rss_kib"]}


def slow_backend(system: System, plan: Plan) -> Result:
    """Growth until posts to a backend that does not read are refused."""
    plan.need(10)
    with running(system, "--mute") as server:
        result = server.load("slow-backend", bytes=16384, total=20_000, seconds=5)
    if not result["refused_status"]:
        raise NotMeasured(f"nothing was refused; {result['accepted']} messages were taken")
    return {**result, "growth_kib": result["rss_most_kib"] - result["rss_kib"]}


def lag(system: System, plan: Plan) -> Result:
    """How long the event loop makes a request wait that it answers by itself."""
    count = 200 if plan.quick else 1000
    seconds = 2 if plan.quick else 5
    plan.need(seconds * 5 + count / 100)
    probe: dict[str, object] = {"pace": 400, "fifo": 1, "connections": 8, "seconds": seconds}
    flow: dict[str, object] = {"sessions": 2, "bytes": LARGEST, "seconds": seconds}
    found: dict[str, Result] = {}
    with running(system) as server, contextlib.ExitStack() as closing:
        checked(server.load("echo", seconds=1))
        found["idle"] = server.load("probe", **probe)
        with contextlib.ExitStack() as kept:
            with server.beside("probe", **probe) as found["opening"]:
                held = server.holding("open", total=count, after="keep", lanes=8)
                kept.enter_context(held)
            time.sleep(1)
            found["many"] = server.load("probe", **probe)
            with server.beside("echo", timeout=60, **flow) as flowed:
                time.sleep(0.5)
                found["loaded"] = server.load("probe", **probe)
            # Goes on while the sessions are closed.
            found["closing"] = closing.enter_context(server.beside("probe", **probe))
            time.sleep(0.2)
        closing.close()
    checked(flowed)
    latencies = {name: each["latency_ms"] for name, each in found.items()}
    return {"sessions": count, "messages_per_second": flowed["rate"], **latencies}


# Curves.


def by_sessions(system: System, plan: Plan) -> list[Result]:
    """Cost of a request against the number of sessions, one outstanding in each."""
    points = []
    for sessions in (1, 10, 100) if plan.quick else (1, 10, 100, 1000, 3000):
        if plan.left() < 5 + sessions / 50:
            break
        with running(system) as server:
            result = server.load(
                "echo",
                sessions=sessions,
                seconds=plan.seconds,
                warmup=plan.warmup,
                timeout=60,
                patience=10,
            )
        try:
            checked(result)
        except NotMeasured as problem:
            points.append({"x": sessions, "problem": str(problem)})
            continue
        points.append(_point(sessions, result))
    return points


def by_size(system: System, plan: Plan) -> list[Result]:
    """Cost of a request against the size of its message."""
    sizes = [32, 1024, 16 * 1024, 256 * 1024, MIB]
    if not plan.quick:
        sizes = [32, 256, 1024, 4096, 16384, 65536, 262144, MIB, 4 * MIB, LARGEST]
    points = []
    with running(system) as server:
        for size in sizes:
            plan.need(5)
            result = server.load("echo", sessions=4, bytes=size, seconds=plan.seconds, patience=10)
            points.append(_point(size, checked(result)))
    return points


def by_descriptors(system: System, plan: Plan) -> list[Result]:
    """Cost of a request and of a new session against open descriptors."""
    points = []
    for idle in (1, 1000) if plan.quick else (1, 300, 1000, 3000, 10_000):
        plan.need(8)
        with running(system) as server, server.holding("connections", connections=idle):
            result = checked(server.load("echo", sessions=4, seconds=plan.seconds))
            opened = checked(server.load("open", total=30, lanes=1))
        points.append({**_point(idle, result), "open_p50_ms": opened["latency_ms"]["p50"]})
    return points


def _point(x: int, result: Result) -> Result:
    return {
        "x": x,
        "rate": result["rate"],
        "cpu_us": result["server_cpu_us"],
        "p50_ms": result["latency_ms"]["p50"],
        "p99_ms": result["latency_ms"]["p99"],
    }
