"""
The file of a desktop client, with ten real servers, is served as it is.

The servers are from npm and PyPI.  As nothing is to be downloaded in a test, the file has
the programs that `npx` and `uvx` would run.
"""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.real import parts
from tests.real.bridge import PATIENCE, RunningBridge, serving
from tests.real.parts import ALL_CLIENTS, beside_python

pytestmark = pytest.mark.slow

#: A call to each server that needs nothing but this machine, and what its result has.
CALLS: dict[str, tuple[str, dict[str, Any], str]] = {
    "filesystem": ("list_directory", {"path": "FOLDER"}, "[FILE] note.txt"),
    "memory": ("read_graph", {}, '"entities"'),
    "sequential-thinking": (
        "sequentialthinking",
        {"thought": "x", "nextThoughtNeeded": False, "thoughtNumber": 1, "totalThoughts": 1},
        '"thoughtNumber": 1',
    ),
    "everything": ("echo", {"message": "ten servers"}, "ten servers"),
    # What needs a service is refused by the server itself.
    "brave-search": ("brave_web_search", {}, "Invalid arguments"),
    "Slack (work)": ("slack_post_message", {}, "Missing required arguments"),
    "system-monitor": ("get-system-info", {}, "hostname"),
    "fetch": ("fetch", {"url": "http://127.0.0.1:9/"}, "127.0.0.1"),
    "git": ("git_status", {"repo_path": "REPOSITORY"}, "On branch"),
    "time": ("get_current_time", {"timezone": "UTC"}, '"timezone": "UTC"'),
}


def desktop_file(folder: Path) -> dict[str, Any]:
    """Return what the file has, as users write it."""
    node, modules = parts.node(), parts.MODULES / "@modelcontextprotocol"
    python = parts.REAL / "servers" / "bin"

    def npm(name: str, *arguments: str, **env: str) -> dict[str, Any]:
        script = parts.built(modules / f"server-{name}" / "dist" / "index.js")
        return {"command": node, "args": [script, *arguments], **({"env": env} if env else {})}

    def pypi(name: str, *arguments: str) -> dict[str, Any]:
        return {"command": parts.built(python / f"mcp-server-{name}"), "args": [*arguments]}

    return {
        "globalShortcut": "Ctrl+Space",
        "mcpServers": {
            "filesystem": npm("filesystem", str(folder)),
            "memory": npm("memory", MEMORY_FILE_PATH=str(folder / "memory.jsonl")),
            "sequential-thinking": {**npm("sequential-thinking"), "alwaysAllow": []},
            "everything": npm("everything"),
            "brave-search": npm("brave-search", BRAVE_API_KEY="hush"),
            "Slack (work)": npm("slack", SLACK_BOT_TOKEN="xoxb-hush", SLACK_TEAM_ID="T1"),
            "system-monitor": npm("system-monitor", "--stdio"),
            "fetch": {**pypi("fetch"), "disabled": False, "autoApprove": ["fetch"]},
            "git": pypi("git", "--repository", str(folder)),
            "time": {**pypi("time", "--local-timezone=UTC"), "timeout": 60},
            "old": {"command": "npx", "args": ["-y", "gone"], "disabled": True},
        },
        "preferences": {"menuBarEnabled": False},
    }


def call(bridge: RunningBridge, name: str, url: str, folder: Path) -> None:
    """Use a server with a real client, and check what it answers."""
    tool, arguments, expected = CALLS[name]
    for key, value in arguments.items():
        if value in ("FOLDER", "REPOSITORY"):
            arguments = {**arguments, key: str(folder)}
    seen = bridge.run_client(ALL_CLIENTS["npm-sdk-1"], tool, arguments, url=url)
    assert tool in seen["tools"]
    assert seen["serverInfo"]["name"]
    assert expected in seen["result"]["content"][0]["text"], seen["result"]


def test_a_desktop_file_of_ten_real_servers_runs_unchanged(tmp_path: Path) -> None:
    """Each at its own path, below one bridge; the check before it finds no error."""
    folder = tmp_path.resolve() / "work"
    folder.mkdir()
    (folder / "note.txt").write_text("x")
    subprocess.run([parts.command("git"), "init", "--quiet", str(folder)], check=True)
    path = tmp_path / "claude_desktop_config.json"
    written = json.dumps(desktop_file(folder), indent=2)
    path.write_text(written)

    checked = subprocess.run(
        [beside_python("mcpbridge"), "check", str(path)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "hush" not in checked.stdout

    served = ("--config", str(path), "--port", "0")
    with serving(tmp_path, *served, urls=len(CALLS), marker="none") as bridge:
        slugs = {name.replace(" (work)", "-work"): name for name in CALLS}
        urls = {slugs[url.split("/")[-2]]: url for url in bridge.urls}
        assert urls.keys() == CALLS.keys()
        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(call, bridge, name, url, folder) for name, url in urls.items()]
        for each in calls:
            each.result()
        bridge.assert_nothing_left()
        bridge.stop()
        assert "hush" not in bridge.output
    assert path.read_text() == written
