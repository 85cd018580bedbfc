"""Identities, what they are admitted as, and the requests by which they are found."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from math import inf
from typing import Any

import pytest
from zope.interface.verify import verifyObject

from mcpbridge.auth.access import ANYBODY, Access
from mcpbridge.auth.identity import CERTIFICATE, NAMED_TOKEN, PROXY, Identity, name_of
from mcpbridge.auth.request import AuthenticationRequest
from mcpbridge.interfaces import IAuthenticationRequest, IIdentity


def test_an_identity_is_named_by_issuer_and_subject() -> None:
    found = Identity(issuer="https://login.example.org/x", subject="a#b")
    verifyObject(IIdentity, found)
    assert name_of(found) == "https://login.example.org/x#a#b"
    assert (found.scopes, dict(found.claims)) == (frozenset(), {})
    assert (found.expires_at, found.recheck_at) == (None, None)
    assert hash(found) == hash(Identity(issuer="https://login.example.org/x", subject="a#b"))


def test_identities_of_one_issuer_or_one_subject_have_names_of_their_own() -> None:
    pairs = [(issuer, subject) for issuer in ("", "a", "ab") for subject in ("", "#", "a", "b#")]
    names = {name_of(Identity(issuer=issuer, subject=subject)) for issuer, subject in pairs}
    assert len(names) == len(pairs)
    assert len({NAMED_TOKEN, CERTIFICATE, PROXY}) == 3
    assert "" not in names


def test_an_identity_cannot_be_changed() -> None:
    found: Any = Identity(issuer="i", subject="s", claims={"a": 1})
    with pytest.raises(FrozenInstanceError):
        found.subject = "other"
    with pytest.raises(TypeError):
        Identity(issuer="i", subject="s").claims["a"] = 1  # type: ignore[index]


def test_anybody_has_no_name() -> None:
    assert (ANYBODY.identity, ANYBODY.name, ANYBODY.key) == (None, "", "")
    assert (ANYBODY.scopes, dict(ANYBODY.environment)) == (frozenset(), {})
    assert (ANYBODY.until, ANYBODY.fresh_until) == (inf, inf)


def test_access_belongs_to_a_name_or_another_key() -> None:
    found = Identity(issuer="i", subject="s")
    assert Access(found).key == "i#s"
    access = Access(found, scopes=frozenset({"x"}), until=3, fresh_until=2, key="i#s more")
    assert (access.name, access.key, access.scopes) == ("i#s", "i#s more", frozenset({"x"}))
    assert (access.until, access.fresh_until) == (3, 2)


def test_a_request_as_authenticators_see_it() -> None:
    fields = [(b"X-A", b"1"), (b"x-a", b"\xff"), (b"X-B", b""), (b"AUTHORIZATION", b"Bearer x")]
    found = AuthenticationRequest("s", b"POST", b"/a?\xe9", fields, "192.0.2.1", b"der")
    verifyObject(IAuthenticationRequest, found)
    assert (found.server, found.method, found.uri) == ("s", "POST", "/a?\xe9")
    assert (found.address, found.certificate) == ("192.0.2.1", b"der")
    assert found.values("x-a") == ["1", "\xff"]
    assert found.values("x-b") == [""]
    assert found.values("x-c") == []
    assert dict(found.headers) == {"x-a": "1, \xff", "x-b": "", "authorization": "Bearer x"}
    assert found.headers is found.headers
    with pytest.raises(TypeError):
        found.headers["x-a"] = "2"  # type: ignore[index]
