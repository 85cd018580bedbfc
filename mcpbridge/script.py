"""
The console script `mcpbridge`: `twistd --nodaemon mcpbridge` without a pid file,
and with a log that is written for people.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache

from twisted.logger import (
    FileLogObserver,
    ILogObserver,
    LogEvent,
    LogLevel,
    eventAsText,
    formatTime,
)
from twisted.scripts.twistd import ServerOptions, runApp  # type: ignore[attr-defined]

from mcpbridge.token_command import token_command


class ConsoleOptions(ServerOptions):
    """The options of twistd, as the console script sets them."""

    #: The name of the program in the help.
    program = "mcpbridge"

    def console_observer(self) -> ILogObserver:
        """Make the observer that writes the log to the terminal, where there is no other."""
        return console_observer()


def main() -> None:
    """Run twistd with the arguments of this command, or the command that they name."""
    if sys.argv[1:2] == ["token"]:
        sys.exit(token_command(sys.argv[2:]))
    if sys.argv[1:2] == ["check"]:
        from mcpbridge.check_command import check_command

        sys.exit(check_command(sys.argv[2:]))
    if sys.argv[1:2] == ["schema"]:
        from mcpbridge.schema_command import schema_command

        sys.exit(schema_command(sys.argv[2:]))
    if sys.argv[1:2] == ["status"]:
        from mcpbridge.status_command import status_command

        sys.exit(status_command(sys.argv[2:]))
    if sys.argv[1:2] in (["end"], ["reload"]):
        from mcpbridge.control_commands import end_command, reload_command

        command = end_command if sys.argv[1] == "end" else reload_command
        sys.exit(command(sys.argv[2:]))
    options = ConsoleOptions()
    options.parseOptions(["--nodaemon", "--pidfile=", "mcpbridge", *sys.argv[1:]])
    runApp(options)


def console_observer() -> ILogObserver:
    """Make the observer that writes the log to the terminal."""
    return FileLogObserver(sys.stdout, console_line)


#: Lines that Twisted logs about itself at every start and stop.
_TWISTEDS_OWN = re.compile(
    r"(twistd \S+ \(.*\) starting up|reactor class: |Server Shut Down|Main loop terminated)"
    r"|(Starting|Stopping) factory "
    r"|\w+(?: \(TLS\))? starting on \S+$"
    r"|\(\w+ Port .* Closed\)$"
)


def console_line(event: LogEvent) -> str | None:
    """
    Format an event as a line for people: the time, the level if it is a warning or
    worse, and the text; a traceback follows in lines of its own.

    Return None for what Twisted logs about itself at every start and stop.
    """
    text = _text(event)
    level = event.get("log_level", LogLevel.info)
    if not text:
        return None
    prefix = ""
    if level >= LogLevel.warn:
        prefix = "warning: " if level is LogLevel.warn else f"{level.name}: "
    elif _TWISTEDS_OWN.match(text):
        return None
    return f"{_time(event)} {prefix}{text}".replace("\n", "\n\t") + "\n"


def _text(event: LogEvent) -> str:
    """
    Return the text of an event as Twisted formats it.

    Beyond `str.format` Twisted allows calls in a format, as in `{name()}`, and so formats
    in Python, which takes ten times as long.  A format without calls needs none of that.
    """
    text = event.get("log_format")
    if type(text) is str and "()" not in text and event.keys().isdisjoint(_SPECIAL):
        try:
            return text.format_map(event)
        except Exception:
            # Twisted's text says what is wrong with the format.
            pass
    return eventAsText(event, includeTimestamp=False, includeSystem=False)


#: Members of events that Twisted formats in another way, or below the text.
_SPECIAL = frozenset({"log_failure", "log_flattened"})


def _time(event: LogEvent) -> str:
    when = event.get("log_time")
    return formatTime(None) if when is None else _time_of_second(int(when))


@lru_cache(1)
def _time_of_second(second: int) -> str:
    """Format a time; most events are of the same second as the one before."""
    return formatTime(float(second))
