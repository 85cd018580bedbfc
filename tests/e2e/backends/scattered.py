"""
Starts processes in its own group, in sessions of their own, and orphaned with a cleared
environment; the last one ignores SIGTERM.  All of them sleep, with the marker as an argument.  Then
it echoes.
"""

import os
import signal
import sys

MARKER = sys.argv[-1]


def sleep() -> None:
    """Become a process that keeps only the marker."""
    for descriptor in range(3):
        os.close(descriptor)
    os.execve("/bin/sleep", ["sleep", f"600.{MARKER}"], {})


def start_stray(*, daemon: bool, deaf: bool) -> None:
    """Start a process; a daemon is orphaned when this returns."""
    pid = os.fork()
    if pid:
        if daemon:
            os.waitpid(pid, 0)
        return
    if daemon:
        os.setsid()
        if os.fork():
            os._exit(0)
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep()


# Its writing end closes by itself in each of them when it has become a sleeper.
reading, writing = os.pipe()
start_stray(daemon=False, deaf=False)
start_stray(daemon=True, deaf=False)
start_stray(daemon=True, deaf=True)
os.close(writing)
os.read(reading, 1)
os.write(1, b'{"jsonrpc":"2.0","method":"ready"}\n')
for line in sys.stdin.buffer:
    os.write(1, line)
