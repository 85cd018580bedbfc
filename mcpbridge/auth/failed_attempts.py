"""
What failed attempts to authenticate cost an address: answers that come later and later.

Knows addresses and time; must not know what was attempted.  It is asked only after an
attempt has failed, so nothing here delays or refuses valid credentials, whatever else
comes from the same address.
"""

from __future__ import annotations

from collections import OrderedDict
from heapq import heappop, heappush
from math import ceil, log2

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.config.tuning import (
    ATTEMPT_ADDRESSES,
    ATTEMPT_DELAY_SECONDS,
    ATTEMPT_FORGOTTEN_SECONDS,
    ATTEMPTS_FREE,
    DELAYED_ANSWERS,
    DELAYED_OF_ADDRESS,
    MAX_ATTEMPT_DELAY_SECONDS,
)
from mcpbridge.rate_limited_log import RateLimitedLog

#: How many addresses a new one looks at, to remove those that are forgotten.
_LOOKS = 4
#: The failure that has the longest delay; more of them are not counted, so that whoever
#: has found the right credentials is not remembered for long.
_LAST_COUNTED = (
    ATTEMPTS_FREE + 1 + ceil(log2(MAX_ATTEMPT_DELAY_SECONDS) - log2(ATTEMPT_DELAY_SECONDS))
)


class TooManyDelayed(Exception):
    """As many answers as may be are delayed already; `retry_after` seconds from now fewer are."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many answers are delayed, for {retry_after} s")
        self.retry_after = retry_after


class _Failures:
    """The failed attempts of one address."""

    __slots__ = ("count", "delayed", "since")

    def __init__(self, now: float) -> None:
        #: How many there were at `since`; one is forgotten in `ATTEMPT_FORGOTTEN_SECONDS`.
        self.count = 0.0
        self.since = now
        #: When each of the answers that are delayed is due, the earliest first.
        self.delayed: list[float] = []

    def left(self, now: float) -> float:
        """Return how many are not forgotten."""
        return max(0.0, self.count - max(0.0, now - self.since) / ATTEMPT_FORGOTTEN_SECONDS)

    def add(self, now: float) -> float:
        """Count one more; return how long its answer is to be delayed."""
        self.count = min(self.left(now) + 1.0, float(_LAST_COUNTED))
        self.since = now
        beyond = ceil(self.count) - ATTEMPTS_FREE
        if beyond <= 0:
            return 0.0
        delay: float = ATTEMPT_DELAY_SECONDS * 2.0 ** (beyond - 1)
        return min(delay, MAX_ATTEMPT_DELAY_SECONDS)


class FailedAttempts:
    """
    Counts failed attempts by address, and decides how long the answer to each waits.

    The first `ATTEMPTS_FREE` have their answers at once.  Then each waits twice as long
    as the one before, up to `MAX_ATTEMPT_DELAY_SECONDS`.  An answer that waits holds a
    request, so no more than `DELAYED_OF_ADDRESS` do of one address and
    `DELAYED_ANSWERS` of all.  What fails beyond that has its answer at once, which is the
    same as it would be later: among the attempts of those who guess, a neighbour's token
    may have expired, and its client gets a new one only if it is told so.  Whoever guesses
    learns no more by it than by any other answer that valid credentials do not get.

    It counts `ATTEMPT_ADDRESSES` of which something is not forgotten; all further
    addresses count as one, so that many addresses do not make the bridge forget others.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        #: Looked at in turn from the front.
        self._addresses: OrderedDict[str, _Failures] = OrderedDict()
        self._others = _Failures(0.0)
        #: When each of all answers that are delayed is due.
        self._delayed: list[float] = []
        self._complaints = RateLimitedLog(clock)

    def __len__(self) -> int:
        return len(self._addresses)

    def failed(self, address: str | None) -> float:
        """
        Count an attempt of an address that has failed.

        `address` is what is counted of it: an IPv4 address or the /64 of an IPv6
        address.  None, such as for an address that is exempt, has no limit.  Returns
        how many seconds its answer is to be delayed, 0 for at once.  Raises
        `TooManyDelayed` if as many answers as may be are delayed already.
        """
        if address is None:
            return 0.0
        now = self._clock.seconds()
        failures = self._of(address, now)
        delay = failures.add(now)
        if not delay:
            return 0.0
        for due, most in ((failures.delayed, DELAYED_OF_ADDRESS), (self._delayed, DELAYED_ANSWERS)):
            while due and due[0] <= now:
                heappop(due)
            if len(due) >= most:
                self._log_excess(address)
                raise TooManyDelayed(max(1, ceil(due[0] - now)))
        heappush(failures.delayed, now + delay)
        heappush(self._delayed, now + delay)
        return delay

    def _of(self, address: str, now: float) -> _Failures:
        failures = self._addresses.get(address)
        if failures is None and self._has_place(now):
            failures = self._addresses[address] = _Failures(now)
        return self._others if failures is None else failures

    def _has_place(self, now: float) -> bool:
        """Remove a few forgotten addresses, if there are any; tell if another has a place."""
        addresses = self._addresses
        for _ in range(min(_LOOKS, len(addresses))):
            address = next(iter(addresses))
            if addresses[address].left(now):
                addresses.move_to_end(address)
            else:
                del addresses[address]
        return len(addresses) < ATTEMPT_ADDRESSES

    def _log_excess(self, address: str) -> None:
        self._complaints.add()
        count = self._complaints.due()
        if count is not None:
            self.log.warn(
                "{address} fails to authenticate too often: answered without delay since the last"
                " such line, of all addresses: {count}",
                address=address,
                count=count,
            )
