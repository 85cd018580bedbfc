"""
How often each caller may do something: a token bucket for each.

Knows numbers, keys and time; must not know what is limited, nor whom a key stands for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import ceil

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.config.tuning import BURST_SECONDS, RATE_LIMITED_CALLERS
from mcpbridge.errors import RateExceeded
from mcpbridge.rate_limited_log import RateLimitedLog

#: Tolerance for parts of a token: a third taken three times is not exactly one, and the
#: time of day has no more than seven decimal places.
_NOTHING = 1e-6
#: How many buckets a new one looks at, to remove those that are full again.
_LOOKS = 4

#: The key of the shared bucket.
_EVERYBODY = ""
#: How many tokens a bucket had when some were last taken, less than none if it owes some, and
#: when that was.
_Bucket = tuple[float, float]


class TokenBuckets:
    """
    Buckets that hold `burst` tokens and get `rate` tokens a second, one for each key.

    There are at most `most` of them.  A full bucket is like one that was never used, so
    it needs no place.  While there are `most` that are not full, all further keys share
    one more.  To forget another key's empty bucket instead would fill it: with enough
    keys, anybody could lift everybody's limit.

    `now` returns the time in seconds.
    """

    def __init__(
        self, rate: float, burst: int, now: Callable[[], float], most: int = RATE_LIMITED_CALLERS
    ) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._now = now
        self._most = most
        #: Looked at in turn from the front; only an ordered dict removes its first item in
        #: constant time.
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        #: That of all keys for which there is no place.
        self._shared: dict[str, _Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, count: int = 1, *, look: bool = False) -> int | None:
        """
        Take tokens from the bucket of a key, in constant time; with `look` leave them.

        More than a bucket holds are taken from a full one, which owes the rest: what comes
        all at once would never pass otherwise.  Returns None if there were enough; otherwise
        the number of seconds, rounded up, after which there will be unless some are taken
        before.
        """
        now = self._now()
        buckets: dict[str, _Bucket] = self._buckets
        owner = key
        if key not in buckets and not self._has_place(now):
            buckets, owner = self._shared, _EVERYBODY
        tokens, since = buckets.get(owner) or (self._burst, now)
        if now < since:
            # The clock was set back: what was to come since then comes anew.
            buckets[owner] = (tokens, now)
        else:
            tokens = min(self._burst, tokens + (now - since) * self._rate)
        needed = min(float(count), self._burst)
        if tokens < needed - _NOTHING:
            return max(1, ceil((needed - tokens - _NOTHING / 2) / self._rate))
        if not look:
            buckets[owner] = (tokens - count, now)
        return None

    def _has_place(self, now: float) -> bool:
        """Remove a few full buckets, if there are any; tell whether there is place for another."""
        buckets = self._buckets
        for _ in range(min(_LOOKS, len(buckets))):
            key = next(iter(buckets))
            tokens, since = buckets[key]
            if tokens + (now - since) * self._rate >= self._burst:
                del buckets[key]
            else:
                buckets.move_to_end(key)
        return len(buckets) < self._most


class RateLimit:
    """
    Lets each caller do something `rate` times a second, and `BURST_SECONDS` of that at once.

    `what` and `setting` name it and the limit, in the error and in the log.  With a
    `rate` of 0 there is no limit.
    """

    log = Logger()

    def __init__(self, rate: float, clock: IReactorTime, *, what: str, setting: str) -> None:
        self._clock = clock
        self._what = what
        self._setting = setting
        self._refusals = RateLimitedLog(clock)
        self._set(rate)

    def _set(self, rate: float) -> None:
        self._rate = rate
        burst = max(1, ceil(rate * BURST_SECONDS))
        self._buckets = TokenBuckets(rate, burst, self._clock.seconds) if rate else None

    def change(self, rate: float) -> None:
        """Allow so many a second from now on; another rate begins with full buckets."""
        if rate != self._rate:
            self._set(rate)

    @property
    def is_on(self) -> bool:
        """True if there is a limit."""
        return self._buckets is not None

    def check(self, caller: str | None, count: int = 1, *, look: bool = False) -> None:
        """
        Count so many more of a caller: the name of an identity, or an address.

        With `look` it does not count yet.  Nobody in particular, None, is not limited.
        Raises `RateExceeded`.
        """
        if self._buckets is None or caller is None:
            return
        seconds = self._buckets.take(caller, count, look=look)
        if seconds is not None:
            self._log_refusal(caller)
            text = f"too many {self._what}: {self._rate:g} a second are allowed ({self._setting})"
            raise RateExceeded(text, seconds)

    def _log_refusal(self, caller: str) -> None:
        self._refusals.add()
        count = self._refusals.due()
        if count is not None:
            self.log.warn(
                "{caller!r} sends too many {what}: {rate:g} a second are allowed ({setting});"
                " refused since the last such line, of all callers: {count}",
                caller=caller,
                what=self._what,
                rate=self._rate,
                setting=self._setting,
                count=count,
            )
