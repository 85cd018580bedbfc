"""
The stop ladder of a backend's whole process tree, as a machine.

stdin closed, then after the stop grace SIGTERM, then after the kill grace
SIGKILL, again and again until nothing is left.  Where the leader has exited
and others are left, SIGTERM at once.  Knows the order and the graces; must
not know how a process is found or signalled.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from automat import TypeMachineBuilder, pep614
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from mcpbridge.guard import guarded

#: Between two SIGKILLs for what does not die: at first, at most, and after
#: how many of them the log says so.
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 5.0
KILLS_BEFORE_WARNING = 6
#: How many of those that are left this names.
SHOWN_PROCESSES = 8


class Tree(Protocol):
    """A process tree: a leader, and the rest."""

    def signal_leader(self, number: int) -> None:
        """Signal the leader, which has not been reaped, and its group."""

    def signal_rest(self, pids: list[int], number: int) -> None:
        """Signal these processes, if they are still of this tree."""

    def look(self) -> Deferred[list[int]]:
        """The pids of the rest, found afresh."""


class Ladder(Protocol):
    """The inputs."""

    def stop(self) -> None:
        """The backend is to end."""

    def leader_exited(self) -> None:
        """The leader has exited and is reaped."""

    def time_up(self) -> None:
        """The present grace is over."""

    def found_some(self, pids: list[int]) -> None:
        """A look at the tree has found these, beside the leader."""

    def found_none(self) -> None:
        """A look at the tree has found nothing beside the leader."""


@dataclass(eq=False, slots=True)
class Rungs:
    """What the ladder stands on."""

    clock: IReactorTime
    label: str
    tree: Tree
    stop_grace: float
    kill_grace: float
    close_stdin: Callable[[], None]
    gone: Callable[[], None]
    timer: IDelayedCall | None = None
    looking: bool = False
    terminated: frozenset[int] = frozenset()
    signalled: bool = False
    kills: int = 0
    left: tuple[int, ...] = ()
    complained: bool = False
    pause: float = FIRST_PAUSE_SECONDS
    log: ClassVar[Logger] = Logger()

    def wait(self, ladder: Ladder, seconds: float) -> None:
        """Start the timer of a grace, in the place of the one before."""
        self.wait_no_more()
        self.timer = self.clock.callLater(seconds, self._fire, ladder)

    def wait_no_more(self) -> None:
        """Stop the timer."""
        timer, self.timer = self.timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _fire(self, ladder: Ladder) -> None:
        self.timer = None
        ladder.time_up()

    def look(self, ladder: Ladder) -> None:
        """Look at the tree; one look at a time."""
        if self.looking:
            return
        self.looking = True

        def looked(pids: list[int]) -> None:
            self.looking = False
            if pids:
                ladder.found_some(pids)
            else:
                ladder.found_none()

        def failed(why: Any) -> None:
            # Out of descriptors, say: what was not seen is not gone.
            if not self.complained:
                self.complained = True
                self.log.failure(
                    "cannot look at the processes of {label}; its permit stays taken and that"
                    " is tried again",
                    why,
                    label=self.label,
                )
            self.clock.callLater(LONGEST_PAUSE_SECONDS, look_again)

        def look_again() -> None:
            self.looking = False
            self.look(ladder)

        self.tree.look().addCallbacks(looked, failed)

    def signal_leader(self, number: int) -> None:
        """Signal the leader and its group."""
        self.signalled = True
        guarded(self.log, "signalling a backend", self.tree.signal_leader, number)

    def terminate(self, pids: list[int]) -> None:
        """SIGTERM to those of the rest that have not had one."""
        fresh = [pid for pid in pids if pid not in self.terminated]
        self.terminated |= set(fresh)
        guarded(self.log, "SIGTERM", self.tree.signal_rest, fresh, signal.SIGTERM)

    def kill(self, pids: list[int]) -> None:
        """SIGKILL to the rest; say so where it does not help."""
        self.left = tuple(pids)
        guarded(self.log, "SIGKILL", self.tree.signal_rest, pids, signal.SIGKILL)

    def wait_longer(self, ladder: Ladder) -> None:
        """The pause before the next SIGKILL, and a warning when there were many."""
        self.kills += 1
        if self.kills == KILLS_BEFORE_WARNING:
            self.log.error(
                "processes of {label} do not die from SIGKILL{which}; its permit stays taken"
                " and they are tried again",
                label=self.label,
                which="".join(f", {pid}" for pid in self.left[:SHOWN_PROCESSES]),
            )
        self.wait(ladder, self.pause)
        self.pause = min(self.pause * 2, LONGEST_PAUSE_SECONDS)


def _build() -> Callable[[Rungs], Ladder]:
    machine = TypeMachineBuilder(Ladder, Rungs)

    running = machine.state("running")
    closing = machine.state("closing: stdin is closed")
    searching = machine.state("searching: the leader has exited by itself")
    terminating = machine.state("terminating: SIGTERM was sent, the leader lives")
    terminating_rest = machine.state("terminating the rest")
    killing = machine.state("killing: SIGKILL was sent, the leader lives")
    killing_rest = machine.state("killing the rest")
    gone = machine.state("gone")

    @pep614(running.upon(Ladder.stop).to(closing))
    def close_stdin(ladder: Ladder, rungs: Rungs) -> None:
        guarded(rungs.log, "closing a backend's stdin", rungs.close_stdin)
        rungs.wait(ladder, rungs.stop_grace)

    @pep614(running.upon(Ladder.leader_exited).to(searching))
    @pep614(closing.upon(Ladder.leader_exited).to(searching))
    def search(ladder: Ladder, rungs: Rungs) -> None:
        rungs.wait_no_more()
        rungs.look(ladder)

    @pep614(closing.upon(Ladder.time_up).to(terminating))
    def terminate(ladder: Ladder, rungs: Rungs) -> None:
        rungs.signal_leader(signal.SIGTERM)
        rungs.wait(ladder, rungs.kill_grace)
        rungs.look(ladder)

    @pep614(terminating.upon(Ladder.found_some).loop())
    def terminate_strays(ladder: Ladder, rungs: Rungs, pids: list[int]) -> None:
        rungs.terminate(pids)

    @pep614(searching.upon(Ladder.found_some).to(terminating_rest))
    def terminate_rest(ladder: Ladder, rungs: Rungs, pids: list[int]) -> None:
        rungs.terminate(pids)
        rungs.wait(ladder, rungs.kill_grace)
        rungs.look(ladder)

    @pep614(terminating_rest.upon(Ladder.found_some).loop())
    def still_there(ladder: Ladder, rungs: Rungs, pids: list[int]) -> None:
        rungs.terminate(pids)
        rungs.look(ladder)

    @pep614(terminating.upon(Ladder.leader_exited).to(terminating_rest))
    @pep614(killing.upon(Ladder.leader_exited).to(killing_rest))
    def look_for_rest(ladder: Ladder, rungs: Rungs) -> None:
        rungs.look(ladder)

    @pep614(terminating.upon(Ladder.time_up).to(killing))
    @pep614(killing.upon(Ladder.time_up).loop())
    def kill(ladder: Ladder, rungs: Rungs) -> None:
        rungs.signal_leader(signal.SIGKILL)
        rungs.wait_longer(ladder)
        rungs.look(ladder)

    @pep614(terminating_rest.upon(Ladder.time_up).to(killing_rest))
    @pep614(killing_rest.upon(Ladder.time_up).loop())
    def look_and_kill(ladder: Ladder, rungs: Rungs) -> None:
        rungs.look(ladder)

    @pep614(killing.upon(Ladder.found_some).loop())
    def kill_strays(ladder: Ladder, rungs: Rungs, pids: list[int]) -> None:
        rungs.kill(pids)

    @pep614(killing_rest.upon(Ladder.found_some).loop())
    def kill_rest(ladder: Ladder, rungs: Rungs, pids: list[int]) -> None:
        rungs.kill(pids)
        rungs.wait_longer(ladder)

    @pep614(searching.upon(Ladder.found_none).to(gone))
    @pep614(terminating_rest.upon(Ladder.found_none).to(gone))
    @pep614(killing_rest.upon(Ladder.found_none).to(gone))
    def nothing_left(ladder: Ladder, rungs: Rungs) -> None:
        rungs.wait_no_more()
        rungs.gone()

    for state, inputs in (
        (closing, (Ladder.stop,)),
        (searching, (Ladder.stop,)),
        (terminating, (Ladder.stop, Ladder.found_none)),
        (terminating_rest, (Ladder.stop,)),
        (killing, (Ladder.stop, Ladder.found_none)),
        (killing_rest, (Ladder.stop,)),
        (gone, (Ladder.stop,)),
    ):
        for each in inputs:
            state.upon(each).loop().returns(None)

    return machine.build()


build_ladder = _build()
