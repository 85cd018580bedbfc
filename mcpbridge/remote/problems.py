"""
What is wrong with a remote server, in words for the log and for clients.

Knows failures of Twisted, statuses of HTTP and URLs; must not know what a request was
for.  No text has a secret: of a URL neither the query nor a user is shown, and of its path
only plain words.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urljoin, urlsplit

from twisted.internet import defer
from twisted.internet import error as network
from twisted.python.failure import Failure
from twisted.web.http import RESPONSES

from mcpbridge.config.masking import MASK

#: So many characters are shown of what a remote server or a library has written.
SHOWN_CHARS = 200
#: A part of a path that is no key: a word in one case, perhaps with a short number.
_PLAIN_SEGMENT = re.compile(r"(?:[A-Za-z]?[a-z._-]{0,19}|[A-Za-z]{1,4}[0-9]{1,2})")


class CannotConnect(Exception):
    """There is no connection to the remote server.  Its text says why."""


class RemoteError(Exception):
    """A response that cannot be used.  Its text says why, behind "the remote server URL"."""


def shown_url(url: str) -> str:
    """
    Return a URL without its query and a user, for texts.

    Of its path only plain words are shown, as many hosts have the key of a client there;
    these texts are also for other clients.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "(not a URL)"
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    netloc = host if port is None else f"{host}:{port}"
    path = "/".join(
        each if _PLAIN_SEGMENT.fullmatch(each) else MASK for each in parts.path.split("/")
    )
    return shown(f"{parts.scheme}://{netloc}{path}" if netloc else path)


def shown_redirect(url: str, location: str) -> str:
    """Return where a redirect of a URL leads to, for texts."""
    try:
        return shown_url(urljoin(url, location))
    except ValueError:
        return "(not a URL)"


def shown(text: str) -> str:
    """Return a text of somebody else's, cut, and fit for a log."""
    return "".join(each if each.isprintable() else "?" for each in text[:SHOWN_CHARS])


def status_text(status: int) -> str:
    """Return a status with its name, as in `HTTP 404 (Not Found)`."""
    phrase = RESPONSES.get(status, b"")
    name = phrase.decode("ascii") if isinstance(phrase, bytes) else phrase
    return f"HTTP {status} ({name})" if name else f"HTTP {status}"


def connect_reason(failure: Failure, seconds: float) -> str:
    """Say why a connection could not be opened; `seconds` are those of `connect_timeout`."""
    error: Any = failure.value
    if isinstance(error, CannotConnect):
        return str(error)
    if isinstance(error, network.ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, network.DNSLookupError):
        return "its host name cannot be resolved"
    if isinstance(error, network.TimeoutError | defer.TimeoutError | defer.CancelledError):
        return f"no connection within {seconds:g} s (connect_timeout)"
    return _tls_reason(error) or lost_reason(failure)


def lost_reason(failure: Failure) -> str:
    """Say why a connection, or the response on it, has ended."""
    error: Any = failure.value
    reasons = getattr(error, "reasons", None)
    if reasons:
        return lost_reason(reasons[0])
    if isinstance(error, RemoteError | CannotConnect):
        return str(error)
    tls = _tls_reason(error)
    if tls:
        return tls
    if isinstance(error, network.ConnectionLost | network.ConnectionDone):
        return "connection lost"
    if isinstance(error, network.ConnectError):
        return shown(str(error).rstrip("."))
    if isinstance(error, defer.CancelledError):
        return "given up"
    return shown(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def _tls_reason(error: Any) -> str:
    """Return what is wrong with TLS, or with the certificate; an empty string if nothing is."""
    kind = type(error)
    if kind.__module__.startswith("service_identity"):
        return "TLS failed: the certificate is not for this host name"
    if not kind.__module__.startswith("OpenSSL"):
        return ""
    details = error.args[0] if error.args else ()
    texts = [each[-1] for each in details if isinstance(each, tuple) and each and each[-1]]
    what = shown(str(texts[0])) if texts else "the connection was closed during the handshake"
    return f"TLS failed: {what}"
