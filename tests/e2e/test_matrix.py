"""
The matrix: clients of every revision in front of backends of every era.

The clients and two of the backends are third-party; one bridge, the installed
`twistd mcpbridge` in its own process, connects them all.
"""

from collections.abc import Iterator

import pytest

from tests.matrix.cells import BACKENDS, NEWEST, NO_REVISION, OPERATIONS, ROWS, SDKS, Outcome
from tests.matrix.run import Matrix, matrix
from tests.matrix.table import ABSENT as ABSENT_SIGN
from tests.matrix.table import BEGIN, DOCUMENT, END, FAILED, OK, table, with_table

# In one worker, as each row runs once in each.
pytestmark = pytest.mark.xdist_group("matrix")

#: `twistd` ends by the signal that stopped it, once everything is stopped.
STOPPED = (0,)

#: Operations that a revision lacks, by row and operation.
ABSENT_IN_A_ROW = {
    ("sse", "elicitation"): "the revision has no elicitation",
    ("2025-03-26", "elicitation"): "the revision has no elicitation",
}
#: Operations that a backend lacks, by backend and operation.
ABSENT_AT_A_BACKEND = {
    ("time", "progress"): "the server has no tool that reports progress",
    ("time", "cancel"): "the server has no tool that takes long enough to be cancelled",
    ("time", "elicitation"): "the server has no tool that asks the user",
    ("time", "subscription"): "the server has no resource subscriptions",
}


def absent(row: str, backend: str, op: str) -> str:
    """Return why an operation is not available; empty if it is."""
    return ABSENT_AT_A_BACKEND.get((backend, op)) or ABSENT_IN_A_ROW.get((row, op), "")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    """The matrix; each row runs once, when a test first asks for it."""
    with matrix(tmp_path_factory.mktemp("matrix")) as running:
        yield running
        assert running.bridge.stop() in STOPPED


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_client_works_with_every_backend(row: str, running: Matrix) -> None:
    """Every operation works that both sides support, and nothing else is left out."""
    outcomes = running.row(row)
    done = {(each.sdk, each.backend, each.op) for each in outcomes}
    assert done >= {
        (sdk, backend, op) for sdk in ROWS[row].sdks for backend in BACKENDS for op in OPERATIONS
    }
    wrong = [
        str(each)
        for each in outcomes
        if each.absent != absent(row, each.backend, each.op) or each.ok == bool(each.absent)
    ]
    assert not wrong, "\n".join(wrong)
    spoken = {each.version for each in outcomes if each.op == "connect"}
    assert spoken == {NEWEST if row == "auto" else ROWS[row].revision}


@pytest.mark.slow
def test_documented_table_matches_the_run(running: Matrix) -> None:
    """If not, run `python -m tests.matrix.run --write`, and review the difference."""
    document = DOCUMENT.read_text(encoding="utf-8")
    assert document == with_table(document, running.outcomes())


def every_outcome() -> list[Outcome]:
    """Return the outcomes of a run without a failure."""
    return [
        Outcome(row, sdk, backend, op, ok=not why, absent=why)
        for row in ROWS
        for sdk in ROWS[row].sdks
        for backend in BACKENDS
        for op in OPERATIONS
        for why in [absent(row, backend, op)]
    ]


def test_documented_table_shows_no_failure_and_no_gap() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert document == with_table(document, every_outcome())
    assert FAILED not in document


def test_every_footnote_is_used_and_is_a_sentence() -> None:
    lines = table(every_outcome())
    rows = "\n".join(line for line in lines if line.startswith("|"))
    notes = [line.partition(" ") for line in lines if line and line[0] not in "|*"]
    why = {*ABSENT_AT_A_BACKEND.values(), *ABSENT_IN_A_ROW.values(), NO_REVISION}
    assert len(notes) == len(why)
    for number, _, sentence in notes:
        assert f"{ABSENT_SIGN}{number} " in rows
        assert sentence.endswith(".")


@pytest.mark.parametrize(
    ("changed", "cell"),
    [
        (
            Outcome("auto", "npm-2", "dual", "call", why="a reason"),
            f"python-2 {OK}, npm-2 {FAILED}",
        ),
        (Outcome("auto", "npm-2", "dual", "call", absent="none"), f"npm-2 {ABSENT_SIGN}"),
    ],
    ids=["a failure", "something absent"],
)
def test_cell_names_each_sdk_where_they_differ(changed: Outcome, cell: str) -> None:
    def key(one: Outcome) -> tuple[str, ...]:
        return one.row, one.sdk, one.backend, one.op

    outcomes = [changed if key(one) == key(changed) else one for one in every_outcome()]
    [row] = [line for line in table(outcomes) if cell in line]
    assert row.startswith(f"| {ROWS['auto'].title} |")


def test_document_without_a_marker_for_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="0 places"):
        with_table("# Nothing\n", every_outcome())
    assert with_table(f"{BEGIN}\nold\n{END}\n", every_outcome()).startswith(f"{BEGIN}\n|")


def test_every_sdk_has_an_exact_version() -> None:
    assert all(sdk.version[0].isdigit() for sdk in SDKS.values())
