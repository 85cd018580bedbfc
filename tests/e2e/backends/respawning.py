"""
Starts a process that, on SIGTERM, starts another one in a session of its own before it exits, a few
times over.  These processes close their stdio first.
"""

import os
import signal
import sys
import time


def live(heads: int) -> None:
    """Wait for SIGTERM; then start a successor, if any are left, and exit."""

    def on_term(*_: object) -> None:
        if heads and os.fork() == 0:
            os.setsid()
            live(heads - 1)
        os._exit(0)

    signal.signal(signal.SIGTERM, on_term)
    while True:
        time.sleep(600)


if os.fork() == 0:
    os.setsid()
    for descriptor in range(3):
        os.close(descriptor)
    live(5)
os.write(1, b'{"jsonrpc":"2.0","method":"ready"}\n')
sys.stdin.buffer.read()
