"""The identity that a trusted proxy sends, which nobody else can claim."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zope.interface.verify import verifyObject

from mcpbridge.auth.identity import MAX_SUBJECT_CHARS, name_of
from mcpbridge.auth.proxy_identity import KNOWN_PEERS, ProxyIdentityAuthenticator
from mcpbridge.auth.request import AuthenticationRequest
from mcpbridge.config.auth import ProxyIdentity
from mcpbridge.errors import MalformedCredentials
from mcpbridge.interfaces import IAuthenticator

PROXY = "10.0.0.1"
Fields = list[tuple[bytes, bytes]]


def authenticator(
    addresses: tuple[str, ...] = ("10.0.0.0/24", "fd00::/8", "unix"), **settings: Any
) -> ProxyIdentityAuthenticator:
    values = {"header": "X-Forwarded-User", **settings}
    return ProxyIdentityAuthenticator(ProxyIdentity(addresses=addresses, **values))


def ask(fields: Fields, address: str | None = PROXY, **settings: Any) -> Any:
    request = AuthenticationRequest("s", b"POST", b"/mcp", fields, address)
    return authenticator(**settings).authenticate(request)


def user(value: bytes) -> Fields:
    return [(b"Host", b"x"), (b"x-forwarded-User", value)]


def test_it_is_an_authenticator() -> None:
    verifyObject(IAuthenticator, authenticator())


@pytest.mark.parametrize(
    "address", [PROXY, "10.0.0.255", "fd12::1", "fd12::1%eth0", "::ffff:10.0.0.1", "unix"]
)
def test_header_of_a_proxy_is_the_subject(address: str) -> None:
    identity = ask(user(b"alice"), address)
    assert name_of(identity) == "proxy#alice"
    assert identity.scopes == frozenset()
    assert identity.expires_at is None


@pytest.mark.parametrize(
    "address", [None, "", "10.0.1.1", "127.0.0.1", "::1", "::ffff:10.0.1.1", "host", "unix:"]
)
def test_header_of_anybody_else_is_ignored(address: str | None) -> None:
    """Even one that a proxy would be refused for."""
    for fields in (user(b"alice"), user(b""), user(b"a") * 2, [(b"X_Forwarded_User", b"a")]):
        assert ask(fields, address) is None


def test_unix_sockets_are_believed_only_if_named() -> None:
    assert ask(user(b"alice"), "unix", addresses=(PROXY,)) is None
    assert ask(user(b"alice"), PROXY, addresses=("unix",)) is None


def test_address_in_a_header_proves_nothing() -> None:
    fields = [*user(b"alice"), (b"X-Forwarded-For", PROXY.encode()), (b"Forwarded", b"for=unix")]
    assert ask(fields, "192.0.2.1") is None


def test_request_of_the_proxy_itself_is_left_to_others() -> None:
    assert ask([(b"Host", b"x")]) is None
    assert ask([(b"X-Forwarded-User-Id", b"alice"), (b"X-Forwarded-Use", b"alice")]) is None


@pytest.mark.parametrize(
    "fields",
    [
        user(b""),
        user(b" \t"),
        user(b"\0"),
        user(b"ali\x7fce"),
        user(b"ali\tce"),
        user(b"alice\xc2\xa0"),
        user(b"ali\xe2\x80\xaece"),
        user(b"\xff"),
        user(b"J\xfcrgen"),
        user(b"x" * (MAX_SUBJECT_CHARS + 1)),
        user(b"alice") + user(b"bob"),
        user(b"alice") + user(b"alice"),
    ],
)
def test_header_that_is_not_one_clear_name_is_malformed(fields: Fields) -> None:
    with pytest.raises(MalformedCredentials) as caught:
        ask(fields)
    assert "ali" not in str(caught.value)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("value", "subject"),
    [
        (b"  alice\t", "alice"),
        (b"a" * MAX_SUBJECT_CHARS, "a" * MAX_SUBJECT_CHARS),
        ("Jürgen Müller".encode(), "Jürgen Müller"),
        ("ü".encode() * MAX_SUBJECT_CHARS, "ü" * MAX_SUBJECT_CHARS),
        (b"CN=alice, O=Example", "CN=alice, O=Example"),
    ],
)
def test_printable_names_are_read_as_utf8(value: bytes, subject: str) -> None:
    assert ask(user(value)).subject == subject


@given(st.binary(max_size=MAX_SUBJECT_CHARS + 10))
def test_any_value_is_a_printable_subject_or_malformed(value: bytes) -> None:
    try:
        subject = ask(user(value)).subject
    except MalformedCredentials:
        return
    assert subject.isprintable()
    assert 0 < len(subject) <= MAX_SUBJECT_CHARS
    assert subject.encode() == value.strip(b" \t")


@pytest.mark.parametrize(
    ("value", "scopes"),
    [
        (b"", set()),
        (b"read", {"read"}),
        (b"read  files:write", {"read", "files:write"}),
        (b"read,write, admin,", {"read", "write", "admin"}),
    ],
)
def test_scopes_come_from_their_own_header(value: bytes, scopes: set[str]) -> None:
    fields = [*user(b"alice"), (b"X-Scopes", value)]
    assert ask(fields, scopes_header="X-Scopes").scopes == scopes
    assert ask(fields).scopes == frozenset()
    assert ask(user(b"alice"), scopes_header="X-Scopes").scopes == frozenset()


@pytest.mark.parametrize(
    "fields",
    [
        [(b"X-Scopes", b'"read"')],
        [(b"X-Scopes", b"read\tadmin")],
        [(b"X-Scopes", b"\xc3\xbc")],
        [(b"X-Scopes", b"x" * 257)],
        [(b"X-Scopes", b"read"), (b"x-scopes", b"admin")],
    ],
)
def test_malformed_scopes_are_refused(fields: Fields) -> None:
    with pytest.raises(MalformedCredentials):
        ask([*user(b"alice"), *fields], scopes_header="x-SCOPES")


@pytest.mark.parametrize("name", [b"X_Forwarded_User", b"X-Forwarded_User", b"x_forwarded-user"])
def test_name_that_some_software_takes_for_the_same_counts_for_nothing(name: bytes) -> None:
    """A proxy that removes one may pass on the other, which a client has written."""
    assert ask([(name, b"mallory")]) is None
    assert ask([(name, b"mallory"), *user(b"alice"), (name, b"\0")]).subject == "alice"
    scopes = [*user(b"alice"), (b"X_Scopes", b"admin")]
    assert ask(scopes, scopes_header="X-Scopes").scopes == frozenset()


def test_headers_on_which_the_answer_depends_are_known() -> None:
    asked = authenticator(scopes_header="X_Scopes")
    assert asked.decisive == ("x-forwarded-user", "x_scopes")
    assert asked.strips == {b"x-forwarded-user", b"x_scopes"}
    assert authenticator().decisive == ("x-forwarded-user",)
    assert authenticator().strips == {b"x-forwarded-user"}
    assert asked.believes(PROXY)
    assert not asked.believes("192.0.2.1")
    assert not asked.believes(None)


@pytest.mark.parametrize(
    ("name", "hidden_from_proxy"),
    [
        (b"X-Forwarded-User", False),
        (b"x_scopes", False),
        (b"x_forwarded-user", True),
        (b"X_FORWARDED_USER", True),
        (b"X-Scopes", True),
    ],
)
def test_what_others_send_in_place_of_a_proxy_is_hidden(
    name: bytes, hidden_from_proxy: bool
) -> None:
    """And from a proxy every other spelling of its header."""
    asked = authenticator(scopes_header="X_Scopes")
    assert asked.hides(name, PROXY) is hidden_from_proxy
    assert asked.hides(name, "192.0.2.1")
    assert asked.hides(name, None)


@pytest.mark.parametrize("name", [b"X-Forwarded-For", b"X-Forwarded-User-2", b"X--Scopes", b"\xff"])
def test_other_headers_are_not_hidden(name: bytes) -> None:
    asked = authenticator(scopes_header="X_Scopes")
    assert not asked.hides(name, PROXY)
    assert not asked.hides(name, "192.0.2.1")


def test_cache_of_peers_is_bounded_by_known_peers() -> None:
    """Anybody's address is looked up there."""
    asked = authenticator()
    for number in range(KNOWN_PEERS + 10):
        assert not asked.believes(f"192.168.{number // 256}.{number % 256}")
    assert asked._is_proxy.cache_info().currsize == KNOWN_PEERS
