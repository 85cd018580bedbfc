"""
What the settings of `auth.oauth` are checked against: algorithms, and the origins of URLs.

Knows neither keys nor the network.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

#: The algorithms of signatures, and what a key for each must be: its type, and its curve.
#: Neither `none` nor one with a shared secret: who can check a token could then make one.
SIGNATURE_ALGORITHMS: dict[str, tuple[str, str | None]] = {
    "RS256": ("RSA", None),
    "RS384": ("RSA", None),
    "RS512": ("RSA", None),
    "PS256": ("RSA", None),
    "PS384": ("RSA", None),
    "PS512": ("RSA", None),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
    "Ed25519": ("OKP", "Ed25519"),
}


class Origin(NamedTuple):
    """The scheme, the host in lower case, and the port of a URL (RFC 6454)."""

    scheme: str
    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """True if the host is `localhost` or an address of this machine alone."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    def is_in(self, hosts: tuple[str, ...]) -> bool:
        """Tell whether one of these names the host, as `host` or `host:port`."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        names = {self.host, shown, f"{shown}:{self.port}"}
        return any(each.lower() in names for each in hosts)


def origin_of(url: str) -> Origin:
    """
    Return the origin of an absolute URL of HTTP.

    Raises `ValueError`, with what is wrong, for anything else, and for one with a user, a
    fragment, or characters that no URL has.
    """
    if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ValueError("characters that no URL has")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError("no URL of https")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL with a user")
    if "#" in url:
        raise ValueError("a URL with a fragment")
    if not parts.hostname:
        raise ValueError("a URL without a host")
    port = parts.port if parts.port is not None else (443 if parts.scheme == "https" else 80)
    return Origin(parts.scheme, parts.hostname, port)
