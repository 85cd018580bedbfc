"""
The outcomes of the matrix as Markdown, and their place in the documents.

Knows outcomes and tables; must not know where outcomes come from.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from tests.matrix.cells import BACKENDS, NO_REVISION, OPERATIONS, ROWS, SDKS, Outcome

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs" / "compatibility.md"
BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"
OK, FAILED, ABSENT = "\N{CHECK MARK}", "\N{BALLOT X}", "\N{EN DASH}"

_BLOCK = re.compile(f"^{BEGIN}\n.*?^{END}$", re.MULTILINE | re.DOTALL)
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class Footnotes:
    """Sentences by number, in the order in which they are first needed."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def absent(self, sentence: str) -> str:
        """The sign of what is absent, with the raised number of the sentence that says why."""
        number = self._numbers.setdefault(sentence, len(self._numbers) + 1)
        return ABSENT + str(number).translate(_RAISED)

    def lines(self) -> list[str]:
        """All sentences, a paragraph each."""
        notes = []
        for sentence, number in self._numbers.items():
            raised = str(number).translate(_RAISED)
            notes += ["", f"{raised} {sentence[0].upper()}{sentence[1:]}."]
        return notes


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _known(known: bool, footnotes: Footnotes) -> str:
    return OK if known else footnotes.absent(NO_REVISION)


def _cell(outcomes: list[Outcome], footnotes: Footnotes) -> str:
    """What the SDKs of one kind of client have come to, in a few signs."""
    signs = []
    for outcome in outcomes:
        if outcome.ok:
            sign = OK
        elif outcome.absent:
            sign = footnotes.absent(outcome.absent)
        else:
            sign = FAILED
        signs.append(sign)
    # one sign for what they agree on, and the name of each where they do not
    if len(set(signs)) == 1:
        return signs[0]
    return ", ".join(f"{one.sdk} {sign}" for one, sign in zip(outcomes, signs, strict=True))


def table(outcomes: list[Outcome]) -> list[str]:
    """All outcomes as lines of Markdown: who the clients are, and a table for each backend."""
    footnotes = Footnotes()
    lines = [_row(["client", *(f"{sdk.package} {sdk.version}" for sdk in SDKS.values())])]
    lines.append(_row(["---"] * (len(SDKS) + 1)))
    lines += [
        _row([row.title, *(_known(name in row.sdks, footnotes) for name in SDKS)])
        for row in ROWS.values()
    ]
    for backend, title in BACKENDS.items():
        lines += ["", f"**{title}**", ""]
        lines += [_row(["client", *OPERATIONS.values()]), _row(["---"] * (len(OPERATIONS) + 1))]
        for name, row in ROWS.items():
            mine = [each for each in outcomes if (each.row, each.backend) == (name, backend)]
            cells = [[each for each in mine if each.op == op] for op in OPERATIONS]
            lines.append(_row([row.title, *(_cell(each, footnotes) for each in cells)]))
    return lines + footnotes.lines()


def with_table(document: str, outcomes: list[Outcome]) -> str:
    """The document with the table of these outcomes; raises ValueError if it has no place."""
    block = "\n".join([BEGIN, *table(outcomes), END])
    written, places = _BLOCK.subn(lambda found: block, document)
    if places != 1:
        raise ValueError(f"{places} places for the table")
    return written
