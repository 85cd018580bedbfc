"""
Measures what watching costs: the processor time of the bridge for a request, with and without
metrics, tracing and the access log.

`python benchmarks/cost.py [--pairs N] [--seconds N] [--only WORD ...] [--base PROGRAM]`; prints
a table.  Two bridges run at the same time, and the load takes turns between them: the one, the
other, then the other way round.  A process keeps for its life what it has got by chance, such as
its seed for hashes and its place in memory, and that makes it up to 3 % quicker or slower; so
there are many pairs, and each gives one ratio.  The table has the median of the ratios, and the
interval in which the true median lies with a confidence of 95 %.  `--base` names the program of
an older version, which has no metrics; it is compared with this one with everything off.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import systems
from running import Server, checked, raise_limits, running

OFF: Mapping[str, object] = {"metrics": False}
WAYS = ("sse", "streamable", "modern", "legacy")
SESSIONS = 16
OUTSTANDING = 4
TEXT_BYTES = 32
#: How often each bridge of a pair gets the load.
TURNS = 4
#: Standard deviations of a median's interval of 95 %.
CONFIDENCE = 1.96


class Comparison(NamedTuple):
    """Two bridges: settings of the one, and of the other, which the ratio is of."""

    name: str
    before: Mapping[str, object]
    after: Mapping[str, object]
    #: the first is of another version
    base: bool = False


COMPARISONS = (
    # The method has an error of its own: this shows how large it is.
    Comparison("nothing (the error of the method)", OFF, OFF),
    Comparison("metrics", OFF, {}),
    Comparison("tracing, nothing recorded", {}, {"tracing": True, "trace_ratio": 0.0}),
    Comparison("access log", {}, {"access_log": True}),
    Comparison("this version, everything off", {}, OFF, base=True),
)


class Ratio(NamedTuple):
    """A median with its interval."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median - 1:+.1%} ({self.low - 1:+.1%} to {self.high - 1:+.1%})"


def ratio_of(pairs: list[tuple[float, float]]) -> Ratio:
    """The median of the ratios; its interval is one of their order, and asks for no shape."""
    ratios = sorted(after / before for before, after in pairs)
    count = len(ratios)
    away = CONFIDENCE * math.sqrt(count) / 2
    low = max(0, math.floor(count / 2 - away))
    high = min(count - 1, math.ceil(count / 2 + away) - 1)
    return Ratio(ratios[low], statistics.median(ratios), ratios[high])


def cpu_of(server: Server, seconds: float) -> float:
    """Microseconds of the bridge's processor time for a request."""
    load = {"sessions": SESSIONS, "outstanding": OUTSTANDING, "bytes": TEXT_BYTES}
    found = checked(server.load("echo", **load, seconds=seconds, warmup=0.1, patience=2))
    return float(found["server_cpu_us"])


def measure(
    comparison: Comparison, way: str, programs: tuple[str, str], seconds: float
) -> tuple[float, float]:
    """Microseconds for a request of the one bridge, and of the other, of one pair."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        servers = []
        for program, settings in zip(programs, (comparison.before, comparison.after), strict=True):
            command = systems.bridge_command(program, folder, bridge=settings)
            options = ("--unsampled", "1")
            system = systems.System(way, "mcpbridge", way, command, "ours", options=options)
            servers.append(stack.enter_context(running(system)))
        for server in servers:
            cpu_of(server, seconds)
        found: dict[int, list[float]] = {server.pid: [] for server in servers}
        for turn in range(TURNS):
            for server in servers if turn % 2 else servers[::-1]:
                found[server.pid].append(cpu_of(server, seconds))
        before, after = map(statistics.median, found.values())
        return before, after


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    beside = str(Path(sys.executable).with_name("mcpbridge"))
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=0.4, help="of a load")
    parser.add_argument("--only", nargs="+", default=[], help="words of the comparisons")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--mcpbridge", default=beside, help="the program")
    parser.add_argument("--base", help="the program of a version without metrics")
    arguments = parser.parse_args()
    raise_limits()
    systems.build()
    print("| what is added | way | µs before | µs after | of processor time |")
    print("|---|---|--:|--:|--:|")
    for comparison in COMPARISONS:
        if comparison.base and arguments.base is None:
            continue
        if arguments.only and not any(word in comparison.name for word in arguments.only):
            continue
        programs = (arguments.base if comparison.base else arguments.mcpbridge, arguments.mcpbridge)
        for way in arguments.ways:
            pairs = [
                measure(comparison, way, programs, arguments.seconds)
                for _ in range(arguments.pairs)
            ]
            before, after = (statistics.median(each) for each in zip(*pairs, strict=True))
            ratio = ratio_of(pairs)
            print(f"| {comparison.name} | {way} | {before:.1f} | {after:.1f} | {ratio} |")
            sys.stdout.flush()
            print(f"[load {os.getloadavg()[0]:.1f}]", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
