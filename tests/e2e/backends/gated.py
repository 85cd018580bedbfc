"""
Reads nothing until the given file exists, then echoes.  Until then it exits when its stdin is
closed, which it notices without reading.
"""

import os
import select
import sys

closed = select.poll()
closed.register(0, 0)
while not os.path.exists(sys.argv[1]):
    if closed.poll(10):
        sys.exit()
for line in sys.stdin.buffer:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
