"""The demo server, as a client meets it: a process with a stdin and a stdout."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).parents[2] / "mcpbridge" / "demo.py"
#: Seconds before a wait for its end fails; no assertion is about this time.
PATIENCE = 60


class Demo:
    """A running demo server, and the ids of its requests."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._last_id = 0

    def write(self, line: bytes) -> None:
        """Write a line unchanged."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def tell(self, method: str, **params: Any) -> None:
        """Send a notification."""
        self.write(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode())

    def start(self, method: str, **params: Any) -> int:
        """Send a request and return its id."""
        self._last_id += 1
        request = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}
        self.write(json.dumps(request).encode())
        return self._last_id

    def read(self) -> Any:
        """Read the next message."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.endswith(b"\n"), "the demo server has ended"
        return json.loads(line)

    def ask(self, method: str, **params: Any) -> Any:
        """Send a request and return the next message, which must be its response."""
        request_id = self.start(method, **params)
        response = self.read()
        assert response["jsonrpc"] == "2.0"
        assert response["id"] == request_id
        return response

    def call(self, name: str, **arguments: Any) -> str:
        """Call a tool and return the text of its result."""
        result = self.ask("tools/call", name=name, arguments=arguments)["result"]
        assert result["isError"] is False
        [content] = result["content"]
        assert content["type"] == "text"
        return content["text"]


@contextmanager
def running() -> Iterator[Demo]:
    """Start a demo server that can import the standard library and nothing else."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(DEMO)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            yield Demo(process)
        finally:
            process.kill()


@pytest.fixture
def demo() -> Iterator[Demo]:
    """Start a demo server; at the end it must stop at EOF, and without a complaint."""
    with running() as demo:
        yield demo
        _, errors = demo.process.communicate(timeout=PATIENCE)
        assert (demo.process.returncode, errors) == (0, b"")


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("2024-11-05", "2024-11-05"),
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("2099-01-01", "2025-11-25"),
    ],
)
def test_initialize_negotiates_the_revision(demo: Demo, asked: str, answered: str) -> None:
    result = demo.ask("initialize", protocolVersion=asked, capabilities={})["result"]
    assert result["protocolVersion"] == answered
    assert result["serverInfo"]["name"] == "mcpbridge-demo"
    assert set(result["capabilities"]) == {"tools", "logging"}


def test_tools_are_listed_with_their_schemas(demo: Demo) -> None:
    tools = {tool["name"]: tool for tool in demo.ask("tools/list")["result"]["tools"]}
    assert sorted(tools) == ["add", "clock", "echo", "log", "slow"]
    assert tools["add"]["inputSchema"]["required"] == ["a", "b"]
    assert tools["slow"]["inputSchema"]["properties"]["steps"]["type"] == "integer"
    assert all(tool["description"] for tool in tools.values())


def test_the_quick_tools_answer(demo: Demo) -> None:
    assert demo.ask("ping")["result"] == {}
    assert demo.call("echo", text='ä "quoted"\n\ud83d\ude00') == 'ä "quoted"\n\U0001f600'
    assert demo.call("add", a=2, b=40) == "42"
    assert demo.call("add", a=0.5, b=1) == "1.5"
    assert demo.call("clock").endswith("+00:00")


def test_log_sends_a_notification_above_the_level(demo: Demo) -> None:
    demo.start("tools/call", name="log", arguments={"message": "hello"})
    assert demo.read() == {
        "jsonrpc": "2.0",
        "method": "notifications/message",
        "params": {"level": "info", "logger": "demo", "data": "hello"},
    }
    demo.read()
    assert demo.ask("logging/setLevel", level="warning")["result"] == {}
    assert demo.call("log", message="not heard") == "logged"


def test_slow_reports_its_progress(demo: Demo) -> None:
    demo.start(
        "tools/call",
        name="slow",
        arguments={"steps": 3, "seconds": 0.03},
        _meta={"progressToken": "p"},
    )
    messages = [demo.read() for _ in range(4)]
    assert [message["params"] for message in messages[:3]] == [
        {"progressToken": "p", "progress": step, "total": 3} for step in (1, 2, 3)
    ]
    assert messages[3]["result"]["isError"] is False


def test_slow_is_cancelled_while_others_are_answered(demo: Demo) -> None:
    slow = demo.start("tools/call", name="slow", arguments={"seconds": 3000})
    other = demo.start("tools/call", name="slow", arguments={"steps": 1, "seconds": 0.2})
    assert demo.call("echo", text="meanwhile") == "meanwhile"
    demo.tell("notifications/cancelled", requestId=slow)
    demo.tell("notifications/cancelled", requestId="unknown")
    assert demo.read()["id"] == other


def test_eof_ends_a_slow_call(demo: Demo) -> None:
    demo.start("tools/call", name="slow", arguments={"seconds": 3000})
    demo.ask("ping")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", -32700),
        (b'{"jsonrpc":"2.0","id":"\xff","method":"ping"}', -32700),
        (b"[" * 100_000, -32700),
        (b"[]", -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"no/such"}', -32601),
    ],
)
def test_malformed_line_is_answered_with_an_error(demo: Demo, line: bytes, code: int) -> None:
    demo.write(line)
    assert demo.read()["error"]["code"] == code
    assert demo.ask("ping")["result"] == {}


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"name": "no such tool"},
        {"name": "add", "arguments": []},
        {"name": "add", "arguments": {"a": 1}},
        {"name": "add", "arguments": {"a": 1, "b": True}},
        {"name": "echo", "arguments": {"text": "x", "more": 1}},
        {"name": "slow", "arguments": {"steps": 1.5}},
    ],
)
def test_wrong_arguments_are_named_in_the_error(demo: Demo, params: dict[str, Any]) -> None:
    assert demo.ask("tools/call", **params)["error"]["code"] == -32602


def test_failing_tool_has_an_error_result(demo: Demo) -> None:
    sums = demo.ask("tools/call", name="add", arguments={"a": 10**400, "b": 0.5})
    assert sums["result"]["isError"] is True


def test_notifications_and_responses_are_ignored(demo: Demo) -> None:
    demo.tell("notifications/initialized")
    demo.tell("notifications/unheard-of", some="thing")
    demo.write(b'{"jsonrpc":"2.0","id":7,"result":{}}')
    demo.write(b"")
    assert demo.ask("ping")["result"] == {}


def test_sigterm_ends_the_server() -> None:
    with running() as demo:
        demo.ask("ping")
        demo.process.terminate()
        assert demo.process.wait(PATIENCE) == -signal.SIGTERM


def test_closed_stdout_ends_the_server() -> None:
    with running() as demo:
        assert demo.process.stdout is not None
        demo.process.stdout.close()
        demo.start("ping")
        assert demo.process.wait(PATIENCE) == 0
        assert demo.process.stderr is not None
        assert demo.process.stderr.read() == b""


def test_the_module_is_run_without_importing_the_bridge() -> None:
    """`python -m mcpbridge.demo` imports the package, which must not import all of itself."""
    program = "import sys, mcpbridge.demo; print({'twisted', 'mcpbridge.bridge'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout == "set()\n"
