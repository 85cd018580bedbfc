"""
A pytest plugin for `make coverage`, loaded with `-p tests.measured`.

Record in coverage which package a test belongs to, so that each package without
I/O can be required to be covered by its own tests.  Processes that tests start
are not measured: bridges and backends would run much more slowly.
"""

import os
from collections.abc import Generator

import pytest
from coverage import Coverage

#: The folders of tests that have a context of their own.
SANS_IO = ("jsonrpc", "mcp", "translation")


def pytest_configure(config: pytest.Config) -> None:
    """Measure this process and the workers of pytest-xdist, and no process that a test starts."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Set the context of coverage to the package of the test while it runs."""
    coverage = Coverage.current()
    package = item.path.parent.name
    own = package in SANS_IO and item.path.parent.parent.name == "unit"
    if coverage is not None:
        coverage.switch_context(package if own else "other")
    try:
        return (yield)
    finally:
        if coverage is not None:
            coverage.switch_context("")
