"""
A server that reads what no server should, and writes down what reaches it.

Its arguments are the revisions that it speaks (`legacy` or `modern`), which of two members
with one name counts (`first` or `last`), a file for the names that reach it, and the marker.

Names of members are compared without case, as Go's decoder does; names of tools, prompts
and methods also without space around them, in the compatibility forms of Unicode, and up to a
NUL.  A URI of a file is a path, decoded and resolved.  On one line there may be any number of
messages and arrays of them, in UTF-8 or UTF-16, with a byte order mark or without.
"""

import json
import os
import posixpath
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

ERA, COUNTS, RECORD = sys.argv[1:4]
TOOLS: list[dict[str, Any]] = [
    {"name": "allowed", "inputSchema": {"type": "object"}, "big": 12345678901234567890.10},
    {"name": "denied", "inputSchema": {"type": "object"}, "x": "denied"},
    {"name": "other", "inputSchema": {"type": "object", "properties": {"name": {}}}},
]
PROMPTS: list[dict[str, Any]] = [{"name": "open"}, {"name": "secret"}]
RESOURCES = [{"uri": "file:///pub/a", "name": "a"}, {"uri": "file:///secret/x", "name": "x"}]
TEMPLATES = [
    {"uriTemplate": "file:///pub/{x}", "name": "p"},
    {"uriTemplate": "file:///secret/{x}", "name": "s"},
]
LISTS: dict[str, tuple[str, list[Any]]] = {
    "tools/list": ("tools", TOOLS),
    "prompts/list": ("prompts", PROMPTS),
    "resources/list": ("resources", RESOURCES),
    "resources/templates/list": ("resourceTemplates", TEMPLATES),
}
PREFIX = "io.modelcontextprotocol/"


def fold(text: object) -> str:
    """Return a name without case, space and forms of letters."""
    return unicodedata.normalize("NFKC", str(text).partition("\0")[0]).strip().casefold()


class Members(dict[str, Any]):
    """An object, whose members have names without case."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__()
        for name, value in pairs:
            if COUNTS == "last":
                self[name.casefold()] = value
            else:
                self.setdefault(name.casefold(), value)


def messages(line: bytes) -> Iterator[dict[str, Any]]:
    """Yield all messages on a line."""
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le"):
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError:
            continue
        decoder = json.JSONDecoder(object_pairs_hook=Members, strict=False)
        at, found = 0, []
        while at < len(text):
            if text[at] not in "{[":
                at += 1
                continue
            try:
                value, at = decoder.raw_decode(text, at)
            except (ValueError, RecursionError):
                break
            found.append(value)
        if found:
            yield from flat(found)
            return


def flat(value: object) -> Iterator[dict[str, Any]]:
    """Yield the messages in arrays of them."""
    if isinstance(value, list):
        for each in value:
            yield from flat(each)
    elif isinstance(value, dict):
        yield value


def send(**message: object) -> None:
    """Send a message to the client."""
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def record(*what: str) -> None:
    """Write down what was asked for."""
    with open(RECORD, "a") as output:
        output.write(" ".join(what) + "\n")


def path_of(uri: object) -> str:
    """Return the path that a URI of a file names."""
    rest = re.sub("^[a-z]+:(//(localhost(?=/))?)?", "", str(uri).strip(), flags=re.I)
    return posixpath.normpath(unquote(rest).replace("\\", "/").casefold()).replace("//", "/")


def result(request: dict[str, Any], **members: object) -> None:
    """Answer with a result."""
    if ERA == "modern":
        members = {"resultType": "complete", **members}
    send(id=request["id"], result=members)


def named(request: dict[str, Any], kind: str, name: str, known: set[str], given: str) -> None:
    """Answer a request for a prompt or a resource."""
    record(kind, name)
    if name in known:
        result(request, content=[{"type": "text", "text": name}], messages=[], contents=[])
    else:
        code = -32602 if ERA == "modern" or kind != "resource" else -32002
        text = "Resource not found" if kind == "resource" else f"Unknown {kind}: {given}"
        data = {"data": {"uri": given}} if kind == "resource" else {}
        send(id=request["id"], error={"code": code, "message": text, **data})


def listed(request: dict[str, Any], member: str, things: list[Any], params: dict[str, Any]) -> None:
    """Answer with a page of one, then with the rest."""
    page: dict[str, object] = {member: things[1:] if params.get("cursor") else things[:1]}
    if not params.get("cursor"):
        page["nextCursor"] = "2"
    if ERA == "modern":
        page |= {"ttlMs": 1000, "cacheScope": "public"}
    result(request, **page)


def handle(request: dict[str, Any]) -> None:
    """Answer a message."""
    if "method" not in request:
        return
    method = fold(request["method"])
    params = request.get("params")
    params = params if isinstance(params, dict) else Members([])
    named_by = str(params.get("name", params.get("uri", "")))
    if method == "tools/call":
        record("tool", fold(named_by))
        if "id" not in request:
            return
        known = {each["name"] for each in TOOLS}
        if fold(named_by) in known:
            if isinstance(arguments := params.get("arguments"), dict) and "notify" in arguments:
                uri = {"uri": arguments["notify"]}
                send(method="notifications/resources/updated", params=uri)
            result(request, content=[{"type": "text", "text": fold(named_by)}])
        else:
            error = {"code": -32602, "message": f"Unknown tool: {named_by}"}
            send(id=request["id"], error=error)
    elif "id" not in request:
        if method in ("prompts/get", "resources/read"):
            record(method, fold(named_by))
    elif method == "prompts/get":
        named(request, "prompt", fold(named_by), {each["name"] for each in PROMPTS}, named_by)
    elif method in ("resources/read", "resources/subscribe", "resources/unsubscribe"):
        named(request, "resource", path_of(named_by), {"/pub/a", "/secret/x"}, named_by)
    elif method == "completion/complete":
        ref = params.get("ref", {})
        record("completion", fold(ref.get("name", "")) or path_of(ref.get("uri", "")))
        result(request, completion={"values": []})
    elif method == "subscriptions/listen":
        meta = {f"{PREFIX}subscriptionId": request["id"]}
        wanted = params.get("notifications", {})
        uris = wanted.get("resourcesubscriptions", [])
        granted = {"resourceSubscriptions": uris} if uris else {}
        if wanted.get("toolslistchanged"):
            granted["toolsListChanged"] = True
        acknowledged = "notifications/subscriptions/acknowledged"
        send(method=acknowledged, params={"notifications": granted, "_meta": meta})
        for uri in [*uris, *(["file:///secret/x"] if uris else [])]:
            record("listen", path_of(uri) if uri in uris else "-")
            send(method="notifications/resources/updated", params={"uri": uri, "_meta": meta})
    elif method in LISTS:
        listed(request, *LISTS[method], params)
    elif method == "initialize" and ERA == "legacy":
        result(
            request,
            protocolVersion=params.get("protocolversion", "2025-11-25"),
            capabilities={
                "tools": {"listChanged": True},
                "prompts": {},
                "resources": {"subscribe": True},
                "completions": {},
            },
            serverInfo={"name": "lenient", "version": "1"},
        )
    elif method == "server/discover" and ERA == "modern":
        result(
            request,
            supportedVersions=["2026-07-28"],
            capabilities={"tools": {}, "prompts": {}, "resources": {"subscribe": True}},
            _meta={f"{PREFIX}serverInfo": {"name": "lenient", "version": "1"}},
        )
    elif method == "initialize":
        error = {"code": -32022, "message": "no", "data": {"supported": ["2026-07-28"]}}
        send(id=request["id"], error=error)
    elif method == "ping":
        result(request)
    else:
        send(id=request["id"], error={"code": -32601, "message": "no such method"})


for each_line in iter(sys.stdin.buffer.readline, b""):
    for each_message in messages(each_line.rstrip(b"\n")):
        handle(each_message)
os._exit(0)
