"""
All errors that a user of the bridge may see.

They form one tree.  A class knows its HTTP status and its JSON-RPC code, and
its docstring describes the error as `docs/operating.md` does.  Nothing here
knows how a response is written to a connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, TypeVar

import msgspec

#: JSON-RPC 2.0, section 5.1.
PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
#: The code that the servers of the MCP SDKs use for an unknown session.
SESSION_NOT_FOUND = -32001
#: 2026-07-28, basic/index, "Error Codes".
HEADER_MISMATCH = -32020
MISSING_CAPABILITY = -32021
UNSUPPORTED_VERSION = -32022
#: An error shows so many characters of an id, as it is written in JSON.
MAX_SHOWN_ID = 80
#: For errors for which JSON-RPC has no code of its own.
SERVER_ERROR = -32000


class BridgeError(Exception):
    """The base of all errors of mcpbridge.  Its text may be shown to a user."""


class Described(str):
    """A description of a wrong value, which an error shows in place of the value."""


class SettingError(BridgeError):
    """
    A setting is wrong.  The error is one line: the setting's name, what was
    expected, and what was given.
    """

    def __init__(self, name: str, expected: str, got: object) -> None:
        shown = str(got) if isinstance(got, Described) else _shown(got)
        super().__init__(f"{name}: expected {expected}, got {shown}")
        self.name = name
        self.expected = expected
        self.got = got
        #: What else is wrong, if that is known as well.
        self.others: tuple[SettingError, ...] = ()

    @classmethod
    def raise_all(cls, errors: Iterable[SettingError]) -> None:
        """Raise the first of these errors, with the others; do nothing without any."""
        found = tuple(errors)
        if found:
            found[0].others = found[1:]
            raise found[0]


class SettingErrors(SettingError):
    """Several settings are wrong: one line for each of them."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("config", "a file without errors", Described("errors"))
        self.args = ("\n".join(lines),)
        self.lines = tuple(lines)


def _shown(value: object) -> str:
    """Return a value as JSON, or else its `repr`, cut to a readable length."""
    try:
        text = msgspec.json.encode(value).decode("utf-8", "replace")
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    if isinstance(value, float) and text == "null":
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class CannotListen(BridgeError):
    """A listener could not be opened: its address is in use, or is not this machine's."""


class Exposed(CannotListen):
    """A listener is reachable from other machines, and a server asks nobody who they are."""


class CannotStart(BridgeError):
    """
    The backend's command could not be started.

    It was not found in the backend's own PATH and directory, or the system
    refused a new process.
    """

    #: True if descriptors, processes or memory have run out, which concerns all sessions.
    exhausted: ClassVar[bool] = False


class OutOfResources(CannotStart):
    """The system has no descriptor, process or memory left for another backend."""

    exhausted = True


class EventsGone(BridgeError):
    """The event store no longer has all events that were to be replayed."""


class Refused(BridgeError):
    """
    The base of all errors that are the response to a request.

    The body is a JSON-RPC error, in UTF-8 and on one line.  Its id is null if
    the request is not known.
    """

    status: ClassVar[int] = 400
    code: int = INVALID_REQUEST
    #: Seconds after which a retry may succeed, for `Retry-After`.
    retry_after: int | None = None
    #: The id of the request, if it is one of 2026-07-28.
    ident: str | int | float | None = None
    #: Details for programs: the `data` of the JSON-RPC error.
    data: Mapping[str, object] | None = None
    #: True once the audit log has a record of each message that was refused.
    audited: bool = False

    def body(self) -> bytes:
        """Return the body of the response."""
        error: dict[str, object] = {"code": self.code, "message": str(self)}
        if self.data is not None:
            error["data"] = self.data
        return msgspec.json.encode({"jsonrpc": "2.0", "id": self.ident, "error": error})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of the response, without its length."""
        headers = [(b"Content-Type", b"application/json")]
        if self.retry_after is not None:
            headers.append((b"Retry-After", b"%d" % self.retry_after))
        return headers


_Error = TypeVar("_Error", bound=BaseException)


def without_frames(error: _Error) -> _Error:
    """
    Return the error without its traceback, its context and its cause, which
    lose their tracebacks as well.

    Frames and errors refer to each other, so that everything in the frames
    would stay in memory until the garbage collector runs.
    """
    led_to_it = [error.__context__, error.__cause__]
    error.__context__ = error.__cause__ = None
    for each in led_to_it:
        if each is not None:
            without_frames(each)
    return error.with_traceback(None)


class EmptyBody(Refused):
    """The request has no body."""


class NotJson(Refused):
    """The body is not JSON, is not UTF-8, or is nested too deeply."""

    code = PARSE_ERROR


class NotJsonRpc(Refused):
    """The body is JSON, but neither a JSON-RPC 2.0 message nor an array of them."""


class IdInUse(Refused):
    """
    The request has the id of an earlier one that is not answered yet.

    The response names the id in `data` and has none itself, since it would
    otherwise look like the answer to the first request.
    """

    @classmethod
    def of(cls, ident: bytes) -> IdInUse:
        """Return the error for an id, as it is written in JSON."""
        shown = ident.decode("utf-8", "replace")
        if len(shown) > MAX_SHOWN_ID:
            shown = f"{shown[:MAX_SHOWN_ID]}..."
            ident = msgspec.json.encode(shown)
        error = cls(f"the id {shown} is that of a request that is still open; use another")
        error.data = {"requestId": msgspec.Raw(ident)}
        return error


class CannotResume(Refused):
    """
    The stream cannot be resumed.

    `Last-Event-ID` names no event of the session, or events after it are no
    longer stored.  A request without that header opens a new stream.
    """

    code = SERVER_ERROR


class StreamTaken(Refused):
    """
    The session's GET stream is open elsewhere, and was taken over too often lately.
    """

    status = 429
    code = SERVER_ERROR

    def __init__(self, text: str, retry_after: int) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class MessageRefused(Refused):
    """
    A message filter refused the message.

    A filter raises this, with a text for the sender.  In a session the sender
    gets it as an ordinary JSON-RPC error.
    """

    code = SERVER_ERROR


class Forbidden(Refused):
    """The request's `Origin` or `Host` is not allowed."""

    status = 403
    code = SERVER_ERROR


class Unauthorized(Refused):
    """
    The request has no credentials, and its server asks for some.

    `WWW-Authenticate` says which, and where to get them (RFC 6750, section 3; RFC 9728,
    section 5.1).
    """

    status = 401
    #: The `error` of RFC 6750, section 3.1; None if no credentials were sent.
    error: ClassVar[str | None] = None

    def __init__(self, text: str) -> None:
        super().__init__(text)
        #: The value of `WWW-Authenticate`, which the server's access control makes.
        self.challenge: bytes = b"Bearer"

    @property
    def is_attempt(self) -> bool:
        """True if there were credentials, and they were wrong."""
        return self.error in ("invalid_token", "invalid_request")

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [*super().headers(), (b"WWW-Authenticate", self.challenge)]


class InvalidToken(Unauthorized):
    """The credentials are wrong, for another server, or have expired."""

    error = "invalid_token"


class MalformedCredentials(Unauthorized):
    """The request has several credentials, some in its query, or some that cannot be read."""

    status = 400
    error = "invalid_request"


class InsufficientScope(Unauthorized):
    """
    The caller is known, and may not do this.

    The `scope` of `WWW-Authenticate` names all scopes that the request needs.
    """

    status = 403
    error = "insufficient_scope"

    def __init__(self, text: str, scopes: Sequence[str]) -> None:
        super().__init__(text)
        self.scopes = tuple(scopes)


class AuthenticationUnavailable(Refused):
    """Whether the credentials are right cannot be found out now: their issuer is away."""

    status = 503
    code = INTERNAL_ERROR
    retry_after = 5


class MissingCredentials(Refused):
    """
    The request lacks a header, or its caller a claim, that the server's process needs.

    The server's `env_from` says which; the response names it.
    """

    code = SERVER_ERROR


class UnusableCredentials(Refused):
    """
    A header or claim that is to be an environment variable (`env_from`) cannot be one.

    It is there twice, too long, of a wrong type, or contains control characters.
    """

    code = SERVER_ERROR


class BadHost(Refused):
    """The request has no `Host`, several, or an invalid one (RFC 9112, section 3.2)."""

    code = SERVER_ERROR


class MalformedRequest(Refused):
    """A request is not valid HTTP/1.1, or a proxy might read it in another way (RFC 9112)."""

    code = SERVER_ERROR


class HeadTooLarge(Refused):
    """The head of a request has too many bytes or fields (RFC 6585, section 5)."""

    status = 431
    code = SERVER_ERROR


class NotSupported(Refused):
    """A request needs what this server does not have: a transfer coding, a tunnel."""

    status = 501
    code = SERVER_ERROR


class NotFound(Refused):
    """There is nothing at this path."""

    status = 404
    code = SERVER_ERROR


class UnknownSession(Refused):
    """The session is unknown or has ended, or the request names none."""

    status = 404
    code = SESSION_NOT_FOUND


class Ambiguous(Refused):
    """The short id of a session that an operator names is the beginning of several."""

    status = 409
    code = SERVER_ERROR


class MethodNotAllowed(Refused):
    """The method is not allowed at this path."""

    status = 405
    code = SERVER_ERROR

    def __init__(self, text: str, allowed: str) -> None:
        super().__init__(text)
        self.allowed = allowed

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [*super().headers(), (b"Allow", self.allowed.encode("ascii"))]


class MissingSessionId(Refused):
    """The request needs a session, and does not name one."""

    code = SERVER_ERROR


class UnsupportedVersion(Refused):
    """
    The bridge does not support the request's revision of MCP.

    `data` names those that it supports (2025-06-18, basic/transports,
    "Protocol Version Header").
    """

    code = UNSUPPORTED_VERSION

    def __init__(self, requested: str, supported: Sequence[str]) -> None:
        super().__init__(f"MCP-Protocol-Version {requested[:40]!r} is not supported")
        self.data = {"supported": list(supported), "requested": requested[:40]}


class HeaderMismatch(Refused):
    """
    A header of a request of 2026-07-28 is missing, or contradicts its body.

    See basic/transports/streamable-http, "Server Validation".
    """

    code = HEADER_MISMATCH


class InvalidParams(Refused):
    """The request lacks a parameter that its revision of MCP requires, or has a wrong one."""

    code = INVALID_PARAMS


class InvalidRequestState(InvalidParams):
    """
    `requestState` is not this bridge's for this request and client, or has expired.

    Start the request again, without it.
    """


class MethodNotFound(Refused):
    """The request's revision of MCP does not have this method, or its server does not."""

    status = 404
    code = METHOD_NOT_FOUND


class MissingCapability(Refused):
    """
    The server needs a capability that the client has not declared.

    `data` names it (2026-07-28, basic/index).
    """

    code = MISSING_CAPABILITY

    def __init__(self, text: str, required: Mapping[str, object]) -> None:
        super().__init__(text)
        self.data = {"requiredCapabilities": required}


class ServerDown(Refused):
    """
    The server could not be started.

    The bridge tries again by itself, at growing intervals.
    """

    status = 503
    code = INTERNAL_ERROR

    def __init__(self, text: str, retry_after: int) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class ServerBusy(Refused):
    """All processes that the limits allow are busy.  Send the request again."""

    status = 429
    code = INTERNAL_ERROR
    retry_after: int | None = 1

    @classmethod
    def because(cls, error: Refused) -> ServerBusy:
        """Return this error for a request of 2026-07-28, with the retry time of `error` if any."""
        busy = cls(str(error))
        if "retry_after" in vars(error):
            busy.retry_after = error.retry_after
        return busy


class NotAcceptable(Refused):
    """The client accepts none of the content types of the response."""

    status = 406
    code = SERVER_ERROR


class UnsupportedMediaType(Refused):
    """The body's content type is not JSON."""

    status = 415
    code = SERVER_ERROR


class MessageTooLarge(Refused):
    """The body is larger than `max_message_bytes`.  The session continues."""

    status = 413
    code = SERVER_ERROR


class TooComplex(Refused):
    """
    The message has too many parts: members, or messages of a batch.

    Nothing of it was passed on.  The session continues.
    """

    status = 413
    code = SERVER_ERROR


class TooManySessions(Refused):
    """All permits are taken.  The body is the one that clients of APISIX know."""

    status = 429
    retry_after = 5

    def body(self) -> bytes:
        return b'{"error_msg":"too many concurrent MCP sessions"}\n'


class TooManyOfAddress(TooManySessions):
    """The client's address has all sessions that it may have (`max_sessions_per_address`)."""

    def body(self) -> bytes:
        return msgspec.json.encode({"error_msg": str(self)}) + b"\n"


class TooManyStreams(Refused):
    """The caller has all open streams that it may have (`max_streams_per_identity`)."""

    status = 429
    code = SERVER_ERROR
    retry_after = 5


class RateExceeded(Refused):
    """The caller has sent more in a short time than its server accepts (`messages_per_second`)."""

    status = 429
    code = SERVER_ERROR

    def __init__(self, text: str, retry_after: int) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class TooManyMcpSessions(Refused):
    """All permits are taken.  On Streamable HTTP the response is a JSON-RPC error."""

    status = 429
    code = SERVER_ERROR
    retry_after = 5


class BackendFailed(Refused):
    """No session was opened: its backend could not be started."""

    status = 502
    code = INTERNAL_ERROR


class BackendEnded(Refused):
    """
    The process ended before it answered a request of 2026-07-28.

    Another one is started for the next request.
    """

    status = 502
    code = INTERNAL_ERROR


class BackendBusy(Refused):
    """
    The backend does not keep up, and as many messages wait as the settings allow.

    Nothing was stored.  Send the message again.
    """

    status = 503
    code = SERVER_ERROR
    retry_after = 1


class SessionBusy(Refused):
    """The session has as many open requests as it may have.  Send the request again."""

    status = 503
    code = SERVER_ERROR
    retry_after = 1


class RequestMemoryFull(Refused):
    """All requests together hold as many bytes as the bridge allows.  Send it again."""

    status = 503
    code = SERVER_ERROR
    retry_after = 1


class ShuttingDown(Refused):
    """The bridge is shutting down, and opens no more sessions."""

    status = 503
    code = SERVER_ERROR
    retry_after = 5


class InternalError(Refused):
    """A defect of the bridge or of an extension.  The log has the details."""

    status = 500
    code = INTERNAL_ERROR

    @classmethod
    def of_ours(cls) -> InternalError:
        """Return the error without details, which are not for the client."""
        return cls("internal error; the log of the bridge has more")
