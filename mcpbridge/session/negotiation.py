"""
Negotiation of the era: the adapters between a session of a legacy client and
a backend of which it is not known yet, or known, that it is modern.

A session begins with `UndecidedAdapter` and loses it when its backend has
accepted `initialize`; if the backend speaks only 2026-07-28 the adapter
becomes a `LegacyClientAdapter`.  Knows a session and time; what messages mean
is for `translation.legacy_client`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf

import msgspec
from twisted.logger import Logger

from mcpbridge import timers
from mcpbridge._version import __version__
from mcpbridge.config.tuning import MAX_BACKOFF_SECONDS
from mcpbridge.errors import METHOD_NOT_FOUND, BackendBusy, UnknownSession
from mcpbridge.jsonrpc.envelope import Envelope, peek, peek_again, split_batch
from mcpbridge.jsonrpc.members import encode, error_line, members
from mcpbridge.mcp.id_restorer import IdRestorer
from mcpbridge.mcp.own_request import own_request
from mcpbridge.mcp.subscriptions import told_lists
from mcpbridge.processes.backend_session import Adapter, BackendSession
from mcpbridge.processes.backoff import StartBackoff
from mcpbridge.processes.era import ServerEra, find_answer
from mcpbridge.processes.start_check import neutral_initialize
from mcpbridge.translation.handshake import refusal
from mcpbridge.translation.legacy_client import LegacyClientTranslator
from mcpbridge.translation.subscription_relay import FIRST_PAUSE, LONGEST_PAUSE


def first_adapter(
    session: BackendSession,
    era: ServerEra,
    backoff: StartBackoff,
    doubt: Callable[[str], object],
    start_timeout: float = inf,
) -> Adapter:
    """
    Return the adapter that a session of a legacy client begins with.

    `doubt` is called with the reason why the server may be unable to start.  A client that
    has waited `start_timeout` seconds in vain is such a reason, too.
    """
    if era.legacy is False:
        return LegacyClientAdapter(session, era, backoff)
    return UndecidedAdapter(session, era, backoff, doubt, start_timeout)


def check_request(era: ServerEra) -> bytes:
    """Return the request of the bridge itself that shows whether a process answers."""
    if era.modern and not era.legacy:
        return encode(own_request("server/discover", {}).outer)
    return neutral_initialize()


def is_starting(session: BackendSession) -> bool:
    """Tell whether a session's process was sent `initialize`, and has not answered yet."""
    if not session.receiving or session.leaving:
        return False
    return (
        isinstance(session.adapter, (UndecidedAdapter, LegacyClientAdapter))
        and session.adapter.is_starting
    )


class UndecidedAdapter:
    """
    Passes messages unchanged until the backend has answered `initialize`.

    Except for the probe `server/discover` of a client that knows both eras: it
    is answered here, for no legacy backend is to see it.
    """

    def __init__(
        self,
        session: BackendSession,
        era: ServerEra,
        backoff: StartBackoff,
        doubt: Callable[[str], object],
        start_timeout: float = inf,
    ) -> None:
        self._session = session
        self._era = era
        self._backoff = backoff
        self._doubt = doubt
        self._start_timeout = start_timeout
        self._to_client = _BridgeMessages(session)
        self._has_spoken = False
        #: How many requests have been passed to the backend.
        self._requests = 0
        self._initialize: tuple[bytes, Envelope] | None = None

    def send(self, lines: list[bytes], envelopes: Sequence[Envelope | None] | None = None) -> None:
        """Send messages of the client to the backend, and answer its probes."""
        passed: list[bytes] = []
        probes: list[Envelope] = []
        if envelopes is None:
            envelopes = [peek(line) or peek_again(line) for line in lines]
        for line, envelope in zip(lines, envelopes, strict=True):
            if envelope is not None and envelope.method == "server/discover":
                probes.append(envelope)
                continue
            if envelope is not None and envelope.method == "initialize" and envelope.is_request:
                self._initialize = line, envelope
            passed.append(line)
            # What cannot be read as one message may be a batch of them.
            self._requests += 2 if envelope is None else envelope.is_request
        if passed:
            send_to_backend(self._session, passed)
        text = "this session is of an older revision of MCP; it begins with `initialize`"
        self._to_client.send(
            [
                error_line(each.id, METHOD_NOT_FOUND, text)
                for each in probes
                if not isinstance(each.id, msgspec.UnsetType)
            ]
        )

    def received(self, lines: list[bytes]) -> list[bytes]:
        """Pass messages of the backend on, and look for the answer to `initialize`."""
        self._has_spoken = True
        if self._initialize is None:
            return lines
        asked, envelope = self._initialize
        found = find_answer(lines, envelope.id)
        if found is None:
            return lines
        number, answer = found
        self._initialize = None
        if answer.error is msgspec.UNSET:
            self._session.adapt(None)
            self._era.legacy = True
            _note_lists(self._session, answer)
            if answer.id != envelope.id:
                lines = self._restore_ids(lines, number, asked, envelope)
            if self._requests == 1 and not isinstance(answer.result, msgspec.UnsetType):
                # Otherwise it may be the answer to another request, with data
                # of the client's own.
                self._era.known.initialize_result(answer.result)
            self._backoff.succeeded()
        elif refusal(members(answer.error) or {}).modern_only:
            if self._requests == 1:
                # Otherwise it may be the answer to another request with the
                # same id: that counts for this session alone, not for all.
                self._era.legacy = False
            adapter = LegacyClientAdapter(self._session, self._era, self._backoff)
            self._session.adapt(adapter)
            before = lines[:number]
            try:
                adapter.send([asked])
            except (BackendBusy, UnknownSession):
                # The backend takes nothing now: the client gets its own answer.
                before.append(lines[number])
            return before + adapter.received(lines[number + 1 :])
        return lines

    def _restore_ids(
        self, lines: list[bytes], number: int, asked: bytes, envelope: Envelope
    ) -> list[bytes]:
        """Restore ids from now on: the backend has answered `"1"` for 1, or 1 for `"1"`."""
        line = lines[number]
        what = (
            "the server returns the ids of requests as text instead of numbers, or the other way"
            " round, which older clients do not accept; the bridge restores them"
        )
        self._session.misbehaved("ids", what, encode((peek(line) or envelope).id))
        adapter = IdRestoringAdapter(self._session)
        self._session.adapt(adapter)
        adapter.ids.from_client(asked, envelope)
        return lines[:number] + adapter.received(lines[number:])

    @property
    def is_starting(self) -> bool:
        """True while the backend was sent `initialize` and has sent nothing."""
        return self._initialize is not None and not self._has_spoken

    def close(self) -> None:
        """
        Count a backend that has exited early without a message as a failed start, and one
        that has written none for as long as a start may take.
        """
        session = self._session
        age = session.clock.seconds() - session.opened_at
        if self._has_spoken:
            return
        why: str = session.reason
        if session.backend.exit_status is not None:
            if age >= MAX_BACKOFF_SECONDS:
                return
        elif self.is_starting and round(age, 3) >= self._start_timeout:
            why = f"no answer to `initialize` in {self._start_timeout:g} s"
        else:
            return
        if self._backoff.stillborn():
            self._doubt(why)


class IdRestoringAdapter:
    """Restores the ids of requests, which the backend returns as text or as numbers."""

    def __init__(self, session: BackendSession) -> None:
        self._session = session
        self.ids = IdRestorer()

    def send(self, lines: list[bytes], envelopes: Sequence[Envelope | None] | None = None) -> None:
        """Send messages of the client to the backend, and note the spelling of their ids."""
        send_to_backend(self._session, lines)
        for line, known in zip(lines, envelopes or [None] * len(lines), strict=True):
            for each in [line] if known else split_batch(line) or [line]:
                envelope = known or peek(each) or peek_again(each)
                if envelope is not None:
                    self.ids.from_client(each, envelope)

    def received(self, lines: list[bytes]) -> list[bytes]:
        """Return messages of the backend with the ids as the client wrote them."""
        return [self.ids.from_backend(line) for line in lines]

    def close(self) -> None:
        """Do nothing: there is no timer."""


class LegacyClientAdapter:
    """Keeps the session of a legacy client in front of a backend that knows no sessions."""

    log = Logger()

    def __init__(self, session: BackendSession, era: ServerEra, backoff: StartBackoff) -> None:
        self._session = session
        self._era = era
        self._backoff = backoff
        self._to_client = _BridgeMessages(session)
        self._translator = LegacyClientTranslator(
            version=__version__,
            pause=timers.backoff(FIRST_PAUSE, LONGEST_PAUSE),
            report=session.message_dropped,
        )
        self._timer = timers.Timer(session.clock)
        #: The client's `initialize`, while it is not answered.
        self._initialize: Envelope | None = None

    def send(self, lines: list[bytes], envelopes: Sequence[Envelope | None] | None = None) -> None:
        """Send messages of the client to the backend, those of a batch one by one."""
        messages: list[tuple[bytes, Envelope | None]] = []
        for line, known in zip(lines, envelopes or [None] * len(lines), strict=True):
            if known is not None:
                messages.append((line, known))
            else:
                parts = split_batch(line) or [line]
                messages += [(each, peek(each) or peek_again(each)) for each in parts]
        for number, (line, envelope) in enumerate(messages):
            if envelope is None:
                continue
            try:
                self._send(line, envelope)
            except BackendBusy as busy:
                if not number:
                    raise
                # The messages before this one have been sent.
                if envelope.is_request and not isinstance(envelope.id, msgspec.UnsetType):
                    self._to_client.send([error_line(envelope.id, busy.code, str(busy))])

    def _send(self, line: bytes, envelope: Envelope) -> None:
        step = self._translator.from_client(line, envelope, self._session.clock.seconds())
        try:
            if step.to_backend:
                send_to_backend(self._session, step.to_backend)
        except BaseException:
            self._translator.undo(envelope)
            self._wait_until(self._translator.due)
            raise
        if envelope.method == "initialize" and step.to_backend:
            self._initialize = envelope
        self._to_client.send(step.to_client)
        self._wait_until(step.due)

    def received(self, lines: list[bytes]) -> list[bytes]:
        """Return what the client gets for messages of the backend."""
        to_client = self._to_client.take()
        for line in lines:
            step = self._translator.from_backend(line, self._session.clock.seconds())
            if self._initialize is not None:
                self._note_answer(self._initialize, step.to_client)
            to_client += step.to_client
            self._send_to_backend(step.to_backend)
            self._wait_until(step.due)
        return to_client

    @property
    def is_starting(self) -> bool:
        """True while the client's `initialize` is not answered."""
        return self._initialize is not None

    def close(self) -> None:
        """Stop the timer."""
        self._timer.stop()
        if self._initialize is not None:
            # The server may have been replaced by one that accepts `initialize`.
            self._era.legacy = None

    def _note_answer(self, asked: Envelope, lines: list[bytes]) -> None:
        """Note whether the backend is modern, once `initialize` is answered."""
        # These lines have the client's own ids: 1 and "1" may be two requests of it.
        envelopes = [peek(line) or peek_again(line) for line in lines]
        answers = [each for each in envelopes if each is not None and each.is_response]
        answer = next((each for each in answers if each.id == asked.id), None)
        if answer is None:
            return
        self._initialize = None
        if answer.error is msgspec.UNSET:
            self._backoff.succeeded()
            _note_lists(self._session, answer)
            self._era.known.discovered(self._translator.take_server_info())
        else:
            self._era.legacy = None

    def _send_to_backend(self, lines: list[bytes]) -> None:
        try:
            if lines:
                send_to_backend(self._session, lines)
        except BackendBusy:
            self._session.clock.callLater(
                0, self._session.life.end, "the backend does not read its messages"
            )
        except UnknownSession:
            # The backend is ending; what it has still sent is on its way.
            pass

    def _wait_until(self, due: float | None) -> None:
        if due is not None and self._session.receiving:
            self._timer.start(max(0.0, due - self._session.clock.seconds()), self._tick)
        else:
            self._timer.stop()

    def _tick(self) -> None:
        step = self._translator.tick(self._session.clock.seconds())
        self._send_to_backend(step.to_backend)
        self._to_client.send(step.to_client)
        self._wait_until(step.due)


class _BridgeMessages:
    """
    Messages of the bridge itself to the client, sent as if by the backend.

    In the next iteration of the reactor: never from within a call of the client.
    """

    def __init__(self, session: BackendSession) -> None:
        self._session = session
        self._lines: list[bytes] = []

    def send(self, lines: Sequence[bytes]) -> None:
        """Send lines to the client in the next iteration of the reactor."""
        if lines:
            if not self._lines:
                self._session.clock.callLater(0, self._deliver)
            self._lines += lines

    def take(self) -> list[bytes]:
        """Take the lines that are not sent yet, to send them with others."""
        lines, self._lines = self._lines, []
        return lines

    def _deliver(self) -> None:
        self._session.send_as_backend(self.take())


def _note_lists(session: BackendSession, answer: Envelope) -> None:
    """Note what an answer to `initialize` promises the client to be told of."""
    if not isinstance(answer.result, msgspec.UnsetType):
        session.told_lists = told_lists(answer.result)


def send_to_backend(session: BackendSession, lines: list[bytes]) -> None:
    """Send all of the lines to a session's backend, or none.  Raises `BackendBusy`."""
    session.backend.send(lines[0] if len(lines) == 1 else b"\n".join(lines))
