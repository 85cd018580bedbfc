"""
Every interface that an extension may provide.  No logic.

The docstrings are the specification: who calls, when, what fires, what is
raised.  An object is checked with `verifyObject` where it is loaded, by
dotted name from the configuration or as an argument of `Bridge`.
"""

from __future__ import annotations

from typing import Any

from zope.interface import Attribute, Interface


class IPermit(Interface):
    """The right to have one process, handed out by an `ISessionLimiter`."""

    def release() -> None:
        """
        Give the permit back.  Called once the whole process tree is gone; a
        second call must do nothing.  Must not raise.
        """


class ISessionLimiter(Interface):
    """Decides how many processes a server may have: one for each session, and others."""

    def acquire() -> object | None:
        """
        Hand out an `IPermit`, or None where the limit is reached.

        Called for each process, before anything else is done for it: for a
        session that a client asks for, for requests of 2026-07-28, which have
        none, and for a spare one, which nobody has asked for.  Where there is
        none, a spare process may be ended and this asked again.  Called in
        the reactor's thread; must answer at once.
        """


class IBackend(Interface):
    """A running stdio MCP server: that of a session, or one that serves requests without."""

    exit_status = Attribute(
        """How it ended, for the log: `exit status 1`, `signal 9`; None while it runs."""
    )

    def send(line: bytes) -> None:
        """
        Pass one message, a line without its newline, to the backend.

        Raises `mcpbridge.errors.BackendBusy`, having stored nothing, where
        as many messages as the settings allow already wait.
        """

    def pause() -> None:
        """
        Read no more from the backend: the client does not keep up.  May be
        called twice, also after the end.
        """

    def resume() -> None:
        """Read again.  May be called without `pause`, also after the end."""

    def stop() -> object:
        """
        End the backend and everything it has started: close its stdin at
        once, discard its messages from now on, then signal as the graces allow.

        Returns a `Deferred[None]` that fires when nothing of it is left and
        never fails.  May be called more than once.
        """


class IBackendReceiver(Interface):
    """
    What a backend reports to: its session.  A launcher is given one, and its
    backend calls it in the reactor's thread: only after the launcher's
    Deferred has fired, and never from within a call of its own methods.
    """

    def messages_received(lines: list[bytes]) -> None:
        """
        The backend wrote these messages, each one line without its newline.
        """

    def message_lost(lost: Any) -> None:
        """
        The backend wrote a message that cannot pass, a
        `mcpbridge.jsonrpc.malformed_output.Lost` that says why: one beyond
        `max_message_bytes`, or one that is not a line of its own.
        """

    def misbehaved(fault: str, what: str, line: bytes) -> None:
        """
        The backend does what MCP forbids, and nothing is lost by that: for
        the log.  `fault` names the kind, `what` says it in words, and `line`
        is an example, or empty.
        """

    def diagnostics_received(lines: list[bytes]) -> None:
        """
        The backend wrote these lines to stderr, or something else for people.
        What it writes while it is stopped may come too, and is logged.
        """

    def input_closed(reason: str) -> None:
        """
        The backend takes no more messages (it exited, or closed its stdin);
        what it has already written may still come.
        """

    def output_closed(reason: str) -> None:
        """No more messages will come from the backend.  Called once, after all of them."""


class IBackendLauncher(Interface):
    """How a backend is started: a local process by default."""

    def launch(receiver: object, label: str) -> object:
        """
        Start a backend: for a session, for requests of 2026-07-28, or as a
        spare one that waits for either.

        Called with the session's `IBackendReceiver` and a short label for
        the log, once a permit is held.  Returns a `Deferred` of an `IBackend`,
        which fails with `mcpbridge.errors.CannotStart` where the backend
        cannot be started; the client then gets a 502 with its text.  A
        Deferred that is cancelled must leave nothing behind.
        """

    def check() -> str | None:
        """
        Called at the start of the bridge: None, or what would keep a backend
        from being started now, for the log.  Must not block.
        """


class ICaller(Interface):
    """
    Who has sent a message, or is to get it.

    What a client says of itself proves nothing: neither its name nor a header
    of its own making does.
    """

    identity = Attribute(
        """Who it has proved to be, str.  As nobody is asked yet, it is always `""`."""
    )
    address = Attribute(
        """
        The IP address of the client, str: that of the connection's other end,
        or what a trusted proxy (`trusted_proxies`) says.  None where it is
        not known: on a UNIX socket without such a proxy, and where proxies
        contradict each other.
        """
    )
    client_name = Attribute(
        """
        The `name` of the client's `clientInfo`, str; None until it has said
        so, and where it is no string.  A filter that is asked about the
        `initialize` of a session knows it already.  Of several the first
        counts, and of one of more than 64 KiB nothing is read.  Cut to 200
        characters (`mcpbridge.config.tuning.CLIENT_TEXT_CHARS`), which may be any:
        escape them in a log.
        """
    )
    client_version = Attribute("The same with its `version`.")
    headers = Attribute(
        """
        The headers of the HTTP request, a read-only mapping of their names in
        lower case to their values, both str; several of one name are joined
        by a comma and a space (RFC 9110, section 5.3).  Of a session it is the request that
        has opened it: `GET /sse`, or the POST of `initialize`.  They may hold
        secrets: do not log them.
        """
    )


class ISessionInfo(Interface):
    """
    What observers and filters may know of a session.  A process that serves
    requests of 2026-07-28 is one too: of all clients that it serves.
    """

    caller = Attribute(
        """
        Its client, an `ICaller`: the same object for the life of the session.
        A process that serves requests of 2026-07-28 has none of its own:
        there it is, during each call of a filter's methods and of
        `message_passed`, the caller of the request that the message belongs
        to, and None where it is of no client's request: one of the bridge's
        own, a notification for nobody in particular; at any other time, None.
        """
    )

    server = Attribute("The name of its server, str.")
    label = Attribute("The first characters of its id, fit for a log, str.")
    opened_at = Attribute("When it was opened, seconds of the reactor's clock.")
    messages_in = Attribute("How many messages the client has sent, int.")
    bytes_in = Attribute("Their size, int.")
    messages_out = Attribute("How many messages the client was sent, int.")
    bytes_out = Attribute("Their size, int.")


class ISessionObserver(Interface):
    """
    Is told of sessions: metrics, an audit log.  An observer that raises is
    logged, and nothing else is disturbed.
    """

    def session_opened(session: object) -> None:
        """
        A session (`ISessionInfo`) was opened: its backend runs.  A spare
        process is reported when somebody has it.
        """

    def message_passed(session: object, from_client: bool, line: bytes) -> None:
        """
        A message passed, from the client or to it; of requests of 2026-07-28
        as it stands at the backend.  Called for each message: be quick.  The
        bridge's own pings are not reported.
        """

    def session_closed(session: object, reason: str) -> None:
        """A session ended, and nothing of its process tree is left."""


class IMessageFilter(Interface):
    """
    Sees each message, and may change or refuse it.

    Both methods return the message that passes, one line of JSON without a
    newline, most often the one they were given.  They refuse by raising
    `mcpbridge.errors.MessageRefused`: whoever has sent a request gets its
    text in a JSON-RPC error as the answer; where an answer is refused, such
    an error takes its place; a refused notification is dropped.  Of a batch
    what is not refused goes on: a filter that refuses an array is asked
    again for each of its messages.  What was refused is counted in the log.

    Of a session they see what its client says and gets, whatever its server
    speaks.  Of requests of 2026-07-28 they see what the backend reads and
    writes: translated where it is older, and with ids of the bridge's own.
    To a backend that is not older the bridge itself sends `server/discover`,
    `tools/list` and `subscriptions/listen`; they come by too, and must pass.
    """

    def from_client(session: object, line: bytes) -> bytes:
        """Called with each message of the client, before it is queued."""

    def from_backend(session: object, line: bytes) -> bytes:
        """Called with each message of the backend, before it is sent."""


class IEventLog(Interface):
    """The events of one session, kept for a client that comes back."""

    def append(stream: str, number: int, line: bytes) -> None:
        """
        Keep an event, a line of JSON, which was sent or is to be sent on a
        stream of the session.

        Called for each event with its stream's name and its number there:
        1, 2, 3 and on.  Be quick.  How much is kept is the store's to decide, but
        of a stream nothing may be missing behind an event that is kept.
        Must not raise.
        """

    def after(stream: str, number: int) -> list[tuple[int, bytes]]:
        """
        All events of a stream behind the one with that number, in order,
        with their numbers; 0: from the first.

        Called when a client comes back with `Last-Event-ID`; must answer at
        once.  An empty list says that this event was the last.  Raises
        `mcpbridge.errors.EventsGone` where the next one is not kept any more,
        or nothing is known of the stream.
        """

    def close() -> None:
        """The session is over, and nothing of it will be asked for.  Must not raise."""


class IEventStore(Interface):
    """Keeps what was sent, so that a client that lost its connection misses nothing."""

    def open(session_id: str) -> object:
        """
        The `IEventLog` of a session, called once for each.  The id is the
        session's secret: do not show it.
        """
