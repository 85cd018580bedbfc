"""What confines a backend, in numbers, and its environment."""

from __future__ import annotations

import os
import pwd
import resource
from typing import Any

import pytest

from mcpbridge.config.confinement import LEAST_OPEN_FILES, MAX_LIMIT
from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import SettingError
from mcpbridge.stdio.confinement import (
    CPU_GRACE_SECONDS,
    Confinement,
    Limit,
    confined_environment,
    describe_confinement,
    find_confinement,
    limit_hint,
    temporary_folder,
)
from mcpbridge.stdio.exec_chain import Compiled, PythonShim, UtilLinux, confine

#: A user that is not the one who runs the tests, and needs no account.
SOMEBODY = 54321
UTIL_LINUX = UtilLinux("env", "setsid", "prlimit", "setpriv", 7)


def server(**settings: Any) -> ServerSettings:
    return ServerSettings(command="cat", name="x", **settings)


def confinement(**settings: Any) -> Confinement | None:
    return find_confinement(server(**settings))


def test_server_without_settings_is_not_confined() -> None:
    assert confinement() is None
    assert confinement(private_tmp=True) is None


def test_numbers_of_all_settings() -> None:
    found = confinement(
        user=SOMEBODY,
        group=SOMEBODY + 1,
        umask="0027",
        limits={"address_space": 1 << 30, "core": 0, "open_files": 64, "file_size": 5},
    )
    assert found is not None
    assert found.ids == (SOMEBODY, SOMEBODY + 1)
    assert [each.name for each in found.limits] == [
        "open_files",
        "file_size",
        "core",
        "address_space",
    ]
    # What needs privileges comes before the user; the address space is the last limit.
    assert found.steps() == (
        f"l{resource.RLIMIT_NOFILE}:64:64",
        f"l{resource.RLIMIT_FSIZE}:5:5",
        f"l{resource.RLIMIT_CORE}:0:0",
        f"l{resource.RLIMIT_AS}:{1 << 30}:{1 << 30}",
        "m23",
        f"g{SOMEBODY + 1}",
        f"u{SOMEBODY}",
    )


def test_program_has_enough_descriptors_to_run() -> None:
    """`LEAST_OPEN_FILES`: fewer are refused."""
    found = confinement(limits={"open_files": LEAST_OPEN_FILES})
    assert found is not None
    assert found.limits[0].hard == LEAST_OPEN_FILES
    with pytest.raises(SettingError, match=f"an integer ≥ {LEAST_OPEN_FILES}, got"):
        server(limits={"open_files": LEAST_OPEN_FILES - 1})


def test_program_gets_sigxcpu_before_sigkill() -> None:
    """`CPU_GRACE_SECONDS` lie between the soft and the hard limit."""
    found = confinement(limits={"cpu_seconds": 7})
    assert found is not None
    [limit] = found.limits
    assert (limit.soft, limit.hard) == (7, 7 + CPU_GRACE_SECONDS)
    found = confinement(limits={"cpu_seconds": MAX_LIMIT})
    assert found is not None
    assert found.limits[0].hard == MAX_LIMIT


def test_priority_is_relative_and_within_its_range() -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    found = [confinement(nice=nice) for nice in (1, 19, -20)]
    wanted = [min(19, own + 1), min(19, own + 19), max(-20, own - 20)]
    assert [each and each.niceness for each in found] == wanted
    assert found[1] is not None
    assert found[1].steps() == (f"n{wanted[1] + 20}",)


def test_name_of_a_user_leads_to_all_ids() -> None:
    entry = next(each for each in pwd.getpwall() if each.pw_uid != os.getuid())
    for user in (entry.pw_name, entry.pw_uid):
        found = confinement(user=user)
        assert found is not None
        assert found.uid == entry.pw_uid
    assert confinement(user=entry.pw_name, group=7).ids == (entry.pw_uid, 7)  # type: ignore[union-attr]


@pytest.mark.skipif(bool({*os.getgroups()} - {os.getgid()}), reason="this user has other groups")
def test_own_user_needs_no_change() -> None:
    """So that it needs no privileges."""
    found = confinement(user=os.getuid(), group=os.getgid())
    assert found is not None
    assert found.steps() == ()


def test_group_alone() -> None:
    found = confinement(group=SOMEBODY)
    assert found is not None
    assert found.steps() == (f"g{SOMEBODY}",)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"user": "nobdy"}, 'user: expected the name of a user of this machine, got "nobdy"'),
        ({"group": "nogrp"}, 'group: expected the name of a group of this machine, got "nogrp"'),
        (
            {"user": SOMEBODY},
            (
                "group: expected the name or the id of a group, because user 54321 has no"
                " account here, got none"
            ),
        ),
        (
            {"user": SOMEBODY, "group": "nogrp"},
            'group: expected the name of a group of this machine, got "nogrp"',
        ),
    ],
)
def test_unknown_names_are_errors(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(SettingError) as caught:
        confinement(**settings)
    assert str(caught.value) == f"mcpServers.x.{error}"


OWN = {
    "HOME": "/home/bridge",
    "USER": "bridge",
    "LOGNAME": "bridge",
    "SHELL": "/bin/zsh",
    "TMPDIR": "/home/bridge/tmp",
    "XDG_RUNTIME_DIR": "/run/user/1000",
    "UV_CACHE_DIR": "/home/bridge/.cache/uv",
    "PATH": "/bin",
    "LANG": "C",
}


def environment(own_uid: int, **settings: Any) -> dict[str, str]:
    return confined_environment(server(**settings), OWN, lambda: own_uid)


def test_environment_is_that_of_the_user() -> None:
    entry = pwd.getpwuid(os.getuid())
    found = environment(entry.pw_uid + 1, user=entry.pw_uid)
    assert found == {
        "HOME": entry.pw_dir or "/",
        "USER": entry.pw_name,
        "LOGNAME": entry.pw_name,
        "SHELL": entry.pw_shell or "/bin/sh",
        "PATH": "/bin",
        "LANG": "C",
    }


def test_environment_of_a_user_without_account() -> None:
    found = environment(0, user=SOMEBODY, group=SOMEBODY)
    assert found == {"HOME": "/", "PATH": "/bin", "LANG": "C"}


def test_environment_keeps_what_the_settings_name() -> None:
    """By `env`, which is in it already, and by `pass_env`."""
    found = environment(
        0, user=SOMEBODY, group=SOMEBODY, env={"HOME": "/home/bridge"}, pass_env=["XDG_*", "USER"]
    )
    kept = {"HOME": "/home/bridge", "XDG_RUNTIME_DIR": "/run/user/1000", "USER": "bridge"}
    assert found == {**kept, "PATH": "/bin", "LANG": "C"}


def test_environment_of_the_bridge_s_own_user_stays() -> None:
    assert environment(SOMEBODY, user=SOMEBODY, group=SOMEBODY) == OWN
    assert environment(0, umask="0077") == OWN


@pytest.mark.parametrize(
    ("limits", "status", "named"),
    [
        ({"cpu_seconds": 1}, "signal 24", "limits.cpu_seconds"),
        ({"cpu_seconds": 1}, "signal 9", "limits.cpu_seconds"),
        ({"file_size": 1}, "signal 25", "limits.file_size"),
        ({"address_space": 1 << 30}, "signal 6", "limits.address_space"),
        ({"address_space": 1 << 30}, "exit status 134", "limits.address_space"),
        ({"address_space": 1 << 30}, "exit status 1", ""),
        ({"cpu_seconds": 1}, "signal 6", ""),
        ({}, "signal 6", ""),
        ({"core": 0}, "", ""),
    ],
)
def test_end_names_the_limit_that_may_have_been_reached(
    limits: dict[str, int], status: str, named: str
) -> None:
    hint = limit_hint(server(limits=limits).limits, status)
    assert hint == (f"; it may have reached {named}" if named else "")


def test_description_in_a_line() -> None:
    assert describe_confinement(server()) == ""
    found = describe_confinement(
        server(user="nobody", umask="0077", nice=5, limits={"core": 0}, private_tmp=True)
    )
    assert found == (
        "user nobody, umask 0077, nice 5, core 0, a private directory for temporary files"
    )


def test_folder_for_temporary_files() -> None:
    assert temporary_folder({}) == temporary_folder({"TMPDIR": ""}) == "/tmp"
    assert temporary_folder({"TMPDIR": "/var/tmp/"}) == "/var/tmp"


# Exec chains.

WANTED = Confinement(5, 6, 0o77, 3, (Limit("open_files", 7, 64, 65),))


@pytest.mark.parametrize("chain", [Compiled(), PythonShim()])
def test_one_program_takes_all_steps(chain: Compiled | PythonShim) -> None:
    line = confine(chain, WANTED).wrap(["cat"], 1, None)
    assert line[-7:] == ["l7:64:65", "n23", "m63", "g6", "u5", "--", "cat"]
    assert chain.wrap(["cat"], 1, None)[-3:] == ["0", "--", "cat"]


@pytest.mark.parametrize("wanted", [WANTED, Confinement(5, 6), Confinement(umask=0o77)])
def test_util_linux_has_no_program_for_some_steps(wanted: Confinement) -> None:
    """No step is left out: another chain takes it."""
    assert confine(UTIL_LINUX, wanted) == PythonShim(7, wanted.steps())


def test_util_linux_sets_the_parent_death_signal_last() -> None:
    """As the new group, which also enters the directory."""
    chain = confine(UTIL_LINUX, Confinement(None, 6, None, None, WANTED.limits))
    assert chain.wrap(["cat"], 9, "/d") == [
        "setsid",
        *("prlimit", "--rss=9:9", "--locks=9:9", "--nofile=7:", "--nofile=64:65"),
        *("setpriv", "--regid=6", "--clear-groups", "--"),
        *("env", "-C", "/d"),
        *("setpriv", "--ambient-caps=-all", "--pdeathsig", "KILL", "--", "cat"),
    ]


def test_util_linux_without_nice_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Confinement(niceness=os.getpriority(os.PRIO_PROCESS, 0) + 2)
    line = confine(UTIL_LINUX, wanted).wrap(["cat"], 0, None)
    assert line[3:6] == [line[3], "-n", "2"]
    assert line[3].endswith("/nice")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert isinstance(confine(UTIL_LINUX, wanted), PythonShim)


def test_unknown_chain_cannot_confine() -> None:
    class Other:
        closes_descriptors = False

        def wrap(self, command: list[str], tag: int, directory: str | None) -> list[str]:
            return command

    with pytest.raises(TypeError, match="Other cannot confine"):
        confine(Other(), WANTED)
