"""
Tells whether a server can be started, and when to try again.

Knows failures and time; must not know processes.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from random import random

from twisted.logger import Logger

from mcpbridge.config.tuning import BACKOFF_SECONDS, MAX_BACKOFF_SECONDS, STILLBORN_STARTS
from mcpbridge.errors import ServerDown
from mcpbridge.timers import backoff


class StartBackoff:
    """
    Counts the starts of one server that failed in a row, and logs them.

    After each failure the server is down for a while, which doubles from
    `BACKOFF_SECONDS` to `MAX_BACKOFF_SECONDS`, and varies a little, so that
    servers that failed together are not tried together.  One start that
    succeeds ends that.  What fails while the server is down was begun before,
    so it counts as one with the failure that is known.

    `jitter` returns a number from 0 to 1: that part of `BACKOFF_SECONDS` is
    added to each pause.  `longest` is the longest pause.
    """

    log = Logger()

    def __init__(
        self,
        name: str,
        jitter: Callable[[], float] = random,
        longest: float = MAX_BACKOFF_SECONDS,
    ) -> None:
        self._name = name
        self._pause = backoff(BACKOFF_SECONDS, longest, jitter)
        self._until = float("-inf")
        self._stillborn = 0
        self.failures = 0
        #: When the first of them failed; None without one.
        self.failing_since: float | None = None
        #: When the last one failed; None without one.
        self.failed_at: float | None = None
        #: How many starts have succeeded.
        self.successes = 0
        #: True while a check finds out whether the server can be started.
        self.in_doubt = False
        #: Why the last start failed; empty where the last one did not.
        self.why = ""

    def failed(self, now: float, why: str) -> float:
        """Note that a start failed; return how many seconds to wait before the next."""
        self.why = why
        self.failed_at = now
        if self.wait(now):
            return self.wait(now)
        pause = self._pause(self.failures)
        self.failures += 1
        if self.failing_since is None:
            self.failing_since = now
        self._until = now + pause
        self.log.warn(
            "server {server!r} is {state}; the next try is in {pause:.1f} s",
            server=self._name,
            state=str(self),
            reason=why,
            pause=pause,
        )
        return pause

    def stillborn(self) -> bool:
        """
        Note that a session's process has not written a message: it ended, or its
        client waited in vain.  The client may be to blame.  Returns whether there
        were `STILLBORN_STARTS` or more of them in a row, so that the server itself
        is in doubt.
        """
        self._stillborn += 1
        return self._stillborn >= STILLBORN_STARTS

    def succeeded(self) -> None:
        """Note that a process did what it was started for."""
        self.failures = self._stillborn = 0
        self.successes += 1
        self.why = ""
        self.failing_since = self.failed_at = None
        self._until = float("-inf")

    def wait(self, now: float) -> float:
        """Return the seconds until the next try; 0 where there is nothing to wait for."""
        return max(0.0, self._until - now)

    def check(self, now: float) -> None:
        """
        Raise `ServerDown` while the server is down, and while a check finds
        out whether it still is: who comes meanwhile is not to try it as well.
        """
        wait = self.wait(now)
        if not wait and self.failures and self.in_doubt:
            wait = BACKOFF_SECONDS
        if wait:
            seconds = ceil(wait)
            raise ServerDown(
                f"the server {self._name!r} cannot be started ({self.why});"
                f" the bridge tries again in {seconds} s",
                seconds,
            )

    def __str__(self) -> str:
        """Return the state in words: `ready`, or `down` and why."""
        if not self.failures:
            return "ready"
        starts = "1 failed start" if self.failures == 1 else f"{self.failures} failed starts"
        return f"down after {starts}: {self.why}"
