"""
Sends responses, notifications and requests whose lines are larger than a bridge accepts.

`params.size` is the size; `params.where` is the position of the id in a response: `first`, `last`,
or `middle`, where neither the start nor the end of the line shows it.
"""

import json
import sys


def send(**members: object) -> None:
    print(json.dumps({"jsonrpc": "2.0", **members}), flush=True)


for line in sys.stdin:
    asked = json.loads(line)
    if "method" not in asked:
        send(method="notifications/heard", params={"error": asked.get("error")})
        continue
    params, pad = asked.get("params", {}), "x" * asked.get("params", {}).get("size", 0)
    if asked["method"] == "notify":
        send(method="notifications/big", params={"pad": pad})
    elif asked["method"] == "ask":
        send(method="roots/list", params={"pad": pad}, id="q")
    elif asked["method"] == "initialize":
        result = {"protocolVersion": "2025-11-25", "capabilities": {}}
        send(id=asked["id"], result={**result, "serverInfo": {"name": "large", "version": "1"}})
    elif asked["method"] == "server/discover":
        send(id=asked["id"], error={"code": -32601, "message": "no"})
    elif "id" in asked:
        where = params.get("where", params.get("name", "first"))
        if "arguments" in params:
            pad = "x" * params["arguments"]["size"]
        if where == "first":
            send(id=asked["id"], result={"pad": pad})
        elif where == "last":
            send(result={"pad": pad}, id=asked["id"])
        else:
            send(result={"pad": pad}, id=asked["id"], more={"pad": pad})
