"""
An MCP server of sorts that plays the role named by the method of a message, and leaves processes
that are hard to find.

`crash`: aborts.  `deaf`: ignores EOF and SIGTERM.  `helper`: daemonizes several helpers while it
exits.  `shell`: the same, as a start script does it.  `renew`: leaves a process that forks, exits
and calls setsid every few milliseconds.  `thread`: leaves a daemon whose main thread has ended
while another one runs.  `limit`: leaves a daemon that has set its own RLIMIT_RSS, as `ulimit -m`
does.  `cleared`: the same, in the process group of the backend.

Everything that it leaves ends by itself within minutes.
"""

import contextlib
import ctypes
import json
import os
import platform
import random
import resource
import signal
import sys
import threading
import time

MARKER = sys.argv[-1]
#: Seconds until everything that is left has ended.
SECONDS = 300
EXIT_OF_A_THREAD = {"x86_64": 60, "aarch64": 93}.get(platform.machine())


def close_stdio() -> None:
    """Close the pipes to the bridge."""
    for descriptor in range(3):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def sleep() -> None:
    """Become a process that keeps nothing of its origin."""
    close_stdio()
    os.execve("/bin/sleep", ["sleep", f"{SECONDS}.{MARKER}"], {})


def daemonize() -> bool:
    """Fork twice; return True in the daemon."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return False
    os.setsid()
    if os.fork():
        os._exit(0)
    return True


def clear_tag() -> None:
    resource.setrlimit(resource.RLIMIT_RSS, (123 << 20, 123 << 20))


def renew(pause: float) -> None:
    """Fork and exit repeatedly, so that each process lives only for a moment."""
    if not daemonize():
        return
    close_stdio()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(pause)
        if os.fork():
            os._exit(0)
        os.setsid()
    os._exit(0)


def wait_and_exit() -> None:
    time.sleep(SECONDS)
    os._exit(0)


def leave_a_thread() -> None:
    """Leave a process that looks like a zombie but runs."""
    if not daemonize():
        return
    close_stdio()
    threading.Thread(target=wait_and_exit).start()
    # pthread_exit(3), without its clean-up: of this thread alone.
    ctypes.CDLL(None).syscall(EXIT_OF_A_THREAD, 0)


def on_eof(kind: str) -> None:
    """Do what this role does at the end of stdin."""
    if kind == "helper":
        for _ in range(5):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(random.uniform(0, 0.002))
                    if os.fork() == 0:
                        sleep()
                os._exit(0)
            time.sleep(random.uniform(0, 0.002))
    elif kind == "deaf":
        time.sleep(SECONDS)
    elif kind == "shell":
        close_stdio()
        os.execv(
            "/bin/sh",
            ["sh", "-c", f"(setsid sh -c '(sleep {SECONDS}.{MARKER} &) &' &); exit 0"],
        )


kind = ""
for line in sys.stdin.buffer:
    message = json.loads(line)
    asked = message.get("method", "")
    if asked == "renew":
        renew(random.choice((0.001, 0.005)))
    elif asked == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif asked == "thread":
        leave_a_thread()
    elif asked == "limit":
        if daemonize():
            clear_tag()
            sleep()
    elif asked == "cleared" and os.fork() == 0:
        clear_tag()
        sleep()
    kind = asked if not kind or asked not in ("initialize", "notifications/initialized") else kind
    if "id" in message:
        params = message.get("params") or {}
        result = {
            "was": asked,
            "protocolVersion": params.get("protocolVersion"),
            "capabilities": {},
            "serverInfo": {"name": "hostile", "version": "1"},
        }
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": result}
        os.write(1, json.dumps(answer).encode() + b"\n")
    if asked == "crash":
        os.abort()
on_eof(kind)
