"""
An MCP server of 2026-07-28 with the tasks extension.  The tool `task` starts a task, which goes on
until it is cancelled; the ids are 1, 2, ... in each process.
"""

import json
import os
import sys

VERSION = "2026-07-28"
PREFIX = "io.modelcontextprotocol/"
CAPABILITIES: dict = {"tools": {}, "extensions": {f"{PREFIX}tasks": {}}}
TIMES = {"createdAt": "2026-11-29T00:00:00Z", "lastUpdatedAt": "2026-11-29T00:00:00Z"}
LISTS = {"ttlMs": 0, "cacheScope": "private"}

tasks: dict = {}


def send(**message: object) -> None:
    """Send a message to the client."""
    os.write(1, json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


def respond(ident: object, **result: object) -> None:
    """Send a result."""
    send(id=ident, result={"resultType": "complete", **result})


def receive(ident: object, method: str, params: dict) -> None:
    """Answer a request."""
    if method == "server/discover":
        info = {f"{PREFIX}serverInfo": {"name": "tasks", "version": "1"}}
        respond(ident, supportedVersions=[VERSION], capabilities=CAPABILITIES, _meta=info, **LISTS)
    elif method == "tools/list":
        respond(ident, tools=[{"name": "task", "inputSchema": {"type": "object"}}], **LISTS)
    elif method == "tools/call":
        name = str(len(tasks) + 1)
        tasks[name] = {"taskId": name, "status": "working", **TIMES, "ttlMs": 900000}
        respond(ident, **{**tasks[name], "resultType": "task"})
    elif method == "subscriptions/listen":
        meta = {f"{PREFIX}subscriptionId": ident}
        told = {"_meta": meta, "notifications": params["notifications"]}
        send(method="notifications/subscriptions/acknowledged", params=told)
    elif params.get("taskId") not in tasks:
        send(id=ident, error={"code": -32602, "message": f"no such task: {method}"})
    elif method == "tasks/get":
        respond(ident, **tasks[params["taskId"]])
    else:
        if method == "tasks/cancel":
            tasks[params["taskId"]]["status"] = "cancelled"
        respond(ident)


for line in sys.stdin.buffer:
    message = json.loads(line)
    if "method" in message and "id" in message:
        receive(message["id"], message["method"], message.get("params", {}))
