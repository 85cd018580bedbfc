"""
What a server writes to stdout that is no message on a line of its own (MCP,
basic/transports, "stdio": "The server MUST NOT write anything to its stdout
that is not a valid MCP message", and messages have no newlines within).

Knows lines, JSON and the usual mistakes; must not know processes.  Whoever
reads stdout passes what is plainly a message by itself, and gives the rest to
an `OddLines`, which says what is wrong in words that name the mistake.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

import msgspec

from mcpbridge.protocol.envelope import (
    Envelope,
    JsonRpcId,
    is_json,
    peek,
    peek_again,
    split_batch,
)
from mcpbridge.protocol.oversized import END_BYTES, Oversized

#: How much of a message over several lines is kept; of more, only its ends.
JOINED_BYTES = 256 * 1024

MaybeId = JsonRpcId | msgspec.UnsetType

_BOM = b"\xef\xbb\xbf"
#: How an object or an array begins in UTF-16, after a byte order mark or without.
_UTF16 = re.compile(rb"(?:\xff\xfe)?[{\[]\x00|(?:\xfe\xff)?\x00[{\[]")
_LENGTH = re.compile(rb"(?i)content-length:[ \t]*([0-9]{1,9})[ \t]*")
_TYPE = re.compile(rb"(?i)content-type:.*")
#: How a line begins that may be the first of a message over several lines.
_OPENS = re.compile(rb"[ \t]*[{\[][ \t\r]*(?:[\"{\[]|\Z)")
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')

_HEADERS = (
    "the server writes Content-Length headers before its messages, as language servers do;"
    " MCP's stdio transport has one message of JSON on a line, without headers"
)
_SEVERAL = (
    "the server writes a message over several lines; MCP's stdio transport has one message"
    " on a line: write JSON without indentation"
)
_MARKED = (
    "the server writes a byte order mark before a message; it is skipped, but MCP wants UTF-8"
    " without one"
)
_TEXT = (
    "the server writes to stdout what is no JSON; stdout is for messages alone, logs belong"
    " on stderr, where this is put"
)
UTF16 = "the backend writes UTF-16; MCP's stdio transport is UTF-8"


class Lost(NamedTuple):
    """
    A message of the server that cannot pass: `fault` is what kind of mistake
    that is, and `why` says it in words.  `ident` is its id where that is known.
    """

    fault: str
    why: str
    ident: MaybeId = msgspec.UNSET
    #: Whether it is a request or a notification.
    has_method: bool = False
    #: Whether it may have been no message at all.
    may_be_text: bool = False


class Receiver(Protocol):
    """Who reads a server: `IBackendReceiver`, as far as it is needed here."""

    def messages_received(self, lines: list[bytes]) -> None:
        """Messages."""

    def message_lost(self, lost: Lost) -> None:
        """A message that cannot pass."""

    def diagnostics_received(self, lines: list[bytes]) -> None:
        """Text."""

    def misbehaved(self, fault: str, what: str, line: bytes) -> None:
        """The server makes a mistake that keeps nothing from passing; `line` shows it."""


def is_message(line: bytes) -> bool:
    """Whether a line is JSON that may be a message: an object, or an array (not `[INFO] ready`)."""
    first = line.lstrip()[:1]
    return first in (b"{", b"[") and (is_json(line) or peek_again(line) is not None)


def unreadable(line: bytes) -> Lost:
    """
    What is wrong with a line of an object, or what looks like one, that is no
    JSON-RPC message.  Its text is not shown, as a client's data may be in it.
    """
    try:
        msgspec.json.decode(line, type=Envelope)
        problem = "it is no request, notification or response"
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        problem = str(error)
    why = f"the server wrote an object that is no JSON-RPC message: {problem}"
    ends = Oversized(line[:END_BYTES], line[-END_BYTES:], len(line))
    # Some log as JSON, and an `id` there may mean anything.
    if b'"jsonrpc"' not in ends.head and b'"jsonrpc"' not in ends.tail:
        return Lost("invalid", why, may_be_text=True)
    return Lost("invalid", why, ends.ident, ends.has_method, may_be_text=True)


class OddLines:
    """
    Lines that are not plainly messages, in order.

    Text of up to `cut` bytes a line goes to the receiver's
    `diagnostics_received`, behind `stdout: `.
    """

    def __init__(self, receiver: Receiver, cut: int) -> None:
        self._receiver = receiver
        self._cut = cut
        self._joined: _Joined | None = None
        self._header = b""
        #: How many bytes a header says its message has, which has no line end; 0: none.
        self.body_size = 0
        #: Whether nothing that comes can be read.
        self.is_utf16 = False

    @property
    def is_within(self) -> bool:
        """Whether the next line may belong to the last one, however plain it looks."""
        return self._joined is not None or self.body_size > 0

    def take(self, lines: list[bytes]) -> None:
        """The next lines; none of them is blank."""
        messages: list[bytes] = []
        for line in lines:
            if not self.is_within and is_message(line):
                messages.append(line)
                continue
            self._pass(messages)
            messages = []
            self._take(line)
        self._pass(messages)

    def _pass(self, messages: list[bytes]) -> None:
        if messages:
            self._receiver.messages_received(messages)

    def take_body(self, begun: bytes) -> bool:
        """
        Whether the first `body_size` bytes of an unfinished line are the
        message that a header has announced, which is done with then.  An
        object that is none shows that the header was text.
        """
        if not begun.startswith(b"{"):
            # Another header may come first.
            return False
        header, self._header, self.body_size = self._header, b"", 0
        envelope = _envelope(begun)
        if envelope is None:
            self._text([header])
            return False
        self._receiver.message_lost(Lost("headers", _HEADERS, *_known(envelope)))
        return True

    def _take(self, line: bytes) -> None:
        if line.startswith(_BOM):
            line = line.removeprefix(_BOM)
            self._receiver.misbehaved("bom", _MARKED, b"")
            if not line.strip():
                return
        if self.body_size and self._follows_header(line):
            return
        joined = self._joined
        if is_message(line) if joined is None else _envelope(line) is not None:
            self.finish()
            self._receiver.messages_received([line])
        elif _LENGTH.fullmatch(line):
            self._header = line
            self.body_size = int(_LENGTH.fullmatch(line)[1])  # type: ignore[index]
        elif _UTF16.match(line):
            self.is_utf16 = True
            self._receiver.misbehaved("utf-16", UTF16, b"")
        else:
            self._may_join(line)

    def _follows_header(self, line: bytes) -> bool:
        """Whether this line, which comes behind a header, is done with."""
        if _TYPE.fullmatch(line):
            return True
        body, rest = line[: self.body_size], line[self.body_size :]
        if rest and self.take_body(body):
            # The next header has no line of its own.
            self._take(rest)
            return True
        if self.body_size:
            # With a line end of its own a message is right, and the header is text.
            self._text([self._header])
            self._header, self.body_size = b"", 0
        return False

    def finish(self) -> None:
        """What was kept, as it might have been a message together with what follows, is text."""
        joined, self._joined = self._joined, None
        if joined is not None:
            self._text(joined.lines)

    def _may_join(self, line: bytes) -> None:
        """Text, unless it is a part of a message together with others."""
        if self._joined is not None:
            self._joined.add(line)
        elif _OPENS.match(line):
            self._joined = _Joined(line)
        else:
            self._text([line])
            return
        if self._joined.depth > 0:
            return
        messages = self._joined.messages()
        if not messages:
            self.finish()
        self._joined = None
        for ident, has_method in messages:
            self._receiver.message_lost(Lost("lines", _SEVERAL, ident, has_method))

    def _text(self, lines: list[bytes]) -> None:
        self._receiver.diagnostics_received([b"stdout: " + line[: self._cut] for line in lines])
        self._receiver.misbehaved("text", _TEXT, lines[0])


class _Joined:
    """Lines that may be one message together, the first `JOINED_BYTES` of them."""

    def __init__(self, first: bytes) -> None:
        #: How many objects and arrays are open.
        self.depth = 0
        self.lines: list[bytes] = []
        self._size = 0
        self._tail = b""
        self.add(first)

    def add(self, line: bytes) -> None:
        """One more of them.  A string never goes on in the next line."""
        bare = _STRINGS.sub(b"", line)
        self.depth += bare.count(b"{") + bare.count(b"[") - bare.count(b"}") - bare.count(b"]")
        self._size += len(line) + 1
        if self._size <= JOINED_BYTES:
            self.lines.append(line)
        else:
            self._tail = (self._tail + b" " + line[-END_BYTES:])[-END_BYTES:]

    def messages(self) -> list[tuple[MaybeId, bool]]:
        """
        What they are together: the messages of a batch, or one, or none; the
        id of each, and whether it has a method.
        """
        if self._size > JOINED_BYTES:
            ends = Oversized(b" ".join(self.lines)[:END_BYTES], self._tail, self._size)
            known = ends.ident is not msgspec.UNSET or ends.has_method
            return [(ends.ident, ends.has_method)] if known else []
        whole = b" ".join(self.lines)
        envelopes = map(_envelope, split_batch(whole) or [whole])
        return [_known(each) for each in envelopes if each is not None]


def _envelope(line: bytes) -> Envelope | None:
    return peek(line) or peek_again(line)


def _known(envelope: Envelope) -> tuple[MaybeId, bool]:
    return envelope.id, envelope.method is not msgspec.UNSET
