"""
An MCP server of one era, `one_tool.py modern|legacy NOTE`, whose one tool does what its arguments
name, each call in its own thread.

The file NOTE lists the calls that began and those that were cancelled, by their `token`.
`progress`: sends this many notifications first; `flood`: sends this many bytes of them, counted in
the file `count`; `wait`: never responds; `touch`: reports changed tools; `exit`: exits with this
status.
"""

import json
import os
import sys
import threading

ERA, NOTE = sys.argv[1:3]
VERSION = "2026-07-28" if ERA == "modern" else "2025-11-25"
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
CAPABILITIES = {"tools": {"listChanged": True}}
PROPERTIES = {"city": {"type": "string", "x-mcp-header": "City"}}
TOOL = {"name": "do", "inputSchema": {"type": "object", "properties": PROPERTIES}}

lock = threading.Lock()
note = os.open(NOTE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
running: dict[object, str] = {}
listening: list[object] = []


def send(message: dict) -> int:
    """Send a message; return its size."""
    line = json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"
    with lock:
        left = line
        while left:
            left = left[os.write(1, left) :]
    return len(line)


def answer(ident: object, **result: object) -> None:
    send({"id": ident, "result": {"resultType": "complete", **result}})


def progress(token: object, number: int, text: str = "") -> int:
    params = {"progressToken": token, "progress": number, "message": text}
    return send({"method": "notifications/progress", "params": params})


def changed(ident: object) -> None:
    params = {"_meta": {SUBSCRIPTION: ident}} if ERA == "modern" else {}
    send({"method": "notifications/tools/list_changed", "params": params})


def call(ident: object, params: dict) -> None:
    """Run the tool."""
    arguments, token = params["arguments"], params["_meta"].get("progressToken")
    for number in range(arguments.get("progress", 0)):
        progress(token, number)
    taken = 0
    while taken < arguments.get("flood", 0):
        taken += progress(token, taken, "x" * 10_000)
        with open(arguments["count"], "w") as count:
            count.write(str(taken))
    if "exit" in arguments:
        os._exit(arguments["exit"])
    if "touch" in arguments:
        for each in listening if ERA == "modern" else [None]:
            changed(each)
    if "wait" not in arguments:
        answer(ident, content=[], was=arguments.get("token"))


for line in sys.stdin.buffer:
    message = json.loads(line)
    method, ident, params = message["method"], message.get("id"), message.get("params", {})
    if method == "notifications/cancelled":
        if params["requestId"] in running:
            os.write(note, b"cancelled %b\n" % running[params["requestId"]].encode())
        if params["requestId"] in listening:
            listening.remove(params["requestId"])
    elif method == "server/discover" and ERA == "modern":
        answer(ident, supportedVersions=[VERSION], capabilities=CAPABILITIES)
    elif method == "initialize" and ERA == "legacy":
        info = {"name": "one_tool", "version": "1"}
        answer(ident, protocolVersion=VERSION, capabilities=CAPABILITIES, serverInfo=info)
    elif method == "tools/list":
        answer(ident, tools=[TOOL])
    elif method == "subscriptions/listen" and ERA == "modern":
        listening.append(ident)
        running[ident] = "listen"
        told = {"_meta": {SUBSCRIPTION: ident}, "notifications": params["notifications"]}
        send({"method": "notifications/subscriptions/acknowledged", "params": told})
    elif method == "tools/call":
        running[ident] = params["arguments"].get("token", "")
        os.write(note, b"began %b\n" % running[ident].encode())
        threading.Thread(target=call, args=(ident, params), daemon=True).start()
    elif ident is not None:
        send({"id": ident, "error": {"code": -32601, "message": f"no {method}"}})
