"""
What the bridge remembers of requests that it refuses: records for the audit log, and
attempts to authenticate that have failed.

Knows requests and who sent them; must not know why one is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from mcpbridge.audit_log import AuditLog, Transport
from mcpbridge.auth.failed_attempts import FailedAttempts, TooManyDelayed
from mcpbridge.errors import Refused, Unauthorized
from mcpbridge.processes.audited_calls import record_refusal
from mcpbridge.web.client_addresses import access_of

T = TypeVar("T")
#: Returns the address of a request's client, or None.
AddressOf = Callable[[Any], str | None]


class Refusals:
    """
    Counts each request of twisted.web that is refused, and makes its record.

    `server` is the name of the server it is for; an empty string where that is not known.
    `counter` counts the errors by their names.
    """

    def __init__(
        self,
        audit: AuditLog | None,
        server: str,
        address_of: AddressOf,
        counter: Counter[str] | None = None,
    ) -> None:
        self._counter = Counter() if counter is None else counter
        self._audit = audit
        self._server = server
        self._address_of = address_of

    def note(self, request: Any, error: Exception) -> None:
        """Note the error that answers a request."""
        if not isinstance(error, Refused):
            return
        self._counter[type(error).__name__] += 1
        if self._audit is not None:
            record_refusal(
                self._audit,
                error,
                server=self._server,
                identity=access_of(request).name,
                address=self._address_of(request),
                transport=transport_of(request.path),
            )


def transport_of(path: bytes) -> Transport:
    """Return the transport that a path of a server is for; an empty string where it is none."""
    name = path.rstrip(b"/").rpartition(b"/")[2]
    if name in (b"sse", b"message"):
        return "sse"
    return "streamable-http" if name == b"mcp" else ""


class Delays:
    """
    Delays the answers to failed attempts to authenticate, by the share of their address.

    A request without credentials is no attempt: that is how clients ask which they need.
    """

    def __init__(self, attempts: FailedAttempts, clock: IReactorTime, share_of: AddressOf) -> None:
        self._attempts = attempts
        self._clock = clock
        self._share_of = share_of

    def share_of(self, request: Any) -> str | None:
        """Return the address whose share counts for a request; None if none does."""
        return self._share_of(request)

    def admitted(self, request: Any, admit: Callable[[], T | Deferred[T]]) -> T | Deferred[T]:
        """
        Return what `admit` returns, and delay its refusal.

        Raises, or fails with, what `admit` does.
        """
        try:
            found = admit()
        except Unauthorized as error:
            return self._refused(request, error)
        if isinstance(found, Deferred):
            # Whatever is waited for then is cancelled with what is waited for now.
            found.addErrback(self._failed, request)
        return found

    def _failed(self, failure: Failure, request: Any) -> Failure | Deferred[Any]:
        if isinstance(failure.value, Unauthorized):
            return self._refused(request, failure.value)
        return failure

    def _refused(self, request: Any, error: Unauthorized) -> Deferred[Any]:
        """Return a Deferred that fails with the error; raise it where nothing is to be delayed."""
        seconds = 0.0
        if error.is_attempt and request.channel is not None:
            try:
                seconds = self._attempts.failed(self._share_of(request))
            except TooManyDelayed as excess:
                error.retry_after = excess.retry_after
                raise error from None
        if not seconds:
            raise error
        delayed: Deferred[Any] = Deferred(lambda _: call.cancel())
        call = self._clock.callLater(seconds, delayed.errback, error)
        return delayed
