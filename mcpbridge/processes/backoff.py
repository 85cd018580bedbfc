"""
Whether a server can be started at all, and when to try again.

Knows failures and time; must not know processes.
"""

from __future__ import annotations

from math import ceil

from twisted.logger import Logger

from mcpbridge.config.tuning import BACKOFF_SECONDS, MAX_BACKOFF_SECONDS, STILLBORN_STARTS
from mcpbridge.errors import ServerDown


class StartBackoff:
    """
    Counts starts that failed in a row, and says so.  After each the server is down for a
    while, which doubles from `BACKOFF_SECONDS` to `MAX_BACKOFF_SECONDS`; one
    start that succeeds ends that.  What fails while it is down was begun
    before: it is one with the failure that is known.
    """

    log = Logger()

    def __init__(self, name: str) -> None:
        self._name = name
        self._until = float("-inf")
        self._stillborn = 0
        self.failures = 0
        #: How many starts have succeeded.
        self.successes = 0
        #: Whether it is being found out if the server can be started.
        self.in_doubt = False
        #: Why the last start failed; empty where the last one did not.
        self.why = ""

    def failed(self, now: float, why: str) -> float:
        """A process could not be started, or was of no use; returns how long to wait."""
        self.why = why
        if self.wait(now):
            return self.wait(now)
        pause = min(BACKOFF_SECONDS * 2.0**self.failures, MAX_BACKOFF_SECONDS)
        self.failures = min(self.failures + 1, 1000)
        self._until = now + pause
        self.log.warn(
            "server {server!r} is {state}; the next try is in {pause:g} s",
            server=self._name,
            state=self,
            pause=pause,
        )
        return float(pause)

    def stillborn(self) -> bool:
        """
        A session's process ended without a word.  Its client has been told,
        and may be the one to blame.  Returns whether there were so many of
        them in a row, `STILLBORN_STARTS`, that the server is in doubt.
        """
        self._stillborn += 1
        return self._stillborn >= STILLBORN_STARTS

    def succeeded(self) -> None:
        """A process did what it was started for."""
        self.failures = self._stillborn = 0
        self.successes += 1
        self.why = ""
        self._until = float("-inf")

    def wait(self, now: float) -> float:
        """Seconds until the next try; 0: now."""
        return max(0.0, self._until - now)

    def check(self, now: float) -> None:
        """
        Raise `ServerDown` while the server is down, and while one that was
        down is checked: who comes meanwhile is not to try it as well.
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
        """The state in words: `ready`, or `down` and why."""
        if not self.failures:
            return "ready"
        starts = "1 failed start" if self.failures == 1 else f"{self.failures} failed starts"
        return f"down after {starts}: {self.why}"
