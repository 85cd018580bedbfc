"""
Compares what the metrics count with what clients have done: under a mixed load, in every era.

`python benchmarks/counted.py [--seconds N]`; prints a table, and ends with status 1 if any two
numbers differ.  Clients of HTTP+SSE, of Streamable HTTP, and of 2026-07-28 in front of servers of
both eras all call tools at the same time, while others open sessions and leave.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import systems
from prometheus_client.parser import text_string_to_metric_families
from running import NotMeasured, Server, checked, echo_command, raise_limits, running

from mcpbridge.admin_client import SocketConnection

#: A server for each kind of load, so that each can be counted on its own.
WAYS = ("sse", "streamable", "modern", "legacy")
CHURN = "churn"
CALLS, OPENED = "mcp_server_operation_duration_seconds_count", "mcpbridge_sessions_opened_total"
SESSIONS = 8
OUTSTANDING = 4
TEXT_BYTES = 32
#: Sessions that are opened and left, in a second of the load.
OPENED_A_SECOND = 20


def metrics(path: str) -> list[tuple[str, Mapping[str, str], float]]:
    """All samples of a scrape."""
    connection = SocketConnection(path)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    families = text_string_to_metric_families(text)
    return [(each.name, each.labels, each.value) for one in families for each in one.samples]


def system_of(mcpbridge: str, folder: str) -> systems.System:
    """A bridge with a server for each kind of load, and an admin socket."""

    def command(port: int, backend: list[str]) -> list[str]:
        one = {"max_sessions": systems.MOST_SESSIONS, "command": backend[0]}
        servers = {}
        for way in (*WAYS, CHURN):
            arguments = echo_command("--modern")[1:] if way == "modern" else backend[1:]
            servers[way] = {**one, "args": arguments, "base_uri": f"/{way}"}
        bridge = {
            "listen": [f"tcp:{port}:interface=127.0.0.1"],
            "admin_listen": [f"unix:{folder}/admin"],
            "max_sessions": systems.MOST_SESSIONS,
            "max_connections": 4000,
        }
        return systems.configured(mcpbridge, folder, bridge, servers)

    return systems.System("counted", "mcpbridge", "sse", command, "ours")


def as_client(server: Server, way: str, transport: str) -> Server:
    """The same server for clients of another transport, at another path."""
    system = replace(server.system, transport=transport, options=("--base", f"/{way}"))
    return Server(system, server.process, server.port)


def run(server: Server, seconds: float) -> dict[str, int]:
    """All loads at the same time; how many calls of each were answered, and sessions opened."""
    load: dict[str, Any] = {
        "sessions": SESSIONS,
        "outstanding": OUTSTANDING,
        "bytes": TEXT_BYTES,
        "seconds": seconds,
        "patience": 20,
        "timeout": seconds + 60,
    }
    total = int(seconds * OPENED_A_SECOND)
    with ExitStack() as stack:
        found = {
            way: stack.enter_context(as_client(server, way, way).beside("echo", **load))
            for way in WAYS
        }
        churn = as_client(server, CHURN, "sse")
        opened = churn.load("open", total=total, lanes=4, timeout=seconds + 60)
    counted = {way: int(checked(result)["answered"]) for way, result in found.items()}
    return {**counted, CHURN: int(checked(opened)["opened"])}


def main() -> None:
    """Load, scrape and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    beside = str(Path(sys.executable).with_name("mcpbridge"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--mcpbridge", default=beside, help="the program")
    arguments = parser.parse_args()
    raise_limits()
    systems.build()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        server = stack.enter_context(running(system_of(arguments.mcpbridge, folder)))
        clients = run(server, arguments.seconds)
        samples = metrics(f"{folder}/admin")
    print("| load | what | clients | metrics |")
    print("|---|---|--:|--:|")
    differ = False
    for way, number in clients.items():
        name, what = (OPENED, "sessions") if way == CHURN else (CALLS, "calls")
        found = sum(
            value
            for sample, labels, value in samples
            if sample == name
            and labels.get("server") == way
            and labels.get("mcp_method_name", "tools/call") == "tools/call"
        )
        differ |= found != number
        print(f"| {way} | {what} | {number} | {found:.0f} |")
    if differ:
        raise SystemExit("the metrics differ from what clients have done")


if __name__ == "__main__":
    try:
        main()
    except NotMeasured as problem:
        raise SystemExit(f"not measured: {problem}") from None
