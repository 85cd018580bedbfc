"""
Tasks of a real server and a real client (PyPI `fastmcp`, `fastmcp-tasks`), on
several processes at once.
"""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.e2e.harness import serving
from tests.real import parts

pytestmark = pytest.mark.slow

TASKS = 6
#: Seconds of the longest task: twice the idle timeout.
SECONDS = 8
IDLE = 4


def test_tasks_of_several_processes_outlive_the_idle_timeout() -> None:
    client = parts.tasks_client()
    command, *args = parts.tasks_server()
    settings = {"concurrency": 2, "idle_timeout": IDLE, "base_uri": ""}
    server = {"command": command, "args": args, **settings}
    with serving(config={"mcpServers": {"tasks": server}}) as bridge:
        url = f"http://127.0.0.1:{bridge.port}/mcp"
        done = subprocess.run(
            [*client, url, str(TASKS), str(SECONDS)],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            encoding="utf-8",
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
    assert seen["version"] == "2026-07-28"
    # The id names the process that runs the task.
    assert len(set(seen["ids"])) == TASKS
    owners = {each.partition(".")[0] for each in seen["ids"]}
    *finished, _ = seen["results"]
    assert [each.split()[0] for each in finished] == [str(each) for each in range(TASKS - 1)]
    assert len({each.split()[1] for each in finished}) > 1
    assert len(owners) > 1
    assert seen["plain"].split()[0] == "plain"
