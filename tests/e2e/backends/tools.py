"""
An MCP server of one era: `legacy` answers `initialize`, `modern` is of 2026-07-28.  It runs several
calls at a time, each in its own thread; all messages of a call have the `token` of its arguments.

`tools.py ERA CRASH`: every CRASH-th call makes it exit, none if CRASH is 0.  The output of a tool
has its `pid`, and the number of other calls that ran `beside` it.  The tool `ask_late` sends its
question and log message only when the next call has begun, whoever made it.  A client with the name
`bad` makes it exit at `initialize`.
"""

import itertools
import json
import os
import sys
import threading

ERA, CRASH = sys.argv[1], int(sys.argv[2])
MODERN = ERA == "modern"
VERSION = "2026-07-28" if MODERN else "2025-11-25"
PREFIX = "io.modelcontextprotocol/"
CAPABILITIES = {"tools": {"listChanged": True}, "logging": {}}
INFO = {"name": "tools", "version": "1"}
SCHEMA = {"type": "object", "properties": {"token": {"type": "string"}}}

lock = threading.Lock()
questions = itertools.count(1)
calls = itertools.count(1)
#: An event for each running call; an event and the response for each question.
cancelled: dict = {}
asked: dict = {}
listens: list = []
#: The tokens of calls that ask and log only when the next call is there.
late_tokens: list = []


def send(**message: object) -> None:
    """Send a message to the client."""
    with lock:
        os.write(1, json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


def send_notification(method: str, **params: object) -> None:
    """Send a notification."""
    send(method=f"notifications/{method}", params=params)


def question(token: str) -> dict:
    """Return the params of an elicitation."""
    properties = {"answer": {"type": "string"}}
    return {"message": token, "requestedSchema": {"type": "object", "properties": properties}}


def ask(token: str, params: dict) -> "str | None":
    """Ask the client; return its answer, or None if a modern client is asked now."""
    if MODERN:
        responses = params.get("inputResponses")
        assert params.get("requestState") == (None if responses is None else f"state of {token}")
        return None if responses is None else responses["q"]["content"]["answer"]
    ident = f"q{next(questions)}"
    answered = asked[ident] = [threading.Event(), {}]
    send(id=ident, method="elicitation/create", params=question(token))
    answered[0].wait()
    return answered[1].get("result", {}).get("content", {}).get("answer", "none")


def notify(token: str, meta: dict, number: int) -> None:
    """Send progress and a log message."""
    if "progressToken" in meta:
        progress = {"progressToken": meta["progressToken"], "progress": number}
        send_notification("progress", **progress, message=token)
    if not MODERN or f"{PREFIX}logLevel" in meta:
        send_notification("message", level="info", data=token)


def perform(ident: object, params: dict) -> "dict | None":
    """Run a tool; return its result, or None if it has none."""
    tool, arguments, meta = params["name"], params["arguments"], params.get("_meta", {})
    token = arguments["token"]
    answer = ""
    if tool == "ask":
        responses = ask(token, params)
        if responses is None:
            wanted = {"q": {"method": "elicitation/create", "params": question(token)}}
            needed = {"inputRequests": wanted, "requestState": f"state of {token}"}
            return {"resultType": "input_required", **needed}
        answer = responses
    elif tool == "notify":
        for number in range(arguments["steps"]):
            notify(token, meta, number)
            cancelled[ident].wait(0.005)
    elif tool == "wait":
        if cancelled[ident].wait(60) and MODERN:
            return None
    elif tool == "ask_late":
        late_tokens.append(token)
    elif tool == "touch":
        send_notification("tools/list_changed") if not MODERN else notify_subscribers()
    said = {"token": token, "answer": answer, "pid": os.getpid(), "beside": len(cancelled) - 1}
    result = {"content": [{"type": "text", "text": json.dumps(said)}]}
    return {"resultType": "complete", **result} if MODERN else result


def notify_subscribers() -> None:
    """Notify the subscribers of a modern server."""
    for each in listens:
        send_notification("tools/list_changed", _meta={f"{PREFIX}subscriptionId": each})


def call(ident: object, params: dict) -> None:
    """Run a call from its beginning to its response, and send late messages."""
    result = perform(ident, params)
    del cancelled[ident]
    if result is not None:
        send(id=ident, result=result)
    if params["name"] == "late":
        threading.Event().wait(0.01)
        notify(params["arguments"]["token"], params.get("_meta", {}), 99)


def list_tools() -> dict:
    """Return all tools."""
    names = ("ask", "notify", "wait", "touch", "late", "echo", "ask_late")
    return {"tools": [{"name": name, "inputSchema": SCHEMA} for name in names]}


def respond(ident: object, method: str, params: dict) -> None:
    """Respond to requests other than tool calls."""
    of_lists: dict = (
        {"ttlMs": 0, "cacheScope": "private", "resultType": "complete"} if MODERN else {}
    )
    result: dict
    if method == "initialize" and params.get("clientInfo", {}).get("name") == "bad":
        os._exit(7)
    if method == "initialize" and not MODERN:
        result = {"protocolVersion": VERSION, "capabilities": CAPABILITIES, "serverInfo": INFO}
    elif method == "server/discover" and MODERN:
        result = {"supportedVersions": [VERSION], "capabilities": CAPABILITIES, **of_lists}
        result["_meta"] = {f"{PREFIX}serverInfo": INFO}
    elif method == "tools/list":
        result = {**list_tools(), **of_lists}
    elif method == "subscriptions/listen" and MODERN:
        listens.append(ident)
        of = {"_meta": {f"{PREFIX}subscriptionId": ident}}
        send_notification("subscriptions/acknowledged", notifications=params["notifications"], **of)
        return
    elif method in ("logging/setLevel", "ping") and not MODERN:
        result = {}
    else:
        code = -32022 if method == "initialize" else -32601
        error = {"code": code, "message": f"no {method}", "data": {"supported": [VERSION]}}
        send(id=ident, error=error)
        return
    send(id=ident, result=result)


for line in sys.stdin.buffer:
    message = json.loads(line)
    ident, method, params = message.get("id"), message.get("method"), message.get("params", {})
    if method == "tools/call":
        if CRASH and next(calls) % CRASH == 0:
            os._exit(9)
        cancelled[ident] = threading.Event()
        for token in late_tokens:
            send_notification("message", level="info", data=token)
            send(id=f"late {token}", method="elicitation/create", params=question(token))
        threading.Thread(target=call, args=(ident, params), daemon=True).start()
    elif method == "notifications/cancelled":
        if params["requestId"] in listens:
            listens.remove(params["requestId"])
        if params["requestId"] in cancelled:
            cancelled[params["requestId"]].set()
    elif method is None and ident in asked:
        waiting = asked.pop(ident)
        waiting[1].update(message)
        waiting[0].set()
    elif method is not None and ident is not None:
        respond(ident, method, params)
