"""
An MCP server that does what the `params` of a message name, each request in its own thread: it
sends the messages in `send`, waits until `gate` is open, sends those in `then`, and responds.  The
notification `open` opens a gate.

`flood`: writes this many bytes in lines of `line` bytes, and counts them in the file `note`;
`exit`: exits with this status, after writing `stderr`.  Responses of the client and other
notifications are returned as `got/list_changed`.
"""

import json
import os
import sys
import threading
from collections import defaultdict

gates: defaultdict[str, threading.Event] = defaultdict(threading.Event)
lock = threading.Lock()


def send(message: dict) -> None:
    """Send a message to the client."""
    with lock:
        os.write(1, json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


def flood(size: int, length: int, path: str) -> None:
    """Write this many bytes as fast as they are read."""
    note = os.open(path, os.O_WRONLY | os.O_CREAT)
    line = b'{"jsonrpc":"2.0","method":"flood/list_changed","params":{"x":""}}\n'
    line = line.replace(b'""', b'"%b"' % (b"x" * (length - len(line))))
    lines = line * max(1, 65536 // length)
    taken = 0
    while taken < size:
        taken += os.write(1, lines[taken % length :][: size - taken])
        os.pwrite(note, b"%d" % taken, 0)


def perform(message: dict) -> None:
    """Do what the message names."""
    params = message.get("params", {})
    for each in params.get("send", ()):
        send(each)
    if "flood" in params:
        flood(params["flood"], params["line"], params["note"])
    if "gate" in params:
        gates[params["gate"]].wait()
    for each in params.get("then", ()):
        send(each)
    if "stderr" in params:
        os.write(2, params["stderr"].encode() + b"\n")
    if "exit" in params:
        os._exit(params["exit"])
    if message["method"] == "initialize":
        version = params.get("protocolVersion")
        send({"id": message["id"], "result": {"protocolVersion": version}})
    elif "id" in message:
        send({"id": message["id"], "result": {"was": message["method"]}})


for received in sys.stdin.buffer:
    decoded = json.loads(received)
    for message in decoded if isinstance(decoded, list) else [decoded]:
        method = message.get("method")
        if method == "open":
            gates[message["params"]["gate"]].set()
        elif method == "do" or ("id" in message and method):
            threading.Thread(target=perform, args=(message,), daemon=True).start()
        elif method != "notifications/initialized":
            send({"method": "got/list_changed", "params": message})
