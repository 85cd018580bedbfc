"""
Several requests at once on one process that speaks 2026-07-28, and which of
them each line of it belongs to.

Knows ids, progress tokens and subscriptions; must not know who asks: that is
a tag here.  Ids and tokens are numbers of the bridge's own on the way to the
backend, as those of two clients may be equal, and the client's on the way
back, byte for byte.  Nothing is ever delivered to a guess.  Each line is O(1)
beside its length; a result is not decoded, unless it may be a task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, Literal, NamedTuple, TypeVar

import msgspec

from mcpbridge.errors import SessionBusy
from mcpbridge.jsonrpc.envelope import Envelope, cancelled_id, peek, peek_again, progress_token
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
from mcpbridge.jsonrpc.recent import Recent
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

#: What is of a request, which it does not name.
LOGGED = "notifications/message"
#: Why a line of the backend reached nobody: it is no JSON-RPC message; it is
#: of a request or a subscription that is not open (never made, answered,
#: cancelled); it is of none, or nothing says of which; its request did not
#: ask for logs of that level; it is a request, which a backend must not make.
Why = Literal["invalid", "unasked", "unassociated", "level", "request"]


class Delivery(NamedTuple, Generic[Tag]):
    """Whose a line is, the line as its client must see it, and whether it is the last."""

    tag: Tag
    line: bytes
    final: bool


class _Asked(NamedTuple, Generic[Tag]):
    """A request in flight: its id and its token as the client has written them."""

    tag: Tag
    ident: msgspec.Raw
    token: msgspec.Raw | None
    level: int | None
    #: Its method where its answer may be a task, or says something of one.
    tasks: str | None
    #: The bridge itself has asked.
    own: bool


class Multiplexer(Generic[Tag]):
    """
    The requests in flight on one process.

    A tag stands for one request and is in flight once at a time.  `dropped`
    counts what reached nobody, by its reason; where that is the backend's
    mistake, `report` is called with it and the message.  `tasks` gives tasks
    the names that clients see, and heeds what is said of them.
    """

    def __init__(
        self,
        tasks: Tasks | None = None,
        report: Callable[[Why, bytes], None] = lambda why, line: None,
    ) -> None:
        self._report = report
        self._tasks = Tasks() if tasks is None else tasks
        self._last = 0
        self._requests: dict[int, _Asked[Tag]] = {}
        self._listens: dict[int, _Asked[Tag]] = {}
        self._numbers: dict[Tag, int] = {}
        # Those that were cancelled, whose answers may be on their way.
        self._cancelled: Recent[int] = Recent(CANCELLED_KEPT)
        # Those that want logs; and those that did and were cancelled, of which
        # the backend may still log.
        self._logging: dict[int, None] = {}
        self._muddling: Recent[int] = Recent(CANCELLED_KEPT)
        self.dropped: Counter[Why] = Counter()

    def __len__(self) -> int:
        """How many requests are in flight, without those that listen."""
        return len(self._requests)

    @property
    def listens(self) -> int:
        """How many `subscriptions/listen` are open."""
        return len(self._listens)

    @property
    def only_open(self) -> int | msgspec.UnsetType:
        """
        The number of the only request in flight that an answer may be for;
        UNSET for none or several, who listens and who has cancelled counted.
        """
        if len(self._requests) != 1 or self._listens or self._cancelled:
            return msgspec.UNSET
        return next(iter(self._requests))

    @property
    def muddled(self) -> bool:
        """Whether a cancelled request may still log: nobody else gets logs of this process."""
        return bool(self._muddling)

    # From the clients.

    def ask(self, request: ModernRequest, tag: Tag, *, own: bool = False) -> bytes:
        """
        Take a request in; returns the line for the backend.  But for its id
        and its progress token, all members are as they stand.  `own`: it is
        the bridge's, and no client hears its answer.

        Raises `SessionBusy`, with the request's `ident`, where as many of its
        kind are in flight as may be: those that listen are counted apart, so
        that they leave room for others.
        """
        assert tag not in self._numbers, "a tag is in flight once at a time"
        of_its_kind = self._listens if request.method == LISTEN else self._requests
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
        of_tasks = request.method in TASK_METHODS or declares_tasks(request)
        method = request.method if of_tasks else None
        ident = request.outer["id"].copy()
        of_its_kind[number] = _Asked(tag, ident, token, level, method, own)
        self._numbers[tag] = number
        return encode(line)

    def cancel(self, tag: Tag) -> bytes | None:
        """
        Forget a request; returns the line that tells the backend
        (basic/patterns/cancellation), None where it is not in flight.
        """
        number = self._numbers.get(tag)
        if number is None:
            return None
        self._cancelled.add(number)
        if number in self._logging:
            self._muddling.add(number)
        self._forget(number)
        return cancellation_line(number)

    def undo(self, tag: Tag) -> None:
        """Undo `ask`: the backend did not take the line, and will say nothing of it."""
        number = self._numbers.get(tag)
        if number is not None:
            self._forget(number)

    def clear(self) -> list[Tag]:
        """Forget all, as the process has ended; returns whose requests were in flight."""
        tags = list(self._numbers)
        for kept in (self._requests, self._listens, self._numbers, self._logging):
            kept.clear()
        self._muddling.clear()
        self._cancelled.clear()
        return tags

    def _forget(self, number: int) -> _Asked[Tag] | None:
        """A request is in flight no more; None where it was not."""
        asked = self._requests.pop(number, None) or self._listens.pop(number, None)
        if asked is not None:
            self._logging.pop(number, None)
            del self._numbers[asked.tag]
        return asked

    # From the backend.

    def from_backend(self, line: bytes) -> Delivery[Tag] | None:
        """Whose a line is; None where it reaches nobody, which is counted."""
        envelope = peek(line) or peek_again(line)
        outer = None if envelope is None else members(line)
        if envelope is None or outer is None:
            return self._reject("invalid", line)
        if envelope.is_request:
            # No answer either: a client must not write responses
            # (basic/transports/stdio).
            return self._reject("request", line)
        if isinstance(envelope.method, str):
            return self._notified(line, envelope.method, outer)
        if not envelope.is_response:
            return self._reject("invalid", line)
        return self._answered(line, envelope, outer)

    def whose(self, line: bytes) -> Tag | None:
        """Whose a line is, before `from_backend` takes it; None where it is nobody's."""
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
        asked = self._requests.get(number) or self._listens.get(number)
        return None if asked is None else asked.tag

    def _answered(self, line: bytes, envelope: Envelope, outer: Members) -> Delivery[Tag] | None:
        number = own_number(envelope.id)
        self._muddling.discard(number)
        listens = number in self._listens
        asked = self._forget(number)
        if asked is None:
            late = self._cancelled.discard(number)
            return self._drop("unasked") if late else self._reject("unasked", line)
        changes: dict[str, object] = {"id": asked.ident}
        result = members(outer["result"]) if listens and "result" in outer else None
        if result is not None and SUBSCRIPTION_ID in meta_of(result):
            changes["result"] = with_meta(result, {SUBSCRIPTION_ID: asked.ident})
        if asked.tasks is not None and not listens and b'"taskId"' in line:
            task = members(outer["result"]) if "result" in outer else None
            if task is not None:
                changes["result"] = self._tasks.from_result(task, asked.tasks, own=asked.own)
        return Delivery(asked.tag, encode(changed(outer, changes)), True)

    def _notified(self, line: bytes, method: str, outer: Members) -> Delivery[Tag] | None:
        if method == "notifications/progress":
            return self._progressed(_number(progress_token(line)), outer)
        if method == "notifications/cancelled":
            return self._ended(_number(cancelled_id(line)))
        params = members_of(outer.get("params"))
        subscription = meta_of(params).get(SUBSCRIPTION_ID)
        number = _number(number_of(subscription))
        asked = self._listens.get(number)
        if method == TASK_CHANGED:
            params = self._tasks.from_notification(params, heard=asked is not None)
        if subscription is None:
            return self._unassociated(line, method, params)
        # Logs are of a request and never on a subscription (server/utilities/logging).
        if asked is None or method == LOGGED:
            return self._drop("unasked")
        if method == ACKNOWLEDGED:
            params = self._tasks.from_acknowledgement(params)
        new = with_meta(params, {SUBSCRIPTION_ID: asked.ident})
        return Delivery(asked.tag, encode(changed(outer, {"params": new})), False)

    def _progressed(self, number: int, outer: Members) -> Delivery[Tag] | None:
        asked = self._requests.get(number) or self._listens.get(number)
        params = None if asked is None else members(outer["params"])
        if asked is None or asked.token is None or params is None:
            return self._drop("unasked")
        new = changed(params, {PROGRESS_TOKEN: asked.token})
        return Delivery(asked.tag, encode(changed(outer, {"params": new})), False)

    def _ended(self, number: int) -> Delivery[Tag] | None:
        """
        The backend ends a subscription (basic/patterns/cancellation): the
        client gets the answer that says so (subscriptions, "Graceful Closure").
        """
        asked = self._forget(number) if number in self._listens else None
        if asked is None:
            return self._drop("unasked")
        # It may answer it all the same.
        self._cancelled.add(number)
        result = {"resultType": "complete", "_meta": {SUBSCRIPTION_ID: asked.ident}}
        return Delivery(asked.tag, result_line(asked.ident, result), True)

    def _unassociated(self, line: bytes, method: str, params: Members) -> Delivery[Tag] | None:
        """
        What does not say of which request it is.  Only a log can be told: it
        is of the one that wants logs, where no other does or, cancelled, did,
        and no task runs, whose log it may be.
        """
        number = self._of(method)
        if not number:
            return self._drop("unassociated")
        asked = self._requests[number]
        if not _is_logged(params, asked.level or 0):
            return self._drop("level")
        return Delivery(asked.tag, line, False)

    def _reject(self, why: Why, line: bytes) -> Delivery[Tag] | None:
        self._report(why, line)
        return self._drop(why)

    def _of(self, method: str) -> int:
        """The number of the request that a notification of no named one is of; 0 for none."""
        if method != LOGGED or len(self._logging) != 1 or self.muddled or len(self._tasks):
            return 0
        return next(iter(self._logging))

    def _drop(self, why: Why) -> Delivery[Tag] | None:
        self.dropped[why] += 1
        return None


def _is_logged(params: Members, wanted: int) -> bool:
    level = string_of(params.get("level"))
    return level in LOG_LEVELS and LOG_LEVELS.index(level) >= wanted


def _number(said: object) -> int:
    """A token, or the name of a subscription: one of the bridge's numbers, and never text."""
    return 0 if isinstance(said, str) else own_number(said)
