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

Rounds = list[dict[str, Any]]
#: For each system and figure, its rounds, or why there are none.
Table = dict[str, dict[str, "Rounds | str"]]


@dataclass(frozen=True)
class Figure:
    """One line of the report's end."""

    name: str
    value: float | None
    goal: float
    unit: str = "x"
    at_most: bool = False
    reason: str = ""
    detail: str = ""

    @property
    def met(self) -> bool:
        """Whether the goal is reached; a figure that is missing is not."""
        compare = operator.le if self.at_most else operator.ge
        return self.value is not None and compare(self.value, self.goal)

    def goal_text(self) -> str:
        """The goal with its sign and unit."""
        return f"{'<=' if self.at_most else '>='}{self.goal:g}{self.unit}"

    def line(self) -> str:
        """What the run prints."""
        if self.value is None:
            return f"bench: {self.name} not measured: {self.reason}"
        verdict = "met" if self.met else "missed"
        value = f"{self.value:.2f}{self.unit}"
        return f"bench: {self.name} {value} (goal {self.goal_text()}) {verdict}"


def value_of(cell: Rounds | str | None, pick: Callable[[dict[str, Any]], float]) -> float | None:
    """The median of the rounds."""
    if not isinstance(cell, list) or not cell:
        return None
    return median(pick(each) for each in cell)


def _number(value: float) -> str:
    """Write whole numbers from 1000 on, and four digits of smaller ones."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def rate(result: dict[str, Any]) -> float:
    """Per second."""
    return float(result["rate"])


def p50(result: dict[str, Any]) -> float:
    """Milliseconds."""
    return float(result["latency_ms"]["p50"])


def p99(result: dict[str, Any]) -> float:
    """Milliseconds."""
    return float(result["latency_ms"]["p99"])


class Comparison:
    """Ours against the best peer."""

    def __init__(self, systems: Iterable[System], table: Table) -> None:
        self._systems = list(systems)
        self._table = table

    def best_peer(
        self, test: str, pick: Callable[[dict[str, Any]], float], transport: str | None, low: bool
    ) -> tuple[float, System] | None:
        """The best of those that were measured."""
        found = []
        for system in self._systems:
            value = value_of(self._table.get(system.key, {}).get(test), pick)
            if not system.ours and value and transport in (None, system.transport):
                found.append((value, system))
        found.sort(key=lambda pair: pair[0], reverse=not low)
        return found[0] if found else None

    def figure(
        self,
        name: str,
        test: str,
        goal: float,
        *,
        pick: Callable[[dict[str, Any]], float] = rate,
        ours: str = "mcpbridge",
        against: str | None = "sse",
        low: bool = False,
    ) -> Figure:
        """A ratio; `against` is the transport of the peers, None for all of them."""
        cell = self._table.get(ours, {}).get(test)
        value = value_of(cell, pick)
        best = self.best_peer(test, pick, against, low)
        if value is None:
            reason = cell if isinstance(cell, str) else "it was not run"
            return Figure(name, None, goal, at_most=low, reason=reason)
        if best is None:
            return Figure(name, None, goal, at_most=low, reason="no peer was measured")
        detail = (
            f"{_number(value)} against {_number(best[0])} of {best[1].name} ({best[1].transport})"
        )
        return Figure(name, value / best[0], goal, at_most=low, detail=detail)


def compared(systems: Iterable[System], table: Table) -> list[Figure]:
    """All figures that are ratios against peers."""
    one = Comparison(systems, table)
    mcp: dict[str, Any] = {"ours": "mcpbridge-mcp", "against": "streamable"}
    gateway: dict[str, Any] = {"against": "streamable"}
    return [
        one.figure("echo-32B-sse", "echo-32B", 6),
        one.figure("echo-32B-streamable", "echo-32B", 15, **mcp),
        one.figure("echo-16KiB", "echo-16KiB", 4, against=None),
        one.figure("echo-1MiB", "echo-1MiB", 1.5, against=None),
        one.figure("latency-p50-sse", "latency", 0.75, pick=p50, low=True),
        one.figure("latency-p99-sse", "latency", 0.6, pick=p99, low=True),
        one.figure("latency-p50-streamable", "latency", 0.75, pick=p50, low=True, **mcp),
        one.figure("latency-p99-streamable", "latency", 0.6, pick=p99, low=True, **mcp),
        one.figure("stream-sse", "stream", 3),
        one.figure("echo-100x1-sse", "echo-100x1", 2),
        one.figure("echo-100x1-streamable", "echo-100x1", 6, **mcp),
        one.figure("open-p50", "open", 0.3, pick=lambda r: float(r["p50"]), low=True, **gateway),
        one.figure("open-rate-8", "open", 5, **gateway),
    ]


def absolute(own: dict[str, Any]) -> list[Figure]:
    """All figures of mcpbridge alone."""

    def take(
        name: str, test: str, goal: float, unit: str, pick: Callable[[Any], float], at_most: bool
    ) -> Figure:
        result = own.get(test, "it was not run")
        if isinstance(result, str):
            return Figure(name, None, goal, unit, at_most, reason=result)
        return Figure(name, pick(result), goal, unit, at_most)

    def beyond(result: Any) -> float:
        return float(result["gone_ms"]["p50"]) - float(own["own_exit_ms"])

    def worst(*phases: str) -> Callable[[Any], float]:
        return lambda r: max(float(r[phase]["max"]) for phase in phases)

    return [
        take("open-1000", "memory", 5, "s", lambda r: r["seconds"] * 1000 / r["sessions"], True),
        take("memory-idle-session", "memory", 20, "KiB", lambda r: r["kib"], True),
        take("memory-after-churn", "churn", 1, "MiB", lambda r: r["growth_kib"] / 1024, True),
        take("close-fin-p50", "close-fin", 3, "ms", beyond, True),
        take("close-rst-p50", "close-rst", 3, "ms", beyond, True),
        take("close-delete-p50", "close-delete", 3, "ms", beyond, True),
        take("close-stubborn", "stubborn", 3050, "ms", lambda r: r["gone_ms"]["max"], True),
        take("refusals", "refusals", 5000, "/s", lambda r: r["refused_rate"], False),
        take(
            "refusals-p99",
            "refusals",
            2,
            "x",
            lambda r: r["during_ms"]["p99"] / (r["before_ms"]["p99"] or 1),
            True,
        ),
        take("slow-reader", "slow-reader", 2, "MiB", lambda r: r["growth_kib"] / 1024, True),
        take("slow-backend", "slow-backend", 10, "MiB", lambda r: r["growth_kib"] / 1024, True),
        take("loop-lag", "lag", 20, "ms", worst("many", "loaded"), True),
        take("loop-lag-open-close", "lag", 20, "ms", worst("opening", "closing"), True),
    ]
