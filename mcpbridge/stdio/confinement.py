"""
What confines a backend's process, in numbers: its user, limits, umask and priority.

Looks names of users and groups up, once; the exec chains only get numbers.
Whether this machine can apply them is for `confinement_check` to find out.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import resource
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mcpbridge.config.backend_environment import name_pattern
from mcpbridge.config.confinement import MAX_LIMIT, ResourceLimits
from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import Described, SettingError

#: The hard limit on processor time is so much above the soft one, at which the program
#: gets SIGXCPU and may still say why it ends.
CPU_GRACE_SECONDS = 5

#: The resource of each limit.  The last one is set last: it may leave little room.
RESOURCES = {
    "open_files": resource.RLIMIT_NOFILE,
    "file_size": resource.RLIMIT_FSIZE,
    "cpu_seconds": resource.RLIMIT_CPU,
    "core": resource.RLIMIT_CORE,
    "address_space": resource.RLIMIT_AS,
}
#: The settings whose effect is on the process itself.
PROCESS_CONFINEMENT = ("user", "group", "umask", "nice", "limits")

#: Variables that lead to files of the bridge's user, beside XDG_*.
_OF_THE_USER = frozenset(
    {
        *("HOME", "USER", "LOGNAME", "SHELL", "TMPDIR"),
        *("UV_CACHE_DIR", "NPM_CONFIG_CACHE", "npm_config_cache"),
    }
)
#: Signals that reaching a limit causes; a runtime without memory aborts or traps.
_SIGNALS = {
    "cpu_seconds": {signal.SIGXCPU, signal.SIGKILL},
    "file_size": {signal.SIGXFSZ},
    "address_space": {signal.SIGABRT, signal.SIGTRAP, signal.SIGILL, signal.SIGSEGV},
}
_STATUS = re.compile(r"(signal|exit status) (\d+)")


class Limit(NamedTuple):
    """A resource limit: the name of its setting, its number, and its two values."""

    name: str
    resource: int
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Confinement:
    """
    What is set in a new process before it becomes the backend; None leaves a thing as it is.

    `niceness` is absolute, -20 to 19.  With a `gid` all supplementary groups are dropped.
    """

    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    niceness: int | None = None
    limits: tuple[Limit, ...] = ()

    @property
    def ids(self) -> tuple[int | None, int | None]:
        """The user and the group; None for that of the bridge."""
        return self.uid, self.gid

    def steps(self) -> tuple[str, ...]:
        """
        Return the steps for `launch.c` and `exec_shim`, in their order.

        What needs privileges comes before the change of user.
        """
        found = [f"l{each.resource}:{each.soft}:{each.hard}" for each in self.limits]
        numbers = {
            "n": None if self.niceness is None else self.niceness + 20,
            "m": self.umask,
            "g": self.gid,
            "u": self.uid,
        }
        found += [f"{letter}{n}" for letter, n in numbers.items() if n is not None]
        return tuple(found)


#: Leaves everything as it is.
NOT_CONFINED = Confinement()


class Account(NamedTuple):
    """A user: its ids, and what its programs find in their environment."""

    uid: int
    gid: int
    variables: Mapping[str, str]


def is_confined(settings: ServerSettings) -> bool:
    """Return True if anything confines the process itself."""
    return (
        any(each is not None for each in (settings.user, settings.group, settings.umask))
        or settings.nice != 0
        or settings.limits != ResourceLimits()
    )


def find_confinement(settings: ServerSettings) -> Confinement | None:
    """
    Return what confines the processes of a server; None if nothing does.

    Raises `SettingError` for an unknown user or group.
    """
    if not is_confined(settings):
        return None
    account = find_account(settings)
    gid = None if account is None else account.gid
    if account is None and settings.group is not None:
        gid = _find_group(settings)
    uid = None if account is None else account.uid
    if _is_present(uid, gid):
        uid = gid = None
    niceness = None
    if settings.nice:
        own = os.getpriority(os.PRIO_PROCESS, 0)
        niceness = max(-20, min(19, own + settings.nice))
    umask = None if settings.umask is None else int(settings.umask, 8)
    return Confinement(uid, gid, umask, niceness, _limits(settings.limits))


def _is_present(uid: int | None, gid: int | None) -> bool:
    """Return True if these ids are the bridge's own, and it has no other groups."""
    if uid not in (None, *_only(os.getresuid())) or gid not in (None, *_only(os.getresgid())):
        return False
    return {*os.getgroups()} <= {os.getgid()}


def _only(ids: tuple[int, int, int]) -> tuple[int, ...]:
    return ids[:1] if len({*ids}) == 1 else ()


def _limits(limits: ResourceLimits) -> tuple[Limit, ...]:
    found = []
    for name, number in RESOURCES.items():
        soft = getattr(limits, name)
        if soft is not None:
            hard = min(soft + CPU_GRACE_SECONDS, MAX_LIMIT) if name == "cpu_seconds" else soft
            found.append(Limit(name, number, soft, hard))
    return tuple(found)


def find_account(settings: ServerSettings) -> Account | None:
    """
    Return the user that runs a server; None without a `user`.

    One by its number needs no account, if the group is set.  Raises `SettingError`.
    """
    user = settings.user
    if user is None:
        return None
    try:
        entry = pwd.getpwnam(user) if isinstance(user, str) else pwd.getpwuid(user)
    except KeyError:
        if isinstance(user, str):
            raise SettingError(
                f"mcpServers.{settings.name}.user", "the name of a user of this machine", user
            ) from None
        if settings.group is None:
            raise SettingError(
                f"mcpServers.{settings.name}.group",
                f"the name or the id of a group, because user {user} has no account here",
                Described("none"),
            ) from None
        # Without an account there is no home; some programs fail without the variable.
        return Account(user, _find_group(settings), {"HOME": "/"})
    gid = entry.pw_gid if settings.group is None else _find_group(settings)
    names = dict.fromkeys(("USER", "LOGNAME"), entry.pw_name)
    # An empty shell is /bin/sh (passwd(5)).
    variables = {"HOME": entry.pw_dir or "/", "SHELL": entry.pw_shell or "/bin/sh", **names}
    return Account(entry.pw_uid, gid, variables)


def _find_group(settings: ServerSettings) -> int:
    group = settings.group
    if isinstance(group, int):
        return group
    try:
        return grp.getgrnam(str(group)).gr_gid
    except KeyError:
        raise SettingError(
            f"mcpServers.{settings.name}.group", "the name of a group of this machine", group
        ) from None


def confined_environment(
    settings: ServerSettings, environment: Mapping[str, str], own_uid: Callable[[], int] = os.getuid
) -> dict[str, str]:
    """
    Return a backend's environment for another user than the bridge's.

    HOME, USER, LOGNAME and SHELL become that user's; XDG_*, TMPDIR and the caches of
    package managers, which are the bridge's user's, go.  What `env` or `pass_env`
    name stays as it is.
    """
    account = find_account(settings)
    if account is None or account.uid == own_uid():
        return dict(environment)
    patterns = [name_pattern(each) for each in settings.pass_env]

    def is_wanted(name: str) -> bool:
        return name in settings.env or any(each.fullmatch(name) for each in patterns)

    kept = {
        name: value
        for name, value in environment.items()
        if is_wanted(name) or not (name in _OF_THE_USER or name.startswith("XDG_"))
    }
    return {**account.variables, **kept}


def temporary_folder(environment: Mapping[str, str]) -> str:
    """Return where directories for temporary files are made."""
    return os.path.abspath(environment.get("TMPDIR") or "/tmp")


def limit_hint(limits: ResourceLimits, status: str) -> str:
    """
    Return which limit may have ended a process with this status, as a clause; mostly "".

    A script or `npx` passes on the signal of what it runs as 128 and its number.
    """
    found = _STATUS.fullmatch(status)
    if found is None:
        return ""
    number = int(found[2]) - (128 if found[1] == "exit status" else 0)
    names = [
        f"limits.{name}"
        for name, signals in _SIGNALS.items()
        if number in signals and getattr(limits, name) is not None
    ]
    return f"; it may have reached {' or '.join(names)}" if names else ""


def describe_confinement(settings: ServerSettings) -> str:
    """Return what confines a server in one line, such as `user nobody, umask 0077`; or ""."""
    found = [
        f"{name} {value}"
        for name in ("user", "group", "umask")
        if (value := getattr(settings, name)) is not None
    ]
    if settings.nice:
        found.append(f"nice {settings.nice}")
    given = ((name, getattr(settings.limits, name)) for name in RESOURCES)
    found += [f"{name} {value}" for name, value in given if value is not None]
    if settings.private_tmp:
        found.append("a private directory for temporary files")
    return ", ".join(found)
