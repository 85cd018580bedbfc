"""What the runner of the conformance suite makes of its results."""

import json
from pathlib import Path
from typing import Any

from tests.conformance.run import POLLING, RESUMED, Outcome, Suite, judge, results

SUITE = Suite("of a test", "no-package", (), 2)
WENT_WELL = [{"id": "ping", "status": "SUCCESS"}]
RESUMED_WELL = [{"id": RESUMED, "status": "SUCCESS"}]


def outcome(folder: Path, **scenarios: Any) -> Outcome:
    for name, checks in scenarios.items():
        each = folder / f"server-{name.replace('_', '-')}-2026-11-23T06-33-11-951Z"
        each.mkdir()
        if checks is not None:
            (each / "checks.json").write_text(json.dumps(checks))
    return Outcome(SUITE, results(folder), "all that it printed")


def told(folder: Path, capsys: Any, **scenarios: Any) -> tuple[int, list[str]]:
    status = judge([outcome(folder, **scenarios)])
    return status, capsys.readouterr().out.splitlines()


def test_all_is_well(tmp_path: Path, capsys: Any) -> None:
    lines = ["conformance of a test: 2/2"]
    assert told(tmp_path, capsys, ping=WENT_WELL, server_sse_polling=RESUMED_WELL) == (0, lines)


def test_a_failure_is_told_and_counted(tmp_path: Path, capsys: Any) -> None:
    failed = [*WENT_WELL, {"id": "ping", "status": "FAILURE", "errorMessage": "no answer"}]
    status, lines = told(tmp_path, capsys, ping=failed, server_sse_polling=RESUMED_WELL)
    assert status == 1
    assert lines == ["of a test ping: FAILURE ping: no answer", "conformance of a test: 1/2"]


def test_a_warning_is_told_but_is_no_failure(tmp_path: Path, capsys: Any) -> None:
    late = [{"id": RESUMED, "status": "WARNING", "details": {"statusCode": 409}}]
    status, lines = told(tmp_path, capsys, ping=WENT_WELL, server_sse_polling=late)
    assert status == 1
    assert lines == [
        f'of a test {POLLING}: WARNING {RESUMED}: {{"statusCode": 409}}',
        "conformance of a test: 2/2",
    ]


def test_a_resumption_that_was_not_tried_is_told(tmp_path: Path, capsys: Any) -> None:
    status, lines = told(tmp_path, capsys, ping=WENT_WELL, server_sse_polling=[])
    assert status == 1
    assert lines == [
        f"of a test {POLLING}: no stream was resumed: {{}}",
        "conformance of a test: 2/2",
    ]


def test_scenarios_that_break_off_or_are_missing_are_told(tmp_path: Path, capsys: Any) -> None:
    status, lines = told(tmp_path, capsys, server_sse_polling=RESUMED_WELL)
    assert status == 1
    assert lines[0] == "of a test 1 scenarios were run, not 2:"
    status, lines = told(tmp_path, capsys, ping=None)
    assert lines == ["of a test ping: broke off", "conformance of a test: 1/2"]
