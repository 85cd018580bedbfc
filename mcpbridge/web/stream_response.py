"""
HTTP responses of Streamable HTTP: what a stream's messages are written to.

JSON or server-sent events, decided when the first message is there (MCP,
basic/transports, "Sending Messages to the Server").  Knows a session's
streams; must not know which message belongs where.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import COMMIT_SECONDS, RETRY_MILLISECONDS
from mcpbridge.jsonrpc import sse
from mcpbridge.mcp.stream_events import Event
from mcpbridge.session.streamable import StreamableSession
from mcpbridge.web.content_negotiation import Accepted
from mcpbridge.web.response import Response
from mcpbridge.web.tcp import buffered


class StreamResponse:
    """
    One response, attached to one stream of a session.

    Where it may be either, it is JSON when all that it gets is final; a silent
    request becomes an event stream after `COMMIT_SECONDS`, so that its
    connection is kept alive and the client has an event to come back to.
    `finished` is called once, when the response is complete.  `announces` is
    the id of the session that the request is to open: the head has it, unless
    the session is known to have failed by then.
    """

    def __init__(
        self,
        request: Any,
        streamable: StreamableSession,
        settings: ServerSettings,
        clock: IReactorTime,
        finished: Callable[[], None],
        *,
        may: Accepted,
        batch: bool = False,
        announces: str | None = None,
    ) -> None:
        self._streamable = streamable
        self._settings = settings
        self._may = may
        self._announces = announces
        #: Of a GET: where each event ends that may not be written yet, by `Response.written`.
        self._ends: deque[int] = deque()
        self._batch = batch
        self._reply = Response(
            request,
            settings,
            clock,
            finished=finished,
            paused=lambda: streamable.pause(self),
            resumed=lambda: streamable.resume(self),
            over=self._over,
            share=streamable.share,
        )
        #: The stream that it is attached to, and the event before its first.
        self.stream = ""
        self.position = 0

    def opened(self, stream: str, position: int = 0, patience: float = COMMIT_SECONDS) -> None:
        """It is attached; an event stream begins at once, what may be JSON after `patience`."""
        self.stream = stream
        self.position = position
        if self._reply.request is None or self._reply.streaming:
            return
        if not self._may.json:
            self._begin()
        elif self._may.events:
            self._reply.begin_after(patience, self._begin)

    def gone(self) -> None:
        """The connection is lost."""
        self._reply.gone()

    # What the router asks: Outlet.

    @property
    def takes_events(self) -> bool:
        """Whether somebody reads it, and it may be an event stream."""
        return self._may.events and self._reply.request is not None

    def answer(self, line: bytes) -> bool:
        """All of the response, unless it is an event stream already."""
        reply = self._reply
        if reply.request is None or reply.streaming or not self._may.json:
            return False
        self._announce()
        reply.write_json(b"[" + line + b"]" if self._batch else line)
        return True

    def send(self, events: list[Event], final: bool) -> None:
        """Messages of the stream."""
        reply = self._reply
        if reply.request is None:
            return
        if not reply.streaming and self._may.json and final and self._fits_json(events):
            self._announce()
            lines = [event.line for event in events]
            reply.write_json(b"[" + b",".join(lines) + b"]" if self._batch else lines[0])
            return
        if not reply.streaming:
            self._begin(events[0].ident)
        pieces = [sse.identified_event(each.ident, each.line) for each in events]
        if self._may.json:
            reply.write(b"".join(pieces))
        else:
            self._write_noting(pieces)
        if final:
            self.end()

    def end(self) -> None:
        """The stream is over; where there was nothing on it, the answer says so."""
        request = self._reply.request
        if request is not None and not self._reply.streaming:
            # Not as events: a client would come back to them again and again.
            # A cancelled request was accepted; of a stream that is over and
            # was read, `No Content` ends a client's reconnecting (WHATWG
            # HTML, section 9.2.2).
            request.setResponseCode(202 if self._may.json else 204)
            if self._may.json:
                request.setHeader(b"Content-Length", b"0")
        self._reply.finish()

    def unwritten(self) -> int:
        """How many of the last events are still in the transport's buffer, whole or in part."""
        request = self._reply.request
        if request is None or self._may.json:
            return 0
        self._forget_written(buffered(request.transport))
        return len(self._ends)

    def displaced(self) -> None:
        """
        Another connection has the stream.  What the transport holds would be
        read twice: where there is any, the connection is cut instead of closed.
        """
        reply = self._reply
        if self.unwritten() or (reply.streaming and self._may.json and self._is_behind()):
            reply.abort()
        self.end()

    def _is_behind(self) -> bool:
        """Whether the transport still holds anything of a POST's response."""
        request = self._reply.request
        return request is not None and buffered(request.transport) > 0

    def _write_noting(self, pieces: list[bytes]) -> None:
        """Write events as one chunk, and note where each of them ends."""
        reply = self._reply
        self._forget_written(buffered(reply.request.transport))
        data = b"".join(pieces)
        reply.write(data)
        # Behind the data of a chunk is one line end.
        end = reply.written - 2 - len(data)
        for piece in pieces:
            end += len(piece)
            self._ends.append(end)

    def _forget_written(self, pending: int) -> None:
        """Forget the events that the network has, where so many bytes are not written."""
        written = self._reply.written - pending
        while self._ends and self._ends[0] <= written:
            self._ends.popleft()

    def _fits_json(self, events: list[Event]) -> bool:
        return len(events) == 1 or not self._may.events

    def _begin(self, first: str = "") -> None:
        """An event stream, and where the revision has one the priming event."""
        stream, _, number = first.partition("-")
        before = f"{stream}-{int(number) - 1}" if number else f"{self.stream}-{self.position}"
        primes = self._streamable.revision.primes and self._streamable.negotiated is not None
        self._announce()
        self._reply.begin(
            sse.priming_event(before, RETRY_MILLISECONDS) if primes else sse.comment()
        )

    def _announce(self) -> None:
        """The head is about to be written."""
        if self._announces is not None and not self._streamable.failed:
            request = self._reply.request
            request.setHeader(b"Mcp-Session-Id", self._announces.encode("ascii"))

    def _over(self) -> None:
        self._streamable.resume(self)
        # From now on the session may be idle.
        self._streamable.touch()
