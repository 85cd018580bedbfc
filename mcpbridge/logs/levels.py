"""
The least level that is logged, of all components or of one (`log_level`).

Knows loggers' namespaces; must not know files.
"""

from __future__ import annotations

from collections.abc import Iterable

from twisted.logger import (
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    PredicateResult,
)

from mcpbridge.config.log_levels import split_level


class Levels(LogLevelFilterPredicate):
    """
    The least levels of `log_level`; of several for one component the last counts.

    Unlike Twisted's predicate it does not drop events without a level or namespace.
    """

    def __init__(self, levels: Iterable[str]) -> None:
        super().__init__()
        for each in levels:
            component, name = split_level(each)
            self.setLogLevelForNamespace(_namespace(component), LogLevel.levelWithName(name))

    def __call__(self, event: LogEvent) -> object:
        """Return `maybe` for an event that is to be logged, and `no` for others."""
        level = event.get("log_level") or LogLevel.info
        namespace = event.get("log_namespace")
        logged = self.logs(namespace if isinstance(namespace, str) else "", level)
        return PredicateResult.maybe if logged else PredicateResult.no

    def logs(self, namespace: str, level: object) -> bool:
        """Tell whether events of this namespace and level are logged."""
        return bool(level >= self.logLevelForNamespace(namespace))


class LevelFilter(FilteringLogObserver):
    """
    Passes events on to an observer if `levels` say so.

    Both are public for who writes to the observer's file directly (`web.access_log`).
    """

    def __init__(self, observer: ILogObserver, levels: Levels) -> None:
        super().__init__(observer, [levels])
        self.observer = observer
        self.levels = levels


def _namespace(component: str) -> str:
    if component == "twisted" or component.startswith("twisted."):
        return component
    return f"mcpbridge.{component}" if component else ""
