"""
An MCP server of sorts that plays the role named by the method of a message.

`plain`; `crash`; `deaf`: ignores EOF and SIGTERM; `children`: like npx, a shell that waits for a
grandchild; `daemon`: setsid, a double fork and no environment; `flood`: for a client that does not
read; `mute`: reads no more.
"""

import json
import os
import signal
import subprocess
import sys
import time

MARKER = sys.argv[-1]


def daemon() -> None:
    """Start a process that keeps only its tag."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for descriptor in range(3):
                os.close(descriptor)
            os.execve("/bin/sleep", ["sleep", f"600.{MARKER}"], {})
        os._exit(0)
    os.wait()


for line in sys.stdin.buffer:
    message = json.loads(line)
    kind = message.get("method", "")
    if kind == "daemon":
        daemon()
    elif kind == "children":
        subprocess.Popen(["sh", "-c", f"sleep 600.{MARKER} & sleep 600.{MARKER}"])
    elif kind == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "id" in message:
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": {"was": kind}}
        os.write(1, json.dumps(answer).encode() + b"\n")
    if kind == "crash":
        os.abort()
    elif kind == "flood":
        while True:
            os.write(1, b'{"jsonrpc":"2.0","method":"flood"}\n' * 200)
    elif kind == "mute":
        time.sleep(600)
if message.get("method") == "deaf":
    time.sleep(600)
