"""The audit log of a real bridge: every transport, rotation, and a disk that is full."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Bridge, backend, request, serving, wait_until
from tests.e2e.stateless import send

pytestmark = pytest.mark.slow


def records(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_for(path: Path, method: str, count: int = 1) -> list[dict[str, Any]]:
    """Return the records of this method, once there are so many."""
    found: list[dict[str, Any]] = []

    def has_all() -> bool:
        found[:] = [each for each in records(path) if each.get("method") == method]
        return len(found) >= count

    wait_until(has_all)
    return found


def call_tool(bridge: Bridge) -> None:
    with send(bridge.port, "", "tools/list") as response:
        assert response.status == 200


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_every_transport_is_recorded(tmp_path: Path, era: str) -> None:
    path = tmp_path / "audit.jsonl"
    command = backend("tools", era, 0)
    with serving("--audit-log", str(path), command=command) as bridge:
        stream = bridge.open_sse()
        stream.post(request("tools/list", 1))
        stream.read_message()
        client = bridge.open_streamable_http()
        client.call("tools/list").read_final_message()
        call_tool(bridge)
        found = wait_for(path, "tools/list", 3)
        assert [each["transport"] for each in found] == ["sse", "streamable-http", "stateless"]
        for each in found:
            assert each["outcome"] == "ok"
            assert each["address"] == "127.0.0.1"
            assert each["request_bytes"] > 20
            assert each["response_bytes"] > 20
            assert each["duration_ms"] > 0
        assert path.stat().st_mode & 0o777 == 0o600
        stream.close()
    assert "sessionId" not in path.read_text()


def test_file_can_be_rotated_while_the_bridge_runs(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with serving("--audit-log", str(path), command=backend("tools", "modern", 0)) as bridge:
        call_tool(bridge)
        wait_for(path, "tools/list")
        path.rename(tmp_path / "audit.jsonl.1")
        call_tool(bridge)
        assert len(wait_for(path, "tools/list")) == 1
    assert len(records(tmp_path / "audit.jsonl.1")) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_full_disk_stops_no_client(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.symlink_to("/dev/full")
    with serving("--audit-log", str(path), command=backend("tools", "modern", 0)) as bridge:
        for _ in range(10):
            call_tool(bridge)
        bridge.wait_for_log("cannot write the audit log", "No space left on device")
        call_tool(bridge)
        # There is room again.
        path.unlink()
        assert len(wait_for(path, "tools/list", 11)) == 11
        call_tool(bridge)
        wait_for(path, "tools/list", 12)


def test_what_waits_is_written_when_the_bridge_stops(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with serving("--audit-log", str(path), command=backend("tools", "modern", 0)) as bridge:
        call_tool(bridge)
    assert [each["method"] for each in records(path)] == ["tools/list"]
