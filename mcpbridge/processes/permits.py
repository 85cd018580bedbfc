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

    def _returned(self) -> None:
        self.taken -= 1
        self._tell_returned()


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

    @property
    def own(self) -> SessionLimiter | None:
        """The last of them, which is a server's own; None if it is an extension's."""
        last = self._limiters[-1]
        return last if isinstance(last, SessionLimiter) else None

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
                "server {server!r} {what}: {why}; refused since the last such line: {count}",
                server=self._name,
                what=self._what,
                why=why(),
                count=count,
            )
