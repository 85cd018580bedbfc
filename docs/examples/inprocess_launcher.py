"""
A launcher whose backends are objects in the bridge's own process.

In a configuration file: "launcher": "inprocess_launcher.InProcessLauncher".
"""

import json
from typing import Any

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from mcpbridge import ServerSettings
from mcpbridge.interfaces import IBackend, IBackendLauncher

GREET = {
    "name": "greet",
    "description": "Greets somebody",
    "inputSchema": {
        "type": "object",
        "properties": {"whom": {"type": "string"}},
        "required": ["whom"],
    },
}


@implementer(IBackend)
class Greeter:
    """An MCP server with one tool.  It holds its answers while the bridge has paused it."""

    def __init__(self, receiver: Any) -> None:
        self.exit_status: str | None = None
        self._receiver = receiver
        self._paused = False
        self._answers: list[bytes] = []

    def send(self, line: bytes) -> None:
        """Answer a request from the client; ignore everything else."""
        message = json.loads(line)
        if isinstance(message, dict) and "method" in message and "id" in message:
            answer = {"jsonrpc": "2.0", "id": message["id"], **self._answer(message)}
            self._answers.append(json.dumps(answer).encode())
            self._flush()

    def pause(self) -> None:
        """Hold the answers: the client does not keep up."""
        self._paused = True

    def resume(self) -> None:
        """Send the answers that were held, and those that follow."""
        self._paused = False
        self._flush()

    def stop(self) -> Deferred[None]:
        """Report the end at once, as there is no process to wait for."""
        self._answers.clear()
        self.exit_status = "exit status 0"
        return succeed(None)

    def _flush(self) -> None:
        if self._answers and not self._paused:
            answers, self._answers = self._answers, []
            self._receiver.messages_received(answers)

    def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
        params = message.get("params", {})
        match message["method"]:
            case "initialize":
                result: dict[str, Any] = {
                    "protocolVersion": "2024-11-05",
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "greeter", "version": "1"},
                }
            case "ping":
                result = {}
            case "tools/list":
                result = {"tools": [GREET]}
            case "tools/call" if params.get("name") == "greet":
                whom = params.get("arguments", {}).get("whom", "world")
                result = {"content": [{"type": "text", "text": f"hello, {whom}"}]}
            case _:
                return {"error": {"code": -32601, "message": "Method not found"}}
        return {"result": result}


@implementer(IBackendLauncher)
class InProcessLauncher:
    """Gives each session its own `Greeter`."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings

    def launch(self, receiver: Any, label: str) -> Deferred[Greeter]:
        """Create the backend; there is nothing to wait for."""
        return succeed(Greeter(receiver))

    def check(self) -> str | None:
        """Report no problem, as nothing can be missing."""
        return None
