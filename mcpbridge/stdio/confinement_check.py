"""
Find out, without starting a server, whether this machine can confine it as configured.

What can be known beforehand is compared: names, capabilities, hard limits.  The
rest is tried with a harmless process behind the same exec chain: the bridge
reads back what it has become, and whether it dies with its parent.  A setting
that would not hold is an error at the start, never a silence.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import CannotStart, Described, SettingError
from mcpbridge.stdio.command import backend_environment, find_program
from mcpbridge.stdio.confinement import (
    NOT_CONFINED,
    PROCESS_CONFINEMENT,
    Confinement,
    confined_environment,
    find_confinement,
    is_confined,
    temporary_folder,
)
from mcpbridge.stdio.confinement_trial import Trial, TrialFailed
from mcpbridge.stdio.container_command import parse_container_command
from mcpbridge.stdio.exec_chain import TRIAL_SECONDS, Chain, confine, find_chain
from mcpbridge.stdio.private_tmp import VARIABLES

#: With so much address space every Node.js starts, so that it need not be tried.
NODE_ADDRESS_SPACE = 4 << 30

#: Numbers of capabilities (capabilities(7)).
_CAPABILITIES = {
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SYS_NICE": 23,
    "CAP_SYS_RESOURCE": 24,
}
_HOW = "run the bridge as root, or give it these capabilities (AmbientCapabilities= of systemd)"
_FOR_CONTAINERS = {
    "user": "put `--user UID:GID` into `args`, behind `run`",
    "group": "put `--user UID:GID` into `args`, behind `run`",
    "limits": "put `--ulimit NAME=SOFT:HARD`, `--memory` or `--cpus` into `args`, behind `run`",
    "nice": "put `--cpu-shares N` into `args`, behind `run`",
    "umask": "set it in the image",
    "private_tmp": "put `--tmpfs /tmp` into `args`, behind `run`",
}


def confinement_problems(
    settings: ServerSettings, environment: Mapping[str, str] = os.environ
) -> list[str]:
    """
    Return what prevents this machine from confining a server, a sentence each; [] if nothing does.

    It starts no server, and takes some milliseconds, for which it blocks.
    """
    return [str(error) for error in confinement_errors(settings, environment)]


def confinement_errors(
    settings: ServerSettings,
    environment: Mapping[str, str] = os.environ,
    chain: Callable[[], Chain] = find_chain,
) -> list[SettingError]:
    """Do what `confinement_problems` does; return errors that name the settings."""
    if not is_confined(settings) and not settings.private_tmp:
        return []
    return list(_Check(settings, environment, chain).errors())


def own_capabilities(status: str = "/proc/self/status") -> int:
    """Return the effective capabilities of this process as bits; all of them if unknown."""
    try:
        with open(status, encoding="utf-8", errors="replace") as lines:
            return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return -1


class _Check:
    """The check of one server."""

    def __init__(
        self, settings: ServerSettings, environment: Mapping[str, str], chain: Callable[[], Chain]
    ) -> None:
        self._settings = settings
        self._own_environment = environment
        self._chain = chain

    def errors(self) -> Iterator[SettingError]:
        """Yield what is wrong, as far as one thing does not hide another."""
        before = [*self._misplaced()]
        if before:
            yield from before
            return
        try:
            confinement = find_confinement(self._settings) or NOT_CONFINED
        except SettingError as error:
            yield error
            return
        missing = [*self._missing_privileges(confinement)]
        if missing:
            yield from missing
            return
        # The chain is looked for only now, as that starts processes, too.
        chain = confine(self._chain(), confinement)
        failed = [*self._try(confinement, chain)]
        yield from failed or self._node_without_space(chain)

    def _error(self, setting: str, expected: str, got: object) -> SettingError:
        return SettingError(f"mcpServers.{self._settings.name}.{setting}", expected, got)

    def _given(self) -> Iterator[str]:
        settings = self._settings
        unset = ServerSettings(command="x")
        for name in (*PROCESS_CONFINEMENT, "private_tmp"):
            if getattr(settings, name) != getattr(unset, name):
                yield name

    def _misplaced(self) -> Iterator[SettingError]:
        settings = self._settings
        if parse_container_command(settings.command, settings.args) is not None:
            for name in self._given():
                yield self._error(
                    name,
                    "no value, because it would confine only the CLI of the container engine;"
                    f" {_FOR_CONTAINERS[name]}",
                    Described("one"),
                )
            return
        if not sys.platform.startswith("linux"):
            for name in self._given():
                yield self._error(name, "no value, because it needs Linux", Described("one"))
        if settings.private_tmp:
            for name in VARIABLES:
                for where in ("env", "env_from"):
                    if name in getattr(settings, where):
                        yield self._error(
                            f"{where}.{name}",
                            "no value, because `private_tmp` sets this variable",
                            Described("one"),
                        )

    # What can be known beforehand.

    def _missing_privileges(self, wanted: Confinement) -> Iterator[SettingError]:
        has = own_capabilities()

        def lacks(*names: str) -> str:
            return " and ".join(each for each in names if not has >> _CAPABILITIES[each] & 1)

        other = wanted.uid is not None and wanted.uid != os.getuid()
        if wanted.uid is not None:
            missing = lacks("CAP_SETUID", "CAP_SETGID", *(["CAP_KILL"] if other else []))
        else:
            missing = lacks("CAP_SETGID") if wanted.gid is not None else ""
        if missing:
            setting = "user" if self._settings.user is not None else "group"
            yield self._error(
                setting,
                f"none, because the bridge runs as user {os.geteuid()} without {missing}, so that"
                f" it could not start or end these processes; {_HOW}",
                getattr(self._settings, setting),
            )
        for limit in wanted.limits:
            hard = resource.getrlimit(limit.resource)[1]
            if hard != resource.RLIM_INFINITY and limit.hard > hard and lacks("CAP_SYS_RESOURCE"):
                yield self._error(
                    f"limits.{limit.name}",
                    f"at most {hard - (limit.hard - limit.soft)}, because the bridge's own hard"
                    f" limit is {hard} and it lacks CAP_SYS_RESOURCE; raise that limit",
                    limit.soft,
                )
        if wanted.niceness is not None:
            own = os.getpriority(os.PRIO_PROCESS, 0)
            least = min(own, 20 - _soft_limit("RLIMIT_NICE"))
            if wanted.niceness < least and lacks("CAP_SYS_NICE"):
                yield self._error(
                    "nice",
                    f"at least {least - own}, because the bridge lacks CAP_SYS_NICE; {_HOW}",
                    self._settings.nice,
                )

    # What has to be tried.

    def _try(self, wanted: Confinement, chain: Chain) -> Iterator[SettingError]:
        settings = self._settings
        trial = Trial(
            chain,
            wanted,
            program=self._program(),
            directory=settings.cwd if settings.cwd and os.path.isdir(settings.cwd) else None,
            folder=temporary_folder(self._own_environment) if settings.private_tmp else None,
        )
        try:
            findings = trial.run()
        except TrialFailed as error:
            given = [*self._given(), *(["cwd"] if trial.directory else [])]
            setting = error.setting if error.setting in given else given[0]
            value = getattr(settings, setting)
            yield self._error(
                setting,
                f"what can be applied here, but a trial failed ({error})",
                Described("these") if setting == "limits" else value,
            )
            return
        for finding in findings:
            yield self._error(finding.setting, finding.expected, Described(finding.got))

    def _environment(self) -> dict[str, str]:
        given = backend_environment(self._settings, self._own_environment)
        return confined_environment(self._settings, given)

    def _program(self) -> str | None:
        """Return the server's program; None if it is not there, which is reported elsewhere."""
        try:
            return find_program(self._settings.command, self._environment(), self._settings.cwd)
        except CannotStart:
            return None

    def _node_without_space(self, chain: Chain) -> Iterator[SettingError]:
        space = self._settings.limits.address_space
        node = self._node() if space is not None and space < NODE_ADDRESS_SPACE else None
        if node is None:
            return
        try:
            done = subprocess.run(
                chain.wrap([node, "-e", "0"], 0, None),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=TRIAL_SECONDS,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            return
        if done.returncode != 0:
            yield self._error(
                "limits.address_space",
                "none, or enough for Node.js, which does not start with so little: it needs from"
                " 1 GiB (Node 20) to 2 GiB (Node 24) and more for its work; a container can limit"
                " the memory that is really used",
                space,
            )

    def _node(self) -> str | None:
        """Return the Node.js that runs the server's program; None if that is another one."""
        program = self._program()
        if program is None:
            return None
        if os.path.basename(os.path.realpath(program)) in ("node", "nodejs"):
            return program
        try:
            with open(program, "rb") as file:
                first = file.readline(256)
        except OSError:
            return None
        if not first.startswith(b"#!") or b"node" not in first:
            return None
        try:
            return find_program("node", self._environment(), self._settings.cwd)
        except CannotStart:
            return None


def _soft_limit(name: str) -> int:
    number = getattr(resource, name, None)
    return 0 if number is None else max(0, resource.getrlimit(number)[0])
