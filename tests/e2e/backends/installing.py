"""
A server that has to be installed first, as by `npx`: `installing.py DIR SECONDS`.

Where `DIR/installed` is not there it takes so long, writes that at its end,
and notes in `DIR/installs` that it has begun.  One that is killed meanwhile
leaves nothing behind.  Then it answers whatever it is asked.
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

for line in sys.stdin.buffer:
    message = json.loads(line)
    if message.get("method") == "initialize":
        version = message["params"]["protocolVersion"]
        info = {"name": "installing", "version": "1"}
        result = {"protocolVersion": version, "capabilities": {}, "serverInfo": info}
    else:
        result = {"method": message.get("method")}
    if "id" in message:
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": result}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
