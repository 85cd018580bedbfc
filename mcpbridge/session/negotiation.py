"""
Which revisions of MCP a server's processes speak, and how a session of an
older client gets on with one that speaks only 2026-07-28.

Knows pipes and time; what is to be said is for `translation.legacy_client`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from mcpbridge import timers
from mcpbridge._version import __version__
from mcpbridge.config.tuning import MAX_BACKOFF_SECONDS
from mcpbridge.errors import METHOD_NOT_FOUND, BackendBusy, UnknownSession
from mcpbridge.jsonrpc.envelope import Envelope, peek, peek_again, split_batch
from mcpbridge.jsonrpc.members import encode, error_line, members
from mcpbridge.mcp.id_restorer import IdRestorer
from mcpbridge.mcp.own_request import own_request
from mcpbridge.processes.backend_session import Adapter, BackendSession
from mcpbridge.processes.backoff import StartBackoff
from mcpbridge.processes.era import ServerEra, find_answer
from mcpbridge.processes.start_check import neutral_initialize
from mcpbridge.translation.handshake import refusal
from mcpbridge.translation.legacy_client import LegacyClientTranslator
from mcpbridge.translation.subscription_relay import FIRST_PAUSE, LONGEST_PAUSE


def first_adapter(
    session: BackendSession, era: ServerEra, backoff: StartBackoff, doubt: Callable[[str], object]
) -> Adapter:
    """
    What a session of an older client begins with.

    `doubt` is called with why the server may be one that cannot be started.
    """
    if era.legacy is False:
        return LegacyClientAdapter(session, era, backoff)
    return UndecidedAdapter(session, era, backoff, doubt)


def greeting(era: ServerEra) -> bytes:
    """What a process is told by the bridge itself, to see whether it answers."""
    if era.modern and not era.legacy:
        return encode(own_request("server/discover", {}).outer)
    return neutral_initialize()


class UndecidedAdapter:
    """
    Until a backend has taken `initialize`: a session passes as it is, but for
    the probe of a client that knows both eras, which no older backend is to see.
    """

    def __init__(
        self,
        session: BackendSession,
        era: ServerEra,
        backoff: StartBackoff,
        doubt: Callable[[str], object],
    ) -> None:
        self._session = session
        self._era = era
        self._backoff = backoff
        self._doubt = doubt
        self._local = _BridgeMessages(session)
        self._heard = False
        #: How many requests have been passed to the backend.
        self._requests = 0
        self._initialize: tuple[bytes, Envelope] | None = None

    def send(self, lines: list[bytes], envelopes: Sequence[Envelope | None] | None = None) -> None:
        """Messages of the client."""
        passing: list[bytes] = []
        probes: list[Envelope] = []
        if envelopes is None:
            envelopes = [peek(line) or peek_again(line) for line in lines]
        for line, envelope in zip(lines, envelopes, strict=True):
            if envelope is not None and envelope.method == "server/discover":
                probes.append(envelope)
                continue
            if envelope is not None and envelope.method == "initialize" and envelope.is_request:
                self._initialize = line, envelope
            passing.append(line)
            # What cannot be read as one message may be a batch of them.
            self._requests += 2 if envelope is None else envelope.is_request
        if passing:
            send(self._session, passing)
        text = "this session is of an older revision of MCP; it begins with `initialize`"
        self._local.say(
            [
                error_line(each.id, METHOD_NOT_FOUND, text)
                for each in probes
                if not isinstance(each.id, msgspec.UnsetType)
            ]
        )

    def received(self, lines: list[bytes]) -> list[bytes]:
        """Messages of the backend."""
        self._heard = True
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
            if answer.id != envelope.id:
                lines = self._respell(lines, number, asked, envelope)
            if self._requests == 1 and not isinstance(answer.result, msgspec.UnsetType):
                # Otherwise it may be the answer to another request, with
                # words of the client's own.
                self._era.known.initialize_result(answer.result)
            self._backoff.succeeded()
        elif refusal(members(answer.error) or {}).modern_only:
            if self._requests == 1:
                # Otherwise it may be the answer to another request with the
                # same id: that counts for this session alone, not for all.
                self._era.legacy = False
            downward = LegacyClientAdapter(self._session, self._era, self._backoff)
            self._session.adapt(downward)
            before = lines[:number]
            try:
                downward.send([asked])
            except (BackendBusy, UnknownSession):
                # It takes nothing now: its own answer is what there is.
                before.append(lines[number])
            return before + downward.received(lines[number + 1 :])
        return lines

    def _respell(
        self, lines: list[bytes], number: int, asked: bytes, envelope: Envelope
    ) -> list[bytes]:
        """The backend has answered `"1"` for 1, or 1 for `"1"`: it will do so again."""
        line = lines[number]
        what = (
            "the server returns the ids of requests as text instead of numbers, or the other way"
            " round, which older clients do not accept; the bridge restores them"
        )
        self._session.misbehaved("ids", what, encode((peek(line) or envelope).id))
        respelled = IdRestoringAdapter(self._session)
        self._session.adapt(respelled)
        respelled.ids.from_client(asked, envelope)
        return lines[:number] + respelled.received(lines[number:])

    @property
    def is_starting(self) -> bool:
        """Whether it was told `initialize`, and has said nothing yet."""
        return self._initialize is not None and not self._heard

    def close(self) -> None:
        """Nothing runs; but was it any use?"""
        session = self._session
        now = session.clock.seconds()
        if (
            self._heard
            or session.backend.exit_status is None
            or now - session.opened_at >= MAX_BACKOFF_SECONDS
        ):
            return
        if self._backoff.stillborn():
            self._doubt(session.reason)


class IdRestoringAdapter:
    """A session whose backend gives ids back in another spelling than its client's."""

    def __init__(self, session: BackendSession) -> None:
        self._session = session
        self.ids = IdRestorer()

    def send(self, lines: list[bytes], envelopes: Sequence[Envelope | None] | None = None) -> None:
        """Messages of the client."""
        send(self._session, lines)
        for line, known in zip(lines, envelopes or [None] * len(lines), strict=True):
            for each in [line] if known else split_batch(line) or [line]:
                envelope = known or peek(each) or peek_again(each)
                if envelope is not None:
                    self.ids.from_client(each, envelope)

    def received(self, lines: list[bytes]) -> list[bytes]:
        """Messages of the backend."""
        return [self.ids.from_backend(line) for line in lines]

    def close(self) -> None:
        """Nothing runs."""


def is_starting(session: BackendSession) -> bool:
    """Whether its process was told `initialize`, and has said nothing yet."""
    if not session.receiving or session.leaving:
        return False
    return (
        isinstance(session.adapter, (UndecidedAdapter, LegacyClientAdapter))
        and session.adapter.is_starting
    )


class LegacyClientAdapter:
    """A session of an older client, kept here, before a backend that knows none."""

    log = Logger()

    def __init__(self, session: BackendSession, era: ServerEra, backoff: StartBackoff) -> None:
        self._session = session
        self._era = era
        self._backoff = backoff
        self._local = _BridgeMessages(session)
        self._kept = LegacyClientTranslator(
            version=__version__,
            pause=timers.backoff(FIRST_PAUSE, LONGEST_PAUSE),
            report=session.message_dropped,
        )
        self._timer: IDelayedCall | None = None
        #: The client's `initialize`, while it is not answered.
        self._initialize: Envelope | None = None

    def send(self, lines: list[bytes], envelopes: Sequence[Envelope | None] | None = None) -> None:
        """Messages of the client, also those of a batch."""
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
                # Those before it are on their way.
                if envelope.is_request and not isinstance(envelope.id, msgspec.UnsetType):
                    self._local.say([error_line(envelope.id, busy.code, str(busy))])

    def _send(self, line: bytes, envelope: Envelope) -> None:
        step = self._kept.from_client(line, envelope, self._session.clock.seconds())
        try:
            if step.to_backend:
                send(self._session, step.to_backend)
        except BaseException:
            self._kept.undo(envelope)
            self._wait_until(self._kept.due)
            raise
        if envelope.method == "initialize" and step.to_backend:
            self._initialize = envelope
        self._local.say(step.to_client)
        self._wait_until(step.due)

    def received(self, lines: list[bytes]) -> list[bytes]:
        """Messages of the backend."""
        to_client = self._local.take()
        for line in lines:
            step = self._kept.from_backend(line, self._session.clock.seconds())
            if self._initialize is not None:
                self._heed(self._initialize, step.to_client)
            to_client += step.to_client
            self._tell_backend(step.to_backend)
            self._wait_until(step.due)
        return to_client

    @property
    def is_starting(self) -> bool:
        """Whether the client's `initialize` is not answered."""
        return self._initialize is not None

    def close(self) -> None:
        """No more timers."""
        self._no_timer()
        if self._initialize is not None:
            # Perhaps it has become one that takes `initialize`.
            self._era.legacy = None

    def _heed(self, asked: Envelope, lines: list[bytes]) -> None:
        """Whether the answer to `initialize`, if it is there, is what this era has."""
        found = find_answer(lines, asked.id)
        if found is None:
            return
        _, answer = found
        self._initialize = None
        if answer.error is msgspec.UNSET:
            self._backoff.succeeded()
            self._era.known.discovered(self._kept.take_server_info())
        else:
            self._era.legacy = None

    def _no_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _tell_backend(self, lines: list[bytes]) -> None:
        try:
            if lines:
                send(self._session, lines)
        except BackendBusy:
            self._session.clock.callLater(
                0, self._session.life.end, "the backend does not read its messages"
            )
        except UnknownSession:
            # It takes nothing more, and what it still says is on its way.
            pass

    def _wait_until(self, due: float | None) -> None:
        self._no_timer()
        if due is not None and self._session.receiving:
            delay = max(0.0, due - self._session.clock.seconds())
            self._timer = self._session.clock.callLater(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        step = self._kept.tick(self._session.clock.seconds())
        self._tell_backend(step.to_backend)
        self._local.say(step.to_client)
        self._wait_until(step.due)


class _BridgeMessages:
    """
    Messages that the bridge itself has for the client: they come like those
    of a backend, never from within a call of the client's.
    """

    def __init__(self, session: BackendSession) -> None:
        self._session = session
        self._lines: list[bytes] = []

    def say(self, lines: Sequence[bytes]) -> None:
        """Soon."""
        if lines:
            if not self._lines:
                self._session.clock.callLater(0, self._deliver)
            self._lines += lines

    def take(self) -> list[bytes]:
        """What has not been said yet; then it need not be."""
        lines, self._lines = self._lines, []
        return lines

    def _deliver(self) -> None:
        self._session.send_as_backend(self.take())


def send(session: BackendSession, lines: list[bytes]) -> None:
    """Lines for a session's backend: all of them, or none.  Raises `BackendBusy`."""
    session.backend.send(lines[0] if len(lines) == 1 else b"\n".join(lines))
