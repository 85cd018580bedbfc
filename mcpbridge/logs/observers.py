"""
What observes the log of a bridge that `twistd` or `mcpbridge` runs.

Knows twistd's options; must not know what is logged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.logger import FileLogObserver, ILogObserver, LegacyLogObserverWrapper

from mcpbridge.config.settings import BridgeSettings
from mcpbridge.logs.json_lines import json_line
from mcpbridge.logs.levels import LevelFilter, Levels
from mcpbridge.twisted_internals import file_of, twistd_observer


def log_observer(
    settings: BridgeSettings,
    twistd: Mapping[str, Any],
    console: Callable[[], ILogObserver] | None = None,
) -> ILogObserver:
    """
    Make the observer of the log, of the settings and of twistd's options.

    `console` makes the one that writes to the terminal where twistd would; without it the
    terminal gets lines in Twisted's format.  Syslog gets text in any case.
    """
    observer: Any
    if console is not None and not (twistd.get("logfile") or twistd.get("syslog")):
        observer = console()
    else:
        observer = twistd_observer(twistd)
    file = file_of(observer) if settings.log_format == "json" else None
    if file is not None:
        observer = FileLogObserver(file, json_line)
    elif not ILogObserver.providedBy(observer):
        observer = LegacyLogObserverWrapper(observer)
    return LevelFilter(observer, Levels(settings.log_level))
