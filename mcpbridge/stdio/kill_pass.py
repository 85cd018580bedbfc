"""
A kill that cannot be outrun: everything is stopped before anything is killed.

Uses the standard library alone, like `procfs`: the watchdog runs it too.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection, Mapping

if __package__:
    from mcpbridge.stdio.process_tags import newest_process
    from mcpbridge.stdio.procfs import NOTHING, Reader, Tagged, rounds, signal_if, tag_of
else:
    # Beside the watchdog, which runs without the package.
    from process_tags import newest_process  # type: ignore[import-not-found,no-redef]
    from procfs import (  # type: ignore[import-not-found,no-redef]
        NOTHING,
        Reader,
        Tagged,
        rounds,
        signal_if,
        tag_of,
    )

#: How often the newest process is asked for within a round.
CHASES = 100


def kill_pass(
    base: int,
    tags: Collection[int] | None = None,
    sessions: Mapping[int, int] = NOTHING,
    known: Mapping[int, int] = NOTHING,
    since: int = 0,
) -> int:
    """
    Kill what carries one of these tags (None: any of this base), so that it
    cannot outrun it; return how many processes that were.

    A process that renews itself faster than /proc can be read is never there
    any more when SIGKILL comes.  So everything is stopped first: SIGSTOP to
    each process that is found, and at once to its group, which the kernel
    does for all members in one step.  What is stopped does not fork.  Passes
    go on until one finds nothing new; then all that was stopped is killed,
    also where a pass fails.  `sessions`, `known` and `since` as in
    `read_table`.  This process itself is spared.
    """
    reader = Reader(base, (), sessions, known)
    reader.examined.add(os.getpid())
    stopped: list[Tagged] = []
    groups: set[int] = set()

    def visit(pid: int) -> bool:
        """Stop a process if it is to be killed; whether there may be more like it."""
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
            # A listing takes its time where there are many processes; the
            # youngest generation has the highest number, or nearly.
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
    """Whether a process has this tag, or is proven to be of its session without one."""
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
    Signal the group of a process of ours.

    All members of a process session descend from the one that began it, so
    where one is below a leader all are.  The session of this process itself
    is another matter: the child is in it until it has called setsid(2).
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
