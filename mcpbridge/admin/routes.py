"""
What the admin listeners serve: paths, who may come in, and the responses.

Knows HTTP; must not know sockets, nor how anything is found out or done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from mcpbridge.admin.control import Control
from mcpbridge.admin.events import EventStreams
from mcpbridge.admin.metrics import Exposition
from mcpbridge.admin.operators import OF_SOCKET, Operator, Operators
from mcpbridge.admin.page import CONTENT_SECURITY_POLICY, FILES
from mcpbridge.admin.request_security import RequestSecurity, check_json
from mcpbridge.admin.status import Status
from mcpbridge.admin.view import BridgeView
from mcpbridge.config.admin import CONTROL, VIEW
from mcpbridge.errors import (
    InternalError,
    MethodNotAllowed,
    NotFound,
    Refused,
    SettingError,
    SettingErrors,
    without_frames,
)
from mcpbridge.web.response import reason_phrase

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
HTML = "text/html"

#: The headers of every response.
_HEADERS = (
    (b"Cache-Control", b"no-store"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"X-Frame-Options", b"DENY"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"Cross-Origin-Resource-Policy", b"same-origin"),
    (b"Cross-Origin-Opener-Policy", b"same-origin"),
    (b"Content-Security-Policy", b"default-src 'none'; frame-ancestors 'none'"),
)
_READ = "GET, HEAD"


class Answer(NamedTuple):
    """A whole response."""

    status: int
    content_type: str
    body: bytes


class Route(NamedTuple):
    """
    What is at a path: for which methods, and which role, None for everybody.

    `serve` returns the response, or None where it has answered the request itself.
    """

    methods: str
    role: str | None
    serve: Callable[[Any, Operator], Awaitable[Answer | None]]


class AdminResource(Resource):
    """The root of the sites of the admin listeners."""

    isLeaf = True
    log = Logger()

    def __init__(
        self,
        view: BridgeView,
        clock: IReactorTime,
        operators: Operators,
        status: Status,
        streams: EventStreams,
    ) -> None:
        super().__init__()
        self._view = view
        self._operators = operators
        self._status = status
        self._streams = streams
        self._exposition = Exposition(view, clock)
        self._control = Control(view)
        self._security = RequestSecurity(view.settings)
        self._routes = {
            b"/livez": Route(_READ, None, self._livez),
            b"/status": Route(_READ, VIEW, self._get_status),
            b"/events": Route(_READ, VIEW, self._events),
            b"/metrics": Route(_READ, VIEW, self._metrics),
            b"/reload": Route("POST", CONTROL, self._reload),
            **{path: Route(_READ, None, self._file) for path in FILES},
        }

    def render(self, request: Any) -> Any:
        """Answer a request."""
        request.responseHeaders.removeHeader(b"server")
        for name, value in _HEADERS:
            request.setHeader(name, value)
        answering = Deferred.fromCoroutine(self._answer(request))
        if not answering.called:
            request.notifyFinish().addErrback(lambda _: answering.cancel())
        answering.addCallbacks(self._write, self._refuse, (request,), {}, (request,))
        answering.addErrback(self._not_written, request)
        return NOT_DONE_YET

    async def _answer(self, request: Any) -> Answer | None:
        trusted = request.site.trusted
        self._security.check(request, trusted=trusted)
        route = self._route(request)
        if request.method.decode("latin-1") not in route.methods.split(", "):
            raise MethodNotAllowed(f"this path takes {route.methods}", route.methods)
        operator = OF_SOCKET
        if route.role is not None and not trusted:
            found = self._operators.admit(request, route.role)
            operator = await found if isinstance(found, Deferred) else found
        if trusted or route.role is not None:
            request.channel.admitted = True
        if request.method == b"POST":
            check_json(request)
        return await route.serve(request, operator)

    def _route(self, request: Any) -> Route:
        """Return what is at the path of a request.  Raises `NotFound`."""
        route = self._routes.get(request.path)
        if route is not None:
            return route
        segments = request.path.split(b"/")[1:]
        if segments == [b"readyz"]:
            role = VIEW if request.uri.partition(b"?")[2] == b"verbose" else None
            return Route(_READ, role, self._readyz)
        if len(segments) == 2 and segments[0] == b"readyz":
            return Route(_READ, VIEW, self._ready_server)
        if len(segments) == 3 and segments[::2] == [b"sessions", b"end"]:
            return Route("POST", CONTROL, self._end)
        raise NotFound("nothing is served at this path")

    # What is served.

    async def _file(self, request: Any, operator: Operator) -> Answer:
        content_type, body = FILES[request.path]
        if content_type.startswith(HTML):
            policy = CONTENT_SECURITY_POLICY.encode("ascii")
            request.setHeader(b"Content-Security-Policy", policy)
        return Answer(200, content_type, body)

    async def _livez(self, request: Any, operator: Operator) -> Answer:
        return Answer(200, TEXT, b"ok\n")

    async def _readyz(self, request: Any, operator: Operator) -> Answer:
        health = self._view.health
        ready = health.is_ready()
        if request.uri.partition(b"?")[2] == b"verbose":
            return _json(health.details(), 200 if ready else 503)
        return Answer(200, TEXT, b"ready\n") if ready else Answer(503, TEXT, b"not ready\n")

    async def _ready_server(self, request: Any, operator: Operator) -> Answer:
        name = unquote(request.path.rpartition(b"/")[2].decode("latin-1"))
        health = self._view.health
        server = health.server(name)
        if server is None:
            raise NotFound("there is no server of this name")
        found = health.details_of(server)
        return _json(found, 200 if found["ready"] and health.takes_clients else 503)

    async def _get_status(self, request: Any, operator: Operator) -> Answer:
        return Answer(200, JSON, await self._status.document())

    async def _events(self, request: Any, operator: Operator) -> Answer | None:
        if request.method == b"HEAD":
            return Answer(200, "text/event-stream", b"")
        self._streams.open(request)
        return None

    async def _metrics(self, request: Any, operator: Operator) -> Answer:
        accepts = request.requestHeaders.getRawHeaders(b"accept") or []
        text = await self._exposition.text(", ".join(x.decode("latin-1") for x in accepts))
        return Answer(200, *text)

    async def _end(self, request: Any, operator: Operator) -> Answer:
        ident = unquote(request.path.split(b"/")[2].decode("latin-1"))
        return _json({"ended": self._control.end(operator, ident)})

    async def _reload(self, request: Any, operator: Operator) -> Answer:
        try:
            return _json({"changed": self._control.reload(operator)})
        except SettingError as error:
            lines = error.lines if isinstance(error, SettingErrors) else (str(error),)
            return _json({"errors": list(lines)}, 422)

    # The response.

    def _write(self, answer: Answer | None, request: Any) -> None:
        if answer is None or request.channel is None:
            return
        status, content_type, body = answer
        request.setResponseCode(status, reason_phrase(status))
        request.setHeader(b"Content-Type", content_type.encode("ascii"))
        request.setHeader(b"Content-Length", b"%d" % len(body))
        if request.method != b"HEAD":
            request.write(body)
        request.finish()

    def _refuse(self, failure: Failure, request: Any) -> None:
        error = failure.value
        if request.channel is None:
            # Its client has left, and the work was cancelled.
            return
        if not isinstance(error, Refused):
            self.log.failure("a request to the admin listener could not be answered", failure)
            error = InternalError.of_ours()
        without_frames(error)
        for name, value in error.headers():
            request.setHeader(name, value)
        self._write(_json({"error": str(error)}, error.status), request)

    def _not_written(self, failure: Failure, request: Any) -> None:
        self.log.failure("a response of the admin listener could not be written", failure)
        if request.channel is not None:
            request.channel.abort()


def _json(found: object, status: int = 200) -> Answer:
    return Answer(status, JSON, msgspec.json.encode(found, enc_hook=str))
