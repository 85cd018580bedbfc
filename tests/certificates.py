"""Certificates for tests: authorities, and what they issue."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True)
class Pair:
    """A certificate with its key, and the certificates between it and its root."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return b"".join(each.public_bytes(Encoding.PEM) for each in (self.certificate, *self.chain))

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def encrypted_key_pem(self) -> bytes:
        secret = BestAvailableEncryption(b"passphrase")
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret)

    def write(self, folder: Path, name: str = "tls") -> tuple[Path, Path]:
        """Write both files; return their paths."""
        certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        certificate.write_bytes(self.pem)
        key.write_bytes(self.key_pem)
        return certificate, key


@dataclass
class Authority:
    """An authority, a root or one below another authority."""

    name: str = "Test CA"
    above: Authority | None = None
    key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    certificate: x509.Certificate = field(init=False)

    def __post_init__(self) -> None:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        above = self if self.above is None else self.above
        issuer = subject if self.above is None else self.above.certificate.subject
        self.certificate = (
            _builder(subject, issuer, self.key, datetime.now(UTC) + DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(above.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(
        self,
        *common_names: str,
        names: Sequence[x509.GeneralName] = (),
        usage: x509.ObjectIdentifier = CLIENT,
        until: datetime | None = None,
    ) -> Pair:
        """Issue a certificate."""
        key = new_key()
        with warnings.catch_warnings():
            # A hostile one, with names that X.520 does not allow.
            warnings.simplefilter("ignore")
            attributes = [
                x509.NameAttribute(NameOID.COMMON_NAME, each, _validate=False)
                for each in common_names
            ]
        until = datetime.now(UTC) + DAY if until is None else until
        builder = _builder(x509.Name(attributes), self.certificate.subject, key, until)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        chain = () if self.above is None else (self.certificate,)
        return Pair(builder.sign(self.key, hashes.SHA256()), key, chain)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(until - 30 * DAY)
        .not_valid_after(until)
    )
