"""
Limits of the system against the number of sessions.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.stdio.system_limits import (
    DESCRIPTORS_BESIDE,
    DESCRIPTORS_PER_SESSION,
    limit_warnings,
    raise_descriptor_limit,
    sessions_of,
)

ENOUGH = 100 * DESCRIPTORS_PER_SESSION + DESCRIPTORS_BESIDE
UNLIMITED = resource.RLIM_INFINITY


def allowing(*sessions: int, **bridge: int) -> BridgeSettings:
    """Make settings with a server for each number, which is its `max_sessions`."""
    servers = [
        ServerSettings(command="x", name=f"s{at}", base_uri=f"/{at}", max_sessions=each)
        for at, each in enumerate(sessions)
    ]
    return BridgeSettings(servers=tuple(servers), **bridge)  # type: ignore[arg-type]


class System:
    """Limits of the system, and files of /proc and of cgroups, in a directory."""

    def __init__(self, root: Path, descriptors: int = UNLIMITED, hard: int = UNLIMITED) -> None:
        self.root = root
        self.descriptors = descriptors, hard
        self.processes = UNLIMITED
        self.set_to: list[tuple[int, int]] = []
        self.refuses = False

    def write(self, **files: str) -> None:
        for name, text in files.items():
            path = self.root / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def getrlimit(self, which: int) -> tuple[int, int]:
        if which == resource.RLIMIT_NOFILE:
            return self.descriptors
        return self.processes, UNLIMITED

    def setrlimit(self, which: int, limits: tuple[int, int]) -> None:
        assert which == resource.RLIMIT_NOFILE
        if self.refuses:
            raise ValueError("not allowed to raise maximum limit")
        self.set_to.append(limits)

    def warnings(self, settings: BridgeSettings) -> list[str]:
        return list(limit_warnings(settings, self.getrlimit, str(self.root)))


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return System(tmp_path)


@pytest.mark.parametrize(
    ("descriptors", "processes", "says"),
    [
        (ENOUGH, 100, []),
        (UNLIMITED, UNLIMITED, []),
        (ENOUGH - 1, UNLIMITED, ["enough for about 99; raise the limit (ulimit -n"]),
        (UNLIMITED, 99, ["the limit of this user allows only 99 more; raise it (ulimit -u"]),
        (256, 10, ["enough for about 32; ", "ulimit -u"]),
        (10, UNLIMITED, ["enough for about 0; "]),
    ],
)
def test_a_limit_that_is_too_low_is_a_warning(
    descriptors: int, processes: int, says: list[str], system: System
) -> None:
    """At the start, and not a riddle under load."""
    system.descriptors, system.processes = (descriptors, UNLIMITED), processes
    found = system.warnings(allowing(100))
    assert len(found) == len(says)
    assert all(word in line for word, line in zip(says, found, strict=True))
    assert all(line.startswith("100 sessions (max_sessions) need ") for line in found)
    assert all(line.endswith(" or lower --max-sessions") for line in found)


def test_the_limit_on_processes_does_not_apply_to_the_superuser(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    """setrlimit(2): RLIMIT_NPROC."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    system.processes = 5
    assert system.warnings(allowing(100)) == []


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"proc__self__cgroup": "0::/a/b\n", "sys__fs__cgroup__a__b__pids.max": "99\n"}, 99),
        ({"proc__self__cgroup": "0::/a/b\n", "sys__fs__cgroup__a__pids.max": "99\n"}, 99),
        ({"proc__self__cgroup": "0::/a/b\n", "sys__fs__cgroup__pids.max": "99\n"}, 99),
        ({"proc__self__cgroup": "0::/\n", "sys__fs__cgroup__pids.max": "99\n"}, 99),
        (
            {
                "proc__self__cgroup": "3:cpu:/x\n8:pids:/a\n0::/\n",
                "sys__fs__cgroup__pids__a__pids.max": "120\n",
                "sys__fs__cgroup__pids__a__pids.current": "30\n",
            },
            90,
        ),
        (
            {
                "proc__self__cgroup": "0::/a\n",
                "sys__fs__cgroup__a__pids.max": "98\n",
                "sys__fs__cgroup__pids.max": "99\n",
            },
            98,
        ),
        (
            {
                "proc__self__cgroup": "0::/a\n",
                "sys__fs__cgroup__a__pids.max": "10\n",
                "sys__fs__cgroup__a__pids.current": "30\n",
            },
            0,
        ),
        ({"proc__self__cgroup": "0::/a\n", "sys__fs__cgroup__a__pids.max": "max\n"}, None),
        ({"proc__self__cgroup": "3:cpu:/a\n", "sys__fs__cgroup__a__pids.max": "1\n"}, None),
        ({"proc__self__cgroup": "nothing\n", "sys__fs__cgroup__pids.max": "100\n"}, None),
        ({"proc__self__cgroup": "0::/a\n"}, None),
    ],
)
def test_the_limits_of_cgroups_count(
    files: dict[str, str], left: int | None, system: System
) -> None:
    """Of all cgroups that the process is in (cgroups(7)); systemd calls it `TasksMax`."""
    system.write(**files)
    found = system.warnings(allowing(100))
    if left is None:
        assert found == []
    else:
        (line,) = found
        assert f"the cgroup allows only {left} more; raise it (pids.max, TasksMax=" in line


@pytest.mark.parametrize("name", ["pid_max", "threads-max"])
def test_the_limits_of_the_kernel_count(name: str, system: System) -> None:
    """proc(5): without the threads that the system has already."""
    system.write(**{f"proc__sys__kernel__{name}": "1000\n", "proc__loadavg": "0 0 0 1/901 77\n"})
    (line,) = system.warnings(allowing(100))
    assert f"kernel.{name} allows only 99 more; raise it (sysctl kernel.{name})" in line
    assert system.warnings(allowing(99)) == []
    system.write(proc__loadavg="what?\n")
    assert system.warnings(allowing(1000)) == []


def test_only_the_tightest_limit_on_processes_is_named(system: System) -> None:
    system.processes = 50
    system.write(proc__sys__kernel__pid_max="40\n")
    (line,) = system.warnings(allowing(100))
    assert "kernel.pid_max allows only 40 more" in line


def test_this_system_can_be_read() -> None:
    """Whatever it allows: nothing fails for a file that is not there or not as expected."""
    assert all("sessions" in line for line in limit_warnings(allowing(100_000)))


@pytest.mark.parametrize(
    ("settings", "sessions"),
    [
        (allowing(3000), 3000),
        (allowing(10, 20), 30),
        (allowing(3000, max_sessions=500), 500),
        (allowing(*[100] * 20), 1000),
        (allowing(3000, 2000, 100), 5000),
    ],
)
def test_sessions_of_all_servers_within_the_limit_of_the_bridge(
    settings: BridgeSettings, sessions: int
) -> None:
    assert sessions_of(settings) == sessions


@pytest.mark.parametrize(
    ("soft", "hard", "raised"),
    [
        (ENOUGH, UNLIMITED, None),
        (UNLIMITED, UNLIMITED, None),
        (ENOUGH - 1, UNLIMITED, ENOUGH + 10_000),
        (ENOUGH - 1, 2000, 2000),
        (ENOUGH - 1, ENOUGH - 1, None),
    ],
)
def test_the_soft_limit_on_descriptors_is_raised_where_it_is_too_low(
    soft: int, hard: int, raised: int | None, system: System
) -> None:
    """As far as the sessions and `max_connections` need it, and the hard limit allows it."""
    system.descriptors = soft, hard
    result = raise_descriptor_limit(allowing(100), system.getrlimit, system.setrlimit)
    assert result == (None if raised is None else (soft, raised))
    assert system.set_to == ([] if raised is None else [(raised, hard)])


def test_a_limit_that_cannot_be_raised_stays(system: System) -> None:
    system.descriptors, system.refuses = (10, 2000), True
    assert raise_descriptor_limit(allowing(100), system.getrlimit, system.setrlimit) is None
