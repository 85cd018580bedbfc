"""
A named server: its settings, its limiter, and the table of its live sessions.

The one place that decides about a message of a client, whatever way it came.
Knows sessions; must not know HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast
from uuid import uuid4

from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.config import LAUNCH_SECONDS, ServerSettings
from mcpbridge.errors import (
    BackendFailed,
    CannotStart,
    MessageTooLarge,
    Stopping,
    TooManySessions,
    UnknownSession,
)
from mcpbridge.protocol.envelope import read_message
from mcpbridge.session.session import Session, Stream
from mcpbridge.session.streamable import StreamableFace


class Server:
    """
    Opens sessions, finds them, and ends them all when the bridge stops.

    `limiter` is an `EveryLimiter`; `launcher`, `observers` and `filters` provide the interfaces of
    those names.
    """

    log = Logger()

    def __init__(
        self,
        settings: ServerSettings,
        clock: IReactorTime,
        *,
        launcher: Any,
        limiter: Any,
        observers: Sequence[Any] = (),
        filters: Sequence[Any] = (),
        event_store: Any = None,
    ) -> None:
        self._event_store = event_store
        self.settings = settings
        #: Live sessions of HTTP+SSE, and of Streamable HTTP.
        self.sessions: dict[str, Session] = {}
        self.streamable: dict[str, Session] = {}
        #: All that are not closed, the live ones among them.
        self.unclosed: set[Session] = set()
        self._clock = clock
        self._launcher = launcher
        self._limiter = limiter
        self._observers = observers
        self._filters = filters
        self._launching: set[Deferred[Any]] = set()
        self._stopping = False

    async def open_streamable(self) -> Session:
        """
        The same for Streamable HTTP: its streams are a `StreamableFace`, and
        stderr is not for a client that expects MCP alone.
        """

        def make_face(session: Session) -> StreamableFace:
            events = self._event_store.open(session.ident)
            return StreamableFace(session, self.settings, self._clock, events)

        return await self.open_session(make_face, self.streamable, stderr_notifications=False)

    async def open_session(
        self,
        make_stream: Callable[[Session], Stream],
        table: dict[str, Session] | None = None,
        *,
        stderr_notifications: bool = True,
    ) -> Session:
        """
        A permit, then a backend, then a session that is live.

        `make_stream` is called once the backend runs.  Raises
        `TooManySessions`, `BackendFailed` and `Stopping`; then no permit is
        held and no process left.
        """
        table = self.sessions if table is None else table
        if self._stopping:
            raise Stopping("the bridge is shutting down")
        permit = self._limiter.acquire()
        if permit is None:
            raise TooManySessions("too many concurrent MCP sessions")
        try:
            session = Session(
                ident=str(uuid4()),
                server=self.settings.name,
                clock=self._clock,
                permit=permit,
                forget=lambda gone: _forget(table, gone),
                closed=self.unclosed.discard,
                observers=self._observers,
                filters=self._filters,
                stderr_notifications=stderr_notifications and self.settings.stderr_notifications,
            )
            session.backend = await self._launch(session)
        except BaseException:
            permit.release()
            raise
        self.unclosed.add(session)
        session.opened()
        try:
            session.stream = make_stream(session)
        except BaseException:
            session.life.end("the stream could not be opened")
            raise
        table[session.ident] = session
        return session

    async def _launch(self, session: Session) -> Any:
        launching = cast("Deferred[Any]", self._launcher.launch(session, session.label))
        self._launching.add(launching)
        if not launching.called:
            launching.addTimeout(LAUNCH_SECONDS, self._clock)
        try:
            return await launching
        except CancelledError:
            if self._stopping:
                raise Stopping("the bridge is shutting down") from None
            raise
        except CannotStart as error:
            raise self._failed(session, str(error)) from None
        except defer.TimeoutError:
            why = f"the backend took longer than {LAUNCH_SECONDS:g} s to start"
            raise self._failed(session, why) from None
        finally:
            self._launching.discard(launching)

    def _failed(self, session: Session, why: str) -> BackendFailed:
        name = self.settings.name
        self.log.warn(
            "session {label} of {server!r} not opened: {why}",
            label=session.label,
            server=name,
            why=why,
        )
        return BackendFailed(why)

    def is_full(self) -> bool:
        """Whether a session that is asked for now would be refused with `TooManySessions`."""
        return not self._stopping and bool(self._limiter.is_full())

    def find(self, ident: str) -> Session:
        """The live session of this id.  Raises `UnknownSession`."""
        session = self.sessions.get(ident)
        if session is None:
            raise UnknownSession("no such session, or it has ended")
        return session

    def find_streamable(self, ident: str) -> Session:
        """The live session of Streamable HTTP of this id.  Raises `UnknownSession`."""
        session = self.streamable.get(ident)
        if session is None:
            raise UnknownSession("no such session, or it has ended")
        return session

    def check_size(self, body: bytes) -> None:
        """Raise `MessageTooLarge` for a body beyond `max_message_bytes`."""
        if len(body) > self.settings.max_message_bytes:
            raise MessageTooLarge(f"a message may have {self.settings.max_message_bytes} bytes")

    def receive(self, ident: str, body: bytes) -> None:
        """
        A message that a client posted to the session of this id.

        Returns when the message is on its way.  Raises a `Refused` that says
        why it is not; then nothing was stored.
        """
        session = self.find(ident)
        self.check_size(body)
        line, envelope = read_message(body)
        session.client_message(line, envelope)

    def stop(self) -> Deferred[Any]:
        """End all sessions; fires when nothing of them is left."""
        self._stopping = True
        for launching in list(self._launching):
            launching.cancel()
        unclosed = list(self.unclosed)
        for session in unclosed:
            session.life.end("the bridge stops")
        return DeferredList([session.ended for session in unclosed])


def _forget(table: dict[str, Session], session: Session) -> None:
    table.pop(session.ident, None)
