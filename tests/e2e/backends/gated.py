"""
Reads nothing until the file that it is given exists; then echoes.

Its lines may be long, and its reader slow: it writes all of each.
"""

import os
import sys
import time

while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
for line in sys.stdin.buffer:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
