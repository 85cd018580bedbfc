"""
What was found out: errors, warnings, and what would run, as text and as JSON.

Knows how it is shown; must not know how it was found out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from mcpbridge.config.masking import printable

#: The columns of the text.
WIDTH = 80
#: Where the texts about a server begin.
_COLUMN = 14


class Finding(NamedTuple):
    """An error: where it is, and what to do."""

    #: None if it is on the command line.
    file: str | None
    line: int | None
    key: str
    text: str

    def __str__(self) -> str:
        """Return the error as one line, as compilers write theirs."""
        place = f"{self.file}:{self.line}: " if self.line is not None else ""
        key = f"{self.key}: " if self.key else ""
        return printable(f"{place}{key}{self.text}")


@dataclass(frozen=True, kw_only=True)
class ServerReport:
    """What would run of a server: texts by what they are about."""

    name: str
    status: Literal["served", "disabled", "not served"]
    reason: str = ""
    facts: Sequence[tuple[str, Sequence[str]]] = ()


@dataclass(kw_only=True)
class Report:
    """Everything about one file, or one command line."""

    file: str | None
    errors: list[Finding] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    servers: list[ServerReport] = field(default_factory=list)
    bridge: list[tuple[str, Sequence[str]]] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The exit status: 0 if everything would be served as it is written."""
        return 1 if self.errors else 0

    def as_text(self) -> str:
        """Write the report for people."""
        lines = [*map(str, self.errors)]
        if self.errors:
            lines.append("")
        if self.servers:
            lines.append("Servers:")
            for server in self.servers:
                lines += _server_lines(server)
            lines.append("")
        if self.bridge:
            lines += ["Bridge:", *_fact_lines(self.bridge, 2), ""]
        if self.warnings:
            lines.append("Warnings:")
            for each in self.warnings:
                lines += _wrapped("  - ", printable(each), 4)
            lines.append("")
        return "\n".join([*lines, self._summary()])

    def _summary(self) -> str:
        name = "The command line" if self.file is None else self.file
        found = ", ".join(_count(each, what) for each, what in self._counts() if each)
        if self.errors:
            return f"{printable(name)}: {found}."
        rest = f"; {found}" if found else ""
        return f"{printable(name)}: no errors{rest}."

    def _counts(self) -> tuple[tuple[int, str], ...]:
        return (len(self.errors), "error"), (len(self.warnings), "warning")

    def as_json(self) -> dict[str, Any]:
        """Return the report for programs."""
        return {
            "ok": not self.errors,
            "file": self.file,
            "errors": [
                {"file": each.file, "line": each.line, "key": each.key, "message": each.text}
                for each in self.errors
            ],
            "warnings": self.warnings,
            "servers": [
                {
                    "name": each.name,
                    "status": each.status,
                    "reason": each.reason or None,
                    "facts": {key: list(texts) for key, texts in each.facts},
                }
                for each in self.servers
            ],
            "bridge": {key: list(texts) for key, texts in self.bridge},
        }


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _server_lines(server: ServerReport) -> Iterator[str]:
    name = f"  {printable(server.name)}"
    if server.status == "served":
        yield name
        yield from _fact_lines(server.facts, 4)
    else:
        reason = f": {server.reason}" if server.reason else ""
        yield from _wrapped(f"{name}  ", f"{server.status}{reason}", 4)


def _fact_lines(facts: Iterable[tuple[str, Sequence[str]]], indent: int) -> Iterator[str]:
    column = indent + _COLUMN
    for key, texts in facts:
        first = f"{' ' * indent}{key}".ljust(column)
        for text in texts:
            yield from _wrapped(first, printable(text), column)
            first = " " * column


def _wrapped(first: str, text: str, indent: int) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]
