"""Keys of an issuer, and what each of them verifies."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OctKey

from mcpbridge.auth.keys import MAX_KEYS, MAX_RSA_BITS, MIN_RSA_BITS, Keys, read_keys
from mcpbridge.config.oauth import SIGNATURE_ALGORITHMS
from tests.tokens import base64url, jwk, key, signed, signed_rs256

ALL = tuple(SIGNATURE_ALGORITHMS)


def read(*keys: Any, algorithms: tuple[str, ...] = ALL) -> Keys:
    return read_keys(json.dumps({"keys": list(keys)}).encode(), algorithms)


def verifies(keys: Keys, token: str, kid: str | None, algorithm: str) -> bool:
    text, _, signature = token.rpartition(".")
    raw = _unquoted(signature)
    return any(
        each.verifies(algorithm, text.encode(), raw) for each in keys.fitting(kid, algorithm)
    )


def _unquoted(text: str) -> bytes:
    from base64 import urlsafe_b64decode

    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


@pytest.mark.parametrize("algorithm", ALL)
def test_every_algorithm_is_verified(algorithm: str) -> None:
    keys = read(jwk(algorithm))
    assert len(keys) == 1
    token = signed(algorithm=algorithm)
    assert verifies(keys, token, "one", algorithm)
    assert not verifies(keys, signed(algorithm=algorithm, by="two"), "one", algorithm)
    assert not verifies(keys, token[:-8] + "AAAAAAAA", "one", algorithm)
    assert not verifies(keys, token.replace(".", ".e", 1), "one", algorithm)
    assert not keys.fitting("two", algorithm)


@pytest.mark.parametrize("algorithm", ALL)
def test_no_key_verifies_what_another_algorithm_signed(algorithm: str) -> None:
    keys = read(*(jwk(each, kid=each) for each in ALL))
    same = {"EdDSA", "Ed25519"}
    for other in ALL:
        fitting = bool(keys.fitting(other, algorithm))
        assert fitting is (other == algorithm or {other, algorithm} <= same)


def test_a_signature_of_another_library_is_verified() -> None:
    text = "e30.e30"
    raw = signed_rs256(text, "one")
    keys = read(jwk("RS256", alg=None))
    [found] = keys.fitting("one", "RS256")
    assert found.verifies("RS256", text.encode(), raw)
    assert not found.verifies("RS512", text.encode(), raw)
    assert not found.verifies("PS256", text.encode(), raw)
    assert not found.verifies("HS256", text.encode(), raw)
    assert not found.verifies("none", text.encode(), b"")


def test_the_settings_say_which_algorithms_fit() -> None:
    keys = read(jwk("RS256", alg=None), jwk("ES256", kid="two"), algorithms=("PS256",))
    assert len(keys) == 1
    assert keys.fitting("one", "PS256")
    assert not keys.fitting("one", "RS256")
    assert not keys.fitting("two", "ES256")


def test_without_an_id_only_one_key_may_fit() -> None:
    keys = read(jwk("ES256"), jwk("RS256", kid="two"))
    assert keys.fitting(None, "ES256") == keys.fitting("one", "ES256") != ()
    assert read(jwk("ES256"), jwk("ES256", kid="two")).fitting(None, "ES256") == ()
    assert len(read(jwk("ES256"), jwk("ES256", kid="one")).fitting("one", "ES256")) == 2


EC = jwk("ES256")
RSA = jwk("RS256")


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        1,
        "key",
        [],
        {},
        {**EC, "kty": None},
        {**EC, "kty": "ec"},
        {**EC, "kty": ["EC"]},
        {**EC, "kty": "RSA"},
        {**RSA, "kty": "EC"},
        {**EC, "crv": "P-999"},
        {**EC, "crv": "P-384"},
        {**EC, "crv": "secp256k1"},
        {**EC, "crv": None},
        {**EC, "x": EC["y"], "y": EC["y"]},
        {**EC, "x": ""},
        {**EC, "x": 1},
        {**EC, "y": "!"},
        {**EC, "y": None},
        {**EC, "kid": 1},
        {**EC, "alg": "ES384"},
        {**EC, "alg": "HS256"},
        {**EC, "alg": "none"},
        {**EC, "alg": 1},
        {**EC, "use": "enc"},
        {**EC, "use": 1},
        {**EC, "key_ops": ["sign"]},
        {**EC, "key_ops": "verify"},
        {**RSA, "n": ""},
        {**RSA, "n": "AQAB"},
        {**RSA, "e": "AA"},
        {**RSA, "e": "AQ"},
        {**RSA, "e": "Ag"},
        {**RSA, "e": None},
        {"kty": "oct", "k": base64url(b"secret" * 8), "kid": "one"},
        {**OctKey.generate_key(256).as_dict(private=True), "kid": "one", "alg": "HS256"},
        {"kty": "OKP", "crv": "X25519", "x": base64url(b"x" * 32), "kid": "one"},
        {"kty": "OKP", "crv": "Ed25519", "x": base64url(b"x" * 31), "kid": "one"},
    ],
)
def test_broken_keys_are_skipped(wrong: Any) -> None:
    keys = read(wrong, jwk(kid="good"))
    assert (len(keys), keys.skipped) == (1, 1)
    assert keys.fitting("good", "ES256")
    assert not any(keys.fitting("one", each) for each in ALL)


def test_rsa_keys_are_neither_too_weak_nor_too_slow() -> None:
    weak = base64url(((1 << (MIN_RSA_BITS - 1)) - 1).to_bytes(MIN_RSA_BITS // 8, "big"))
    assert len(read({**RSA, "n": weak})) == 0
    strong = base64url(((1 << MIN_RSA_BITS) - 1).to_bytes(MIN_RSA_BITS // 8, "big"))
    assert len(read({**RSA, "n": strong})) == 1
    number = (1 << MAX_RSA_BITS) + 1
    slow = base64url(number.to_bytes(MAX_RSA_BITS // 8 + 1, "big"))
    assert len(read({**RSA, "n": slow})) == 0
    allowed = base64url((number - 2).to_bytes(MAX_RSA_BITS // 8, "big"))
    assert len(read({**RSA, "n": allowed})) == 1


def test_a_private_part_is_not_kept() -> None:
    private = key("ES256", "one").as_dict(private=True)
    assert "d" in private
    keys = read({**private, "kid": "one"})
    [found] = keys.fitting("one", "ES256")
    assert found._key.is_private is False


def test_a_set_has_a_bound() -> None:
    keys = read(*(jwk(kid=str(number), **_same()) for number in range(MAX_KEYS + 1)))
    assert (len(keys), keys.skipped) == (MAX_KEYS, 1)
    assert keys.fitting(str(MAX_KEYS - 1), "ES256")
    assert not keys.fitting(str(MAX_KEYS), "ES256")


def _same() -> dict[str, Any]:
    return {name: EC[name] for name in ("x", "y")}


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"{}", b'{"keys":{}}', b'{"keys":', b"\xff", b"[" * 5000]
)
def test_what_is_no_set_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="keys"):
        read_keys(data, ALL)


@given(
    st.dictionaries(
        st.sampled_from(["kty", "crv", "x", "y", "n", "e", "alg", "use", "key_ops", "kid", "d"]),
        st.text() | st.integers() | st.sampled_from(["EC", "RSA", "OKP", "P-256", "AQAB"]),
    )
)
def test_no_key_is_an_error(changed: dict[str, Any]) -> None:
    for good in (EC, RSA):
        read({**good, **changed})


def test_generated_keys_differ() -> None:
    """The table above would prove nothing with one key for all."""
    assert ECKey.generate_key("P-256").as_dict() != ECKey.generate_key("P-256").as_dict()
    assert key("ES256", "one") is key("ES256", "one")
