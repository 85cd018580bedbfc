"""Writes half a line, reports that on stderr, and writes the other half after a message."""

import os
import sys
import time

os.write(1, b'{"jsonrpc":"2.0","method":"first ')
time.sleep(0.15)
os.write(2, b"half\n")
sys.stdin.buffer.readline()
os.write(1, b'and second"}\n')
sys.stdin.buffer.read()
