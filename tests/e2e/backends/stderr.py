"""Writes the given file to its stderr, byte for byte, then echoes."""

import os
import sys

with open(sys.argv[1], "rb") as odd:
    os.write(2, odd.read())
for line in sys.stdin.buffer:
    os.write(1, line)
