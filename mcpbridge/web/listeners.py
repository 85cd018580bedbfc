"""
Makes an endpoint of a listener's description, logs why it cannot accept, and stops it.

Knows Twisted's descriptions and what they lack, `https:`; must not know what is served.
"""

from __future__ import annotations

import os
import re
import resource
import socket
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.logger import ILogObserver, LogEvent, Logger, globalLogPublisher
from zope.interface import implementer

from mcpbridge.config.tuning import BACKLOG
from mcpbridge.rate_limited_log import RateLimitedLog
from mcpbridge.twisted_internals import (
    CONNECTION_CLOSED,
    CONNECTION_NOT_ACCEPTED,
    DESCRIPTOR_RESERVED_AGAIN,
    RESERVED_DESCRIPTOR_RELEASED,
    accept_waiting,
    adopt_unix_port,
    inherited_descriptors,
    log_port_to,
    remove_unix_path,
)

#: The options of `https:` that TCP does not have.
_TLS_OPTIONS = ("certificate", "key", "clientCA")
#: A part of a description: everything up to a colon that no backslash escapes.
_PART = re.compile(r"(?:^|:)((?:[^:\\]|\\.)*)", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)

#: How the description of an inherited socket begins, and its domains.
_INHERITED = "systemd:"
_FAMILIES = {"INET": socket.AF_INET, "INET6": socket.AF_INET6, "UNIX": socket.AF_UNIX}
#: The kinds whose descriptions may hold `backlog`.
_WITH_BACKLOG = ("tcp", "tcp6", "ssl", "tls", "unix")


def make_endpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    """
    Return the endpoint of a description, with `BACKLOG` unless it has a backlog.

    A `systemd:` description is read as Twisted reads it (`InheritedEndpoint`).  Besides
    Twisted's descriptions there is `https:`, which is `tcp:` with TLS, or `tcp6:` if
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
        if kind + colon == _INHERITED:
            return InheritedEndpoint(reactor, rest)
        return _with_backlog(reactor, description)
    except (ImportError, NameError) as error:
        # Twisted leaves names undefined where it cannot import OpenSSL.
        raise ValueError(f"{error}; TLS needs `pip install 'mcpbridge[tls]'`") from error


def stop_listening(description: str, port: IListeningPort) -> Deferred[Any]:
    """
    Stop accepting connections, so that nobody who has connected gets a reset.

    What waits at a socket of the bridge's own is accepted first.  What waits at an inherited
    one is left to whoever accepts there next.
    """
    if not description.startswith(_INHERITED):
        accept_waiting(port, BACKLOG)
    return close_port(port)


def close_port(port: IListeningPort) -> Deferred[Any]:
    """Stop accepting connections; fires once the listener is closed."""
    remove_unix_path(port)
    return maybeDeferred(port.stopListening)


@implementer(IStreamServerEndpoint)
class InheritedEndpoint:
    """
    A listening socket that systemd has passed to this process, or a parent that does as
    systemd (sd_listen_fds(3)).

    `listen` raises `ValueError` if it has not.
    """

    def __init__(self, reactor: Any, rest: str) -> None:
        self._reactor = reactor
        options = dict(part.partition("=")[::2] for part in _PART.findall(rest))
        domain, self._index = options.pop("domain", ""), options.pop("index", None)
        self._name = options.pop("name", None)
        if domain not in _FAMILIES:
            raise ValueError(f"it needs `domain=`, which is one of {', '.join(_FAMILIES)}")
        self._family = _FAMILIES[domain]
        if (self._index is None) == (self._name is None) or options:
            raise ValueError("besides `domain` it needs `name=NAME` or `index=NUMBER`, and no more")
        if self._index is not None and not self._index.isdecimal():
            raise ValueError("`index` is the number of a descriptor, the first of which is 0")

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen on the socket."""
        descriptor = self._descriptor()
        endpoint = AdoptedStreamServerEndpoint(self._reactor, descriptor, self._family)
        if self._family == socket.AF_UNIX:
            os.set_blocking(descriptor, False)
            port = adopt_unix_port(self._reactor, descriptor, factory)
            # As the other one does: the port has another descriptor of the socket.
            os.close(descriptor)
            return succeed(port)
        listening: Deferred[IListeningPort] = endpoint.listen(factory)
        return listening

    def _descriptor(self) -> int:
        descriptors, named = inherited_descriptors()
        if self._name in named:
            return named[self._name]
        if self._index is not None and int(self._index) < len(descriptors):
            return descriptors[int(self._index)]
        if descriptors:
            names = ", ".join(map(repr, named))
            raise ValueError(f"systemd has passed {len(descriptors)} sockets: {names}")
        raise ValueError(
            "systemd has passed no socket with a name: start the bridge by a socket unit, or by"
            " `systemd-socket-activate --fdname=NAME -l ADDRESS mcpbridge ...`"
        )


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
