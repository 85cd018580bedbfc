"""What the runner of the conformance suite makes of its results."""

import hashlib
import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.run import (
    MISSES,
    POLLING,
    RESUMED,
    SUITES,
    TOKEN,
    UNCOUNTED,
    Outcome,
    Suite,
    config,
    expected,
    judge,
    main,
    results,
)

SUITE = Suite("of a test", "no-package", (), 2, list)
MODERN = replace(SUITE, modern=True)
WENT_WELL = [{"id": "ping", "status": "SUCCESS"}]
WENT_WRONG = [{"id": "ping", "status": "FAILURE", "errorMessage": "no answer"}]
RESUMED_WELL = [{"id": RESUMED, "status": "SUCCESS"}]
BESIDE = {name.replace("-", "_"): WENT_WELL for name in UNCOUNTED}


def outcome(folder: Path, suite: Suite = SUITE, **scenarios: Any) -> Outcome:
    for name, checks in scenarios.items():
        each = folder / f"server-{name.replace('_', '-')}-2026-11-23T06-33-11-951Z"
        each.mkdir()
        if checks is not None:
            (each / "checks.json").write_text(json.dumps(checks))
    return Outcome(suite, results(folder), "all that it printed")


def told(folder: Path, capsys: Any, suite: Suite = SUITE, **scenarios: Any) -> tuple[int, Any]:
    status = judge([outcome(folder, suite, **scenarios)])
    return status, capsys.readouterr().out.splitlines()


def test_all_is_well(tmp_path: Path, capsys: Any) -> None:
    lines = ["conformance of a test: 2/2"]
    assert told(tmp_path, capsys, ping=WENT_WELL, server_sse_polling=RESUMED_WELL) == (0, lines)


def test_a_run_with_a_token_is_told_apart(tmp_path: Path, capsys: Any) -> None:
    found = outcome(tmp_path, ping=WENT_WELL, server_sse_polling=RESUMED_WELL)
    assert judge([replace(found, auth=True)]) == 0
    assert capsys.readouterr().out == "conformance of a test with a token: 2/2\n"


def test_the_server_of_a_suite_needs_the_token(tmp_path: Path) -> None:
    def auth_of(**settings: bool) -> Any:
        path = config(replace(SUITE, backend=lambda: ["server"]), tmp_path, "", **settings)
        return json.loads(path.read_text())["mcpServers"]["conformance"].get("auth")

    assert auth_of() is None
    [token] = auth_of(auth=True)["tokens"].values()
    assert token == {"sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}


def test_a_failure_is_told_and_counted(tmp_path: Path, capsys: Any) -> None:
    failed = [*WENT_WELL, *WENT_WRONG]
    status, lines = told(tmp_path, capsys, ping=failed, server_sse_polling=RESUMED_WELL)
    assert status == 1
    assert lines == ["of a test ping: FAILURE ping: no answer", "conformance of a test: 1/2"]


def test_failures_of_one_check_are_told_each(tmp_path: Path, capsys: Any) -> None:
    failed = [*WENT_WRONG, {**WENT_WRONG[0], "errorMessage": "no answer again"}]
    _, lines = told(tmp_path, capsys, ping=failed, server_sse_polling=RESUMED_WELL)
    assert lines[:2] == [
        "of a test ping: FAILURE ping: no answer",
        "of a test ping: FAILURE ping: no answer again",
    ]


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


def test_a_modern_suite_resumes_nothing_and_does_not_count_all(tmp_path: Path, capsys: Any) -> None:
    ran = {"ping": WENT_WELL, "discover": WENT_WELL, **BESIDE}
    assert told(tmp_path, capsys, MODERN, **ran) == (0, ["conformance of a test: 2/2"])


def test_what_does_not_count_is_to_be_run_and_to_go_well(tmp_path: Path, capsys: Any) -> None:
    first, second, third = BESIDE
    ran = {"ping": WENT_WELL, "discover": WENT_WELL, first: WENT_WELL, second: WENT_WRONG}
    status, lines = told(tmp_path, capsys, MODERN, **ran)
    assert status == 1
    assert lines == [
        f"of a test {second.replace('_', '-')}: FAILURE ping: no answer",
        f"of a test {third.replace('_', '-')}: was not run",
        "conformance of a test: 2/2",
    ]


def test_an_extension_is_left_out(tmp_path: Path, capsys: Any) -> None:
    ran = {"ping": WENT_WELL, "discover": WENT_WELL, "tasks_lifecycle": WENT_WRONG, **BESIDE}
    assert told(tmp_path, capsys, MODERN, **ran)[0] == 0


def test_an_extension_has_a_run_of_its_own(tmp_path: Path, capsys: Any) -> None:
    suite = replace(MODERN, scenarios=1, extension=True)
    for name, checks in {"tasks_lifecycle": WENT_WRONG, "ping": WENT_WELL}.items():
        outcome(tmp_path, suite, **{name: checks})
    found = results(tmp_path, extension=True)
    assert judge([Outcome(suite, found, "all that it printed")]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "of a test tasks-lifecycle: FAILURE ping: no answer",
        "conformance of a test: 0/1",
    ]


def missing(folder: Path, capsys: Any, check: str, found: Any) -> tuple[int, list[str]]:
    ran = outcome(folder, MODERN, ping=found, discover=WENT_WELL, **BESIDE)
    status = judge([replace(ran, expected={("ping", check): "it cannot"})])
    return status, capsys.readouterr().out.splitlines()


def test_a_miss_that_is_expected_is_no_complaint_but_does_not_pass(
    tmp_path: Path, capsys: Any
) -> None:
    lines = ["conformance of a test: 1/2"]
    assert missing(tmp_path, capsys, "ping", WENT_WRONG) == (0, lines)


def test_a_miss_that_is_expected_and_passes_is_told(tmp_path: Path, capsys: Any) -> None:
    status, lines = missing(tmp_path, capsys, "ping", WENT_WELL)
    assert status == 1
    assert lines == [
        "of a test ping: ping is expected to be missed, and was not",
        "conformance of a test: 2/2",
    ]


def test_another_check_of_the_scenario_is_told(tmp_path: Path, capsys: Any) -> None:
    found = [*WENT_WRONG, {"id": "pong", "status": "FAILURE", "errorMessage": "none"}]
    status, lines = missing(tmp_path, capsys, "ping", found)
    assert status == 1
    assert lines == ["of a test ping: FAILURE pong: none", "conformance of a test: 1/2"]


def test_every_miss_that_is_expected_has_a_suite_and_a_reason() -> None:
    """Only a backend that is legacy alone misses anything."""
    [suite] = tomllib.loads(MISSES.read_text())
    assert suite == "2026-07-28 (legacy-only backend)"
    assert suite in {each.name for each in SUITES}
    misses = expected(suite)
    assert misses
    assert all(scenario and check and why.strip() for (scenario, check), why in misses.items())


def test_the_suites_have_names_of_their_own() -> None:
    assert len({suite.name for suite in SUITES}) == len(SUITES)


def test_a_name_of_no_suite_is_refused(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["--only", "no such suite"])
    assert "no such suite" in capsys.readouterr().err
