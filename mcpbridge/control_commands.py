"""
The commands `mcpbridge end ID` and `mcpbridge reload`, which do something at a running bridge.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from mcpbridge.admin_client import (
    FAILED,
    FINE,
    WRONG_USE,
    AdminClient,
    CannotReach,
    Denied,
    WrongUse,
    find_client,
    parse,
    shown,
)
from mcpbridge.config.masking import printable

END_USAGE = """\
Usage: mcpbridge end [options] ID

End a session of a running bridge, and its process.  ID is the short id that `mcpbridge
status` and the log show, or at least the first 4 characters of it.

Options:
  --socket PATH  The admin socket of the bridge, or the directory that it is in.
  -h, --help     Print this help and exit.

The exit status is 0 if the session is ended, 1 if the bridge cannot be reached or has no
such session, and 2 for wrong use.
"""

RELOAD_USAGE = """\
Usage: mcpbridge reload [options]

Have a running bridge read its configuration file again, as SIGHUP does, and print what has
changed, or what is wrong with the file; then nothing has changed.

Options:
  --socket PATH  The admin socket of the bridge, or the directory that it is in.
  -h, --help     Print this help and exit.

The exit status is 0 if the file was loaded, 1 if it was not or the bridge cannot be reached,
and 2 for wrong use.
"""


def end_command(arguments: Sequence[str]) -> int:
    """Run `mcpbridge end` with its arguments; return the exit status."""

    def end(client: AdminClient, ident: str) -> str:
        return f"session {client.end(ident)} is ended"

    return _run("end", END_USAGE, arguments, 1, end)


def reload_command(arguments: Sequence[str]) -> int:
    """Run `mcpbridge reload` with its arguments; return the exit status."""

    def reload(client: AdminClient) -> str:
        return f"loaded: {client.reload()}"

    return _run("reload", RELOAD_USAGE, arguments, 0, reload)


def _run(
    name: str, usage: str, arguments: Sequence[str], count: int, action: Callable[..., str]
) -> int:
    try:
        options, rest = parse(arguments, ["socket="], count)
    except WrongUse as error:
        print(f"mcpbridge {name}: {printable(str(error))}\n\n{usage}", end="", file=sys.stderr)
        return WRONG_USE
    if "help" in options:
        print(usage, end="")
        return FINE
    try:
        client = find_client(options.get("socket"), os.environ)
        print(printable(action(client, *rest)))
    except (CannotReach, Denied) as error:
        print(f"mcpbridge {name}: {shown(error)}", file=sys.stderr)
        return FAILED
    return FINE
