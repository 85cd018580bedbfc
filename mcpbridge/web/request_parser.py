"""
The one parser of HTTP/1.1 requests (RFC 9112), on top of llhttp.

Knows the bytes of a request, and bounds on its head; must not know connections,
paths, or what is served.  It is strict: what may mean one thing to a proxy and
another thing here is malformed.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NoReturn

import httptools

from mcpbridge.config.tuning import SLICE_BYTES
from mcpbridge.errors import (
    HeadTooLarge,
    MalformedRequest,
    MethodNotAllowed,
    NotSupported,
    Refused,
)
from mcpbridge.jsonrpc.pieces import Pieces

#: The most bytes of a head: its target and its fields.  As many may come in a
#: row of a chunked body without any of its content: trailers, chunk extensions.
MAX_HEAD_BYTES = 16 * 1024
#: The most fields of a head.
MAX_HEAD_FIELDS = 500
#: The most digits of `Content-Length`: zeros may stand before it.
MAX_LENGTH_DIGITS = 64

#: The methods that a server has at all, at one path or another.
SERVED_METHODS = "DELETE, GET, OPTIONS, POST"
#: What a field's line has besides its name and its value.
_BETWEEN = b": \r\n"
#: How many names of fields are cached in lower case, so that heads share them.
KNOWN_NAMES = 512
_OWS = b" \t"
_END = b"\r\n\r\n"
#: Fields whose values may differ in each request of one client, without an effect on how its
#: head is parsed and recognized.
VARYING = (b"baggage", b"mcp-name", b"traceparent", b"tracestate")
#: The line of a head that has its length, or one of these fields.
_VARYING_LINE = re.compile(
    rb"(?i)\r\n(?:content-length:[ \t]*(?P<length>[0-9]{1,15})"
    rb"|(?P<name>%b):[ \t]*(?P<value>[!-~]+))(?=[ \t]*\r\n)" % b"|".join(VARYING)
)
_MCP = b"mcp-"
_NO_VALUES: list[str] = []
_VARYING_VALUE = re.compile(rb"[!-~]+")
#: A length with more digits is parsed by llhttp.
LENGTH_DIGITS = 15
_LENGTH = b"content-length"
_LENGTH_CHARS = len(_LENGTH)


_lower = lru_cache(KNOWN_NAMES)(bytes.lower)


class Head:
    """
    The head of a request, without `Content-Length`.

    `fields` are in their order, by name in lower case and without white space
    around the values.  `persistent` is False if the connection is to be closed
    after the response (RFC 9112, section 9.3).  Must not be changed: successive
    requests of a connection share one if theirs are the same.  Heads that differ
    only in the values of `VARYING` fields have the same `cache_key`, for what
    depends on none of these.
    """

    def __init__(self, method: bytes, target: bytes, fields: list[tuple[bytes, bytes]]) -> None:
        self.method = method
        self.target = target
        self.version = b"HTTP/1.1"
        self.fields = fields
        self.persistent = True
        self.chunked = False
        self.expects_continue = False
        self.cache_key = object()
        #: The values of MCP's own fields as text, by name; None until they are asked for.
        self._mcp_values: dict[str, list[str]] | None = None

    def mcp_values(self, name: str) -> list[str]:
        """Return the values of a field whose name begins with `Mcp-`, in any case, as text."""
        found = self._mcp_values
        if found is None:
            found = self._mcp_values = {}
            for each, value in self.fields:
                if each.startswith(_MCP):
                    values = found.setdefault(each.decode("latin-1"), [])
                    values.append(value.decode("latin-1"))
        return found.get(name.lower(), _NO_VALUES)

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of a field, by its name in lower case."""
        return [value for each, value in self.fields if each == name]

    def text_values(self, name: str) -> list[str]:
        """Return the same as text."""
        return [value.decode("latin-1") for value in self.values(name.encode("ascii"))]


#: That of a request whose head is malformed.
NO_HEAD = Head(b"", b"", [])


class ReceivedRequest:
    """
    A request that is complete, or of which the head and perhaps a part of the body has come.

    `content_length` is the value of that field, None without one.  `refusal` is
    set if it is not to be served, but answered with that; then it has no body.
    """

    refusal: Refused | None = None
    #: The pieces of a body that has come in several.
    _pieces: Pieces | None = None
    _body = b""
    #: How many bytes of the body have arrived.
    arrived = 0
    #: How many of them count against a budget, and whose share they are.
    counted = 0
    sender: str | None = None
    #: Whether its client was asked for the body.
    continued = False
    #: Whether its client was found to be one who may send a large body.
    sender_checked = False

    def __init__(self, head: Head, content_length: bytes | None = None) -> None:
        self.head = head
        self.content_length = content_length

    @property
    def body(self) -> bytes:
        """The body, as far as it has arrived."""
        if self._pieces is not None:
            self._body = self._pieces.join()
            self._pieces = None
        return self._body

    def add(self, piece: bytes) -> None:
        """Append to the body."""
        if not self.arrived:
            self._body = piece
        else:
            if self._pieces is None:
                self._pieces = Pieces()
                self._pieces.add(self._body)
                self._body = b""
            self._pieces.add(piece)
        self.arrived += len(piece)

    def drop_body(self) -> None:
        """Let go of the body."""
        self._body, self._pieces = b"", None


class _Stop(Exception):
    """Raised to make llhttp parse nothing more."""


class RequestParser:
    """
    Parses what a connection receives: `feed` it, and take requests from `ready`.

    One piece of data may have several requests.  Where one is malformed it is
    the last: `ready` has it with its `refusal`, and what is fed after it is
    ignored, as it is after a request with `Connection: close` (`closed`).

    A client sends nearly the same head again and again.  One whose bytes are
    those of an earlier one, but for the digits of `Content-Length` and the
    values of `VARYING` fields, is not parsed again.
    """

    __slots__ = (
        "_begun",
        "_fields",
        "_fresh",
        "_in_head",
        "_known_head",
        "_known_pieces",
        "_known_places",
        "_length",
        "_missing",
        "_parser",
        "_silent",
        "_stopped",
        "_target",
        "_upgrading",
        "_why",
        "closed",
        "ready",
        "receiving",
    )

    def __init__(self) -> None:
        #: The requests that are complete, in order: a few, as little is fed at once.
        self.ready: list[ReceivedRequest] = []
        #: The request whose head has come, and whose body has not.
        self.receiving: ReceivedRequest | None = None
        #: Whether no request follows any more.
        self.closed = False
        #: Whether anything has come of a request that is not complete; whether its
        #: first byte came with the last piece of data.
        self._begun = self._fresh = False
        #: Bytes of a head, and of a body since its last content, without the first piece.
        self._in_head = self._silent = 0
        self._upgrading = False
        # Of the head that is being received.
        self._target = b""
        self._length: bytes | None = None
        self._fields: list[tuple[bytes, bytes]] = []
        #: The last head that was parsed, if it has a length; its bytes before, between and
        #: after the values that may differ; and for each of these values the index of its
        #: field in `Head.fields`, or None for the length.
        self._known_head = NO_HEAD
        self._known_pieces: list[bytes] = []
        self._known_places: list[int | None] = []
        #: How much is missing of the body behind such a head.
        self._missing = 0
        #: None while that is enough.
        self._parser: Any = None
        #: Whether a callback has stopped llhttp, and what is wrong with the request, if anything.
        self._stopped = False
        self._why: Refused | None = None

    @property
    def has_begun(self) -> bool:
        """Whether anything has come of a request that is not complete."""
        return self._begun or self._in_head > 0

    @property
    def slice_size(self) -> int:
        """How many bytes to feed at once, so that parsing them takes little time."""
        receiving = self.receiving
        if receiving is None or receiving.content_length is None:
            return SLICE_BYTES
        return max(SLICE_BYTES, int(receiving.content_length) - receiving.arrived)

    def feed(self, data: bytes) -> None:
        """Parse what has been received; does not raise for what is wrong with it."""
        if self._missing:
            data = self._take_body(data)
        while data and not self._begun and not self.closed:
            rest = self._take_known(data)
            if rest is None:
                break
            data = rest
        if data and not self.closed:
            self._parse(data)

    def _take_known(self, data: bytes) -> bytes | None:
        """
        Take a request that begins with the bytes of a known head, or as much of
        it as has come; return what is behind it, and None for other data.
        """
        pieces = self._known_pieces
        if not pieces or not data.startswith(pieces[0]):
            return None
        known = self._known_head.fields
        fields, length = known, b""
        begin = len(pieces[0])
        for number, place in enumerate(self._known_places, 1):
            end = data.find(pieces[number], begin)
            if end < 0:
                return None
            text = data[begin:end]
            begin = end + len(pieces[number])
            if place is None:
                if not text.isdigit() or len(text) > LENGTH_DIGITS:
                    return None
                length = text
            elif text != known[place][1]:
                if not _VARYING_VALUE.fullmatch(text):
                    return None
                fields = known.copy() if fields is known else fields
                fields[place] = known[place][0], text
        if fields is known:
            head = self._known_head
        elif begin <= MAX_HEAD_BYTES // 2:
            # Far below the limit on a head, so llhttp would not refuse it as too large.
            head = _varied(self._known_head, fields)
        else:
            return None
        self._parser = None
        self.receiving = ReceivedRequest(head, length)
        self._missing = int(length)
        self._begun = True
        # Empty lines may have come before it.
        self._in_head = 0
        return self._take_body(data[begin:])

    def _take_body(self, data: bytes) -> bytes:
        """Take what is missing of the body behind a known head; return the rest."""
        request = self.receiving
        assert request is not None
        missing = self._missing
        piece = data if len(data) <= missing else data[:missing]
        if piece:
            request.add(piece)
        self._missing = missing - len(piece)
        if not self._missing:
            self.receiving = None
            self._begun = False
            self.ready.append(request)
        return data[missing:]

    def _parse(self, data: bytes) -> None:
        parser = self._parser
        if parser is None:
            parser = self._parser = httptools.HttpRequestParser(self)
        begun, complete = self._begun, len(self.ready)
        upgraded_at = -1
        self._stopped, self._why = False, None
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            upgraded_at = upgrade.args[0]
        except httptools.HttpParserInvalidMethodError:
            # Not 501: clients and scanners know what to make of 405.
            self._why = MethodNotAllowed("the method is not one of HTTP", SERVED_METHODS)
        except httptools.HttpParserCallbackError:
            # Not by its context, which may be an exception that is being handled elsewhere.
            if not self._stopped:
                raise
        except httptools.HttpParserError as error:
            self._why = MalformedRequest(f"the request is not valid HTTP/1.1: {error}")
        if self._why is not None:
            self._refuse_malformed(self._why)
        elif upgraded_at >= 0:
            self._ignore_upgrade(data[upgraded_at:])
        elif not self.closed:
            if not begun:
                self._know(data)
            if self._begun or len(self.ready) == complete:
                self._count(len(data))

    def _know(self, data: bytes) -> None:
        """Remember the bytes of a head with which data begins, if they are all of its heads."""
        request = self.receiving or (self.ready[-1] if self.ready else None)
        end = data.find(_END) + len(_END)
        if request is None or end < len(_END) or not request.head.persistent:
            return
        lines = list(_VARYING_LINE.finditer(data, 0, end - 2))
        length = next((each["length"] for each in lines if each["length"]), None)
        if length is None or len(data) - end > int(length):
            return
        pieces: list[bytes] = []
        places: list[int | None] = []
        begin = after = 0
        for line in lines:
            place = None
            if line["name"]:
                # A field may be repeated: lines and `fields` are in the same order.
                place = request.head.fields.index((line["name"].lower(), line["value"]), after)
                after = place + 1
            pieces.append(data[begin : line.start("length" if place is None else "value")])
            places.append(place)
            begin = line.end()
        self._known_head = request.head
        self._known_pieces, self._known_places = [*pieces, data[begin:end]], places

    def _count(self, size: int) -> None:
        """Bound what comes of a head, and of a chunked body without content."""
        if self._fresh:
            self._fresh = False
        elif self.receiving is None:
            # Also empty lines, which may come before a request.
            self._in_head += size
            if self._in_head > MAX_HEAD_BYTES:
                self._refuse_malformed(_head_too_large())
        else:
            self._silent += size
            if self._silent > MAX_HEAD_BYTES and self.receiving.head.chunked:
                self._refuse_malformed(HeadTooLarge(f"trailers may have {MAX_HEAD_BYTES} bytes"))

    def close(self) -> None:
        """Take no more requests, and drop those that are not served."""
        self.closed = True
        self.receiving = self._parser = None
        self._begun, self._missing, self._in_head = False, 0, 0
        self.ready.clear()

    def refuse(self, refusal: Refused) -> None:
        """Make the request that is arriving the last one, and this its answer."""
        request = self.receiving or ReceivedRequest(NO_HEAD)
        request.drop_body()
        request.refusal = refusal
        self.ready.append(request)
        self.receiving = self._parser = None
        self._begun, self._missing, self._in_head = False, 0, 0
        self.closed = True

    def _refuse_malformed(self, refusal: Refused) -> None:
        """Do the same, and leave nothing of a request that anybody could act on."""
        if self.receiving is not None:
            self.receiving.head = NO_HEAD
        self.refuse(refusal)

    def _ignore_upgrade(self, rest: bytes) -> None:
        """
        Parse a request that asks for another protocol as if it did not.

        A server may ignore `Upgrade` (RFC 9110, section 7.8), and Java's HTTP
        client sends it with every first request.  But for llhttp the rest of
        the connection is then not HTTP, not even the request's own body.
        """
        self._upgrading = False
        method, version = self._parser.get_method(), self._parser.get_http_version()
        if method == b"CONNECT":
            self._refuse_malformed(NotSupported("CONNECT is not supported: this is no proxy"))
            return
        fields = [each for each in self._fields if each[0].lower() != b"upgrade"]
        if self._length is not None:
            fields.append((_LENGTH, self._length))
        lines = b"".join(b"%b: %b\r\n" % field for field in fields)
        line = b"%b %b HTTP/%b\r\n" % (method, self._target, version.encode("ascii"))
        self._parser = None
        self.feed(b"%b%b\r\n%b" % (line, lines, rest))

    # Called by llhttp.

    def on_message_begin(self) -> None:
        """Begin a request."""
        self._begun = self._fresh = True
        self._in_head = 0
        self._target, self._length, self._fields = b"", None, []

    def on_url(self, url: bytes) -> None:
        """Take the target of the request, or a part of it."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head, or a trailer, which is dropped."""
        if len(name) == _LENGTH_CHARS and name.lower() == _LENGTH:
            self._length = value
        else:
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Check the head."""
        if self._parser.should_upgrade():
            self._upgrading = True
            return
        length = None if self._length is None else self._length.strip(_OWS)
        head = self._read_head()
        if isinstance(head, Refused):
            self._stop(head)
        elif length is not None and len(length) > MAX_LENGTH_DIGITS:
            self._stop(MalformedRequest(f"a length may have {MAX_LENGTH_DIGITS} digits"))
        self.receiving = ReceivedRequest(head, length)
        # Trailers may follow.
        self._fields = []
        self._silent = 0

    def _stop(self, why: Refused | None = None) -> NoReturn:
        """Make llhttp parse nothing more, as there is something wrong with a request."""
        self._stopped, self._why = True, why
        raise _Stop

    def _read_head(self) -> Head | Refused:
        """Return the head that has been received, or what is wrong with it."""
        parser, target = self._parser, self._target
        fields = [(_lower(name), value.strip(_OWS)) for name, value in self._fields]
        if len(fields) > MAX_HEAD_FIELDS:
            return HeadTooLarge(f"a request may have {MAX_HEAD_FIELDS} header fields")
        size = sum(len(name) + len(value) + len(_BETWEEN) for name, value in fields)
        if len(target) + size > MAX_HEAD_BYTES:
            return _head_too_large()
        head = Head(parser.get_method(), target, fields)
        version = parser.get_http_version()
        if version == "1.1":
            head.persistent = parser.should_keep_alive()
        elif version == "1.0":
            head.version = b"HTTP/1.0"
            head.persistent = False
        else:
            return MalformedRequest("the version of the request is not HTTP/1.1 or HTTP/1.0")
        for name, value in fields:
            if name == b"transfer-encoding":
                if version == "1.0" or value.lower() != b"chunked":
                    return NotSupported("the only Transfer-Encoding that is supported is chunked")
                head.chunked = True
            elif name == b"expect" and value.lower() == b"100-continue":
                head.expects_continue = version == "1.1"
        return head

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._silent = 0
        request = self.receiving
        if request is not None:
            request.add(body)

    def on_message_complete(self) -> None:
        """Put a complete request where it is taken from."""
        request = self.receiving
        if request is None or self._upgrading:
            return
        self.receiving = None
        self._begun = self._fresh = False
        self.ready.append(request)
        if not request.head.persistent:
            self.closed = True
            self._stop()


def _varied(known: Head, fields: list[tuple[bytes, bytes]]) -> Head:
    """Return a head that differs from a known one only in values of `VARYING` fields."""
    head = Head(known.method, known.target, fields)
    head.expects_continue = known.expects_continue
    head.cache_key = known.cache_key
    return head


def _head_too_large() -> HeadTooLarge:
    return HeadTooLarge(f"the head of a request may have {MAX_HEAD_BYTES} bytes")
