"""
Handles output of a server that is not one message on a line (MCP,
basic/transports, "stdio": "The server MUST NOT write anything to its stdout
that is not a valid MCP message", and messages have no newlines within).

Knows lines, JSON and the usual mistakes; must not know processes.  Whoever
reads stdout passes on the lines that are plainly messages, and gives the rest
to a `MalformedOutput`, which names the mistake in words that help to fix it.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

import msgspec

from mcpbridge.jsonrpc.envelope import Envelope, JsonRpcId, is_json, peek, peek_again, split_batch
from mcpbridge.jsonrpc.members import members
from mcpbridge.jsonrpc.oversized import END_BYTES, Oversized

#: How many bytes of a message over several lines are kept; of a longer one only its ends.
JOINED_BYTES = 256 * 1024

MaybeId = JsonRpcId | msgspec.UnsetType

_decode_ident = msgspec.json.Decoder(str | int | float).decode

_BOM = b"\xef\xbb\xbf"
#: The beginning of a message in UTF-16, with a byte order mark or without.
_UTF16 = re.compile(rb"(?:\xff\xfe)?{\x00[ \t\r\"]\x00|(?:\xfe\xff)?\x00{\x00[ \t\r\"]")
_LENGTH = re.compile(rb"(?i)content-length:[ \t]*([1-9][0-9]{0,8})[ \t]*")
_TYPE = re.compile(rb"(?i)content-type:.*")
#: The beginning of a line that may be the first of a message over several lines.
_OPENS = re.compile(rb"[ \t]*[{\[][ \t\r]*(?:[\"{\[]|\Z)")
_ESCAPES = re.compile(rb"\\.")
#: A string, or the beginning of one: if that did not match, the search would be quadratic.
_STRINGS = re.compile(rb'"[^"]*"?')

_HEADERS = (
    "the server puts Content-Length headers before its messages, as language servers do; on"
    " MCP's stdio transport each message is one line of JSON, without headers"
)
_SEVERAL = (
    "the server wrote a message over several lines; on MCP's stdio transport each message is"
    " one line: write JSON without indentation"
)
_MARKED = (
    "the server wrote a byte order mark before a message; the mark is skipped, but MCP wants"
    " UTF-8 without one"
)
_TEXT = (
    "the server wrote something other than JSON to stdout, which is for messages alone; it is"
    " treated as stderr, where logs belong"
)
UTF16 = "the backend writes UTF-16; MCP's stdio transport is UTF-8"
#: How much of a parser's error is shown, in characters.
_PROBLEM_CHARS = 200
_RESPONSE_MEMBERS = frozenset({"jsonrpc", "id", "result", "error"})


class Lost(NamedTuple):
    """
    A message of the server that cannot pass; `fault` is the kind of mistake,
    and `why` explains it.

    `ident` is its id, if that is known.  Where it is not `certain` that it
    was meant as a message (it may be a copy for people, in a log), only a
    response has one.
    """

    fault: str
    why: str
    ident: MaybeId = msgspec.UNSET
    #: Whether it is a request or a notification, not a response.
    has_method: bool = False
    certain: bool = False


class Receiver(Protocol):
    """Receives a server's output: the part of `IBackendReceiver` that is needed here."""

    def messages_received(self, lines: list[bytes]) -> None:
        """Take messages."""

    def message_lost(self, lost: Lost) -> None:
        """Take note of a message that cannot pass."""

    def diagnostics_received(self, lines: list[bytes]) -> None:
        """Take lines of text."""

    def misbehaved(self, fault: str, what: str, line: bytes) -> None:
        """Report a mistake that keeps nothing from passing; `line` is an example of it."""


def is_message(line: bytes) -> bool:
    """Tell whether a line is a JSON object or array, unlike `[INFO] ready`."""
    first = line.lstrip()[:1]
    if first not in (b"{", b"["):
        return False
    return is_json(line) or peek_again(line) is not None or split_batch(line) is not None


def too_large(message: Oversized) -> Lost:
    """Return what is lost with a message of more than `max_message_bytes`."""
    why = (
        f"the server wrote a message of {message.size} bytes, more than the bridge takes"
        " (max_message_bytes)"
    )
    return Lost("oversized", why, message.ident, message.has_method, certain=True)


def unreadable(line: bytes) -> Lost:
    """
    Return what is lost with an object, or what looks like one, that is no
    JSON-RPC message.  Its text is not shown, as it may contain a client's data.
    """
    outer = members(line)
    try:
        msgspec.json.decode(line, type=Envelope)
        problem = "it is neither a request nor a notification nor a response"
    except msgspec.ValidationError as error:
        # The parser's error about another `jsonrpc` would show its value.
        problem = '`jsonrpc` is not "2.0"' if str(error).endswith("`$.jsonrpc`") else str(error)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        problem = str(error)
    problem = problem[:_PROBLEM_CHARS]
    why = f"the server wrote an object that is not a JSON-RPC message: {problem}"
    if outer is None:
        # Another object may follow on the line, whose end would be taken for that of this one.
        glued = "trailing characters" in problem
        ends = Oversized(line[:END_BYTES], line[-END_BYTES:], len(line))
        return Lost("invalid", why, msgspec.UNSET if glued else _ident_of_answer(ends))
    # Some log as JSON, and an `id` there may mean anything.
    is_rpc = "jsonrpc" in outer and ("result" in outer or "error" in outer)
    is_answer = "method" not in outer and (is_rpc or _RESPONSE_MEMBERS.issuperset(outer))
    return Lost("invalid", why, _ident(outer.get("id")) if is_answer else msgspec.UNSET)


class MalformedOutput:
    """
    Takes the lines that are not plainly messages, in order.

    Text goes to the receiver's `diagnostics_received`, up to `cut` bytes of a
    line and with the prefix `stdout: `.  What may be a message is not shown,
    as the content of messages does not belong into a log.
    """

    def __init__(self, receiver: Receiver, cut: int) -> None:
        self._receiver = receiver
        self._cut = cut
        self._joined: _Joined | None = None
        self._header = b""
        #: The size of the message that a header has announced, which has no line end; 0: none.
        self.body_size = 0
        #: Whether the server writes UTF-16, so that nothing can be read.
        self.is_utf16 = False

    @property
    def is_within(self) -> bool:
        """Whether the next line may belong to the last one, even if it looks like a message."""
        return self._joined is not None or self.body_size > 0

    def take(self, lines: list[bytes]) -> None:
        """Take the next lines, none of which is blank."""
        messages: list[bytes] = []
        for line in map(self._without_mark, lines):
            if self.body_size:
                line = self._behind_header(line)
            if not line:
                continue
            # Inside of what may be a message over several lines, an object is a part of it.
            if is_message(line) if self._joined is None else _is_whole(line):
                self._end_joined()
                messages.append(line)
                continue
            self._pass(messages)
            messages = []
            self._take(line)
        self._pass(messages)

    def take_body(self, *begun: bytes) -> int:
        """
        Take the message that a header has announced, if it is there.

        `begun` are the possible messages: the first `body_size` bytes of an
        unfinished line, and all of it, as the header may be wrong.  Return
        the size of the message, 0 where none of them is one.
        """
        for body in begun:
            envelope = _envelope(body)
            if envelope is not None:
                self._header, self.body_size = b"", 0
                has_method = envelope.method is not msgspec.UNSET
                lost = Lost("headers", _HEADERS, envelope.id, has_method, certain=True)
                self._receiver.message_lost(lost)
                return len(body)
        return 0

    def waited(self) -> None:
        """
        Give up a message over several lines, as nothing has come for a while:
        its end may never come, because of a line end within a string.
        """
        if self._joined is not None:
            self._lose(self._joined)

    def finish(self) -> None:
        """End the output: what was kept because of what might follow is text."""
        self._end_header()
        self._end_joined()

    def _without_mark(self, line: bytes) -> bytes:
        if not line.startswith(_BOM):
            return line
        self._receiver.misbehaved("bom", _MARKED, b"")
        return line.removeprefix(_BOM).strip()

    def _pass(self, messages: list[bytes]) -> None:
        if messages:
            self._receiver.messages_received(messages)

    def _take(self, line: bytes) -> None:
        if (length := _LENGTH.fullmatch(line)) is not None:
            self._header, self.body_size = line, int(length[1])
        elif _UTF16.match(line):
            self.is_utf16 = True
            self._receiver.misbehaved("utf-16", UTF16, b"")
        elif self._joined is None and _is_object(line) and b'"jsonrpc"' in _ends(line):
            self._receiver.message_lost(unreadable(line))
        else:
            self._join(line)

    # Messages with headers.

    def _behind_header(self, line: bytes) -> bytes:
        """Return the part of a line behind a header that is still to be looked at."""
        if _TYPE.fullmatch(line):
            return b""
        # A message with a line end of its own is correct, and the header is text.
        rest = line[self.body_size :].strip()
        if rest and self.take_body(line[: self.body_size]):
            # The next header, which is not on a line of its own.
            return rest
        self._end_header()
        return line

    def _end_header(self) -> None:
        header, self._header, self.body_size = self._header, b"", 0
        if header:
            self._text([header])

    # Messages over several lines.

    def _join(self, line: bytes) -> None:
        """Keep a line that may be part of a message over several lines; any other one is text."""
        joined = self._joined
        if joined is not None:
            joined.add(line)
        elif _OPENS.match(line) or (line.lstrip()[:1] == b"{" and b"jsonrpc" in _ends(line)):
            joined = self._joined = _Joined(line)
        else:
            self._text([line])
            return
        if joined.depth > 0 and not joined.is_large_text:
            return
        whole = joined.messages()
        if whole is None:
            self._end_joined()
        else:
            self._joined = None
            for ident in [] if joined.reported else whole:
                self._receiver.message_lost(Lost("lines", _SEVERAL, ident))

    def _end_joined(self) -> None:
        joined, self._joined = self._joined, None
        if joined is not None:
            self._lose(joined)
            if not joined.reported:
                self._text(joined.lines)

    def _lose(self, joined: _Joined) -> None:
        """Report the response that these lines are, if they show which request it answers."""
        ident = msgspec.UNSET if joined.reported else joined.answered()
        if ident is not msgspec.UNSET:
            joined.reported = True
            self._receiver.message_lost(Lost("lines", _SEVERAL, ident))

    def _text(self, lines: list[bytes]) -> None:
        if any(b"jsonrpc" in _ends(line) for line in lines):
            size = sum(map(len, lines))
            lines = [b"(%d bytes that name jsonrpc are not shown)" % size]
        self._receiver.diagnostics_received([b"stdout: " + line[: self._cut] for line in lines])
        self._receiver.misbehaved("text", _TEXT, lines[0])


class _Joined:
    """Lines that may be one message together; the first `JOINED_BYTES` are kept."""

    def __init__(self, first: bytes) -> None:
        #: How many objects and arrays are open.
        self.depth = 0
        #: Whether they were reported as lost.
        self.reported = False
        self.lines: list[bytes] = []
        self._size = 0
        self._head = self._tail = b""
        self.add(first)

    def add(self, line: bytes) -> None:
        """Add a line.  A string never goes on in the next line."""
        bare = _STRINGS.sub(b"", _ESCAPES.sub(b"", line))
        self.depth += bare.count(b"{") + bare.count(b"[") - bare.count(b"}") - bare.count(b"]")
        left = JOINED_BYTES - self._size
        self._size += len(line) + 1
        if left > 0:
            self.lines.append(line[:left])
        if len(self._head) < END_BYTES:
            self._head += line[: END_BYTES - len(self._head)] + b" "
        self._tail = (self._tail + b" " + line[-END_BYTES:])[-END_BYTES:]

    @property
    def is_large_text(self) -> bool:
        """Whether they are too large, and do not begin like a message."""
        return self._size > JOINED_BYTES and b'"jsonrpc"' not in self._head

    def answered(self) -> MaybeId:
        """Return the id of the request that they answer, if their ends show it."""
        return _ident_of_answer(Oversized(self._head, self._tail, self._size))

    def messages(self) -> list[MaybeId] | None:
        """
        Return the ids of the messages that they make, one or those of a
        batch, UNSET for what is no response; None where they make none.
        """
        whole = b" ".join(self.lines)
        if self._size <= JOINED_BYTES and (is_json(whole) or peek_again(whole) is not None):
            envelopes = list(map(_envelope, split_batch(whole) or [whole]))
            found = [each for each in envelopes if each is not None]
            return [each.id if each.is_response else msgspec.UNSET for each in found] or None
        is_named = b'"jsonrpc"' in _ends(whole) or b'"jsonrpc"' in self._tail
        return [self.answered()] if is_named else None


def _is_object(line: bytes) -> bool:
    bare = line.strip()
    return bare.startswith(b"{") and bare.endswith(b"}")


def _is_whole(line: bytes) -> bool:
    """Tell whether a line is a message, or a batch, by itself."""
    return all(_envelope(each) is not None for each in split_batch(line) or [line])


def _ends(line: bytes) -> bytes:
    return line if len(line) <= 2 * END_BYTES else line[:END_BYTES] + line[-END_BYTES:]


def _envelope(line: bytes) -> Envelope | None:
    return peek(line) or peek_again(line)


def _ident(raw: msgspec.Raw | None) -> MaybeId:
    """Return an id that a client may have given; UNSET for anything else."""
    try:
        return msgspec.UNSET if raw is None else _decode_ident(raw)
    except (msgspec.MsgspecError, ValueError):
        return msgspec.UNSET


def _ident_of_answer(ends: Oversized) -> MaybeId:
    """Return the id of a message with these ends, if they show that it is a response."""
    both = ends.head + ends.tail
    is_answer = b'"jsonrpc"' in both and (b'"result"' in both or b'"error"' in both)
    return ends.answered if is_answer else msgspec.UNSET
