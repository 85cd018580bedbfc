"""
The keys of an authorization server, and signatures that are made with them.

Knows JSON Web Keys (RFC 7517) and signatures (RFC 7515); must not know claims, nor where
keys come from.  Needs the extra `auth`, whose modules are imported when keys are read.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from collections.abc import Mapping
from typing import Any

import msgspec

from mcpbridge.config.oauth import SIGNATURE_ALGORITHMS

#: So many keys of a set are read.
MAX_KEYS = 100
#: RSA keys with fewer bits are too weak (RFC 7518, section 3.3), with more too slow.
MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192

#: The members of the public part, by type of the key.
_PUBLIC = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
#: The same signatures under two names (RFC 9864).
_NEW_NAMES = {"EdDSA": "Ed25519"}


class VerificationKey:
    """A public key, and the algorithms that it may verify."""

    __slots__ = ("_key", "_models", "algorithms", "kid", "published")

    def __init__(
        self, kid: str | None, key: Any, models: Mapping[str, Any], public: Mapping[str, str]
    ) -> None:
        self.kid = kid
        self.algorithms = frozenset(models)
        #: All that tells whether another one verifies the same tokens.
        self.published = (kid, self.algorithms, frozenset(public.items()))
        self._key = key
        self._models = models

    def verifies(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Tell whether this is the key's signature, made with one of its algorithms."""
        model = self._models.get(algorithm)
        if model is None:
            return False
        try:
            return bool(model.verify(signed, signature, self._key))
        except Exception:
            # Whatever cannot be verified is not verified.
            return False


class Keys:
    """
    The keys of one set.

    A key fits an algorithm that the settings allow, if its type and its curve are those of
    the algorithm, and neither `alg`, `use` nor `key_ops` says otherwise.  So what a token
    says cannot make a key of another kind verify it.  Keys with a shared secret never fit.
    """

    def __init__(self, keys: tuple[VerificationKey, ...], skipped: int = 0) -> None:
        self._keys = keys
        #: The number of members that are no key that the bridge can use.
        self.skipped = skipped

    def __len__(self) -> int:
        return len(self._keys)

    def lacks_any_of(self, former: Keys) -> bool:
        """Tell whether one of the former keys is not in this set any more, or has changed."""
        published = {key.published for key in self._keys}
        return any(key.published not in published for key in former._keys)

    def fitting(self, kid: str | None, algorithm: str) -> tuple[VerificationKey, ...]:
        """
        Return the keys with this id that fit an algorithm; most often one, or none.

        Without an id there must be only one that fits (OpenID Connect Core, section 10.1).
        """
        found = tuple(key for key in self._keys if algorithm in key.algorithms)
        if kid is not None:
            return tuple(key for key in found if key.kid == kid)
        return found if len(found) == 1 else ()


def read_keys(data: bytes, algorithms: tuple[str, ...]) -> Keys:
    """
    Return the keys of a set.  Raises `ValueError` if it is none.

    Keys of other kinds, and those that are broken, are skipped (RFC 7517, section 5).
    """
    try:
        document = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ValueError("the keys are not JSON") from None
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list):
        raise ValueError("there is no list of keys")
    keys = [_read_key(each, algorithms) for each in members[:MAX_KEYS]]
    usable = tuple(key for key in keys if key is not None)
    return Keys(usable, len(members) - len(usable))


def _read_key(jwk: object, algorithms: tuple[str, ...]) -> VerificationKey | None:
    if not isinstance(jwk, dict):
        return None
    kind, kid, use, operations = (jwk.get(name) for name in ("kty", "kid", "use", "key_ops"))
    if not isinstance(kind, str) or kind not in _PUBLIC:
        return None
    if not (kid is None or isinstance(kid, str)) or use not in (None, "sig"):
        return None
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        return None
    # What else there is, such as a private part, is none of the bridge's business.
    public = {name: jwk.get(name) for name in ("kty", *_PUBLIC[kind])}
    named = jwk.get("alg")
    fitting = [
        each
        for each in algorithms
        if SIGNATURE_ALGORITHMS[each] in ((kind, public.get("crv")), (kind, None))
        and (named is None or _same(named, each))
    ]
    if not fitting or not all(isinstance(value, str) for value in public.values()):
        return None
    return _import(kid, public, fitting)


def _same(named: object, algorithm: str) -> bool:
    """Tell whether the `alg` of a key names an algorithm."""
    if not isinstance(named, str):
        return False
    return _NEW_NAMES.get(named, named) == _NEW_NAMES.get(algorithm, algorithm)


def _import(
    kid: str | None, public: dict[str, Any], algorithms: list[str]
) -> VerificationKey | None:
    from joserfc.jwk import import_key
    from joserfc.jws import JWSRegistry

    try:
        if public["kty"] == "RSA" and not MIN_RSA_BITS <= _bits(public["n"]) <= MAX_RSA_BITS:
            return None
        key = import_key(public)
        registry = JWSRegistry(algorithms=[_NEW_NAMES.get(each, each) for each in algorithms])
        models: dict[str, Any] = {}
        for each in algorithms:
            models[each] = model = registry.get_alg(_NEW_NAMES.get(each, each))
            model.check_key(key)
    except Exception:
        # A point that is not on its curve, a number that is none: cryptography and joserfc
        # have several errors for those, and one broken key must not hide the others.
        return None
    return VerificationKey(kid, key, models, public)


def _bits(number: str) -> int:
    """Return the size of a number in base64url; raises `ValueError` if it is none."""
    return int.from_bytes(urlsafe_b64decode(number + "=" * (-len(number) % 4))).bit_length()
