"""
Fixtures of every test, and the check that it leaves nothing behind.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, settings
from twisted.internet.task import deferLater
from twisted.logger import formatEvent

from tests.examples import FULL, QUICK
from tests.leftovers import ALL, EXPECTED, PUBLISHER, Leftovers, failures_logged, no_failure

# No property is about time, and a machine may stand still in any example.
# `--hypothesis-profile quick` is for the inner loop; the other is complete.
for name, number in (("full", FULL), ("quick", QUICK)):
    settings.register_profile(
        name,
        parent=settings.get_profile(settings.get_current_profile_name()),
        max_examples=number,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile("full")


def pytest_configure() -> None:
    """
    What starts the tests may ignore signals (nohup, a shell's background
    job), and every process that the tests start would inherit that.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    # Bridges of tests keep their state files to themselves.
    os.environ["STATE_DIRECTORY"] = tempfile.mkdtemp(prefix="mcpbridge-tests-")


def pytest_unconfigure() -> None:
    """What the state files were in."""
    shutil.rmtree(os.environ.pop("STATE_DIRECTORY", ""), ignore_errors=True)


def pytest_collection_finish() -> None:
    """What is there before the first test need not be looked at after each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def running_reactor() -> Any:
    """The reactor, running, so that what belongs to itself is there before any test."""
    from twisted.internet import reactor

    pytest_twisted.blockon(deferLater(reactor, 0))
    return reactor


@pytest.fixture(autouse=True)
def left_nothing(request: pytest.FixtureRequest, running_reactor: Any) -> Iterator[None]:
    """
    Fail a test that leaves delayed calls, readers, children, descriptors or
    unhandled failures behind.  A test that provokes failures takes the
    fixture `logged_failures` and looks at them.
    """
    before = Leftovers(running_reactor, processes=True)
    with no_failure(request.node, ALL):
        yield
    before.wait()


@pytest.fixture
def logged_failures(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """Return the failures that the test has logged, which then do not fail it."""
    with failures_logged() as collected:
        request.node.stash[EXPECTED] = collected
        yield collected
        gc.collect()


@pytest.fixture
def log_lines() -> Iterator[list[str]]:
    """What is logged during the test, formatted."""
    lines: list[str] = []

    def observe(event: Any) -> None:
        lines.append(formatEvent(event))

    PUBLISHER.addObserver(observe)
    yield lines
    PUBLISHER.removeObserver(observe)
