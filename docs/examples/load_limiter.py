"""
A limiter that admits nobody while the machine is busy.

In a configuration file: "limiter": "load_limiter.LoadLimiter", and perhaps
"options": {"max_load": 8}.
"""

import os

from zope.interface import implementer

from mcpbridge import ServerSettings
from mcpbridge.errors import SettingError
from mcpbridge.interfaces import IPermit, ISessionLimiter


@implementer(IPermit)
class Place:
    """The right to one session; given back twice it counts once."""

    def __init__(self, limiter: "LoadLimiter") -> None:
        self._limiter: LoadLimiter | None = limiter

    def release(self) -> None:
        """Give it back."""
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter.taken -= 1


@implementer(ISessionLimiter)
class LoadLimiter:
    """At most `max_sessions`, and none beyond a load average of `options.max_load`."""

    def __init__(self, settings: ServerSettings) -> None:
        self.taken = 0
        self._limit = settings.max_sessions
        self._max_load = settings.options.get("max_load", 2.0 * (os.cpu_count() or 1))
        if not isinstance(self._max_load, (int, float)) or isinstance(self._max_load, bool):
            raise SettingError("options.max_load", "a number", self._max_load)

    def acquire(self) -> Place | None:
        """A place, or None: the client gets a 429."""
        if self.taken >= self._limit or os.getloadavg()[0] > self._max_load:
            return None
        self.taken += 1
        return Place(self)
