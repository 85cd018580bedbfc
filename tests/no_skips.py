"""
A pytest plugin for CI, loaded with `-p tests.no_skips`: a skip is a failure.

A skip says that this machine lacks something.  On a laptop that is news; on
the machine that is to prove the whole, it would be a hole in the proof.
"""

from collections.abc import Generator
from typing import TypeVar

import pytest

R = TypeVar("R", pytest.TestReport, pytest.CollectReport)


def _refuse(report: R) -> R:
    """Turn a report of a skip into that of a failure; an expected failure stays one."""
    if report.skipped and not hasattr(report, "wasxfail"):
        where = report.longrepr
        reason = where[2] if isinstance(where, tuple) else str(where)
        report.outcome = "failed"
        report.longrepr = f"A skip is a failure here. {reason}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge the report of a test, after the plugins that know expected failures."""
    return _refuse((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Judge the report of a module that skips itself as a whole."""
    return _refuse((yield))
