"""
Which authorities may sign the certificates of the servers that the bridge connects to.

Needs `twisted[tls]`, whose modules are imported when a function is called.
"""

from __future__ import annotations

import re
from typing import Any

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def trust_root(authorities: bytes | None) -> Any:
    """
    Return the `IOpenSSLTrustRoot` of certificates in PEM; None are the system's.

    Raises `ValueError` for what cannot be read, and `ImportError` without TLS.
    """
    from twisted.internet.ssl import Certificate, platformTrust, trustRootFromCertificates

    if authorities is None:
        return platformTrust()
    texts = _CERTIFICATE.findall(authorities)
    if not texts:
        raise ValueError("no certificate in PEM")
    try:
        return trustRootFromCertificates([Certificate.loadPEM(each) for each in texts])
    except Exception:
        # OpenSSL's own errors, which say nothing more.
        raise ValueError("a certificate that cannot be read") from None
