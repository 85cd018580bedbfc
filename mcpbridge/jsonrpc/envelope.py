"""
The envelope of a JSON-RPC message: the few members that a bridge must know.

Knows JSON-RPC 2.0 and JSON (RFC 8259); must not know sessions or transports.
A message is peeked at and never written again: what passes is byte-identical,
except for line ends between its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Literal, TypeVar

import msgspec

from mcpbridge.errors import EmptyBody, NotJson, NotJsonRpc, Refused
from mcpbridge.jsonrpc import surrogates
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES, at_once, outline

#: The largest body that is parsed a second time because of a lone surrogate, which
#: JSON's grammar allows and msgspec does not.
SECOND_PARSE_BYTES = 1024 * 1024

_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")

JsonRpcId = str | int | float | None
ProgressToken = str | int | float
Params = TypeVar("Params")


class Envelope(msgspec.Struct, frozen=True):
    """
    The outer members of one message (JSON-RPC 2.0, sections 4 and 5).

    `result` and `error` are as they stand, not decoded.
    """

    jsonrpc: Literal["2.0"]
    method: str | msgspec.UnsetType = msgspec.UNSET
    id: str | int | float | msgspec.UnsetType | None = msgspec.UNSET
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET

    @property
    def is_request(self) -> bool:
        """Whether it has a method, and an id to answer to."""
        return self.method is not msgspec.UNSET and self.id is not msgspec.UNSET

    @property
    def is_response(self) -> bool:
        """Whether it has no method, but an id and a result or an error."""
        return (
            self.method is msgspec.UNSET
            and self.id is not msgspec.UNSET
            and (self.result is not msgspec.UNSET or self.error is not msgspec.UNSET)
        )


_decode = msgspec.json.Decoder(Envelope).decode
_decode_batch = msgspec.json.Decoder(list[msgspec.Raw]).decode


def peek(line: bytes) -> Envelope | None:
    """
    Return the envelope of a server's line; None where it has no valid one,
    such as a batch.
    """
    try:
        return _decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def peek_again(line: bytes) -> Envelope | None:
    """
    Return the envelope of a line for which `peek` returned None because of a
    lone surrogate; None where that was not why.  Its `result` and `error`
    only tell that they exist.
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
    """Return the elements of an array, byte for byte; None for what is no array."""
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
    """Return a function that reads the params of a message as `kind`; None for other params."""
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


class _Name(msgspec.Struct):
    name: str | None = None


class _Uri(msgspec.Struct):
    uri: str | None = None


_read_name = _reader(_Name)
_read_uri = _reader(_Uri)
_read_progress = _reader(_Progress)
_read_cancelled = _reader(_Cancelled)
_read_meta = _reader(_Meta)


def progress_token(line: bytes) -> ProgressToken | None:
    """Return the token of a `notifications/progress` (MCP, basic/utilities/progress)."""
    params = _read_progress(line)
    return None if params is None else params.progressToken


def cancelled_id(line: bytes) -> JsonRpcId | msgspec.UnsetType:
    """Return the id that a `notifications/cancelled` names (MCP, basic/utilities/cancellation)."""
    params = _read_cancelled(line)
    return msgspec.UNSET if params is None else params.requestId


def requested_token(line: bytes) -> ProgressToken | None:
    """Return the progress token of a request, from `params._meta`."""
    params = _read_meta(line)
    return None if params is None or params.meta is None else params.meta.progressToken


def named_param(line: bytes, name: str) -> str | None:
    """Return a parameter that names something: `name`, or else `uri`; None without a string."""
    if name == "name":
        named = _read_name(line)
        return None if named is None else named.name
    located = _read_uri(line)
    return None if located is None else located.uri


def is_json(line: bytes) -> bool:
    """Tell whether a line is one JSON value."""
    try:
        msgspec.json.decode(line, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def one_line(body: bytes) -> bytes:
    """
    Return JSON without line ends, as messages on stdio must not contain any
    (MCP, basic/transports, "stdio").

    They can only be white space between tokens, so each becomes a space.  A
    body of one line is returned without a copy.
    """
    body = body.strip(b"\r\n")
    if b"\n" in body or b"\r" in body:
        return body.translate(_LINE_ENDS)
    return body


def read_message(body: bytes) -> tuple[bytes, Envelope | None]:
    """
    Check one message from a client; return it as a line, and its envelope,
    which is None for an array.

    Raise `EmptyBody`, `NotJson` (also for bytes that are not UTF-8, RFC 8259
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
    if envelope is None:
        pass
    elif envelope.method is not msgspec.UNSET:
        if envelope.id is None:
            check_id(envelope)
    elif not envelope.is_response:
        raise NotJsonRpc("the body is JSON, but not a JSON-RPC request, notification or response")
    return one_line(body), envelope


def has_null_id(envelope: Envelope) -> bool:
    """
    Tell whether a request has null for an id, which MCP forbids (basic/index,
    "Requests"): its answer would belong to no request.
    """
    return envelope.id is None and envelope.is_request


def check_id(envelope: Envelope | None) -> None:
    """Raise `NotJsonRpc` for a request whose id is null; None passes."""
    if envelope is not None and has_null_id(envelope):
        raise NotJsonRpc("the id of a request must be a string or a number, not null")


def check_element(envelope: Envelope | None) -> Envelope:
    """
    Return the envelope of an element of a batch.

    Raise `NotJsonRpc` for what is no message, and for what `check_id` refuses.
    """
    if envelope is None or not (envelope.method or envelope.is_response):
        raise NotJsonRpc("an element of the batch is not a JSON-RPC message")
    check_id(envelope)
    return envelope


_TOO_DEEP = "the body is nested too deeply"


def _judge_shape(body: bytes, why: str) -> None:
    """Raise what is wrong with a body that has no envelope; an array passes."""
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except msgspec.DecodeError as error:
        if _read_lone_surrogates(body, str(error)) is None:
            return
    except RecursionError:
        raise NotJson(_TOO_DEEP) from None
    if body.lstrip()[:1] != b"[":
        raise NotJsonRpc(f"the body is not a JSON-RPC 2.0 message: {why}")


def _read_lone_surrogates(body: bytes, why: str) -> Envelope | None:
    """
    Return the envelope of a body that msgspec refused, if a lone surrogate was
    the reason; None for an array.  Raise `NotJson` with `why` otherwise.
    """
    value = surrogates.parse(body) if len(body) <= SECOND_PARSE_BYTES else None
    if value is not None:
        return _convert(value)
    raise NotJson(f"the body is not JSON: {why.removeprefix('JSON is malformed: ')}")


_OUT_OF_RANGE = (float("inf"), float("-inf"))


def _convert(value: object) -> Envelope | None:
    """Return a decoded message's envelope; its result or error only tells that it exists."""
    if isinstance(value, list):
        return None
    if not isinstance(value, dict):
        raise NotJsonRpc("the body is not a JSON-RPC 2.0 message: it is not an object")
    outer = {
        name: msgspec.Raw(b"{}") if name in ("result", "error") else value[name]
        for name in Envelope.__struct_fields__
        if name in value
    }
    if outer.get("id") in _OUT_OF_RANGE:
        # msgspec refuses it, too.  No answer could have it: JSON has no infinity.
        raise NotJsonRpc("the body is not a JSON-RPC 2.0 message: its id is out of range")
    try:
        return msgspec.convert(outer, Envelope)
    except (msgspec.ValidationError, UnicodeError) as error:
        raise NotJsonRpc(f"the body is not a JSON-RPC 2.0 message: {error}") from None
