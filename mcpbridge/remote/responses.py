"""
What the body of a remote server's response means: messages, errors, or neither.

Knows JSON-RPC and statuses of HTTP; must not know connections.
"""

from __future__ import annotations

import msgspec

from mcpbridge.errors import (
    HEADER_MISMATCH,
    INTERNAL_ERROR,
    METHOD_NOT_FOUND,
    MISSING_CAPABILITY,
    UNSUPPORTED_VERSION,
)
from mcpbridge.jsonrpc.envelope import Envelope, JsonRpcId, peek, peek_again, split_batch
from mcpbridge.jsonrpc.ids import is_answer_to, with_id
from mcpbridge.jsonrpc.members import error_code_of, error_line, members, string_of
from mcpbridge.jsonrpc.oversized import peek_at_server
from mcpbridge.jsonrpc.parsed_message import valid_line
from mcpbridge.remote.problems import shown, shown_redirect, status_text

#: The request that only a server of 2026-07-28 knows.
PROBE = "server/discover"
#: Statuses of a server, or of a gateway before it, that is not well just now: another
#: time the same request may be answered.
TRANSIENT = frozenset({408, 425, 429, 502, 503, 504})
_BOM = b"\xef\xbb\xbf"
#: Errors that only a server of Streamable HTTP sends: HTTP+SSE need not be tried.
_OF_STREAMABLE_HTTP = frozenset(
    {HEADER_MISMATCH, METHOD_NOT_FOUND, MISSING_CAPABILITY, UNSUPPORTED_VERSION}
)


def message_line(body: bytes) -> bytes | None:
    """Return a body as one line; None for what is no JSON, or not on one line in UTF-8."""
    line = valid_line(body.removeprefix(_BOM))
    return line.strip() if line and not line.isspace() else None


def envelopes_of(line: bytes) -> list[Envelope] | None:
    """Return the envelopes of a message, or of a batch; None for what is neither."""
    envelope = peek_at_server(line) or peek_again(line)
    if envelope is not None:
        return [envelope] if _is_message(envelope) else None
    found = [peek(each) or peek_again(each) for each in split_batch(line) or []]
    envelopes = [each for each in found if each is not None and _is_message(each)]
    return envelopes if found and len(envelopes) == len(found) else None


def _is_message(envelope: Envelope) -> bool:
    return isinstance(envelope.method, str) or envelope.is_response


def answered(envelope: Envelope, owed: list[JsonRpcId]) -> JsonRpcId | msgspec.UnsetType:
    """Return which of these ids a response answers; UNSET if none."""
    return next((each for each in owed if is_answer_to(envelope.id, each)), msgspec.UNSET)


class ErrorBody:
    """The body of a response that is an error; it may be one of JSON-RPC."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self._line = message_line(body)
        outer = None if self._line is None else members(self._line)
        error = None if outer is None or "error" not in outer else members(outer["error"])
        self._is_error = error is not None and "message" in error
        #: The code of the JSON-RPC error; None for any other body.
        self.code = error_code_of(error) if error is not None and self._is_error else None
        #: Its message; empty for any other body.
        self.text = shown(string_of((error or {}).get("message")) or "")

    @property
    def is_of_streamable_http(self) -> bool:
        """Whether it shows that the server speaks Streamable HTTP."""
        return self.code in _OF_STREAMABLE_HTTP

    def answer(self, ident: JsonRpcId) -> bytes | None:
        """Return the error as the answer to a request; None if it is none of JSON-RPC."""
        if self._line is None or self.code is None:
            return None
        return with_id(self._line, ident)

    @property
    def means_no_session(self) -> bool:
        """
        Whether the session that a request has named is over.

        The status for that is 404.  But many servers, whose sessions a restart has ended,
        send 400 with a text about the session.
        """
        return self.status == 404 or (self.status == 400 and "session" in self.text.lower())


def fatal_error(
    error: ErrorBody, location: str, url: str, *, in_session: bool, opening: bool = False
) -> tuple[str, str] | None:
    """
    Return why no other request of a session could succeed either, if that is so: as a
    sentence without its subject, the server, and in short.

    `location` is where a redirect leads from `url`.  A request that is forbidden may be
    the only one, such as by a gateway that dislikes its content, except when the session
    is being opened.
    """
    status = error.status
    if 300 <= status < 400:
        where = shown_redirect(url, location)
        what = f"answered with a redirect to {where}, which is not followed; change `url`"
    elif status == 401 or (status == 403 and opening):
        what = f"refused the credentials ({status_text(status)}); check `headers`"
    elif status == 407:
        what = "cannot be reached: the proxy wants other credentials"
    elif in_session and error.means_no_session:
        what = f"has ended the session ({status_text(status)}); it may have restarted"
        return what, "session ended"
    else:
        return None
    return what, status_text(status)


def failed(ident: JsonRpcId, text: str) -> bytes:
    """Return the answer to a request that the server has not answered."""
    return error_line(ident, INTERNAL_ERROR, text)
