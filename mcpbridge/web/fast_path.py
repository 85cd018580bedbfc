"""
The fast path of a connection: requests that post a message, read from their
bytes without a request object.

A client that posts writes nearly the same head again and again, and all that
is wanted of it is a session and a length.  What is recognized here is exactly
what twisted.web would understand in the same way; anything else, and anything
in doubt, is left to it.  Knows the bytes of a request (RFC 9112); must not
decide about a message: that is for the server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from time import time
from typing import NamedTuple, cast

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import datetimeToString
from twisted.web.server import version

from mcpbridge.errors import InternalError, Refused
from mcpbridge.jsonrpc.envelope import read_message
from mcpbridge.mcp.header_validation import PARAM_PREFIX, Headers
from mcpbridge.mcp.modern_request import LISTEN, MODERN_PROTOCOL_VERSIONS, claims_modern
from mcpbridge.mcp.revisions import HANDSHAKE_PROTOCOL_VERSIONS
from mcpbridge.processes.caller import ANYBODY
from mcpbridge.server import Server
from mcpbridge.session.streamable import StreamableSession
from mcpbridge.web.pending_response import PendingConnection, PendingExchange, PendingStream
from mcpbridge.web.response import reason_phrase
from mcpbridge.web.stateless_http import PROXY_HEADERS, read_post, restated, status_of, work_on
from mcpbridge.web.transport_security import (
    BROWSER_FIELDS,
    PREFETCH_FIELDS,
    TransportSecurity,
    is_browser_agent,
)

#: A longer head, or one with more lines, is for twisted.web.
HEAD_BYTES = 8192
HEAD_LINES = 64

_END = b"\r\n\r\n"
_TARGET = re.compile(rb"POST ([!-~]+?)(?:\?sessionId=([0-9a-f-]{36}))? HTTP/1\.1")
_STREAM = re.compile(rb"GET ([!-~]+) HTTP/1\.1")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_IDENT = re.compile(rb"[0-9a-f-]{36}")
#: Fields that change what a request is, or whether it is answered: requests with
#: one of them are for twisted.web.  So is whatever a browser sends, which
#: `TransportSecurity` checks there.
_NOT_FAST = (
    frozenset({b"transfer-encoding", b"expect", b"upgrade", b"trailer", b"te", b"origin"})
    | BROWSER_FIELDS
    | PREFETCH_FIELDS
)
#: Fields that are read here, and may occur once.
_READ = frozenset(
    {
        b"content-length",
        b"host",
        b"connection",
        b"accept",
        b"content-type",
        b"mcp-session-id",
        b"mcp-protocol-version",
        b"mcp-method",
        b"mcp-name",
    }
)
#: Fields of which only the presence is read.
_PROXY = frozenset(name.encode("ascii") for name in PROXY_HEADERS)
_PARAM = PARAM_PREFIX.lower().encode("ascii")


class FastRequest(NamedTuple):
    """
    The head of a fast request; `streamable` if it is for `/mcp`.

    A request of 2026-07-28 has `headers` that its body must agree with, and no
    `ident` of a session.  `proxied` if a proxy has sent it.
    """

    server: Server
    ident: str
    length: int
    host: bytes | None
    streamable: bool
    headers: Headers | None = None
    proxied: bool = False


def read_head(head: bytes, servers: dict[bytes, tuple[Server, bool]]) -> FastRequest | None:
    """
    Read a head, without its last empty line; return None for one of twisted.web's.

    `servers` has a server for each path to post to, byte for byte, and whether
    the path is that of Streamable HTTP.
    """
    if len(head) > HEAD_BYTES:
        return None
    first, *lines = head.split(b"\r\n")
    target = _TARGET.fullmatch(first)
    if target is None:
        return None
    server, streamable = servers.get(target[1], (None, False))
    fields = _read_fields(lines)
    if server is None or fields is None:
        return None
    digits = fields.get(b"content-length", b"")
    # Without a length there is no body, and twisted.web has a response for that.
    if not digits.isdigit() or len(digits) > 10 or int(digits) == 0:
        return None
    if fields.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    if streamable and (target[2] is not None or not _may_post(fields)):
        return None
    host = fields.get(b"host")
    version = fields.get(b"mcp-protocol-version", b"2025-11-25").decode("latin-1")
    if streamable and version in MODERN_PROTOCOL_VERSIONS:
        if b"mcp-session-id" in fields:
            return None
        # With `json_response` some messages are not for the client; filters and
        # observers that are told of the caller are told of all headers.
        if server.settings.json_response or server.tells_callers:
            return None
        proxied = not _PROXY.isdisjoint(fields)
        return FastRequest(server, "", int(digits), host, streamable, _headers(fields), proxied)
    ident = fields.get(b"mcp-session-id", b"") if streamable else target[2]
    if ident is None or not _IDENT.fullmatch(ident):
        return None
    if streamable and version not in HANDSHAKE_PROTOCOL_VERSIONS:
        return None
    return FastRequest(server, ident.decode("ascii"), int(digits), host, streamable)


def _read_fields(lines: list[bytes]) -> dict[bytes, bytes] | None:
    """Return the fields that are read here; None if one is for twisted.web."""
    if len(lines) > HEAD_LINES:
        return None
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name):
            return None
        if b"\n" in value or b"\r" in value or b"\0" in value:
            return None
        name = name.lower()
        if name in _NOT_FAST or name in fields:
            return None
        if name == b"user-agent" and is_browser_agent(value):
            return None
        if name in _READ or name in _PROXY or name.startswith(_PARAM):
            fields[name] = value.strip(b" \t")
    return fields


def _may_post(fields: dict[bytes, bytes]) -> bool:
    """Tell whether the endpoint accepts the usual headers of a POST; in doubt not."""
    accepted = {part.strip(b" \t") for part in fields.get(b"accept", b"").split(b",")}
    return (
        accepted >= {b"application/json", b"text/event-stream"}
        and fields.get(b"content-type", b"").lower() == b"application/json"
    )


def _headers(fields: dict[bytes, bytes]) -> Headers:
    def get(name: str) -> list[str]:
        value = fields.get(name.lower().encode("latin-1"))
        return [] if value is None else [value.decode("latin-1")]

    return get


class NotFastAfterAll(Exception):
    """Raised for a message that is for twisted.web: a batch, `initialize`, a large one."""


class FastPath:
    """Answers fast requests for the servers of one site."""

    log = Logger()

    def __init__(self, servers: Sequence[Server], security: TransportSecurity) -> None:
        self._security = security
        self._servers = {
            f"{server.settings.base_uri}/{name}{slash}".encode("ascii"): (server, name == "mcp")
            for server in servers
            for name in ("message", "mcp")
            for slash in ("", "/")
        }
        self._streams = {
            f"{server.settings.base_uri}/sse{slash}".encode("ascii"): server
            for server in servers
            for slash in ("", "/")
        }
        self._second = 0
        self._server_fields = b""
        self._accepted = b""

    def recognise(self, head: bytes, loopback: int | None = None) -> FastRequest | None:
        """
        Read the head of a fast request; return None for one of twisted.web's.

        `loopback` is the port of the listener, if it is on loopback.
        """
        fast_request = read_head(head, self._servers)
        if fast_request is not None and not self._security.allows_host(fast_request.host, loopback):
            return None
        return fast_request

    def refuse_stream(
        self, head: bytes, loopback: int | None, client: Callable[[], str | None] = lambda: None
    ) -> bytes | None:
        """
        Return the refusal of `GET /sse` if its server can open no session now;
        None for other requests, and if it can.

        Under a flood of clients a refusal is to cost little.  `client` returns
        the address whose share counts for the request.
        """
        first, *lines = head.split(b"\r\n")
        target = _STREAM.fullmatch(first)
        server = self._streams.get(target[1]) if target is not None else None
        if server is None or len(head) > HEAD_BYTES:
            return None
        refusal = server.refusal(client)
        if refusal is None:
            return None
        fields = _read_fields(lines)
        if fields is None or b"content-length" in fields:
            return None
        if fields.get(b"connection", b"keep-alive").lower() != b"keep-alive":
            return None
        if not self._security.allows_host(fields.get(b"host"), loopback):
            return None
        server.pool.log_refusal()
        return self._error_response(refusal)

    def answer(self, request: FastRequest, body: bytes) -> bytes:
        """
        Let the server decide about a message to `/message`; return the whole
        response.  Raises `NotFastAfterAll` if that takes longer.
        """
        self._update_head()
        try:
            received = request.server.receive(request.ident, body)
        except Exception as error:
            return self._failure(error)
        if not received:
            raise NotFastAfterAll
        return self._accepted

    def post(
        self, request: FastRequest, body: bytes, connection: PendingConnection
    ) -> bytes | PendingStream | PendingExchange:
        """
        Let the server decide about a message to `/mcp`.  Return the whole
        response, or a pending one: an exchange is to be begun by the caller.
        Raises `NotFastAfterAll`.
        """
        if request.headers is not None:
            return self._post_modern(request, request.headers, body, connection)
        self._update_head()
        if claims_modern(body):
            raise NotFastAfterAll
        made: list[PendingStream] = []
        try:
            streamable = cast(
                "StreamableSession", request.server.find_streamable(request.ident).sink
            )
            request.server.check_size(body)
            line, envelope = read_message(body)
            if envelope is None or envelope.method == "initialize":
                raise NotFastAfterAll

            def make_response() -> PendingStream:
                made.append(PendingStream(streamable, connection, self))
                return made[0]

            stream = streamable.receive([(line, envelope)], make_response)
        except NotFastAfterAll:
            raise
        except Exception as error:
            return self._failure(error)
        if stream is None:
            return self._accepted
        made[0].stream = stream
        return made[0]

    def _post_modern(
        self, request: FastRequest, headers: Headers, body: bytes, connection: PendingConnection
    ) -> bytes | PendingExchange:
        """Make an exchange of a request of 2026-07-28, most of which have one message as answer."""
        try:
            asked = read_post(request.server, body, headers)
        except Refused as error:
            return self._error_response(error)
        if asked is None or asked.method == LISTEN:
            raise NotFastAfterAll
        work = partial(work_on, request.server, headers=headers)
        return PendingExchange(asked, ANYBODY, connection, self, work=work, proxied=request.proxied)

    # The bytes of responses; a `ResponseEncoder` for those that are pending.

    def json_response(self, line: bytes, status: int = 200) -> bytes:
        """Return a response that is one message."""
        self._update_head()
        head = self._json_head if status == 200 else _status_line(status) + self._json_fields
        return b"%b%d%b%b" % (head, len(line), _END, line)

    def exchange_response(self, line: bytes) -> bytes:
        """Return a response that is the answer of an exchange, with its status."""
        return self.json_response(line, status_of(line))

    def exchange_error(self, refusal: Refused) -> bytes:
        """Return a response that is an error of an exchange."""
        return self._error_response(restated(refusal))

    def _failure(self, error: Exception) -> bytes:
        if isinstance(error, Refused):
            return self._error_response(error)
        self.log.failure("a request failed", Failure(error))
        return self._error_response(InternalError.of_ours())

    def _error_response(self, refusal: Refused) -> bytes:
        self._update_head()
        body = refusal.body()
        fields = b"".join(b"%b: %b\r\n" % field for field in refusal.headers())
        return b"%b%b%bContent-Length: %d%b%b" % (
            _status_line(refusal.status),
            self._server_fields,
            fields,
            len(body),
            _END,
            body,
        )

    def _update_head(self) -> None:
        """Make the parts of heads that change with the second, which `Date` has."""
        now = int(time())
        if now != self._second:
            self._second = now
            self._server_fields = b"Server: %b\r\nDate: %b\r\n" % (version, datetimeToString(now))
            self._accepted = b"%b%bContent-Length: 0%b" % (
                _status_line(202),
                self._server_fields,
                _END,
            )
            self._json_fields = (
                b"%bContent-Type: application/json\r\nContent-Length: " % self._server_fields
            )
            self._json_head = _status_line(200) + self._json_fields


def _status_line(code: int) -> bytes:
    return b"HTTP/1.1 %d %b\r\n" % (code, reason_phrase(code))
