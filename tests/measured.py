"""
A pytest plugin for `make coverage`, loaded with `-p tests.measured`.

Record in coverage which package a test belongs to, so that each package without
I/O can be required to be covered by its own tests.  Processes that tests start
are not measured: bridges and backends would run much more slowly.
"""

import os
import threading
from typing import Any

import pytest
from coverage import Coverage

#: The folders of tests that have a context of their own.
SANS_IO = ("jsonrpc", "mcp", "translation")


def pytest_configure(config: pytest.Config) -> None:
    """Measure this process and the workers of pytest-xdist, and no process that a test starts."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        os.environ.pop("COVERAGE_PROCESS_CONFIG", None)


#: What coverage measures new threads with, while it is put aside; None otherwise.
_of_threads: Any = None


def _measure_threads(wanted: bool) -> None:
    """
    Measure new threads, or not.

    Threads of end-to-end tests are clients.  Where several begin at one time, Python 3.11 may
    fail to begin one that is measured ("Cannot install a trace function while another trace
    function is being installed").
    """
    global _of_threads
    if wanted and _of_threads is not None:
        threading.settrace(_of_threads)
        _of_threads = None
    elif not wanted and _of_threads is None and threading.gettrace() is not None:
        _of_threads = threading.gettrace()
        threading.settrace(None)


#: The room of the tests that run; empty until the first, while modules are imported.
_room = ""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """Name the room of the test; where it changes only, as coverage stores its data each time."""
    global _room
    coverage = Coverage.current()
    _measure_threads("e2e" not in item.path.parts)
    room = item.path.parent.name
    if room not in SANS_IO or item.path.parent.parent.name != "unit":
        room = "other"
    if coverage is not None and room != _room:
        coverage.switch_context(room)
        _room = room
