"""
A session: one client's stream bound to one backend.

Knows the order in which a session ends, and what passes in which direction;
must not know HTTP, nor how a process is stopped.  Its life is an Automat
machine of four states; messages do not go through it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import msgspec
from automat import TypeMachineBuilder, pep614
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import ATTENDED_FACTOR, STDERR_TAIL_CHARS, STDERR_TAIL_LINES
from mcpbridge.errors import INTERNAL_ERROR, BackendBusy, MessageRefused, UnknownSession
from mcpbridge.guard import guarded
from mcpbridge.interfaces import IBackendReceiver, ISessionInfo
from mcpbridge.jsonrpc.envelope import Envelope, JsonRpcId, peek, peek_again, split_batch
from mcpbridge.jsonrpc.malformed_output import Lost, unreadable
from mcpbridge.jsonrpc.members import encode, error_line
from mcpbridge.jsonrpc.sse import stderr_message
from mcpbridge.mcp.pings import PingLedger
from mcpbridge.processes.caller import Caller
from mcpbridge.processes.lost_answers import LostAnswers
from mcpbridge.processes.stderr import ProcessStderr, printable
from mcpbridge.processes.throttle import Throttle

#: How much of a session's id a log may show.
LABEL_CHARS = 8
#: How much of what a backend wrote wrongly a warning shows.
SHOWN_CHARS = 200
#: From here on decoding a line's envelope is quicker than searching all of it.
LONG_LINE_BYTES = 4096


class Sink(Protocol):
    """The way to the client."""

    @property
    def has_reader(self) -> bool:
        """Whether anybody reads what is sent now."""
        ...

    def send(self, lines: list[bytes]) -> None:
        """Write these messages, in order, as one piece."""

    def only_open(self) -> JsonRpcId | msgspec.UnsetType:
        """
        The id, as the backend knows it, of the only request that it has to
        answer; UNSET where there is none, or several, or nobody counts them.
        """
        ...

    def stop_keepalive(self) -> None:
        """Ping no more."""

    def close(self) -> None:
        """End the stream; called once, also when the client has gone."""


class Adapter(Protocol):
    """
    What stands between a session and its backend where the two do not speak
    the same revision of MCP, or where that is not known yet.
    """

    def send(self, lines: list[bytes], envelopes: Sequence[Envelope | None] | None = None) -> None:
        """
        Messages of the client: all go on, or none.  Raises `BackendBusy`.

        `envelopes` are theirs, None for a batch, where they have been read:
        to read a large one again takes long.
        """

    def received(self, lines: list[bytes]) -> list[bytes]:
        """What of the backend's messages, or in their place, is for the client."""
        ...

    def close(self) -> None:
        """The session is over: no more timers.  Called once."""


class NoSink:
    """Before the stream is there."""

    has_reader = False

    def send(self, lines: list[bytes]) -> None:
        """Nobody reads."""

    def only_open(self) -> JsonRpcId | msgspec.UnsetType:
        """None is."""
        return msgspec.UNSET

    def stop_keepalive(self) -> None:
        """None runs."""

    def close(self) -> None:
        """Nothing to close."""


class Life(Protocol):
    """The inputs of a session's life."""

    def drain(self) -> None:
        """The backend takes nothing more; what it has written still goes out."""

    def end(self, reason: str) -> None:
        """The session is over, and this is why."""

    def gone(self) -> None:
        """Nothing of the backend is left."""


@implementer(ISessionInfo, IBackendReceiver)
@dataclass(eq=False, slots=True)
class BackendSession:
    """
    A backend process with its permit, its counters and its filters, and the
    path of its messages; for whoever has it just now.

    `life` is its state machine.  A launcher is given the session, and
    `started` the backend that comes of that.  The pool has it first; `open`
    hands it to a client's session or to a worker, and `leave_client` takes it
    from a client that has gone.  `forget` is called when the backend takes
    nothing more, `closed` when nothing of it is left.
    """

    ident: str
    server: str
    clock: IReactorTime
    permit: Any
    forget: Callable[[BackendSession], object]
    closed: Callable[[BackendSession], None]
    observers: Sequence[Any] = ()
    filters: Sequence[Any] = ()
    stderr_notifications: bool = True
    #: Where its stderr is to be read as it comes.
    stderr: ProcessStderr | None = None
    #: Told what its backend does wrong: the session, the kind of mistake, and what it is.
    complain: Callable[[BackendSession, str, str], None] = lambda session, fault, what: None

    #: Its client, where filters or observers are to know it.
    caller: Caller | None = None
    #: Whose a line of the backend is, of a process that serves several clients.
    caller_of: Callable[[bytes], Caller | None] | None = None

    backend: Any = None
    adapter: Adapter | None = None
    sink: Sink = field(default_factory=NoSink)
    reason: str = ""
    messages_in: int = 0
    bytes_in: int = 0
    messages_out: int = 0
    bytes_out: int = 0
    refused: int = 0
    pings: PingLedger = field(default_factory=PingLedger)
    stderr_tail: list[bytes] = field(default_factory=list)
    ended: Deferred[None] = field(default_factory=Deferred)
    #: Whether anybody was told that it is open; a spare process is not.
    announced: bool = True
    opened_at: float = field(init=False)
    receiving: bool = field(init=False, default=True)
    #: Whether its backend has said anything, and whether it ended by itself.
    heard: bool = field(init=False, default=False)
    output_ended: bool = field(init=False, default=False)
    #: Whether its backend takes nothing more.
    leaving: bool = field(init=False, default=False)
    #: Whether the client does not keep up; and the bound on what nobody reads.
    paused: bool = field(init=False, default=False)
    throttle: Throttle | None = field(init=False, default=None)
    #: Answers of the backend that cannot pass, once there are any; whether a request fails now.
    lost: LostAnswers | None = field(init=False, default=None)
    failing: bool = field(init=False, default=False)
    life: Life = field(init=False)
    log: ClassVar[Logger] = Logger()

    def __post_init__(self) -> None:
        self.opened_at = self.clock.seconds()
        self.life = _make_life(self)

    @property
    def label(self) -> str:
        """What a log may show of the id."""
        return self.ident[:LABEL_CHARS]

    @property
    def stderr_label(self) -> str:
        """What stands before its lines of stderr; nobody knows the id of a spare process."""
        return self.label if self.announced else f"{self.label} (no client yet)"

    def last_words(self, settings: ServerSettings) -> dict[str, object] | None:
        """The end of stderr, as the data of an error; None where it is not to be shown."""
        if not (settings.stderr_in_errors and self.stderr_tail):
            return None
        return {"stderr": [line.decode("utf-8", "replace") for line in self.stderr_tail]}

    def gone(self) -> Deferred[None]:
        """Fires when nothing of it is left; any number may wait for that."""
        waiting: Deferred[None] = Deferred()

        def tell(result: None) -> None:
            waiting.callback(None)

        self.ended.addCallback(tell)
        return waiting

    def started(self, backend: Any) -> None:
        """The launcher has started the backend, an `IBackend`."""
        self.backend = backend

    def open(
        self,
        forget: Callable[[BackendSession], object],
        *,
        sink: Sink | None = None,
        adapter: Adapter | None = None,
        caller: Caller | None = None,
        caller_of: Callable[[bytes], Caller | None] | None = None,
        stderr_notifications: bool = False,
    ) -> None:
        """
        Hand the session over to who will use it, and tell the log and the
        observers that it is open.

        `forget` is called when it takes nothing more.  `sink` may follow with
        `connect`.  `caller` is its one client, and `caller_of` says for which
        client a line of the backend is where it serves several.
        """
        self.forget = forget
        if sink is not None:
            self.sink = sink
        self.adapter = adapter
        self.caller = caller
        self.caller_of = caller_of
        self.stderr_notifications = stderr_notifications
        self.announced = True
        self.opened_at = self.clock.seconds()
        self.log.info("session {label} of {server!r} opened", label=self.label, server=self.server)
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
        Take the session from its client, who has gone and whom nobody is to
        find here any more, while the backend goes on.
        """
        guarded(self.log, "forgetting the session", self.forget, self)
        self.forget = forget
        self.reason = why
        sink, self.sink = self.sink, NoSink()
        guarded(self.log, "stopping the keepalive", sink.stop_keepalive)
        guarded(self.log, "closing the stream", sink.close)
        self.adapter = adapter
        self.resume_backend()

    def account(self) -> None:
        """Say to the log how the session went, when nothing of it is left."""
        if self.stderr is not None:
            guarded(self.log, "logging stderr", self.stderr.finish, self.stderr_label)
        stderr = f"; last stderr: {_readable(self.stderr_tail)}" if self.stderr_tail else ""
        if not self.announced:
            self.log.info(
                "a spare process of {server!r} ended: {reason}; backend: {ended}{stderr}",
                server=self.server,
                reason=self.reason,
                ended=self.backend.exit_status or "not exited",
                stderr=stderr,
            )
            return
        self.log.info(
            "session {label} of {server!r} closed after {seconds:.1f} s: {reason};"
            " in {messages_in} messages ({bytes_in} B), out {messages_out} ({bytes_out} B),"
            " refused {refused}; backend: {ended}{stderr}",
            label=self.label,
            server=self.server,
            seconds=self.clock.seconds() - self.opened_at,
            reason=self.reason,
            messages_in=self.messages_in,
            bytes_in=self.bytes_in,
            messages_out=self.messages_out,
            bytes_out=self.bytes_out,
            refused=self.refused,
            ended=self.backend.exit_status or "not exited",
            stderr=stderr,
        )

    # From the client.

    def client_message(self, line: bytes, envelope: Envelope | None) -> None:
        """
        One message of the client: to the backend, or consumed where it
        answers a ping of the bridge.

        Raises `BackendBusy`; then nothing was stored.  What a filter refuses
        is answered as `client_posted` says.
        """
        if envelope is not None:
            if self.pings.is_ours(envelope):
                return
            if self.caller is not None and envelope.method == "initialize":
                self.caller.initialized(line)
        self.client_posted([line], [envelope])

    def client_posted(
        self, lines: list[bytes], envelopes: Sequence[Envelope | None] | None = None
    ) -> Collection[int]:
        """
        The same as `client_messages`, but what a filter refuses keeps nothing
        else from passing: a request is answered with an error, like the
        backend would, and soon; in the place of a response the backend gets
        an error; a notification is dropped.

        Returns which of the lines were dropped, by their numbers.  Raises
        `BackendBusy`.
        """
        if not self.filters:
            self.client_messages(lines, envelopes)
            return ()
        passed: list[bytes] = []
        answers: list[bytes] = []
        dropped: set[int] = set()
        for number, line in enumerate(lines):
            kept = self._judged(line, answers)
            if kept is None:
                dropped.add(number)
            else:
                passed.append(kept)
        if passed:
            if passed == lines:
                passed = lines
            else:
                envelopes = None
            self._to_backend(passed, envelopes)
        if answers:
            # Not from within a call of the client's, who does not wait for them yet.
            self.clock.callLater(0, self._answer_client, answers)
        return dropped

    def _judged(self, line: bytes, answers: list[bytes], *, whole: bool = True) -> bytes | None:
        """
        What of a client's message passes; its errors are added to `answers`.
        An array within an array is no message, and not looked into.
        """
        try:
            return self._filtered_in(line)
        except MessageRefused as refusal:
            text = str(refusal)
        elements = split_batch(line) if whole else None
        if elements is not None:
            judged = [self._judged(each, answers, whole=False) for each in elements]
            kept = [each for each in judged if each is not None]
            return b"[" + b",".join(kept) + b"]" if kept else None
        self.refused += 1
        envelope = peek(line) or peek_again(line)
        if envelope is None or envelope.id is msgspec.UNSET:
            return None
        answer = error_line(envelope.id, MessageRefused.code, text)
        if envelope.is_request:
            answers.append(answer)
            return None
        return answer if envelope.is_response else None

    def _answer_client(self, lines: list[bytes]) -> None:
        if self.receiving:
            self._send(lines)

    def client_messages(
        self, lines: list[bytes], envelopes: Sequence[Envelope | None] | None = None
    ) -> None:
        """
        Messages of the client as one: all of them go to the backend, or none;
        with their `envelopes`, where these have been read.

        Raises `BackendBusy` and `MessageRefused`.
        """
        if self.filters:
            filtered = [self._filtered_in(line) for line in lines]
            if any(new is not old for new, old in zip(filtered, lines, strict=True)):
                lines, envelopes = filtered, None
        self._to_backend(lines, envelopes)

    def messages_of(self, caller: Caller | None, lines: list[bytes]) -> None:
        """
        The same for a process that serves several clients, with whose messages
        they are; None: the bridge's own.
        """
        resting, self.caller = self.caller, caller
        try:
            self.client_messages(lines)
        finally:
            self.caller = resting

    def _to_backend(self, lines: list[bytes], envelopes: Sequence[Envelope | None] | None) -> None:
        """Raises `BackendBusy`; then nothing was stored."""
        if self.throttle is not None:
            # Somebody waits for what comes next.
            self.throttle.release()
        if self.adapter is not None:
            self.adapter.send(lines, envelopes)
        else:
            self.backend.send(lines[0] if len(lines) == 1 else b"\n".join(lines))
        self.messages_in += len(lines)
        self.bytes_in += sum(map(len, lines))
        for observer in self.observers:
            for line in lines:
                guarded(self.log, "an observer", observer.message_passed, self, True, line)

    def _filtered_in(self, line: bytes) -> bytes:
        for each in self.filters:
            line = each.from_client(self, line)
        return line

    # Backpressure: who pauses the backend resumes it; a throttled one stays paused.

    def pause_backend(self) -> None:
        """The client does not keep up: leave in the pipes what the backend writes."""
        self.paused = True
        self.backend.pause()

    def resume_backend(self) -> None:
        """The client keeps up again, or is gone."""
        self.paused = False
        if self.throttle is None or not self.throttle.pausing:
            self.backend.resume()

    def _thrown_away(self, size: int) -> None:
        """Nobody has read so many bytes: not too many of them in a second."""
        if self.throttle is None:
            self.throttle = Throttle(self.clock, self._throttled, self._unthrottled)
        self.throttle.thrown_away(size)

    def _throttled(self) -> None:
        self.backend.pause()

    def _unthrottled(self) -> None:
        if not self.paused:
            self.backend.resume()

    def answer_backend(self, line: bytes) -> None:
        """An answer of the bridge's own to a request of the backend."""
        try:
            if self.adapter is not None:
                self.adapter.send([line])
            else:
                self.backend.send(line)
        except BackendBusy:
            self.life.end("the backend does not read the answers to its own requests")
        except UnknownSession:
            # It has closed its stdin: it does not want one.
            pass

    # From the backend: IBackendReceiver.

    def messages_received(self, lines: list[bytes]) -> None:
        """Pass what the backend wrote on to the client."""
        if not self.receiving:
            return
        self.heard = True
        if self.lost:
            self.lost.heard(lines)
        if not self.sink.has_reader:
            self._thrown_away(sum(map(len, lines)))
        if self.adapter is not None:
            lines = self.adapter.received(lines)
        self._pass_on(lines)

    def _pass_on(self, lines: list[bytes]) -> None:
        if self.filters:
            lines = [kept for line in lines if (kept := self._filtered(line))]
        for line in lines:
            # An id of one of our pings can stand there only like this; in a
            # long line it is quicker to decode it than to search.
            if len(line) > LONG_LINE_BYTES or b"ping:" in line or b"\\u00" in line:
                envelope = peek(line)
                if envelope is not None:
                    self.pings.backend_sent(envelope)
        self._send(lines)

    def say(self, lines: list[bytes]) -> None:
        """Messages of the bridge itself, which come as if the backend had written them."""
        if self.receiving:
            self._pass_on(lines)

    def message_lost(self, lost: Lost) -> None:
        """
        Let a message that cannot pass cost no more than itself: the request
        that it answers fails, what the backend asked with it is answered with
        an error, and a notification is lost.
        """
        if not self.receiving:
            return
        ident = lost.ident
        if ident is msgspec.UNSET and self.adapter is None and lost.certain and not lost.has_method:
            ident = self.sink.only_open()
        self.complain(self, lost.fault, f"{lost.why}; {_what_is_lost(lost, ident)}")
        if ident is msgspec.UNSET:
            return
        if not lost.certain:
            if self.lost is None:
                self.lost = LostAnswers(self.clock, self._fail)
            self.lost.add(ident, lost.why)
        elif lost.has_method:
            self.answer_backend(error_line(ident, INTERNAL_ERROR, lost.why))
        else:
            self._fail(ident, lost.why)

    def _fail(self, ident: JsonRpcId, why: str) -> None:
        """Answer a request in the backend's place."""
        self.failing = True
        try:
            self.messages_received([error_line(ident, INTERNAL_ERROR, why)])
        finally:
            self.failing = False

    def misbehaved(self, fault: str, what: str, line: bytes) -> None:
        """Warn of what the backend does, and show the line, if there is one."""
        self.complain(self, fault, f"{what}: {printable(line, SHOWN_CHARS)}" if line else what)

    def reached_nobody(self, why: str, line: bytes) -> None:
        """A message of the backend was dropped, and it is to blame."""
        if self.failing:
            # It was not the backend's.
            return
        if why == "invalid":
            if self.lost is None or not self.lost.is_full:
                self.message_lost(unreadable(line))
        elif why in _NOT_PASSED:
            envelope = peek(line) or peek_again(line)
            ident = encode(None if envelope is None else envelope.id)
            what = _NOT_PASSED[why]
            if why == "unasked" and envelope is not None and envelope.id is None:
                why, what = "null", _NULL_ID
            self.complain(self, why, f"{what} (id {printable(ident, SHOWN_CHARS)})")

    def diagnostics_received(self, lines: list[bytes]) -> None:
        """Keep the last lines for the log, and tell the client of all."""
        latest = [line[:STDERR_TAIL_CHARS] for line in lines[-STDERR_TAIL_LINES:]]
        self.stderr_tail = (self.stderr_tail + latest)[-STDERR_TAIL_LINES:]
        if self.stderr is not None:
            guarded(self.log, "logging stderr", self.stderr.received, self.stderr_label, lines)
        if not self.receiving:
            return
        if self.stderr_notifications and self.sink.has_reader:
            self._send([stderr_message(line) for line in lines])
        else:
            size = sum(map(len, lines))
            self._thrown_away(size // ATTENDED_FACTOR if self.sink.has_reader else size)

    def input_closed(self, reason: str) -> None:
        """The backend takes nothing more."""
        self.reason = self.reason or reason
        self.life.drain()

    def output_closed(self, reason: str) -> None:
        """Nothing more comes: the session is over."""
        self.output_ended = self.receiving
        self.life.end(reason)

    def _send(self, lines: list[bytes]) -> None:
        if not lines:
            return
        self.messages_out += len(lines)
        self.bytes_out += sum(map(len, lines))
        if not self.observers:
            self.sink.send(lines)
            return
        # Once an answer is delivered nobody knows any more whose it was.
        callers = [self._whose(line) for line in lines]
        self.sink.send(lines)
        resting = self.caller
        for observer in self.observers:
            for line, caller in zip(lines, callers, strict=True):
                self.caller = caller
                guarded(self.log, "an observer", observer.message_passed, self, False, line)
        self.caller = resting

    def _whose(self, line: bytes) -> Caller | None:
        """The client that a message of the backend is for."""
        return self.caller if self.caller_of is None else self.caller_of(line)

    def _filtered(self, line: bytes) -> bytes | None:
        """What the filters make of a message of the backend; None: nothing is to pass."""
        original, resting = line, self.caller
        self.caller = self._whose(line)
        try:
            for each in self.filters:
                line = each.from_backend(self, line)
            return line
        except MessageRefused as refusal:
            text = str(refusal)
        except Exception:
            self.log.failure("a filter failed; session {label}", label=self.label)
            text = "the message could not be checked"
        finally:
            self.caller = resting
        self.refused += 1
        envelope = peek(original)
        if envelope is None or isinstance(envelope.id, msgspec.UnsetType):
            return None
        if not (envelope.is_request or envelope.is_response):
            return None
        answer = error_line(envelope.id, MessageRefused.code, text)
        if envelope.is_response:
            # Whoever has asked is not to wait for ever.
            return answer
        self.answer_backend(answer)
        return None


_NOT_PASSED = {
    "unasked": (
        "the server answered a request that is not open (never made, or answered already);"
        " the answer is dropped"
    ),
    "request": "the server sent a request, which 2026-07-28 does not allow; it is dropped",
}

_NULL_ID = (
    "the server answered no request in particular, most often because it could not read one;"
    " the answer is dropped"
)


def _what_is_lost(lost: Lost, ident: JsonRpcId | msgspec.UnsetType) -> str:
    if not lost.certain:
        if ident is msgspec.UNSET:
            return "it is dropped"
        return "if it is the answer to a call and no other follows, the call fails"
    if lost.has_method:
        return "it is a notification" if ident is msgspec.UNSET else "the request is refused"
    if ident is msgspec.UNSET:
        return "whose answer it is cannot be told, and a client may wait for it"
    return "the call that it answers fails"


def _readable(lines: Sequence[bytes]) -> str:
    """Lines of stderr in a log: no control characters, on one line."""
    return " | ".join(repr(line.decode("utf-8", "replace"))[1:-1] for line in lines)


def _build_life() -> Callable[[BackendSession], Life]:
    machine = TypeMachineBuilder(Life, BackendSession)

    live = machine.state("live")
    draining = machine.state("draining")
    closing = machine.state("closing")
    closed = machine.state("closed")

    @pep614(live.upon(Life.drain).to(draining))
    def take_no_more(life: Life, session: BackendSession) -> None:
        session.leaving = True
        session.forget(session)

    @pep614(live.upon(Life.end).to(closing))
    @pep614(draining.upon(Life.end).to(closing))
    def tear_down(life: Life, session: BackendSession, reason: str) -> None:
        log, sink = session.log, session.sink
        session.reason = reason
        session.receiving = False
        session.leaving = True
        if session.lost is not None:
            guarded(log, "waiting for answers no more", session.lost.stop)
        if session.throttle is not None:
            guarded(log, "releasing the throttle", session.throttle.release)
        guarded(log, "forgetting the session", session.forget, session)
        guarded(log, "stopping the keepalive", sink.stop_keepalive)
        guarded(log, "closing the stream", sink.close)
        if session.adapter is not None:
            guarded(log, "closing the adapter", session.adapter.close)
        stopped = guarded(log, "stopping the backend", session.backend.stop)

        def not_stopped(why: Any) -> None:
            # Nobody promises that the backend is gone.
            if why is not None:
                log.failure("stopping a backend failed", why)
            log.error("session {label} keeps its permit", label=session.label)

        if isinstance(stopped, Deferred):
            stopped.addCallbacks(lambda _: life.gone(), not_stopped)
        else:
            not_stopped(None)

    @pep614(closing.upon(Life.gone).to(closed))
    def account(life: Life, session: BackendSession) -> None:
        log = session.log
        guarded(log, "returning the permit", session.permit.release)
        guarded(log, "the last account", session.account)
        for observer in session.observers if session.announced else ():
            guarded(log, "an observer", observer.session_closed, session, session.reason)
        # Who had it ended to have its place comes before those who only wait for one.
        session.ended.callback(None)
        guarded(log, "closing the account", session.closed, session)

    for state, inputs in (
        (draining, (Life.drain,)),
        (closing, (Life.drain, Life.end)),
        (closed, (Life.drain, Life.end, Life.gone)),
    ):
        for each in inputs:
            state.upon(each).loop().returns(None)

    return machine.build()


_make_life = _build_life()
