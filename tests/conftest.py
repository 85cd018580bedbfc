"""
Fixtures for all tests, and the check that a test leaves nothing behind.
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
from hypothesis import HealthCheck, Phase, settings
from twisted.internet.task import deferLater
from twisted.logger import formatEvent

from tests.examples import FULL, QUICK
from tests.leftovers import ALL, EXPECTED, PUBLISHER, Leftovers, failures_logged, no_failure

# No property is about time, and a machine may stand still in any example.
# `--hypothesis-profile quick` is for the inner loop; `full` is complete.
for name, number in (("full", FULL), ("quick", QUICK)):
    settings.register_profile(
        name,
        parent=settings.get_profile(settings.get_current_profile_name()),
        max_examples=number,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
# A mutant is to fail or to pass always, and nobody looks at the example it fails with.
settings.register_profile(
    "mutants",
    parent=settings.get_profile("quick"),
    database=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile("full")


def pytest_configure() -> None:
    """
    Restore ignored signals, and set a state directory for the bridges of the tests.

    The tests may have been started with ignored signals (by nohup or in a shell's
    background job), which each process that they start would inherit.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    # The bridges of the tests must not clean up after other bridges.
    os.environ["STATE_DIRECTORY"] = tempfile.mkdtemp(prefix="mcpbridge-tests-")


def pytest_unconfigure() -> None:
    """Remove the state directory."""
    shutil.rmtree(os.environ.pop("STATE_DIRECTORY", ""), ignore_errors=True)


def pytest_collection_finish() -> None:
    """Exclude the objects that exist before the first test from garbage collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def running_reactor() -> Any:
    """Start the reactor, so that its own readers exist before the first test."""
    from twisted.internet import reactor

    pytest_twisted.blockon(deferLater(reactor, 0))
    return reactor


@pytest.fixture(autouse=True)
def left_nothing(request: pytest.FixtureRequest, running_reactor: Any) -> Iterator[None]:
    """
    Fail a test that leaves delayed calls, readers, children, descriptors or
    unhandled failures behind.  A test that provokes failures uses the fixture
    `logged_failures` and checks them.
    """
    before = Leftovers(running_reactor, processes=True)
    with no_failure(request.node, ALL):
        yield
    before.wait()


@pytest.fixture
def logged_failures(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """Return the failures that the test logs; they do not fail the test then."""
    with failures_logged() as collected:
        request.node.stash[EXPECTED] = collected
        yield collected
        gc.collect()


@pytest.fixture
def log_lines() -> Iterator[list[str]]:
    """Return the formatted lines that are logged during the test."""
    lines: list[str] = []

    def observe(event: Any) -> None:
        lines.append(formatEvent(event))

    PUBLISHER.addObserver(observe)
    yield lines
    PUBLISHER.removeObserver(observe)
