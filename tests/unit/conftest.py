"""
Keep unit tests in memory: one that starts a process or opens a socket fails.

Those belong in `tests/integration`.  As nothing here can leave a process
behind, the check of leftovers is a quick one.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.leftovers import ALL, YOUNG, Leftovers, no_failure

#: Audit events of Python that no unit test may raise.
FORBIDDEN = frozenset(
    {
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.system",
        "socket.bind",
        "socket.connect",
        "subprocess.Popen",
    }
)


HERE = Path(__file__).parent


class Guard:
    """An audit hook, which can never be removed, but does nothing between unit tests."""

    def __init__(self) -> None:
        self.active = False
        self.refused: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Refuse the event; the exception is none that `except Exception` catches."""
        if self.active and event in FORBIDDEN:
            self.refused.append(event)
            pytest.fail(f"a unit test must not raise {event}: see tests/integration")


GUARD = Guard()
sys.addaudithook(GUARD)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Guard a unit test with its fixtures; pytest calls this for tests of other directories too."""
    GUARD.active = HERE in item.path.parents
    try:
        return (yield)
    finally:
        GUARD.active = False


@pytest.fixture(scope="module", autouse=True)
def left_no_failure(request: pytest.FixtureRequest, running_reactor: Any) -> Iterator[None]:
    """Fail a module whose tests dropped a failed Deferred that only a full collection finds."""
    yield
    with no_failure(request.node, ALL):
        pass


@pytest.fixture(autouse=True)
def left_nothing(request: pytest.FixtureRequest, running_reactor: Any) -> Iterator[None]:
    """
    Fail a test that leaves delayed calls, readers, descriptors or unhandled
    failures behind, or that was refused a process or a socket and hid it.
    """
    before = Leftovers(running_reactor, processes=False)
    GUARD.refused.clear()
    with no_failure(request.node, YOUNG):
        yield
    before.wait()
    assert not GUARD.refused
