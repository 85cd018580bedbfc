"""
The client's side of a session of Streamable HTTP: its streams, its revision,
and how long it may be idle.

Knows which message belongs to which stream, through the router; must not know
HTTP.  It is the session's sink, as the event stream is with HTTP+SSE.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import SESSION_SHARE
from mcpbridge.errors import SERVER_ERROR, ShuttingDown
from mcpbridge.guard import guarded
from mcpbridge.jsonrpc.envelope import Envelope, JsonRpcId, cancelled_id, requested_token
from mcpbridge.jsonrpc.ids import is_answer_to
from mcpbridge.jsonrpc.members import error_line
from mcpbridge.jsonrpc.oversized import peek_at_server
from mcpbridge.mcp.revisions import Revision, revision
from mcpbridge.mcp.stream_events import StreamSink
from mcpbridge.mcp.stream_router import StreamRouter
from mcpbridge.processes.backend_session import BackendSession
from mcpbridge.processes.endings import Idle
from mcpbridge.response_budget import ResponseBudget, Share
from mcpbridge.timers import Timer
from mcpbridge.tracing.tracing import HttpContext

#: What all sessions share that have no connection which does not keep up.
_NONE: frozenset[object] = frozenset()
#: How many checks there are in an `idle_timeout`.
IDLE_CHECKS = 4


def _may_have_token(line: bytes) -> bool:
    """
    Tell whether a message may have a progress token; its name may be written with escapes.

    A search for one byte is ten to a hundred times as fast as one for a word.  The
    token is in `_meta`, so without escapes there is an underscore.
    """
    return b"\\" in line or (b"_" in line and b"progressToken" in line)


class _Negotiated(msgspec.Struct):
    protocolVersion: str | None = None


class _InitializeAnswer(msgspec.Struct):
    id: str | int | float | None = None
    result: _Negotiated | None = None


class StreamableSession:
    """The sink of a session, which sends each message to the stream it belongs to."""

    log = Logger()

    def __init__(
        self,
        session: BackendSession,
        settings: ServerSettings,
        clock: IReactorTime,
        events: Any,
        budget: ResponseBudget | None = None,
    ) -> None:
        self._session = session
        self._settings = settings
        self._clock = clock
        self._events = events
        self.router = StreamRouter(
            events,
            max_waiting_events=settings.max_waiting_messages,
            max_waiting_bytes=settings.max_waiting_bytes,
            answer_backend=self._answer_backend,
            json_only=settings.json_response,
            budget=budget,
            now=clock.seconds,
            input_timeout=settings.input_timeout,
            request_waits=self._request_held,
            report=session.message_dropped,
        )
        #: Runs while the backend waits for the answer to a request that nobody reads.
        self._input_timer = Timer(clock)
        self._idle_timer = Timer(clock)
        #: What the session's connections hold unsent; None if that is not counted.
        self.share: Share | None = None
        if budget is not None:
            share = max(budget.limit // SESSION_SHARE, settings.max_message_bytes)
            self.share = Share(share, pause=self._share_used_up, resume=self._share_has_room)
        self.negotiated: str | None = None
        #: Whether the session has ended, or is about to, without having been initialized.
        self.failed = False
        self._initialize: JsonRpcId = None
        self._negotiating = False
        self._full = _NONE
        self._last = clock.seconds()
        #: When the backend last sent anything for a request whose connection is lost.
        self._answered = self._last
        if settings.idle_timeout:
            self._check_idle_later()

    @property
    def revision(self) -> Revision:
        """Return the revision that the session speaks, as far as is known."""
        return revision(self.negotiated)

    @property
    def refusing(self) -> bool:
        """True once new requests are refused, as the bridge is about to stop."""
        return self._session.refusing

    def initializing(self, ident: JsonRpcId) -> None:
        """Note the id of the client's `initialize`, whose answer names the revision."""
        self._initialize = ident
        self._negotiating = True

    def touch(self) -> None:
        """Note that the client is active."""
        self._last = self._clock.seconds()

    def last_heard(self) -> float | None:
        """
        Return when the client was last active, or got an answer that it may
        still come back for; None while it has a connection, or a request in flight.
        """
        router = self.router
        if router.has_sinks or router.in_flight:
            return None
        return max(self._last, self._answered)

    def receive(
        self,
        messages: Sequence[tuple[bytes, Envelope]],
        make_sink: Callable[[], StreamSink],
        digests: Sequence[bytes] | None = None,
        *,
        json_only: bool = False,
        address: str | None = None,
        http: HttpContext | None = None,
    ) -> str | None:
        """
        Send messages that the client posted together to the backend: all or none.

        Progress tokens of large messages are read from their `digests`.  With
        `json_only` the client accepts no events.  `address` is where they came from,
        for the audit log, and `http` the context of the HTTP request, if its only message is to be
        recorded (`Tracing.wants`).  Return the name of the stream for their answers, to which
        `make_sink()` is attached, or None if they ask for nothing.  Raises what
        `StreamRouter.open_post` raises, and `BackendSession.post_to_backend`; and
        `ShuttingDown`, where a request is among them.
        """
        self._last = self._clock.seconds()
        if self._session.refusing and any(envelope.is_request for _, envelope in messages):
            raise ShuttingDown("the bridge is shutting down")
        if len(messages) == 1 and digests is None and messages[0][1].is_request:
            # Nearly every message: what follows does the same for any number and kind.
            [(line, envelope)] = messages
            ident: Any = envelope.id
            token = requested_token(line) if _may_have_token(line) else None
            opened = self.router.open_post([(ident, token)], make_sink(), json_only=json_only)
            self._post([line], opened, [envelope], None, address, http)
            return opened
        lines = [line for line, _ in messages]
        given = [envelope for _, envelope in messages]
        if digests is not None:
            envelopes = (envelope for _, envelope in messages)
            messages = list(zip(digests, envelopes, strict=True))
        asked: list[Any] = [
            (envelope.id, requested_token(line) if _may_have_token(line) else None)
            for line, envelope in messages
            if envelope.is_request
        ]
        stream: str | None = None
        if asked:
            stream = self.router.open_post(asked, make_sink(), json_only=json_only)
        dropped = self._post(lines, stream, given, digests, address, http)
        for number, (line, envelope) in enumerate(messages):
            if envelope.is_response:
                self.router.answered_backend(envelope)
            elif envelope.method == "notifications/cancelled" and number not in dropped:
                cancelled: Any = cancelled_id(line)
                if cancelled is not msgspec.UNSET:
                    self.router.cancel(cancelled)
        return stream

    def _post(
        self,
        lines: list[bytes],
        stream: str | None,
        envelopes: Sequence[Envelope],
        digests: Sequence[bytes] | None,
        address: str | None,
        http: HttpContext | None,
    ) -> Collection[int]:
        """Post lines to the backend, as `BackendSession.post_to_backend`; or undo the stream."""
        session = self._session
        measured, counted, later = session.measured, None, False
        if measured is not None:
            # As in `BackendSession.client_message`.
            first = envelopes[0]
            if first.id is not msgspec.UNSET and len(envelopes) == 1:
                counted = measured.measures.only_counted.get(first.method)
            if counted is not None:
                counted.untimed += 1
            else:
                later = measured.begin_all(lines, envelopes, digests)
        recorder = None if http is None else session.recorder
        if recorder is not None:
            # It is the only message: those of a batch are not recorded.
            digest = None if digests is None else digests[0]
            lines = [recorder.begin(lines[0], envelopes[0], digest, http)]
            session.recording = recorder if recorder.waiting else None
        try:
            if session.audited is None:
                dropped = session.post_to_backend(lines, None, None, digests)
            else:
                post = partial(session.post_to_backend, lines, None, None, digests)
                dropped = session.audited.post(lines, envelopes, digests, post, address)
        except BaseException:
            if stream is not None:
                self.router.abandon(stream)
            if counted is not None:
                counted.untimed -= 1
            elif measured is not None:
                for message in zip(lines, envelopes, digests or lines, strict=True):
                    measured.not_sent(*message)
            if recorder is not None:
                recorder.not_sent(envelopes[0])
            raise
        recording = session.recording
        if later or recording is not None:
            # A cancellation that was dropped is none: the server has not got it.
            both = enumerate(zip(digests or lines, envelopes, strict=True))
            for line, envelope in (each for number, each in both if number not in dropped):
                if measured is not None:
                    measured.sent(line, envelope)
                if recording is not None:
                    recording.sent(line, envelope)
        return dropped

    # Backpressure: a session has one backend, which waits for the slowest of
    # the connections that are attached to it.

    def pause(self, connection: object) -> None:
        """Stop reading the backend: a connection does not keep up."""
        if not self._full:
            self._session.pause_backend()
        self._full |= {connection}

    def _share_used_up(self) -> None:
        self.pause(self.share)

    def _share_has_room(self) -> None:
        self.resume(self.share)

    def resume(self, connection: object) -> None:
        """Read the backend again, unless another connection does not keep up."""
        if connection in self._full:
            self._full -= {connection}
            if not self._full:
                self._session.resume_backend()

    # Called by the session: Sink.

    @property
    def has_reader(self) -> bool:
        """True while any connection is attached."""
        return bool(self.router.sinks)

    def send(self, lines: list[bytes]) -> None:
        """Send messages of the backend, each to the stream that it belongs to."""
        if self.router.sinks:
            # A message that nobody reads keeps no session alive.
            self._last = self._clock.seconds()
        elif self.router.in_flight:
            self._answered = self._clock.seconds()
        for line in lines:
            if self._negotiating:
                self._learn(line)
            self.router.route(line)

    def only_open(self) -> JsonRpcId | msgspec.UnsetType:
        """Return the id of the client's only open request; UNSET if there are more, or none."""
        return self.router.only_open

    def stop_keepalive(self) -> None:
        """Stop the timers."""
        self._idle_timer.stop()
        self._input_timer.stop()

    def close(self) -> None:
        """Answer open requests with an error that says why, and complete every response."""
        self.failed = self.failed or self._negotiating
        try:
            self.router.close(self._error_for)
        finally:
            guarded(self.log, "closing an event log", self._events.close)
            dropped = {why: count for why, count in self.router.dropped.items() if count}
            if dropped:
                self.log.info(
                    "session {session}: messages of the backend that reached nobody: {dropped}",
                    session=self._session.label,
                    dropped=dropped,
                )
            self.share = None

    def _error_for(self, ident: JsonRpcId) -> bytes:
        why = f"the session has ended: {self._session.reason}"
        return error_line(ident, SERVER_ERROR, why, self._session.stderr_data(self._settings))

    def _answer_backend(self, line: bytes) -> None:
        self._session.answer_backend(line)

    def _learn(self, line: bytes) -> None:
        envelope = peek_at_server(line)
        if envelope is None or not envelope.is_response:
            return
        if not is_answer_to(envelope.id, self._initialize):
            return
        self._negotiating = False
        try:
            answer = msgspec.json.decode(line, type=_InitializeAnswer)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        if answer.result is not None:
            self.negotiated = answer.result.protocolVersion
        else:
            # A session that is not initialized is of no use to its client.
            self.failed = True
            self._clock.callLater(0, self._session.life.end, "the backend refused to initialize")

    # Requests of the backend that nobody reads yet.

    def _request_held(self) -> None:
        due = self.router.due
        if not self._input_timer.is_running and due is not None:
            self._input_timer.start(max(0.0, due - self._clock.seconds()), self._tick)

    def _tick(self) -> None:
        self.router.tick()
        self._request_held()

    # Idleness.

    def _check_idle_later(self) -> None:
        self._idle_timer.start(self._settings.idle_timeout / IDLE_CHECKS, self._check_idle)

    def _check_idle(self) -> None:
        idle = self._clock.seconds() - self._last
        if self.router.has_sinks:
            self._last = self._clock.seconds()
        elif idle >= self._settings.idle_timeout:
            self._session.life.end(Idle(f"idle for {self._settings.idle_timeout:g} s"))
            return
        self._check_idle_later()
