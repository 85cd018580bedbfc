"""
Secrets in files: what is not to be in a configuration file, nor on a command line.

Knows how a file must be protected; must not know what a secret is for.
"""

from __future__ import annotations

import os
import stat

from twisted.logger import Logger

from mcpbridge.config.tuning import SECRET_FILE_BYTES
from mcpbridge.errors import Described, SettingError

_log = Logger()


def read_secret(path: str, setting: str, least: int = 1, *, spaces: bool = False) -> str:
    """
    Return the secret in a file; with `spaces` it may have some.  Raises `SettingError`,
    which does not show it.

    A file that every user of the machine can read is only a warning: that is how containers
    get their secrets, and there is no other user.
    """
    try:
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(SECRET_FILE_BYTES + 1)
        secret = data.decode("utf-8").strip()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a text in UTF-8"
        got = Described(f"a file that cannot be read: {why}")
        raise SettingError(setting, "a file with the secret", got) from None
    if mode & stat.S_IWOTH:
        got = Described(f"a file of mode {mode:04o}, in which everybody can write")
        raise SettingError(setting, "a file that its owner alone can change", got)
    if mode & stat.S_IROTH:
        _log.warn(
            "{setting}: every user of this machine can read the secret in {path!r}, whose mode is"
            " {mode}; run `chmod o= {path}`",
            setting=setting,
            path=path,
            mode=f"{mode:04o}",
        )
    one = (spaces or " " not in secret) and secret.isprintable()
    if len(data) > SECRET_FILE_BYTES or not least <= len(secret) or not one:
        expected = f"a file with one secret of at least {least} characters"
        raise SettingError(setting, expected, Described(f"{len(secret)} characters"))
    return secret
