"""Writes a line that never ends."""

import os

part = b"x" * 65536
os.write(1, b'{"jsonrpc":"2.0","method":"')
while True:
    os.write(1, part)
