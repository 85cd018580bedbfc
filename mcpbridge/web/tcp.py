"""
What the kernel knows of a connection, and socket options for an open stream.

Knows sockets (tcp(7)); must not know HTTP.
"""

from __future__ import annotations

import socket
import sys
import termios
from fcntl import ioctl
from typing import Any

from mcpbridge.twisted_internals import buffered_bytes

#: Where `tcpi_bytes_acked` lies in `struct tcp_info` (linux/tcp.h).
_BYTES_ACKED = slice(120, 128)
#: `tcpi_state`, its first byte, of a peer that sends nothing more: TCP_CLOSE
#: and TCP_CLOSE_WAIT (net/tcp_states.h).
_ENDED = (7, 8)


def raw_socket(transport: Any) -> socket.socket | None:
    """Return the TCP socket under a transport, also under TLS; None if there is none."""
    while transport is not None:
        handle = _handle(transport)
        if isinstance(handle, socket.socket):
            return handle if handle.family in (socket.AF_INET, socket.AF_INET6) else None
        transport = getattr(transport, "transport", None)
    return None


def _handle(transport: Any) -> Any:
    get_handle = getattr(transport, "getHandle", None)
    try:
        return None if get_handle is None else get_handle()
    except AttributeError:
        # Twisted's transports have no socket any more when the connection is lost.
        return None


def notice_vanished_peer(transport: Any, timeout: float) -> None:
    """
    Have the kernel abort an idle connection whose peer has vanished for
    `timeout` seconds (RFC 1122, section 4.2.3.6).

    While data is unsent that is for `ClientWatch`: the kernel's own timeout for
    it (RFC 5482) also ends peers with a small window, which read all the time.
    Does nothing where the system or the transport cannot.
    """
    connection = raw_socket(transport)
    if connection is None:
        return
    pause = max(1, int(timeout / 4))
    options = [
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", pause),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", pause),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
    ]
    for level, name, value in options:
        option = getattr(socket, name, None)
        if option is not None:
            try:
                connection.setsockopt(level, option, value)
            except OSError:
                # A value that the system does not accept; the others still help.
                pass


def acknowledged(transport: Any) -> int | None:
    """Return how many bytes the peer has acknowledged in all (tcp_info, Linux); None if unknown."""
    connection = raw_socket(transport)
    if connection is None or not hasattr(socket, "TCP_INFO") or sys.platform != "linux":
        return None
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.stop)
    except OSError:
        return None
    return int.from_bytes(info[_BYTES_ACKED], sys.byteorder) if len(info) == 128 else None


def has_left(transport: Any) -> bool:
    """
    Tell whether the peer has closed its side, even if what it sent before is
    not read yet (tcp_info, Linux); False if unknown.
    """
    connection = raw_socket(transport)
    if connection is None or not hasattr(socket, "TCP_INFO") or sys.platform != "linux":
        return False
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _ENDED
    except OSError:
        # The reactor finds out for itself.
        return False


def _queued(connection: socket.socket | None) -> int:
    if connection is None or sys.platform != "linux":
        return 0
    try:
        size = ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0
    return int.from_bytes(size, sys.byteorder)


def unsent(transport: Any) -> int:
    """
    Return how many bytes the peer has not acknowledged, in user space under all
    wrappers and in the kernel (tcp(7), `SIOCOUTQ`, Linux); 0 if unknown.
    """
    return _queued(raw_socket(transport)) + buffered(transport)


def buffered(transport: Any) -> int:
    """Return how many of those are in user space, under all wrappers; 0 if unknown."""
    total = 0
    while transport is not None:
        total += buffered_bytes(transport)
        transport = getattr(transport, "transport", None)
    return total
