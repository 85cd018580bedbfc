"""
Answers calls with its name and what the call said, but none before a file exists.

`held.py ERA NAME FILE`: a server of the era `legacy` or `modern`.
"""

import json
import os
import sys
import threading
import time
from typing import Any

era, name, gate = sys.argv[1:4]
held: list[Any] = []
lock = threading.Lock()


def say(ident: object, **answer: Any) -> None:
    """Write a response."""
    line = json.dumps({"jsonrpc": "2.0", "id": ident, **answer})
    with lock:
        print(line, flush=True)


def call(message: Any) -> None:
    """Answer a call."""
    text = f"{name} {message['params']['arguments']['word']}"
    result = {"content": [{"type": "text", "text": text}]}
    say(message["id"], result={"resultType": "complete", **result} if era == "modern" else result)


def release() -> None:
    """Answer what is held once the file exists."""
    while not os.path.exists(gate):
        time.sleep(0.02)
    for message in held:
        call(message)


def handle(message: Any) -> None:
    """Handle a message."""
    method, ident = message.get("method"), message.get("id")
    if ident is None:
        return
    if method == "tools/call":
        if os.path.exists(gate):
            releasing.join()
            call(message)
        else:
            held.append(message)
    elif method == "tools/list":
        tools = [{"name": "say", "inputSchema": {"type": "object"}}]
        result = {"resultType": "complete", "tools": tools, "ttlMs": 0, "cacheScope": "private"}
        say(ident, result=result if era == "modern" else {"tools": tools})
    elif method == "initialize" and era == "legacy":
        info = {"name": name, "version": "1"}
        version = message["params"]["protocolVersion"]
        result = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
        say(ident, result=result)
    elif method == "server/discover" and era == "modern":
        info = {"name": name, "version": "1"}
        say(
            ident,
            result={
                "resultType": "complete",
                "supportedVersions": ["2026-07-28"],
                "capabilities": {"tools": {}},
                "ttlMs": 0,
                "cacheScope": "private",
                "_meta": {"io.modelcontextprotocol/serverInfo": info},
                "serverInfo": info,
            },
        )
    else:
        say(ident, error={"code": -32601, "message": "no such method"})


releasing = threading.Thread(target=release, daemon=True)
releasing.start()
for line in sys.stdin:
    handle(json.loads(line))
