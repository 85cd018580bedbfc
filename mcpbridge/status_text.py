"""
The status of a bridge as text for a terminal.

Knows the status document and how wide a terminal is; must not know where it comes from.  All
that servers and clients have written is shown without control characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any, NamedTuple
from unicodedata import combining, east_asian_width

from mcpbridge.config.masking import printable

#: To fit a terminal, columns with texts are not made narrower than this.
_NARROWEST = 12
#: The columns of the tables, the most important first, and those with texts of any length.
_SERVER_COLUMNS = ("SERVER", "STATE", "SESSIONS", "PROCESSES", "REQUESTS", "ERRORS", "P50", "P95")
_SESSION_COLUMNS = (
    *("SESSION", "SERVER", "STATE", "AGE", "CLIENT", "IDENTITY", "TRANSPORT"),
    *("PID", "IN", "OUT", "MEMORY"),
)
_ELASTIC = frozenset({"SERVER", "PROCESSES", "CLIENT", "IDENTITY"})
_MORE = "…"
#: How many failures of a server that does not work are shown.
SHOWN_FAILURES = 2
#: A failure of a server that works is shown for so many seconds.
RECENT_SECONDS = 300

_COLOURS = {"green": "32", "red": "31", "yellow": "33", "bold": "1", "dim": "2"}
_STATES = {"ready": "green", "failing": "red", "starting": "yellow", "draining": "yellow"}
_CONDITIONS = {"serving": "green", "draining": "yellow", "stopping": "red"}

Document = Mapping[str, Any]


class Style(NamedTuple):
    """How wide the text may be, in columns, and whether it has colours."""

    width: int
    colours: bool = False

    def paint(self, text: str, colour: str | None) -> str:
        """Return a text in a colour."""
        if not self.colours or colour is None or not text:
            return text
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


class Cell(NamedTuple):
    """A cell of a table; its text is printable."""

    text: str
    colour: str | None = None


def _readable(found: Any) -> Any:
    """Return a part of a document without control characters."""
    if isinstance(found, str):
        return printable(found)
    if isinstance(found, Mapping):
        return {printable(str(key)): _readable(each) for key, each in found.items()}
    if isinstance(found, list):
        return [_readable(each) for each in found]
    return found


def status_lines(document: Document, style: Style) -> Iterator[str]:
    """Yield the lines of a status document, none wider than the terminal."""
    # Whoever answers at the socket need not be a bridge.
    document = _readable(document)
    yield from _head(document, style)
    yield ""
    yield from _table(_SERVER_COLUMNS, [_server(each) for each in document["servers"]], style)
    for each in document["servers"]:
        yield from _problem(each, document["now"], style)
    yield ""
    if document["listed"]:
        rows = [_session(each, document["now"]) for each in document["listed"]]
        yield from _table(_SESSION_COLUMNS, rows, style)
    else:
        yield style.paint(_cut("no sessions", style.width), "dim")
    if document["not_listed"]:
        yield style.paint(_cut(f"and {document['not_listed']} more", style.width), "dim")


def is_failing(document: Document) -> bool:
    """Tell whether a server of a status document fails."""
    return any(each["state"] == "failing" for each in document["servers"])


# The parts.


def _head(document: Document, style: Style) -> Iterator[str]:
    condition = document["condition"]
    age = duration(document["now"] - document["started"])
    text = f"mcpbridge {document['version']}, pid {document['pid']}, {condition}, {age}"
    painted = style.paint(condition, _CONDITIONS.get(condition))
    yield _cut(text, style.width).replace(condition, painted)
    sessions, connections = document["sessions"], document["connections"]
    parts = [
        f"sessions {sessions['live']} of {sessions['limit']}",
        f"connections {connections['open']} of {connections['limit']}",
    ]
    if document["memory_bytes"] is not None:
        parts.append(f"memory {size(document['memory_bytes'])}")
        parts.append(f"{document['descriptors']} descriptors")
    parts.append(f"loop lag {document['loop_lag'] * 1000:.0f} ms")
    yield from _wrapped(", ".join(parts), style)
    refused = dict(document["refusals"])
    for server in document["servers"]:
        for cause, number in server["refusals"].items():
            refused[cause] = refused.get(cause, 0) + number
    if refused:
        yield from _wrapped(f"refused: {_counts(refused)}", style)


def _server(server: Document) -> list[Cell]:
    sessions, latency = server["sessions"], server["latency"]
    state = server["state"]
    return [
        Cell(printable(server["name"])),
        Cell(state, _STATES.get(state)),
        Cell(f"{sessions['live']}/{sessions['limit']}"),
        Cell(_processes(server["processes"])),
        Cell(str(server["requests"])),
        Cell(str(server["errors"]), "yellow" if server["errors"] else None),
        Cell(_seconds(latency["p50"])),
        Cell(_seconds(latency["p95"])),
    ]


def _processes(processes: Mapping[str, int]) -> str:
    """Return how many processes there are, and what those without a session do."""
    others = [f"{count} {use}" for use, count in processes.items() if count and use != "session"]
    total = str(sum(processes.values()))
    return f"{total} ({', '.join(others)})" if others else total


def _problem(server: Document, now: float, style: Style) -> Iterator[str]:
    """Say why a server does not work, and what has failed lately."""
    state, failures = server["state"], server["failures"]
    if state in ("ready", "unused", "draining"):
        failures = [each for each in failures[:1] if now - each["when"] < RECENT_SECONDS]
    if state != "failing" and not failures:
        return
    since = "" if server["since"] is None else f" for {duration(now - server['since'])}"
    retry = f"; next try in {server['retry_in']} s" if server["retry_in"] else ""
    why = f": {printable(server['why'])}" if server["why"] else ""
    yield ""
    head, *more = _wrapped(f"{printable(server['name'])}: {state}{since}{why}{retry}", style)
    yield style.paint(head, _STATES.get(state))
    yield from (style.paint(each, _STATES.get(state)) for each in more)
    for each in failures[:SHOWN_FAILURES]:
        session = f" (session {printable(each['session'])})" if each["session"] else ""
        exits = each["exit"]
        status = f"; {printable(exits)}" if exits and exits not in each["what"] else ""
        what = f"{duration(now - each['when'])} ago: {printable(each['what'])}{status}{session}"
        yield from _wrapped(what, style, "  ")
        for line in each["stderr"]:
            text = printable(line)
            text = text if text.startswith("stdout: ") else f"stderr: {text}"
            yield style.paint(_cut(f"    {text}", style.width), "dim")


def _session(session: Document, now: float) -> list[Cell]:
    memory = session["memory_bytes"]
    return [
        Cell(printable(session["id"]), "bold"),
        Cell(printable(session["server"])),
        Cell(session["state"], "yellow" if session["state"] != "open" else None),
        Cell(duration(now - session["opened"])),
        Cell(printable(session["client"]) or "-"),
        Cell(printable(session["identity"]) or "-"),
        Cell(session["transport"] or "-"),
        Cell("-" if session["pid"] is None else str(session["pid"])),
        Cell(f"{session['messages_in']} ({size(session['bytes_in'])})"),
        Cell(f"{session['messages_out']} ({size(session['bytes_out'])})"),
        Cell("-" if memory is None else size(memory)),
    ]


# Texts.


def duration(seconds: float) -> str:
    """Return a duration in at most two units."""
    rest = max(0, int(seconds))
    if rest < 60:
        return f"{rest} s"
    for unit, length, smaller, part in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if rest >= length:
            more = rest % length // part
            return f"{rest // length} {unit}" + (f" {more} {smaller}" if more else "")
    raise AssertionError("a minute is a unit")


def size(number: float) -> str:
    """Return a number of bytes in a unit of a readable length."""
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 10 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{printable(name)} {count}" for name, count in counts.items())


def _wrapped(text: str, style: Style, indent: str = "") -> list[str]:
    """Return a text in lines of the terminal, indented."""
    width = max(_NARROWEST, style.width)
    found = wrap(text, width, initial_indent=indent, subsequent_indent=indent + "  ")
    return [_cut(each, width) for each in found] or [indent]


# Tables.


def _table(heads: Sequence[str], rows: Sequence[Sequence[Cell]], style: Style) -> Iterator[str]:
    """
    Yield the lines of a table.  Where it is too wide, its columns with texts are cut, and then
    the last ones left out.
    """
    widths = [
        max(map(columns, (head, *(row[at].text for row in rows)))) for at, head in enumerate(heads)
    ]
    elastic = [at for at, head in enumerate(heads) if head in _ELASTIC]
    for at in sorted(elastic, reverse=True):
        excess = _total(widths) - style.width
        if excess > 0:
            widths[at] = max(min(widths[at], _NARROWEST), widths[at] - excess)
    while _total(widths) > style.width and len(widths) > 1:
        widths.pop()
    widths[0] = min(widths[0], style.width)
    yield _line([Cell(each, "bold") for each in heads], widths, style)
    for row in rows:
        yield _line(row, widths, style)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _line(cells: Iterable[Cell], widths: Sequence[int], style: Style) -> str:
    texts = []
    for (text, colour), width in zip(cells, widths, strict=False):
        cut = _cut(text, width)
        texts.append(style.paint(cut, colour) + " " * (width - columns(cut)))
    return "  ".join(texts).rstrip()


def columns(text: str) -> int:
    """Return how many columns of a terminal a printable text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_columns_of, text))


def _columns_of(character: str) -> int:
    if combining(character):
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def _cut(text: str, width: int) -> str:
    """Return a text that takes so many columns at most."""
    if columns(text) <= width:
        return text
    taken, found = 0, []
    for character in text:
        taken += _columns_of(character)
        if taken >= width:
            break
        found.append(character)
    return "".join(found) + (_MORE if width > 0 else "")
