"""
The command `mcpbridge status`: shows what a running bridge does, once or all the time.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, TextIO

from mcpbridge.admin_client import (
    FAILED,
    FAILING,
    FINE,
    WRONG_USE,
    AdminClient,
    CannotReach,
    Denied,
    WrongUse,
    find_client,
    parse,
    shown,
)
from mcpbridge.config.masking import printable
from mcpbridge.status_text import Style, is_failing, status_lines

USAGE = """\
Usage: mcpbridge status [options]

Show what a running bridge does: its servers and why one fails, its sessions, what it has
refused.  The bridge must run on this machine, as the same user.

Options:
  --json         Print the status as JSON.
  --watch        Show it again every 2 s, until Ctrl-C; with --json, a line each time.
  --socket PATH  The admin socket of the bridge, or the directory that it is in.
  -h, --help     Print this help and exit.

The exit status is 0 if all is well, 1 if no bridge can be reached, or a bridge that is
watched has stopped, 2 for wrong use, and 3 if a server is failing.
"""

#: How wide the text may be where it does not go to a terminal, in columns.
_UNLIMITED = 10_000
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _TO_END_OF_LINE, _TO_END = "\x1b[H", "\x1b[K", "\x1b[J"

#: Writes a status document.
_Show = Callable[[dict[str, Any]], None]


def status_command(arguments: Sequence[str]) -> int:
    """Run the command with its arguments; return the exit status."""
    try:
        options, _ = parse(arguments, ["json", "watch", "socket="], 0)
    except WrongUse as error:
        print(f"mcpbridge status: {printable(str(error))}\n\n{USAGE}", end="", file=sys.stderr)
        return WRONG_USE
    if "help" in options:
        print(USAGE, end="")
        return FINE
    try:
        client = find_client(options.get("socket"), os.environ)
        if "watch" in options:
            return _watch(client, in_json="json" in options)
        document = client.status()
        _print(document, in_json="json" in options)
        sys.stdout.flush()
    except (CannotReach, Denied) as error:
        print(f"mcpbridge status: {shown(error)}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        return _reader_left()
    except (AttributeError, KeyError, TypeError, ValueError):
        text = "what answers at this socket is no mcpbridge, or one of another version"
        print(f"mcpbridge status: {text}", file=sys.stderr)
        return FAILED
    return FAILING if is_failing(document) else FINE


def _print(document: dict[str, Any], *, in_json: bool) -> None:
    if in_json:
        print(json.dumps(document))
    else:
        print("\n".join(status_lines(document, style_of(sys.stdout, os.environ))))


def style_of(output: TextIO, environment: Mapping[str, str]) -> Style:
    """Return how a text looks where it goes; only a terminal has colours (no-color.org)."""
    if not output.isatty():
        columns = environment.get("COLUMNS", "")
        return Style(int(columns) if columns.isdecimal() else _UNLIMITED)
    plain = environment.get("NO_COLOR") or environment.get("TERM") == "dumb"
    return Style(shutil.get_terminal_size().columns, colours=not plain)


def _watch(client: AdminClient, *, in_json: bool) -> int:
    """Show the status until the bridge stops or the user has seen enough."""
    on_screen = sys.stdout.isatty() and not in_json
    with suppress(KeyboardInterrupt):
        try:
            with _screen(sys.stdout) if on_screen else _as_it_is(in_json=in_json) as show:
                for document in client.events():
                    show(document)
        except BrokenPipeError:
            return _reader_left()
        text = f"the bridge at {client.path} has stopped, or stands still"
        print(f"mcpbridge status: {text}", file=sys.stderr)
        return FAILED
    return FINE


@contextmanager
def _as_it_is(*, in_json: bool) -> Iterator[_Show]:
    """Print one after the other."""

    def show(document: dict[str, Any]) -> None:
        _print(document, in_json=in_json)
        if not in_json:
            print()
        sys.stdout.flush()

    yield show


@contextmanager
def _screen(output: TextIO) -> Iterator[_Show]:
    """Show each in the place of the one before, and have the screen as it was at the end."""

    def show(document: dict[str, Any]) -> None:
        size = shutil.get_terminal_size()
        lines = islice(status_lines(document, style_of(output, os.environ)), max(1, size.lines - 1))
        text = "".join(f"{line}{_TO_END_OF_LINE}\n" for line in lines)
        output.write(f"{_HOME}{text}{_TO_END}")
        output.flush()

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    output.write(_ENTER)
    try:
        yield show
    finally:
        signal.signal(signal.SIGTERM, before)
        output.write(_LEAVE)
        output.flush()


def _reader_left() -> int:
    """Leave quietly: the reader of the output, such as `head`, has left."""
    # The interpreter flushes stdout once more when it exits, and must not fail then.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    return FINE
