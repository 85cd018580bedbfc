"""
A process that, told to end, starts another one in a session of its own; so
does that one, a few times over.  Closes its stdio first.
"""

import os
import signal
import sys
import time


def live(heads: int) -> None:
    """Wait to be told to end; then have a successor."""

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
