"""
The default launcher: a backend is a process of this machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from twisted.internet import process
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from zope.interface import implementer

from mcpbridge.backend.chain import Chain, find_chain
from mcpbridge.backend.command import backend_environment, find_program
from mcpbridge.backend.leader import Leader
from mcpbridge.backend.process import StdioBackend
from mcpbridge.backend.tree import GroupTree, Sweeper, TaggedTree
from mcpbridge.budget import ResponseBudget
from mcpbridge.config import ServerSettings
from mcpbridge.errors import CannotStart
from mcpbridge.interfaces import IBackendLauncher


@implementer(IBackendLauncher)
class LocalLauncher:
    """
    Starts a server's command with `reactor.spawnProcess`, behind the exec
    chain, with a tag from the bridge's sweeper.
    """

    def __init__(
        self,
        settings: ServerSettings,
        reactor: Any,
        sweeper: Sweeper,
        environment: Mapping[str, str] = os.environ,
        chain: Callable[[], Chain] = find_chain,
        budget: ResponseBudget | None = None,
    ) -> None:
        self._budget = budget
        self._settings = settings
        self._processes: IReactorProcess = reactor
        self._clock: IReactorTime = reactor
        self._sweeper = sweeper
        self._chain = chain
        self._environment = backend_environment(settings, environment)

    def check(self) -> str | None:
        """What is missing now, if anything."""
        try:
            self._find()
        except CannotStart as error:
            return str(error)
        return None

    def launch(self, receiver: Any, label: str) -> Deferred[StdioBackend]:
        """Look the command up afresh, and spawn it."""
        try:
            return succeed(self._spawn(self._find(), receiver, label))
        except CannotStart as error:
            return fail(error)
        except OSError as error:
            why = error.strerror or str(error)
            return fail(CannotStart(f"cannot start {self._settings.command!r}: {why}"))

    def _find(self) -> str:
        settings = self._settings
        return find_program(settings.command, self._environment, settings.cwd)

    def _spawn(self, program: str, receiver: Any, label: str) -> StdioBackend:
        tag = self._sweeper.new_tag()
        chain = self._chain()
        line = chain.wrap([program, *self._settings.args], tag, self._settings.cwd)
        sweeper = self._sweeper
        backend = StdioBackend(
            self._settings, self._clock, receiver, label, sweeper.leader_exited, self._budget
        )
        with _descriptors_closed_by_child() if chain.closes_descriptors else nullcontext():
            transport = self._processes.spawnProcess(backend, line[0], line, self._environment)
        # Without a pid it has exited and been reaped already.
        pid = transport.pid
        if pid is not None:
            keeps = tag and isinstance(transport, process.Process)
            sweeper.leader_started(pid, tag, Leader(transport, pid) if keeps else None)
        tree = TaggedTree(pid, tag, sweeper) if tag else GroupTree(pid, self._clock)
        backend.begin(pid, tree)
        return backend


@contextmanager
def _descriptors_closed_by_child() -> Iterator[None]:
    """
    Let Twisted's spawn look at three descriptors instead of all.

    It asks the system about each open descriptor, one by one, so as to close
    in the child what would be inherited: milliseconds where there are
    thousands.  Where the child closes them itself that is in vain.
    """
    listing = process._listOpenFDs
    process._listOpenFDs = lambda: [0, 1, 2]
    try:
        yield
    finally:
        process._listOpenFDs = listing
