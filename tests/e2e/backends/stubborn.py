"""
Ignores the end of its stdin, and SIGTERM too with `deaf`; notes in a file what
it was told.  `stubborn.py FILE [deaf]`.
"""

import os
import signal
import sys
import time

note = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def on_term(*_: object) -> None:
    """Note it, and obey unless deaf."""
    os.write(note, b"SIGTERM\n")
    if sys.argv[2] != "deaf":
        os._exit(7)


signal.signal(signal.SIGTERM, on_term)
os.write(1, b'{"jsonrpc":"2.0","method":"ready"}\n')
while os.read(0, 65536):
    pass
os.write(note, b"EOF\n")
while True:
    time.sleep(600)
