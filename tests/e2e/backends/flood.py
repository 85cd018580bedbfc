"""
After its first message, writes lines as fast as they are read; then echoes.

`flood.py BYTES LINE FILE`: this many bytes, in lines of this length; the file has the number of
bytes that were read so far.
"""

import os
import sys

size, length = int(sys.argv[1]), int(sys.argv[2])
note = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT)
HEAD, TAIL = b'{"jsonrpc":"2.0","method":"flood","params":"', b'"}\n'
size -= size % length
line = HEAD + b"x" * (length - len(HEAD) - len(TAIL)) + TAIL
lines = line * max(1, 65536 // length)

sys.stdin.buffer.readline()
taken = 0
while taken < size:
    taken += os.write(1, lines[taken % len(lines) :][: size - taken])
    os.pwrite(note, b"%d" % taken, 0)
os.write(1, b'{"jsonrpc":"2.0","method":"done"}\n')
for line in sys.stdin.buffer:
    os.write(1, line)
