"""
A limiter that admits nobody while the machine is busy.

In a configuration file: "limiter": "load_limiter.LoadLimiter", optionally with
"options": {"max_load": 8}.  By default the limit is twice the number of CPUs.
"""

import os

from zope.interface import implementer

from mcpbridge import ServerSettings
from mcpbridge.errors import SettingError
from mcpbridge.interfaces import IPermit, ISessionLimiter


@implementer(IPermit)
class Permit:
    """The right to run one process.  Releasing it a second time does nothing."""

    def __init__(self, limiter: "LoadLimiter") -> None:
        self._limiter: LoadLimiter | None = limiter

    def release(self) -> None:
        """Return the permit to the limiter."""
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter.taken -= 1


@implementer(ISessionLimiter)
class LoadLimiter:
    """Allows `max_sessions` processes, and no new one above a load of `options.max_load`."""

    def __init__(self, settings: ServerSettings) -> None:
        self.taken = 0
        self._limit = settings.max_sessions
        self._max_load = settings.options.get("max_load", 2.0 * (os.cpu_count() or 1))
        if not isinstance(self._max_load, (int, float)) or isinstance(self._max_load, bool):
            raise SettingError("options.max_load", "a number", self._max_load)

    def acquire(self) -> Permit | None:
        """Return a permit, or None: then the client gets a 429."""
        if self.taken >= self._limit or os.getloadavg()[0] > self._max_load:
            return None
        self.taken += 1
        return Permit(self)
