"""Writes its stdin to the given file, byte for byte, and reports the size of the file on stdout."""

import os
import sys

with open(sys.argv[1], "ab", buffering=0) as record:
    while data := os.read(0, 65536):
        record.write(data)
        size = os.fstat(record.fileno()).st_size
        os.write(1, b'{"jsonrpc":"2.0","method":"kept","params":{"bytes":%d}}\n' % size)
