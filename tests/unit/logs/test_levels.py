"""The least level that is logged, of all components or of one."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.logger import LogEvent, Logger, LogLevel

from mcpbridge.config.log_levels import components, unknown_components
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.errors import SettingError
from mcpbridge.logs.levels import LevelFilter, Levels

DEBUG, INFO, WARN, ERROR = LogLevel.debug, LogLevel.info, LogLevel.warn, LogLevel.error


@pytest.mark.parametrize(
    ("levels", "namespace", "least"),
    [
        ([], "mcpbridge.web.site.BridgeSite", INFO),
        (["warn"], "mcpbridge.web.site.BridgeSite", WARN),
        (["warn", "web=debug"], "mcpbridge.web.site.BridgeSite", DEBUG),
        (["web=debug", "warn"], "mcpbridge.web.site.BridgeSite", DEBUG),
        (["web=debug", "web.site=error"], "mcpbridge.web.site.BridgeSite", ERROR),
        (["web=debug", "web.site=error"], "mcpbridge.web.response.Response", DEBUG),
        (["web=debug"], "mcpbridge.webs", INFO),
        (["web=debug"], "web", INFO),
        (["stderr=warn"], "mcpbridge.stderr", WARN),
        (["twisted=error"], "twisted.internet.tcp.Port", ERROR),
        (["twisted.web=error"], "twisted.internet.tcp.Port", INFO),
        (["twisted.web=error"], "twisted.web.http.HTTPChannel", ERROR),
        (["warn", "error"], "mine", ERROR),
        (["warn"], "", WARN),
    ],
)
def test_least_level(levels: list[str], namespace: str, least: Any) -> None:
    found = Levels(levels)
    assert [found.logs(namespace, each) for each in (DEBUG, INFO, WARN, ERROR)] == [
        each >= least for each in (DEBUG, INFO, WARN, ERROR)
    ]


def test_observer_gets_what_is_logged() -> None:
    """Also events without a level or a namespace, which Twisted's own predicate drops."""
    events: list[LogEvent] = []
    observe: Any = events.append
    observer = LevelFilter(observe, Levels(["web=error"]))
    log = Logger(namespace="mcpbridge.web.site", observer=observer)
    log.warn("no")
    log.error("yes")
    observer({})
    observer({"log_namespace": 1, "log_level": None})
    observer({"log_namespace": "mcpbridge.web", "log_level": INFO})
    assert [event.get("log_format") for event in events] == ["yes", None, None]


def test_components_are_modules() -> None:
    assert {"web", "stdio.watchdog", "processes.pool", "tap"} <= components()
    assert {"access", "stderr", "twisted"} <= components()


@pytest.mark.parametrize(
    ("component", "got"),
    [
        ("wbe", "`wbe`; did you mean `web`?"),
        ("stdio.watchdgo", "`stdio.watchdgo`; did you mean `stdio.watchdog`?"),
        ("qqqqqq", "`qqqqqq`"),
        ("twisted.nothing", "`twisted.nothing`; did you mean `twisted`?"),
        ("twisted.nothing.web", "`twisted.nothing.web`"),
        ("twisted..web", "`twisted..web`; did you mean `twisted`?"),
    ],
)
def test_component_that_there_is_not_is_an_error(component: str, got: str) -> None:
    with pytest.raises(SettingError) as caught:
        BridgeSettings(servers=(ServerSettings(command="x"),), log_level=(f"{component}=info",))
    assert str(caught.value).startswith("log_level: expected a component")
    assert str(caught.value).endswith(f"got {got}")


def test_components_that_there_are_are_no_error() -> None:
    levels = ["info", "web=debug", "twisted.web.http=warn", "twisted=warn", "access=error"]
    assert list(unknown_components(levels)) == []
