"""
Real clients, over the network, call tools of real servers.

The clients and servers are third-party; the bridge is the installed
`twistd mcpbridge` in its own process.
"""

import json
import subprocess
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.real import parts
from tests.real.bridge import LOOPBACK, MARKER_VARIABLE, PATIENCE, RunningBridge, serving
from tests.real.parts import CLIENTS_BY_NAME, beside_python
from tests.real.processes import eventually

pytestmark = pytest.mark.slow

#: `twistd` ends by the signal that stopped it, once everything is stopped.
STOPPED = (0,)


@dataclass
class Case:
    """A server to start, a call to make, and a check of its result."""

    command: list[str]
    tools: set[str]
    call: tuple[str, dict[str, Any]]
    check: Callable[[str], bool]
    progress: int = 0


def demo_case(tmp_path: Path) -> Case:
    call = ("slow", {"steps": 3, "seconds": 0.3})
    tools = {"echo", "add", "clock", "slow", "log"}
    return Case(parts.demo(), tools, call, lambda text: text.startswith("3 steps"), 3)


def time_case(tmp_path: Path) -> Case:
    call = (
        "convert_time",
        {"source_timezone": "Europe/Berlin", "time": "12:00", "target_timezone": "Asia/Tokyo"},
    )
    tools = {"get_current_time", "convert_time"}
    return Case(parts.time_server(), tools, call, lambda text: "Asia/Tokyo" in text)


def git_case(tmp_path: Path) -> Case:
    repository = tmp_path / "repository"
    git = [parts.command("git"), "-C", str(repository)]
    names = ["-c", "user.name=a test", "-c", "user.email=test@example.org"]
    repository.mkdir()
    subprocess.run([*git, "init", "--quiet"], check=True)
    (repository / "file.txt").write_text("content\n")
    subprocess.run([*git, "add", "file.txt"], check=True)
    message = "a commit with a märk"
    subprocess.run([*git, *names, "commit", "--quiet", "--message", message], check=True)
    call = ("git_log", {"repo_path": str(repository), "max_count": 1})
    return Case(
        parts.git_server(repository),
        {"git_status", "git_log", "git_commit"},
        call,
        lambda text: message in text,
    )


def everything_case(tmp_path: Path) -> Case:
    call = ("trigger-long-running-operation", {"duration": 1, "steps": 4})
    tools = {"echo", "get-sum", "trigger-long-running-operation"}
    return Case(parts.everything_server(), tools, call, lambda text: "completed" in text, 4)


def filesystem_case(tmp_path: Path) -> Case:
    folder = tmp_path.resolve() / "files"
    folder.mkdir()
    # larger than one read of a pipe and one segment of a connection
    content = "".join(f"line {number} \N{SNOWMAN}\n" for number in range(20_000))
    (folder / "large.txt").write_text(content, encoding="utf-8")
    call = ("read_text_file", {"path": str(folder / "large.txt")})
    tools = {"read_text_file", "write_file", "list_directory"}
    return Case(parts.filesystem_server(folder), tools, call, content.__eq__)


CASES = {
    "demo": demo_case,
    "time": time_case,
    "git": git_case,
    "everything": everything_case,
    "filesystem": filesystem_case,
}


def visit(bridge: RunningBridge, client: str, case: Case, url: str | None = None) -> None:
    """Run one session of a real client, and check everything that it received."""
    seen = bridge.run_client(CLIENTS_BY_NAME[client], *case.call, url=url)
    assert case.tools <= set(seen["tools"])
    assert not seen["result"].get("isError")
    assert case.check(seen["result"]["content"][0]["text"]), seen["result"]["content"]
    assert len(seen["progress"]) == case.progress
    assert seen["progress"] == sorted(set(seen["progress"]))
    assert seen["protocolVersion"] >= "2024-11-05"
    assert seen["serverInfo"]["name"]


@pytest.mark.parametrize("client", CLIENTS_BY_NAME)
@pytest.mark.parametrize("server", CASES)
def test_real_client_calls_a_real_server(server: str, client: str, tmp_path: Path) -> None:
    case = CASES[server](tmp_path)
    with serving(tmp_path, *LOOPBACK, "--", *case.command) as bridge:
        visit(bridge, client, case)
        bridge.assert_nothing_left()
        assert bridge.stop() in STOPPED


def test_all_real_clients_and_servers_work_at_once(tmp_path: Path) -> None:
    """One bridge, one configuration file, five named servers, fifteen sessions in parallel."""
    cases = {name: make(tmp_path) for name, make in CASES.items()}
    mark = uuid.uuid4().hex
    servers = {
        name: {"command": case.command[0], "args": case.command[1:], "env": {MARKER_VARIABLE: mark}}
        for name, case in cases.items()
    }
    config = tmp_path / "bridge.json"
    listen = ["tcp:0:interface=127.0.0.1"]
    config.write_text(json.dumps({"mcpServers": servers, "bridge": {"listen": listen}}))
    with serving(tmp_path, "--config", str(config), urls=len(cases), marker=mark) as bridge:
        urls = {url.split("/")[-2]: url for url in bridge.urls}
        assert urls.keys() == cases.keys()
        with ThreadPoolExecutor(3) as pool:
            visits = [
                pool.submit(visit, bridge, client, case, urls[name])
                for client in CLIENTS_BY_NAME
                for name, case in cases.items()
            ]
        for one in visits:
            one.result()
        bridge.assert_nothing_left()
        assert bridge.stop() in STOPPED


def test_sigterm_in_a_call_ends_the_session_and_the_bridge(tmp_path: Path) -> None:
    client = CLIENTS_BY_NAME["mcp-1-session"]
    with serving(tmp_path, *LOOPBACK, "--", *parts.demo()) as bridge:
        slow = [*client.command(), bridge.url, "slow", '{"seconds": 300}']
        with subprocess.Popen(slow, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as one:
            try:
                assert eventually(bridge.backends, PATIENCE), bridge.output
                assert bridge.stop() in STOPPED
            finally:
                one.kill()
        bridge.assert_nothing_left()


def test_console_script_serves_like_twistd(tmp_path: Path) -> None:
    """`mcpbridge -- COMMAND` serves, and leaves no pid file and no log file behind."""
    case = CASES["demo"](tmp_path)
    launch = [beside_python("mcpbridge")]
    with serving(tmp_path, *LOOPBACK, "--", *case.command, launch=launch) as bridge:
        visit(bridge, "mcp-2-session", case)
        bridge.assert_nothing_left()
        assert bridge.stop() in STOPPED
    assert "shutting down" in bridge.output
    assert "twisted" not in bridge.output
    assert [path.name for path in tmp_path.iterdir()] == []
