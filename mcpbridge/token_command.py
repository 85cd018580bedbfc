"""
The command `mcpbridge token NAME`: makes a named token, and prints the line for the
configuration file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from mcpbridge.auth.named_tokens import make_token

USAGE = """\
Usage: mcpbridge token NAME

Make a token for NAME: print it, and the line for `bridge.auth.tokens` of the
configuration file.  The file has only a digest of the token, so the token itself
cannot be shown again.
"""
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")


def token_command(arguments: Sequence[str]) -> int:
    """Run the command with its arguments; return the exit status."""
    if list(arguments) in (["--help"], ["-h"]):
        print(USAGE, end="")
        return 0
    if len(arguments) != 1 or not _NAME.fullmatch(arguments[0]) or arguments[0].startswith("-"):
        given = f", got {len(arguments)} arguments" if len(arguments) != 1 else ""
        print(
            "mcpbridge token: expected a NAME of 1 to 64 letters, digits or any of ._@-"
            f"{given}\n\n{USAGE}",
            end="",
            file=sys.stderr,
        )
        return 1
    [name] = arguments
    token, digest = make_token()
    print(
        f"The token of {name}, which is not shown again:\n\n"
        f"    {token}\n\n"
        f"The line for `bridge.auth.tokens` of the configuration file:\n\n"
        f'    "{name}": {{"sha256": "{digest}"}}\n\n'
        f"Clients send it in the header `Authorization: Bearer {token[:9]}...`."
    )
    return 0
