"""
Which proxy leads to a remote server, as the environment says.

Follows curl, as its manual describes it (`http_proxy`, `HTTPS_PROXY`, `ALL_PROXY`,
`NO_PROXY`), except for this: a loopback address is never reached through a proxy.
Knows URLs and names of hosts; must not know how a proxy is asked.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from mcpbridge.config.oauth import Origin

_DEFAULT_PORTS = {"http": 80, "https": 443}
#: The port of a proxy whose URL names none, as of curl.
PROXY_PORT = 1080


class BadProxy(Exception):
    """A variable names a proxy that cannot be used.  The text has no secret."""


class Proxy(NamedTuple):
    """A proxy: where it is, whether TLS leads to it, and the value of `Proxy-Authorization`."""

    host: str
    port: int
    tls: bool
    authorization: str | None

    @property
    def shown(self) -> str:
        """The proxy as it may be logged: without a user and a password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def proxy_for(origin: Origin, environment: Mapping[str, str]) -> Proxy | None:
    """
    Return the proxy for requests to an origin; None if they go there directly.

    Raises `BadProxy` for one that the bridge cannot use.
    """
    if origin.is_loopback or _is_excepted(origin, _value(environment, "no_proxy")[1]):
        return None
    name, value = _value(environment, f"{origin.scheme}_proxy")
    if not value:
        name, value = _value(environment, "all_proxy")
    return _parse(name, value) if value else None


def _value(environment: Mapping[str, str], name: str) -> tuple[str, str]:
    """Return a variable, whose name in lower case counts before the one in capitals."""
    for each in (name, name.upper()):
        if each in environment:
            return each, environment[each].strip()
    return name, ""


def _parse(name: str, value: str) -> Proxy:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        port = parts.port
    except ValueError:
        raise BadProxy(f"the variable {name} is not the URL of a proxy") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise BadProxy(f"the variable {name} names a proxy that is neither http nor https")
    if not parts.hostname:
        raise BadProxy(f"the variable {name} names a proxy without a host")
    authorization = None
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Basic {base64.b64encode(user.encode()).decode('ascii')}"
    is_tls = parts.scheme == "https"
    return Proxy(parts.hostname, port or (443 if is_tls else PROXY_PORT), is_tls, authorization)


def _is_excepted(origin: Origin, exceptions: str) -> bool:
    if exceptions == "*":
        return True
    names = exceptions.replace(",", " ").split()
    return any(_matches(origin, each.lower()) for each in names)


def _matches(origin: Origin, name: str) -> bool:
    """
    Tell whether an element of `NO_PROXY` means an origin: a domain with all below it, an
    address or a network, each with or without a port.
    """
    if name == "*":
        return True
    host = origin.host
    try:
        address = ip_address(host)
    except ValueError:
        bare, _, port = name.partition(":")
        if port and port != str(origin.port):
            return False
        domain = bare.strip(".")
        name = host.rstrip(".")
        return bool(domain) and (name == domain or name.endswith(f".{domain}"))
    shown = f"[{host}]" if address.version == 6 else host
    if name in (shown, f"{shown}:{origin.port}"):
        return True
    try:
        return address in ip_network(name, strict=False)
    except ValueError:
        return False
