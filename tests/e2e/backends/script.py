"""
An MCP server that does what a message's `params` say, each request in a thread
of its own: `say` these messages, wait until `gate` is opened, `then` say these,
and at last the answer.  The notification `open` opens a gate.

`flood` BYTES in lines of `line` bytes and keep count in the file `note`; `exit`
with that status, `stderr` first.  What the client answers, and notifications
that are not known, come back as `got/list_changed`.
"""

import json
import os
import sys
import threading
from collections import defaultdict

gates: defaultdict[str, threading.Event] = defaultdict(threading.Event)
lock = threading.Lock()


def say(message: dict) -> None:
    """One message to the client."""
    with lock:
        os.write(1, json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


def flood(size: int, length: int, path: str) -> None:
    """Offer so many bytes as fast as they are taken."""
    note = os.open(path, os.O_WRONLY | os.O_CREAT)
    line = b'{"jsonrpc":"2.0","method":"flood/list_changed","params":{"x":""}}\n'
    line = line.replace(b'""', b'"%b"' % (b"x" * (length - len(line))))
    lines = line * max(1, 65536 // length)
    taken = 0
    while taken < size:
        taken += os.write(1, lines[taken % length :][: size - taken])
        os.pwrite(note, b"%d" % taken, 0)


def perform(message: dict) -> None:
    """Do what it says."""
    params = message.get("params", {})
    for each in params.get("say", ()):
        say(each)
    if "flood" in params:
        flood(params["flood"], params["line"], params["note"])
    if "gate" in params:
        gates[params["gate"]].wait()
    for each in params.get("then", ()):
        say(each)
    if "stderr" in params:
        os.write(2, params["stderr"].encode() + b"\n")
    if "exit" in params:
        os._exit(params["exit"])
    if message["method"] == "initialize":
        version = params.get("protocolVersion")
        say({"id": message["id"], "result": {"protocolVersion": version}})
    elif "id" in message:
        say({"id": message["id"], "result": {"was": message["method"]}})


for received in sys.stdin.buffer:
    decoded = json.loads(received)
    for message in decoded if isinstance(decoded, list) else [decoded]:
        method = message.get("method")
        if method == "open":
            gates[message["params"]["gate"]].set()
        elif method == "do" or ("id" in message and method):
            threading.Thread(target=perform, args=(message,), daemon=True).start()
        elif method != "notifications/initialized":
            say({"method": "got/list_changed", "params": message})
