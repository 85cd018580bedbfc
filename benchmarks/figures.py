"""
The figures and their goals: from results to one line for each.

Knows what the results are called; must not know how they are measured.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

from systems import System

Result = dict[str, Any]
Rounds = list[Result]
Pick = Callable[[Result], float]
#: For each system and test, its rounds, or why there are none.
Table = dict[str, dict[str, "Rounds | str"]]

_FLOOR = (
    "the bare relay takes nearly as long, so nearly all of it is the kernel's and the backend's"
)
_OPENING = "a flat profile: a fifth is posix_spawn, and the bare relay needs two thirds of the time"
_CACHES = (
    "from 256 active sessions on all that a session has is read from memory anew: 16 active"
    " beside 1,000 open ones cost what 16 do"
)
#: Why a figure misses its goal, where a profile says so; printed with the figure.
CAUSES: dict[str, str] = {
    "streamable-of-relay": "a flat profile; 0.93 x on an AMD EPYC",
    "streamable-cpu": "the same; 15.2 x on an AMD EPYC",
    "modern-cpu": (
        "a flat profile: 14-19 % is send, 5-9 % recv, and the rest in some 80 small functions"
    ),
    "latency-p50-streamable": _FLOOR,
    "latency-p99-streamable": _FLOOR,
    "latency-p50-modern": _FLOOR,
    "latency-p99-modern": _FLOOR,
    "latency-p99-sse": _FLOOR,
    "open-p50-sse": _OPENING,
    "open-p50-streamable": _OPENING,
    "open-rate-8-sse": _OPENING,
    "open-rate-8-streamable": _OPENING,
    "freeze-open-200": (
        "no step of the bridge takes more than 7 ms of CPU; processes that start share its core"
        " until they run"
    ),
    "cpu-1000-by-16-sse": _CACHES,
    "cpu-1000-by-16-streamable": _CACHES,
    "memory-5000-given-back": (
        "nine tenths of the pools of Python's allocator are free, but hardly one of its arenas of"
        " 1 MiB is empty, and only those are returned"
    ),
    "refusals-p99": (
        "each refused client is a connection that is accepted, read and lost; all that have come"
        " are served in one iteration of the reactor"
    ),
}


@dataclass(frozen=True)
class Spread:
    """What the rounds say: their median, the lowest and the highest."""

    value: float
    low: float
    high: float
    rounds: int

    @classmethod
    def over(cls, values: Iterable[float]) -> Spread | None:
        """Of the values of all rounds; None if there are none."""
        found = list(values)
        return cls(median(found), min(found), max(found), len(found)) if found else None

    def mapped(self, how: Callable[[float], float]) -> Spread:
        """The same of other values; `how` may turn the order round."""
        low, high = sorted((how(self.low), how(self.high)))
        return Spread(how(self.value), low, high, self.rounds)

    @property
    def percent(self) -> float:
        """Half of the distance from the lowest to the highest, in percent of the median."""
        return 50 * (self.high - self.low) / self.value if self.value else 0.0


@dataclass(frozen=True)
class Figure:
    """One line of the report's end."""

    name: str
    spread: Spread | None
    goal: float
    unit: str = "x"
    at_most: bool = False
    reason: str = ""
    detail: str = ""

    @property
    def value(self) -> float | None:
        """The median of the rounds, if there is any."""
        return self.spread.value if self.spread else None

    @property
    def met(self) -> bool:
        """Whether the goal is reached; a figure that is missing is not."""
        compare = operator.le if self.at_most else operator.ge
        return self.value is not None and compare(self.value, self.goal)

    @property
    def cause(self) -> str:
        """Why the goal is missed, as far as that is known."""
        return "" if self.met else CAUSES.get(self.name, "")

    def goal_text(self) -> str:
        """The goal with its sign and unit."""
        return f"{'<=' if self.at_most else '>='}{self.goal:g}{self.unit}"

    def line(self) -> str:
        """What the run prints."""
        if self.spread is None:
            return f"bench: {self.name} not measured: {self.reason}"
        verdict = "met" if self.met else "missed"
        value = f"{self.spread.value:.2f}{self.unit}"
        if self.spread.rounds > 1:
            value += f" [{self.spread.low:.2f}-{self.spread.high:.2f}]"
        return f"bench: {self.name} {value} (goal {self.goal_text()}) {verdict}"


def rate(result: Result) -> float:
    """Per second."""
    return float(result["rate"])


def cpu(result: Result) -> float:
    """Microseconds of the bridge for one request."""
    return float(result["server_cpu_us"])


def p50(result: Result) -> float:
    """Milliseconds."""
    return float(result["latency_ms"]["p50"])


def p99(result: Result) -> float:
    """Milliseconds."""
    return float(result["latency_ms"]["p99"])


def spread_of(cell: Rounds | str | None, pick: Pick) -> Spread | None:
    """What the rounds of one test say."""
    return Spread.over(pick(each) for each in cell) if isinstance(cell, list) else None


def number(value: float) -> str:
    """Write whole numbers from 1000 on, and four digits of smaller ones."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


class Comparison:
    """Ours against others, round by round."""

    def __init__(self, systems: Iterable[System], table: Table) -> None:
        self._systems = {each.key: each for each in systems}
        self._table = table

    def cell(self, key: str, test: str) -> Rounds | str | None:
        """The rounds of one test of one system."""
        return self._table.get(key, {}).get(test)

    def best_peer(self, test: str, pick: Pick, transport: str, low: bool) -> System | None:
        """The best of those that were measured."""
        found = []
        for system in self._systems.values():
            spread = spread_of(self.cell(system.key, test), pick)
            if system.kind == "peer" and system.transport == transport and spread:
                found.append((spread.value, system))
        if not found or not (best := (min if low else max)(found, key=lambda pair: pair[0]))[0]:
            return None
        return best[1]

    def ratio(self, ours: str, theirs: str, test: str, pick: Pick) -> Spread | None:
        """Ours by theirs in each round that has both; of the medians where none has."""
        mine, other = self.cell(ours, test), self.cell(theirs, test)
        if not isinstance(mine, list) or not isinstance(other, list):
            return None
        by_round = {each["round"]: pick(each) for each in other}
        pairs = [
            (pick(each), by_round[each["round"]]) for each in mine if each["round"] in by_round
        ]
        if not pairs:
            pairs = [(median(map(pick, mine)), median(map(pick, other)))]
        return Spread.over(a / b for a, b in pairs if b)

    def figure(
        self,
        name: str,
        test: str,
        goal: float,
        *,
        ours: str = "mcpbridge",
        against: str = "",
        pick: Pick = rate,
        low: bool = False,
        inverse: bool = False,
        percent: bool = False,
    ) -> Figure:
        """
        A ratio of ours to `against`, or to the best peer of our transport.

        `low`: less is better.  `inverse`: theirs by ours, how many times less ours is; `percent`:
        how much more ours is, of a variant of mcpbridge and the plain one.
        """
        unit, at_most = ("%" if percent else "x"), low and not inverse
        cell = self.cell(ours, test)
        if not isinstance(cell, list):
            return Figure(name, None, goal, unit, at_most, reason=cell or "it was not run")
        transport = self._systems[ours].transport
        best = self._systems.get(against) or self.best_peer(test, pick, transport, low)
        if best is None:
            return Figure(name, None, goal, unit, at_most, reason="no peer was measured")
        found = self.ratio(ours, best.key, test, pick)
        theirs = spread_of(self.cell(best.key, test), pick)
        mine = spread_of(cell, pick)
        if found is None or theirs is None or mine is None:
            why = self.cell(best.key, test)
            reason = f"{best.name}: {why if isinstance(why, str) else 'it was not run'}"
            return Figure(name, None, goal, unit, at_most, reason=reason)
        if inverse:
            found = found.mapped(lambda each: 1 / each)
        if percent:
            found = found.mapped(lambda each: (each - 1) * 100)
        detail = f"{number(mine.value)} against {number(theirs.value)} of {best.name}"
        return Figure(name, found, goal, unit, at_most, detail=detail)


def compared(systems: Iterable[System], table: Table) -> list[Figure]:
    """All figures that are ratios against the floor, the peers, or mcpbridge without an option."""
    one = Comparison(systems, table)
    mcp: dict[str, Any] = {"ours": "mcpbridge-mcp"}
    modern: dict[str, Any] = {"ours": "mcpbridge-modern"}
    less: dict[str, Any] = {"pick": cpu, "low": True, "inverse": True}
    cost: dict[str, Any] = {"pick": cpu, "low": True, "percent": True}
    contextforge: dict[str, Any] = {"against": "contextforge-mcp"}
    found = [
        one.figure("sse-of-relay", "echo-32B", 0.85, against="relay-sse"),
        one.figure("streamable-of-relay", "echo-32B", 0.85, against="relay-streamable", **mcp),
        one.figure("sse-cpu", "echo-32B", 8, **less),
        one.figure("streamable-cpu", "echo-32B", 12, **less, **mcp),
        one.figure("modern-cpu", "echo-32B", 12, against="contextforge-modern", **less, **modern),
    ]
    for name, key in (
        ("sse", "mcpbridge"),
        ("streamable", "mcpbridge-mcp"),
        ("modern", "mcpbridge-modern"),
    ):
        for at, pick, goal in (("p50", p50, 0.6), ("p99", p99, 0.5)):
            found.append(
                one.figure(f"latency-{at}-{name}", "latency", goal, pick=pick, low=True, ours=key)
            )
    return [
        *found,
        one.figure("1MiB-streamable", "echo-1MiB", 1.3, **contextforge, **mcp),
        one.figure("16KiB-sse", "echo-16KiB", 4),
        one.figure("16KiB-streamable", "echo-16KiB", 4, **mcp),
        one.figure("100x1-sse", "echo-100x1", 2),
        one.figure("100x1-streamable", "echo-100x1", 6, **mcp),
        one.figure("stream-sse", "stream", 3),
        one.figure(
            "access-log-sse", "echo-32B", 15, ours="mcpbridge-log", against="mcpbridge", **cost
        ),
        one.figure(
            "access-log-streamable",
            "echo-32B",
            15,
            ours="mcpbridge-mcp-log",
            against="mcpbridge-mcp",
            **cost,
        ),
        *(
            one.figure(f"auth-{name}", "echo-32B", 0.95, ours=f"{key}-auth", against=key)
            for name, key in (
                ("sse", "mcpbridge"),
                ("streamable", "mcpbridge-mcp"),
                ("modern", "mcpbridge-modern"),
            )
        ),
        *_measured(one),
    ]


def _measured(one: Comparison) -> list[Figure]:
    """The figures of the compared tests that are no ratio of two systems."""

    def take(
        name: str, key: str, test: str, goal: float, unit: str, pick: Pick, at_most: bool
    ) -> Figure:
        cell = one.cell(key, test)
        if not isinstance(cell, list):
            return Figure(name, None, goal, unit, at_most, reason=cell or "it was not run")
        return Figure(name, spread_of(cell, pick), goal, unit, at_most)

    def tail(result: Result) -> float:
        return p99(result) / p50(result)

    return [
        take("modern-p99-by-p50", "mcpbridge-modern", "echo-32B", 2, "x", tail, True),
        take("legacy-p99-by-p50", "mcpbridge-legacy", "echo-32B", 2, "x", tail, True),
        take("open-p50-sse", "mcpbridge", "open", 1.5, "ms", p50, True),
        take("open-p50-streamable", "mcpbridge-mcp", "open", 1.5, "ms", p50, True),
        take("open-rate-8-sse", "mcpbridge", "open", 700, "/s", rate, False),
        take("open-rate-8-streamable", "mcpbridge-mcp", "open", 700, "/s", rate, False),
    ]


def absolute(own: dict[str, Any]) -> list[Figure]:
    """All figures of mcpbridge alone."""

    def take(
        name: str,
        step: str,
        goal: float,
        unit: str,
        pick: Pick,
        at_most: bool = True,
        floor: str = "",
    ) -> Figure:
        rounds = own.get(step, "it was not run")
        if isinstance(rounds, str):
            return Figure(name, None, goal, unit, at_most, reason=rounds)
        try:
            found = spread_of(rounds, pick)
            return Figure(name, found, goal, unit, at_most, detail=beside(floor, pick))
        except LookupError as missing:
            return Figure(name, None, goal, unit, at_most, reason=str(missing.args[0]))

    def beside(floor: str, pick: Pick) -> str:
        try:
            found = spread_of(own.get(floor), pick)
        except LookupError:
            return ""
        return f"{found.value:.2f} x of the relay that writes directly" if found else ""

    def growth(result: Result) -> float:
        return float(_point(result, 1000)["cpu_us"] / _point(result, 16)["cpu_us"])

    def gone(how: str) -> Pick:
        return lambda r: float(r[how]["p50"]) - float(r["own_exit_ms"])

    def longest(phase: str) -> Pick:
        return lambda r: float(r[phase]["max"])

    return [
        *(
            take(f"freeze-{phase}", "freezes", 20, "ms", longest(phase))
            for phase in ("open-200", "close-200", "kill-100", "16MiB")
        ),
        take(
            "open-beside-1000",
            "open-beside",
            1.2,
            "x",
            lambda r: r["full"]["p50"] / r["empty"]["p50"],
        ),
        take(
            "open-beside-1000-cpu",
            "open-beside",
            1.2,
            "x",
            lambda r: r["full"]["server_cpu_us"] / r["empty"]["server_cpu_us"],
        ),
        take(
            "cpu-1000-by-16-sse",
            "sessions-sse",
            1.15,
            "x",
            growth,
            floor="sessions-direct-sse",
        ),
        take(
            "cpu-1000-by-16-streamable",
            "sessions-streamable",
            1.15,
            "x",
            growth,
            floor="sessions-direct-streamable",
        ),
        take("memory-5000", "sessions-many", 20, "KiB", lambda r: _most(r)["session_kib"]),
        take(
            "memory-5000-given-back",
            "sessions-many",
            80,
            "%",
            lambda r: 100 - 100 * _most(r)["left_kib"] / _most(r)["grown_kib"],
            False,
        ),
        take("memory-after-churn", "churn", 1, "MiB", lambda r: r["growth_kib"] / 1024),
        take("close-fin", "endings", 3, "ms", gone("fin")),
        take("close-rst", "endings", 3, "ms", gone("rst")),
        take("close-delete", "endings", 3, "ms", gone("delete")),
        take("grandchild", "endings", 3, "ms", lambda r: r["grandchild"]["p50"] - r["fin"]["p50"]),
        take("close-stubborn", "stubborn", 3050, "ms", lambda r: r["gone_ms"]["max"]),
        take("refusals", "refusals", 5000, "/s", lambda r: r["refused_rate"], False),
        take(
            "refusals-p99",
            "refusals",
            2,
            "x",
            lambda r: r["during_ms"]["p99"] / (r["before_ms"]["p99"] or 1),
        ),
        take("slow-reader", "slow-reader", 2, "MiB", lambda r: r["growth_kib"] / 1024),
        take("slow-backend", "slow-backend", 10, "MiB", lambda r: r["growth_kib"] / 1024),
    ]


def _point(result: Result, x: int) -> Result:
    """One point of a curve.  Raises `LookupError` with the reason where it was not measured."""
    for point in result["points"]:
        if point["x"] == x:
            if "problem" in point:
                raise LookupError(point["problem"])
            found: Result = point
            return found
    raise LookupError("it was not run")


def _most(result: Result) -> Result:
    """The point of 5,000 sessions, or of almost as many.  Raises `LookupError`."""
    most: int = max(point["x"] for point in result["points"])
    if most < 4500:
        raise LookupError(f"it was not run with more than {most:,} sessions")
    return _point(result, most)
