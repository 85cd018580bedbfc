"""
What every test gets: a check that it left nothing behind.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, settings
from twisted.internet.task import deferLater
from twisted.logger import LogLevel, formatEvent, globalLogPublisher

PUBLISHER: Any = globalLogPublisher

#: Descriptors that the reactor and Python open once and keep.
_TOLERATED = ("anon_inode:[eventpoll]",)
#: How long a test's leavings may take to go; nothing is proven by it.
PATIENCE = 20.0

# No property is about time, and a machine may stand still in any example.
settings.register_profile(
    "patient",
    parent=settings.get_profile(settings.get_current_profile_name()),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("patient")


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
    running = running_reactor
    calls = set(running.getDelayedCalls())
    readers = set(running.getReaders())
    descriptors = _descriptors()
    children = _children()
    failures: list[Any] = []

    def observe(event: Any) -> None:
        if event["log_level"] is LogLevel.critical and "log_failure" in event:
            failures.append(event["log_failure"])

    PUBLISHER.addObserver(observe)
    try:
        yield
        gc.collect()
    finally:
        PUBLISHER.removeObserver(observe)
    expected = request.node.stash.get(_EXPECTED, [])
    unexpected = [failure for failure in failures if failure not in expected]
    assert not unexpected, f"failures were logged: {unexpected}"
    left: dict[str, Any] = {}
    deadline = time.monotonic() + PATIENCE
    while True:
        left = {
            "delayed calls": [c for c in running.getDelayedCalls() if c not in calls],
            "readers": [r for r in running.getReaders() if r not in readers],
            "children": _children() - children,
            "descriptors": sorted(_descriptors() - descriptors),
        }
        if not any(left.values()):
            return
        if time.monotonic() > deadline:
            break
        pytest_twisted.blockon(deferLater(running, 0.025))
    raise AssertionError(f"the test left behind: { {k: v for k, v in left.items() if v} }")


_EXPECTED: pytest.StashKey[list[Any]] = pytest.StashKey()


@pytest.fixture
def logged_failures(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    """The failures that the test has logged, which then do not fail it."""
    collected: list[Any] = []
    request.node.stash[_EXPECTED] = collected

    def observe(event: Any) -> None:
        if event["log_level"] is LogLevel.critical and "log_failure" in event:
            collected.append(event["log_failure"])

    PUBLISHER.addObserver(observe)
    yield collected
    gc.collect()
    PUBLISHER.removeObserver(observe)


@pytest.fixture
def log_lines() -> Iterator[list[str]]:
    """What is logged during the test, formatted."""
    lines: list[str] = []

    def observe(event: Any) -> None:
        lines.append(formatEvent(event))

    PUBLISHER.addObserver(observe)
    yield lines
    PUBLISHER.removeObserver(observe)


def _descriptors() -> set[tuple[str, str]]:
    """Open descriptors, as (number, what it is)."""
    found = set()
    try:
        names = os.listdir("/proc/self/fd")
    except OSError:
        return set()
    for name in names:
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if not target.startswith(("/", *_TOLERATED)):
            found.add((name, target))
    return found


def _children() -> set[int]:
    """Own children, zombies among them."""
    me = str(os.getpid())
    found = set()
    try:
        names = os.listdir("/proc")
    except OSError:
        return set()
    for name in names:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    fields = file.read().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[1] == me:
                found.add(int(name))
    return found
