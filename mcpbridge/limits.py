"""
The limits that all servers of a bridge share.

Knows numbers and callers; must not know servers.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from mcpbridge.config.settings import BridgeSettings, share_of
from mcpbridge.processes.address_shares import Shares
from mcpbridge.processes.permits import BridgeLimiter


class BridgeLimits:
    """
    The limit on processes, and what each caller may have of them and of streams.

    `returned` is called each time that a process has given its permit back.
    """

    def __init__(
        self, settings: BridgeSettings, clock: IReactorTime, returned: Callable[[], object]
    ) -> None:
        #: Each server gets its part of these.
        self.sessions = BridgeLimiter(settings.session_limit, returned)
        self._of_addresses = Shares(
            1,
            clock,
            what="the sessions of all servers",
            setting="max_sessions_per_address of the bridge",
        )
        self._of_identities = Shares(
            1,
            clock,
            what="the sessions of all servers",
            setting="max_sessions_per_identity of the bridge",
            of_identities=True,
        )
        self.streams = Shares(
            1,
            clock,
            what="open streams",
            setting="max_streams_per_identity",
            of_identities=True,
        )
        self.change(settings)

    def change(self, settings: BridgeSettings) -> None:
        """Hold what other settings say; whoever has more than that keeps it."""
        most = settings.session_limit
        self.sessions.change(most)
        self._of_addresses.limit = share_of(most, settings.max_sessions_per_address)
        self._of_identities.limit = share_of(most, settings.max_sessions_per_identity)
        self.streams.limit = share_of(settings.connection_limit, settings.max_streams_per_identity)

    def shares(self, *, of_identities: bool) -> list[Shares]:
        """Return what the sessions of a server count against, besides its own limits."""
        return [self._of_identities if of_identities else self._of_addresses]
