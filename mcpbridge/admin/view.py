"""
What the admin listener needs of a bridge, as protocols; `Bridge` has all of it.

Knows what is shown and what can be done; must not know how.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred

from mcpbridge.config.settings import BridgeSettings
from mcpbridge.counters import BridgeCounters
from mcpbridge.health import BridgeHealth
from mcpbridge.process_usage import Usage
from mcpbridge.server import Server


class BridgeView(Protocol):
    """A bridge, as the admin listener sees and controls it."""

    settings: BridgeSettings
    counters: BridgeCounters
    health: BridgeHealth

    @property
    def servers(self) -> Sequence[Server]:
        """All servers; also those that were removed and have sessions left."""
        ...

    @property
    def condition(self) -> str:
        """Return `serving`, `draining` or `stopping`."""
        ...

    @property
    def connection_count(self) -> int:
        """How many connections of clients are open."""
        ...

    @property
    def loop_lag(self) -> float:
        """The longest delay of the reactor in the last `LAG_SECONDS`, in seconds."""
        ...

    @property
    def response_bytes(self) -> int:
        """How many bytes are held for clients that have not read them yet."""
        ...

    def urls(self) -> list[str]:
        """Return the URLs that the bridge's own listeners serve."""
        ...

    def usage(self) -> Deferred[Mapping[int, Usage]]:
        """
        Find out what each process tree uses, by the pid of its first process, and the bridge
        itself by its own pid.  The answer may be some seconds old; never fails.
        """
        ...

    def end_session(self, ident: str, why: str) -> str:
        """
        End the session whose short id this is, or begins with it; return its short id.

        Raises `NotFound` if there is none, and `Ambiguous` if there are several.
        """
        ...

    def reload_file(self) -> str:
        """
        Read the configuration file again; return what has changed, in one line.

        Raises `SettingErrors` for a wrong file, and `NotSupported` without one.
        """
        ...
