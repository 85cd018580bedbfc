"""
The envelope of a JSON-RPC message: just what a bridge must know of it.

Knows JSON-RPC 2.0 and JSON (RFC 8259); must not know sessions or transports.
A message is peeked at, never written anew: what passes is byte-identical,
but for line ends between its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Literal, TypeVar

import msgspec

from mcpbridge.errors import EmptyBody, NotJson, NotJsonRpc, Refused
from mcpbridge.jsonrpc import surrogates
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES, at_once, outline

#: The largest body that is parsed a second time for the sake of a lone
#: surrogate, which JSON's grammar allows and the fast parser does not.
SECOND_PARSE_BYTES = 1024 * 1024

_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")

JsonRpcId = str | int | float | None
ProgressToken = str | int | float
Params = TypeVar("Params")


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
_decode_batch = msgspec.json.Decoder(list[msgspec.Raw]).decode


def peek(line: bytes) -> Envelope | None:
    """
    The envelope of a backend's line, or None where it has none that is valid:
    a batch, or something that is for its reader to judge.
    """
    try:
        return _decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def peek_again(line: bytes) -> Envelope | None:
    """
    The envelope of a line for which `peek` had none, where only a lone
    surrogate was in its way; `result` and `error` are reduced to being there.
    """
    try:
        whole = len(line) <= LARGE_BYTES
        return _convert(surrogates.parse(line) if whole else _outer_members(line))
    except Refused:
        return None


def _outer_members(text: bytes) -> dict[str, object] | None:
    """
    Do the same as `surrogates.parse` for a large object, but decode only the
    members of an envelope, and neither `result` nor `error`.
    """
    if not surrogates.may_have_surrogates(text):
        return None
    found: dict[str, object] = {}
    for name, (begin, end) in at_once(outline(text))[0].items():
        if name in ("result", "error"):
            found[name] = {}
        elif name in Envelope.__struct_fields__:
            if end - begin > LARGE_BYTES:
                raise NotJsonRpc(f"{name!r} of the message has more than {LARGE_BYTES} bytes")
            found[name] = surrogates.loads(text[begin:end])
    return found


def split_batch(line: bytes) -> list[bytes] | None:
    """The elements of an array, byte-identical; None for what is no array."""
    if line.lstrip()[:1] != b"[":
        return None
    try:
        return [bytes(element) for element in _decode_batch(line)]
    except RecursionError:
        return None
    except msgspec.DecodeError:
        return None if surrogates.parse(line) is None else surrogates.split_array(line)


class _Progress(msgspec.Struct):
    progressToken: ProgressToken | None = None


class _Cancelled(msgspec.Struct):
    requestId: JsonRpcId | msgspec.UnsetType = msgspec.UNSET


class _Meta(msgspec.Struct):
    meta: _Progress | None = msgspec.field(name="_meta", default=None)


class _Message(msgspec.Struct, Generic[Params]):
    params: Params | None = None


def _reader(kind: type[Params]) -> Callable[[bytes], Params | None]:
    """What reads the params of a message; None where they are missing or something else."""
    message = _Message[kind]  # type: ignore[valid-type]
    decode = msgspec.json.Decoder(message).decode

    def read(line: bytes) -> Params | None:
        try:
            try:
                return decode(line).params
            except msgspec.ValidationError:
                return None
            except msgspec.DecodeError:
                return msgspec.convert(surrogates.parse(line), message).params
        except (msgspec.ValidationError, UnicodeError, RecursionError):
            return None

    return read


_read_progress = _reader(_Progress)
_read_cancelled = _reader(_Cancelled)
_read_meta = _reader(_Meta)


def progress_token(line: bytes) -> ProgressToken | None:
    """Whose progress a `notifications/progress` tells (MCP, basic/utilities/progress)."""
    params = _read_progress(line)
    return None if params is None else params.progressToken


def cancelled_id(line: bytes) -> JsonRpcId | msgspec.UnsetType:
    """What a `notifications/cancelled` cancels (MCP, basic/utilities/cancellation)."""
    params = _read_cancelled(line)
    return msgspec.UNSET if params is None else params.requestId


def requested_token(line: bytes) -> ProgressToken | None:
    """The token with which a request asks for progress, in `params._meta`."""
    params = _read_meta(line)
    return None if params is None or params.meta is None else params.meta.progressToken


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
    check_id(envelope)
    return one_line(body), envelope


def has_null_id(envelope: Envelope) -> bool:
    """
    Whether a request has null for an id, which MCP forbids (basic/index,
    "Requests"): its answer could not be told from another.
    """
    return envelope.id is None and envelope.is_request


def check_id(envelope: Envelope | None) -> None:
    """Raise `NotJsonRpc` for a request with such an id; None passes."""
    if envelope is not None and has_null_id(envelope):
        raise NotJsonRpc("the id of a request must be a string or a number, not null")


def check_element(envelope: Envelope | None) -> Envelope:
    """
    The envelope of an element of a batch.  Raises `NotJsonRpc` for what is no
    message, and for what `check_id` does not take.
    """
    if envelope is None or not (envelope.method or envelope.is_response):
        raise NotJsonRpc("an element of the batch is no JSON-RPC message")
    check_id(envelope)
    return envelope


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
    value = surrogates.parse(body) if len(body) <= SECOND_PARSE_BYTES else None
    if value is not None:
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
