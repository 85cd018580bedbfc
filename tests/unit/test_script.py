"""The console script: what it sets for twistd, and its log for people."""

import io
from typing import Any

import pytest
from twisted.logger import FileLogObserver, Logger, LogLevel, LogPublisher, eventAsText
from twisted.python.failure import Failure

from mcpbridge import script
from mcpbridge.script import ConsoleOptions, console_line


def line_of(level: LogLevel, text: str, **event: Any) -> str | None:
    return console_line(
        {"log_level": level, "log_time": 0.0, "log_format": "{text}", "text": text, **event}
    )


@pytest.mark.parametrize(
    ("level", "prefix"),
    [
        (LogLevel.debug, ""),
        (LogLevel.info, ""),
        (LogLevel.warn, "warning: "),
        (LogLevel.error, "error: "),
        (LogLevel.critical, "critical: "),
    ],
)
def test_a_line_has_a_time_and_its_level_from_warnings_up(level: LogLevel, prefix: str) -> None:
    line = line_of(level, "serving", log_namespace="mcpbridge.tap")
    assert line is not None
    time, rest = line.split(" ", 1)
    assert time.startswith("19")
    assert rest == f"{prefix}serving\n"


def test_more_lines_are_indented() -> None:
    line = line_of(LogLevel.info, "one\ntwo")
    assert line is not None
    assert line.endswith(" one\n\ttwo\n")


def test_a_traceback_stays() -> None:
    try:
        raise ValueError("unexpected")
    except ValueError:
        line = line_of(LogLevel.critical, "failed", log_failure=Failure())
    assert line is not None
    assert " critical: failed\n\tTraceback" in line
    assert "\tbuiltins.ValueError: unexpected\n" in line


class Named:
    """What a format may name."""

    name = "n"

    def called(self) -> str:
        return "c"


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "{a} of {b!r}, {c:.1f} s, {d.name}, {{e}}",
        "{a()} and {d.called()}",
        "()",
        "{missing}",
        "{a:x}",
        "{",
        b"{a}",
        7,
    ],
)
@pytest.mark.parametrize("when", [1e9, 1e9 + 0.999, None])
def test_a_line_has_the_text_and_the_time_that_twisted_writes(
    text: Any, when: float | None
) -> None:
    event = {"log_time": when, "log_format": text, "a": str, "b": "b", "c": 1.25, "d": Named()}
    line = console_line(event)
    assert line == eventAsText(event, includeSystem=False).replace("\n", "\n\t") + "\n"


def test_an_event_without_text_is_no_line() -> None:
    assert console_line({"log_level": LogLevel.info}) is None


@pytest.mark.parametrize(
    "text",
    [
        "twistd 26.10.0 (/usr/bin/python3 3.11.7) starting up.",
        "reactor class: twisted.internet.epollreactor.EPollReactor.",
        "BridgeSite starting on 8808",
        "BridgeSite (TLS) starting on 8443",
        "Starting factory <mcpbridge.web.site.BridgeSite object at 0x7f>",
        "Stopping factory <mcpbridge.web.site.BridgeSite object at 0x7f>",
        "(TCP Port 8808 Closed)",
        "Main loop terminated.",
        "Server Shut Down.",
    ],
)
def test_what_twisted_logs_about_itself_is_left_out(text: str) -> None:
    assert line_of(LogLevel.info, text) is None
    assert line_of(LogLevel.warn, text) is not None


def test_the_signal_that_stops_stays() -> None:
    assert line_of(LogLevel.info, "Received SIGTERM, shutting down.") is not None


@pytest.mark.parametrize("logfile", [None, "log"])
def test_the_script_runs_twistd_in_the_foreground(
    logfile: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mcpbridge.logs` chooses the observer later."""
    ran: list[ConsoleOptions] = []
    monkeypatch.setattr(script, "runApp", ran.append)
    arguments = [] if logfile is None else ["--logfile", logfile]
    monkeypatch.setattr("sys.argv", ["mcpbridge", *arguments, "cat"])
    script.main()
    [options] = ran
    assert (options["nodaemon"], options["pidfile"]) == (1, "")
    assert options["logfile"] == logfile
    assert options["logger"] is None
    assert isinstance(options.console_observer(), FileLogObserver)
    assert options.subOptions.command == ("cat",)


def test_the_log_goes_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stdout", terminal)
    publisher = LogPublisher(script.console_observer())
    Logger("x", observer=publisher).warn("almost {what}", what="full")
    assert terminal.getvalue().endswith(" warning: almost full\n")


@pytest.mark.parametrize("name", ["status", "end", "reload"])
def test_a_command_for_a_running_bridge_starts_none(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "runApp", lambda options: pytest.fail("a bridge was started"))
    monkeypatch.setattr("sys.argv", ["mcpbridge", name, "--help"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 0
    assert f"Usage: mcpbridge {name}" in capsys.readouterr().out
