"""
HTTP responses of Streamable HTTP: what a session's streams are written to.

JSON or server-sent events, decided when the first message is there (MCP,
basic/transports, "Sending Messages to the Server").  Knows a session's
streams; must not know which message belongs where.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.interfaces import IReactorTime

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import COMMIT_SECONDS, RETRY_MILLISECONDS
from mcpbridge.jsonrpc import sse
from mcpbridge.mcp.stream_events import Event
from mcpbridge.session.streamable import StreamableSession
from mcpbridge.web.content_negotiation import Accepted
from mcpbridge.web.response import Response, accept
from mcpbridge.web.tcp import buffered


class StreamResponse(Response):
    """
    The sink of one stream of a session (`StreamSink`).

    Where the client accepts both, it is JSON if all that it gets is final; a
    request without an answer becomes an event stream after `COMMIT_SECONDS`, so
    that its connection is kept alive and the client has an event to come back
    to.  `announces` is the id of the session that the request is to open: the
    head has it, unless the session is known to have failed by then.
    """

    def __init__(
        self,
        request: Any,
        streamable: StreamableSession,
        settings: ServerSettings,
        clock: IReactorTime,
        *,
        may: Accepted,
        batch: bool = False,
        announces: str | None = None,
    ) -> None:
        super().__init__(request, settings, clock, share=streamable.share)
        self._streamable = streamable
        self._may = may
        self._batch = batch
        self._announces = announces
        #: Of a GET: where each event ends that may not be sent yet, by `written`.
        self._ends: deque[int] = deque()
        #: The stream that it is attached to, and the number of the event before its first.
        self.stream = ""
        self.position = 0

    def attached(self, stream: str, position: int = 0, patience: float = COMMIT_SECONDS) -> None:
        """
        Note the stream that this is attached to.  What must be an event stream
        begins at once, what may be JSON after `patience` seconds.
        """
        self.stream = stream
        self.position = position
        if self.request is None or self.streaming:
            return
        if not self._may.json:
            self.commit()
        elif self._may.events:
            self.commit_after(patience)

    # Called by the router: StreamSink.

    @property
    def takes_events(self) -> bool:
        """True while the response is open and may be an event stream."""
        return self._may.events and self.request is not None

    def answer(self, line: bytes) -> bool:
        """Write a message as all of the response; return False for an event stream."""
        if self.request is None or self.streaming or not self._may.json:
            return False
        self._announce()
        self.write_json(b"[" + line + b"]" if self._batch else line)
        return True

    def send(self, events: list[Event], final: bool) -> None:
        """Write messages of the stream; with `final` they are its last."""
        if self.request is None:
            return
        if not self.streaming and self._may.json and final and self._fits_json(events):
            self._announce()
            lines = [event.line for event in events]
            self.write_json(b"[" + b",".join(lines) + b"]" if self._batch else lines[0])
            return
        if not self.streaming:
            self._begin_before(events[0].ident)
        pieces = [sse.identified_event(each.ident, each.line) for each in events]
        if self._may.json:
            self.write(b"".join(pieces))
        else:
            self._write_noting(pieces)
        if final:
            self.end()

    def end(self) -> None:
        """Complete the response; one without any message has a status that says so."""
        if self.request is not None and not self.streaming:
            # Not as events: a client would come back to them again and again.
            # A cancelled request was accepted; of a stream that is over and
            # was read, `No Content` ends a client's reconnecting (WHATWG
            # HTML, section 9.2.2).
            if self._may.json:
                accept(self.request)
            else:
                self.request.setResponseCode(204)
        self._finish()

    def unwritten(self) -> int:
        """Return how many of the last events are still in the transport's buffer, or partly."""
        if self.request is None or self._may.json:
            return 0
        self._forget_sent(buffered(self.request.transport))
        return len(self._ends)

    def displaced(self) -> None:
        """
        Complete the response: another connection has the stream.

        What the transport holds would be read twice: if there is any, the
        connection is aborted instead of closed.
        """
        if self.unwritten() or (self.streaming and self._may.json and self._is_behind()):
            self.abort()
        self.end()

    def _finish(self) -> None:
        if self._streamable.refusing and self.streaming and self._primes:
            # Its client opens another session at the next bridge, once that is there.
            self.write(sse.retry_field(RETRY_MILLISECONDS))
        self.finish()

    # Called by the response.

    def commit(self) -> None:
        """Begin an event stream before its first event is there."""
        self._begin(f"{self.stream}-{self.position}")

    def client_paused(self) -> None:
        """Stop reading the backend."""
        self._streamable.pause(self)

    def client_resumed(self) -> None:
        """Read the backend again, if every other client keeps up."""
        self._streamable.resume(self)

    def ended(self) -> None:
        """Let the session be idle from now on."""
        self._streamable.resume(self)
        self._streamable.touch()

    def _begin_before(self, ident: str) -> None:
        stream, _, number = ident.partition("-")
        self._begin(f"{stream}-{int(number) - 1}")

    def _begin(self, last: str) -> None:
        """Begin an event stream behind the event `last`: it is primed with that id if it can be."""
        self._announce()
        primed = self._primes
        self.begin(sse.priming_event(last, RETRY_MILLISECONDS) if primed else sse.comment())

    @property
    def _primes(self) -> bool:
        """True if the client of this revision may be told when to come back."""
        return self._streamable.revision.primes and self._streamable.negotiated is not None

    def _announce(self) -> None:
        """Add the id of the new session to the head, which is about to be written."""
        if self._announces is not None and not self._streamable.failed:
            self.request.setHeader(b"Mcp-Session-Id", self._announces.encode("ascii"))

    def _fits_json(self, events: list[Event]) -> bool:
        return len(events) == 1 or not self._may.events

    def _is_behind(self) -> bool:
        """Tell whether the transport still holds anything of a POST's response."""
        return self.request is not None and buffered(self.request.transport) > 0

    def _write_noting(self, pieces: list[bytes]) -> None:
        """Write events as one chunk, and note where each of them ends."""
        self._forget_sent(buffered(self.request.transport))
        data = b"".join(pieces)
        self.write(data)
        # Behind the data of a chunk is one line end.
        end = self.written - 2 - len(data)
        for piece in pieces:
            end += len(piece)
            self._ends.append(end)

    def _forget_sent(self, pending: int) -> None:
        """Forget the events that are sent, if so many bytes are not."""
        sent = self.written - pending
        while self._ends and self._ends[0] <= sent:
            self._ends.popleft()
