"""
Becomes what the first message asks for, by its method, and leaves processes
that are hard to find; an MCP server of sorts otherwise.

`crash`: aborts.  `deaf`: ignores the end of its stdin and SIGTERM.  `helper`:
daemonises helpers while it ends, each a moment after the one before.  `shell`:
the same, as a start script does it.  `renew`: leaves a process that forks,
exits and enters a session of its own, every few milliseconds.  `thread`:
leaves a daemon whose main thread has ended while another runs.  `limit`:
leaves a daemon that has set its own RLIMIT_RSS, as `ulimit -m` does.
`cleared`: the same in the group of the backend.

Whatever it leaves ends by itself within minutes.
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
#: What is left lives no longer.
SECONDS = 300
EXIT_OF_A_THREAD = {"x86_64": 60, "aarch64": 93}.get(platform.machine())


def let_go() -> None:
    """Of the pipes to the bridge."""
    for descriptor in range(3):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def sleep() -> None:
    """Become something that has nothing of where it came from."""
    let_go()
    os.execve("/bin/sleep", ["sleep", f"{SECONDS}.{MARKER}"], {})


def forked() -> bool:
    """Whether this is a daemon that has just been started."""
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
    """Generations that each live for a moment."""
    if not forked():
        return
    let_go()
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
    """A process that looks like a zombie and runs."""
    if not forked():
        return
    let_go()
    threading.Thread(target=wait_and_exit).start()
    # pthread_exit(3), without its clean-up: of this thread alone.
    ctypes.CDLL(None).syscall(EXIT_OF_A_THREAD, 0)


def at_its_end(kind: str) -> None:
    """What the backend does when its stdin has ended."""
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
        let_go()
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
        if forked():
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
at_its_end(kind)
