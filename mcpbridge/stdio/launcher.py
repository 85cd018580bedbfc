"""
The default launcher: it starts a backend as a process on this machine.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from twisted.internet import process
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from zope.interface import implementer

from mcpbridge.config.settings import ServerSettings
from mcpbridge.errors import CannotStart, Described, OutOfResources, SettingError
from mcpbridge.interfaces import IEnvironmentLauncher
from mcpbridge.pacer import Pacer
from mcpbridge.response_budget import ResponseBudget
from mcpbridge.stdio.backend import StdioBackend
from mcpbridge.stdio.cleanup_records import Cleanup, CleanupRecords
from mcpbridge.stdio.command import backend_environment, find_program
from mcpbridge.stdio.confinement import (
    confined_environment,
    find_confinement,
    temporary_folder,
)
from mcpbridge.stdio.confinement_check import confinement_problems
from mcpbridge.stdio.container_command import ContainerCommand, parse_container_command
from mcpbridge.stdio.containers import ServerContainers
from mcpbridge.stdio.exec_chain import Chain, confine, find_chain
from mcpbridge.stdio.leader import Leader
from mcpbridge.stdio.private_tmp import PrivateDirectories, PrivateFolder, in_daemon_thread
from mcpbridge.stdio.process_tracker import ProcessTracker
from mcpbridge.stdio.process_tree import GroupTree, TaggedTree
from mcpbridge.twisted_internals import spawn_prepared

#: What an operator can do when pipe(2) or fork(2) fails for lack of something.
_REMEDIES = {
    errno.EMFILE: "raise the limit on descriptors (ulimit -n) or lower max_sessions",
    errno.ENFILE: "raise the system's limit on descriptors (fs.file-max) or lower max_sessions",
    errno.EAGAIN: "raise the limit on processes (ulimit -u, TasksMax=) or lower max_sessions",
    errno.ENOMEM: "the system has no memory; lower max_sessions",
}


def _check_container_variables(settings: ServerSettings, command: ContainerCommand) -> None:
    """
    Raise `SettingError` if the options of `run` set a variable that clients set, too.

    Of two options the last one counts, which would be the operator's: a client would
    use credentials that are not its own.
    """
    for name in settings.env_from:
        if name in command.assigned:
            raise SettingError(
                f"mcpServers.{settings.name}.env_from.{name}",
                f"a variable that no `--env` in `args` sets; put a default into `env`, and"
                f" `--env {name}` into `args` if need be",
                Described("a value in `args`"),
            )


@implementer(IEnvironmentLauncher)
class LocalLauncher:
    """
    Starts a server's command with `reactor.spawnProcess`, behind an exec chain,
    with a tag from the bridge's process tracker.

    `chain` returns the exec chain to use.  `cleanup` is told of containers,
    which are labelled with `bridge_id`.  `pacer` spreads many starts over
    iterations of the reactor, and servers take turns.  `folder` is where the
    directories of `private_tmp` are.

    Raises `SettingError` for an unknown user or group; `confinement_check` has found out
    before whether the rest can be applied.
    """

    def __init__(
        self,
        settings: ServerSettings,
        reactor: Any,
        tracker: ProcessTracker,
        environment: Mapping[str, str] = os.environ,
        chain: Callable[[], Chain] = find_chain,
        *,
        budget: ResponseBudget | None = None,
        cleanup: Cleanup | None = None,
        bridge_id: str = "",
        pacer: Pacer | None = None,
        folder: PrivateFolder | None = None,
    ) -> None:
        self._pacer = pacer or Pacer(reactor)
        self._budget = budget
        self._settings = settings
        self._processes: IReactorProcess = reactor
        self._clock: IReactorTime = reactor
        self._tracker = tracker
        self._chain = chain
        self._environment = confined_environment(
            settings, backend_environment(settings, environment)
        )
        #: None, so that nothing is done for it at a start, unless the server is confined.
        self._confinement = find_confinement(settings)
        self._checked_as = os.geteuid()
        #: None unless each process has a directory of its own (`private_tmp`).
        self._directories: PrivateDirectories | None = None
        if settings.private_tmp:
            self._directories = PrivateDirectories(
                folder or self._own_folder(environment, cleanup),
                partial(in_daemon_thread, reactor),
                reactor,
                *(() if self._confinement is None else self._confinement.ids),
            )
        command = parse_container_command(settings.command, settings.args)
        if command is not None:
            _check_container_variables(settings, command)
        #: The command line of a container, which is labelled or not.
        self._container_command = command
        #: None unless the command starts containers.  Parsed once, not for each session.
        self._containers: ServerContainers | None = None
        if command is not None and settings.containers:
            self._containers = ServerContainers(
                command,
                settings,
                reactor,
                self._environment,
                chain=chain,
                bridge_id=bridge_id or secrets.token_hex(8),
                cleanup=CleanupRecords() if cleanup is None else cleanup,
            )

    @staticmethod
    def _own_folder(environment: Mapping[str, str], cleanup: Cleanup | None) -> PrivateFolder:
        records = CleanupRecords() if cleanup is None else cleanup
        return PrivateFolder(temporary_folder(environment), records, transient=True)

    @property
    def starts_containers(self) -> bool:
        """True if the end of a session takes the time of a container engine, too."""
        return self._containers is not None

    @property
    def makes_directories(self) -> bool:
        """True if each process has a directory for temporary files of its own."""
        return self._directories is not None

    def check(self) -> str | None:
        """Return what would prevent a start now, or is doubtful about the command; else None."""
        try:
            self._find()
        except CannotStart as error:
            return str(error)
        if self._confinement is not None and os.geteuid() != self._checked_as:
            # `twistd --uid` has taken the bridge's privileges since.
            problems = confinement_problems(self._settings)
            if problems:
                return problems[0]
        return None if self._containers is None else self._containers.command.warning()

    def launch(self, receiver: Any, label: str) -> Deferred[StdioBackend]:
        """
        Look up the command and spawn it; return a `Deferred` of the backend.

        It fails with `CannotStart`, and with `OutOfResources` if the system
        has no descriptors, processes or memory left.  Where many processes
        start at one time it has fired only when their turn has come; there
        wait as many as hold permits.  Cancelling it gives up the start.
        """
        return self.launch_with(receiver, label, {})

    def launch_with(
        self, receiver: Any, label: str, environment: Mapping[str, str]
    ) -> Deferred[StdioBackend]:
        """
        Do the same, with these variables in addition.

        They do not change where the command is looked up.  A container gets them
        by `--env=NAME`, so that no value is in a command line, which everybody
        can read.  Commands of the container engine later on do not have them.
        """
        # In UTF-8, whatever the locale is.
        variables = {name: os.fsdecode(value.encode()) for name, value in environment.items()}

        def start() -> None:
            try:
                backend = self._spawn(self._find(), receiver, label, variables)
            except Exception as error:
                launched.errback(self._failure(error))
            else:
                launched.callback(backend)

        launched: Deferred[StdioBackend] = Deferred(lambda _: self._pacer.cancel(self, start))
        self._pacer.run(self, start)
        return launched

    def _failure(self, error: Exception) -> Exception:
        if not isinstance(error, OSError):
            return error
        why = f"cannot start {self._settings.command!r}: {error.strerror or error}"
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is not None:
            return OutOfResources(f"{why}; {remedy}")
        return CannotStart(why)

    def _find(self) -> str:
        settings = self._settings
        return find_program(settings.command, self._environment, settings.cwd)

    def _spawn(
        self, program: str, receiver: Any, label: str, variables: Mapping[str, str]
    ) -> StdioBackend:
        if self._containers is None:
            line = [program, *self._settings.args]
            if self._container_command is not None and variables:
                line = self._container_command.run_line(program, {}, None, variables=variables)
            if self._directories is not None:
                return self._spawn_with_directory(line, receiver, label, variables)
            return self._spawn_line(line, receiver, label, variables, None)
        container = self._containers.new(program, label, variables)
        try:
            return self._spawn_line(container.line, receiver, label, variables, container.remove)
        except BaseException:
            container.give_up()
            raise

    def _spawn_with_directory(
        self, line: list[str], receiver: Any, label: str, variables: Mapping[str, str]
    ) -> StdioBackend:
        assert self._directories is not None
        try:
            directory = self._directories.new(label)
        except OSError as error:
            raise CannotStart(
                f"cannot start {self._settings.command!r}: no directory for temporary files"
                f" (private_tmp) can be made: {error.strerror}"
            ) from error
        try:
            given = {**variables, **directory.variables}
            return self._spawn_line(line, receiver, label, given, directory.remove)
        except BaseException:
            directory.discard()
            raise

    def _spawn_line(
        self,
        command: list[str],
        receiver: Any,
        label: str,
        variables: Mapping[str, str],
        remove: Callable[[bool], Deferred[None]] | None,
    ) -> StdioBackend:
        tag = self._tracker.new_tag()
        chain = self._chain()
        if self._confinement is not None:
            chain = confine(chain, self._confinement)
        line = chain.wrap(command, tag, self._settings.cwd)
        environment = {**self._environment, **variables} if variables else self._environment
        tracker = self._tracker
        backend = StdioBackend(
            self._settings,
            self._clock,
            receiver,
            label,
            tracker.leader_exited,
            self._budget,
            remove=remove,
            pacer=self._pacer,
        )
        if chain.closes_descriptors:
            transport = spawn_prepared(self._processes, backend, line, environment)
        else:
            transport = self._processes.spawnProcess(backend, line[0], line, environment)
        # Without a pid the process has exited during the spawn, and Twisted has reaped it.
        pid = transport.pid
        if pid is not None:
            keeps = tag and isinstance(transport, process.Process)
            leader = Leader(transport, pid, tracker.exits) if keeps else None
            tracker.leader_started(pid, tag, leader)
        tree = TaggedTree(pid, tag, tracker) if tag else GroupTree(pid, self._clock)
        backend.begin(pid, tree)
        return backend
