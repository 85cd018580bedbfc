"""
What a process says before anybody has it.

Knows lines and how many bytes they may be; must not know what they say.
"""

from __future__ import annotations

from mcpbridge.config.tuning import HELD_BYTES
from mcpbridge.processes.backend_session import BackendSession


class BufferedOutput:
    """What a spare process says before anybody has it, a `Adapter`."""

    def __init__(self, session: BackendSession) -> None:
        self._session = session
        self._size = 0
        self.lines: list[bytes] = []

    def send(self, lines: list[bytes], envelopes: object = None) -> None:
        """Nobody has it: there is nothing to send."""

    def received(self, lines: list[bytes]) -> list[bytes]:
        """Keep them; beyond `HELD_BYTES` the rest stays in the pipe."""
        self.lines += lines
        self._size += sum(map(len, lines))
        if self._size > HELD_BYTES:
            self._session.pause_backend()
        return []

    def close(self) -> None:
        """Nothing runs."""
