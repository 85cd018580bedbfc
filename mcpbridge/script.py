"""
The console script `mcpbridge`: `twistd -n mcpbridge` without a pid file.
"""

from __future__ import annotations

import sys

from twisted.scripts.twistd import run


def main() -> None:
    """Run twistd with the arguments of this command."""
    sys.argv = ["twistd", "--nodaemon", "--pidfile=", "mcpbridge", *sys.argv[1:]]
    run()
