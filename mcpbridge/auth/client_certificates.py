"""
Identities of TLS client certificates.

Knows what a certificate says of its holder; must not know how it was verified, which
the listener has done.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from zope.interface import implementer

from mcpbridge.auth.identity import CERTIFICATE, MAX_SUBJECT_CHARS, Identity, is_subject
from mcpbridge.config.auth import ClientCertificates
from mcpbridge.errors import Described, Forbidden, InvalidToken, SettingError
from mcpbridge.interfaces import IAuthenticationRequest, IAuthenticator

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

#: How many certificates are cached with the identities that they prove.
KNOWN_CERTIFICATES = 1024
#: What an error calls the part of a certificate that names the caller.
_PARTS = {
    "common_name": "common name",
    "email": "e-mail address among its alternative names",
    "dns": "DNS name among its alternative names",
    "uri": "URI among its alternative names",
    "fingerprint": "fingerprint",
}
_ASCII_PARTS = frozenset({"email", "dns", "uri"})


@implementer(IAuthenticator)
class ClientCertificateAuthenticator:
    """
    Returns the identity that the client certificate of a connection proves.

    Reading a certificate takes 50 µs or more, and one connection sends many requests, so
    that identities are cached by the digest of their certificates.

    `now` returns seconds since the epoch.  Raises `SettingError` if what reads
    certificates is not installed.
    """

    def __init__(self, settings: ClientCertificates, now: Callable[[], float] = time.time) -> None:
        try:
            import cryptography.x509 as _  # noqa: F401
        except ImportError:
            raise SettingError(
                "auth.certificates",
                "`pip install 'mcpbridge[tls]'`",
                Described("an environment without the package `cryptography`"),
            ) from None
        self._part = settings.subject
        self._scopes = frozenset(settings.scopes)
        self._allow = None
        if settings.allow is not None:
            self._allow = {
                self._same(subject): frozenset(scopes) for subject, scopes in settings.allow.items()
            }
        self._now = now
        #: By digest, the one that was used last at the end.
        self._known: OrderedDict[bytes, Identity] = OrderedDict()

    def authenticate(self, request: object) -> Identity | None:
        """
        Return the identity of the request's certificate; None without a certificate.

        Raises `InvalidToken` if the certificate names nobody or has expired, and
        `Forbidden` if its holder is not allowed.
        """
        certificate = IAuthenticationRequest(request).certificate
        if certificate is None:
            return None
        digest = hashlib.sha256(certificate).digest()
        identity = self._known.get(digest)
        if identity is None:
            identity = self._identity(certificate, digest.hex())
            if len(self._known) >= KNOWN_CERTIFICATES:
                self._known.popitem(last=False)
            self._known[digest] = identity
        else:
            self._known.move_to_end(digest)
        # The connection may be older than that.
        if identity.expires_at is not None and identity.expires_at <= self._now():
            raise InvalidToken("the client certificate has expired")
        return identity

    def _identity(self, encoded: bytes, fingerprint: str) -> Identity:
        from cryptography import x509

        try:
            # It warns of names that are longer than X.520 allows.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                certificate = x509.load_der_x509_certificate(encoded)
                names = [fingerprint]
                if self._part != "fingerprint":
                    names = _names(certificate, self._part)
                expires_at = certificate.not_valid_after_utc.timestamp()
        except (
            ValueError,
            # Of a text in a bit string, and the like.
            TypeError,
            x509.DuplicateExtension,
            x509.InvalidVersion,
            x509.UnsupportedGeneralNameType,
        ):
            raise InvalidToken("the client certificate cannot be read") from None
        if len(names) != 1 or not self._is_name(names[0]):
            raise InvalidToken(
                f"the client certificate must have one {_PARTS[self._part]}, of 1 to"
                f" {MAX_SUBJECT_CHARS} printable characters"
                + (" of ASCII" if self._part in _ASCII_PARTS else "")
            )
        subject = self._same(names[0])
        scopes = self._scopes
        if self._allow is not None:
            if subject not in self._allow:
                raise Forbidden("the holder of this client certificate may not use this server")
            scopes |= self._allow[subject]
        return Identity(
            issuer=CERTIFICATE,
            subject=subject,
            scopes=scopes,
            claims={"fingerprint": fingerprint},
            expires_at=expires_at,
        )

    def _is_name(self, text: str) -> bool:
        """
        Tell whether a text may be the subject.

        Alternative names are ASCII (RFC 5280, section 4.2.1.6), but nothing has checked that.
        In lower case, the Kelvin sign would be the letter k of another caller.
        """
        return is_subject(text) and (self._part not in _ASCII_PARTS or text.isascii())

    def _same(self, subject: str) -> str:
        return same_subject(self._part, subject)


def same_subject(part: str, subject: str) -> str:
    """Return the one spelling of a subject, in a part of a certificate, that may have several."""
    if part == "fingerprint":
        # `openssl x509 -fingerprint` writes upper case, and colons between.
        return subject.replace(":", "").lower()
    return subject.lower() if part == "dns" else subject


def _names(certificate: Certificate, part: str) -> list[str]:
    """Return all texts in one part of a certificate."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    if part == "common_name":
        found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return [str(each.value) for each in found]
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    names = extension.value
    if part == "email":
        return names.get_values_for_type(x509.RFC822Name)
    if part == "dns":
        return names.get_values_for_type(x509.DNSName)
    return names.get_values_for_type(x509.UniformResourceIdentifier)
