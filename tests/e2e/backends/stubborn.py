"""
Ignores the end of its stdin and, with `deaf`, also SIGTERM: `stubborn.py FILE [deaf]`.

It notes both in the file, in the order in which they came, however late it runs.
"""

import os
import select
import signal
import sys
import time

note = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


noted = False
closed = select.poll()
closed.register(0, 0)


def on_end() -> None:
    """Note the end of stdin, once."""
    global noted
    if not noted:
        noted = True
        os.write(note, b"EOF\n")


def on_term(*_: object) -> None:
    """Note SIGTERM, after an end of stdin that was not read yet; exit unless deaf."""
    if closed.poll(0):
        on_end()
    os.write(note, b"SIGTERM\n")
    if sys.argv[2] != "deaf":
        os._exit(7)


signal.signal(signal.SIGTERM, on_term)
os.write(1, b'{"jsonrpc":"2.0","method":"ready"}\n')
while os.read(0, 65536):
    pass
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
on_end()
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
while True:
    time.sleep(600)
