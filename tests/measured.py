"""
A pytest plugin for `make coverage`, loaded with `-p tests.measured`.

Tells coverage which room a test is of, so that each room without I/O can be
held to what its own tests reach.  Processes that tests start are not
measured: bridges and backends would start and run much more slowly.
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
    """Name the room of the test while it runs."""
    coverage = Coverage.current()
    room = item.path.parent.name
    own = room in SANS_IO and item.path.parent.parent.name == "unit"
    if coverage is not None:
        coverage.switch_context(room if own else "other")
    try:
        return (yield)
    finally:
        if coverage is not None:
            coverage.switch_context("")
