"""
Serve a request of twisted.web directly by the handler of its path.

Traversal of the site's resources and the routes of klein take a sixth of what it
costs to open and end a session.  Knows how a handler ends; must not know what it
serves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from mcpbridge.errors import InternalError, Refused, without_frames
from mcpbridge.web.admission import Admit
from mcpbridge.web.refusals import Refusals
from mcpbridge.web.response import error_body

#: Serves a request.  The response is complete when it returns None, or when what it returns
#: has been awaited.
Handler = Callable[[Any], Awaitable[None] | None]

_log = Logger()


class Endpoint:
    """
    A handler, the segments of its path, what admits requests to it, and what takes note
    of those that are refused.
    """

    __slots__ = ("_admit", "_handler", "_refusals", "_segments")

    def __init__(
        self,
        handler: Handler,
        segments: list[bytes],
        admit: Admit,
        refusals: Refusals | None = None,
    ) -> None:
        self._handler = handler
        self._segments = segments
        self._admit = admit
        self._refusals = refusals

    def serve(self, request: Any) -> None:
        """
        Serve a request as klein does: complete its response when the handler is done or
        has failed, and cancel the handler when the connection is lost.
        """
        request.prepath, request.postpath = list(self._segments), []
        serving = Deferred.fromCoroutine(self._serve(request))
        if not serving.called:
            request.notifyFinish().addErrback(lambda _: serving.cancel())
        serving.addErrback(lambda failure: _log.failure("a response failed", failure))

    async def _serve(self, request: Any) -> None:
        body = b""
        try:
            admitted = self._admit(request)
            request.access = await admitted if isinstance(admitted, Deferred) else admitted
            if request.channel is None:
                # Its client has left, and an authenticator would not be cancelled.
                return
            waiting = self._handler(request)
            if waiting is not None:
                await waiting
        except Exception as error:
            if _is_over(request):
                if not isinstance(error, CancelledError):
                    _log.failure("a request failed after its response")
                # From Python 3.12 on its traceback leads to frames that refer to it: the
                # request would stay until a garbage collection.
                without_frames(error)
                return
            if self._refusals is not None:
                self._refusals.note(request, error)
            if isinstance(error, Refused):
                body = error_body(request, error)
            else:
                _log.failure("a request failed")
                body = error_body(request, InternalError.of_ours())
        if not _is_over(request):
            if body:
                request.write(body)
            request.finish()


def _is_over(request: Any) -> bool:
    """Tell whether the response is complete, or its connection lost."""
    return bool(request.finished) or request.channel is None
