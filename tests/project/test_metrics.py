"""The page about metrics says what is exposed; Prometheus and the bridge accept what it shows."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from mcpbridge.admin.metric_families import FAMILIES
from mcpbridge.admin.server_numbers import ProcessCounts
from mcpbridge.config.file import parse_config
from mcpbridge.counters import MAX_ERRORS, MAX_OPERATIONS, BridgeCounters
from mcpbridge.processes.endings import KINDS
from mcpbridge.processes.server_state import Condition
from tests.project.test_docs import DOCS, blocks, prose
from tests.real.parts import command

PAGE = DOCS / "metrics.md"
_ROW = re.compile(r"^\| `(mcp\w+)` \| (\w+) \| ([^|]*)\| (.*) \|$", re.MULTILINE)


def rows() -> dict[str, tuple[str, tuple[str, ...], str]]:
    """Return type, labels and meaning of each metric of the page."""
    return {
        name: (kind, tuple(re.findall(r"`(\w+)`", labels)), meaning)
        for name, kind, labels, meaning in _ROW.findall(prose(PAGE))
    }


def test_the_table_has_all_metrics_with_their_labels() -> None:
    shown = [(name, kind, labels) for name, (kind, labels, _) in rows().items()]
    assert shown == [(each.name, each.kind, each.labels) for each in FAMILIES]


def test_the_table_names_all_values_of_labels() -> None:
    values = {
        "mcpbridge_sessions_closed_total": KINDS,
        "mcpbridge_processes": ProcessCounts._fields,
        "mcpbridge_server_state": [each.name.lower() for each in Condition],
    }
    for name, expected in values.items():
        named = re.findall(r"`(\w+)`", rows()[name][2])
        assert set(expected) <= set(named), name
    assert set(BridgeCounters().of("x").traffic) <= set(re.findall(r"`([\w-]+)`", prose(PAGE)))


def test_the_bounds_of_series_are_those_of_the_code() -> None:
    text = prose(PAGE)
    assert f"at most {MAX_OPERATIONS} methods and tools" in text
    assert f"| `error_type` | {MAX_ERRORS} for each" in text


def test_the_settings_that_are_shown_are_valid() -> None:
    shown = blocks(PAGE, "json")
    assert len(shown) == 2
    for block in shown:
        assert parse_config(json.loads(block), "/").servers


def test_prometheus_accepts_what_is_shown(tmp_path: Path) -> None:
    (shown,) = blocks(PAGE, "yaml")
    file = tmp_path / "prometheus.yml"
    file.write_text(shown)
    check = [command("promtool"), "check", "config", "--syntax-only", str(file)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
