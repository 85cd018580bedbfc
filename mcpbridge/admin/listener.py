"""
The admin listeners: what opens and closes them, and all that is behind them.

Knows endpoints; must not know what is served there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.admin.events import EventStreams
from mcpbridge.admin.operators import Operators
from mcpbridge.admin.routes import AdminResource
from mcpbridge.admin.site import ADMIN_CLOSE_SECONDS, AdminConnections, AdminSite
from mcpbridge.admin.socket_file import new_path
from mcpbridge.admin.status import Status
from mcpbridge.admin.view import BridgeView
from mcpbridge.config.tuning import BACKLOG
from mcpbridge.errors import BridgeError, CannotListen
from mcpbridge.guard import guarded
from mcpbridge.web.listeners import close_port, make_endpoint
from mcpbridge.web.urls import exposed

#: What `admin_listen` says where there is to be no admin listener.
NONE = "none"


class AdminListeners:
    """
    The admin listeners of a bridge: those of `admin_listen`, or else, if `folder` is given, a
    UNIX socket in the directory that `folder` returns.

    Raises `SettingError` for wrong tokens.
    """

    log = Logger()

    def __init__(
        self, view: BridgeView, reactor: Any, folder: Callable[[], str] | None = None
    ) -> None:
        self._reactor = reactor
        self._folder = folder
        given = view.settings.admin_listen
        self._descriptions = [] if given in (None, (), (NONE,)) else list(given or ())
        #: True where a socket of its own is to be opened.
        self._wants_socket = given is None and folder is not None
        self._ports: list[IListeningPort] = []
        #: The path of the socket of its own, while it is open.
        self.path: str | None = None
        self._operators = Operators(view.settings, reactor)
        self._view = view
        self._connections = AdminConnections(reactor)
        self._status = Status(view, reactor)
        self._streams = EventStreams(self._status.document, reactor)

    def site(self, *, trusted: bool) -> AdminSite:
        resource = AdminResource(
            self._view, self._reactor, self._operators, self._status, self._streams
        )
        return AdminSite(resource, self._reactor, self._connections, trusted=trusted)

    def open(self) -> None:
        """Open the listeners of the settings, or none of them and raise `CannotListen`."""
        if self._ports:
            return
        try:
            for each in self._descriptions:
                self._ports.append(self._listen(each))
        except CannotListen:
            self._close_ports()
            raise

    def start(self) -> None:
        """
        Open the socket, if there is to be one: once the process has the user that it keeps.

        If that fails there is a warning, and the bridge serves all the same.
        """
        self._status.start()
        if self._wants_socket and self.path is None:
            try:
                self._open_socket()
            except Exception as error:
                self.log.warn(
                    "there is no admin socket, so `mcpbridge status` cannot reach this bridge:"
                    " {reason}",
                    reason=error if isinstance(error, BridgeError) else Failure().getErrorMessage(),
                )
        for port in self._ports:
            self.log.info("admin listener at {address}", address=_shown(port))
        for origin in exposed(self._ports):
            if origin.startswith("http:"):
                self.log.warn(
                    "the admin listener at {origin} can be reached from other machines without"
                    " TLS, so tokens are sent in clear: use `https:` in admin_listen, or listen on"
                    " loopback behind a proxy or a tunnel of ssh",
                    origin=origin,
                )

    def _open_socket(self) -> None:
        assert self._folder is not None
        path = new_path(self._folder())
        site = self.site(trusted=True)
        # It takes no connection until the mode is set.
        port = self._reactor.listenUNIX(path, site, backlog=BACKLOG, mode=0o600)
        self._ports.append(port)
        self.path = path

    def _listen(self, description: str) -> IListeningPort:
        """Open one listener of the settings.  Raises `CannotListen`."""
        kind = description.partition(":")[0]
        if kind == "unix" and ":mode=" not in description:
            # Twisted's default lets every user of the machine connect.
            description += ":mode=600"
        opened: list[IListeningPort] = []
        failed: list[str] = []
        try:
            listening = make_endpoint(self._reactor, description).listen(
                self.site(trusted=kind == "unix")
            )
            listening.addCallbacks(opened.append, lambda x: failed.append(x.getErrorMessage()))
        except Exception as error:
            failed.append(str(error))
        if not opened:
            why = failed[0] if failed else "it does not listen at once"
            raise CannotListen(f"cannot listen on {description!r} (admin_listen): {why}")
        return opened[0]

    def close(self) -> Deferred[Any]:
        """Close the listeners and their connections; fires within two `ADMIN_CLOSE_SECONDS`."""
        guarded(self.log, "closing the streams of the status", self._streams.stop)
        closed = DeferredList([self._close_ports(), self._connections.close()], consumeErrors=True)
        return closed.addTimeout(
            2 * ADMIN_CLOSE_SECONDS, self._reactor, onTimeoutCancel=self._not_closed
        )

    def _not_closed(self, result: object, seconds: float) -> None:
        self.log.warn("an admin listener was not closed in {seconds:g} s", seconds=seconds)

    def _close_ports(self) -> Deferred[Any]:
        ports, self._ports = self._ports, []
        self.path = None
        return DeferredList([close_port(each) for each in ports], consumeErrors=True)


def _shown(port: IListeningPort) -> str:
    """Return where a listener is, for people."""
    address: Any = port.getHost()
    name = getattr(address, "name", None)
    if name is not None:
        return os.fsdecode(name)
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}"
