"""
The interfaces that an extension may provide.  No logic.

The docstrings are the specification: who calls a method, when, what it
returns or fires, and what it raises.  All methods are called in the reactor's
thread, and must not block.  An object is checked with `verifyObject` when it
is loaded, by its dotted name in the configuration or as an argument of
`mcpbridge.bridge.Bridge`.
"""

from __future__ import annotations

from typing import Any

from zope.interface import Attribute, Interface


class IPermit(Interface):
    """The right to run one process, handed out by an `ISessionLimiter`."""

    def release() -> None:
        """
        Give the permit back.

        The bridge calls this when nothing of the process tree is left.  A
        second call must do nothing.  Must not raise.
        """


class ISessionLimiter(Interface):
    """Limits the processes of a server: one for each session, and others."""

    def acquire() -> object | None:
        """
        Return an `IPermit`, or None if the limit is reached.

        The bridge calls this before it starts a process: for a session, for
        requests of 2026-07-28, which have no session, or for a warm process,
        which no client has asked for.  After None it may end a warm process
        and call this again.  Must answer at once.
        """


class IBackend(Interface):
    """A running stdio MCP server, for a session or for requests of 2026-07-28."""

    exit_status = Attribute(
        """How it ended, for the log: `exit status 1`, `signal 9`; None while it runs."""
    )

    def send(line: bytes) -> None:
        """
        Pass one message to the backend: a line of JSON without its newline.

        Raises `mcpbridge.errors.BackendBusy`, and stores nothing, if as many
        messages wait as the settings allow; `mcpbridge.errors.UnknownSession`
        if the backend takes no more messages.
        """

    def pause() -> None:
        """
        Stop reading from the backend: the client does not keep up.

        May be called when it is paused already, and after its end.
        """

    def resume() -> None:
        """Read again.  May be called when it is not paused, and after its end."""

    def stop() -> object:
        """
        End the backend and everything that it has started.

        Closes its stdin at once, discards its messages from now on, and then
        signals it as the graces allow.  Returns a `Deferred[None]` that fires
        when nothing of it is left, and never fails.  May be called more than
        once.
        """


class IKillableBackend(IBackend):
    """A backend that can be ended sooner than its graces allow."""

    def kill() -> None:
        """
        Kill all that the backend has started, now if `stop` was called, or else then.

        Called when an operator does not wait for a stop of the bridge any longer.  The
        `Deferred` of `stop` fires as always.  May be called more than once.
        """


class IBackendReceiver(Interface):
    """
    The session, to which a backend reports.

    A launcher is given one.  The backend calls it in the reactor's thread,
    only after the launcher's `Deferred` has fired, and never from within a
    call of the backend's own methods.
    """

    def messages_received(lines: list[bytes]) -> None:
        """Take messages that the backend wrote, each one line without its newline."""

    def message_lost(lost: Any) -> None:
        """
        Note a message of the backend that cannot be passed on.

        `lost` is a `mcpbridge.jsonrpc.malformed_output.Lost`, with the reason: it
        is larger than `max_message_bytes`, or not on a line of its own.
        """

    def misbehaved(fault: str, what: str, line: bytes) -> None:
        """
        Log something that MCP forbids, but by which no message is lost.

        `fault` is the kind, `what` describes it, and `line` is an example, or
        empty.
        """

    def diagnostics_received(lines: list[bytes]) -> None:
        """
        Take lines of text for people, from stderr or elsewhere.

        They may come while the backend is being stopped, and are then logged.
        """

    def input_closed(reason: str) -> None:
        """
        Send no more messages: the backend has exited, or closed its stdin.

        Messages that it has already written may still come.
        """

    def output_closed(reason: str) -> None:
        """Expect no more messages.  Called once, after the last of them."""


class IBackendLauncher(Interface):
    """Starts backends; by default, as processes on this machine."""

    def launch(receiver: object, label: str) -> object:
        """
        Start a backend.

        The bridge calls this when it holds a permit: for a session, for
        requests of 2026-07-28, or for a warm process that waits for either.
        `receiver` is the session's `IBackendReceiver`, `label` names it in the
        log.  Returns a `Deferred` of an `IBackend`.  It fails with
        `mcpbridge.errors.CannotStart` if the backend cannot be started; the
        client then gets status 502 with the text of the error.  A Deferred
        that is cancelled must leave nothing behind.
        """

    def check() -> str | None:
        """
        Return what would prevent a start now, for the log; None if nothing would.

        The bridge calls this once, when it starts.
        """


class IEnvironmentLauncher(IBackendLauncher):
    """
    A launcher that can also set environment variables for a single backend.

    A server with `env_from` needs one.
    """

    def launch_with(receiver: object, label: str, environment: Any) -> object:
        """
        Start a backend with these environment variables besides all others.

        The bridge calls this instead of `launch` for a client that has given some.
        `environment` is a read-only mapping of names to values, both str; they take
        precedence over those of the settings.  The values are a client's secrets: do not
        log them, put them into no command line, and give them to no other backend.
        Returns and raises what `launch` does.
        """


class IIdentity(Interface):
    """
    Who a caller is: what an `IAuthenticator` has found out.

    `mcpbridge.auth.identity.Identity` provides it.  An issuer and a subject are one
    identity for ever: processes, sessions and tasks belong to it.
    """

    issuer = Attribute(
        """
        Who vouches for the subject, str without `#`: the URL of an authorization
        server, `token` for a named token, `certificate`, `proxy`, or a word of your own.
        """
    )
    subject = Attribute("The name of the caller, unique to the issuer, str.")
    scopes = Attribute("The scopes that were granted, a frozenset of str.")
    claims = Attribute("What else the issuer says of the subject: a read-only mapping.")
    expires_at = Attribute(
        """
        When the proof expires, in seconds since the epoch, a float; None if it does not.
        """
    )


class IAuthenticationRequest(Interface):
    """The head of an HTTP request, as an `IAuthenticator` sees it."""

    server = Attribute("The name of the server that it is for, str.")
    method = Attribute("Its method, str: `POST`.")
    uri = Attribute("Its target, as the client has written it, str: `/files/mcp`.")
    headers = Attribute(
        """
        Its headers: a read-only mapping of their names, in lower case, to their
        values, both str.  Several of one name are joined by a comma and a space.
        """
    )
    address = Attribute(
        """
        The IP address of the other end of the connection, str, which may be a proxy's;
        `unix` on a UNIX socket, and None if it is unknown.
        """
    )
    certificate = Attribute(
        """
        The client certificate, in DER, bytes, if the connection has proven one that the
        listener trusts; otherwise None.
        """
    )

    def values(name: str) -> list[str]:
        """Return the values of all headers of this name, which is in lower case."""


class IAuthenticator(Interface):
    """
    Finds out who sent a request.

    If an authenticator raises something else than is described here, that is logged,
    and the client gets status 500: nobody is let in by a defect.
    """

    def authenticate(request: object) -> object:
        """
        Return an `IIdentity`, None, or a `Deferred` of either.

        The bridge calls this with an `IAuthenticationRequest` for each request to a
        server, before anything else is done for it, but for the check of `Host` and
        `Origin`.  None means that the request has no credentials of a kind that this
        authenticator knows, so that the next one is asked.

        Raises `mcpbridge.errors.InvalidToken` for credentials that are wrong or have
        expired, `mcpbridge.errors.Forbidden` for an identity that may not use this
        server, and `mcpbridge.errors.AuthenticationUnavailable` if it cannot be found
        out now.
        """


class ICaller(Interface):
    """
    The client that sent a message, or that will get it.

    Nothing that a client says about itself is proof: neither its name nor a
    header of its own.
    """

    identity = Attribute(
        """
        The name of its proven identity, str: its issuer, a `#` and its subject, such as
        `token#alice` or `https://login.example.org#1234`.  It is `""` without
        authentication.
        """
    )
    scopes = Attribute("The scopes that it was granted, a frozenset of str.")
    claims = Attribute("What else the issuer of its identity says of it, a read-only mapping.")
    address = Attribute(
        """
        The IP address of the client, str: the other end of the connection, or
        what a trusted proxy (`trusted_proxies`) says.  None if it is unknown:
        on a UNIX socket without such a proxy, and if proxies contradict each
        other.
        """
    )
    client_name = Attribute(
        """
        The `name` of the client's `clientInfo`, str.  None until the client has
        sent it, and if it is not a string.  A filter that sees the
        `initialize` of a session knows it already.  If there are several, the
        first counts; a `clientInfo` of more than 64 KiB is not read.  Cut to
        200 characters (`mcpbridge.config.tuning.CLIENT_TEXT_CHARS`), which may
        be any: escape them in a log.
        """
    )
    client_version = Attribute("""The `version` of `clientInfo`, under the same rules.""")
    headers = Attribute(
        """
        The headers of the HTTP request: a read-only mapping of their names, in
        lower case, to their values, both str.  Several headers of one name are
        joined by a comma and a space (RFC 9110, section 5.3).  For a session,
        they are those of the request that has opened it: of `GET /sse`, or of
        the POST of `initialize`.
        They may contain secrets: do not log them.
        """
    )


class ISessionInfo(Interface):
    """
    A session, as far as observers and filters may know it.

    A process that serves requests of 2026-07-28 counts as a session, too: of
    all the clients that it serves.
    """

    caller = Attribute(
        """
        Its client, an `ICaller`: the same object for the life of the session.
        A process that serves requests of 2026-07-28 has no client of its own.
        During a call of a filter's methods or of `message_passed` it has the
        caller of the request to which the message belongs, and None for a
        message of no client's request, such as the bridge's own or a
        notification for nobody in particular.  At any other time it has None.
        """
    )

    server = Attribute("The name of its server, str.")
    label = Attribute("The first characters of its id, str, which may be logged.")
    opened_at = Attribute("When it was opened, in seconds of the reactor's clock.")
    messages_in = Attribute("The number of messages from the client, int.")
    bytes_in = Attribute("Their size in bytes, int.")
    messages_out = Attribute("The number of messages to the client, int.")
    bytes_out = Attribute("Their size in bytes, int.")


class ISessionObserver(Interface):
    """
    Is told about sessions, for metrics or an audit log.

    If an observer raises, that is logged, and nothing else is affected.
    """

    def session_opened(session: object) -> None:
        """
        Note that a session (`ISessionInfo`) was opened: its backend runs.

        For a warm process, the bridge calls this when a client gets it.
        """

    def message_passed(session: object, from_client: bool, line: bytes) -> None:
        """
        Note a message from the client, or to it.

        Messages of requests of 2026-07-28 are shown as the backend reads and
        writes them.  Called for each message, so be quick.  The bridge's own
        pings are not shown.
        """

    def session_closed(session: object, reason: str) -> None:
        """Note that a session has ended and nothing of its process tree is left."""


class IMessageFilter(Interface):
    """
    Sees each message, and may change or refuse it.

    Both methods return the message that is passed on: one line of JSON
    without a newline, most often the one that they were given.  To refuse a
    message they raise `mcpbridge.errors.MessageRefused`.  Then the sender of a
    request gets its text in a JSON-RPC error as the answer; such an error
    also takes the place of a refused answer; a refused notification is
    dropped.  If a filter refuses a batch, it is called again for each of its
    messages, and those that it does not refuse are passed on.  The log counts
    what was refused.

    Of a session, a filter sees what the client sends and gets, whatever its
    server speaks.  Of requests of 2026-07-28, it sees what the backend reads
    and writes: translated for a legacy server, and with ids of the bridge's
    own.  To a modern server the bridge itself sends `server/discover`,
    `tools/list` and `subscriptions/listen`; a filter sees them, too, and must
    not refuse them.
    """

    def from_client(session: object, line: bytes) -> bytes:
        """Return the message to pass on; called before it is queued for the backend."""

    def from_backend(session: object, line: bytes) -> bytes:
        """Return the message to pass on; called before it is sent to the client."""


class IEventLog(Interface):
    """The events of one session, stored for a client that reconnects."""

    def append(stream: str, number: int, line: bytes) -> None:
        """
        Store an event: a line of JSON that is sent on a stream of the session.

        The bridge calls this for each event, with the name of its stream and
        its number there: 1, 2, 3 and so on.  Be quick.  The store decides how
        much it keeps, but of a stream nothing may be missing after an event
        that is kept.  Must not raise.
        """

    def after(stream: str, number: int) -> list[tuple[int, bytes]]:
        """
        Return the events of a stream after the one with that number, in order,
        with their numbers; all of them after 0.

        The bridge calls this when a client reconnects with `Last-Event-ID`.
        Must answer at once.  An empty list means that this event was the last
        one.  Raises `mcpbridge.errors.EventsGone` if the next event is no longer
        kept, or the stream is unknown.
        """

    def close() -> None:
        """Forget the session: its events will not be asked for again.  Must not raise."""


class IEventStore(Interface):
    """Stores sent events, so that a client that lost its connection misses nothing."""

    def open(session_id: str) -> object:
        """
        Return the `IEventLog` of a session.

        The bridge calls this once for each session.  The id is the session's
        secret: do not reveal it.
        """
