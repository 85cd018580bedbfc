"""An MCP server of 2025-11-25 that answers each request with the `_meta` that it came with."""

import json
import sys

INITIALIZED = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "meta", "version": "1"},
}

for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message or "method" not in message:
        continue
    meta = message.get("params", {}).get("_meta")
    text = [{"type": "text", "text": json.dumps(meta)}]
    result = INITIALIZED if message["method"] == "initialize" else {"content": text}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
