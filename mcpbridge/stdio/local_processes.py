"""
Hold what all local backends of a bridge share.

That is the tags of its processes, the readings of the process table, the
watchdog that cleans up after the bridge, and the state file, by which a later
start does so if the watchdog could not.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.guard import guarded
from mcpbridge.pacer import Pacer
from mcpbridge.process_usage import Usage
from mcpbridge.response_budget import ResponseBudget
from mcpbridge.stdio.cleanup_records import CleanupRecords
from mcpbridge.stdio.confinement import temporary_folder
from mcpbridge.stdio.exec_chain import Chain, PythonShim, find_chain
from mcpbridge.stdio.launcher import LocalLauncher
from mcpbridge.stdio.prctl import set_child_subreaper
from mcpbridge.stdio.private_tmp import PrivateFolder
from mcpbridge.stdio.process_tags import new_base, shortcomings
from mcpbridge.stdio.process_tracker import ProcessTracker
from mcpbridge.stdio.recovery import Journal, Recovery
from mcpbridge.stdio.state_file import candidates
from mcpbridge.stdio.system_limits import limit_warnings, raise_descriptor_limit, sessions_of
from mcpbridge.stdio.tree_usage import TreeUsage
from mcpbridge.stdio.watchdog import END_SECONDS, Watchdog
from mcpbridge.stdio.watchdog_program import DIRECTORY_SECONDS


class LocalProcesses:
    """
    Makes the launchers of local backends, and starts and stops what they share.

    Nothing is started until `start`, and without a launcher nothing at all.
    """

    log = Logger()

    def __init__(self, reactor: Any, environment: Mapping[str, str]) -> None:
        self._reactor = reactor
        self._environment = environment
        records = CleanupRecords()
        self._base = new_base()
        self._journal = Journal(reactor, records)
        self._watchdog = Watchdog(reactor, self._base, records, self._journal.changed)
        self._recovery = Recovery(reactor, self._base)
        self._folder = PrivateFolder(temporary_folder(environment), self._watchdog)
        self._pacer = Pacer(reactor)
        self._tracker = ProcessTracker(reactor, self._base, self._watchdog, pacer=self._pacer)
        self._usage = TreeUsage(self._base, self._tracker.leaders)
        #: The value of the label by which this bridge's containers differ from all others.
        self._bridge_id = f"{self._base:x}-{secrets.token_hex(8)}"
        self._launchers: list[LocalLauncher] = []
        self._started = False
        #: The limit on descriptors that this process had before it was raised; 0 if it was not.
        self._descriptors = 0
        #: The exec chain that gives backends the limit on descriptors that this process
        #: had; None while it has that limit itself.
        self._chain: Chain | None = None

    def launcher(self, settings: ServerSettings, budget: ResponseBudget) -> LocalLauncher:
        """Make the launcher of one server."""
        made = LocalLauncher(
            settings,
            self._reactor,
            self._tracker,
            self._environment,
            lambda: self._chain or find_chain(),
            budget=budget,
            cleanup=self._watchdog,
            bridge_id=self._bridge_id,
            pacer=self._pacer,
            folder=self._folder,
        )
        self.include(made)
        return made

    def include(self, launcher: LocalLauncher) -> None:
        """Start what local backends need also for this launcher, which somebody else made."""
        self._launchers.append(launcher)

    def exclude(self, launcher: Any) -> None:
        """Let a launcher go, from which nothing is started any more."""
        if launcher in self._launchers:
            self._launchers.remove(launcher)

    @property
    def is_used(self) -> bool:
        """True if a server has a local launcher."""
        return bool(self._launchers)

    @property
    def starts_containers(self) -> bool:
        """True if the command of a server starts containers."""
        return any(each.starts_containers for each in self._launchers)

    @property
    def longest_stop(self) -> float:
        """The most seconds that `stop_watchdog` takes."""
        if any(each.makes_directories for each in self._launchers):
            return END_SECONDS + DIRECTORY_SECONDS
        return END_SECONDS if self.is_used else 0.0

    def start(self, settings: BridgeSettings) -> None:
        """
        Prepare this process for backends, start the watchdog, and clean up after dead bridges.

        Logs what this machine lacks.  A second call is for other settings: it raises the
        limit on descriptors if these need more.
        """
        if not self.is_used:
            return
        self._raise_limits(settings)
        if self._started:
            return
        self._started = True
        missing = shortcomings()
        if missing:
            self.log.warn("processes of backends: {missing}", missing="; ".join(missing))
        if isinstance(find_chain(), PythonShim):
            self.log.info(
                "no compiled helper program and no util-linux: backends start more slowly"
            )
        # An embedding application may have children of its own: unless it is told to, an
        # embedded bridge, which has no listeners, does not adopt orphans.
        wanted = settings.child_subreaper
        if wanted if wanted is not None else bool(settings.listen):
            set_child_subreaper(True)
        if self._base:
            folders = candidates(settings.state_dir, self._environment, os.geteuid())
            self._journal.open(folders, self._base)
            self._watchdog.start()
            self._recovery.start(folders)

    def _raise_limits(self, settings: BridgeSettings) -> None:
        """Raise what these settings need, and warn of what cannot be raised."""
        # Also an embedding application gets a higher limit if the bridge has the listeners.
        raised = raise_descriptor_limit(settings) if settings.listen else None
        if raised is not None:
            before, after = raised
            # Backends get that of the start, not what other settings have raised it to since.
            before = self._descriptors = self._descriptors or before
            self._chain = replace(find_chain(), descriptors=before)
            self.log.info(
                "raised the limit on file descriptors from {before} to {after}, for {sessions}"
                " sessions; backends get the limit of {before}",
                before=before,
                after=after,
                sessions=sessions_of(settings),
            )
        for warning in limit_warnings(settings):
            self.log.warn("{warning}", warning=warning)

    def read_usage(self) -> Generator[None, None, dict[int, Usage]]:
        """
        Find out what the tree of each session uses, by the pid of its leader, and this process
        by its own; a generator that yields now and then.
        """
        return self._usage.read(self._tracker.untagged())

    def begin_stop(self) -> None:
        """Leave temporary files to the watchdog, if there is one, before all sessions are ended."""
        if self._watchdog.is_running:
            self._folder.interrupt()

    def stop_recovery(self) -> Deferred[None]:
        """Stop cleaning up after dead bridges; fires when that has ended."""
        return self._recovery.stop()

    def stop_watchdog(self) -> Deferred[bool]:
        """Let the watchdog clean up and end; fires with True if it reports that nothing is left."""
        guarded(self.log, "removing temporary files", self._folder.stop)

        def ended(nothing_left: bool) -> bool:
            guarded(self.log, "looking for temporary files", self._folder.report_rest)
            return nothing_left

        return self._watchdog.stop().addCallback(ended)

    def close(self, *, clean: bool) -> None:
        """Close the state file; remove it if nothing is left (`clean`).  `start` may follow."""
        self._started = False
        guarded(self.log, "closing the state file", lambda: self._journal.close(clean=clean))
