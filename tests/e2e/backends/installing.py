"""
A server that has to be installed first, as by `npx`: `installing.py DIR SECONDS [modern]`.

Where `DIR/installed` is not there it takes so long, writes that at its end,
and notes in `DIR/installs` that it has begun.  One that is killed meanwhile
leaves nothing behind.  Then it answers whatever it is asked, of 2025-11-25 or,
with `modern`, of 2026-07-28.
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
