"""
The text of `--help`.

Knows options and the width of a terminal; must not know how a command line is
parsed.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mcpbridge.config.options import OPTIONS, Option, default_text, option_of
from mcpbridge.config.settings import COMMON, GROUPS, LOGGING, BridgeSettings

EXAMPLES = """\
Examples:
  mcpbridge npx -y @modelcontextprotocol/server-filesystem /srv/shared
      Serve one MCP server at http://127.0.0.1:8808/mcp and /sse.

  mcpbridge --port 9000 --config mcp.json
      Serve each server in a configuration file, at /NAME/mcp and /NAME/sse.
"""
_INTRODUCTION = """\
Put stdio MCP servers on the network, over Streamable HTTP and HTTP+SSE. COMMAND \
and its ARGs start an MCP server. The bridge runs one copy of it, a backend process, for \
each client session. A configuration file lists one or more servers, in the format that \
MCP clients use.\
"""
_ABOUT_OPTIONS = """\
Options come before COMMAND. A -- between them is optional; everything after COMMAND is \
passed to the server. An option may be shortened as long as it stays unambiguous.\
"""
_ABOUT_SETTINGS = """\
Most options have a setting of the same name in a configuration file: --max-sessions is \
max_sessions. The exceptions are --port and --host, which together are one entry of "listen"; \
--bridge-max-sessions and --bridge-max-sessions-per-address, which are "max_sessions" and \
"max_sessions_per_address" in the file's "bridge" object; --request-state-key-file, because in \
a file "request_state_key" is the key itself; --name, which is a server's key in "mcpServers"; \
and --logfile and --pidfile, which have no setting.\
"""
_ABOUT_CONFIG = """\
With --config, these options are allowed: --port, --host, --logfile, --pidfile, {}. All \
other settings belong to a server: put them in the server's object in the file, or \
in bridge.defaults for all servers.\
"""
_ABOUT_TWISTD = """\
To run as a daemon, as another user, or on another reactor, use twistd and its options. \
For a list of these, run twistd --help. For example:\
"""
_TWISTD = "  twistd --uid=mcp mcpbridge [options] COMMAND"
#: Where the texts of options begin, and how wide they get at most.
_COLUMN = 28
_WIDEST = 100
_NARROWEST = 50


class Entry(NamedTuple):
    """An option that sets no setting by itself."""

    group: str
    spelling: str
    text: str
    default: str = ""


#: Shown before the options of their group.
FIRST = (
    Entry(COMMON, "--port N", "Port to listen on; 0 picks a free one.", "8808"),
    Entry(
        COMMON,
        "--host ADDRESS",
        "IP address or host name to listen on; 0.0.0.0 and :: mean all interfaces.",
        "127.0.0.1",
    ),
    Entry(COMMON, "--config FILE", "Serve the servers listed in a configuration file."),
    Entry(
        COMMON,
        "--check",
        "Say what is wrong with the settings and what would run, and exit; with --json as JSON.",
    ),
)
#: Shown after the options of their group.
LAST = (
    Entry(COMMON, "--version", "Print the version and exit."),
    Entry(COMMON, "-h, --help", "Print this help and exit."),
    Entry(LOGGING, "--logfile FILE", "Write the log to a file, in Twisted's log format."),
    Entry(LOGGING, "--pidfile FILE", "Write the process ID to a file."),
)
#: In place of the texts of the settings, which say less.
_TEXTS = {
    "listen": "Twisted endpoints to listen on, instead of --port and --host.",
}


def help_text(usage: Sequence[str], width: int) -> str:
    """Format the help for a terminal of this width; `usage` holds the command lines."""
    width = max(_NARROWEST, min(width, _WIDEST)) - 1
    first, *others = usage
    lines = [f"Usage: {first}", *(f"       {each}" for each in others), ""]
    lines += [*textwrap.wrap(_INTRODUCTION, width), "", EXAMPLES.rstrip(), ""]
    for group in GROUPS:
        lines += [f"{group}:", *_group(group, width), ""]
    of_bridge = sorted(f"--{each.name}" for each in OPTIONS if each.kind is BridgeSettings)
    about_config = _ABOUT_CONFIG.format(", ".join(of_bridge))
    for text in (_ABOUT_OPTIONS, _ABOUT_SETTINGS, about_config, _ABOUT_TWISTD):
        lines += [*textwrap.wrap(text, width, break_on_hyphens=False), ""]
    return "\n".join([*lines, _TWISTD])


def _group(group: str, width: int) -> Iterator[str]:
    for entry in FIRST:
        if entry.group == group:
            text = f"{entry.text} (default: {entry.default})" if entry.default else entry.text
            yield from _columns(entry.spelling, text, width)
    for option in OPTIONS:
        if option.field.metadata["group"] == group:
            yield from _columns(option.spelling, _text_of(option), width)
    for entry in LAST:
        if entry.group == group:
            yield from _columns(entry.spelling, entry.text, width)


def _text_of(option: Option) -> str:
    """Return the text about an option and its default, naming settings by their options."""
    text = _TEXTS.get(option.setting, option.text)
    if option.repeats:
        text += " Repeat the option for each one."
    default = default_text(option.field)
    if option.form == "secret":
        default = f"no file; {default}"
    if default:
        text += f" (default: {default})"

    def plain(found: re.Match[str]) -> str:
        named = option_of(option.kind, found[1])
        return found[1] if named is None else f"--{named.name}"

    return re.sub(r"`([^`]*)`", plain, text)


def _columns(left: str, text: str, width: int) -> list[str]:
    """Put the text to the right of the option, or below it if the option is long."""
    indent = " " * _COLUMN
    lines = [indent + line for line in textwrap.wrap(text, width - _COLUMN, break_on_hyphens=False)]
    left = f"  {left}"
    if len(left) + 2 > _COLUMN:
        return [left, *lines]
    return [left.ljust(_COLUMN) + lines[0].lstrip(), *lines[1:]]
