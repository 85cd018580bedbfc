"""
The front of a connection: plain requests to post a message, read without
ceremony.

A client that posts writes nearly the same head again and again, and all that
is wanted of it is a session and a length.  What is recognised here is exactly
what the ordinary channel would understand in the same way; anything else, and
anything in doubt, is left to it.  Knows the bytes of a request (RFC 9112);
must not decide about a message: that is for the server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from time import time
from typing import NamedTuple

from twisted.logger import Logger
from twisted.web.http import datetimeToString
from twisted.web.server import version

from mcpbridge.errors import InternalError, Refused
from mcpbridge.session.server import Server
from mcpbridge.web.answers import phrase
from mcpbridge.web.gate import Gate

#: A longer head, or one with more lines, is for the ordinary channel.
HEAD_BYTES = 8192
HEAD_LINES = 64

_END = b"\r\n\r\n"
_TARGET = re.compile(rb"POST ([!-~]+)\?sessionId=([0-9a-f-]{36}) HTTP/1\.1")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
#: Fields that change what a request is, or whether it is answered; only the
#: ordinary channel reads them.
_NOT_PLAIN = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"trailer", b"te", b"origin"})


class Plain(NamedTuple):
    """What is wanted of a plain request's head."""

    server: Server
    ident: str
    length: int
    host: bytes | None


def read_head(head: bytes, servers: dict[bytes, Server]) -> Plain | None:
    """
    The head of a plain request, without its last empty line; None where it
    is not plain.

    `servers` are found by the path to post to, byte for byte.
    """
    if len(head) > HEAD_BYTES:
        return None
    first, *fields = head.split(b"\r\n")
    target = _TARGET.fullmatch(first)
    if target is None or len(fields) > HEAD_LINES:
        return None
    server = servers.get(target[1])
    if server is None:
        return None
    length = -1
    host = None
    for field in fields:
        name, colon, value = field.partition(b":")
        if not colon or not _NAME.fullmatch(name):
            return None
        if b"\n" in value or b"\r" in value or b"\0" in value:
            return None
        name = name.lower()
        if name == b"content-length":
            digits = value.strip(b" \t")
            if length >= 0 or not digits.isdigit() or len(digits) > 10:
                return None
            length = int(digits)
        elif name == b"host":
            if host is not None:
                return None
            host = value.strip(b" \t")
        elif name in _NOT_PLAIN or (
            name == b"connection" and value.strip(b" \t").lower() != b"keep-alive"
        ):
            return None
    # Without a length there is no body, and an answer of its own.
    return Plain(server, target[2].decode("ascii"), length, host) if length > 0 else None


class Front:
    """Answers plain requests for the servers of one site."""

    log = Logger()

    def __init__(self, servers: Iterable[Server], gate: Gate) -> None:
        self._gate = gate
        self._servers = {
            f"{server.settings.base_uri}/message".encode("ascii"): server for server in servers
        }
        self._second = 0
        self._dated = b""
        self._accepted = b""

    def recognise(self, head: bytes, loopback: int | None = None) -> Plain | None:
        """
        The head of a plain request, or None; `loopback` is the port of the
        listener, if it is on loopback.
        """
        plain = read_head(head, self._servers)
        if plain is not None and not self._gate.allows_host(plain.host, loopback):
            return None
        return plain

    def answer(self, request: Plain, body: bytes) -> bytes:
        """Let the server decide about the message; the whole answer, as bytes."""
        now = int(time())
        if now != self._second:
            self._second = now
            self._dated = b"Server: %b\r\nDate: %b\r\n" % (version, datetimeToString(now))
            self._accepted = b"%b%bContent-Length: 0%b" % (_status(202), self._dated, _END)
        try:
            request.server.receive(request.ident, body)
        except Refused as refusal:
            return self._refused(refusal)
        except Exception:
            self.log.failure("a request failed")
            return self._refused(InternalError.of_ours())
        return self._accepted

    def _refused(self, refusal: Refused) -> bytes:
        body = refusal.body()
        fields = b"".join(b"%b: %b\r\n" % field for field in refusal.headers())
        return b"%b%b%bContent-Length: %d%b%b" % (
            _status(refusal.status),
            self._dated,
            fields,
            len(body),
            _END,
            body,
        )


def _status(code: int) -> bytes:
    return b"HTTP/1.1 %d %b\r\n" % (code, phrase(code))
