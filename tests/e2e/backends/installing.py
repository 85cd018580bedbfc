"""
A server that has to be installed first, as with `npx`: `installing.py DIR SECONDS [modern]`.

Unless `DIR/installed` exists, it adds a line to `DIR/installs`, takes SECONDS, and creates
`DIR/installed`.  Then it answers every request, as a server of 2025-11-25 or, with `modern`, of
2026-07-28.
"""

import json
import pathlib
import sys
import time

folder, seconds = pathlib.Path(sys.argv[1]), float(sys.argv[2])
if not (folder / "installed").exists():
    with (folder / "installs").open("a") as file:
        file.write("began\n")
    time.sleep(seconds)
    (folder / "installed").touch()

modern = "modern" in sys.argv
info = {"name": "installing", "version": "1"}

for line in sys.stdin.buffer:
    message = json.loads(line)
    method, params = message.get("method"), message.get("params", {})
    told = {"result": {"method": method}}
    if method == "initialize" and not modern:
        version = params["protocolVersion"]
        told = {"result": {"protocolVersion": version, "capabilities": {}, "serverInfo": info}}
    elif method == "server/discover" and modern:
        told = {"result": {"supportedVersions": ["2026-07-28"], "capabilities": {}}}
    elif method in ("initialize", "server/discover"):
        told = {"error": {"code": -32601, "message": f"no {method}"}}
    if "id" in message:
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], **told}) + "\n")
        sys.stdout.flush()
