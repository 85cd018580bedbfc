"""
A real client that is a command: the inspector's CLI, once for each question.

    inspector.py NODE LAUNCHER URL TOOL [ARGUMENTS [OPTION ...]]

with the Node to run it, the path of its script, and options of its own.  What follows
and the output are those of `session.py`; progress and logging are null, since it shows neither.
"""

import json
import os
import subprocess
import sys
import tempfile
from typing import Any


def main(node: str, script: str, url: str, tool: str, arguments: str = "{}", *given: str) -> None:
    """Three sessions; prints what was seen."""
    transport = "sse" if url.endswith("/sse") else "http"
    with tempfile.TemporaryDirectory() as folder:

        def ask(method: str, *options: str) -> dict[str, Any]:
            command = [node, script, "--cli", "--transport", transport, "--server-url", url]
            command += given
            done = subprocess.run(
                [*command, "--format", "json", "--quiet", "--method", method, *options],
                env={**os.environ, "HOME": folder},  # it keeps files
                stdout=subprocess.PIPE,
                check=True,
            )
            result: dict[str, Any] = json.loads(done.stdout)["result"]
            return result

        initialized = ask("initialize")
        listed = ask("tools/list")
        called = ask("tools/call", "--tool-name", tool, "--tool-args-json", arguments)
    seen = {
        **initialized,
        "tools": sorted(one["name"] for one in listed["tools"]),
        "result": called,
        "progress": None,
        "logged": None,
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
