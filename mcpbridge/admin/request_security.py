"""
Which requests an admin listener takes at all: those of programs, and of its own page.

A page of any site may send requests to a listener that its browser reaches, also through a
tunnel of ssh, and with DNS rebinding read the responses.  Knows headers; must not know what is
served.
"""

from __future__ import annotations

from typing import Any

from mcpbridge.config.settings import BridgeSettings
from mcpbridge.errors import BadHost, Forbidden, UnsupportedMediaType
from mcpbridge.web.transport_security import LOOPBACK_NAMES, TransportSecurity


class RequestSecurity:
    """Checks requests against `admin_hosts`, and the names that this machine has for itself."""

    def __init__(self, settings: BridgeSettings) -> None:
        hosts = (*sorted(LOOPBACK_NAMES), *settings.admin_hosts)
        self._security = TransportSecurity(BridgeSettings(allowed_hosts=hosts))

    def check(self, request: Any, *, trusted: bool) -> None:
        """
        Raise `Forbidden` for a request with another `Host`, or that a page of another site may
        have sent, and `BadHost` for one without a valid `Host`; on a UNIX socket, which is
        `trusted`, a program may leave it out with HTTP/1.0.
        """
        hosts = request.requestHeaders.getRawHeaders(b"host") or []
        if trusted and hosts == [b""] and request.clientproto == b"HTTP/1.0":
            request.requestHeaders.removeHeader(b"host")
        elif not hosts and not trusted:
            raise BadHost("a request must have a Host header")
        try:
            self._security.check(request, None)
        except Forbidden as error:
            # The settings that it names are those of clients.
            what = str(error).partition(";")[0].partition(" by --")[0]
            if what.startswith("the Host"):
                what += "; name it in `admin_hosts` if it should be"
            raise Forbidden(what) from None


def check_json(request: Any) -> None:
    """
    Raise `UnsupportedMediaType` for a request that is to change something and is not declared
    as JSON: no page can send that to another site without asking first (Fetch, section 4.8).
    """
    kinds = request.requestHeaders.getRawHeaders(b"content-type") or []
    if [each.partition(b";")[0].strip().lower() for each in kinds] != [b"application/json"]:
        raise UnsupportedMediaType("the request needs the header `Content-Type: application/json`")
