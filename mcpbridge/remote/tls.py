"""
TLS to a remote server: whose certificates are accepted.

Certificates of authorities are read for the first connection, and `ca_file` again when it
has changed.  To read them takes many times as long as a handshake.
"""

from __future__ import annotations

import os
from typing import Any

from mcpbridge.config.tuning import CERTIFICATE_FILE_BYTES
from mcpbridge.trust import trust_root

#: For how many names of hosts what is made is kept: the server's, and a proxy's.
KEPT_HOSTS = 4


class BadAuthorities(Exception):
    """The file of `ca_file` cannot be used.  The text says why."""


class ClientTls:
    """Makes TLS for connections that verify the other end by name or address."""

    def __init__(self, ca_file: str | None) -> None:
        self._ca_file = ca_file
        self._stamp: object = None
        self._trusted: Any = None
        self._made: dict[str, Any] = {}

    def refresh(self) -> None:
        """Read the file again if it has changed.  Raises `BadAuthorities`."""
        stamp = self._read_stamp()
        if self._trusted is not None and stamp == self._stamp:
            return
        try:
            self._trusted = trust_root(self._read())
        except ValueError as error:
            raise BadAuthorities(f"ca_file has {error}: {self._ca_file}") from None
        self._stamp = stamp
        self._made.clear()

    def creator(self, host: str) -> Any:
        """
        Return what makes the TLS of a connection to a host, by name or address.

        `refresh` must have been called.
        """
        from twisted.internet.ssl import optionsForClientTLS

        made = self._made.get(host)
        if made is None:
            if len(self._made) >= KEPT_HOSTS:
                self._made.clear()
            made = self._made[host] = optionsForClientTLS(host, self._trusted)
        return made

    def _read_stamp(self) -> object:
        if self._ca_file is None:
            return None
        try:
            found = os.stat(self._ca_file)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> bytes | None:
        if self._ca_file is None:
            return None
        try:
            with open(self._ca_file, "rb") as file:
                data = file.read(CERTIFICATE_FILE_BYTES + 1)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from None
        if len(data) > CERTIFICATE_FILE_BYTES:
            raise BadAuthorities(f"ca_file has more than {CERTIFICATE_FILE_BYTES} bytes")
        return data

    def _unreadable(self, error: Exception) -> BadAuthorities:
        why = error.strerror if isinstance(error, OSError) else "not the name of a file"
        return BadAuthorities(f"ca_file cannot be read: {self._ca_file}: {why}")
