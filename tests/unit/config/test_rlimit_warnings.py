"""
Limits of the system against the number of sessions.
"""

from __future__ import annotations

import os
import resource

import pytest

from mcpbridge.config.rlimit_warnings import (
    DESCRIPTORS_BESIDE,
    DESCRIPTORS_PER_SESSION,
    rlimit_warnings,
)

ENOUGH = 100 * DESCRIPTORS_PER_SESSION + DESCRIPTORS_BESIDE
UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("descriptors", "processes", "says"),
    [
        (ENOUGH, 100, []),
        (UNLIMITED, UNLIMITED, []),
        (ENOUGH - 1, UNLIMITED, ["ulimit -n"]),
        (UNLIMITED, 99, ["ulimit -u"]),
        (256, 10, ["ulimit -n", "ulimit -u"]),
    ],
)
def test_a_limit_that_is_too_low_is_a_warning(
    descriptors: int, processes: int, says: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that is too low is a warning at the start, not a riddle under load."""
    limits = {resource.RLIMIT_NOFILE: descriptors, resource.RLIMIT_NPROC: processes}
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = rlimit_warnings(100, lambda which: (limits[which], limits[which]))
    assert len(found) == len(says)
    assert all(word in line for word, line in zip(says, found, strict=True))


def test_the_limit_on_processes_does_not_apply_to_the_superuser(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """setrlimit(2): RLIMIT_NPROC."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert rlimit_warnings(100, lambda which: (UNLIMITED if which == 7 else 5000, 5000)) == []
