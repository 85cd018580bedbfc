"""What observes the log, by the settings and by the options of twistd."""

from __future__ import annotations

import json
import sys
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.logger import (
    FileLogObserver,
    LogBeginner,
    Logger,
    LogLevel,
    LogPublisher,
)

from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.logs.json_lines import json_line
from mcpbridge.logs.levels import LevelFilter, Levels
from mcpbridge.logs.observers import log_observer
from mcpbridge.script import console_line, console_observer
from mcpbridge.signals import reopen_log_files
from mcpbridge.twisted_internals import observed_files


def settings(**values: Any) -> BridgeSettings:
    return BridgeSettings(servers=(ServerSettings(command="x"),), **values)


def log_to(observer: Any) -> Logger:
    return Logger(namespace="mcpbridge.web.site", observer=observer)


def test_terminal_gets_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    observer: Any = log_observer(settings(), {}, console_observer)
    assert observer.observer.formatEvent is console_line
    log_to(observer).debug("hidden")
    log_to(observer).warn("shown")
    assert capsys.readouterr().out.endswith(" warning: shown\n")


def test_terminal_gets_json(capsys: pytest.CaptureFixture[str]) -> None:
    observer = log_observer(settings(log_format="json"), {}, console_observer)
    log_to(observer).warn("shown", server="a")
    found = json.loads(capsys.readouterr().out)
    assert (found["message"], found["server"], found["level"]) == ("shown", "a", "warn")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_log_file(tmp_path: Path, log_format: str) -> None:
    """It can be opened again at SIGHUP."""
    path = tmp_path / "log"
    given = {"logfile": str(path), "nodaemon": True}
    chosen = settings(log_format=log_format, log_level=("warn",))
    observer: Any = log_observer(chosen, given, console_observer)
    log_to(observer).info("hidden")
    log_to(observer).warn("shown")
    assert ("hidden" in path.read_text(), "shown" in path.read_text()) == (False, True)
    assert path.read_text().startswith("{") is (log_format == "json")
    publisher = LogPublisher(observer)
    path.rename(tmp_path / "old")
    assert list(reopen_log_files(log_to(observer), publisher)) == [str(path)]
    log_to(observer).warn("again")
    assert "again" in path.read_text()
    for file in observed_files(publisher):
        file.close()


def test_twistd_logs_to_the_terminal_in_its_own_format(capsys: pytest.CaptureFixture[str]) -> None:
    observer = log_observer(settings(), {"nodaemon": True})
    log_to(observer).info("shown")
    assert capsys.readouterr().out.endswith(" [mcpbridge.web.site#info] shown\n")


def test_syslog_gets_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its observer is one of Twisted's former log; levels hold for it."""
    sent: list[str] = []
    monkeypatch.setattr("syslog.openlog", lambda *arguments: None)
    monkeypatch.setattr("syslog.syslog", lambda *arguments: sent.append(arguments[-1]))
    given = {"syslog": True, "prefix": "x"}
    observer = log_observer(settings(log_format="json"), given, console_observer)
    log_to(observer).debug("hidden")
    log_to(observer).error("shown")
    assert [text.rpartition("] ")[2] for text in sent] == ["shown"]


def test_what_was_logged_before_is_not_lost() -> None:
    """Twisted replays it to the first observers, with its levels."""
    file = StringIO()
    publisher = LogPublisher()
    module = SimpleNamespace(showwarning=None)
    beginner = LogBeginner(publisher, sys.stderr, sys, module)
    Logger(namespace="mcpbridge.tap", observer=publisher).emit(LogLevel.warn, "early")
    observer = LevelFilter(FileLogObserver(file, json_line), Levels(["info"]))
    beginner.beginLoggingTo([observer], redirectStandardIO=False)
    assert json.loads(file.getvalue())["message"] == "early"
