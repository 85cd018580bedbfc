"""
What an operator can do: end sessions, and have the settings read again.

Every action is logged, with who wanted it.  Knows the bridge; must not know HTTP.
"""

from __future__ import annotations

from twisted.logger import Logger

from mcpbridge.admin.operators import Operator
from mcpbridge.admin.view import BridgeView

#: Why a session ends that an operator has ended.
ENDED = "an operator ended it"


class Control:
    """Does what an operator wants."""

    log = Logger()

    def __init__(self, view: BridgeView) -> None:
        self._view = view

    def end(self, operator: Operator, ident: str) -> str:
        """
        End a session, by its short id or the beginning of it; return its short id.

        Raises `NotFound` and `Ambiguous`.
        """
        ended = self._view.end_session(ident, ENDED)
        self.log.info("{identity} ends session {session}", session=ended, identity=operator.name)
        return ended

    def reload(self, operator: Operator) -> str:
        """
        Read the configuration file again; return what has changed, in one line.

        Raises `SettingErrors`, `NotSupported` and `ShuttingDown`.
        """
        self.log.info("{identity} reloads the settings", identity=operator.name)
        return self._view.reload_file()
