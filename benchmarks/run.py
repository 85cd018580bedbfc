"""
Measures mcpbridge against its peers, and writes docs/benchmarks.md.

`python benchmarks/run.py [--quick]`; see README.md.  Ends with one line for
each figure: `bench: NAME RATIO (goal GOAL) met|missed`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import figures
import measures
import report
import systems
from running import NotMeasured, running
from systems import System

QUICK_SECONDS = 115.0
FULL_SECONDS = 840.0
#: What `--quick` leaves out: slow to measure, and never the best.
NOT_QUICK = {"fastmcp", "pypi-proxy", "contextforge"}
NOT_QUICK |= {"fastmcp-mcp", "pypi-proxy-mcp", "npm-proxy-mcp"}


class Bench:
    """One run: what is measured when, and what came of it."""

    def __init__(self, arguments: argparse.Namespace, folder: str) -> None:
        budget = QUICK_SECONDS if arguments.quick else FULL_SECONDS
        self.arguments = arguments
        self.folder = folder
        self.problems: dict[str, str] = {}
        self.table: figures.Table = {}
        self.own: dict[str, Any] = {}
        self.peers: dict[str, Any] = {}
        self.systems = self._find_systems()
        self.busy = report.busy()
        if self.busy > 0.05:
            self.say(f"others have {self.busy:.0%} of this machine: figures will be off")
        self.plan = measures.Plan(arguments.quick, budget)

    def say(self, text: str) -> None:
        """What happens now, for who waits."""
        print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)

    def _find_systems(self) -> list[System]:
        found = systems.own_systems(self.arguments.mcpbridge, self.folder)
        if not self.arguments.no_peers:
            self.problems = systems.install(self.say)
            found += systems.peer_systems(self.problems)
        if self.arguments.quick:
            found = [each for each in found if each.key not in NOT_QUICK]
        if self.arguments.only:
            found = [each for each in found if each.key in self.arguments.only]
        return found

    # Every system.

    def compare(self) -> None:
        """Rounds over all systems; later rounds leave out who cannot be the best."""
        for number in range(self.plan.rounds):
            for system in self.systems if number == 0 else self._contenders():
                if number and self.plan.left() < 40:
                    return
                if isinstance(self.table.get(system.key, {}).get("echo-32B"), str):
                    continue
                self.say(f"round {number + 1}: {system.name} ({system.transport})")
                self._round(system)
            if number == 0:
                self.alone()

    def _round(self, system: System) -> None:
        cells = self.table.setdefault(system.key, {})
        tests = dict(measures.COMMON)
        if system.processes:
            tests["open"] = measures.opening
        try:
            with running(system) as server:
                if system.ours and system.transport == "streamable":
                    _check_served(server.port)
                for name, test in tests.items():
                    self._cell(cells, name, lambda test=test: test(server, self.plan))
                if not system.ours and not self.plan.quick:
                    self._once(system, server)
        except NotMeasured as problem:
            for name in tests:
                cells.setdefault(name, str(problem))

    def _cell(
        self, cells: dict[str, Any], name: str, measure: Callable[[], dict[str, Any]]
    ) -> None:
        before = cells.get(name)
        if isinstance(before, str):
            return
        try:
            self.plan.need(5)
            cells[name] = [*(before or []), measure()]
        except NotMeasured as problem:
            cells[name] = before or str(problem)

    def _once(self, system: System, server: Any) -> None:
        """What one round is enough for: a peer's memory, and how its sessions end."""
        if system.key in self.peers:
            return
        found = self.peers.setdefault(system.key, {})
        hows = ("fin", "rst", "delete") if system.transport == "streamable" else ("fin", "rst")
        if system.processes:
            for how in hows:
                found[how] = _attempt(lambda how=how: measures.closing_of_peer(server, how))
        few, many = (5, 30) if system.processes else (20, 100)
        found["memory"] = _attempt(lambda: measures.idle_memory(system, self.plan, few, many))

    def _contenders(self) -> list[System]:
        """Ours, and who was first or second in anything."""
        keep = {each.key for each in self.systems if each.ours}
        for test in (*measures.COMMON, "open"):
            for transport in ("sse", "streamable"):
                ranked = []
                for system in self.systems:
                    cell = self.table.get(system.key, {}).get(test)
                    value = figures.value_of(cell, figures.rate)
                    if value and not system.ours and system.transport == transport:
                        ranked.append((value, system.key))
                keep |= {key for _, key in sorted(ranked)[-2:]}
        return [each for each in self.systems if each.key in keep]

    # mcpbridge alone.

    def alone(self) -> None:
        """The figures of mcpbridge that no peer has."""
        own = next((each for each in self.systems if each.key == "mcpbridge"), None)
        if own is None:
            return
        plan, mcpbridge, folder = self.plan, self.arguments.mcpbridge, self.folder
        self.own["own_exit_ms"] = measures.own_exit()
        steps: list[tuple[str, Callable[[], Any]]] = [
            ("memory", lambda: measures.idle_memory(own, plan, 100, 1000)),
            ("close-fin", lambda: self._closing(own, "fin")),
            ("close-rst", lambda: self._closing(own, "rst")),
            ("close-delete", self._closing_by_delete),
            ("stubborn", lambda: measures.stubborn(own, plan)),
            ("refusals", lambda: measures.refusals(mcpbridge, folder, own, plan)),
            ("slow-reader", lambda: measures.slow_reader(own, plan)),
            ("slow-backend", lambda: measures.slow_backend(own, plan)),
            ("lag", lambda: measures.lag(own, plan)),
            ("churn", lambda: measures.churn(own, plan, self.arguments.churn)),
            ("by-size", lambda: measures.by_size(own, plan)),
            ("by-sessions", lambda: measures.by_sessions(own, plan)),
            ("by-descriptors", lambda: measures.by_descriptors(own, plan)),
        ]
        for name, step in steps:
            self.say(f"mcpbridge alone: {name}")
            self.own[name] = _attempt(step)

    def _closing(self, system: System, how: str) -> dict[str, Any]:
        with running(system) as server:
            if system.transport == "streamable":
                _check_served(server.port)
            return measures.closing(server, self.plan, how)

    def _closing_by_delete(self) -> dict[str, Any]:
        own = next((each for each in self.systems if each.key == "mcpbridge-mcp"), None)
        if own is None:
            raise NotMeasured("it was not asked for")
        return self._closing(own, "delete")

    # The end.

    def figures(self) -> list[figures.Figure]:
        """All of them, met or not."""
        return [*figures.compared(self.systems, self.table), *figures.absolute(self.own)]

    def results(self) -> dict[str, Any]:
        """What goes into docs/benchmarks.json."""
        return {
            "date": time.strftime("%Y-%m-%d"),
            "quick": self.plan.quick,
            "seconds": round(time.monotonic() - self.plan.start),
            "machine": report.machine(),
            "busy": round(self.busy, 3),
            "versions": report.versions(),
            "systems": [
                {"key": each.key, "name": each.name, "transport": each.transport}
                for each in self.systems
            ],
            "not_installed": self.problems,
            "rounds": self.table,
            "mcpbridge": self.own,
            "peers": self.peers,
            "figures": [{**asdict(each), "met": each.met} for each in self.figures()],
        }


def _attempt(step: Callable[[], Any]) -> Any:
    try:
        return step()
    except NotMeasured as problem:
        return str(problem)


def _check_served(port: int) -> None:
    """Whether {base}/mcp answers.  Raises `NotMeasured`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("POST", "/mcp", b"{}", {"Content-Type": "application/json"})
        status = connection.getresponse().status
    finally:
        connection.close()
    if status == 404:
        raise NotMeasured("mcpbridge does not serve /mcp yet")


def parse_arguments(words: Iterable[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure mcpbridge against its peers.")
    parser.add_argument("--quick", action="store_true", help="in two minutes, one round")
    parser.add_argument("--no-peers", action="store_true", help="mcpbridge alone")
    parser.add_argument("--only", action="append", metavar="KEY", help="only these systems")
    parser.add_argument(
        "--churn", type=int, metavar="N", help="sessions opened and closed; 10000, quick 1000"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the report goes: docs")
    parser.add_argument(
        "--mcpbridge",
        default=str(Path(sys.executable).parent / "mcpbridge"),
        help="the program to measure; by default that of this Python's environment",
    )
    parsed = parser.parse_args(list(words))
    if parsed.churn is None:
        parsed.churn = 1000 if parsed.quick else 10_000
    if parsed.output is None:
        parsed.output = systems.HERE.parent / "docs"
    return parsed


def main(words: Iterable[str]) -> int:
    """Measure, write the report, print the lines."""
    arguments = parse_arguments(words)
    if not os.access(arguments.mcpbridge, os.X_OK):
        print(f"bench: there is no program {arguments.mcpbridge}", file=sys.stderr)
        return 2
    systems.build()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, folder)
        bench.compare()
        results = bench.results()
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1) + "\n"
    (arguments.output / "benchmarks.json").write_text(text)
    report.write(arguments.output, results, bench.figures())
    for figure in bench.figures():
        print(figure.line())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
