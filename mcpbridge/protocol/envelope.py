"""
The envelope of a JSON-RPC message: just what a bridge must know of it.

Knows JSON-RPC 2.0 and JSON (RFC 8259); must not know sessions or transports.
A message is peeked at, never written anew: what passes is byte-identical,
but for line ends between its tokens.
"""

from __future__ import annotations

import json
from typing import Literal

import msgspec

from mcpbridge.errors import EmptyBody, NotJson, NotJsonRpc

#: The largest body that is parsed a second time for the sake of a lone
#: surrogate, which JSON's grammar allows and the fast parser does not.
SECOND_PARSE_BYTES = 1024 * 1024

_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")

JsonRpcId = str | int | float | None


class Envelope(msgspec.Struct, frozen=True):
    """
    The outer members of one message (JSON-RPC 2.0, sections 4 and 5).

    `result` and `error` are kept as they stand, undecoded.
    """

    jsonrpc: Literal["2.0"]
    method: str | msgspec.UnsetType = msgspec.UNSET
    id: str | int | float | msgspec.UnsetType | None = msgspec.UNSET
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET

    @property
    def is_request(self) -> bool:
        """It has a method, and an id to answer to."""
        return self.method is not msgspec.UNSET and self.id is not msgspec.UNSET

    @property
    def is_response(self) -> bool:
        """It has no method, but an id and a result or an error."""
        return (
            self.method is msgspec.UNSET
            and self.id is not msgspec.UNSET
            and (self.result is not msgspec.UNSET or self.error is not msgspec.UNSET)
        )


_decode = msgspec.json.Decoder(Envelope).decode


def peek(line: bytes) -> Envelope | None:
    """
    The envelope of a backend's line, or None where it has none that is valid:
    a batch, or something that is for its reader to judge.
    """
    try:
        return _decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def is_json(line: bytes) -> bool:
    """Whether a line is JSON, whole, whatever it says."""
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def one_line(body: bytes) -> bytes:
    """
    The same JSON without line ends: they can only be white space between
    tokens, so each becomes a space (MCP, basic/transports, "stdio": messages
    must not contain embedded newlines).  A body of one line is returned as it
    is, without a copy.
    """
    body = body.strip(b"\r\n")
    if b"\n" in body or b"\r" in body:
        return body.translate(_LINE_ENDS)
    return body


def read_message(body: bytes) -> tuple[bytes, Envelope | None]:
    """
    Check one message from a client; return it as a line, and its envelope
    (None for an array, whose elements are for the backend to judge).

    Raises `EmptyBody`, `NotJson` (also for bytes that are not UTF-8, RFC 8259
    section 8.1) and `NotJsonRpc`.
    """
    if not body or body.isspace():
        raise EmptyBody("the body is empty; expected one JSON-RPC message")
    if not body.isascii():
        try:
            body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise NotJson(f"the body is not UTF-8 (byte {error.start})") from None
    envelope: Envelope | None = None
    try:
        envelope = _decode(body)
    except msgspec.ValidationError as error:
        _judge_shape(body, str(error))
    except msgspec.DecodeError as error:
        envelope = _read_lone_surrogates(body, str(error))
    except RecursionError:
        raise NotJson(_TOO_DEEP) from None
    if envelope is not None and envelope.method is msgspec.UNSET and not envelope.is_response:
        raise NotJsonRpc("the body is JSON, but no JSON-RPC request, notification or response")
    return one_line(body), envelope


_TOO_DEEP = "the body is nested too deeply"


def _judge_shape(body: bytes, why: str) -> None:
    """JSON whose outer members are not an envelope's: an array passes."""
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except msgspec.DecodeError as error:
        if _read_lone_surrogates(body, str(error)) is None:
            return
    except RecursionError:
        raise NotJson(_TOO_DEEP) from None
    if body.lstrip()[:1] != b"[":
        raise NotJsonRpc(f"the body is no JSON-RPC 2.0 message: {why}")


def _read_lone_surrogates(body: bytes, why: str) -> Envelope | None:
    """
    What the fast parser refuses may still be JSON: `"\\ud800"` alone is in
    JSON's grammar (RFC 8259, section 8.2), and JavaScript writes it.  Gives
    None for an array.
    """
    if len(body) <= SECOND_PARSE_BYTES and b"\\ud" in body.lower():
        try:
            # As text: of bytes this parser would guess UTF-16, or skip a BOM.
            value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        except (ValueError, RecursionError):
            pass
        else:
            return _convert(value)
    raise NotJson(f"the body is not JSON: {why.removeprefix('JSON is malformed: ')}")


def _convert(value: object) -> Envelope | None:
    """A decoded message's envelope, its result or error reduced to being there."""
    if isinstance(value, list):
        return None
    if not isinstance(value, dict):
        raise NotJsonRpc("the body is no JSON-RPC 2.0 message: it is no object")
    outer = {
        name: msgspec.Raw(b"{}") if name in ("result", "error") else value[name]
        for name in Envelope.__struct_fields__
        if name in value
    }
    try:
        return msgspec.convert(outer, Envelope)
    except (msgspec.ValidationError, UnicodeError) as error:
        raise NotJsonRpc(f"the body is no JSON-RPC 2.0 message: {error}") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
