"""
The bridge's own `requestState`: a token that leads a retry to the suspended
request it belongs to, and that only the caller it was given to can use.

Knows a key, handles and digests; must not know the clock, nor what is
suspended.  2026-07-28, basic/patterns/mrtr, "Server Requirements": the state
is input of a possible attacker, and must be bound to the caller, the request
and a time.

A token is base64url of

    version, 1 byte | expiry, 8 | caller, 16 | request, 16 | handle | seal, 32

where `caller` and `request` are keyed digests, salted with handle and expiry:
they reveal nothing, not even whether two tokens are of the same caller.
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

#: The longest token that is decoded, in characters.
MAX_TOKEN = 1024
#: The longest handle, in bytes of UTF-8.
MAX_HANDLE = 256
#: The shortest key, in bytes.
MIN_KEY = 16

_VERSION = 1
_FIXED = struct.Struct(">Bd16s16s")
_SEAL = hashlib.sha256().digest_size
#: Parameters that may differ between a request and its retry.
_RETRY_PARAMS = frozenset({"_meta", "inputResponses", "requestState"})


def presented(request: ModernRequest) -> str | None:
    """
    Return the token of a request; None where it has none.

    Raise `InvalidRequestState` where it is no string.
    """
    raw = request.params.get("requestState")
    if raw is None:
        return None
    token = string_of(raw)
    if token is None:
        raise _invalid(request, "requestState must be a string")
    return token


class StateKey:
    """
    Seals and opens tokens with one key; bridges that share the key open each
    other's tokens.

    Raise `ValueError` for a key of less than `MIN_KEY` bytes.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < MIN_KEY:
            raise ValueError(f"the key has {len(key)} bytes, less than {MIN_KEY}")
        self._key = key

    def seal(
        self, handle: str, identity: str, request: ModernRequest, now: float, ttl: float
    ) -> str:
        """
        Return the token with which this caller may retry this request until
        `now + ttl`, in seconds of the clock that `open` is given, too.

        Raise `ValueError` for a handle of more than `MAX_HANDLE` bytes.
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
        Return the handle that was sealed in a token.

        Raise `InvalidRequestState` for a token that was not made with this
        key, for this caller, or for this method with these parameters (in any
        spelling; apart from `_meta`, `inputResponses` and `requestState`),
        and for one that has expired.
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
            raise _invalid(request, "requestState was changed, or is of another server")
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
        """Return a keyed digest of parts, whose lengths count: no byte can move between two."""
        lengths = b"".join(len(part).to_bytes(8, "big") for part in parts)
        return hmac.digest(self._key, b"\0".join((purpose, lengths, *parts)), "sha256")


def _digest(params: Mapping[str, msgspec.Raw]) -> bytes:
    """Return a digest of parameters that does not depend on how they are spelled."""
    digest = hashlib.sha256()
    for name in sorted(params.keys() - _RETRY_PARAMS):
        for part in (name.encode("utf-8", "surrogatepass"), _canonical(bytes(params[name]))):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.digest()


def _canonical(value: bytes) -> bytes:
    """Return the same JSON with sorted keys; what cannot be decoded stands for itself."""
    try:
        return json.dumps(json.loads(value.decode("utf-8")), sort_keys=True).encode("ascii")
    except (ValueError, RecursionError):
        return value


def _encode(blob: bytes) -> str:
    return urlsafe_b64encode(blob).rstrip(b"=").decode("ascii")


def _decode(token: str) -> bytes | None:
    """Return None for what `_encode` does not write: each blob has just one spelling."""
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
