"""
The index of a bridge, `GET /`: the servers that its caller may use, and how to connect.

Knows requests and who may see what; must not know how the list is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast
from urllib.parse import quote
from weakref import WeakKeyDictionary

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from mcpbridge._version import __version__
from mcpbridge.auth.access import ANYBODY, Access
from mcpbridge.config.settings import BridgeSettings
from mcpbridge.errors import (
    AuthenticationUnavailable,
    InternalError,
    MethodNotAllowed,
    MissingCredentials,
    NotAcceptable,
    Refused,
    Unauthorized,
    UnusableCredentials,
    without_frames,
)
from mcpbridge.server import Server
from mcpbridge.web.admission import Admission
from mcpbridge.web.client_snippets import Credentials
from mcpbridge.web.content_negotiation import HTML, JSON, preferred
from mcpbridge.web.index_listing import Listing, as_json, credentials_of, listed
from mcpbridge.web.index_page import CONTENT_SECURITY_POLICY, page
from mcpbridge.web.refusals import Delays, Refusals
from mcpbridge.web.response import error_body, without_body
from mcpbridge.web.urls import mcp_at

#: Servers that are asked about a caller in one iteration of the reactor: each may verify a
#: signature, and others have their turn between.
SERVERS_PER_TURN = 8

ANONYMOUS = (
    "Servers that need credentials are shown to those who send them:"
    " the header `Authorization: Bearer TOKEN`."
)
NOT_ACCEPTED = "The credentials of this request are not accepted: {why}."
NO_SERVER = "Your credentials are known, but they are for no server of this bridge."
UNCHECKED = "Your credentials cannot be checked now; try again in a few seconds."


class _Caller(NamedTuple):
    """What the access controls say of a caller: the servers that admit it, and all errors."""

    admitted: set[Server]
    refusals: list[Refused]

    def attempt(self) -> Unauthorized | None:
        """Return the error for credentials that are wrong everywhere; None if they are not."""
        if self.admitted:
            return None
        attempts = (x for x in self.refusals if isinstance(x, Unauthorized) and x.is_attempt)
        return next(attempts, None)

    def note(self) -> str:
        """Return what to tell a caller whom nobody admits; an empty string for others."""
        if self.admitted or not self.refusals:
            return ""
        attempt = self.attempt()
        if attempt is not None:
            return NOT_ACCEPTED.format(why=attempt)
        if any(isinstance(each, AuthenticationUnavailable) for each in self.refusals):
            return UNCHECKED
        if all(type(each) is Unauthorized for each in self.refusals):
            return ANONYMOUS
        return NO_SERVER


class Index(Resource):
    """
    The index.  `servers` and `settings` return those that are served now, and the bridge's;
    `origin` returns scheme and authority of a request's URLs, as its client sees them.

    It is no way to ask whether a server exists: nothing in a response depends on those that do
    not admit its caller, but that there are any.  Credentials that no server accepts are one
    failed attempt, which `delays` count like that of any other request.
    """

    isLeaf = True
    log = Logger()

    def __init__(
        self,
        servers: Callable[[], Sequence[Server]],
        settings: Callable[[], BridgeSettings],
        clock: IReactorTime,
        *,
        origin: Callable[[Any], str],
        delays: Delays | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        super().__init__()
        self._servers = servers
        self._settings = settings
        self._clock = clock
        self._origin = origin
        self._delays = delays
        self._refusals = refusals
        #: What clients of each server send: reading it from the settings takes long.
        self._credentials: WeakKeyDictionary[Server, Credentials] = WeakKeyDictionary()

    def render(self, request: Any) -> Any:
        """Write the index, as JSON or as a page."""
        if request.method not in (b"GET", b"HEAD"):
            text = f"the index takes GET{self._hint(request)}"
            return error_body(request, MethodNotAllowed(text, "GET, HEAD"))
        accepts = request.requestHeaders.getRawHeaders(b"accept") or []
        header = ", ".join(each.decode("latin-1") for each in accepts)
        media = preferred(header, (JSON, HTML))
        if media is None:
            text = f"the index is {JSON} or {HTML}{self._hint(request)}"
            return error_body(request, NotAcceptable(text))
        serving = Deferred.fromCoroutine(self._serve(request, media))
        if not serving.called:
            request.notifyFinish().addErrback(lambda _: serving.cancel())
        serving.addErrback(self._failed, request)
        return NOT_DONE_YET

    def _failed(self, failure: Failure, request: Any) -> None:
        # Without a channel its client has left, and the work was cancelled.
        if request.channel is not None and not request.startedWriting:
            self.log.failure("the index could not be made", failure)
            request.write(error_body(request, InternalError.of_ours()))
            request.finish()

    async def _serve(self, request: Any, media: str) -> None:
        servers = list(self._servers())
        caller = await self._ask(request, servers)
        attempt = caller.attempt()
        if attempt is not None:
            await self._count(request, attempt)
        if request.channel is None:
            return
        self._write(request, media, self._listing(request, servers, caller))

    # Who sees what.

    async def _ask(self, request: Any, servers: Iterable[Server]) -> _Caller:
        """Ask the access control of each server about the caller."""
        caller = _Caller(set(), [])
        waiting: list[tuple[Server, Deferred[Access]]] = []
        try:
            for number, server in enumerate(x for x in servers if not x.is_open):
                if number and number % SERVERS_PER_TURN == 0:
                    await deferLater(self._clock, 0)
                found = self._admit(request, server, caller)
                if isinstance(found, Deferred):
                    waiting.append((server, found))
                elif found is not None:
                    caller.admitted.add(server)
            answers = DeferredList([each for _, each in waiting], consumeErrors=True)
            results = await answers
            if request.channel is None:
                # Its client has left, and all that it waited for was cancelled.
                return caller
            for (server, _), (success, result) in zip(waiting, results, strict=True):
                error = None if success else cast("Any", result).value
                if error is None or isinstance(error, (MissingCredentials, UnusableCredentials)):
                    caller.admitted.add(server)
                else:
                    self._note(caller, error)
        except BaseException:
            for _, each in waiting:
                each.addErrback(lambda _: None)
                each.cancel()
            raise
        return caller

    def _admit(
        self, request: Any, server: Server, caller: _Caller
    ) -> Access | Deferred[Access] | None:
        """Ask one access control; None if it refuses the caller at once, which is noted."""
        admission = Admission(server.settings.name, server.access_control, self._delays)
        try:
            return admission.admit_at_once(request)
        except (MissingCredentials, UnusableCredentials):
            # It may use the server once it sends what its processes need.
            return ANYBODY
        except Exception as error:
            self._note(caller, error)
            return None

    def _note(self, caller: _Caller, error: Exception) -> None:
        if isinstance(error, Refused):
            caller.refusals.append(without_frames(error))
        else:
            # Of an authenticator of the operator's own; the server admits nobody then.
            self.log.failure("a request could not be authenticated", Failure(error))
            caller.refusals.append(AuthenticationUnavailable("it cannot be found out who calls"))

    async def _count(self, request: Any, attempt: Unauthorized) -> None:
        """Count a failed attempt, and wait as long as its answer is to be delayed."""
        if self._refusals is not None:
            self._refusals.note(request, attempt)
        if self._delays is None:
            return

        def refuse() -> Access:
            raise attempt

        try:
            delayed = self._delays.admitted(request, refuse)
            if isinstance(delayed, Deferred):
                await delayed
        except Unauthorized as error:
            without_frames(error)

    def _listing(self, request: Any, servers: Iterable[Server], caller: _Caller) -> Listing:
        origin = self._settings().public_url or self._origin(request)
        mount = _mount(request)
        shown = []
        for each in servers:
            if each.is_open or each in caller.admitted:
                base = each.settings.public_path
                prefix = mount + each.settings.base_uri if base is None else base
                shown.append(listed(each, self._credentials_of(each), f"{origin}{prefix}"))
        return Listing(
            origin,
            shown,
            caller.note(),
            protected=bool(caller.admitted or caller.refusals),
            version=__version__ if caller.admitted else "",
        )

    def _credentials_of(self, server: Server) -> Credentials:
        known = self._credentials.get(server)
        if known is None:
            known = self._credentials[server] = credentials_of(server, self._settings())
        return known

    def _hint(self, request: Any) -> str:
        """Return where MCP is, for a client that takes the index for it; nothing for strangers."""
        servers = [each for each in self._servers() if not each.removed]
        if not servers or not all(each.is_open for each in servers):
            return ""
        return f"; {mcp_at([each.settings for each in servers], _mount(request))}"

    # The response.

    def _write(self, request: Any, media: str, listing: Listing) -> None:
        body = page(listing) if media == HTML else as_json(listing)
        varies = request.responseHeaders.getRawHeaders(b"vary") or []
        headers = {
            b"Content-Type": b"text/html; charset=utf-8" if media == HTML else JSON.encode("ascii"),
            b"Content-Length": b"%d" % len(body),
            b"Cache-Control": b"no-store",
            b"Vary": b", ".join([*varies, b"Accept, Authorization"]),
            b"X-Content-Type-Options": b"nosniff",
            b"Referrer-Policy": b"no-referrer",
            b"Cross-Origin-Resource-Policy": b"same-origin",
        }
        if media == HTML:
            headers[b"Content-Security-Policy"] = CONTENT_SECURITY_POLICY.encode("ascii")
            headers[b"Cross-Origin-Opener-Policy"] = b"same-origin"
        for name, value in headers.items():
            request.setHeader(name, value)
        sent = without_body(request, body)
        if sent:
            request.write(sent)
        request.finish()


def _mount(request: Any) -> str:
    """Return the path at which the bridge is mounted, without a slash at its end."""
    return "".join(f"/{quote(each)}" for each in request.prepath if each)
