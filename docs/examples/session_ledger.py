"""
An observer that writes a line of JSON to a file for each session that has ended.

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
    """Counts the open sessions, and appends each one that has ended to a file."""

    def __init__(self, settings: ServerSettings) -> None:
        path = settings.options.get("ledger")
        if not isinstance(path, str):
            raise SettingError("options.ledger", "the path of a file", path)
        self._path = Path(path)
        self.open = 0

    def session_opened(self, session: Any) -> None:
        """Count the session."""
        self.open += 1

    def message_passed(self, session: Any, from_client: bool, line: bytes) -> None:
        """Do nothing: the session counts its messages itself."""

    def session_closed(self, session: Any, reason: str) -> None:
        """Count the session no more, and write its line."""
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
    """Describe the client; None for a process that served several clients (2026-07-28)."""
    if caller is None:
        return None
    return {
        "address": caller.address,
        "name": caller.client_name,
        "version": caller.client_version,
    }
