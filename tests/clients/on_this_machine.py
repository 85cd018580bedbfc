"""
The client of `session.py`, for which every host is this machine, whatever its name is:

    python -m tests.clients.on_this_machine TOOL ARGUMENTS URL...

Visits one URL after the other, and prints what it saw at each on a line.
"""

import asyncio
import json
import socket
import sys
from typing import Any

from tests.clients.session import visit

_find = socket.getaddrinfo


def find_here(host: Any, *others: Any, **named: Any) -> Any:
    """Find a host at 127.0.0.1."""
    return _find("127.0.0.1", *others, **named)


if __name__ == "__main__":
    socket.getaddrinfo = find_here
    tool, arguments, *urls = sys.argv[1:]
    for url in urls:
        print(json.dumps(asyncio.run(visit(url, tool, json.loads(arguments)))))
