"""
Scatters processes before it echoes: in its own group, in a session of their
own, and orphaned at once with a cleared environment; the last is deaf to
SIGTERM.  All of them sleep, with the marker among their arguments.
"""

import os
import signal
import sys

MARKER = sys.argv[-1]


def sleep() -> None:
    """Become something that has nothing of where it came from but its number."""
    for descriptor in range(3):
        os.close(descriptor)
    os.execve("/bin/sleep", ["sleep", f"600.{MARKER}"], {})


def stray(*, daemon: bool, deaf: bool) -> None:
    """Start one; a daemon is nobody's child when this returns."""
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
stray(daemon=False, deaf=False)
stray(daemon=True, deaf=False)
stray(daemon=True, deaf=True)
os.close(writing)
os.read(reading, 1)
os.write(1, b'{"jsonrpc":"2.0","method":"ready"}\n')
for line in sys.stdin.buffer:
    os.write(1, line)
