"""
Checks that a test leaves nothing behind: no delayed call, reader, descriptor
or child process, and no failure that nobody handled.

Twisted reports a dropped Deferred with a failure when it is garbage collected,
which takes most of the time.  So a unit test collects only young objects, and
each module of unit tests the others.  Only integration and end-to-end tests may
start processes, so only they look for children.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater
from twisted.logger import LogLevel, globalLogPublisher

PUBLISHER: Any = globalLogPublisher

#: The failures that a test expects, kept in its stash by the fixture `logged_failures`.
EXPECTED: pytest.StashKey[list[Any]] = pytest.StashKey()
#: Seconds in which leftovers may still go away; no assertion is about this time.
PATIENCE = 20.0

#: Generations for `gc.collect`.
YOUNG = 1
ALL = 2

#: Descriptors that the reactor and Python open once and keep.
_TOLERATED = ("anon_inode:[eventpoll]",)


@contextmanager
def failures_logged() -> Iterator[list[Any]]:
    """Collect the failures that are logged as critical during the block."""
    failures: list[Any] = []

    def observe(event: Any) -> None:
        if event["log_level"] is LogLevel.critical and "log_failure" in event:
            failures.append(event["log_failure"])

    PUBLISHER.addObserver(observe)
    try:
        yield failures
    finally:
        PUBLISHER.removeObserver(observe)


@contextmanager
def no_failure(node: pytest.Item | pytest.Collector, generation: int) -> Iterator[None]:
    """Collect this generation of garbage at the end; fail if a failure was logged."""
    with failures_logged() as failures:
        try:
            yield
        finally:
            gc.collect(generation)
    expected = node.stash.get(EXPECTED, [])
    unexpected = [failure for failure in failures if failure not in expected]
    assert not unexpected, f"failures were logged: {unexpected}"


class Leftovers:
    """The state of the reactor and the process before a test, to compare with afterwards."""

    def __init__(self, reactor: Any, processes: bool) -> None:
        self._reactor = reactor
        self._processes = processes
        self._calls = set(reactor.getDelayedCalls())
        self._readers = set(reactor.getReaders())
        self._descriptors = descriptors()
        self._children = children() if processes else set()

    def found(self) -> dict[str, Any]:
        """Return everything that is new since then, by kind."""
        new: dict[str, Any] = {
            "delayed calls": [c for c in self._reactor.getDelayedCalls() if c not in self._calls],
            "readers": [r for r in self._reactor.getReaders() if r not in self._readers],
            "children": children() - self._children if self._processes else set(),
            "descriptors": sorted(descriptors() - self._descriptors),
        }
        return {kind: items for kind, items in new.items() if items}

    def wait(self) -> None:
        """Wait until nothing new is left; fail after PATIENCE seconds."""
        deadline = time.monotonic() + PATIENCE
        while found := self.found():
            assert time.monotonic() < deadline, f"the test left behind: {found}"
            pytest_twisted.blockon(deferLater(self._reactor, 0.025))


def descriptors() -> set[tuple[str, str]]:
    """Return the open descriptors as (number, target), without regular files."""
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


def children() -> set[int]:
    """Return this process's children, zombies included."""
    me = str(os.getpid())
    found = set()
    try:
        names = os.listdir("/proc")
        # Quicker to ask than whose child each process is.
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        # No /proc, or no child (ECHILD).
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
