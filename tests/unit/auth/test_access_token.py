"""What an access token must say, and what hostile ones are answered."""

from __future__ import annotations

import json
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.auth.access_token import (
    MAX_EPOCH_SECONDS,
    MAX_SUBJECT_CHARS,
    MAX_TOKEN_BYTES,
    TokenRules,
    is_signed,
    read_signed,
)
from mcpbridge.config.tuning import TOKEN_LEEWAY_SECONDS
from mcpbridge.errors import InvalidToken
from tests.tokens import AUDIENCE, ISSUER, NOW, base64url, claims, signed

ALGORITHMS = ("ES256", "RS256")
LEEWAY = int(TOKEN_LEEWAY_SECONDS)


def rules(*audience: str, scope_claim: str = "scope") -> TokenRules:
    return TokenRules(ISSUER, audience or (AUDIENCE,), scope_claim)


def test_a_long_token_is_refused_before_it_is_read() -> None:
    assert not is_signed("a" * MAX_TOKEN_BYTES)
    with pytest.raises(InvalidToken, match="MAX_TOKEN_BYTES"):
        is_signed("a" * (MAX_TOKEN_BYTES + 1))


def test_forms_of_tokens() -> None:
    assert is_signed(signed())
    assert is_signed("a.b.")
    assert not is_signed("abc")
    assert not is_signed("a.b")
    assert not is_signed("a.b.c.d")
    assert not is_signed("a.b~.c")
    with pytest.raises(InvalidToken, match="encrypted"):
        is_signed("a.b.c.d.e")
    with pytest.raises(InvalidToken, match="encrypted"):
        is_signed("a..c.d.e")


def header(**members: Any) -> bytes:
    return json.dumps({"alg": "ES256", **members}).encode()


NESTED = b"[" * 5000 + b"]" * 5000

#: Tokens that cannot be read, whatever signature they have.
UNREADABLE: dict[str, str] = {
    "three empty parts": "..",
    "no header": "." + base64url(b"{}") + ".AA",
    "no payload": base64url(header()) + "..AA",
    "a header that is no base64": "A." + base64url(b"{}") + ".AA",
    "a header with left-over bits": base64url(header())[:-1] + "_." + base64url(b"{}") + ".AA",
    "a signature with left-over bits": f"{base64url(header())}.{base64url(b'{}')}.AB",
    "a signature that is no base64": f"{base64url(header())}.{base64url(b'{}')}.A",
    **{
        f"the header {name}": f"{base64url(text)}.{base64url(b'{}')}.AA"
        for name, text in {
            "null": b"null",
            "array": b"[]",
            "string": b'"ES256"',
            "empty": b"{}",
            "cut": b'{"alg":"ES256"',
            "no UTF-8": b'{"alg":"ES256","a\xff":"\xff"}',
            "alg null": header(alg=None),
            "alg number": header(alg=256),
            "alg array": header(alg=["ES256"]),
            "alg none": header(alg="none"),
            "alg None": header(alg="None"),
            "alg NONE": header(alg="NONE"),
            "alg nOnE": header(alg="nOnE"),
            "alg empty": header(alg=""),
            "alg HS256": header(alg="HS256"),
            "alg HS384": header(alg="HS384"),
            "alg HS512": header(alg="HS512"),
            "alg RS1": header(alg="RS1"),
            "alg es256": header(alg="es256"),
            "alg ES256 and a space": header(alg="ES256 "),
            "alg ES256K": header(alg="ES256K"),
            "alg ES384, not configured": header(alg="ES384"),
            "alg PS256, not configured": header(alg="PS256"),
            "alg of encryption": header(alg="RSA-OAEP"),
            "alg dir": header(alg="dir"),
            "alg twice": b'{"alg":"ES256","alg":"none"}',
            "kid number": header(kid=1),
            "kid array": header(kid=["one"]),
            "kid object": header(kid={"a": 1}),
            "typ number": header(typ=1),
            "typ of an ID token": header(typ="id_token"),
            "typ of a logout token": header(typ="logout+jwt"),
            "typ of a security event": header(typ="secevent+jwt"),
            "typ of a DPoP proof": header(typ="dpop+jwt"),
            "typ of introspection": header(typ="token-introspection+jwt"),
            "typ of client metadata": header(typ="oauth-client-attestation+jwt"),
            "typ empty": header(typ=""),
            "crit": header(crit=["exp"]),
            "crit empty": header(crit=[]),
            "crit null": header(crit=None),
            "b64": header(b64=False),
            "enc": header(enc="A128GCM"),
            "deep": b'{"alg":"ES256","x":' + NESTED + b"}",
            "not UTF-8": b'{"alg":"ES256","kid":"\xff"}',
            "a lone surrogate": b'{"alg":"ES256","kid":"\\ud800"}',
            "a byte order mark": b"\xef\xbb\xbf" + header(),
            "NUL after it": header() + b"\0",
            "two objects": header() + header(),
            "NaN": b'{"alg":"ES256","x":NaN}',
            "a comment": b'{"alg":"ES256"/**/}',
        }.items()
    },
    **{
        f"the payload {name}": f"{base64url(header())}.{base64url(text)}.AA"
        for name, text in {
            "null": b"null",
            "array": b"[]",
            "string": b'"x"',
            "number": b"1",
            "cut": b'{"iss":',
            "deep": b'{"x":' + NESTED + b"}",
            "not UTF-8": b'{"sub":"\xff"}',
            "UTF-16": '{"sub":"a"}'.encode("utf-16"),
            "a lone surrogate": b'{"sub":"\\udfff"}',
            "NaN": b'{"exp":NaN}',
            "Infinity": b'{"exp":Infinity}',
            "1e400": b'{"exp":1e400}',
            "a JWT": signed().encode(),
            "two objects": b"{}{}",
            "NUL": b"{\0}",
        }.items()
    },
}


@pytest.mark.parametrize("token", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_cannot_be_read_is_refused(token: str) -> None:
    assert is_signed(token)
    with pytest.raises(InvalidToken) as caught:
        read_signed(token, ALGORITHMS)
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("kind", ["at+jwt", "AT+JWT", "application/at+jwt", "JWT", "jwt", None])
def test_types_of_access_tokens(kind: str | None) -> None:
    assert read_signed(signed(header={"typ": kind}), ALGORITHMS).kid == "one"


def test_other_members_of_the_header_mean_nothing() -> None:
    """Keys that a token brings along are never used."""
    own = {"jwk": {}, "jku": "https://evil.example", "x5u": "x", "x5c": ["x"], "x5t": "x", "cty": 1}
    token = read_signed(signed(header=own), ALGORITHMS)
    assert (token.algorithm, token.kid, token.claims) == ("ES256", "one", claims())


#: Claims that admit nobody, by what is changed in good ones.
WRONG: dict[str, dict[str, Any]] = {
    "another issuer": {"iss": "https://evil.example.org"},
    "the issuer with a slash": {"iss": ISSUER + "/"},
    "the issuer in upper case": {"iss": ISSUER.upper()},
    "the issuer with http": {"iss": ISSUER.replace("https", "http")},
    "no issuer": {"iss": None},
    "issuers": {"iss": [ISSUER]},
    "issuer 1": {"iss": 1},
    "another audience": {"aud": "https://mcp.example.org/other/mcp"},
    "a longer audience": {"aud": AUDIENCE + "/more"},
    "a shorter audience": {"aud": "https://mcp.example.org/files"},
    "the audience with a query": {"aud": AUDIENCE + "?"},
    "the path in upper case": {"aud": "https://mcp.example.org/FILES/mcp"},
    "the audience with a space": {"aud": AUDIENCE + " "},
    "two audiences in one": {"aud": f"{AUDIENCE} https://other.example"},
    "no audience": {"aud": None},
    "no audiences": {"aud": []},
    "audience true": {"aud": True},
    "audience 1": {"aud": 1},
    "an audience in an object": {"aud": {AUDIENCE: 1}},
    "audiences in a list": {"aud": [[AUDIENCE]]},
    "an audience and a number": {"aud": [AUDIENCE, 1]},
    "an audience of *": {"aud": "*"},
    "no exp": {"exp": None},
    "exp past": {"exp": int(NOW) - LEEWAY},
    "exp long past": {"exp": 1},
    "exp 0": {"exp": 0},
    "exp negative": {"exp": -1},
    "exp a string": {"exp": str(int(NOW) + 600)},
    "exp true": {"exp": True},
    "exp a list": {"exp": [int(NOW) + 600]},
    "exp an object": {"exp": {}},
    "exp huge": {"exp": 10**400},
    "exp beyond the years": {"exp": MAX_EPOCH_SECONDS + 1},
    "exp in milliseconds": {"exp": int(NOW) * 1000},
    "nbf in the future": {"nbf": int(NOW) + LEEWAY + 1},
    "nbf a string": {"nbf": "0"},
    "nbf false": {"nbf": False},
    "nbf negative": {"nbf": -1},
    "iat in the future": {"iat": int(NOW) + LEEWAY + 1},
    "iat a string": {"iat": "now"},
    "iat huge": {"iat": 10**30},
    "no subject": {"sub": None},
    "an empty subject": {"sub": ""},
    "subject 1": {"sub": 1},
    "subject true": {"sub": True},
    "subjects": {"sub": ["alice"]},
    "a long subject": {"sub": "a" * (MAX_SUBJECT_CHARS + 1)},
    "a subject with NUL": {"sub": "alice\0"},
    "a subject with a new line": {"sub": "alice\nbob"},
    "a subject with a carriage return": {"sub": "alice\r"},
    "a subject with an escape": {"sub": "\x1b[31malice"},
    "a subject with DEL": {"sub": "alice\x7f"},
    "a subject with NEL": {"sub": "alice\x85"},
    "a subject with a line separator": {"sub": "alice\u2028"},
    "bound to a key": {"cnf": {"jkt": "x"}},
    "bound to a certificate": {"cnf": {"x5t#S256": "x"}},
    "bound to nothing": {"cnf": {}},
    "an ID token": {"at_hash": "x"},
    "an ID token with a code": {"c_hash": "x"},
    "a logout token": {"events": {}},
    "scopes 1": {"scope": 1},
    "scopes in an object": {"scope": {"a": 1}},
    "scopes that are no strings": {"scope": ["a", 1]},
    "scopes in lists": {"scope": [["a"]]},
}


@pytest.mark.parametrize("changed", WRONG.values(), ids=WRONG.keys())
def test_wrong_claims_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(InvalidToken) as caught:
        rules().check(claims(**changed), NOW)
    assert len(str(caught.value)) < 100
    if "exp" not in changed:
        # An answer of introspection may leave out two of them.
        optional = changed in ({"iss": None}, {"sub": None})
        with nullcontext() if optional else pytest.raises(InvalidToken):
            rules().check_introspected(claims(**changed), NOW)


def test_there_are_many_hostile_tokens() -> None:
    assert len(UNREADABLE) + len(WRONG) >= 100


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"aud": [AUDIENCE]},
        {"aud": ["https://other.example", AUDIENCE]},
        {"aud": AUDIENCE + "/"},
        {"aud": "HTTPS://MCP.example.ORG/files/mcp"},
        {"exp": int(NOW) - LEEWAY + 1},
        {"exp": NOW + 0.5},
        {"exp": MAX_EPOCH_SECONDS},
        {"nbf": int(NOW) + LEEWAY},
        {"nbf": 0},
        {"iat": int(NOW) + LEEWAY},
        {"iat": None},
        {"sub": "a" * MAX_SUBJECT_CHARS},
        {"sub": "auth0|Zoë Müller"},
        {"scope": None},
    ],
)
def test_good_claims_are_accepted(changed: dict[str, Any]) -> None:
    rules().check(claims(**changed), NOW)


def test_an_audience_need_not_be_a_url() -> None:
    """Entra and Keycloak put names of their own there, which are compared as they are."""
    rules("api://1234/", "Files").check(claims(aud="Files"), NOW)
    rules("api://1234/", "Files").check(claims(aud="api://1234/"), NOW)
    for wrong in ("files", "Files/", "api://1234"):
        with pytest.raises(InvalidToken):
            rules("api://1234/", "Files").check(claims(aud=wrong), NOW)


@pytest.mark.parametrize(
    ("value", "scopes"),
    [
        (None, set()),
        ("", set()),
        ("a", {"a"}),
        ("a b  a", {"a", "b"}),
        (["a", "b", "a"], {"a", "b"}),
        (["a b", "c", "", 'd"', "\\", "é", "x\n"], {"c"}),
        ("a\tb c", {"c"}),
        ([], set()),
    ],
)
def test_scopes(value: Any, scopes: set[str]) -> None:
    named = rules(scope_claim="scp").identity(claims(scope=None, scp=value))
    assert named.scopes == scopes


def test_an_identity_has_what_the_token_says() -> None:
    identity = rules().identity(claims(team={"a": [1]}))
    assert (identity.issuer, identity.subject) == (ISSUER, "alice")
    assert identity.scopes == {"files:read", "files:write"}
    assert identity.expires_at == NOW + 600
    assert identity.claims["team"] == {"a": [1]}
    with pytest.raises(TypeError):
        identity.claims["sub"] = "bob"  # type: ignore[index]


@pytest.mark.parametrize(
    "changed",
    [
        {"token_type": "DPoP"},
        {"token_type": 1},
        {"token_type": None, "exp": int(NOW)},
        {"sub": None, "client_id": None},
        {"sub": None, "client_id": 7},
        {"sub": ""},
        {"iss": "https://evil.example.org"},
        {"aud": None},
    ],
)
def test_wrong_answers_of_introspection_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(InvalidToken):
        rules().check_introspected(claims(**changed), NOW)


def test_a_client_may_be_the_subject_of_an_answer() -> None:
    answer = claims(sub=None, iss=None, exp=None, token_type="bearer")
    rules().check_introspected(answer, NOW)
    identity = rules().introspected_identity(answer, NOW + 60)
    assert (identity.subject, identity.expires_at) == ("app", None)
    assert identity.recheck_at == NOW + 60
    until_then = rules().introspected_identity(claims(exp=NOW + 5), NOW + 60)
    assert (until_then.expires_at, until_then.recheck_at) == (NOW + 5, NOW + 5)


@given(st.text(), st.binary(), st.binary(), st.binary())
def test_the_parser_refuses_whatever_it_cannot_read(
    text: str, header: bytes, payload: bytes, signature: bytes
) -> None:
    for token in (text, ".".join(map(base64url, (header, payload, signature)))):
        with suppress(InvalidToken):
            assert not is_signed(token) or read_signed(token, ALGORITHMS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(["iss", "aud", "exp", "nbf", "iat", "sub", "scope", "cnf", "token_type"])


@given(st.dictionaries(NAMES | st.text(), JSON))
def test_the_rules_raise_nothing_else(changed: dict[str, Any]) -> None:
    said = {**claims(), **changed}
    for check, identify in (
        (rules().check, rules().identity),
        (rules().check_introspected, lambda said: rules().introspected_identity(said, 0)),
    ):
        try:
            check(said, NOW)
        except InvalidToken:
            continue
        identity = identify(said)
        assert all(" " not in scope for scope in identity.scopes)


@given(st.sampled_from(["alg", "kid", "typ", "crit", "enc"]) | st.text(), JSON)
def test_a_header_may_have_anything(name: str, value: Any) -> None:
    try:
        token = read_signed(signed(header={name: value}), ALGORITHMS)
    except InvalidToken:
        return
    assert token.algorithm in ALGORITHMS
