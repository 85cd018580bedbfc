"""
The command `mcpbridge schema`: prints the JSON Schema of the configuration file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mcpbridge.config.schema import schema_text

USAGE = """\
Usage: mcpbridge schema

Print the JSON Schema of the configuration file (draft 2020-12), with which an editor
completes and checks it.
"""


def schema_command(arguments: Sequence[str]) -> int:
    """Run the command with its arguments; return the exit status."""
    if list(arguments) in (["--help"], ["-h"]):
        print(USAGE, end="")
        return 0
    if arguments:
        print(f"mcpbridge schema: expected no arguments\n\n{USAGE}", end="", file=sys.stderr)
        return 1
    print(schema_text(), end="")
    return 0
