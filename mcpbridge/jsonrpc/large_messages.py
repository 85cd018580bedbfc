"""
Reads large messages of a client in slices: the few members that the bridge
needs, while everything that is only passed on stays bytes.

Knows JSON-RPC and where MCP keeps what a transport needs; must not know who
runs the slices.
"""

from __future__ import annotations

import re

import msgspec

from mcpbridge.errors import EmptyBody, NotJsonRpc, TooComplex
from mcpbridge.jsonrpc.envelope import (
    Envelope,
    check_element,
    check_id,
    has_null_id,
    one_line,
    peek,
    read_message,
)
from mcpbridge.jsonrpc.fragments import Span
from mcpbridge.jsonrpc.members import encode
from mcpbridge.jsonrpc.parsed_message import ParsedMessage
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES, SLICE_BYTES, Slices, elements, outline

#: The longest `id` or `method` of a large message, in bytes as they are written.
MAX_HEAD_BYTES = 16 * 1024

_SPACE = re.compile(rb"[ \t\r\n]*+")
#: The members of `params` that the functions of `envelope` look for.
_TOKENS = ("progressToken", "requestId", "name", "uri")


#: A message as the router takes it: its line, its envelope, its digest.
Message = tuple[bytes, Envelope, bytes]


def read_whole(body: bytes) -> tuple[bytes, Envelope] | None:
    """
    Read one message of a client of up to `WHOLE_BYTES` in one go; return it
    on one line, and its envelope.

    Return None for what `read_large` has to look at: an array, a lone
    surrogate, and everything that is no message.
    """
    envelope = peek(body)
    if envelope is None or not (envelope.method or envelope.is_response) or has_null_id(envelope):
        return None
    if not body.isascii():
        try:
            body.decode("utf-8")
        except UnicodeDecodeError:
            return None
    return one_line(body), envelope


def read_whole_later(body: bytes) -> Slices[tuple[bytes, Envelope] | None]:
    """Do the same, as one slice."""
    yield
    return read_whole(body)


def read_large(body: bytes, *, size: int = SLICE_BYTES) -> Slices[ParsedMessage | None]:
    """
    Check one large message of a client, as `read_message` does; return None
    for an array, of which nothing is read yet.

    Raise `EmptyBody`, `NotJson`, `NotJsonRpc`, and `TooComplex`.
    """
    text = body.strip(b"\r\n")
    at = _SPACE.match(text, 0, size).end()  # type: ignore[union-attr]
    first = text[at : at + 1]
    if not first.strip():
        if not text or text.isspace():
            raise EmptyBody("the body is empty; expected one JSON-RPC message")
    elif first == b"[":
        return None
    elif first in b'"-0123456789tfn':
        raise NotJsonRpc("the body is not a JSON-RPC 2.0 message: it is not an object")
    found = yield from outline(text, ("params", "_meta"), size=size)
    digest = _digest(text, found)
    _, envelope = read_message(digest)
    assert envelope is not None
    yield
    line = one_line(text)
    view = memoryview(line)
    outer, params, meta = (
        {name: msgspec.Raw(view[begin:end]) for name, (begin, end) in spans.items()}
        for spans in (*found, {}, {})[:3]
    )
    return ParsedMessage(
        line,
        digest,
        envelope,
        outer,
        params if len(found) > 1 else None,
        meta if len(found) > 2 else None,
    )


def read_array(
    body: bytes, most: int, *, messages: bool, size: int = SLICE_BYTES
) -> Slices[tuple[bytes, list[Span]]]:
    """
    Return an array on one line and its elements, of which there may be
    `most`; with `messages` they must be objects.  Raise what `elements` raises.
    """
    text = body.strip(b"\r\n")
    found = yield from elements(text, most, messages=messages, size=size)
    return one_line(text), found


def read_batch(body: bytes, most: int, *, size: int = SLICE_BYTES) -> Slices[list[Message]]:
    """
    Return the messages of a large batch (2025-03-26, basic, "Batching"), of
    which there may be `most`.

    Raise `NotJson`, `NotJsonRpc` and `TooComplex`.
    """
    line, spans = yield from read_array(body, most, messages=True, size=size)
    found: list[Message] = []
    for begin, end in spans:
        element = line[begin:end]
        digest = yield from _digest_of(element, size)
        found.append((element, check_element(peek(digest)), digest))
        yield
    return found


def read_foreign_batch(
    body: bytes, most: int, *, size: int = SLICE_BYTES
) -> Slices[tuple[bytes, int]]:
    """
    Return a large batch on one line, and how many elements it has.  These are
    for the server to judge, except for requests that nobody could answer.

    Raise what `read_batch` raises.
    """
    line, spans = yield from read_array(body, most, messages=False, size=size)
    for begin, end in spans:
        if line[begin : begin + 1] == b"{":
            check_id(peek((yield from _digest_of(line[begin:end], size))))
        yield
    return line, len(spans)


def _digest_of(element: bytes, size: int) -> Slices[bytes]:
    """Return an element of a batch, or the digest of a large one."""
    if len(element) <= LARGE_BYTES:
        return element
    return _digest(element, (yield from outline(element, ("params", "_meta"), size=size)))


def _digest(text: bytes, found: list[dict[str, Span]]) -> bytes:
    outer, params, meta = (*found, {}, {})[:3]
    digest: dict[str, object] = {}
    for name, (begin, end) in outer.items():
        if name in ("result", "error"):
            digest[name] = {}
        elif name in ("jsonrpc", "id", "method"):
            if end - begin > MAX_HEAD_BYTES:
                raise TooComplex(
                    f"{name!r} of the message has more than {MAX_HEAD_BYTES} bytes (MAX_HEAD_BYTES)"
                )
            digest[name] = msgspec.Raw(text[begin:end])
    digest["params"] = {**_tokens(text, params), "_meta": _tokens(text, meta)}
    return encode(digest)


def _tokens(text: bytes, spans: dict[str, Span]) -> dict[str, object]:
    """Return the tokens and ids that are there, unless they are too long to be of use."""
    return {
        name: msgspec.Raw(text[begin:end])
        for name in _TOKENS
        if name in spans
        for begin, end in [spans[name]]
        if end - begin <= MAX_HEAD_BYTES
    }
