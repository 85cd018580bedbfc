"""
Answers, notifies and asks with lines that are larger than a bridge may take.

`params.size` says how large; `params.where` in an answer says where its id
stands: `first`, `last`, or `middle`, where neither end shows it.
"""

import json
import sys


def say(**members: object) -> None:
    print(json.dumps({"jsonrpc": "2.0", **members}), flush=True)


for line in sys.stdin:
    asked = json.loads(line)
    if "method" not in asked:
        say(method="notifications/heard", params={"error": asked.get("error")})
        continue
    params, pad = asked.get("params", {}), "x" * asked.get("params", {}).get("size", 0)
    if asked["method"] == "notify":
        say(method="notifications/big", params={"pad": pad})
    elif asked["method"] == "ask":
        say(method="roots/list", params={"pad": pad}, id="q")
    elif asked["method"] == "initialize":
        result = {"protocolVersion": "2025-11-25", "capabilities": {}}
        say(id=asked["id"], result={**result, "serverInfo": {"name": "large", "version": "1"}})
    elif asked["method"] == "server/discover":
        say(id=asked["id"], error={"code": -32601, "message": "no"})
    elif "id" in asked:
        where = params.get("where", params.get("name", "first"))
        if "arguments" in params:
            pad = "x" * params["arguments"]["size"]
        if where == "first":
            say(id=asked["id"], result={"pad": pad})
        elif where == "last":
            say(result={"pad": pad}, id=asked["id"])
        else:
            say(result={"pad": pad}, id=asked["id"], more={"pad": pad})
