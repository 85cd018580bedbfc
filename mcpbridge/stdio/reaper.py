"""
Reap children that the bridge has adopted from its sessions.

Where the bridge is a child subreaper, orphans of its sessions become its own
children, and it must reap them when they exit.  Twisted reaps only what it
has spawned, by pid; an embedding application may have children, too.  So a
child is reaped only if it carries one of the bridge's tags: the exit status
of anybody else's child is left alone.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping

from twisted.internet.interfaces import IReactorTime

from mcpbridge.stdio import process_tags, procfs
from mcpbridge.timers import Timer

#: How often adopted children are reaped while there are sessions.
REAP_SECONDS = 0.25
#: So many children are examined before the reactor serves others.
REAPED_AT_ONCE = 500


class Reaper:
    """
    Reaps adopted children every `REAP_SECONDS` while there are `leaders`.

    `leaders` maps the pids that are Twisted's or a `Leader`'s to reap to
    their tags.  `sweep_for_zombies` is called where the kernel has no list of
    children, to reap what a reading of the process table finds.
    """

    def __init__(
        self,
        clock: IReactorTime,
        base: int,
        leaders: Mapping[int, int],
        sweep_for_zombies: Callable[[], None],
    ) -> None:
        self._base = base
        self._leaders = leaders
        self._sweep_for_zombies = sweep_for_zombies
        #: Leaders that are dead, whose tracers do not let them be reaped yet.
        self._traced: set[int] = set()
        self._timer = Timer(clock)

    def start(self) -> None:
        """Begin to reap, unless that has begun."""
        if not self._timer.is_running:
            self._timer.start(REAP_SECONDS, self._reap_adopted)

    def stop_if_idle(self) -> None:
        """Reap for the last time if no leader is left."""
        if not self._leaders and not self._traced and self._timer.is_running:
            self._timer.stop()
            # Zombies are all that may be left of the last session.
            for child in procfs.own_children() or ():
                self._reap_child(child)

    def reap_leader(self, pid: int) -> None:
        """Reap a leader that has exited, at once or when its tracer lets go."""
        if not reap(pid):
            self._traced.add(pid)

    def _reap_adopted(self) -> None:
        """
        Look for exited children by the kernel's list of children.

        That costs a few microseconds for each child that is no leader, whatever
        else runs on the machine.  A process that forks and exits without end leaves
        thousands of zombies in a second: if they were looked for in the whole
        process table, for at most a tenth of the time, each look would find
        more of them than the last.
        """
        self._traced = {pid for pid in self._traced if not reap(pid)}
        if not self._leaders and not self._traced:
            return
        if not any_exited():
            # Nearly always.  To ask each of a thousand children for its tag takes 30 ms.
            self._reap_later()
            return
        children = procfs.own_children()
        if children is None:
            self._sweep_for_zombies()
            self._reap_later()
        else:
            self._reap_some(deque(children))

    def _reap_some(self, children: deque[int]) -> None:
        for _ in range(min(REAPED_AT_ONCE, len(children))):
            self._reap_child(children.popleft())
        if children:
            self._timer.start(0, self._reap_some, children)
        else:
            self._reap_later()

    def _reap_later(self) -> None:
        if self._leaders or self._traced:
            self._timer.start(REAP_SECONDS, self._reap_adopted)

    def _reap_child(self, pid: int) -> None:
        if pid in self._leaders:
            return
        try:
            tag = procfs.tag_of(pid)
        except OSError:
            return
        # The first tag is the watchdog's, which Twisted reaps.
        if self._base < tag < self._base + process_tags.TAGS:
            reap(pid)


def any_exited() -> bool:
    """Tell whether any child has exited that is not reaped; True if the system cannot tell."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False
    except (AttributeError, OSError):
        return True


def reap(pid: int) -> bool:
    """Reap one child if it has exited; return False if it has not."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
