"""The identity that a client certificate proves."""

from __future__ import annotations

import hashlib
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from zope.interface.verify import verifyObject

from mcpbridge.auth.client_certificates import KNOWN_CERTIFICATES, ClientCertificateAuthenticator
from mcpbridge.auth.identity import MAX_SUBJECT_CHARS, name_of
from mcpbridge.auth.request import AuthenticationRequest
from mcpbridge.config.auth import ClientCertificates
from mcpbridge.errors import Forbidden, InvalidToken, SettingError
from mcpbridge.interfaces import IAuthenticator
from tests.certificates import Authority, Pair

CA = Authority()
UNTIL = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
ALICE = CA.issue("alice", until=UNTIL)
FINGERPRINT = hashlib.sha256(ALICE.der).hexdigest()


def request(certificate: bytes | None) -> AuthenticationRequest:
    return AuthenticationRequest("s", b"POST", b"/mcp", [], "192.0.2.1", certificate)


def authenticator(**settings: Any) -> ClientCertificateAuthenticator:
    return ClientCertificateAuthenticator(ClientCertificates(**settings))


def identify(pair: Pair, **settings: Any) -> Any:
    return authenticator(**settings).authenticate(request(pair.der))


def test_it_is_an_authenticator() -> None:
    verifyObject(IAuthenticator, authenticator())


def test_request_without_a_certificate_is_left_to_others() -> None:
    assert authenticator().authenticate(request(None)) is None


def test_common_name_is_the_subject_by_default() -> None:
    identity = identify(ALICE, scopes=("files:read",))
    assert (identity.issuer, identity.subject) == ("certificate", "alice")
    assert name_of(identity) == "certificate#alice"
    assert identity.scopes == {"files:read"}
    assert identity.claims == {"fingerprint": FINGERPRINT}
    assert identity.expires_at == UNTIL.timestamp()


@pytest.mark.parametrize(
    ("part", "name", "subject"),
    [
        ("email", x509.RFC822Name("alice@example.org"), "alice@example.org"),
        ("dns", x509.DNSName("Alice.Example.org"), "alice.example.org"),
        (
            "uri",
            x509.UniformResourceIdentifier("spiffe://example.org/Alice"),
            "spiffe://example.org/Alice",
        ),
    ],
)
def test_alternative_name_of_the_configured_kind_is_the_subject(
    part: str, name: x509.GeneralName, subject: str
) -> None:
    """Names of other kinds, and the common name, do not count."""
    other = x509.RegisteredID(x509.ObjectIdentifier("1.2.3"))
    assert identify(CA.issue("not me", names=[other, name]), subject=part).subject == subject
    for names in ([], [other], [name, name]):
        with pytest.raises(InvalidToken, match="must have one"):
            identify(CA.issue(subject, names=names), subject=part)


@pytest.mark.parametrize("spelling", ["lower", "upper", "colons"])
def test_fingerprint_is_allowed_in_every_spelling(spelling: str) -> None:
    pairs = [FINGERPRINT[at : at + 2] for at in range(0, 64, 2)]
    spelled = {
        "lower": FINGERPRINT,
        "upper": FINGERPRINT.upper(),
        "colons": ":".join(pairs).upper(),
    }[spelling]
    assert identify(ALICE, subject="fingerprint", allow={spelled: ()}).subject == FINGERPRINT


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("alice", "alice"),
        ("alice", "bob"),
        ("",),
        (" alice",),
        ("alice ",),
        ("ali\0ce",),
        ("ali\nce",),
        ("ali\u202ece",),
        ("alice\u00a0",),
        ("x" * (MAX_SUBJECT_CHARS + 1),),
    ],
)
def test_certificate_that_names_nobody_clearly_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(InvalidToken) as caught:
        identify(CA.issue(*names))
    assert "ali" not in str(caught.value)


@pytest.mark.parametrize("name", ["x" * MAX_SUBJECT_CHARS, "Jürgen Müller", "a b", "#"])
def test_any_printable_name_is_a_subject(name: str) -> None:
    assert identify(CA.issue(name)).subject == name


def test_only_allowed_subjects_come_in_with_their_scopes() -> None:
    allow = {"alice": ("write",), "carol": ("admin",)}
    assert identify(ALICE, allow=allow, scopes=("read",)).scopes == {"read", "write"}
    with pytest.raises(Forbidden) as caught:
        identify(CA.issue("mallory"), allow=allow)
    assert str(caught.value) == "the holder of this client certificate may not use this server"
    with pytest.raises(Forbidden):
        identify(ALICE, allow={})


def test_certificate_that_expires_on_an_open_connection_is_refused() -> None:
    now = UNTIL.timestamp() - 1
    asked = ClientCertificateAuthenticator(ClientCertificates(), lambda: now)
    assert asked.authenticate(request(ALICE.der)) is not None
    now += 1
    with pytest.raises(InvalidToken, match="expired"):
        asked.authenticate(request(ALICE.der))


def test_identity_is_cached_up_to_known_certificates() -> None:
    """The one that was not used for longest is read again."""
    asked = authenticator()
    first = asked.authenticate(request(ALICE.der))
    assert asked.authenticate(request(bytes(bytearray(ALICE.der)))) is first
    bob = asked.authenticate(request(CA.issue("bob").der))
    assert bob is not None
    # As many more as there is room for, without the time it takes to issue them.
    for number in range(KNOWN_CERTIFICATES - 2):
        asked._known[b"%d" % number] = bob
    assert asked.authenticate(request(ALICE.der)) is first
    asked.authenticate(request(CA.issue("carol").der))
    assert len(asked._known) == KNOWN_CERTIFICATES
    assert bob.claims["fingerprint"] not in {each.hex() for each in asked._known}
    assert asked.authenticate(request(ALICE.der)) is first


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("dns", x509.DNSName("abcay@example.org")),
        ("email", x509.RFC822Name("abcay@example.org")),
        ("uri", x509.UniformResourceIdentifier("abcay@example.org")),
    ],
)
def test_alternative_name_that_is_not_ascii_is_refused(part: str, name: x509.GeneralName) -> None:
    """In lower case it would be that of `kay`, and no certificate may have it."""
    plain = CA.issue("k", names=[name]).der
    encoded = plain.replace(b"abcay@", "\N{KELVIN SIGN}ay@".encode())
    assert len(encoded) == len(plain)
    assert authenticator(subject=part).authenticate(request(plain)) is not None
    with pytest.raises(InvalidToken, match="printable characters of ASCII"):
        authenticator(subject=part).authenticate(request(encoded))


def test_name_that_is_no_text_is_refused() -> None:
    """It is a bit string, which no library takes for the value of this attribute."""
    encoded = ALICE.der.replace(b"\x0c\x05alice", b"\x03\x05alice")
    assert encoded != ALICE.der
    with pytest.raises(InvalidToken, match="cannot be read"):
        authenticator().authenticate(request(encoded))


@given(st.binary(max_size=200) | st.integers(0, len(ALICE.der) - 1).map(lambda n: ALICE.der[:n]))
def test_bytes_that_are_no_certificate_are_refused(data: bytes) -> None:
    for part in ("common_name", "uri", "fingerprint"):
        with pytest.raises(InvalidToken, match="cannot be read"):
            authenticator(subject=part).authenticate(request(data))


@given(st.integers(0, len(ALICE.der) - 1), st.integers(0, 255))
def test_damaged_certificate_raises_nothing_else(at: int, byte: int) -> None:
    """Its signature is the listener's matter."""
    damaged = ALICE.der[:at] + bytes([byte]) + ALICE.der[at + 1 :]
    for part in ("common_name", "uri"):
        try:
            authenticator(subject=part).authenticate(request(damaged))
        except InvalidToken:
            pass


def test_missing_package_is_named_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.x509", None)
    with pytest.raises(SettingError, match=r"auth\.certificates: .*mcpbridge\[tls\]"):
        authenticator()
