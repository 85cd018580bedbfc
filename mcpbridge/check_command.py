"""
The command `mcpbridge check FILE`: says everything that is wrong with a configuration
file, and what would run, and starts no server.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mcpbridge.tap import Options, print_and_exit

USAGE = """\
Usage: mcpbridge check [options] FILE
       mcpbridge [options] --check COMMAND [ARG ...]

Check a configuration file: list all of its errors, each with its line, and what would
run: the command lines of the servers without secrets, their programs, the listeners,
and who may come in.  No server is started and no file written; but extensions that the file
names are imported and made, and confinement is tried out with a harmless process.  The
exit status is 0 if the bridge would serve everything as it is written, and 1 otherwise.

Options:
  --json      Print the report as JSON.
  -h, --help  Print this help and exit.

Options of `mcpbridge --config FILE`, such as --listen, take the place of what the file
says.
"""


class CheckOptions(Options):
    """The command line of `mcpbridge check`, which is that of `mcpbridge` with a file."""

    def __init__(self) -> None:
        super().__init__()
        self.checks = True

    def opt_help(self) -> None:
        """Print the help and exit."""
        print_and_exit(USAGE.rstrip())

    opt_h = opt_help

    def parseArgs(self, *files: str) -> None:
        """Take FILE."""
        given = [*files] if self.config is None else [self.config, *files]
        if len(given) != 1:
            got = f", got {len(given)}" if given else ""
            raise SystemExit(f"mcpbridge check: expected one FILE{got}\n\n{USAGE}".rstrip())
        [self.config] = given


def check_command(arguments: Sequence[str]) -> int:
    """Run the command with its arguments; return the exit status."""
    try:
        CheckOptions().parseOptions(arguments)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return int(end.code or 0)
    raise AssertionError("a check ends the command")
