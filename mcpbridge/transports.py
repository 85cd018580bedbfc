"""
Writing to a descriptor at once.

Twisted's transports write on the next turn of the reactor, which costs two
system calls to be told that the descriptor is writable.  It nearly always is.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.tcp import Connection


def prompt_descriptor(transport: Any) -> FileDescriptor | None:
    """The transport, if it is a plain socket that `write_at_once` may write to."""
    return transport if isinstance(transport, Connection) and not transport.TLS else None


#: More than this is left to the transport, which does not copy what it cannot
#: write at once.
AT_ONCE_BYTES = 128 * 1024


def write_at_once(descriptor: Any, data: bytes) -> bool:
    """
    Write to a socket or a pipe what it takes now, and the rest when it can.
    Returns whether it took all.

    The order of what was written before is kept: where something is still
    buffered, all of it goes behind that.  An error shows up on the next turn
    of the reactor, as it does with `write`.
    """
    if (
        len(data) <= AT_ONCE_BYTES
        and not descriptor.dataBuffer
        and not descriptor._tempDataLen
        and descriptor.connected
        and not descriptor.disconnecting
    ):
        written = descriptor.writeSomeData(data)
        if type(written) is int:
            if written == len(data):
                return True
            data = data[written:]
    descriptor.write(data)
    return False
