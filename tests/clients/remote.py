"""
A real client that is a proxy: `mcp-remote`, spoken to over stdio.

    remote.py NODE PROXY URL TOOL [ARGUMENTS [OPTION ...]]

with the Node to run it, the path of its script, and options of its own.  What follows
and the output are those of `session.py`.  The messages are written by hand, so that nothing
but the proxy is between them and the server.
"""

import json
import os
import subprocess
import sys
import tempfile
from typing import Any


class Proxy:
    """A running proxy, and what came out of it unasked."""

    def __init__(self, command: list[str], folder: str) -> None:
        self.process = subprocess.Popen(
            command,
            # it keeps files, and asks which browser to open
            env={**os.environ, "HOME": folder, "MCP_REMOTE_CONFIG_DIR": folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        self.notifications: list[dict[str, Any]] = []
        self._last = 0

    def send(self, method: str, params: dict[str, Any], **members: Any) -> None:
        """Write a message."""
        assert self.process.stdin is not None
        message = {"jsonrpc": "2.0", "method": method, "params": params, **members}
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Write a request and read to its answer; returns the result."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._last += 1
        self.send(method, params, id=self._last)
        for line in self.process.stdout:
            message = json.loads(line)
            if "method" not in message:
                assert message["id"] == self._last, message
                result: dict[str, Any] = message["result"]
                return result
            if "id" in message:  # a ping
                answer = {"jsonrpc": "2.0", "id": message["id"], "result": {}}
                self.process.stdin.write(json.dumps(answer) + "\n")
                self.process.stdin.flush()
            else:
                self.notifications.append(message)
        raise EOFError("the proxy has ended")

    def noted(self, method: str, key: str) -> list[Any]:
        """One parameter of all notifications of a kind."""
        return [each["params"][key] for each in self.notifications if each["method"] == method]

    def stop(self) -> None:
        """Close its stdin, which ends it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()


def visit(proxy: Proxy, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """One session from the first byte to the last; returns what was seen."""
    initialized = proxy.ask(
        "initialize",
        {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "a test", "version": "1"},
        },
    )
    proxy.send("notifications/initialized", {})
    listed = proxy.ask("tools/list", {})
    called = proxy.ask(
        "tools/call", {"name": tool, "arguments": arguments, "_meta": {"progressToken": "a token"}}
    )
    return {
        **initialized,
        "tools": sorted(one["name"] for one in listed["tools"]),
        "result": called,
        "progress": proxy.noted("notifications/progress", "progress"),
        "logged": proxy.noted("notifications/message", "data"),
    }


def main(node: str, script: str, url: str, tool: str, arguments: str = "{}", *options: str) -> None:
    """Run the proxy, and a session through it."""
    transport = "sse-only" if url.endswith("/sse") else "http-only"
    command = [node, script, url, "--allow-http", "--transport", transport, *options]
    with tempfile.TemporaryDirectory() as folder:
        proxy = Proxy(command, folder)
        try:
            seen = visit(proxy, tool, json.loads(arguments))
        finally:
            proxy.stop()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
