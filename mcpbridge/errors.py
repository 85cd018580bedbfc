"""
Everything that can go wrong in a way a user should understand.

One tree: a class knows its HTTP status and its JSON-RPC code, and its
docstring says what happened in the words a user reads in `docs/`.  Nothing
here knows how an answer is written to a connection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec

#: JSON-RPC 2.0, section 5.1.
PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
#: What the MCP SDKs' own servers use for an unknown session.
SESSION_NOT_FOUND = -32001
#: 2026-07-28, basic/index, "Error Codes".
HEADER_MISMATCH = -32020
MISSING_CAPABILITY = -32021
UNSUPPORTED_VERSION = -32022
#: How much of an id an error shows, as it stands in JSON.
MAX_SHOWN_ID = 80
#: A refusal for which JSON-RPC has no code of its own.
SERVER_ERROR = -32000


class BridgeError(Exception):
    """The root of all errors of mcpbridge; its text is fit for a user."""


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


class SettingErrors(SettingError):
    """Several settings are wrong: one line for each of them."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("config", "a file without errors", Described("errors"))
        self.args = ("\n".join(lines),)
        self.lines = tuple(lines)


def _shown(value: object) -> str:
    """The value as JSON where it has such a form, cut to a readable length."""
    try:
        text = msgspec.json.encode(value).decode("utf-8", "replace")
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    if isinstance(value, float) and text == "null":
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class CannotListen(BridgeError):
    """An endpoint could not be opened: the address is taken or not ours."""


class CannotStart(BridgeError):
    """
    The backend's command could not be started: it was not found in the
    backend's own PATH and directory, or the system refused a new process.
    """

    #: Whether descriptors, processes or memory have run out, which concerns all sessions.
    exhausted: ClassVar[bool] = False


class OutOfResources(CannotStart):
    """The system has no descriptor, no process or no memory for one more backend."""

    exhausted = True


class EventsGone(BridgeError):
    """What was to be replayed is not in the event store, or not all of it."""


class Refused(BridgeError):
    """
    A request got an answer that is not a success.

    The body is a JSON-RPC error in UTF-8 and on one line, without an id
    where it is not known which request it answers.
    """

    status: ClassVar[int] = 400
    code: int = INVALID_REQUEST
    #: Seconds after which another try may succeed, for `Retry-After`.
    retry_after: int | None = None
    #: The id of the request, where one message of 2026-07-28 is refused.
    ident: str | int | float | None = None
    #: More about it, for programs.
    data: Mapping[str, object] | None = None

    def body(self) -> bytes:
        """The body of the answer."""
        error: dict[str, object] = {"code": self.code, "message": str(self)}
        if self.data is not None:
            error["data"] = self.data
        return msgspec.json.encode({"jsonrpc": "2.0", "id": self.ident, "error": error})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of the answer, beside its length."""
        headers = [(b"Content-Type", b"application/json")]
        if self.retry_after is not None:
            headers.append((b"Retry-After", b"%d" % self.retry_after))
        return headers


def without_frames(refusal: Refused) -> Refused:
    """
    The same, without what was at work when it was raised, and all that this
    had in hand: frames and errors refer to each other, and would be kept
    until the garbage collector comes.
    """
    refusal.__context__ = refusal.__cause__ = None
    return refusal.with_traceback(None)


class EmptyBody(Refused):
    """A message was posted without a body."""


class NotJson(Refused):
    """The body is not JSON, not UTF-8, or nested beyond all reason."""

    code = PARSE_ERROR


class NotJsonRpc(Refused):
    """The body is JSON, but neither a JSON-RPC 2.0 message nor an array."""


class IdInUse(Refused):
    """
    A request has the id of another one that the session still waits for.
    The answer names it in `data`, and has no id: that would end the first one.
    """

    @classmethod
    def of(cls, ident: bytes) -> IdInUse:
        """What is said about an id, as it stands in JSON."""
        shown = ident.decode("utf-8", "replace")
        if len(shown) > MAX_SHOWN_ID:
            shown = f"{shown[:MAX_SHOWN_ID]}..."
            ident = msgspec.json.encode(shown)
        error = cls(f"the id {shown} is that of a request that is still open; use another")
        error.data = {"requestId": msgspec.Raw(ident)}
        return error


class EventsLost(Refused):
    """
    `Last-Event-ID` names no event of the session, or one after which some
    are no longer kept.  A stream without that header begins anew.
    """

    code = SERVER_ERROR


class StreamTaken(Refused):
    """
    The session's GET stream is open, and was taken over too often of late for
    one more connection to take it.
    """

    status = 429
    code = SERVER_ERROR

    def __init__(self, text: str, retry_after: int) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class MessageRefused(Refused):
    """
    A message filter refused the message; a filter raises this with the text
    that the sender is to read.  In a session it is an ordinary JSON-RPC error.
    """

    code = SERVER_ERROR


class Forbidden(Refused):
    """The request's `Origin` or `Host` is not one that may speak to this server."""

    status = 403
    code = SERVER_ERROR


class BadHost(Refused):
    """The request has no `Host`, or several, or one that is not valid (RFC 9112, section 3.2)."""

    code = SERVER_ERROR


class NothingHere(Refused):
    """The bridge serves nothing at this path."""

    status = 404
    code = SERVER_ERROR


class UnknownSession(Refused):
    """The session is unknown, was never named, or has ended."""

    status = 404
    code = SESSION_NOT_FOUND


class WrongMethod(Refused):
    """The path exists, the method is not one it takes."""

    status = 405
    code = SERVER_ERROR

    def __init__(self, text: str, allowed: str) -> None:
        super().__init__(text)
        self.allowed = allowed

    def headers(self) -> list[tuple[bytes, bytes]]:
        return [*super().headers(), (b"Allow", self.allowed.encode("ascii"))]


class MissingSession(Refused):
    """A request that belongs to a session names none."""

    code = SERVER_ERROR


class UnsupportedVersion(Refused):
    """
    The request speaks a revision of MCP that the bridge does not (2025-06-18,
    basic/transports, "Protocol Version Header"); `data` names those it does.
    """

    code = UNSUPPORTED_VERSION

    def __init__(self, requested: str, supported: Sequence[str]) -> None:
        super().__init__(f"MCP-Protocol-Version {requested[:40]!r} is not supported")
        self.data = {"supported": list(supported), "requested": requested[:40]}


class HeaderMismatch(Refused):
    """
    A header of a request of 2026-07-28 is missing, or says something else
    than its body (basic/transports/streamable-http, "Server Validation").
    """

    code = HEADER_MISMATCH


class InvalidParams(Refused):
    """A request's parameters lack what its revision of MCP asks for, or it is of another kind."""

    code = INVALID_PARAMS


class InvalidRequestState(InvalidParams):
    """
    `requestState` was not made by this bridge for this request and this
    caller, or its time is over: begin anew, without it.
    """


class MethodNotFound(Refused):
    """The request's revision of MCP, or its server, has no such method."""

    status = 404
    code = METHOD_NOT_FOUND


class MissingCapability(Refused):
    """
    The server needs something of the client that it has not declared
    (2026-07-28, basic/index); `data` names it.
    """

    code = MISSING_CAPABILITY

    def __init__(self, text: str, required: Mapping[str, object]) -> None:
        super().__init__(text)
        self.data = {"requiredCapabilities": required}


class ServerDown(Refused):
    """
    The server could not be started several times in a row; the bridge tries
    again by itself, at growing intervals.
    """

    status = 503
    code = INTERNAL_ERROR

    def __init__(self, text: str, retry_after: int) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class ServerBusy(Refused):
    """All processes that the limits allow are at work; send the request again."""

    status = 429
    code = INTERNAL_ERROR
    retry_after: int | None = 1

    @classmethod
    def because(cls, error: Refused) -> ServerBusy:
        """The same for a request of 2026-07-28, with the time of another try where it is known."""
        busy = cls(str(error))
        if "retry_after" in vars(error):
            busy.retry_after = error.retry_after
        return busy


class NotAcceptable(Refused):
    """The client does not accept what the endpoint may answer with."""

    status = 406
    code = SERVER_ERROR


class UnsupportedMedia(Refused):
    """The body is of another kind than JSON."""

    status = 415
    code = SERVER_ERROR


class MessageTooLarge(Refused):
    """The body is larger than `max_message_bytes`; the session lives on."""

    status = 413
    code = SERVER_ERROR


class TooComplex(Refused):
    """
    The message has more parts than the bridge reads of one: members, or
    messages in a batch.  Nothing of it was sent on; the session lives on.
    """

    status = 413
    code = SERVER_ERROR


class TooManySessions(Refused):
    """All permits are taken; the body is the one APISIX's clients know."""

    status = 429
    retry_after = 5

    def body(self) -> bytes:
        return b'{"error_msg":"too many concurrent MCP sessions"}\n'


class TooManyOfAddress(TooManySessions):
    """The client's address has its share (`max_sessions_per_address`); others may have more."""

    def body(self) -> bytes:
        return msgspec.json.encode({"error_msg": str(self)}) + b"\n"


class TooManyMcpSessions(Refused):
    """All permits are taken; the answer of Streamable HTTP is a JSON-RPC error."""

    status = 429
    code = SERVER_ERROR
    retry_after = 5


class BackendFailed(Refused):
    """No session was opened, because its backend could not be started."""

    status = 502
    code = INTERNAL_ERROR


class BackendEnded(Refused):
    """
    The process that worked on a request of 2026-07-28 has ended before it
    answered; another is started for the next one.
    """

    status = 502
    code = INTERNAL_ERROR


class BackendBusy(Refused):
    """
    The backend does not read its messages as fast as they come, and as many
    as the settings allow already wait.  Nothing was stored: send it again.
    """

    status = 503
    code = SERVER_ERROR
    retry_after = 1


class SessionBusy(Refused):
    """The session waits for as many answers as it may; send the request again."""

    status = 503
    code = SERVER_ERROR
    retry_after = 1


class NoRoom(Refused):
    """All requests together hold as many bytes as the bridge allows."""

    status = 503
    code = SERVER_ERROR
    retry_after = 1


class Stopping(Refused):
    """The bridge is shutting down and opens no more sessions."""

    status = 503
    code = SERVER_ERROR
    retry_after = 5


class InternalError(Refused):
    """A defect of the bridge or of an extension; the log has the details."""

    status = 500
    code = INTERNAL_ERROR

    @classmethod
    def of_ours(cls) -> InternalError:
        """The one there is: what went wrong is not for the client to know."""
        return cls("internal error; the log of the bridge has more")
