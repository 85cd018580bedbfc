"""
Callers with tokens, and servers that admit some of them, for tests of access control.

Requests are bytes that are sent as they are, and responses are compared as bytes, but for
their `Date`.  This module imports nothing of mcpbridge.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from tests.e2e.harness import TIMEOUT, Connection, request
from tests.e2e.stateless import PREFIX, VERSION

#: What each caller sends as a token; None for one without.  A wrong one is like alice's.
TOKENS: dict[str, str | None] = {
    "alice": "alice-" + "x" * 30 + "1",
    "bob": "bob-" + "y" * 30,
    "carol": "carol-" + "z" * 30,
    "nobody": None,
    "wrong": "alice-" + "x" * 30 + "2",
}
CALLERS = tuple(TOKENS)
ACCEPT = "application/json, text/event-stream"
INITIALIZE = request(
    "initialize",
    1,
    protocolVersion="2025-11-25",
    capabilities={},
    clientInfo={"name": "tests", "version": "1"},
)
_DATE = re.compile(rb"(?<=\r\nDate: )[^\r]+")


def digest(caller: str) -> str:
    """Return the `sha256` of the token of a caller."""
    return hashlib.sha256((TOKENS[caller] or "").encode()).hexdigest()


def auth(bob: Sequence[str] = ("open",)) -> dict[str, Any]:
    """
    Return the setting `auth` of a bridge: alice may do everything, bob use these servers
    alone, and carol use all of them but has no scope.
    """
    return {
        "tokens": {
            "alice": {"sha256": digest("alice"), "scopes": ["use", "adder"]},
            "bob": {"sha256": digest("bob"), "servers": list(bob)},
            "carol": {"sha256": digest("carol")},
        }
    }


def demo(base: str, **settings: Any) -> dict[str, Any]:
    """Return the settings of a server that is the demo, below a base."""
    command = {"command": sys.executable, "args": ["-I", "-m", "mcpbridge.demo"]}
    return {**command, "base_uri": base, "stop_grace": 0.2, **settings}


def authorization(caller: str) -> list[str]:
    """Return the header lines with the credentials of a caller."""
    token = TOKENS[caller]
    return [] if token is None else [f"Authorization: Bearer {token}"]


def modern(method: str, **params: Any) -> bytes:
    """Return a request of 2026-07-28."""
    meta = {
        f"{PREFIX}protocolVersion": VERSION,
        f"{PREFIX}clientInfo": {"name": "tests", "version": "1"},
        f"{PREFIX}clientCapabilities": {"elicitation": {}},
    }
    return request(method, 1, **params, _meta=meta)


def modern_lines(method: str, name: str | None = None) -> list[str]:
    """Return the header lines of a request of 2026-07-28."""
    lines = [f"MCP-Protocol-Version: {VERSION}", f"Mcp-Method: {method}"]
    return lines if name is None else [*lines, f"Mcp-Name: {name}"]


def head(method: str, target: str, lines: Sequence[str] = (), size: int | None = None) -> bytes:
    """Return the head of a request."""
    given = ["Host: localhost", *lines]
    if size is not None:
        given.append(f"Content-Length: {size}")
    text = "".join(f"{line}\r\n" for line in given)
    return f"{method} {target} HTTP/1.1\r\n{text}\r\n".encode("latin-1")


def post(target: str, body: bytes, *lines: str) -> bytes:
    """Return a POST of a message."""
    usual = [f"Accept: {ACCEPT}", "Content-Type: application/json", *lines]
    return head("POST", target, usual, len(body)) + body


class Answer(NamedTuple):
    """A response; an event stream has an empty body here."""

    status: int
    headers: dict[str, str]
    body: bytes
    #: All of its bytes, but for the date.
    raw: bytes

    @property
    def json(self) -> Any:
        """The body, decoded from JSON."""
        return json.loads(self.body)

    @property
    def challenge(self) -> str | None:
        """The value of `WWW-Authenticate`."""
        return self.headers.get("www-authenticate")


class Wire(Connection):
    """A connection that sends bytes as they are, from an address of this machine."""

    def __init__(self, port: int, address: str = "") -> None:
        super().__init__(port, address=address)

    def answer(self, *, to_head: bool = False) -> Answer:
        """Read one response, up to the head of an event stream."""
        first = self.read_until(b"\r\n\r\n")
        lines = first.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines[1:])}
        status = int(lines[0].split(" ", 2)[1])
        body = b""
        stream = "event-stream" in headers.get("content-type", "")
        if not stream and not to_head and status >= 200 and status not in (204, 304):
            if headers.get("transfer-encoding") == "chunked":
                body = b"".join(self.read_chunks())
            else:
                body = self.read(int(headers["content-length"]))
        return Answer(status, headers, body, _DATE.sub(b"", first) + b"\r\n\r\n" + body)

    def ask(self, raw: bytes) -> Answer:
        """Send a request, and read its response."""
        self.send(raw)
        return self.answer(to_head=raw.startswith(b"HEAD "))


def ask(port: int, raw: bytes) -> Answer:
    """Send a request on a connection of its own, and read its response."""
    with Wire(port) as wire:
        return wire.ask(raw)


def everything(port: int, raw: bytes) -> bytes:
    """Send bytes and a FIN, and return all that comes, but for dates."""
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        found = bytearray()
        while data := connection.recv(1 << 16):
            found += data
    return _DATE.sub(b"", bytes(found))


def open_session(port: int, base: str, caller: str) -> str:
    """Open a session of Streamable HTTP; return its id."""
    answer = ask(port, post(f"{base}/mcp", INITIALIZE, *authorization(caller)))
    assert answer.status == 200, answer
    return answer.headers["mcp-session-id"]
