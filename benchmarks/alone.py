"""
What only mcpbridge is asked, each with a server of its own.

Knows the load generator's modes; must not know the goals.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import replace
from typing import NamedTuple

from measures import MIB, Plan
from running import (
    NotMeasured,
    Result,
    checked,
    echo_command,
    kill_survivors,
    most_sessions,
    on_core,
    parse,
    running,
)
from systems import BUILD, System, bridge_command

#: The largest echo of a bridge that takes messages of 16 MiB.
LARGEST = 16 * MIB - 4096


class Bridge(NamedTuple):
    """mcpbridge, as this run measures it."""

    program: str
    folder: str
    sse: System
    streamable: System

    def configured(self, **how: object) -> System:
        """The same with other settings: see `bridge_command`."""
        command = bridge_command(self.program, self.folder, **how)  # type: ignore[arg-type]
        return replace(self.sse, command=command)


# Ends.


def own_exit() -> float:
    """Milliseconds the backend itself needs from end of file to its exit."""
    line = [str(BUILD / "load"), "exit", "--total", "50", "--", *echo_command()]
    done = subprocess.run(on_core(1, line), capture_output=True, timeout=60, check=False)
    return float(parse(done.stdout)["gone_ms"]["p50"])


def endings(bridge: Bridge, plan: Plan) -> Result:
    """From the client's end to the backend's, and to that of the backend's child."""
    plan.need(8)
    total = 15 if plan.quick else 30
    found: dict[str, Result] = {}

    def close(name: str, system: System, **options: object) -> None:
        with running(system, *(["--grandchild"] if name == "grandchild" else [])) as server:
            result = server.load("close", total=total, lanes=1, patience=3, **options)
        kill_survivors(result)
        if result["never"]:
            raise NotMeasured(f"{result['never']} processes were left after 3 s ({name})")
        found[name] = checked(result)["gone_ms"]

    close("fin", bridge.sse)
    close("rst", bridge.sse, close="rst")
    close("delete", bridge.streamable, close="delete")
    close("grandchild", bridge.sse, tool="grandchild")
    return {"own_exit_ms": own_exit(), **found}


def stubborn(bridge: Bridge, plan: Plan) -> Result:
    """A backend that ignores end of file and SIGTERM, until it is gone."""
    plan.need(10)
    with running(bridge.sse, "--stubborn") as server:
        result = server.load("close", total=4, lanes=4, patience=10)
    kill_survivors(result)
    return checked(result)


# Bounds.


def refusals(bridge: Bridge, plan: Plan) -> Result:
    """429 beyond the limit, and what the live sessions feel of it."""
    plan.need(8)
    with running(bridge.configured(server={"max_sessions": 16})) as server:
        result = server.load(
            "refuse",
            sessions=16,
            pace=800,
            refusals=5100,
            connections=16,
            seconds=1,
            warmup=plan.warmup,
        )
    if result.get("other_answers"):
        raise NotMeasured(f"{result['other_answers']} answers were not 429")
    return checked(result)


def slow_reader(bridge: Bridge, plan: Plan) -> Result:
    """Growth while a client sleeps to which 200 MB are offered."""
    plan.need(15)
    with running(bridge.sse) as server:
        result = server.load(
            "slow-reader",
            count=2_100_000,
            seconds=1.5 if plan.quick else 3,
            after="close" if plan.quick else "keep",
            timeout=40,
        )
    checked(result)
    if not plan.quick and result["notifications"] != result["count"]:
        raise NotMeasured(f"{result['notifications']} of {result['count']} arrived")
    return {**result, "growth_kib": result["rss_most_kib"] - result["rss_kib"]}


def slow_backend(bridge: Bridge, plan: Plan) -> Result:
    """Growth until posts to a backend that does not read are refused."""
    plan.need(10)
    with running(bridge.sse, "--mute") as server:
        result = server.load("slow-backend", bytes=16384, total=20_000, seconds=5)
    if not result["refused_status"]:
        raise NotMeasured(f"nothing was refused; {result['accepted']} messages were taken")
    return {**result, "growth_kib": result["rss_most_kib"] - result["rss_kib"]}


def churn(bridge: Bridge, plan: Plan, total: int) -> Result:
    """Memory while sessions are opened and closed: after each fifth of them."""
    points = []
    with running(bridge.sse) as server:
        for part in range(6):
            # The first part is a warm-up.
            plan.need(2 if plan.quick else 10)
            checked(server.load("open", total=total // 5 if part else 200, timeout=90))
            server.settle()
            points.append(server.rss())
    return {"sessions": total, "kib": points, "growth_kib": points[-1] - points[0]}


# Waits.


def freezes(bridge: Bridge, plan: Plan) -> Result:
    """The latency of one caller, while much happens to others."""
    plan.need(20)
    found: dict[str, Result] = {}
    caller: dict[str, object] = {"base": "/caller", "pace": 500, "fifo": 1, "warmup": 0.2}
    #: until the caller is measured
    ready = 0.4
    with running(bridge.configured(caller=True)) as server, contextlib.ExitStack() as kept:
        found["idle"] = server.load("echo", seconds=1, **caller)
        with server.beside("echo", seconds=1.5, **caller) as found["open-200"]:
            time.sleep(ready)
            held = contextlib.ExitStack()
            kept.callback(held.close)
            held.enter_context(server.holding("open", total=200, after="keep", lanes=200))
        with server.beside("echo", seconds=1.5, **caller) as found["close-200"]:
            time.sleep(ready)
            held.close()
        server.settle()
        with server.holding("open", total=100, after="keep", lanes=8):
            killed = server.backends()
            if len(killed) != 100:
                raise NotMeasured(f"{len(killed)} backends instead of 100")
            with server.beside("echo", seconds=1.5, **caller) as found["kill-100"]:
                time.sleep(ready)
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
        with server.beside("echo", seconds=2, **caller) as found["16MiB"]:
            time.sleep(ready)
            large = {"sessions": 2, "bytes": LARGEST, "spread": 0, "warmup": 0}
            flowed = server.load("echo", seconds=1.2, patience=10, **large)
    checked(flowed)
    for name, each in found.items():
        try:
            checked(each)
        except NotMeasured as problem:
            raise NotMeasured(f"{name}: {problem}") from None
    return {
        "realtime": all(each["realtime"] for each in found.values()),
        "messages_per_second": flowed["rate"],
        **{name: each["latency_ms"] for name, each in found.items()},
    }


def mixed(bridge: Bridge, plan: Plan) -> Result:
    """50 callers that ask 2,000 times a second, alone and beside a stream at full speed."""
    plan.need(10)
    seconds = 1 if plan.quick else 1.5
    callers: dict[str, object] = {"sessions": 50, "pace": 2000, "seconds": seconds}
    found: Result = {}
    for system in (bridge.sse, bridge.streamable):
        with running(system) as server:
            alone = checked(server.load("echo", **callers))
            with server.beside("stream", count=5000, seconds=seconds + 1) as flow:
                time.sleep(0.3)
                beside = checked(server.load("echo", **callers))
        checked(flow)
        found[system.transport] = {
            "alone_ms": alone["latency_ms"],
            "beside_ms": beside["latency_ms"],
            "rate": beside["rate"],
            "notifications": flow["rate"],
        }
    return found


# Many.


def opening_beside(bridge: Bridge, plan: Plan, held: int = 1000) -> list[Result]:
    """Opening beside no session and beside many, in turns: one round for each turn."""
    plan.need(15)
    total = 20 if plan.quick else 40
    rounds = []
    with contextlib.ExitStack() as stack:
        empty = stack.enter_context(running(bridge.sse))
        full = stack.enter_context(running(bridge.sse))
        stack.enter_context(full.holding("open", total=held, after="keep", lanes=8))
        for _ in range(5):
            found: Result = {"held": held}
            for name, server in (("empty", empty), ("full", full)):
                one = checked(server.load("open", total=total, lanes=1))
                eight = checked(server.load("open", total=total * 2, lanes=8))
                found[name] = {
                    "p50": one["latency_ms"]["p50"],
                    "rate": eight["rate"],
                    "server_cpu_us": eight["server_cpu_us"],
                }
            rounds.append(found)
    return rounds


def by_sessions(system: System, plan: Plan, *counts: int) -> Result:
    """
    Cost and memory against the number of sessions, one request outstanding in each.

    One server for all counts: what the first of them leaves behind shows at the next.  A count
    that this machine does not allow becomes the most that it does.
    """
    plan.need(8)
    points = []
    how = "delete" if system.transport == "streamable" else "fin"
    with running(system) as server:
        # What the first sessions need for ever is no session's.
        checked(server.load("open", total=50, lanes=8, close=how))
        server.settle()
        for count in counts:
            count = min(count, most_sessions(system.transport))
            point: Result = {"x": count}
            points.append(point)
            if plan.left() < 6 + count / 150:
                point["problem"] = "the time was over"
                continue
            patience = 10 + count / 100
            result = server.load(
                "echo",
                sessions=count,
                seconds=plan.seconds,
                warmup=plan.warmup,
                pause=0.3,
                timeout=30 + count / 50,
                patience=patience,
            )
            try:
                checked(result)
                server.settle(patience)
            except NotMeasured as problem:
                point["problem"] = str(problem)
                # The next count would begin with what is left of this one.
                break
            grown = result["rss_open_kib"] - result["rss_before_kib"]
            point |= _point(result)
            point |= {
                "opened_per_second": count / result["open_seconds"],
                "session_kib": grown / count,
                "grown_kib": grown,
                "left_kib": server.rss() - result["rss_before_kib"],
            }
    return {"points": points}


def many_servers(bridge: Bridge, plan: Plan, servers: int = 100) -> Result:
    """One server, and many in one configuration file: 100 sessions, spread over all."""
    plan.need(12)
    found: Result = {"servers": servers}
    for name, count in (("one", 1), ("many", servers)):
        paths = tuple(f"/s{i}" for i in range(count)) if count > 1 else ("",)
        with running(bridge.configured(paths=paths)) as server:
            rss = server.rss()
            result = checked(server.load("echo", sessions=100, servers=count, seconds=plan.seconds))
            found[name] = {
                **_point(result),
                "start_seconds": server.start_seconds,
                "rss_kib": rss,
            }
    return found


def by_size(bridge: Bridge, plan: Plan) -> Result:
    """Cost of a request against the size of its message."""
    sizes = [32, 1024, 16 * 1024, 256 * 1024, MIB]
    if not plan.quick:
        sizes = [32, 512, 4096, 32_768, 262_144, 2 * MIB, 12 * MIB]
    points = []
    with running(bridge.sse) as server:
        for size in sizes:
            plan.need(5)
            result = server.load("echo", sessions=4, bytes=size, seconds=plan.seconds, patience=10)
            points.append({"x": size, **_point(checked(result))})
    return {"points": points}


def _point(result: Result) -> Result:
    return {
        "rate": result["rate"],
        "cpu_us": result["server_cpu_us"],
        "p50_ms": result["latency_ms"]["p50"],
        "p99_ms": result["latency_ms"]["p99"],
    }
