"""
An observer that writes a line of JSON for each session that has ended.

In a configuration file: "observers": ["session_ledger.SessionLedger"], with
"options": {"ledger": "/var/log/mcp-sessions.jsonl"}.
"""

import json
import time
from pathlib import Path
from typing import Any

from zope.interface import implementer

from mcpbridge import ServerSettings
from mcpbridge.errors import SettingError
from mcpbridge.interfaces import ISessionObserver


@implementer(ISessionObserver)
class SessionLedger:
    """Counts the sessions that are open, and appends the others to a file."""

    def __init__(self, settings: ServerSettings) -> None:
        path = settings.options.get("ledger")
        if not isinstance(path, str):
            raise SettingError("options.ledger", "the path of a file", path)
        self._path = Path(path)
        self.open = 0

    def session_opened(self, session: Any) -> None:
        """One more."""
        self.open += 1

    def message_passed(self, session: Any, from_client: bool, line: bytes) -> None:
        """The session counts them itself."""

    def session_closed(self, session: Any, reason: str) -> None:
        """One less, and a line for it."""
        self.open -= 1
        entry = {
            "time": round(time.time(), 3),
            "server": session.server,
            "session": session.label,
            "client": _client(session.caller),
            "reason": reason,
            "messages": [session.messages_in, session.messages_out],
            "bytes": [session.bytes_in, session.bytes_out],
        }
        with self._path.open("a", encoding="utf-8") as ledger:
            ledger.write(json.dumps(entry) + "\n")


def _client(caller: Any) -> dict[str, str | None] | None:
    """Who had the session; None for a process that served several clients (2026-07-28)."""
    if caller is None:
        return None
    return {
        "address": caller.address,
        "name": caller.client_name,
        "version": caller.client_version,
    }
