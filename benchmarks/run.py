"""
Measures mcpbridge against its peers and the floor, and writes docs/benchmarks.md.

`python benchmarks/run.py [--quick]`; see README.md.  Ends with one line for
each figure: `bench: NAME VALUE [LOWEST-HIGHEST] (goal GOAL) met|missed`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import alone
import figures
import measures
import report
import systems
from running import NotMeasured, Server, raise_limits, running
from systems import System

QUICK_SECONDS = 190.0
FULL_SECONDS = 840.0
#: What `--quick` leaves out: what is slow to measure and never the best, and the second floor.
NOT_QUICK = {"pypi-proxy", "pypi-proxy-mcp", "fastmcp", "fastmcp-mcp", "fastmcp-modern"}
NOT_QUICK |= {"contextforge", "npm-proxy-modern", "supergateway-modern"}
NOT_QUICK |= {"mcpbridge-filter", "mcpbridge-mcp-filter", "mcpbridge-tls", "mcpbridge-mcp-tls"}
NOT_QUICK |= {"direct-sse", "direct-streamable", "direct-modern"}
#: What mcpbridge's cost by number of sessions is compared with, where there is time.
FLOORS = ("direct-sse", "direct-streamable")
#: Peers that a figure names; they are measured in each round.
NAMED = {("contextforge-mcp", "echo-1MiB"), ("contextforge-modern", "echo-32B")}

Step = Callable[[alone.Bridge, measures.Plan], Any]
#: Rounds differ by less than this factor.
NEAR = 1.5


class Bench:
    """One run: what is measured when, and what came of it."""

    def __init__(self, arguments: argparse.Namespace, folder: str) -> None:
        self.arguments = arguments
        self.plan = measures.Plan(
            arguments.quick, QUICK_SECONDS if arguments.quick else FULL_SECONDS
        )
        self.problems: dict[str, str] = {}
        self.table: figures.Table = {}
        #: of mcpbridge alone: for each step its rounds, or why there are none
        self.own: dict[str, figures.Rounds | str] = {}
        self.peers: dict[str, Any] = {}
        self.systems = self._find_systems(folder)
        self.bridge = alone.Bridge(
            arguments.mcpbridge, folder, *systems.own_systems(arguments.mcpbridge, folder)[:2]
        )
        self.busy = report.busy()
        # The installation of the peers does not count.
        self.plan.start = time.monotonic()
        if self.busy > 0.05:
            self.say(f"others have {self.busy:.0%} of this machine: figures will be off")

    def say(self, text: str) -> None:
        """What happens now, for who waits."""
        done = f"{self.plan.elapsed():4.0f} s of at most {self.plan.budget:.0f} s"
        print(f"[{done}] {text}", file=sys.stderr, flush=True)

    def _find_systems(self, folder: str) -> list[System]:
        found = systems.own_systems(self.arguments.mcpbridge, folder) + systems.floor_systems()
        if not self.arguments.no_peers:
            self.problems = systems.install(self.say)
            found += systems.peer_systems(self.problems)
        if self.arguments.quick:
            found = [each for each in found if each.key not in NOT_QUICK]
        if self.arguments.only:
            found = [each for each in found if each.key in self.arguments.only]
        # Neighbours in time are compared with each other.
        order = {name: i for i, name in enumerate(report.TRANSPORTS)}
        return sorted(found, key=lambda each: order[each.transport])

    def rounds(self) -> None:
        """All systems, and mcpbridge alone, again and again."""
        asked = {each.key: tuple(measures.tests_of(each)) for each in self.systems}
        for number in range(1, self.plan.rounds + 1):
            for system in self.systems:
                if asked.get(system.key):
                    self.say(
                        f"round {number}: {system.name} ({report.TRANSPORTS[system.transport]})"
                    )
                    self._round(number, system, asked[system.key])
            self._alone(number)
            if number == 1:
                asked = self._contenders(asked)

    # Every system.

    def _round(self, number: int, system: System, names: Iterable[str]) -> None:
        cells = self.table.setdefault(system.key, {})
        tests = measures.tests_of(system)
        try:
            self.plan.need(6)
            with running(system) as server:
                for name in names:
                    self._cell(cells, name, number, partial(tests[name], server, self.plan))
                first = number == 1 and system.kind == "peer" and not self.plan.quick
                if first:
                    self._once(system, server)
            if first and system.processes:
                self._once_with_children(system)
        except NotMeasured as problem:
            for name in names:
                cells.setdefault(name, str(problem))

    def _cell(
        self, cells: dict[str, Any], name: str, number: int, measure: Callable[[], dict[str, Any]]
    ) -> None:
        before = cells.get(name)
        if isinstance(before, str):
            return
        try:
            self.plan.need(3)
            cells[name] = [*(before or []), {"round": number, **measure()}]
        except NotMeasured as problem:
            cells[name] = before or str(problem)

    def _once(self, system: System, server: Server) -> None:
        """How a peer's sessions end."""
        if not system.processes:
            return
        found = self.peers.setdefault(system.key, {})
        hows = ("fin", "rst", "delete") if system.transport == "streamable" else ("fin", "rst")
        for how in hows:
            found[how] = _attempt(partial(measures.closing_of_peer, server, how))

    def _once_with_children(self, system: System) -> None:
        """How long a peer leaves what its backend has started."""
        how = "delete" if system.transport == "streamable" else "fin"
        with running(system, "--grandchild") as server:
            self.peers[system.key]["grandchild"] = _attempt(
                partial(measures.closing_of_peer, server, how, "grandchild")
            )

    def _contenders(self, asked: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """What is asked in the later rounds: of peers, only what they may be the best in."""
        keep = set(NAMED)
        for test in (*measures.SESSION_TESTS, "open"):
            picks = [(figures.p50, False), (figures.p99, False)]
            if test != "latency":
                picks = [(figures.rate, True), (figures.cpu, False)]
            for transport in report.TRANSPORTS:
                for pick, high in picks:
                    keep |= {(key, test) for key in self._best(test, transport, pick, high)}
        return {
            each.key: tuple(
                test for test in asked[each.key] if each.kind != "peer" or (each.key, test) in keep
            )
            for each in self.systems
            if not each.once
        }

    def _best(self, test: str, transport: str, pick: figures.Pick, high: bool) -> list[str]:
        """The best peer, and the second where another round may turn their order round."""
        ranked = []
        for system in self.systems:
            spread = figures.spread_of(self.table.get(system.key, {}).get(test), pick)
            if system.kind == "peer" and system.transport == transport and spread:
                ranked.append((spread.value, system.key))
        ranked.sort(reverse=high)
        best = ranked[0][0] if ranked else 0.0
        return [key for value, key in ranked[:2] if best / NEAR <= value <= best * NEAR]

    # mcpbridge alone.

    def _alone(self, number: int) -> None:
        """The figures of mcpbridge that no peer has."""
        if self.arguments.no_alone:
            return
        for name, step in self._steps(number):
            before = self.own.get(name)
            if isinstance(before, str):
                continue
            self.say(f"round {number}: mcpbridge alone: {name}")
            try:
                found = step(self.bridge, self.plan)
            except NotMeasured as problem:
                self.own[name] = before or str(problem)
                continue
            several = found if isinstance(found, list) else [found]
            self.own[name] = [*(before or []), *({"round": number, **each} for each in several)]

    def _steps(self, number: int) -> list[tuple[str, Step]]:
        """Steps of this round: what is cheap in each, what takes long in the first."""
        many = (100,) if self.plan.quick else (100, 3000, 5000)
        steps: list[tuple[str, Step]] = [
            ("freezes", alone.freezes),
            ("endings", alone.endings),
            ("mixed", alone.mixed),
            ("refusals", alone.refusals),
            ("sessions-sse", lambda it, plan: alone.by_sessions(it.sse, plan, 16, 1000)),
            (
                "sessions-streamable",
                lambda it, plan: alone.by_sessions(it.streamable, plan, 16, 1000),
            ),
        ]
        if number == 1:
            steps += [
                ("open-beside", alone.opening_beside),
                ("sessions-many", lambda it, plan: alone.by_sessions(it.streamable, plan, *many)),
                ("servers", alone.many_servers),
                ("slow-reader", alone.slow_reader),
                ("slow-backend", alone.slow_backend),
                ("stubborn", alone.stubborn),
                ("churn", partial(alone.churn, total=self.arguments.churn)),
                ("by-size", alone.by_size),
                *((f"sessions-{key}", _floor_by_sessions(key)) for key in FLOORS),
            ]
        return steps

    # The end.

    def figures(self) -> list[figures.Figure]:
        """All of them, met or not."""
        return [*figures.compared(self.systems, self.table), *figures.absolute(self.own)]

    def results(self) -> dict[str, Any]:
        """What goes into docs/benchmarks.json."""
        return {
            "date": time.strftime("%Y-%m-%d"),
            "quick": self.plan.quick,
            "seconds": round(self.plan.elapsed()),
            "machine": report.machine(),
            "busy": round(self.busy, 3),
            "versions": report.versions(),
            "systems": [
                {"key": each.key, "name": each.name, "transport": each.transport, "kind": each.kind}
                for each in self.systems
            ],
            "not_installed": self.problems,
            "rounds": self.table,
            "mcpbridge": self.own,
            "peers": self.peers,
            "figures": [
                {**asdict(each), "met": each.met, "cause": each.cause} for each in self.figures()
            ],
        }


def _floor_by_sessions(key: str) -> Step:
    """The same of a relay, for comparison with the curves of mcpbridge."""
    [floor] = [each for each in systems.floor_systems() if each.key == key]
    return lambda it, plan: alone.by_sessions(floor, plan, 16, 1000)


def _attempt(step: Callable[[], Any]) -> Any:
    try:
        return step()
    except NotMeasured as problem:
        return str(problem)


def parse_arguments(words: Iterable[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure mcpbridge against its peers.")
    parser.add_argument("--quick", action="store_true", help="in under three minutes, one round")
    parser.add_argument("--no-peers", action="store_true", help="mcpbridge and the floor alone")
    parser.add_argument("--no-alone", action="store_true", help="only what bridges are compared in")
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
    raise_limits()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, folder)
        bench.rounds()
        results = bench.results()
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1) + "\n"
    (arguments.output / "benchmarks.json").write_text(text)
    report.write(arguments.output, results, bench.figures(), bench.systems)
    for figure in bench.figures():
        print(figure.line())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
