"""
An authenticator that knows its callers by a key in the header X-Api-Key.

In a configuration file: "auth": {"authenticator": "key_authenticator.KeyAuthenticator"},
with "options": {"keys": "/etc/mcpbridge/keys.txt"}.

Each line of that file has a name, the SHA-256 of a key in hexadecimal digits, and the
scopes of that caller, with spaces between them.  The file is read again when it has
changed: to revoke a key, remove its line.
"""

import hashlib
from pathlib import Path
from typing import Any

from twisted.logger import Logger
from zope.interface import implementer

from mcpbridge import ServerSettings
from mcpbridge.auth.identity import Identity
from mcpbridge.errors import AuthenticationUnavailable, InvalidToken, SettingError
from mcpbridge.interfaces import IAuthenticator


@implementer(IAuthenticator)
class KeyAuthenticator:
    """Identifies callers by keys, of which a file has digests."""

    log = Logger()

    def __init__(self, settings: ServerSettings) -> None:
        path = settings.options.get("keys")
        if not isinstance(path, str):
            raise SettingError("options.keys", "the path of a file", path)
        self._path = Path(path)
        self._version: tuple[int, int, int] | None = None
        self._callers: dict[str, Identity] = {}
        try:
            self._read_again()
        except (OSError, ValueError) as error:
            raise SettingError("options.keys", f"a file of keys ({error})", path) from error

    def authenticate(self, request: Any) -> Identity | None:
        """Return who sent the request; None without a key, so that others are asked."""
        keys = request.values("x-api-key")
        if not keys:
            return None
        try:
            self._read_again()
        except (OSError, ValueError) as error:
            self.log.warn("cannot read the file of keys: {error}", error=error)
            raise AuthenticationUnavailable("keys cannot be checked now; try again") from None
        caller = self._callers.get(_digest(keys[0])) if len(keys) == 1 else None
        if caller is None:
            raise InvalidToken("the key is unknown")
        return caller

    def _read_again(self) -> None:
        """Read the file if it has changed.  Raises `OSError` or `ValueError`."""
        found = self._path.stat()
        version = (found.st_ino, found.st_size, found.st_mtime_ns)
        if version == self._version:
            return
        callers = {}
        for line in self._path.read_text(encoding="utf-8").splitlines():
            name, digest, *scopes = line.split()
            callers[digest.lower()] = Identity(issuer="key", subject=name, scopes=frozenset(scopes))
        self._callers, self._version = callers, version


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("latin-1")).hexdigest()
