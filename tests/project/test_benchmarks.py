"""The benchmark's arithmetic and its report; what it measures is not run here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

MODULES = ("figures", "measures", "plots", "report", "running", "systems")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's modules by name; they are scripts beside each other, not a package."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


def echoed(number: int, rate: float, cpu: float) -> dict[str, Any]:
    return {
        "round": number,
        "rate": rate,
        "server_cpu_us": cpu,
        "server_load": rate * cpu / 1e6,
        "latency_ms": {"p50": 1.0, "p99": 2.0, "max": 3.0},
        "leaks": 0,
    }


def systems_of(modules: Any) -> list[Any]:
    own = modules["systems"].own_systems("mcpbridge", "folder")
    floor = modules["systems"].floor_systems()
    peer = modules["systems"].System("peer", "a peer", "sse", lambda port, backend: [])
    return [*own, *floor, peer]


def figure(modules: Any, table: Any, name: str) -> Any:
    found = modules["figures"].compared(systems_of(modules), table)
    return next(each for each in found if each.name == name)


def test_a_ratio_is_taken_in_each_round(modules: Any) -> None:
    """The machine was half as fast in the second round: that is no spread of the ratio."""
    table = {
        "mcpbridge": {"echo-32B": [echoed(1, 800, 30), echoed(2, 400, 60)]},
        "relay-sse": {"echo-32B": [echoed(1, 1000, 20), echoed(2, 500, 40)]},
    }
    found = figure(modules, table, "sse-of-relay")
    assert (found.spread.value, found.spread.low, found.spread.high) == (0.8, 0.8, 0.8)
    assert not found.met


def test_a_peer_that_dropped_out_is_compared_in_its_rounds(modules: Any) -> None:
    table = {
        "mcpbridge": {"echo-32B": [echoed(1, 800, 30), echoed(2, 400, 60)]},
        "peer": {"echo-32B": [echoed(1, 100, 300)]},
    }
    found = figure(modules, table, "sse-cpu")
    assert (found.spread.value, found.spread.rounds) == (10, 1)
    assert found.met
    assert "of a peer" in found.detail


def test_what_an_option_costs_is_in_percent(modules: Any) -> None:
    table = {
        "mcpbridge": {"echo-32B": [echoed(1, 800, 20)]},
        "mcpbridge-log": {"echo-32B": [echoed(1, 800, 25)]},
    }
    found = figure(modules, table, "access-log-sse")
    assert found.spread.value == pytest.approx(25)
    assert found.goal_text() == "<=15%"
    assert not found.met


def test_a_figure_without_results_says_why(modules: Any) -> None:
    table = {"mcpbridge": {"echo-32B": "errors: 3 lost"}}
    found = figure(modules, table, "sse-of-relay")
    assert found.line() == "bench: sse-of-relay not measured: errors: 3 lost"
    for each in modules["figures"].absolute({"freezes": "the time was over"}):
        assert each.value is None
        assert each.reason


def test_growth_with_sessions_is_told_beside_that_of_the_floor(modules: Any) -> None:
    """If the floor was measured."""

    def rounds(few: float, many: float) -> list[Any]:
        return [{"points": [{"x": 16, "cpu_us": few}, {"x": 1000, "cpu_us": many}]}]

    def growth(**floor: Any) -> Any:
        own = {"sessions-sse": rounds(40, 60), **floor}
        figures = modules["figures"].absolute(own)
        [found] = [each for each in figures if each.name == "cpu-1000-by-16-sse"]
        assert found.value == 1.5
        return found.detail

    floor = "sessions-direct-sse"
    assert growth(**{floor: rounds(20, 25)}) == "1.25 x of the relay that writes directly"
    problem = [{"points": [{"x": 16, "problem": "no time"}, {"x": 1000, "problem": "no time"}]}]
    assert growth() == growth(**{floor: "no time"}) == growth(**{floor: problem}) == ""


def test_the_cause_of_a_missed_goal_is_in_the_report(modules: Any, tmp_path: Path) -> None:
    modules["figures"].CAUSES["sse-of-relay"] = "it parses JSON"
    systems = systems_of(modules)
    table = {
        "mcpbridge": {"echo-32B": [echoed(1, 500, 30)], "latency": "the time was over"},
        "relay-sse": {"echo-32B": [echoed(1, 1000, 20)]},
        "peer": {"echo-32B": [echoed(1, 100, 300)]},
    }
    points = [{"x": 16, "problem": "the time was over"}]
    results = {
        "date": "2026-01-01",
        "quick": False,
        "seconds": 1,
        "machine": {"cpu": "a", "cores": 2, "kernel": "6"},
        "busy": 0.0,
        "versions": {},
        "systems": [
            {"key": each.key, "name": each.name, "transport": each.transport, "kind": each.kind}
            for each in systems
        ],
        "not_installed": {"fastmcp": "cannot be installed"},
        "rounds": table,
        "mcpbridge": {"freezes": "not in time", "sessions-sse": [{"points": points}]},
        "peers": {},
    }
    figures = modules["figures"].compared(systems, table)
    modules["report"].write(tmp_path, results, figures, systems)
    written = (tmp_path / "benchmarks.md").read_text()
    assert "500 against 1,000 of bare Twisted relay; it parses JSON" in written
    assert "mcpbridge alone, freezes: not in time" in written
    assert "the bridge used 2% of its core" in written
    assert "16 sessions were not measured: the time was over" in written
    assert "a peer" in written
    assert (tmp_path / "benchmarks" / "echo-sse.svg").exists()
