"""
`requestState` of the bridge's own: which waiting request a retry belongs to,
sealed against everyone but the caller it was given to.

Knows a key, names and digests; must not know the clock, nor what waits.
(2026-07-28, basic/patterns/mrtr, "Server Requirements": it is input of an
attacker, and is to be bound to the caller, to the request and to a time.)

A token is base64url of

    version, 1 byte | expiry, 8 | caller, 16 | request, 16 | handle | seal, 32

where `caller` and `request` are keyed digests, salted with handle and expiry:
they say nothing of what they are made of, nor whether two tokens are of the
same caller.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping

import msgspec

from mcpbridge.errors import InvalidRequestState
from mcpbridge.jsonrpc.members import string_of
from mcpbridge.mcp.modern_request import ModernRequest

#: The longest token that is looked at, in characters.
MAX_TOKEN = 1024
#: The longest handle that is sealed, in bytes of UTF-8.
MAX_HANDLE = 256
#: The shortest key, in bytes.
MIN_KEY = 16

_VERSION = 1
_FIXED = struct.Struct(">Bd16s16s")
_SEAL = hashlib.sha256().digest_size
#: The parameters that differ between a request and its retry.
_OF_THE_TRY = frozenset({"_meta", "inputResponses", "requestState"})


def presented(request: ModernRequest) -> str | None:
    """
    The token that a request brings along; None where it brings none.

    Raises `InvalidRequestState` where it is no string.
    """
    raw = request.params.get("requestState")
    if raw is None:
        return None
    token = string_of(raw)
    if token is None:
        raise _invalid(request, "requestState is no string")
    return token


class StateKey:
    """
    Seals and opens tokens with one key; bridges that share the key open each
    other's tokens.

    Raises `ValueError` for a key of less than `MIN_KEY` bytes.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < MIN_KEY:
            raise ValueError(f"the key has {len(key)} bytes, less than {MIN_KEY}")
        self._key = key

    def seal(
        self, handle: str, identity: str, request: ModernRequest, now: float, ttl: float
    ) -> str:
        """
        The token with which this caller may retry this request until
        `now + ttl`, in seconds of the clock that `open` is given too.

        Raises `ValueError` for a handle of more than `MAX_HANDLE` bytes.
        """
        name = handle.encode("utf-8")
        if len(name) > MAX_HANDLE:
            raise ValueError(f"the handle has {len(name)} bytes, more than {MAX_HANDLE}")
        expiry = now + ttl
        salt = struct.pack(">d", expiry) + name
        fixed = _FIXED.pack(
            _VERSION, expiry, self._caller(salt, identity), self._request(salt, request)
        )
        return _encode(fixed + name + self._digest(b"seal", fixed + name))

    def open(self, token: str, identity: str, request: ModernRequest, now: float) -> str:
        """
        The handle that was sealed.

        Raises `InvalidRequestState` for what was not made with this key, for
        this caller and for this method with these parameters (in whatever
        spelling; `_meta`, `inputResponses` and `requestState` apart), and
        where its time is over.
        """
        blob = _decode(token)
        if blob is None or len(blob) < _FIXED.size + _SEAL:
            raise _invalid(request, "requestState is malformed: it is not of this server")
        sealed, seal = blob[:-_SEAL], blob[-_SEAL:]
        if not hmac.compare_digest(self._digest(b"seal", sealed), seal):
            raise _invalid(request, "requestState was changed, or is of another server")
        # What follows was sealed by a holder of the key.
        _, expiry, caller, digest = _FIXED.unpack_from(sealed)
        name = sealed[_FIXED.size :]
        salt = struct.pack(">d", expiry) + name
        if not hmac.compare_digest(self._caller(salt, identity), caller):
            raise _invalid(request, "requestState was given to another caller")
        if not hmac.compare_digest(self._request(salt, request), digest):
            raise _invalid(request, "requestState belongs to a request with other parameters")
        if now >= expiry:
            raise _invalid(request, "requestState has expired; send the request again without it")
        return name.decode("utf-8")

    def _caller(self, salt: bytes, identity: str) -> bytes:
        # An identity may come from a header, of any bytes.
        return self._digest(b"caller", salt, identity.encode("utf-8", "surrogatepass"))[:16]

    def _request(self, salt: bytes, request: ModernRequest) -> bytes:
        return self._digest(b"request", salt, request.method.encode(), _digest(request.params))[:16]

    def _digest(self, purpose: bytes, *parts: bytes) -> bytes:
        """Of the parts one by one: none can lend a byte to its neighbour."""
        lengths = b"".join(len(part).to_bytes(8, "big") for part in parts)
        return hmac.digest(self._key, b"\0".join((purpose, lengths, *parts)), "sha256")


def _digest(params: Mapping[str, msgspec.Raw]) -> bytes:
    """Of the parameters themselves, however they are spelled."""
    digest = hashlib.sha256()
    for name in sorted(params.keys() - _OF_THE_TRY):
        for part in (name.encode("utf-8", "surrogatepass"), _canonical(bytes(params[name]))):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.digest()


def _canonical(value: bytes) -> bytes:
    """The same JSON with sorted keys; what has no such form stands for itself."""
    try:
        return json.dumps(json.loads(value.decode("utf-8")), sort_keys=True).encode("ascii")
    except (ValueError, RecursionError):
        return value


def _encode(blob: bytes) -> str:
    return urlsafe_b64encode(blob).rstrip(b"=").decode("ascii")


def _decode(token: str) -> bytes | None:
    """None for what `_encode` has not written: each blob has just one spelling."""
    if len(token) > MAX_TOKEN or not token.isascii():
        return None
    try:
        blob = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError:
        return None
    return blob if _encode(blob) == token else None


def _invalid(request: ModernRequest, why: str) -> InvalidRequestState:
    error = InvalidRequestState(why)
    error.ident = request.id
    return error
