"""
Permits for processes, like those of Twisted's `DeferredSemaphore`, except that
nobody waits: `acquire` returns None when all permits are taken.

Knows numbers; must not know processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from mcpbridge.config.checks import COUNT
from mcpbridge.config.tuning import GUARANTEED_DIVISOR
from mcpbridge.errors import SettingError
from mcpbridge.interfaces import IPermit, ISessionLimiter
from mcpbridge.rate_limited_log import RateLimitedLog


@implementer(IPermit)
class Permit:
    """One permit of a limiter; a second `release` does nothing."""

    __slots__ = ("_limiter",)

    def __init__(self, limiter: SessionLimiter) -> None:
        self._limiter: SessionLimiter | None = limiter

    def release(self) -> None:
        """Return the permit to its limiter."""
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter._returned()


@implementer(ISessionLimiter)
class SessionLimiter:
    """
    Hands out at most `limit` permits at a time.

    `returned` is called each time that one was given back.  Raises `SettingError`
    for a limit that is no integer ≥ 1: no value means unlimited.
    """

    def __init__(self, limit: int, returned: Callable[[], object] = lambda: None) -> None:
        if not COUNT.accepts(limit):
            raise SettingError("max_sessions", COUNT.expected, limit)
        self.limit = limit
        self.taken = 0
        self._tell_returned = returned

    def acquire(self) -> Permit | None:
        """Return a permit, or None at the limit."""
        if self.taken >= self.limit:
            return None
        self.taken += 1
        return Permit(self)

    def is_full(self) -> bool:
        """Return whether `acquire` would return None."""
        return self.taken >= self.limit

    def change(self, limit: int) -> None:
        """Hand out at most so many from now on; those that are taken stay so."""
        self.limit = limit

    @property
    def exceeds_guarantee(self) -> bool:
        """True if one that is returned helps others; here always, as nothing is guaranteed."""
        return True

    @property
    def reserved(self) -> int:
        """How many are free, and kept for others."""
        return 0

    def close(self) -> None:
        """Nobody will take a permit any more."""

    def _returned(self) -> None:
        self.taken -= 1
        self._tell_returned()


@implementer(ISessionLimiter)
class BridgeLimiter(SessionLimiter):
    """
    The permits of a bridge, of which each server gets its `part`.

    Half of the permits is divided equally among the servers: so many are guaranteed to each,
    though no more than it may use.  Without that, a few servers that take clients and never
    answer them would use up all permits, and the clients of all other servers be refused.  The
    other half, and what a server is not guaranteed, is for whoever comes first.
    """

    def __init__(self, limit: int, returned: Callable[[], object] = lambda: None) -> None:
        super().__init__(limit, returned)
        self._parts: list[ServerPart] = []
        #: The sum of what is guaranteed to servers that have less.
        self.kept = 0

    def part(self, most: int) -> ServerPart:
        """Return the part of a server that may use so many."""
        part = ServerPart(self, most)
        self.add(part)
        return part

    def change(self, limit: int) -> None:
        """Do the same, and divide them anew."""
        super().change(limit)
        self._divide()

    def add(self, part: ServerPart) -> None:
        """Guarantee something to a server, also to one that was removed."""
        if part not in self._parts:
            self._parts.append(part)
        self._divide()

    def remove(self, part: ServerPart) -> None:
        """Guarantee nothing to a server any more, which is stopped; it may still hold some."""
        if part in self._parts:
            self._parts.remove(part)
            part.guaranteed = 0
            self._divide()

    def _divide(self) -> None:
        equal = self.limit // (GUARANTEED_DIVISOR * max(1, len(self._parts)))
        for each in self._parts:
            each.limit = self.limit
            each.guaranteed = min(equal, each.most)
        self.kept = sum(max(0, each.guaranteed - each.taken) for each in self._parts)


@implementer(ISessionLimiter)
class ServerPart(SessionLimiter):
    """What one server has of the permits of a bridge; `most` is how many it may use."""

    def __init__(self, whole: BridgeLimiter, most: int) -> None:
        super().__init__(whole.limit)
        self._whole = whole
        self.most = most
        #: So many it can always have, whatever other servers do.
        self.guaranteed = 0

    def acquire(self) -> Permit | None:
        """Return a permit; None if none is free that is not kept for another server."""
        if self.is_full():
            return None
        if self.taken < self.guaranteed:
            self._whole.kept -= 1
        self.taken += 1
        self._whole.taken += 1
        return Permit(self)

    def is_full(self) -> bool:
        """Return whether `acquire` would return None."""
        whole = self._whole
        kept = 0 if self.taken < self.guaranteed else whole.kept
        return whole.taken + kept >= whole.limit

    @property
    def exceeds_guarantee(self) -> bool:
        """True if one that is returned is free for any server."""
        return self.taken > self.guaranteed

    @property
    def reserved(self) -> int:
        """How many are free, and kept for other servers."""
        return max(0, min(self._whole.kept, self._whole.limit - self._whole.taken))

    def change(self, limit: int) -> None:
        """Let this server use so many of the bridge's; it may have been closed."""
        self.most = limit
        self._whole.add(self)

    def close(self) -> None:
        """Keep none for this server any more: it starts no process."""
        self._whole.remove(self)

    def _returned(self) -> None:
        self.taken -= 1
        if self.taken < self.guaranteed:
            self._whole.kept += 1
        self._whole._returned()


@implementer(IPermit)
class _Permits:
    """One permit of each of several limiters."""

    def __init__(self, permits: Sequence[Permit]) -> None:
        self._permits = permits

    def release(self) -> None:
        """Return all of them."""
        for permit in self._permits:
            permit.release()


@implementer(ISessionLimiter)
class CombinedLimiter:
    """Hands out a permit of each of several limiters, or none of any."""

    def __init__(self, *limiters: object) -> None:
        self._limiters = cast("tuple[SessionLimiter, ...]", limiters)

    def is_full(self) -> bool:
        """Return whether a limiter of the bridge is full; one of an extension cannot be asked."""
        return any(
            limiter.is_full() for limiter in self._limiters if isinstance(limiter, SessionLimiter)
        )

    def acquire(self) -> _Permits | None:
        """Return a permit that stands for one of each, or None if one of them has none."""
        taken: list[Permit] = []
        try:
            for limiter in self._limiters:
                permit = limiter.acquire()
                if permit is None:
                    return None
                taken.append(permit)
            complete = _Permits(taken)
            taken = []
            return complete
        finally:
            for permit in taken:
                permit.release()


class RefusalLog:
    """Logs that requests are refused for want of something, and how many (`RateLimitedLog`)."""

    log = Logger()

    def __init__(self, name: str, clock: IReactorTime, what: str = "is full") -> None:
        self._name = name
        self._what = what
        self._refusals = RateLimitedLog(clock)

    def add(self, why: Callable[[], str]) -> None:
        """Count one more refusal; `why` is called only when it is logged."""
        self._refusals.add()
        count = self._refusals.due()
        if count is not None:
            self.log.warn(
                "server {server!r} {what}: {reason}; refused since the last such line: {count}",
                server=self._name,
                what=self._what,
                reason=why(),
                count=count,
            )
