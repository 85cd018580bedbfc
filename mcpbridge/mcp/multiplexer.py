"""
Several requests at once on one process of a server that speaks 2026-07-28,
and which of them each of its lines belongs to.

Knows ids, progress tokens and subscriptions; must not know who sent a request:
that is a tag here.  The ids and tokens of two clients may be equal.  So they
are replaced by the bridge's own numbers on the way to the server, and restored
byte for byte on the way back.  Nothing is delivered by guessing.  Each line is
O(1) beside its length; a result is not decoded, unless it may be a task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, Literal, NamedTuple, TypeVar

import msgspec

from mcpbridge.errors import SessionBusy
from mcpbridge.jsonrpc.envelope import cancelled_id, peek, peek_again, progress_token
from mcpbridge.jsonrpc.ids import own_number
from mcpbridge.jsonrpc.members import (
    Members,
    cancellation_line,
    changed,
    encode,
    members,
    members_of,
    meta_of,
    number_of,
    result_line,
    string_of,
    with_meta,
)
from mcpbridge.jsonrpc.recent_set import Recent
from mcpbridge.mcp.inflight import CANCELLED_KEPT, MAX_IN_FLIGHT
from mcpbridge.mcp.modern_request import (
    ACKNOWLEDGED,
    LISTEN,
    LOG_LEVELS,
    PROGRESS_TOKEN,
    SUBSCRIPTION_ID,
    TASK_METHODS,
    ModernRequest,
)
from mcpbridge.mcp.tasks import TASK_CHANGED, Tasks, declares_tasks

Tag = TypeVar("Tag", bound=Hashable)

#: The notification that belongs to a request without naming it.
LOGGED = "notifications/message"
#: Longer numbers are not looked for in a quick way.
_USUAL_DIGITS = 15
#: Why a line of the server reached nobody: it is no JSON-RPC message; it
#: belongs to a request or subscription that is not open (never made, answered,
#: cancelled); it names none; its request did not ask for logs of that level;
#: it is a request, which a server must not send.
Why = Literal["invalid", "unasked", "unassociated", "level", "request"]


class Delivery(NamedTuple, Generic[Tag]):
    """A line as its client must see it, the tag of the request, and whether it is the last."""

    tag: Tag
    line: bytes
    final: bool


class _OpenRequest(msgspec.Struct, Generic[Tag], frozen=True, eq=False):
    """A request in flight; its id and its progress token as the client has written them."""

    tag: Tag
    ident: msgspec.Raw
    token: msgspec.Raw | None
    level: int | None
    #: Its method where its answer may be a task, or be about one.
    task_method: str | None
    #: Whether it is the bridge's own.
    own: bool


class Multiplexer(Generic[Tag]):
    """
    The requests in flight on one process.

    Numbers are never used twice, not even those of cancelled requests: an
    answer that comes late finds no request, rather than another client's.

    A tag stands for one request and is in flight once at a time.  `dropped`
    counts the lines that reached nobody, by the reason; where that is the
    server's mistake, `report` is called with it and the line.  `tasks` gives
    tasks the ids that clients see, and follows their states.
    """

    def __init__(
        self,
        tasks: Tasks | None = None,
        report: Callable[[Why, bytes], None] = lambda why, line: None,
    ) -> None:
        self._report = report
        self._tasks = Tasks() if tasks is None else tasks
        self._last = 0
        #: How many of the requests in flight are not the bridge's own.
        self.of_clients = 0
        self._requests: dict[int, _OpenRequest[Tag]] = {}
        self._subscriptions: dict[int, _OpenRequest[Tag]] = {}
        self._numbers: dict[Tag, int] = {}
        # Cancelled requests, whose answers may be on their way.
        self._cancelled: Recent[int] = Recent(CANCELLED_KEPT)
        # Requests that want logs; and cancelled ones that did, for which the server may
        # still log.
        self._logging: dict[int, None] = {}
        self._cancelled_logging: Recent[int] = Recent(CANCELLED_KEPT)
        self.dropped: Counter[Why] = Counter()

    def __len__(self) -> int:
        """How many requests are in flight, apart from subscriptions."""
        return len(self._requests)

    def has_open(self) -> bool:
        """Tell whether any request or subscription is open."""
        return bool(self._requests or self._subscriptions)

    @property
    def subscriptions(self) -> int:
        """How many `subscriptions/listen` are open."""
        return len(self._subscriptions)

    @property
    def only_open(self) -> int | msgspec.UnsetType:
        """
        The number of the only request that an answer may be for; UNSET for none
        or several, with subscriptions and cancelled requests.
        """
        if len(self._requests) != 1 or self._subscriptions or self._cancelled:
            return msgspec.UNSET
        return next(iter(self._requests))

    @property
    def has_ambiguous_logs(self) -> bool:
        """Whether a cancelled request may still log, so that no other gets logs."""
        return bool(self._cancelled_logging)

    # From the clients.

    def send_to_backend(self, request: ModernRequest, tag: Tag, *, own: bool = False) -> bytes:
        """
        Return the line that sends a request.  Except for its id and its
        progress token, all members are as they stand.  `own`: it is the
        bridge's, and its answer reaches no client.

        Raise `SessionBusy`, with the request's `ident`, where `MAX_IN_FLIGHT`
        of its kind are open: subscriptions are counted apart, so that they
        leave room for others.
        """
        assert tag not in self._numbers, "a tag is in flight once at a time"
        of_its_kind = self._subscriptions if request.method == LISTEN else self._requests
        if len(of_its_kind) >= MAX_IN_FLIGHT:
            busy = SessionBusy(f"no more than {MAX_IN_FLIGHT} requests of a process may be open")
            busy.ident = request.id
            raise busy
        number = self._last = self._last + 1
        line: dict[str, object] = {**request.outer, "id": number}
        token = None
        if request.progress_token is not None:
            token = request.meta[PROGRESS_TOKEN].copy()
            meta = changed(request.meta, {PROGRESS_TOKEN: number})
            line["params"] = changed(request.params, {"_meta": meta})
        level = None
        if request.log_level is not None and request.method != LISTEN:
            level = LOG_LEVELS.index(request.log_level)
            self._logging[number] = None
        may_be_task = request.method in TASK_METHODS or declares_tasks(request)
        task_method = request.method if may_be_task else None
        ident = request.outer["id"].copy()
        of_its_kind[number] = _OpenRequest(tag, ident, token, level, task_method, own)
        self._numbers[tag] = number
        if not own and of_its_kind is self._requests:
            self.of_clients += 1
        return encode(line)

    def cancel(self, tag: Tag) -> bytes | None:
        """
        Forget a request; return the line that cancels it at the server
        (basic/patterns/cancellation), None where it is not in flight.
        """
        number = self._numbers.get(tag)
        if number is None:
            return None
        self._cancelled.add(number)
        if number in self._logging:
            self._cancelled_logging.add(number)
        self._forget(number)
        return cancellation_line(number)

    def undo(self, tag: Tag) -> None:
        """Undo `send_to_backend`, whose line did not reach the server."""
        number = self._numbers.get(tag)
        if number is not None:
            self._forget(number)

    def clear(self) -> list[Tag]:
        """Forget all, as the process has ended; return the tags that were in flight."""
        tags = list(self._numbers)
        for kept in (self._requests, self._subscriptions, self._numbers, self._logging):
            kept.clear()
        self.of_clients = 0
        self._cancelled_logging.clear()
        self._cancelled.clear()
        return tags

    def _forget(self, number: int) -> _OpenRequest[Tag] | None:
        """Remove a request from those in flight; return None where it was not."""
        open_request = self._requests.pop(number, None)
        if open_request is not None:
            self.of_clients -= not open_request.own
        else:
            open_request = self._subscriptions.pop(number, None)
            if open_request is None:
                return None
        if open_request.level is not None:
            self._logging.pop(number, None)
        del self._numbers[open_request.tag]
        return open_request

    # From the backend.

    def from_backend(self, line: bytes) -> Delivery[Tag] | None:
        """Take a line of the server; return None where it reaches nobody, which is counted."""
        outer = members(line)
        number = 0 if outer is None else _number_of_response(outer)
        if outer is not None and number:
            return self._answered(line, number, outer)
        envelope = peek(line) or peek_again(line)
        if envelope is None or outer is None:
            return self._reject("invalid", line)
        if envelope.is_request:
            # It gets no answer: a client must not write responses (basic/transports/stdio).
            return self._reject("request", line)
        if isinstance(envelope.method, str):
            return self._notified(line, envelope.method, outer)
        if not envelope.is_response:
            return self._reject("invalid", line)
        return self._answered(line, own_number(envelope.id), outer)

    def tag_of(self, line: bytes) -> Tag | None:
        """Return the tag of a line's request, before `from_backend` takes it; None for none."""
        envelope = peek(line) or peek_again(line)
        if envelope is None or envelope.is_request:
            return None
        if not isinstance(envelope.method, str):
            number = own_number(envelope.id)
        elif envelope.method == "notifications/progress":
            number = _number(progress_token(line))
        elif envelope.method == "notifications/cancelled":
            number = _number(cancelled_id(line))
        else:
            params = members_of(members_of(line).get("params"))
            named = meta_of(params).get(SUBSCRIPTION_ID)
            number = self._of(envelope.method) if named is None else _number(number_of(named))
        open_request = self._requests.get(number) or self._subscriptions.get(number)
        return None if open_request is None else open_request.tag

    def _answered(self, line: bytes, number: int, outer: Members) -> Delivery[Tag] | None:
        self._cancelled_logging.discard(number)
        listens = number in self._subscriptions
        open_request = self._forget(number)
        if open_request is None:
            late = self._cancelled.discard(number)
            return self._drop("unasked") if late else self._reject("unasked", line)
        outer["id"] = open_request.ident
        result = members(outer["result"]) if listens and "result" in outer else None
        if result is not None and SUBSCRIPTION_ID in meta_of(result):
            result = with_meta(result, {SUBSCRIPTION_ID: open_request.ident})
            outer["result"] = msgspec.Raw(encode(result))
        if open_request.task_method is not None and not listens and b'"taskId"' in line:
            task = members(outer["result"]) if "result" in outer else None
            if task is not None:
                method, own = open_request.task_method, open_request.own
                task = self._tasks.from_result(task, method, own=own)
                outer["result"] = msgspec.Raw(encode(task))
        return Delivery(open_request.tag, encode(outer), True)

    def _notified(self, line: bytes, method: str, outer: Members) -> Delivery[Tag] | None:
        if method == "notifications/progress":
            return self._progressed(_number(progress_token(line)), outer)
        if method == "notifications/cancelled":
            return self._ended(_number(cancelled_id(line)))
        params = members_of(outer.get("params"))
        subscription = meta_of(params).get(SUBSCRIPTION_ID)
        number = _number(number_of(subscription))
        open_request = self._subscriptions.get(number)
        if method == TASK_CHANGED:
            params = self._tasks.from_notification(params, delivered=open_request is not None)
        if subscription is None:
            return self._unassociated(line, method, params)
        # Logs are of a request and never on a subscription (server/utilities/logging).
        if open_request is None or method == LOGGED:
            return self._drop("unasked")
        if method == ACKNOWLEDGED:
            params = self._tasks.from_acknowledgement(params)
        new = with_meta(params, {SUBSCRIPTION_ID: open_request.ident})
        return Delivery(open_request.tag, encode(changed(outer, {"params": new})), False)

    def _progressed(self, number: int, outer: Members) -> Delivery[Tag] | None:
        open_request = self._requests.get(number) or self._subscriptions.get(number)
        params = None if open_request is None else members(outer["params"])
        if open_request is None or open_request.token is None or params is None:
            return self._drop("unasked")
        new = changed(params, {PROGRESS_TOKEN: open_request.token})
        return Delivery(open_request.tag, encode(changed(outer, {"params": new})), False)

    def _ended(self, number: int) -> Delivery[Tag] | None:
        """
        End a subscription that the server cancels (basic/patterns/cancellation):
        its client gets the response that says so (subscriptions, "Graceful
        Closure").
        """
        open_request = self._forget(number) if number in self._subscriptions else None
        if open_request is None:
            return self._drop("unasked")
        # It may answer it all the same.
        self._cancelled.add(number)
        result = {"resultType": "complete", "_meta": {SUBSCRIPTION_ID: open_request.ident}}
        return Delivery(open_request.tag, result_line(open_request.ident, result), True)

    def _unassociated(self, line: bytes, method: str, params: Members) -> Delivery[Tag] | None:
        """
        Deliver a notification that names no request, if it is a log.

        A log belongs to the request that wants logs, where no other one does,
        no cancelled one did, and no task runs which it may be of.
        """
        number = self._of(method)
        if not number:
            return self._drop("unassociated")
        open_request = self._requests[number]
        if not _is_logged(params, open_request.level or 0):
            return self._drop("level")
        return Delivery(open_request.tag, line, False)

    def _reject(self, why: Why, line: bytes) -> Delivery[Tag] | None:
        self._report(why, line)
        return self._drop(why)

    def _of(self, method: str) -> int:
        """Return the number of the request that an unnamed notification belongs to; 0 for none."""
        if (
            method != LOGGED
            or len(self._logging) != 1
            or self.has_ambiguous_logs
            or len(self._tasks)
        ):
            return 0
        return next(iter(self._logging))

    def _drop(self, why: Why) -> Delivery[Tag] | None:
        self.dropped[why] += 1
        return None


def _number_of_response(outer: Members) -> int:
    """Return the number of a response as nearly all servers write it; 0 for other messages."""
    digits = bytes(outer.get("id", b""))
    if (
        digits.isdigit()
        and not digits.startswith(b"0")
        and len(digits) <= _USUAL_DIGITS
        and "method" not in outer
        and ("result" in outer or "error" in outer)
        and bytes(outer.get("jsonrpc", b"")) == b'"2.0"'
    ):
        return int(digits)
    return 0


def _is_logged(params: Members, wanted: int) -> bool:
    level = string_of(params.get("level"))
    return level in LOG_LEVELS and LOG_LEVELS.index(level) >= wanted


def _number(value: object) -> int:
    """Return which of the bridge's numbers a progress token or subscription id is; 0 for none."""
    return 0 if isinstance(value, str) else own_number(value)
