"""
A message of a client, read once: its envelope, and the members that others read.

Knows JSON-RPC and where MCP keeps what a transport needs; must not know what a
member means.  A request of 2026-07-28 says everything about itself, so many
parts of the bridge look into it.  They share these members instead of decoding
the message again.
"""

from __future__ import annotations

import msgspec

from mcpbridge.jsonrpc.envelope import (
    Envelope,
    JsonRpcId,
    check_id,
    is_json,
    one_line,
    read_message,
)
from mcpbridge.jsonrpc.members import Members, members, members_of

_decode_method = msgspec.json.Decoder(str).decode
_decode_id = msgspec.json.Decoder(str | int | float | None).decode


class ParsedMessage(msgspec.Struct, frozen=True, eq=False):
    """
    One message on one line.

    `outer` and `params` are the members of the message and of its `params`, as
    views of the line; `params` is None where there is no such object.
    `sliced_meta` are those of `_meta`, where the message was read in slices.
    `digest` is a message that has the same envelope and tokens: the line
    itself, or a small stand-in for a large one.
    """

    line: bytes
    digest: bytes
    envelope: Envelope
    outer: Members
    params: Members | None
    sliced_meta: Members | None = None

    @property
    def meta(self) -> Members | None:
        """
        The members of `params._meta`; None where there is no such object.

        Those of a small message are read at each access.
        """
        if self.digest is not self.line:
            return self.sliced_meta
        params = self.params
        return members(params["_meta"]) if params is not None and "_meta" in params else None


def parse_message(body: bytes) -> ParsedMessage | None:
    """
    Check and read one small message of a client; return None for an array.

    Raise what `read_message` raises.
    """
    line = valid_line(body)
    outer = None if line is None else members(line)
    envelope = None if outer is None else _envelope(outer)
    if line is None or outer is None or envelope is None:
        # This is no message, or has something that is rare: it is read once more, to
        # say what is wrong, or to find the envelope beside a lone surrogate.
        line, envelope = read_message(body)
        return None if envelope is None else with_envelope(line, envelope)
    if envelope.id is None:
        check_id(envelope)
    return _with_params(line, envelope, outer)


def with_envelope(line: bytes, envelope: Envelope) -> ParsedMessage:
    """Read the members of a line whose envelope is known."""
    return _with_params(line, envelope, members_of(line))


def _with_params(line: bytes, envelope: Envelope, outer: Members) -> ParsedMessage:
    params = members(outer["params"]) if "params" in outer else None
    return ParsedMessage(line, line, envelope, outer, params)


def valid_line(body: bytes) -> bytes | None:
    """
    Return a body on one line, on which it is JSON only if it was JSON before.

    Return None for one that is not UTF-8, which msgspec does not check in a `Raw`, and
    for one of several lines that is not JSON: as a space, a line end within a string
    would be valid.
    """
    text = body.strip(b"\r\n")
    line = one_line(text)
    if line is not text and not is_json(text):
        return None
    if not line.isascii():
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            return None
    return line


def _envelope(outer: Members) -> Envelope | None:
    """Return the envelope of a request or notification; None for anything else."""
    if "method" not in outer or bytes(outer.get("jsonrpc", b"")) != b'"2.0"':
        return None
    try:
        method: str = _decode_method(outer["method"])
        ident: JsonRpcId | msgspec.UnsetType = msgspec.UNSET
        if "id" in outer:
            ident = _decode_id(outer["id"])
    except msgspec.MsgspecError:
        return None
    unset = msgspec.UNSET
    return Envelope("2.0", method, ident, outer.get("result", unset), outer.get("error", unset))
