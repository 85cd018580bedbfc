"""
Kill processes that fork faster than they are found: stop all of them, then kill them.

Uses the standard library alone, like `procfs`, since the watchdog runs it, too.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection, Mapping

if __package__:
    from mcpbridge.stdio.process_tags import newest_process
    from mcpbridge.stdio.procfs import NOTHING, Reader, Tagged, rounds, signal_if, tag_of
else:
    # Imported by the watchdog, which runs without the package.
    from process_tags import newest_process  # type: ignore[import-not-found,no-redef]
    from procfs import (  # type: ignore[import-not-found,no-redef]
        NOTHING,
        Reader,
        Tagged,
        rounds,
        signal_if,
        tag_of,
    )

#: So many newest processes are examined within a round.
CHASES = 100


def kill_pass(
    base: int,
    tags: Collection[int] | None = None,
    sessions: Mapping[int, int] = NOTHING,
    known: Mapping[int, int] = NOTHING,
    since: int = 0,
) -> int:
    """
    Kill all processes that carry one of these tags, or with None any tag of
    this base; return their number.

    A process that forks and exits faster than /proc can be read is always
    gone before SIGKILL reaches it.  So everything is stopped first: each
    process that is found gets SIGSTOP, and so does its group, unless it is a
    watchdog; the kernel signals all members of a group in one step.  A stopped
    process does not fork.  Rounds go on until one finds nothing new; then
    everything that was stopped is killed, even if a round fails.  `sessions`,
    `known` and `since` are those of `read_table`.  The calling process itself
    is spared.
    """
    stopper = _Stopper(base, tags, sessions, known)
    try:
        for pids, listed in rounds(since):
            more = sum(map(stopper.visit, pids))
            if listed:
                if not more:
                    break
                stopper.visit_newest()
    finally:
        stopper.kill()
    return len(stopper.stopped)


class _Stopper:
    """Stops the processes that are to be killed, and remembers them."""

    def __init__(
        self,
        base: int,
        tags: Collection[int] | None,
        sessions: Mapping[int, int],
        known: Mapping[int, int],
    ) -> None:
        self._base = base
        self._tags = tags
        self._sessions = sessions
        self._known = known
        self._reader = Reader(base, (), sessions, known)
        self._reader.examined.add(os.getpid())
        self._groups: set[int] = set()
        self.stopped: list[Tagged] = []

    def visit(self, pid: int) -> bool:
        """Stop a process if it is to be killed; return True if there may be more like it."""
        if pid in self._reader.examined:
            return False
        each = self._reader.examine(pid)
        if not isinstance(each, Tagged):
            return each is False
        if self._tags is not None and each.tag not in self._tags:
            return False
        if each.zombie:
            # It may have had a child since it was listed.
            return True
        self.stopped.append(each)
        self._signal(each, signal.SIGSTOP)
        # `base` itself is the tag of a watchdog.  The bridge tags it as soon as it is spawned;
        # until it has called setsid(2), its group is that of the bridge: of a script, perhaps.
        if each.tag != self._base:
            _signal_group(pid, signal.SIGSTOP, self._groups)
        return True

    def visit_newest(self) -> None:
        """
        Visit the processes that were born while the others were listed.

        A listing takes long where there are many processes.  Meanwhile the
        youngest generation has the highest pid, or nearly.
        """
        newest = 0
        for _ in range(CHASES):
            before, newest = newest, newest_process()
            if newest == before:
                return
            for pid in range(newest + 1, max(newest - 3, 1), -1):
                self.visit(pid)

    def kill(self) -> None:
        """Kill everything that was stopped."""
        for group in self._groups:
            _ignore_errors(os.killpg, group, signal.SIGKILL)
        for each in self.stopped:
            self._signal(each, signal.SIGKILL)

    def _signal(self, each: Tagged, number: int) -> None:
        def ours() -> bool:
            return is_ours(each.pid, each.tag, self._sessions, self._known)

        _ignore_errors(signal_if, each.pid, number, ours)


def is_ours(pid: int, tag: int, sessions: Mapping[int, int], known: Mapping[int, int]) -> bool:
    """Return True if a process has this tag, or provably belongs to its session without one."""
    if tag_of(pid) == tag or known.get(pid) == tag:
        return True
    try:
        return sessions.get(os.getsid(pid)) == tag
    except OSError:
        return False


def _signal_group(pid: int, number: int, groups: set[int]) -> None:
    """
    Signal the group of a process that belongs to a session of the bridge.

    All members of a process session descend from the process that began it,
    so if one of them descends from a leader, all do.  The only exception is
    this process's own session: a child is in it until it calls setsid(2).
    """
    try:
        group = os.getpgid(pid)
        if group > 1 and os.getsid(pid) != os.getsid(0) and group not in groups:
            groups.add(group)
            os.killpg(group, number)
    except OSError:
        pass


def _ignore_errors(what: Callable[..., object], *arguments: object) -> None:
    try:
        what(*arguments)
    except OSError:
        pass
