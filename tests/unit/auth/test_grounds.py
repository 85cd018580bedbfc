"""What vouches for an identity, under some settings and under others."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from mcpbridge.auth.grounds import Grounds
from mcpbridge.auth.identity import CERTIFICATE, NAMED_TOKEN, PROXY, Identity
from mcpbridge.auth.named_tokens import NamedTokens
from mcpbridge.config.auth import read_auth

ONE = hashlib.sha256(b"one").hexdigest()
TWO = hashlib.sha256(b"two").hexdigest()
ISSUER = "https://login.example.org"


def grounds(auth: dict[str, Any], *own: str) -> Grounds:
    read = read_auth(auth)
    return Grounds(read, "files", NamedTokens(read.tokens) if read.tokens else None, own)


def same(issuer: str, subject: str, before: Any, after: Any) -> bool:
    """Tell whether the same vouches for somebody."""
    identity = Identity(issuer=issuer, subject=subject)
    ground = grounds(after).of(identity)
    return ground is not None and ground == grounds(before).of(identity)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ({"alice": {"sha256": ONE}}, True),
        ({"alice": {"sha256": ONE.upper()}, "bob": {"sha256": TWO}}, True),
        ({"alice": {"sha256": ONE, "servers": ["files", "x"], "scopes": ["a"]}}, True),
        ({"alice": {"sha256": ONE, "servers": ["x"]}}, False),
        ({"alice": {"sha256": TWO}}, False),
        ({"bob": {"sha256": ONE}}, False),
        ({}, False),
    ],
)
def test_named_token(after: Any, expected: bool) -> None:
    before = {"tokens": {"alice": {"sha256": ONE}}}
    assert same(NAMED_TOKEN, "alice", before, {"tokens": after}) is expected


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ({}, True),
        ({"scopes": ["a"]}, True),
        ({"allow": {"alice": []}}, True),
        ({"allow": {"bob": []}}, False),
        ({"subject": "email"}, False),
        (None, False),
    ],
)
def test_certificate(after: Any, expected: bool) -> None:
    now = {} if after is None else {"certificates": after}
    assert same(CERTIFICATE, "alice", {"certificates": {}}, now) is expected


def test_certificate_in_another_spelling() -> None:
    named = {"certificates": {"subject": "dns", "allow": {"Alice.Example": ["a"]}, "scopes": ["b"]}}
    assert same(CERTIFICATE, "alice.example", named, named)
    identity = Identity(issuer=CERTIFICATE, subject="alice.example")
    assert grounds(named).scopes(identity) == {"a", "b"}
    other = Identity(issuer=CERTIFICATE, subject="bob.example")
    assert grounds(named).scopes(other) == {"b"}


def test_proxy_and_issuer() -> None:
    proxy = {"proxy": {"header": "X-User", "addresses": ["10.0.0.1"]}}
    assert same(PROXY, "alice", proxy, proxy)
    assert not same(PROXY, "alice", proxy, {"proxy": {**proxy["proxy"], "addresses": ["10.0.0.2"]}})
    oauth: dict[str, Any] = {"oauth": {"issuer": ISSUER}}
    assert same(ISSUER, "alice", oauth, {**oauth, "scopes": "a"})
    assert not same(ISSUER, "alice", oauth, {"oauth": {"issuer": ISSUER, "audience": ["x"]}})
    assert not same(ISSUER, "alice", oauth, {})
    identity = Identity(issuer=ISSUER, subject="alice", scopes=frozenset({"a"}))
    assert grounds(oauth).scopes(identity) == {"a"}


def test_authenticator_of_the_operator_may_vouch_for_anybody() -> None:
    identity = Identity(issuer="mine", subject="alice")
    assert grounds({}, "a.B").of(identity) == grounds({}, "a.B").of(identity) == ("a.B",)
    assert grounds({}, "a.C").of(identity) != grounds({}, "a.B").of(identity)
    assert grounds({}).of(identity) is None


def test_scopes_of_a_token() -> None:
    named = grounds({"tokens": {"alice": {"sha256": ONE, "scopes": ["a", "b"]}}})
    assert named.scopes(Identity(issuer=NAMED_TOKEN, subject="alice")) == {"a", "b"}
    assert named.scopes(Identity(issuer=NAMED_TOKEN, subject="bob")) == frozenset()
