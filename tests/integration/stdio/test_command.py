"""Errors for commands that the system refuses to start."""

import errno
import os
import sys
from typing import Any

import pytest

from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import CannotStart
from mcpbridge.stdio.launcher import LocalLauncher
from mcpbridge.stdio.process_tracker import ProcessTracker
from mcpbridge.testing import FakeReactor


@pytest.mark.parametrize(
    ("number", "exhausted", "says"),
    [
        (errno.EMFILE, True, "raise the limit on descriptors (ulimit -n)"),
        (errno.ENFILE, True, "fs.file-max"),
        (errno.EAGAIN, True, "raise the limit on processes (ulimit -u, TasksMax=)"),
        (errno.ENOMEM, True, "memory"),
        (errno.EACCES, False, ""),
    ],
)
def test_lack_of_a_resource_is_reported_with_a_remedy(
    number: int, exhausted: bool, says: str
) -> None:
    """If a limit was reached, the error says how to raise it."""
    reactor = FakeReactor()
    reactor.spawn_error = OSError(number, os.strerror(number))
    launcher = LocalLauncher(
        ServerSettings(command=sys.executable), reactor, ProcessTracker(reactor, 0)
    )
    failures: list[Any] = []
    launcher.launch(None, "x").addErrback(failures.append)
    error = failures[0].value
    assert isinstance(error, CannotStart)
    assert error.exhausted == exhausted
    assert os.strerror(number) in str(error)
    assert says in str(error)
