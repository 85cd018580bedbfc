"""
Answers each call after a delay, and writes down which calls it has got.

`delayed.py ERA FILE SECONDS`: a server of the era `legacy` or `modern`.  A call with the word
`ask` asks its client first, and is answered when that has answered; one with the word `hang`
never is.
"""

import json
import sys
import threading
import time
from queue import SimpleQueue
from typing import Any

era, path, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
waiting: SimpleQueue[tuple[float, Any]] = SimpleQueue()
asked: dict[str, Any] = {}
lock = threading.Lock()


def write(**message: Any) -> None:
    """Write a message."""
    line = json.dumps({"jsonrpc": "2.0", **message})
    with lock:
        print(line, flush=True)


def result(**members: Any) -> Any:
    """Return a result of the era."""
    if era == "legacy":
        return members
    return {"resultType": "complete", "ttlMs": 0, "cacheScope": "private", **members}


def answer(message: Any) -> None:
    """Answer a call with its word."""
    text = message["params"]["arguments"]["word"]
    write(id=message["id"], result=result(content=[{"type": "text", "text": text}]))


def answer_in_time() -> None:
    """Answer the calls that have waited long enough, which is in the order in which they came."""
    while True:
        due, message = waiting.get()
        time.sleep(max(0.0, due - time.monotonic()))
        answer(message)


def handle(message: Any) -> None:
    """Handle a message."""
    method, ident = message.get("method"), message.get("id")
    if method is None:
        if ident in asked:
            answer(asked.pop(ident))
    elif method == "tools/call":
        word = message["params"]["arguments"]["word"]
        with open(path, "a", encoding="ascii") as file:
            file.write(f"{word}\n")
        if word == "ask":
            asked["question"] = message
            write(id="question", method="roots/list")
        elif word != "hang":
            waiting.put((time.monotonic() + seconds, message))
    elif method == "tools/list":
        write(id=ident, result=result(tools=[{"name": "say", "inputSchema": {"type": "object"}}]))
    elif method == "initialize" and era == "legacy":
        info = {"name": "delayed", "version": "1"}
        version = message["params"]["protocolVersion"]
        write(
            id=ident,
            result={
                "protocolVersion": version,
                "capabilities": {"tools": {}},
                "serverInfo": info,
            },
        )
    elif method == "server/discover" and era == "modern":
        info = {"name": "delayed", "version": "1"}
        write(
            id=ident,
            result=result(
                supportedVersions=["2026-07-28"],
                capabilities={"tools": {}},
                serverInfo=info,
                _meta={"io.modelcontextprotocol/serverInfo": info},
            ),
        )
    elif ident is not None:
        write(id=ident, error={"code": -32601, "message": "no such method"})


threading.Thread(target=answer_in_time, daemon=True).start()
for each in sys.stdin:
    handle(json.loads(each))
