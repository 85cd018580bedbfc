"""
The routes of one server: `GET /sse` and `POST /message`.

The only module that imports klein, and through it the reactor: it is
imported when a resource is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast
from urllib.parse import quote

from klein import Klein  # noqa: TID253
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from werkzeug import exceptions as werkzeug_errors

from mcpbridge.errors import InternalError, MethodNotAllowed, NotFound, Refused
from mcpbridge.jsonrpc.sliced_parser import LARGE_BYTES
from mcpbridge.pacer import ENDS, Pacer
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.server import Server
from mcpbridge.web.access_expiry import EXPIRED, AccessExpiry
from mcpbridge.web.admission import Admission, AdmittedResource
from mcpbridge.web.bounded_request import refusal_of, take_body
from mcpbridge.web.client_addresses import CallerOf, access_of, no_caller
from mcpbridge.web.endpoints import Endpoint, Handler
from mcpbridge.web.refusals import AddressOf, Refusals
from mcpbridge.web.response import accept, error_body
from mcpbridge.web.server_card import ServerCards
from mcpbridge.web.sse_stream import EventStream
from mcpbridge.web.streamable_http import McpEndpoint
from mcpbridge.web.trace_headers import recorded_context


class Routes:
    """
    The paths of one server: those of HTTP+SSE (MCP 2024-11-05,
    basic/transports) are served here, `/mcp` by `McpEndpoint`.

    `client_of` returns the address whose share counts for a request, or None;
    `caller_of` who sent it, and `address_of` the address of its client itself.
    `pacer` spreads the ends of sessions whose clients leave at one time over
    iterations of the reactor.
    """

    app = Klein()
    log = Logger()

    def __init__(
        self,
        server: Server,
        clock: IReactorTime,
        client_of: Callable[[Any], str | None] = lambda request: None,
        cards: ServerCards | None = None,
        caller_of: CallerOf = no_caller,
        pacer: Pacer | None = None,
        admission: Admission | None = None,
        address_of: AddressOf = no_caller,
    ) -> None:
        settings = server.settings
        self._admission = admission or Admission(settings.name, server.access_control)
        self._refusals = Refusals(server.audit, settings.name, address_of, server.counters.refusals)
        self._address_of = address_of
        self._pacer = pacer or Pacer(clock)
        self._cards = cards or ServerCards([server])
        self._server = server
        self._clock = clock
        self._client_of = client_of
        self._caller_of = caller_of
        self._mcp = McpEndpoint(server, clock, client_of, caller_of, address_of)

    def resource(self) -> IResource:
        """Return a leaf that serves what is below the server's base."""
        leaf = cast("IResource", self.app.resource())
        return cast("IResource", AdmittedResource(self._admission.admit, leaf, self._refusals))

    def endpoints(self) -> Mapping[tuple[bytes, bytes], Endpoint]:
        """
        Return what serves requests to `/sse` and `/mcp` directly, by method and path, by
        the same handlers as klein's routes.
        """
        found: dict[tuple[bytes, bytes], Endpoint] = {}
        handlers: list[tuple[bytes, str, Handler]] = [
            (b"GET", "/sse", self.sse),
            (b"POST", "/mcp", self.mcp_post),
            (b"GET", "/mcp", self.mcp_get),
            (b"DELETE", "/mcp", self.mcp_delete),
        ]
        for method, name, handler in handlers:
            path = (self._server.settings.base_uri + name).encode("ascii")
            segments = path[1:].split(b"/")
            endpoint = Endpoint(handler, segments, self._admission.admit, self._refusals)
            for slash in (b"", b"/"):
                found[method, path + slash] = endpoint
        return found

    @app.route("/sse", methods=["GET"])
    async def sse(self, request: Any) -> None:
        """Open a session; its stream is the response."""
        if request.method != b"GET":
            raise MethodNotAllowed("an event stream is opened with GET", "GET")
        access = access_of(request)
        request.notifyFinish().addBoth(self._server.hold_stream(access))
        aborted = request.notifyFinish()

        def make_stream(session: BackendSession) -> EventStream:
            if request.channel is None:
                raise CancelledError
            stream = EventStream(request, session, self._server.settings, self._clock)
            stream.open(self._endpoint(request, session))
            return stream

        try:
            session = await self._server.open_session(
                make_stream,
                client=self._client_of(request),
                caller=self._caller_of(request),
                access=access,
                address=None if self._server.audit is None else self._address_of(request),
            )
        except BaseException:
            aborted.addErrback(lambda _: None)
            raise

        stream = cast("EventStream", session.sink)

        def client_gone(failure: Failure) -> None:
            why = stream.client_gone(_in_short(failure))
            self._pacer.run(ENDS, partial(self._server.client_left, session, why))

        aborted.addErrback(client_gone)
        expiry = AccessExpiry(
            self._clock, lambda: session.access_until, partial(session.life.end, EXPIRED)
        )
        aborted.addBoth(expiry.stop)
        # Klein finishes the response when this returns, and cancels it when
        # the connection is lost; the session's end is not for it to wait for.
        await stream.finished

    @app.route("/message", methods=["POST"])
    def message(self, request: Any) -> Deferred[None] | None:
        """Send a message of the client to its session's backend."""
        access = access_of(request)
        idents = request.args.get(b"sessionId", [])
        ident = idents[0].decode("ascii", "replace") if len(idents) == 1 else ""
        refusal = refusal_of(request)
        if refusal is not None:
            self._server.find(ident, access)
            raise refusal
        address = None if self._server.audit is None else self._address_of(request)
        body = take_body(request)
        http = recorded_context(self._server, request, body)
        if len(body) <= LARGE_BYTES:
            self._server.receive(ident, body, access, address, http)
            accept(request)
            return None
        receiving = self._server.receive_large(ident, body, access, address, http)
        return Deferred.fromCoroutine(receiving).addCallback(lambda _: accept(request))

    @app.route("/mcp", methods=["POST"])
    async def mcp_post(self, request: Any) -> None:
        """Serve a POST of Streamable HTTP: one message, or a batch."""
        await self._mcp.post(request)

    @app.route("/mcp", methods=["GET"])
    async def mcp_get(self, request: Any) -> None:
        """Open or resume a stream of Streamable HTTP."""
        if request.method != b"GET":
            raise MethodNotAllowed("the endpoint takes GET, POST and DELETE", "DELETE, GET, POST")
        await self._mcp.get(request)

    @app.route("/mcp", methods=["DELETE"])
    def mcp_delete(self, request: Any) -> None:
        """End a session of Streamable HTTP."""
        self._mcp.delete(request)

    @app.route("/mcp/server-card", methods=["GET"])
    def server_card(self, request: Any) -> bytes:
        """Return the server card: what the server has said of itself."""
        # Before the base and the two segments of this path.
        mount = request.prepath[: -2 - self._server.settings.base_uri.count("/")]
        return self._cards.card(request, self._server, mount)

    @app.handle_errors(Refused)
    def refused(self, request: IRequest, failure: Failure) -> bytes:
        """Return the body of an error response."""
        refusal = cast("Refused", failure.value)
        self._refusals.note(request, refusal)
        return error_body(request, refusal)

    @app.handle_errors(werkzeug_errors.HTTPException)
    def no_route(self, request: IRequest, failure: Failure) -> bytes:
        """Answer 404 or 405: the path is not served, or not with this method."""
        error = failure.value
        refusal: Refused = NotFound("nothing is served at this path")
        if isinstance(error, werkzeug_errors.MethodNotAllowed):
            allowed = ", ".join(sorted(set(error.valid_methods or ()) - {"HEAD"}))
            refusal = MethodNotAllowed(f"this path takes {allowed}", allowed)
        self._refusals.note(request, refusal)
        return error_body(request, refusal)

    @app.handle_errors(Exception)
    def defect(self, request: IRequest, failure: Failure) -> bytes:
        """Answer 500 for a defect of the bridge or of an extension; the log has the traceback."""
        self.log.failure("a request failed", failure)
        return error_body(request, InternalError.of_ours())

    def _endpoint(self, request: Any, session: BackendSession) -> str:
        """Return the path to post to, as the client sees it."""
        settings = self._server.settings
        base = settings.public_path
        if base is None:
            # Before the base and `/sse`: where the bridge is mounted.
            mount = request.prepath[: -1 - settings.base_uri.count("/")]
            base = "".join(f"/{quote(segment)}" for segment in mount) + settings.base_uri
        return f"{base}/message?sessionId={session.ident}"


def _in_short(failure: Failure) -> str:
    """Return why a connection was lost, in a few words."""
    return failure.getErrorMessage().strip().rstrip(".")[:200]
