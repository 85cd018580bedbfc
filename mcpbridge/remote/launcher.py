"""
The launcher of a remote server: its backends are sessions there.

To launch is to connect, with TLS, and nothing else: so a server that cannot be reached is
one that cannot be started, and an idle session costs the server nothing.  The first
message goes over that connection.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure
from zope.interface import implementer

from mcpbridge.config.oauth import origin_of
from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import CannotStart, Described, SettingError
from mcpbridge.interfaces import IBackendLauncher
from mcpbridge.remote.backend import RemoteBackend
from mcpbridge.remote.connections import Connections, make_endpoint
from mcpbridge.remote.context import RemoteServer
from mcpbridge.remote.http_client import HttpClient
from mcpbridge.remote.problems import CannotConnect, shown_url
from mcpbridge.remote.proxies import BadProxy, proxy_for
from mcpbridge.remote.tls import BadAuthorities, ClientTls
from mcpbridge.response_budget import ResponseBudget


@implementer(IBackendLauncher)
class RemoteLauncher:
    """
    Opens sessions at the remote server of `settings.url`.

    `environment` may name proxies.  Raises `SettingError` without the extra `remote`.
    """

    def __init__(
        self,
        settings: ServerSettings,
        reactor: Any,
        environment: Mapping[str, str] = os.environ,
        *,
        budget: ResponseBudget | None = None,
    ) -> None:
        _check_extra(settings)
        url = settings.url or ""
        parts = urlsplit(url)
        self._settings = settings
        self._reactor = reactor
        self._environment = environment
        self._budget = budget
        self._tls = ClientTls(settings.ca_file)
        self._server = RemoteServer(
            settings,
            origin_of(url),
            (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            shown_url(url),
            settings.remote_transport,
        )

    def check(self) -> str | None:
        """Return what is wrong with `ca_file` or with a proxy; None if nothing is."""
        try:
            self._client()
        except CannotStart as error:
            return str(error)
        return None

    def launch(self, receiver: Any, label: str) -> Deferred[RemoteBackend]:
        """
        Connect to the server; return a `Deferred` of a session that begins with its first message.

        It fails with `CannotStart` if there is no connection.
        """
        try:
            client = self._client()
        except CannotStart as error:
            return fail(error)

        def connected(_: None) -> RemoteBackend:
            return RemoteBackend(self._server, client, self._reactor, receiver, self._budget)

        def failed(failure: Failure) -> NoReturn:
            client.close()
            failure.trap(CannotConnect)
            raise self._cannot_start(str(failure.value)) from None

        return client.prepare().addCallbacks(connected, failed)

    def _cannot_start(self, why: str) -> CannotStart:
        return CannotStart(f"the remote server {self._server.shown} cannot be reached: {why}")

    def _client(self) -> HttpClient:
        """Return a client of its own for a session.  Raises `CannotStart`."""
        settings, origin = self._settings, self._server.origin
        seconds = settings.connect_timeout
        try:
            proxy = proxy_for(origin, self._environment)
            is_tls = origin.scheme == "https"
            if is_tls or (proxy is not None and proxy.tls):
                self._tls.refresh()
        except (BadProxy, BadAuthorities) as error:
            raise self._cannot_start(str(error)) from None
        endpoint = make_endpoint(self._reactor, origin, proxy, self._tls.creator, seconds)
        ends_in_tls = is_tls or (proxy is not None and proxy.tls)
        connections = Connections(self._reactor, endpoint, seconds, is_tls=ends_in_tls)
        return HttpClient(self._reactor, connections, origin, dict(settings.headers), proxy)


def _check_extra(settings: ServerSettings) -> None:
    """Raise `SettingError` without treq and TLS."""
    try:
        import OpenSSL  # noqa: F401
        import service_identity  # noqa: F401
        import treq  # noqa: F401
    except ImportError as error:
        name = f"mcpServers.{settings.name}.url"
        expected = "the extra `remote`: pip install 'mcpbridge[remote]'"
        raise SettingError(name, expected, Described(f"no module {error.name!r}")) from None
