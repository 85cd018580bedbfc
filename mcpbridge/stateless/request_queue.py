"""
Stateless requests that wait: for a process, or for one of them to start what
all of them need.

Knows order, number and time; must not know what they wait for.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Coroutine, Hashable, Iterable
from heapq import heappop, heappush
from math import inf
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.errors import BridgeError, ServerBusy, ShuttingDown, without_frames
from mcpbridge.processes.waiters import Waiters

T = TypeVar("T")


class Ticket:
    """A request's place in the queue, which it keeps until it has a process."""

    #: When it began to wait; infinity as long as it has not.
    since = inf

    def is_behind(self, others: Iterable[Ticket]) -> bool:
        """Return whether one of the others began to wait before."""
        return any(each.since <= self.since for each in others)


class _Capacity(NamedTuple):
    """The line of those of one client address that wait for capacity."""

    address: str | None


class _Waiting:
    """A request that waits, in one or more lines."""

    __slots__ = ("lines", "may_proceed", "place", "turn")

    def __init__(
        self,
        place: tuple[float, int],
        lines: tuple[Hashable, ...],
        may_proceed: Callable[[], bool],
    ) -> None:
        #: Since when it waits, and a number of its own: its place in each line.
        self.place = place
        self.lines = lines
        self.may_proceed = may_proceed
        self.turn: Deferred[None] = Deferred()


class RequestQueue:
    """
    Requests that wait for a process, longest waiting first.

    At most `limit` of them wait, each for at most `timeout` seconds.  Those
    that wait for the same stand in one line, so that whoever frees a process
    asks the first of each line that may have it, and not everybody: where the
    first one cannot proceed, nobody behind it can.  There is a line for each
    client address that waits for capacity, and one for each kind of worker.

    `changed` is called with whether anybody waits, when that changes.
    """

    def __init__(
        self,
        clock: IReactorTime,
        limit: int,
        timeout: float,
        changed: Callable[[bool], None] = lambda waiting: None,
    ) -> None:
        self._clock = clock
        self._limit = limit
        self._timeout = timeout
        self._changed = changed
        self._waiting: dict[Deferred[None], _Waiting] = {}
        #: The lines in which somebody waits, sorted.
        self._lines: dict[Hashable, list[tuple[tuple[float, int], _Waiting]]] = {}
        #: Those of them that wait for capacity.
        self._for_capacity: dict[Hashable, None] = {}
        self._number = 0
        self._stopped = False
        self._waking = False
        #: The lines that are to be asked next, as an ordered set; None where none is.
        self._to_ask: dict[Hashable, None] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(
        self,
        ticket: Ticket,
        may_proceed: Callable[[], bool],
        address: str | None,
        *lines: Hashable,
    ) -> None:
        """
        Return when there may be a process.  A request that waits again keeps
        its place and its deadline.

        It waits for capacity for a client of this address, and in these lines;
        `may_proceed` is asked when one of them is woken.  Raises `ServerBusy`
        where too many wait or the time is over, and `ShuttingDown`.
        """
        if self._stopped:
            raise _stopping()
        now = self._clock.seconds()
        if ticket.since == inf:
            if len(self._waiting) >= self._limit:
                raise ServerBusy(
                    "all processes are at work, and as many requests wait as may"
                    " (max_waiting_requests)"
                )
            ticket.since = now
        capacity = _Capacity(address)
        self._number += 1
        waiting = _Waiting((ticket.since, self._number), (capacity, *lines), may_proceed)
        self._add(waiting, capacity)
        waiting.turn.addTimeout(max(0.0, ticket.since + self._timeout - now), self._clock)
        try:
            await waiting.turn
        except defer.TimeoutError as error:
            # Its traceback leads through the Deferred back to it: a cycle that would keep
            # the request until the garbage collector comes.
            without_frames(error)
            raise ServerBusy(
                f"all processes have been at work for {self._timeout:g} s (queue_timeout)"
            ) from None
        finally:
            self._remove(waiting)

    def _add(self, waiting: _Waiting, capacity: Hashable) -> None:
        self._waiting[waiting.turn] = waiting
        for line in waiting.lines:
            insort(self._lines.setdefault(line, []), (waiting.place, waiting))
        self._for_capacity[capacity] = None
        if len(self._waiting) == 1:
            self._changed(True)

    def _remove(self, waiting: _Waiting) -> None:
        if self._waiting.pop(waiting.turn, None) is None:
            return
        for line in waiting.lines:
            standing = self._lines[line]
            del standing[bisect_left(standing, waiting.place, key=itemgetter(0))]
            if not standing:
                del self._lines[line]
                self._for_capacity.pop(line, None)
        if not self._waiting:
            self._changed(False)

    def wake(self, *lines: Hashable) -> None:
        """
        Let the requests proceed for which there may be a process now, the
        longest waiting first: of these lines, and of those that wait for
        capacity.  Called from within itself, it starts over.
        """
        if not self._waiting:
            return
        self._to_ask = {**(self._to_ask or {}), **dict.fromkeys(lines)}
        if self._waking:
            return
        self._waking = True
        try:
            while self._to_ask is not None:
                asked, self._to_ask = self._to_ask, None
                self._wake_once([*asked, *self._for_capacity])
        finally:
            self._waking = False

    def _wake_once(self, lines: list[Hashable]) -> None:
        # One that waits again meanwhile has had its turn.
        newest = self._number
        refused: set[_Waiting] = set()
        heads: list[tuple[tuple[float, int], int]] = []

        def add_head(index: int) -> None:
            for place, _ in self._lines.get(lines[index], ()):
                if place[1] <= newest:
                    heappush(heads, (place, index))
                    return

        for index in range(len(lines)):
            add_head(index)
        while heads:
            place, index = heappop(heads)
            line = self._lines.get(lines[index], [])
            at = bisect_left(line, place, key=itemgetter(0))
            if at < len(line) and line[at][0] == place:
                waiting = line[at][1]
                if waiting in refused or not waiting.may_proceed():
                    # Neither can those behind it.
                    refused.add(waiting)
                    continue
                self._remove(waiting)
                waiting.turn.callback(None)
            add_head(index)

    def stop(self) -> None:
        """Fail all that wait with `ShuttingDown`."""
        self._stopped = True
        every = list(self._waiting.values())
        # All first: none of them is to be woken by the end of another.
        for waiting in every:
            self._remove(waiting)
        for waiting in every:
            waiting.turn.errback(_stopping())


def _stopping() -> ShuttingDown:
    return ShuttingDown("the bridge is shutting down")


class SingleFlight:
    """
    Lets one of several requests do what all of them need, while the others
    wait until it is done: one for each `key`, which names what they need.

    At most `limit` of them wait, for all keys together.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        #: Who waits, by the keys for which a request does it now.
        self._waiters: dict[Hashable, Waiters] = {}
        self._count = 0

    def is_busy(self, key: Hashable = None) -> bool:
        """Return whether a request does it now."""
        return key in self._waiters

    @property
    def is_any_busy(self) -> bool:
        """Whether a request does it now for any key."""
        return bool(self._waiters)

    async def is_first(self, key: Hashable = None) -> bool:
        """
        Return True to the request that is to do it, and to call `done`; and
        False to the others, after that call.  Raises `ServerBusy`.
        """
        waiters = self._waiters.get(key)
        if waiters is None:
            self._waiters[key] = Waiters()
            return True
        if self._count >= self._limit:
            raise ServerBusy(
                "a process is being started, and as many requests wait as may"
                " (max_waiting_requests)"
            )
        self._count += 1
        try:
            await waiters.wait()
        finally:
            self._count -= 1
        return False

    def done(self, key: Hashable = None) -> None:
        """It is done, or has failed: whoever still needs it tries next."""
        for turn in self._waiters.pop(key).take():
            turn.callback(None)


_log = Logger()


async def shielded(
    work: Coroutine[Deferred[Any], Any, T],
    unclaimed: Callable[[T], object],
    failed_unclaimed: Callable[[BridgeError], object] = lambda _: None,
) -> T:
    """
    Await work that goes on when the caller is cancelled, since others have a
    use for it.

    Then `unclaimed` is called with its result, or `failed_unclaimed` with the
    `BridgeError` that it raised.  Raises what the work raises.
    """
    waiting: Deferred[T] = Deferred()

    def done(result: T) -> None:
        if waiting.called:
            unclaimed(result)
        else:
            waiting.callback(result)

    def failed(failure: Failure) -> None:
        if not waiting.called:
            # The traceback of an error that is expected would keep what led to it until the
            # garbage collector comes, and nobody reads it.
            error = failure.value
            if isinstance(error, BridgeError):
                waiting.errback(without_frames(error))
            else:
                waiting.errback(failure)
        elif isinstance(failure.value, BridgeError):
            failed_unclaimed(failure.value)
        else:
            _log.failure("work that nobody waits for any more failed", failure)

    Deferred.fromCoroutine(work).addCallback(done).addErrback(failed)
    return await waiting
