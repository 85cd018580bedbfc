"""Writes half a line, says so on stderr, and the other half when it is told to."""

import os
import sys
import time

os.write(1, b'{"jsonrpc":"2.0","method":"first ')
time.sleep(0.15)
os.write(2, b"half\n")
sys.stdin.buffer.readline()
os.write(1, b'and second"}\n')
sys.stdin.buffer.read()
