"""
A pytest plugin for CI, loaded with `-p tests.no_skips`: a skip is a failure.

A test is skipped if the machine lacks something that it needs.  That is fine on
a laptop, but in CI every test has to run.
"""

from collections.abc import Generator
from typing import TypeVar

import pytest

R = TypeVar("R", pytest.TestReport, pytest.CollectReport)


def _refuse(report: R) -> R:
    """Turn the report of a skip into one of a failure, unless the failure was expected."""
    if report.skipped and not hasattr(report, "wasxfail"):
        where = report.longrepr
        reason = where[2] if isinstance(where, tuple) else str(where)
        report.outcome = "failed"
        report.longrepr = f"A skip is a failure here. {reason}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Change the report of a test, after the plugins that handle expected failures."""
    return _refuse((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Change the report of a module that skips itself."""
    return _refuse((yield))
