"""A real Prometheus scrapes a real bridge, with the configuration that the project ships."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Bridge, backend, request, serving
from tests.e2e.stateless import send
from tests.real.parts import ROOT
from tests.real.prometheus import running

pytestmark = pytest.mark.slow

TOKEN = "a-token-of-many-random-characters"
SHIPPED = ROOT / "deploy" / "prometheus"
#: What the shipped configuration has in the place of this test's values.
_TARGET, _TOKEN_FILE = "mcp.example.org:8809", "/etc/prometheus/mcpbridge-token"


def config(token_file: Path) -> dict[str, Any]:
    command, *arguments = backend("tools", "legacy", 0)
    return {
        "mcpServers": {
            "tools": {"command": command, "args": arguments, "base_uri": ""},
        },
        "bridge": {
            "admin_listen": ["tcp:0:interface=127.0.0.1"],
            "admin_tokens": {"prometheus": {"file": str(token_file), "role": "view"}},
        },
    }


def shipped(folder: Path, bridge: Bridge, token_file: Path) -> Path:
    """Return the shipped configuration, for this bridge and with scrapes every second."""
    text = (SHIPPED / "prometheus.yml").read_text()
    for old, new in (
        (_TARGET, bridge.admin_address()),
        (_TOKEN_FILE, str(token_file)),
        ("scrape_interval: 15s", "scrape_interval: 1s"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    text = f"global: {{evaluation_interval: 1s}}\n{text}"
    shutil.copy(SHIPPED / "alerts.yml", folder)
    path = folder / "prometheus.yml"
    path.write_text(text)
    return path


def test_prometheus_counts_what_clients_have_asked(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    with (
        serving(config=config(token_file)) as bridge,
        running(tmp_path, shipped(tmp_path, bridge, token_file)) as prometheus,
    ):
        prometheus.wait_for("up", 1)
        stream = bridge.open_sse()
        session = bridge.open_streamable_http()
        prometheus.wait_for("sum(mcpbridge_sessions)", 2)
        for number in range(3):
            stream.post(request("tools/list", number))
            stream.read_message()
        for _ in range(4):
            session.call("tools/list").read_final_message()
        for _ in range(5):
            with send(bridge.port, "", "tools/list") as answer:
                answer.read_final_message()
        name = "mcp_server_operation_duration_seconds_count"
        prometheus.wait_for(f'sum({name}{{mcp_method_name="tools/list"}})', 12)
        stream.close()
        session.delete()
        prometheus.wait_for("sum(mcpbridge_sessions)", 0)

        # What is shipped beside it has something to look at, and no rule is an error.
        [target] = prometheus.api("targets")["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
        rules = prometheus.rules()
        assert {each["health"] for each in rules} == {"ok"}, rules
        assert TOKEN not in prometheus.log + bridge.log
