"""
TLS listeners whose certificates are read again when they change, and the certificate
that a client has shown.

Knows TLS and its files; must not know HTTP, nor whom a certificate names.

pyOpenSSL and cryptography are imported when they are needed first: only the extra `tls`
installs them.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from zope.interface import implementer

from mcpbridge.config.tuning import CERTIFICATE_CHECK_SECONDS, CERTIFICATE_FILE_BYTES
from mcpbridge.rate_limited_log import RateLimitedLog, times

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from OpenSSL.SSL import Connection
    from twisted.internet.ssl import CertificateOptions
    from twisted.protocols.tls import TLSMemoryBIOProtocol

#: Which file it is, its size, and when it was written and changed; None if it is not there.
Stamp = tuple[int, int, int, int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """
    The paths of the files of a listener, all of them in PEM.

    `certificate` is the listener's own with its chain, `key` its private key, which may be
    in the same file, and `client_ca` the authorities whose client certificates are accepted.
    """

    certificate: str
    key: str
    client_ca: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Return the path of each file."""
        paths = (self.certificate, self.key)
        return paths if self.client_ca is None else (*paths, self.client_ca)


def stamp_of(path: str) -> Stamp:
    """Return what differs once a file, or what a link leads to, is another."""
    try:
        at = os.stat(path)
    except OSError:
        return None
    return (at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns)


@implementer(IOpenSSLServerConnectionCreator)
class ReloadedCertificates:
    """
    Makes the TLS side of each new connection, from the files as they are now.

    The files are checked when a connection comes, once in `CERTIFICATE_CHECK_SECONDS`.  A
    check is three `stat`, which follow symbolic links, so that it does not matter whether
    a file is written, replaced, or a link to it turned.  What was changed is used as a
    whole or not at all: while a file is half written, or the key is not yet that of the
    certificate, connections get the former ones, and the next check tries again.
    Connections that exist keep what they have begun with.

    Raises `ValueError` or `OSError` if the files cannot be used at the start.
    """

    log = Logger()

    def __init__(
        self,
        files: TlsFiles,
        clock: IReactorTime,
        stamp: Callable[[str], Stamp] = stamp_of,
    ) -> None:
        self._files = files
        self._stamp = stamp
        self._clock = clock
        self._complaints = RateLimitedLog(clock)
        self._next_check = float("-inf")
        self._stamps = self._stamps_now()
        self._digest, contents = self._read()
        self._options = _options(files, contents)
        #: Whether to read the files even if nothing else says that they have changed.
        self._read_again = True

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> Connection:
        """Return the TLS side of a connection; Twisted calls this for each."""
        now = self._clock.seconds()
        if now >= self._next_check:
            self._next_check = now + CERTIFICATE_CHECK_SECONDS
            self._check()
        return self._options.serverConnectionForTLS(protocol)

    def _check(self) -> None:
        stamps = self._stamps_now()
        if stamps == self._stamps and not self._read_again:
            return
        # Once more at the next check: a file may change twice within one tick of the clock
        # that its times are taken from.
        self._read_again = stamps != self._stamps
        self._stamps = stamps
        try:
            digest, contents = self._read()
            if digest == self._digest:
                return
            options = _options(self._files, contents)
        except Exception as error:
            self._read_again = True
            self._complain(error)
            return
        self._digest, self._options = digest, options
        self.log.info(
            "TLS: {path} has changed and is used for new connections", path=self._files.certificate
        )

    def _complain(self, error: Exception) -> None:
        self._complaints.add()
        count = self._complaints.due()
        if count is not None:
            self.log.warn(
                "TLS: the files have changed and cannot be used; new connections get the former"
                " certificate: {error}{times}",
                error=error,
                times=times(count),
            )

    def _stamps_now(self) -> list[Stamp]:
        return [self._stamp(path) for path in self._files.paths]

    def _read(self) -> tuple[bytes, list[bytes]]:
        """Return a digest of all files, which has nothing of the key, and their contents."""
        contents = [_contents(path) for path in self._files.paths]
        digest = hashlib.sha256()
        for each in contents:
            digest.update(hashlib.sha256(each).digest())
        return digest.digest(), contents


def _open_at_once(path: str, flags: int) -> int:
    """Open a file, but do not wait for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _contents(path: str) -> bytes:
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path} is no regular file")
        data = file.read(CERTIFICATE_FILE_BYTES + 1)
    if len(data) > CERTIFICATE_FILE_BYTES:
        raise ValueError(f"{path} has more than {CERTIFICATE_FILE_BYTES} bytes")
    return data


def _options(files: TlsFiles, contents: list[bytes]) -> CertificateOptions:
    """
    Return the TLS configuration of a listener: TLS 1.2 or later, no session resumption.

    A client certificate is asked for if there are `client_ca`, and not required, since a
    client may have a token instead; one that is not theirs fails the handshake.
    Raises `ValueError`.
    """
    from OpenSSL.crypto import X509, X509StoreFlags
    from twisted.internet.ssl import CertificateOptions

    own, *chain = _certificates(files.certificate, contents[0])
    key = _private_key(files.key, contents[1])
    if _public_bytes(key) != _public_bytes(own):
        raise ValueError(
            f"the key in {files.key} is not that of the first certificate in {files.certificate}"
        )
    # Without a path for `client_ca` there are no contents of it.
    authorities = [
        X509.from_cryptography(each)
        for data in contents[2:]
        for each in _certificates(str(files.client_ca), data)
    ]
    # The types of Twisted are older than what pyOpenSSL prefers.
    certificate: Any = own
    extra: Any = chain
    options = CertificateOptions(
        privateKey=key,
        certificate=certificate,
        extraCertChain=extra,
        verify=bool(authorities),
        caCerts=authorities or None,
        requireCertificate=False,
        acceptableProtocols=[b"http/1.1"],
    )
    context = options.getContext()
    if authorities:
        store = context.get_cert_store()
        if store is not None:
            # An intermediate authority may be given without its root: the root's others
            # are not accepted then.
            store.set_flags(X509StoreFlags.PARTIAL_CHAIN)
    return options


def _certificates(path: str, data: bytes) -> list[Certificate]:
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(data)
    except ValueError:
        raise ValueError(f"{path} has no certificate in PEM, or a broken one") from None


def _private_key(path: str, data: bytes) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(data, password=None)
    except TypeError:
        raise ValueError(f"the key in {path} has a passphrase; the bridge asks for none") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{path} has no private key in PEM, or a broken one") from None


def _public_bytes(pair: Any) -> bytes:
    """Return the public key of a certificate or of a private key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key: bytes = pair.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return key


@implementer(IStreamServerEndpoint)
class TlsEndpoint:
    """An endpoint with TLS over another one."""

    def __init__(
        self,
        endpoint: IStreamServerEndpoint,
        certificates: ReloadedCertificates,
        clock: IReactorTime,
    ) -> None:
        self._endpoint = endpoint
        self._certificates = certificates
        self._clock = clock

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen with TLS."""
        from twisted.protocols.tls import TLSMemoryBIOFactory

        secured = TLSMemoryBIOFactory(self._certificates, False, factory, clock=self._clock)
        listening: Deferred[IListeningPort] = self._endpoint.listen(secured)
        return listening


def client_certificate(transport: Any) -> bytes | None:
    """
    Return the client certificate of a connection, in DER; None if there is none.

    Looks through wrappers.  The handshake has proven that the client has its key and that
    it is of one of the listener's `client_ca`.  It cannot change while a connection lasts,
    since clients of TLS 1.2 cannot renegotiate: ask once.
    """
    while transport is not None:
        get = getattr(transport, "getPeerCertificate", None)
        if get is not None:
            return _encoded(get)
        transport = getattr(transport, "transport", None)
    return None


def _encoded(get: Any) -> bytes | None:
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        certificate = get()
    except AttributeError:
        # The connection is lost, and the TLS side of it gone.
        return None
    if certificate is None:
        return None
    encoded: bytes = certificate.to_cryptography().public_bytes(Encoding.DER)
    return encoded
