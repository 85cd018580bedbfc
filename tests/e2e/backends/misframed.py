"""
An MCP server of 2025-11-25 that makes framing mistakes of real servers: the name of the tool that
is called is the mistake in its response.

`misframed.py HOW`: the mistake in its response to `initialize`.
"""

import json
import os
import sys


def write(data: bytes) -> None:
    """Write to stdout at once."""
    os.write(1, data)


def answer(how: str, message: dict) -> None:
    """Send a response with this mistake."""
    line = json.dumps(message).encode()
    if how == "headers":
        write(b"Content-Length: %d\r\n\r\n%b" % (len(line), line))
    elif how == "lines":
        write(json.dumps(message, indent=2).encode() + b"\n")
    elif how == "nan":
        message["result"]["x"] = float("nan")
        write(json.dumps(message).encode() + b"\n")
    elif how == "bom":
        write(b"\xef\xbb\xbf" + line + b"\n")
    elif how == "utf-16":
        write((json.dumps(message) + "\n").encode("utf-16"))
    elif how == "text id":
        ident = message["id"]
        message["id"] = str(ident) if isinstance(ident, int) else int(ident)
        write(json.dumps(message).encode() + b"\n")
    elif how == "twice":
        write(line + b"\n" + line + b"\n")
    elif how == "hello":
        write(b"hello from the server\n" + line + b"\n")
    elif how == "dump":
        write(json.dumps(message, indent=2).encode() + b"\n" + line + b"\n")
    elif how == "print":
        write(f"{message}\n".encode() + line + b"\n")
    else:
        write(line + b"\n")


for line in sys.stdin.buffer:
    message = json.loads(line)
    params = message.get("params", {})
    if "id" not in message:
        continue
    result: dict = {"content": [{"type": "text", "text": "done"}]}
    if message["method"] == "initialize":
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}}
        result["serverInfo"] = {"name": "misframed", "version": "1"}
    elif message["method"] == "tools/list":
        result = {"tools": []}
    begins = message["method"] == "initialize"
    how = sys.argv[1] if begins else params.get("name", "")
    answer(how, {"jsonrpc": "2.0", "id": message["id"], "result": result})
