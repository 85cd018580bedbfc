"""
Decides when a message to a remote server may be posted, and how many may wait.

On stdio a server reads messages in order.  Over HTTP each has a connection of its own,
and a later one may arrive earlier.  So a notification or an answer is posted alone, and
what follows waits until the server has accepted it.  Requests run at the same time, up
to a bound; `initialize` runs alone, as the rest needs the session that it opens.

Knows messages and their order; must not know HTTP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from mcpbridge.errors import BackendBusy, UnknownSession
from mcpbridge.jsonrpc.envelope import JsonRpcId
from mcpbridge.jsonrpc.ids import is_answer_to
from mcpbridge.mcp.inflight import MAX_IN_FLIGHT
from mcpbridge.mcp.modern_request import LISTEN
from mcpbridge.mcp.posted_message import PostedMessage

#: How many requests of one session are posted at a time, each on a connection of its own,
#: unless `concurrency` lets more meet there.
REQUESTS_AT_ONCE = 64
#: The same of subscriptions.  One that waited would wait for ever, as they stay open for as
#: long as the session does; so it is as many as may be sent to a backend at all.
SUBSCRIPTIONS_AT_ONCE = MAX_IN_FLIGHT


class Outbox:
    """
    The messages of one session that wait to be posted.

    `post` is called with one that may go now.  Whoever posts says with `accepted` that the
    server has taken a notification or an answer, and with `answered` that a request is over.
    """

    def __init__(
        self,
        post: Callable[[PostedMessage], None],
        max_messages: int,
        max_bytes: int,
        concurrency: int = 0,
    ) -> None:
        self._post = post
        self._at_once = max(REQUESTS_AT_ONCE, concurrency)
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._requests: deque[tuple[int, PostedMessage]] = deque()
        #: Subscriptions, which need not be in order with anything.
        self._listens: deque[tuple[int, PostedMessage]] = deque()
        self._others: deque[tuple[int, PostedMessage]] = deque()
        self._count = 0
        self._size = 0
        self._running = 0
        self._subscriptions = 0
        #: The number of the notification or answer that is being posted; 0 for none.
        self._posting = 0
        #: Whether `initialize` runs.
        self._opening = False
        self._pumping = False
        self._closed = False

    @property
    def waiting(self) -> tuple[int, int]:
        """The number of messages that wait here, and of their bytes."""
        return len(self._requests) + len(self._listens) + len(self._others), self._size

    def check(self, messages: int) -> None:
        """Raise `BackendBusy` if so many more may not wait, and `UnknownSession` at the end."""
        if self._closed:
            raise UnknownSession("the session has ended: its server takes no more messages")
        count, size = self.waiting
        if count and (count + messages > self._max_messages or size >= self._max_bytes):
            raise BackendBusy(
                f"the remote server does not keep up: {count} messages ({size} bytes) already wait"
            )

    def put(self, message: PostedMessage) -> None:
        """Have a message posted as soon as its turn comes."""
        self._count += 1
        queue = self._requests if message.is_request else self._others
        if message.method == LISTEN and message.is_request:
            queue = self._listens
        queue.append((self._count, message))
        self._size += len(message.line)
        self._pump()

    def withdraw(self, ident: JsonRpcId) -> bool:
        """Drop a request that waits here; return False if there is none."""
        for queue in (self._requests, self._listens):
            for each in queue:
                message = each[1]
                if len(message.idents) == 1 and is_answer_to(message.idents[0], ident):
                    queue.remove(each)
                    self._size -= len(message.line)
                    return True
        return False

    def accepted(self) -> None:
        """Post what follows a notification or an answer, which the server has taken."""
        self._posting = 0
        self._pump()

    def answered(self, message: PostedMessage) -> None:
        """Post what waits for a connection: this request has no more need of its own."""
        if message.method == LISTEN:
            self._subscriptions -= 1
        else:
            self._running -= 1
        if message.method == "initialize":
            self._opening = False
        self._pump()

    def take_all(self) -> list[PostedMessage]:
        """Return all that waits, in order, and close."""
        waiting = sorted([*self._requests, *self._listens, *self._others], key=lambda each: each[0])
        self.close()
        return [message for _, message in waiting]

    def close(self) -> None:
        """Drop everything: nothing is posted any more."""
        self._closed = True
        for queue in (self._requests, self._listens, self._others):
            queue.clear()
        self._size = 0

    def _pump(self) -> None:
        # What is posted may be over at once, and lead here again.
        if self._pumping:
            return
        self._pumping = True
        try:
            while (message := self._next()) is not None:
                self._size -= len(message.line)
                self._post(message)
        finally:
            self._pumping = False

    def _next(self) -> PostedMessage | None:
        """Take the message whose turn it is; None if all have to wait."""
        if self._opening or self._closed:
            return None
        if self._listens and self._subscriptions < SUBSCRIPTIONS_AT_ONCE:
            self._subscriptions += 1
            return self._listens.popleft()[1]
        request = self._requests[0] if self._requests else None
        other = self._others[0] if self._others else None
        may_run = request is not None and self._has_room(request[1])
        # A client's answer passes a request that waits for room: what runs may need it.
        passes = not may_run and request is not None and request[1].method != "initialize"
        if other is not None and (request is None or other[0] < request[0] or passes):
            if self._posting:
                return None
            self._posting, message = self._others.popleft()
            return message
        if request is None or not may_run or 0 < self._posting < request[0]:
            return None
        self._requests.popleft()
        message = request[1]
        self._running += 1
        self._opening = message.method == "initialize"
        return message

    def _has_room(self, message: PostedMessage) -> bool:
        if message.method == "initialize":
            # What was posted before it belongs to no session.
            return not self._running
        return self._running < self._at_once
