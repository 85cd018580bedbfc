"""
Makes an endpoint of a listener's description, and logs why it cannot accept.

Knows Twisted's descriptions and what they lack, `https:`; must not know what is served.
"""

from __future__ import annotations

import os
import re
import resource
from typing import Any

from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IReactorTime, IStreamServerEndpoint
from twisted.logger import ILogObserver, LogEvent, Logger, globalLogPublisher
from zope.interface import implementer

from mcpbridge.config.tuning import BACKLOG
from mcpbridge.rate_limited_log import RateLimitedLog
from mcpbridge.twisted_internals import (
    CONNECTION_CLOSED,
    CONNECTION_NOT_ACCEPTED,
    DESCRIPTOR_RESERVED_AGAIN,
    RESERVED_DESCRIPTOR_RELEASED,
    log_port_to,
)

#: The options of `https:` that TCP does not have.
_TLS_OPTIONS = ("certificate", "key", "clientCA")
#: A part of a description: everything up to a colon that no backslash escapes.
_PART = re.compile(r"(?:^|:)((?:[^:\\]|\\.)*)", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)

#: The kinds whose descriptions may hold `backlog`.
_WITH_BACKLOG = ("tcp", "tcp6", "ssl", "tls", "unix")


def make_endpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    """
    Return the endpoint of a description, with `BACKLOG` unless it has a backlog.

    Besides Twisted's descriptions there is `https:`, which is `tcp:` with TLS, or `tcp6:` if
    its `interface` is an IPv6 address; `certificate`, `key` and `clientCA` are the paths of
    `TlsFiles`.

    Raises whatever Twisted raises, and `ValueError` where that tells too little.
    """
    if description.isdecimal():
        raise ValueError(f"a port alone; for this machine: `tcp:{description}:interface=127.0.0.1`")
    kind, colon, rest = description.partition(":")
    try:
        if colon and kind == "https":
            return _https(reactor, rest)
        return _with_backlog(reactor, description)
    except (ImportError, NameError) as error:
        # Twisted leaves names undefined where it cannot import OpenSSL.
        raise ValueError(f"{error}; TLS needs `pip install 'mcpbridge[tls]'`") from error


def _https(reactor: Any, rest: str) -> IStreamServerEndpoint:
    from mcpbridge.web.tls import ReloadedCertificates, TlsEndpoint, TlsFiles

    options: dict[str, str] = {}
    others = []
    for part in _PART.findall(rest):
        name, _, value = part.partition("=")
        options[name] = _ESCAPED.sub(r"\1", value)
        if name not in _TLS_OPTIONS:
            others.append(part)
    given = {name: options[name] for name in _TLS_OPTIONS if name in options}
    if not given.get("certificate"):
        raise ValueError("`https:` needs `certificate=PATH`, and `key=PATH` unless it has both")
    if not all(given.values()):
        raise ValueError("`key` and `clientCA` of `https:` are paths")
    # Absolute, as twistd may change its directory before they are read again.
    paths = {name: os.path.abspath(path) for name, path in given.items()}
    files = TlsFiles(
        certificate=paths["certificate"],
        key=paths.get("key", paths["certificate"]),
        client_ca=paths.get("clientCA"),
    )
    kind = "tcp6" if ":" in options.get("interface", "") else "tcp"
    endpoint = _with_backlog(reactor, f"{kind}:{':'.join(others)}")
    return TlsEndpoint(endpoint, ReloadedCertificates(files, reactor), reactor)


def _with_backlog(reactor: Any, description: str) -> IStreamServerEndpoint:
    endpoint: IStreamServerEndpoint
    kind, colon, rest = description.partition(":")
    if colon and kind in _WITH_BACKLOG:
        try:
            # The last of two options counts: the user's own.
            endpoint = serverFromString(reactor, f"{kind}:backlog={BACKLOG}:{rest}")
            return endpoint
        except TypeError:
            # It has a positional backlog, or is invalid.
            pass
    endpoint = serverFromString(reactor, description)
    return endpoint


@implementer(ILogObserver)
class AcceptErrors:
    """
    Logs now and then (`RateLimitedLog`) that connections cannot be accepted,
    and what to do, instead of what Twisted logs for each.

    Without free descriptors `twisted.internet.tcp.Port` logs three lines for
    each connection, and the log fills the disk.  Nothing but those lines passes
    here, since a port logs little else.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._closed = RateLimitedLog(clock)

    def watch(self, port: IListeningPort) -> None:
        """Have one of Twisted's ports log here; others are left as they are."""
        log_port_to(port, self)

    def __call__(self, event: LogEvent) -> None:
        """Count an event about a connection, or pass on another."""
        text = str(event.get("log_format") or "")
        if text.startswith(CONNECTION_CLOSED):
            self._closed.add()
        elif text.startswith(CONNECTION_NOT_ACCEPTED):
            # None was closed: the client goes on waiting.
            self._complain(str(event.get("acceptError")))
        elif text.startswith(DESCRIPTOR_RESERVED_AGAIN):
            self._complain("EMFILE")
        elif not text.startswith(RESERVED_DESCRIPTOR_RELEASED):
            globalLogPublisher(event)

    def _complain(self, error: str) -> None:
        count = self._closed.due()
        if count is None:
            return
        self.log.warn(
            "connections cannot be accepted ({error}); {count} were closed since the last such line"
            " last.  This process may have {limit} descriptors: raise the limit (ulimit -n,"
            " LimitNOFILE=) or lower max_connections and max_sessions",
            error=error,
            count=count,
            limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        )
