"""
A session: one backend process, bound to a client's stream or to a worker.

Knows the order in which a session ends, and what passes in which direction;
must not know HTTP, nor how a process is stopped.  Its life is an Automat
machine of four states; messages do not go through it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import inf
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import msgspec
from automat import TypeMachineBuilder, pep614
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from mcpbridge.auth.access import ANYBODY, Access
from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import ATTENDED_FACTOR, STDERR_TAIL_CHARS, STDERR_TAIL_LINES
from mcpbridge.counters import ServerCounters
from mcpbridge.errors import BackendBusy, ShuttingDown, UnknownSession
from mcpbridge.guard import guarded
from mcpbridge.interfaces import IBackendReceiver, ISessionInfo
from mcpbridge.jsonrpc.envelope import Envelope, JsonRpcId
from mcpbridge.jsonrpc.malformed_output import Lost
from mcpbridge.jsonrpc.sse import stderr_message
from mcpbridge.mcp.open_requests import OpenRequests, asks
from mcpbridge.mcp.pings import PingLedger
from mcpbridge.processes.audited_calls import AuditedSession
from mcpbridge.processes.backend_faults import BackendFaults
from mcpbridge.processes.caller import Caller
from mcpbridge.processes.endings import BackendEnded
from mcpbridge.processes.measured_calls import MeasuredSession
from mcpbridge.processes.message_filters import MessageFilters
from mcpbridge.processes.stderr_log import ProcessStderr
from mcpbridge.processes.throttle import Throttle
from mcpbridge.processes.traced_calls import TracedSession
from mcpbridge.processes.visibility import Visibility, VisiblePost
from mcpbridge.tracing.tracing import HttpContext

#: The environment of a process that no client has given variables.
NO_VARIABLES: Mapping[str, str] = MappingProxyType({})
#: So many characters of a session's id may be logged: too few to use the session.
LABEL_CHARS = 8


class Sink(Protocol):
    """Where a session sends the backend's messages: a client's stream, or a worker."""

    @property
    def has_reader(self) -> bool:
        """True while someone reads what is sent."""
        ...

    def send(self, lines: list[bytes]) -> None:
        """Send these messages to the client, in order and in one piece."""

    def only_open(self) -> JsonRpcId | msgspec.UnsetType:
        """
        Return the backend's id of the only request that it has to answer;
        UNSET where it has to answer none, several, or an unknown number.
        """
        ...

    def stop_keepalive(self) -> None:
        """Send no more pings."""

    def close(self) -> None:
        """End the stream.  Called once, also when the client has gone."""


class StartObserver(Protocol):
    """Watches the starts of a server's processes that somebody waits for."""

    def opened(self, session: BackendSession) -> None:
        """Note that somebody uses a session from now on."""

    def answered(self, session: BackendSession) -> None:
        """Note the first message of a session's process."""

    def ended(self, session: BackendSession) -> None:
        """Note that a session has ended; also if it was not opened."""


class Adapter(Protocol):
    """
    Stands between a session and its backend where they do not speak the same
    revision of MCP, where that is not known yet, or where no client is there.
    """

    def send(self, lines: list[bytes], envelopes: Sequence[Envelope | None] | None = None) -> None:
        """
        Send all of these messages of the client to the backend, or none.
        Raises `BackendBusy`.

        `envelopes` are those of the lines, None for a batch, where they have
        been read: reading a large one again takes long.
        """

    def received(self, lines: list[bytes]) -> list[bytes]:
        """Return what the client gets for these messages of the backend."""
        ...

    def close(self) -> None:
        """Stop all timers: the session is over.  Called once."""


class NoSink:
    """The sink of a session that has no client: what is sent is dropped."""

    has_reader = False

    def send(self, lines: list[bytes]) -> None:
        """Drop the messages."""

    def only_open(self) -> JsonRpcId | msgspec.UnsetType:
        """Return UNSET: there are no requests."""
        return msgspec.UNSET

    def stop_keepalive(self) -> None:
        """Do nothing: there is no keepalive."""

    def close(self) -> None:
        """Do nothing: there is no stream."""


class Life(Protocol):
    """The inputs of a session's state machine."""

    def drain(self) -> None:
        """The backend takes no more messages; what it has written still goes out."""

    def end(self, reason: str) -> None:
        """End the session; `reason` is for the log."""

    def gone(self) -> None:
        """Nothing of the backend is left."""


@implementer(ISessionInfo, IBackendReceiver)
@dataclass(eq=False, slots=True)
class BackendSession:
    """
    A backend process with its permit, its counters and its filters, and the
    path of its messages; for whoever uses it at the time.

    `life` is its state machine.  A launcher is given the session, and
    `started` is called with the backend.  The pool has it first; `open` hands
    it to a client's session or to a worker, and `leave_client` takes it from a
    client that has gone.  `forget` is called when the backend takes no more
    messages, `closed` when nothing of it is left.
    """

    ident: str
    server: str
    clock: IReactorTime
    permit: Any
    forget: Callable[[BackendSession], object]
    closed: Callable[[BackendSession], None]
    observers: Sequence[Any] = ()
    #: None where there are no filters.
    filters: MessageFilters | None = None
    stderr_notifications: bool = True
    #: Writes stderr to the log or a file while the process runs; None: nowhere.
    stderr: ProcessStderr | None = None
    #: Called with the session, the kind of a mistake of its backend, and a description.
    complain: Callable[[BackendSession, str, str], None] = lambda session, fault, what: None
    #: Is told when somebody uses the session, of its first answer, and when it ends.
    starts: StartObserver | None = None

    #: The variables that it was started with for its client (`env_from`), which are secrets.
    environment: Mapping[str, str] = field(default_factory=lambda: NO_VARIABLES, repr=False)

    #: The client, where filters or observers need to know it.
    caller: Caller | None = None
    #: The caller that it belongs to (`Access.key`), and until when that may use it, in seconds
    #: since the epoch.
    owner: str = ""
    access_until: float = inf
    #: As what its client was admitted when it opened the session.
    access: Access = ANYBODY
    #: Its client's name or address, as limits count it; None: nobody's.
    client: str | None = None
    #: Tells which client a line of the backend is for, where it serves several.
    caller_of: Callable[[bytes], Caller | None] | None = None
    #: Raises `RateExceeded` for so many messages of its client that come too early; None: there
    #: is no limit.
    check_rate: Callable[[int], object] | None = None
    #: Makes the records of its client's messages; None where there is no audit log.
    audited: AuditedSession | None = None
    #: Measures its client's requests; None where that is off, or it has no client.
    measured: MeasuredSession | None = None
    #: Records spans of its client's requests; None where nobody wants that.
    recorder: TracedSession | None = None
    #: The same while it may wait for answers: a message costs nothing where none is recorded.
    recording: TracedSession | None = None
    #: What is counted of its server; None where that is not wanted.
    counters: ServerCounters | None = None
    #: How its client is connected, `sse` or `streamable-http`; an empty string without one.
    transport: str = ""
    #: How many requests of its client are not answered; None where its sink knows them.
    requests: OpenRequests | None = None
    #: True once new requests of its client are refused, as the bridge is about to stop.
    refusing: bool = False
    #: What its client may see and call; None where that is everything.
    visibility: Visibility | None = None
    #: The lists of whose changes its client was promised to be told: "tools", "prompts" and
    #: "resources".
    told_lists: frozenset[str] = frozenset()

    backend: Any = None
    adapter: Adapter | None = None
    sink: Sink = field(default_factory=NoSink)
    #: Why it ended, or is about to; for the log.
    reason: str = ""
    messages_in: int = 0
    bytes_in: int = 0
    messages_out: int = 0
    bytes_out: int = 0
    #: How many messages the filters have refused.
    refused: int = 0
    pings: PingLedger = field(default_factory=PingLedger)
    stderr_tail: list[bytes] = field(default_factory=list)
    #: Fires when nothing of the backend is left.
    ended: Deferred[None] = field(default_factory=Deferred)
    #: False for a spare process: observers and the log do not know it yet.
    announced: bool = True
    opened_at: float = field(init=False)
    #: False once the session has ended: messages of the backend are dropped.
    receiving: bool = field(init=False, default=True)
    #: True once the backend has written a message.
    has_output: bool = field(init=False, default=False)
    #: True where the backend closed its stdout before the bridge ended the session.
    output_ended: bool = field(init=False, default=False)
    #: True once the backend takes no more messages.
    leaving: bool = field(init=False, default=False)
    #: True while the client does not keep up, so that the backend is paused.
    paused: bool = field(init=False, default=False)
    #: Made when output is dropped for the first time.
    throttle: Throttle | None = field(init=False, default=None)
    #: Made at the backend's first mistake, so that others cost nothing per message.
    faults: BackendFaults | None = field(init=False, default=None)
    life: Life = field(init=False)
    log: ClassVar[Logger] = Logger()

    def __post_init__(self) -> None:
        self.opened_at = self.clock.seconds()
        self.life = _make_life(self)

    @property
    def label(self) -> str:
        """The part of the id that a log may show."""
        return self.ident[:LABEL_CHARS]

    @property
    def client_name(self) -> str:
        """What its client says of itself, `NAME VERSION`; an empty string if that is unknown."""
        return "" if self.measured is None else self.measured.client_name

    @property
    def caller_name(self) -> str:
        """The name of the identity that it works for; an empty string without one."""
        # A key ends with a digest of the caller's variables, if there are any.
        return self.owner.partition("\0")[0]

    @property
    def stderr_label(self) -> str:
        """The label before its lines of stderr."""
        return self.label if self.announced else f"{self.label} (no client yet)"

    def stderr_data(self, settings: ServerSettings) -> dict[str, object] | None:
        """Return the end of stderr as `{"stderr": [line]}`; None where it is not to be shown."""
        if not (settings.stderr_in_errors and self.stderr_tail):
            return None
        return {"stderr": [line.decode("utf-8", "replace") for line in self.stderr_tail]}

    def gone(self) -> Deferred[None]:
        """Return a Deferred of its own that fires when nothing of the backend is left."""
        waiting: Deferred[None] = Deferred()

        def tell(result: None) -> None:
            waiting.callback(None)

        self.ended.addCallback(tell)
        return waiting

    # Who uses it.

    def started(self, backend: Any) -> None:
        """Take the `IBackend` that the launcher has started."""
        self.backend = backend

    def open(
        self,
        forget: Callable[[BackendSession], object],
        *,
        sink: Sink | None = None,
        adapter: Adapter | None = None,
        caller: Caller | None = None,
        caller_of: Callable[[bytes], Caller | None] | None = None,
        access: Access = ANYBODY,
        owner: str = "",
        stderr_notifications: bool = False,
    ) -> None:
        """
        Hand the session over to who will use it, and tell the log and the
        observers that it is open.

        `forget` is called when it takes no more messages.  `sink` may follow
        with `connect`.  `caller` is its one client; `caller_of` tells which
        client a line of the backend is for, where it serves several.  `access` is
        as what its one client was admitted, and `owner` the key of the caller whose
        requests it serves if there is no such client.
        """
        self.owner, self.access_until = owner or access.key, access.until
        self.access = access
        self.forget = forget
        if sink is not None:
            self.sink = sink
        self.adapter = adapter
        self.caller = caller
        self.caller_of = caller_of
        self.stderr_notifications = stderr_notifications
        self.announced = True
        self.opened_at = self.clock.seconds()
        self.log.info(
            "session {session} of {server!r} opened"
            + (" for {identity}" if self.caller_name else ""),
            session=self.label,
            server=self.server,
            identity=self.caller_name,
        )
        if self.starts is not None:
            self.starts.opened(self)
        for observer in self.observers:
            guarded(self.log, "an observer", observer.session_opened, self)

    def connect(self, sink: Sink) -> None:
        """Send the backend's messages there from now on."""
        self.sink = sink

    def adapt(self, adapter: Adapter | None) -> None:
        """Put an adapter before the backend, in place of any other."""
        self.adapter = adapter

    def leave_client(
        self, why: str, adapter: Adapter, forget: Callable[[BackendSession], object]
    ) -> None:
        """
        Take the session from a client that has gone, while the backend goes
        on; no client finds the session any more.
        """
        self.reason = why
        guarded(self.log, "forgetting the session", self.forget, self)
        self.forget = forget
        self.end_records(why)
        sink, self.sink = self.sink, NoSink()
        guarded(self.log, "stopping the keepalive", sink.stop_keepalive)
        guarded(self.log, "closing the stream", sink.close)
        self.adapter = adapter
        self.resume_backend()

    def end_records(self, why: str) -> None:
        """Make records of the requests that will not be answered, and measure them no more."""
        if self.measured is not None:
            guarded(self.log, "measuring requests without an answer", self.measured.close)
        if self.recorder is not None:
            guarded(self.log, "ending spans", self.recorder.close)
        audited, self.audited = self.audited, None
        if audited is not None:
            guarded(self.log, "recording requests without an answer", audited.close, why)

    # From the client.

    def client_message(
        self,
        line: bytes,
        envelope: Envelope | None,
        digest: bytes | None = None,
        *,
        count: int = 1,
        address: str | None = None,
        http: HttpContext | None = None,
    ) -> None:
        """
        Pass one message of the client to the backend, or a batch of `count` on
        one line, unless it answers a ping of the bridge.  Of a large message
        `digest` has the names.  `address` is where it came from, for the audit log, and `http`
        the context of its HTTP request, if it is to be recorded (`Tracing.wants`).

        Raises `BackendBusy` and `RateExceeded`, and `ShuttingDown` for a request; then
        nothing was stored.  What a filter refuses is answered as `post_to_backend` says.
        """
        if envelope is not None:
            if self.pings.is_ours(envelope):
                return
            if self.caller is not None and envelope.method == "initialize":
                self.caller.initialized(line)
        if self.refusing and asks(line, envelope):
            raise ShuttingDown("the bridge is shutting down")
        requests = self.requests
        asked = 0 if requests is None else requests.posted(line, envelope, count)
        digests = None if digest is None else [digest]
        measured, counted, later = self.measured, None, False
        if measured is not None:
            # Looked up here, as a call would take longer than to count.
            if envelope is not None and envelope.id is not msgspec.UNSET:
                counted = measured.measures.only_counted.get(envelope.method)
            if counted is not None:
                counted.untimed += 1
            else:
                later = measured.begin(line, envelope, digest)
        recorder = None if http is None else self.recorder
        if recorder is not None and envelope is not None:
            line = recorder.begin(line, envelope, digest, http)
            self.recording = recorder if recorder.waiting else None
        try:
            if self.audited is None:
                dropped = self.post_to_backend([line], [envelope], count, digests)
            else:
                post = partial(self.post_to_backend, [line], [envelope], count, digests)
                dropped = self.audited.post([line], [envelope], digests, post, address)
        except BaseException:
            if requests is not None:
                requests.undo(asked)
            if counted is not None:
                counted.untimed -= 1
            elif measured is not None:
                measured.not_sent(line, envelope, digest)
            if recorder is not None and envelope is not None:
                recorder.not_sent(envelope)
            raise
        if count != 1:
            # A batch is one line.
            self.messages_in += count - 1
        if dropped:
            # The server has got no cancellation.
            return
        if requests is not None and (envelope is None or not asked):
            requests.taken(digest or line, envelope)
        if later and measured is not None:
            measured.sent(digest or line, envelope)
        if self.recording is not None and envelope is not None:
            self.recording.sent(digest or line, envelope)

    def post_to_backend(
        self,
        lines: list[bytes],
        envelopes: Sequence[Envelope | None] | None = None,
        count: int | None = None,
        digests: Sequence[bytes] | None = None,
    ) -> Collection[int]:
        """
        Pass the messages of one POST to the backend, one on each line unless
        `count` says how many there are.  What a filter refuses
        keeps nothing else from passing, and is answered soon
        (`MessageFilters.from_post`); so does what is about something that is not there for
        the client, which no filter sees.  Of large messages `digests` have the names.

        Returns the indexes of the lines that were dropped.  Raises
        `BackendBusy` and `RateExceeded`; then nothing was stored.
        """
        if self.check_rate is not None:
            self.check_rate(len(lines) if count is None else count)
        if self.visibility is not None:
            post = self.visibility.from_client(self.caller_name, lines, digests)
            if post is not None:
                return self._post_visible(post)
        if self.filters is None:
            self._pass_to_backend(lines, envelopes)
            return ()
        return self._post_filtered(self.filters, lines, envelopes)

    def _post_visible(self, post: VisiblePost) -> Collection[int]:
        """Pass on what is left of a POST, and answer the rest."""
        dropped = set(post.dropped)
        if not post.passed:
            pass
        elif self.filters is None:
            self._pass_to_backend(post.passed, None)
        else:
            refused = self._post_filtered(self.filters, post.passed, None)
            dropped.update(post.places[each] for each in refused)
        if post.answers:
            # In a later turn: the caller of this method is not ready for answers yet.
            self.clock.callLater(0, self._send_answers, post.answers)
        return dropped

    def _post_filtered(
        self,
        filters: MessageFilters,
        lines: list[bytes],
        envelopes: Sequence[Envelope | None] | None,
    ) -> Collection[int]:
        """Pass the messages of one POST to the backend, unless a filter refuses them."""
        passed, answers, dropped = filters.from_post(self, lines)
        if passed:
            # Envelopes describe the lines as they were before the filters changed them.
            self._pass_to_backend(passed, envelopes if passed == lines else None)
        if answers:
            # In a later turn: the caller of this method is not ready for answers yet.
            self.clock.callLater(0, self._send_answers, answers)
        return dropped

    def _send_answers(self, lines: list[bytes]) -> None:
        if self.receiving:
            self._send_to_client(lines)

    def send_to_backend(
        self, lines: list[bytes], envelopes: Sequence[Envelope | None] | None = None
    ) -> None:
        """
        Pass all of these messages of the client to the backend, or none;
        `envelopes` are theirs, where these have been read.

        Raises `BackendBusy` and `MessageRefused`.
        """
        filters = self.filters
        if filters is not None:
            filtered = [filters.from_client(self, line) for line in lines]
            if any(new is not old for new, old in zip(filtered, lines, strict=True)):
                lines, envelopes = filtered, None
        self._pass_to_backend(lines, envelopes)

    def send_to_backend_for(self, caller: Caller | None, lines: list[bytes]) -> None:
        """
        Pass messages of this client to a backend that serves several; None
        for the bridge's own messages.  Otherwise like `send_to_backend`.
        """
        if self.filters is None and not self.observers:
            # Nobody asks for the caller.
            self._pass_to_backend(lines, None)
            return
        resting, self.caller = self.caller, caller
        try:
            self.send_to_backend(lines)
        finally:
            self.caller = resting

    def _pass_to_backend(
        self, lines: list[bytes], envelopes: Sequence[Envelope | None] | None
    ) -> None:
        """Raises `BackendBusy`; then nothing was stored."""
        if self.throttle is not None:
            # A client waits for what the backend writes next.
            self.throttle.release()
        if self.adapter is not None:
            self.adapter.send(lines, envelopes)
        else:
            self.backend.send(lines[0] if len(lines) == 1 else b"\n".join(lines))
        self.messages_in += len(lines)
        for line in lines:
            self.bytes_in += len(line)
        for observer in self.observers:
            for line in lines:
                guarded(self.log, "an observer", observer.message_passed, self, True, line)

    def answer_backend(self, line: bytes) -> None:
        """Send the bridge's own answer to a request of the backend."""
        try:
            if self.adapter is not None:
                self.adapter.send([line])
            else:
                self.backend.send(line)
        except BackendBusy:
            why = "the backend does not read the responses to its own requests"
            self.life.end(BackendEnded(why))
        except UnknownSession:
            # The backend has closed its stdin, so it wants no answer.
            pass

    # Backpressure.  Two parties pause the backend: a client that does not keep
    # up, and the throttle on output that nobody reads.  It runs while neither does.

    def pause_backend(self) -> None:
        """Leave the backend's output in its pipes: the client does not keep up."""
        self.paused = True
        self.backend.pause()

    def resume_backend(self) -> None:
        """Read the backend's output again: the client keeps up, or is gone."""
        self.paused = False
        if self.throttle is None or not self.throttle.pausing:
            self.backend.resume()

    def _count_unread(self, size: int) -> None:
        """Count so many bytes that nobody reads; too many in a second pause the backend."""
        if self.throttle is None:
            self.throttle = Throttle(self.clock, self._throttle_begun, self._throttle_over)
        self.throttle.count(size)

    def _throttle_begun(self) -> None:
        # Looked up late: a launcher may report lines before it has returned the backend.
        self.backend.pause()

    def _throttle_over(self) -> None:
        if not self.paused:
            self.backend.resume()

    # From the backend: IBackendReceiver.

    def messages_received(self, lines: list[bytes]) -> None:
        """Pass messages of the backend on to the client."""
        if not self.receiving:
            return
        if not self.has_output:
            self._first_answer()
        if self.faults is not None:
            self.faults.messages_received(lines)
        if not self.sink.has_reader:
            self._count_unread(sum(map(len, lines)))
        if self.adapter is not None:
            lines = self.adapter.received(lines)
        if self.filters is None:
            self._send_to_client(lines)
        else:
            self._pass_on(lines)

    def _first_answer(self) -> None:
        self.has_output = True
        if self.starts is not None:
            guarded(self.log, "noting the first answer", self.starts.answered, self)
        if self.counters is not None:
            # What a backend answers first is `initialize`.
            began = None if self.measured is None else self.measured.oldest
            seconds = self.clock.seconds() - (self.opened_at if began is None else began)
            self.counters.initialize_seconds.add(seconds)

    def send_as_backend(self, lines: list[bytes]) -> None:
        """Send the client messages of the bridge itself, as if the backend had written them."""
        if self.receiving:
            self._pass_on(lines)

    def _pass_on(self, lines: list[bytes]) -> None:
        if self.filters is not None:
            lines = [kept for line in lines if (kept := self._filtered(self.filters, line))]
        self._send_to_client(lines)

    def _filtered(self, filters: MessageFilters, line: bytes) -> bytes | None:
        resting, self.caller = self.caller, self._recipient(line)
        try:
            return filters.from_backend(self, line)
        finally:
            self.caller = resting

    def _send_to_client(self, lines: list[bytes]) -> None:
        if self.visibility is not None:
            lines = self.visibility.to_client(self.caller_name, lines)
        if not lines:
            return
        self.messages_out += len(lines)
        for line in lines:
            self.bytes_out += len(line)
        if self.measured is not None and self.measured.waiting:
            self.measured.answered(lines)
        if self.recording is not None:
            self.recording.answered(lines)
            if not self.recording.waiting:
                self.recording = None
        if self.audited is not None:
            self.audited.sent(lines)
        if not self.observers:
            self.sink.send(lines)
            return
        # Looked up first: once an answer is delivered, its request is forgotten.
        callers = [self._recipient(line) for line in lines]
        self.sink.send(lines)
        resting = self.caller
        for observer in self.observers:
            for line, caller in zip(lines, callers, strict=True):
                self.caller = caller
                guarded(self.log, "an observer", observer.message_passed, self, False, line)
        self.caller = resting

    def _recipient(self, line: bytes) -> Caller | None:
        """Return the client that a message of the backend is for."""
        return self.caller if self.caller_of is None else self.caller_of(line)

    def diagnostics_received(self, lines: list[bytes]) -> None:
        """Keep the last lines of stderr, log them, and send them to a client that wants them."""
        latest = [line[:STDERR_TAIL_CHARS] for line in lines[-STDERR_TAIL_LINES:]]
        self.stderr_tail = (self.stderr_tail + latest)[-STDERR_TAIL_LINES:]
        if self.stderr is not None:
            guarded(self.log, "logging stderr", self.stderr.received, self.stderr_label, lines)
        if not self.receiving:
            return
        if self.stderr_notifications and self.sink.has_reader:
            self._send_to_client([stderr_message(line) for line in lines])
        else:
            size = sum(map(len, lines))
            self._count_unread(size // ATTENDED_FACTOR if self.sink.has_reader else size)

    def input_closed(self, reason: str) -> None:
        """Note that the backend takes no more messages."""
        self.reason = self.reason or BackendEnded(reason)
        self.life.drain()

    def output_closed(self, reason: str) -> None:
        """End the session: the backend writes no more messages."""
        self.output_ended = self.receiving
        self.life.end(BackendEnded(reason))

    # Mistakes of the backend.

    def message_lost(self, lost: Lost) -> None:
        """Fail the request that is answered by a message that cannot pass (`BackendFaults`)."""
        if self.receiving:
            self._backend_faults().message_lost(lost)

    def misbehaved(self, fault: str, what: str, line: bytes) -> None:
        """Warn of a mistake of the backend, and show the line unless it is empty."""
        self._backend_faults().misbehaved(fault, what, line)

    def message_dropped(self, why: str, line: bytes) -> None:
        """Warn of a message of the backend that was dropped, where that is its fault."""
        self._backend_faults().message_dropped(why, line)

    def _backend_faults(self) -> BackendFaults:
        if self.faults is None:
            self.faults = BackendFaults(self, self.clock)
        return self.faults

    def only_open_request(self) -> JsonRpcId | msgspec.UnsetType:
        """Return what `Sink.only_open` does; UNSET also where an adapter changes ids."""
        return self.sink.only_open() if self.adapter is None else msgspec.UNSET

    def answer_for_backend(self, line: bytes) -> None:
        """Answer a request of the client in the backend's place."""
        self.messages_received([line])

    def warn(self, fault: str, what: str) -> None:
        """Log a warning about the backend; `fault` is the kind of mistake."""
        self.complain(self, fault, what)


def log_end(session: BackendSession) -> None:
    """Log how a session went, once nothing of its backend is left."""
    log = session.log
    if session.stderr is not None:
        guarded(log, "logging stderr", session.stderr.finish, session.stderr_label)
    tail = session.stderr_tail
    stderr = f"; last stderr: {_readable(tail)}" if tail else ""
    ended = session.backend.exit_status or "not exited"
    if not session.announced:
        log.info(
            "a warm process of {server!r} ended: {reason}; backend: {ended}{stderr}",
            server=session.server,
            session=session.label,
            reason=session.reason,
            ended=ended,
            stderr=stderr,
        )
        return
    log.info(
        "session {session} of {server!r} closed after {seconds:.1f} s: {reason};"
        " in {messages_in} messages ({bytes_in} B), out {messages_out} ({bytes_out} B),"
        " refused {refused}; backend: {ended}{stderr}",
        session=session.label,
        server=session.server,
        identity=session.caller_name,
        seconds=session.clock.seconds() - session.opened_at,
        reason=session.reason,
        messages_in=session.messages_in,
        bytes_in=session.bytes_in,
        messages_out=session.messages_out,
        bytes_out=session.bytes_out,
        refused=session.refused,
        ended=ended,
        stderr=stderr,
    )


def _readable(lines: Sequence[bytes]) -> str:
    """Return lines of stderr as one line of a log, without control characters."""
    return " | ".join(repr(line.decode("utf-8", "replace"))[1:-1] for line in lines)


def _tear_down(life: Life, session: BackendSession, reason: str) -> None:
    """Stop everything, in this order; a step that raises skips no other."""
    log, sink = session.log, session.sink
    session.reason = reason
    session.receiving = False
    session.leaving = True
    if session.faults is not None:
        guarded(log, "stopping the wait for lost answers", session.faults.stop)
    if session.starts is not None:
        guarded(log, "forgetting the start", session.starts.ended, session)
    if session.throttle is not None:
        guarded(log, "releasing the throttle", session.throttle.release)
    guarded(log, "forgetting the session", session.forget, session)
    session.end_records(reason)
    guarded(log, "stopping the keepalive", sink.stop_keepalive)
    guarded(log, "closing the stream", sink.close)
    if session.adapter is not None:
        guarded(log, "closing the adapter", session.adapter.close)
    stopped = guarded(log, "stopping the backend", session.backend.stop)

    def not_stopped(why: Any) -> None:
        # The process may still run: without its permit the limit would be exceeded.
        if why is not None:
            log.failure("stopping a backend failed", why)
        log.error("session {session} keeps its slot", session=session.label, server=session.server)

    if isinstance(stopped, Deferred):
        stopped.addCallbacks(lambda _: life.gone(), not_stopped)
    else:
        not_stopped(None)


def _settle(session: BackendSession) -> None:
    """Return the permit and report the end, once nothing of the backend is left."""
    log = session.log
    guarded(log, "returning the permit", session.permit.release)
    guarded(log, "logging the end of the session", log_end, session)
    for observer in session.observers if session.announced else ():
        guarded(log, "an observer", observer.session_closed, session, session.reason)
    # First those who ended it to have its permit, then those who only wait for one.
    session.ended.callback(None)
    guarded(log, "reporting the end of the session", session.closed, session)
    # What leads back here would keep the session until the garbage collector comes.
    session.life, session.sink = _CLOSED, NoSink()
    session.adapter = session.faults = session.throttle = None


class _Closed:
    """The state machine of a session of which nothing is left: no input has an effect."""

    def drain(self) -> None:
        """Do nothing."""

    def end(self, reason: str) -> None:
        """Do nothing."""

    def gone(self) -> None:
        """Do nothing."""


_CLOSED: Life = _Closed()


def _build_life() -> Callable[[BackendSession], Life]:
    machine = TypeMachineBuilder(Life, BackendSession)

    live = machine.state("live")
    #: The backend takes no more messages, but its output still passes.
    draining = machine.state("draining")
    #: Nothing passes any more; the backend is being stopped.
    closing = machine.state("closing")
    closed = machine.state("closed")

    @pep614(live.upon(Life.drain).to(draining))
    def begin_draining(life: Life, session: BackendSession) -> None:
        session.leaving = True
        session.forget(session)

    @pep614(live.upon(Life.end).to(closing))
    @pep614(draining.upon(Life.end).to(closing))
    def tear_down(life: Life, session: BackendSession, reason: str) -> None:
        _tear_down(life, session, reason)

    @pep614(closing.upon(Life.gone).to(closed))
    def settle(life: Life, session: BackendSession) -> None:
        _settle(session)

    # An end may be reported from several sides; the first one counts.
    for state, inputs in (
        (draining, (Life.drain,)),
        (closing, (Life.drain, Life.end)),
        (closed, (Life.drain, Life.end, Life.gone)),
    ):
        for each in inputs:
            state.upon(each).loop().returns(None)

    return machine.build()


_make_life = _build_life()
