"""
Remove the containers of sessions, with the commands of their engine.

`ServerContainers` belongs to a server whose command starts containers,
`Container` to one of its sessions.  Every container carries a label whose
value no other has, and is found by that alone: neither a name nor a process
leads to it, since the engine, not its CLI, is the parent of what runs in a
container.  A container is gone when the engine answers that nothing has the
label.  As long as the engine does not answer, nothing is proven.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import (
    CONTAINER_BIRTH_SECONDS,
    ENGINE_COMMANDS,
    ENGINE_PAUSE_SECONDS,
    MAX_ENGINE_PAUSE_SECONDS,
    REMOVALS_BEFORE_WARNING,
)
from mcpbridge.guard import guarded
from mcpbridge.stdio.cleanup_records import Cleanup, ContainersRecord
from mcpbridge.stdio.container_command import (
    BRIDGE_LABEL,
    SESSION_LABEL,
    VOLUMES_LABEL,
    ContainerCommand,
)
from mcpbridge.stdio.engine_command import SHOWN_ERROR_CHARS, EngineCommand, EngineFailed
from mcpbridge.stdio.exec_chain import Chain
from mcpbridge.timers import backoff

#: The variables by which an engine's CLI finds the engine.  None is a secret: the watchdog
#: gets them, and they are written to the state file.
ENGINE_VARIABLES = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "SSH_AUTH_SOCK"),
        *("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "DBUS_SESSION_BUS_ADDRESS"),
        *("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH"),
        *("DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_API_VERSION"),
        *("CONTAINER_HOST", "CONTAINER_CONNECTION", "CONTAINER_SSHKEY", "STORAGE_DRIVER"),
        *("CONTAINERS_CONF", "CONTAINERS_CONF_OVERRIDE", "CONTAINERS_STORAGE_CONF"),
        *("CONTAINERD_ADDRESS", "CONTAINERD_NAMESPACE", "CONTAINERD_SNAPSHOTTER", "NERDCTL_TOML"),
    }
)
#: The id of a container, as engines print it.
_ID = re.compile(r"[0-9a-f]{12,64}")


class ServerContainers:
    """
    The containers of one server.

    `bridge_id` is the value of the label of all containers of the bridge.  A
    record is added to `cleanup` before a container is started, and dropped
    when the engine reports that it is gone.
    """

    log = Logger()

    def __init__(
        self,
        command: ContainerCommand,
        settings: ServerSettings,
        reactor: Any,
        environment: Mapping[str, str],
        *,
        chain: Callable[[], Chain],
        bridge_id: str,
        cleanup: Cleanup,
    ) -> None:
        self.command = command
        self.clock: IReactorTime = reactor
        self._settings = settings
        self._processes: IReactorProcess = reactor
        self._environment = environment
        self._told_environment = tuple(
            sorted((name, environment[name]) for name in ENGINE_VARIABLES & environment.keys())
        )
        self._chain = chain
        self._bridge_id = bridge_id
        self._cleanup = cleanup
        self._slots = DeferredSemaphore(ENGINE_COMMANDS)
        self._away = False
        # The watchdog knows this name, and removes the folder after the bridge was killed.
        temporary = environment.get("TMPDIR") or "/tmp"
        self._folder = os.path.join(temporary, f"mcpbridge-{bridge_id}")

    def new(self, program: str, label: str, variables: Iterable[str] = ()) -> Container:
        """
        Prepare the container of a session; the caller runs its `line`.

        `program` is the absolute path of the engine, `label` names the session
        in the log, and `variables` names those of the CLI's environment that the
        container gets, too.  Call the container's `remove` when the CLI has ended, or
        `give_up` if it could not be started.
        """
        value = f"{self._bridge_id}-{secrets.token_hex(8)}"
        folder = self._make_folder(program)
        container = Container(self, program, label, value, folder, variables)
        self._cleanup.add(
            value,
            ContainersRecord(
                engine=tuple(self.command.engine_line(program)),
                filter=f"label={BRIDGE_LABEL}={self._bridge_id}",
                environment=self._told_environment,
            ),
        )
        return container

    def line(
        self, program: str, value: str, cidfile: str | None, variables: Iterable[str] = ()
    ) -> list[str]:
        """Return the command line that starts a container with this label of the session."""
        labels = {BRIDGE_LABEL: self._bridge_id, SESSION_LABEL: value}
        if self.command.remove:
            labels[VOLUMES_LABEL] = "true"
        init = self._settings.container_init
        return self.command.run_line(program, labels, cidfile, init=init, variables=variables)

    def users_cidfile(self) -> str | None:
        """Return the path of the cidfile that the user's own options name, if any."""
        named = self.command.cidfile
        return None if named is None else os.path.join(self._settings.cwd or "", named)

    def gone(self, container: Container) -> None:
        """Forget a container: the engine reports that it is gone."""
        self._cleanup.drop(container.value)
        # This succeeds with the last cidfile in it, of any server of the bridge.
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)

    def _make_folder(self, program: str) -> str | None:
        """Make the bridge's private folder for cidfiles; return None if that is impossible."""
        if self.command.cidfile is not None or "snap" in program.split(os.sep):
            # A snap has a temporary folder of its own, and would write the file there.
            return None
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._folder, 0o700)
            found = os.lstat(self._folder)
        except OSError:
            return None
        ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
        return self._folder if ours else None

    # Commands of the engine.

    async def find(self, program: str, value: str) -> list[str]:
        """
        Return the ids of the containers with this label of the session.

        Raises `EngineFailed`.
        """
        output = await self._run(
            program,
            "ps",
            "--all",
            "--quiet",
            "--no-trunc",
            f"--filter=label={SESSION_LABEL}={value}",
        )
        return _ids(output)

    async def remove(self, program: str, value: str, ids: Sequence[str]) -> None:
        """
        Remove containers whose label, read again from each of them, is this one.

        An engine that does not know the filter of `find` lists other people's
        containers, too.  Raises `EngineFailed`.
        """
        template = f'--format={{{{index .Config.Labels "{SESSION_LABEL}"}}}}'
        for each in ids:
            labelled = (await self._run(program, "container", "inspect", template, each)).strip()
            if labelled != value:
                raise EngineFailed(
                    f"container {each[:12]} does not have the label that was asked for"
                )
        volumes = ["--volumes"] if self.command.remove else []
        await self._run(program, "rm", "--force", *volumes, *ids)

    def answered(self) -> None:
        """Log that the engine answers, if it did not before."""
        if self._away:
            self._away = False
            self.log.info(
                "server {server!r}: {engine} answers again",
                server=self._settings.name,
                engine=self.command.engine,
            )

    def did_not_answer(self, error: EngineFailed) -> None:
        """Warn that the engine does not answer, once until it does."""
        if not self._away:
            self._away = True
            self.log.warn(
                "server {server!r}: cannot ask {engine} whether a container is gone: {error}; it is"
                " asked again, and the container's slot stays taken until then",
                server=self._settings.name,
                engine=self.command.engine,
                error=str(error),
            )

    async def _run(self, program: str, *arguments: str) -> str:
        return await self._slots.run(self._spawn, program, arguments)

    def _spawn(self, program: str, arguments: Sequence[str]) -> Deferred[str]:
        command = EngineCommand(self.clock)
        line = [*self.command.engine_line(program), *arguments]
        line = self._chain().wrap(line, 0, self._settings.cwd)
        try:
            self._processes.spawnProcess(command, line[0], line, self._environment)
        except OSError as error:
            raise EngineFailed(error.strerror or str(error)) from error
        return command.done


class Container:
    """
    The container of one session, from before its start until the engine reports it gone.
    """

    log = Logger()

    def __init__(
        self,
        containers: ServerContainers,
        program: str,
        label: str,
        value: str,
        folder: str | None,
        variables: Iterable[str] = (),
    ) -> None:
        self._containers = containers
        self._program = program
        self._label = label
        #: The value of the session's label.
        self.value = value
        self._own_cidfile = None if folder is None else os.path.join(folder, value)
        self._cidfile = self._own_cidfile or containers.users_cidfile()
        self.line = containers.line(program, value, self._own_cidfile, variables)
        self._pause = backoff(ENGINE_PAUSE_SECONDS, MAX_ENGINE_PAUSE_SECONDS)

    def give_up(self) -> None:
        """Forget it: it is gone, or could not be started."""
        guarded(self.log, "forgetting a container", self._containers.gone, self)

    def remove(self, interrupted: bool) -> Deferred[None]:
        """
        Remove the container; the `Deferred` fires when the engine reports it gone.

        It never fails.  Call this when the CLI has ended; `interrupted` is
        True if the CLI was signalled.
        """
        gone: Deferred[None] = Deferred()
        removing = Deferred.fromCoroutine(self._remove(interrupted))
        # After an unexpected error nothing is proven, so the permit stays taken.
        removing.addCallbacks(gone.callback, self._unexpected)
        return gone

    def _unexpected(self, failure: Failure) -> None:
        self.log.failure("removing the container of {session} failed", failure, session=self._label)

    async def _remove(self, interrupted: bool) -> None:
        now = self._containers.clock.seconds
        # An interrupted CLI may have asked the engine for a container that the engine creates
        # only now: for so long it proves nothing that none is listed.
        born_by = now() + (CONTAINER_BIRTH_SECONDS if interrupted else 0.0)
        seen = False
        removals = 0
        while True:
            asked = now()
            ids = await self._find()
            if ids:
                seen = True
                removed = await self._try_to_remove(ids, removals)
                removals += 1
                if removed and removals == 1:
                    continue
            elif seen or asked >= born_by or self._has_id():
                break
            await self._wait(removals)
        if self._own_cidfile is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._own_cidfile)
        self.give_up()

    async def _find(self) -> list[str]:
        """Return the ids of what is left, as soon as the engine answers."""
        failures = 0
        while True:
            try:
                ids = await self._containers.find(self._program, self.value)
            except EngineFailed as error:
                self._containers.did_not_answer(error)
            else:
                self._containers.answered()
                return ids
            failures += 1
            await self._wait(failures)

    async def _try_to_remove(self, ids: list[str], removals: int) -> bool:
        try:
            await self._containers.remove(self._program, self.value, ids)
        except EngineFailed as error:
            # Most often `--rm` has removed it meanwhile.
            if removals == REMOVALS_BEFORE_WARNING:
                self.log.error(
                    "cannot remove container {ident} of session {session}: {error}; it is tried"
                    " again, and its slot stays taken until then",
                    ident=ids[0][:12],
                    session=self._label,
                    error=str(error),
                )
            return False
        return True

    def _has_id(self) -> bool:
        """Return True if the CLI wrote an id: then the engine had created the container."""
        try:
            return self._cidfile is not None and os.path.getsize(self._cidfile) > 0
        except OSError:
            return False

    def _wait(self, attempts: int) -> Deferred[None]:
        return deferLater(self._containers.clock, self._pause(attempts))


def _ids(output: str) -> list[str]:
    """Read the output of `ps --quiet --no-trunc`, an id a line.  Raises `EngineFailed`."""
    ids = output.split()
    strange = next((each for each in ids if not _ID.fullmatch(each)), None)
    if strange is not None:
        raise EngineFailed(f"not the id of a container: {strange[:SHOWN_ERROR_CHARS]!r}")
    return ids
