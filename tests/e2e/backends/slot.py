"""
`slot.py FOLDER SLOTS`: takes one of the slots, each a lock that is released only when all processes
that inherited it are gone.  If none is free, it creates a file in the folder.  Only SIGKILL ends
its process tree.
"""

import fcntl
import os
import signal
import sys
import time

folder, slots = sys.argv[1], int(sys.argv[2])
for number in range(slots):
    lock = os.open(f"{folder}/slot-{number}", os.O_WRONLY | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
    except BlockingIOError:
        os.close(lock)
else:
    open(f"{folder}/too-many", "w").close()
    sys.exit("there are too many of us")
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    for descriptor in range(3):
        os.close(descriptor)
    time.sleep(600)
os.write(1, b'{"jsonrpc":"2.0","method":"ready"}\n')
time.sleep(600)
