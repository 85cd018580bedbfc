"""
Who a caller is, once that is proven.

Knows what authenticators say of a caller; must not know how they have found out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from zope.interface import implementer

from mcpbridge.interfaces import IIdentity

#: The issuers of identities that no authorization server has issued.
NAMED_TOKEN = "token"
CERTIFICATE = "certificate"
PROXY = "proxy"

#: The longest subject that a certificate or a header may give.
MAX_SUBJECT_CHARS = 255

_NO_CLAIMS: Mapping[str, Any] = MappingProxyType({})


@implementer(IIdentity)
@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """
    A proven identity: an issuer, and a subject that is unique to it.

    `scopes` are those that were granted, `claims` whatever else the issuer says of the
    subject.  `expires_at` is in seconds since the epoch; None if it does not expire.
    `recheck_at` is when the issuer has to be asked again, if that is earlier: by the next
    request, without which streams go on for `access_control.UNCHECKED_SECONDS`.
    """

    issuer: str
    subject: str
    scopes: frozenset[str] = frozenset()
    claims: Mapping[str, Any] = field(default_factory=lambda: _NO_CLAIMS, hash=False)
    expires_at: float | None = None
    recheck_at: float | None = None


def name_of(identity: Any) -> str:
    """
    Return the name that tells an identity (`IIdentity`) from every other one.

    No issuer contains a `#`: the URL of an authorization server has no fragment (RFC 8414,
    section 2), so no two pairs have one name.
    """
    return f"{identity.issuer}#{identity.subject}"


def is_subject(text: str) -> bool:
    """
    Tell whether a text from outside may name a subject, in identities and log lines.

    It has 1 to `MAX_SUBJECT_CHARS` printable characters, and no space at either end:
    no two subjects look the same because of what nobody sees.
    """
    return 0 < len(text) <= MAX_SUBJECT_CHARS and text.isprintable() and text == text.strip()
