"""
Lets requests of twisted.web in: as what one was admitted is kept with it.

Knows requests and their connections; must not know how callers are told apart, which is
for access control.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from twisted.internet.address import UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from mcpbridge.auth.access import ANYBODY, Access
from mcpbridge.auth.access_control import AccessControl
from mcpbridge.auth.request import AuthenticationRequest
from mcpbridge.errors import InternalError, Refused
from mcpbridge.web.refusals import Delays, Refusals
from mcpbridge.web.response import error_body
from mcpbridge.web.tls import client_certificate

#: Returns as what a request of twisted.web is admitted, at once or later; raises a `Refused`.
Admit = Callable[[Any], Access | Deferred[Access]]

#: Returns the address of the other end of a connection, and its client certificate.
EndOf = Callable[[], tuple[str | None, bytes | None]]


def end_of(transport: Any) -> tuple[str | None, bytes | None]:
    """Return the address of the other end of a connection, and its client certificate."""
    peer = transport.getPeer()
    if isinstance(peer, UNIXAddress):
        return "unix", None
    host = getattr(peer, "host", None)
    return (None if host is None else str(host)), client_certificate(transport)


class Admission:
    """
    Admits requests to one server; everybody's where it has no access control.  `delays`
    delay the answers to those who fail.
    """

    def __init__(
        self, server: str, control: AccessControl | None, delays: Delays | None = None
    ) -> None:
        self._server = server
        self._control = control
        self._delays = delays

    def admit(self, request: Any) -> Access | Deferred[Access]:
        """Return as what a request is admitted (`Admit`)."""
        if self._control is None:
            return ANYBODY
        channel = request.channel
        if channel is None:
            raise CancelledError
        admitted: Access | None = getattr(channel, "admitted", None)
        if admitted is not None:
            # The fast path has accepted it, and hands it over.
            return admitted
        asked = self._asked(request)
        if self._delays is None:
            return self._control.admit(asked)
        return self._delays.admitted(request, partial(self._control.admit, asked))

    def admit_at_once(self, request: Any) -> Access | Deferred[Access]:
        """
        Do the same, and neither delay nor count a refusal: the caller asks several servers
        about one request, and counts it once.
        """
        if self._control is None:
            return ANYBODY
        if request.channel is None:
            raise CancelledError
        return self._control.admit(self._asked(request))

    def _asked(self, request: Any) -> AuthenticationRequest:
        fields: Sequence[tuple[bytes, bytes]] = [
            (name, value)
            for name, values in request.requestHeaders.getAllRawHeaders()
            for value in values
        ]
        return AuthenticationRequest(
            self._server,
            request.method,
            request.uri,
            fields,
            *end_of(request.channel.transport),
            share=None if self._delays is None else self._delays.share_of(request),
        )

    def hides(self, secrets: Collection[str]) -> Callable[[bytes, Any], bool]:
        """
        Return what tells which headers of a request nobody but authenticators may see:
        those in `secrets`, and what only a proxy may write.
        """

        def hides(name: bytes, request: Any) -> bool:
            if name.decode("latin-1").lower() in secrets:
                return True
            control, channel = self._control, request.channel
            return (
                control is not None
                and control.hides is not None
                and channel is not None
                and control.hides(name, end_of(channel.transport)[0])
            )

        return hides


class AdmittedResource(Resource):
    """A leaf of which only admitted requests get to the resource behind it."""

    isLeaf = True
    log = Logger()

    def __init__(self, admit: Admit, leaf: IResource, refusals: Refusals | None = None) -> None:
        super().__init__()
        self._admit = admit
        self._leaf = leaf
        self._refusals = refusals

    def render(self, request: Any) -> Any:
        """Render the resource behind it, or an error, once the caller is known."""
        try:
            admitted = self._admit(request)
        except Exception as error:
            return self._refused(request, error)
        if isinstance(admitted, Access):
            request.access = admitted
            return self._leaf.render(request)
        request.notifyFinish().addErrback(lambda _: admitted.cancel())
        admitted.addCallback(self._render, request)
        admitted.addErrback(self._fail, request)
        admitted.addErrback(lambda failure: self.log.failure("a response failed", failure))
        return NOT_DONE_YET

    def _render(self, access: Access, request: Any) -> None:
        # Without a channel its client has left, and an authenticator would not be cancelled.
        if request.channel is not None:
            request.access = access
            _write(request, self._leaf.render(request))

    def _fail(self, failure: Any, request: Any) -> None:
        # Without a channel its client has left, and it was cancelled.
        if request.channel is not None and not request.startedWriting:
            _write(request, self._refused(request, failure.value))

    def _refused(self, request: Any, error: Exception) -> bytes:
        if self._refusals is not None:
            self._refusals.note(request, error)
        if isinstance(error, Refused):
            return error_body(request, error)
        self.log.failure("a request could not be authenticated", Failure(error))
        return error_body(request, InternalError.of_ours())


def _write(request: Any, body: Any) -> None:
    if body is not NOT_DONE_YET and request.channel is not None:
        request.write(body)
        request.finish()
