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
    process that is found gets SIGSTOP, and so does its group, for which the
    kernel signals all members in one step.  A stopped process does not fork.
    Rounds go on until one finds nothing new; then everything that was stopped
    is killed, even if a round fails.  `sessions`, `known` and `since` are
    those of `read_table`.  The calling process itself is spared.
    """
    reader = Reader(base, (), sessions, known)
    reader.examined.add(os.getpid())
    stopped: list[Tagged] = []
    groups: set[int] = set()

    def visit(pid: int) -> bool:
        """Stop a process if it is to be killed; return True if there may be more like it."""
        if pid in reader.examined:
            return False
        each = reader.examine(pid)
        if not isinstance(each, Tagged):
            return each is False
        if tags is not None and each.tag not in tags:
            return False
        if each.zombie:
            # It may have had a child since it was listed.
            return True
        stopped.append(each)
        _signal(each, signal.SIGSTOP, sessions, known)
        _signal_group(pid, signal.SIGSTOP, groups)
        return True

    try:
        for pids, listed in rounds(since):
            more = sum(map(visit, pids))
            # A listing takes long where there are many processes.  Meanwhile the youngest
            # generation has the highest pid, or nearly.
            newest = 0
            for _ in range(CHASES if more and listed else 0):
                before, newest = newest, newest_process()
                if newest == before:
                    break
                for pid in range(newest + 1, max(newest - 3, 1), -1):
                    visit(pid)
            if listed and not more:
                break
    finally:
        for group in groups:
            _ignore_errors(os.killpg, group, signal.SIGKILL)
        for each in stopped:
            _signal(each, signal.SIGKILL, sessions, known)
    return len(stopped)


def is_ours(pid: int, tag: int, sessions: Mapping[int, int], known: Mapping[int, int]) -> bool:
    """Return True if a process has this tag, or provably belongs to its session without one."""
    if tag_of(pid) == tag or known.get(pid) == tag:
        return True
    try:
        return sessions.get(os.getsid(pid)) == tag
    except OSError:
        return False


def _signal(
    each: Tagged, number: int, sessions: Mapping[int, int], known: Mapping[int, int]
) -> None:
    def ours() -> bool:
        return is_ours(each.pid, each.tag, sessions, known)

    _ignore_errors(signal_if, each.pid, number, ours)


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
