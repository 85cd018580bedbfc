"""
The shutdown sequence of a backend's whole process tree, as a state machine.

Close stdin; after the stop grace send SIGTERM; after the kill grace send
SIGKILL, again and again until nothing is left.  If the leader has exited and
left others behind, they get SIGTERM at once: those in its process group before
anything is searched for.  Knows the order and the graces;
does not know how processes are found or signalled.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from automat import TypeMachineBuilder, pep614
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.guard import guarded
from mcpbridge.timers import Timer, backoff

#: The pause between two SIGKILLs for what does not die: the first, the longest.
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 5.0
#: With so many SIGKILLs the log reports that they have no effect.
KILLS_BEFORE_WARNING = 6
#: That report names so many of the remaining processes.
SHOWN_PROCESSES = 8

_KILL_PAUSES = backoff(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)


class Tree(Protocol):
    """A process tree: its leader, and the rest."""

    def signal_leader(self, number: int) -> None:
        """Signal the leader, if it is not reaped, and its group."""

    def terminate_group(self) -> None:
        """Send SIGTERM to what a leader that has exited has left in its group."""

    def signal_rest(self, pids: list[int], number: int) -> None:
        """
        Signal these processes, if they still belong to this tree.  SIGTERM is
        not sent again to those that have had it with their group.
        """

    def look(self) -> Deferred[list[int]]:
        """Find the rest anew; return a `Deferred` of its pids."""


class Shutdown(Protocol):
    """The inputs of the state machine."""

    def stop(self) -> None:
        """End the backend.  May be called more than once."""

    def leader_exited(self) -> None:
        """Note that the leader has exited."""

    def time_up(self) -> None:
        """Note that the present grace or pause is over."""

    def found_some(self, pids: list[int]) -> None:
        """Note that a look has found these processes beside the leader."""

    def found_none(self) -> None:
        """Note that a look has found nothing beside the leader."""


@dataclass(eq=False, slots=True)
class ShutdownActions:
    """
    The actions of the state machine, and what they need to know.

    `close_stdin` closes the backend's stdin; `gone` is called once, when
    nothing is left of the tree.  `kill_pause` returns the pause in seconds
    after that many SIGKILLs.
    """

    clock: IReactorTime
    label: str
    tree: Tree
    stop_grace: float
    kill_grace: float
    close_stdin: Callable[[], None]
    gone: Callable[[], None]
    kill_pause: Callable[[int], float] = _KILL_PAUSES
    #: True once the leader was signalled.
    signalled: bool = False
    _timer: Timer = field(init=False)
    _looking: bool = False
    _look_failed: bool = False
    #: The pids that have had a SIGTERM; those that a SIGKILL has left.
    _terminated: frozenset[int] = frozenset()
    _left: tuple[int, ...] = ()
    _kills: int = 0
    log: ClassVar[Logger] = Logger()

    def __post_init__(self) -> None:
        self._timer = Timer(self.clock)

    def wait(self, machine: Shutdown, seconds: float) -> None:
        """Start a grace or a pause instead of the present one."""
        self._timer.start(seconds, machine.time_up)

    def hurry(self, machine: Shutdown) -> None:
        """Allow no graces any more: what is signalled from now on gets SIGKILL at once."""
        self.stop_grace = self.kill_grace = 0.0
        if self._timer.is_running:
            self._timer.start(0, machine.time_up)

    def stop_waiting(self) -> None:
        """Cancel the present grace or pause."""
        self._timer.stop()

    def look(self, machine: Shutdown) -> None:
        """Look at the tree, unless a look is under way."""
        if self._looking:
            return
        self._looking = True

        def looked(pids: list[int]) -> None:
            self._looking = False
            if pids:
                machine.found_some(pids)
            else:
                machine.found_none()

        def failed(why: Any) -> None:
            # Out of descriptors, for example: what was not seen may still be there.
            if not self._look_failed:
                self._look_failed = True
                self.log.failure(
                    "cannot look at the processes of {session}; its slot stays taken and that"
                    " is tried again",
                    why,
                    session=self.label,
                )
            self.clock.callLater(LONGEST_PAUSE_SECONDS, look_again)

        def look_again() -> None:
            self._looking = False
            self.look(machine)

        self.tree.look().addCallbacks(looked, failed)

    def signal_leader(self, number: int) -> None:
        """Signal the leader and its group."""
        self.signalled = True
        guarded(self.log, "signalling a backend", self.tree.signal_leader, number)

    def terminate_group(self) -> None:
        """Send SIGTERM to what the leader has left in its group."""
        guarded(self.log, "SIGTERM for a group", self.tree.terminate_group)

    def terminate(self, pids: list[int]) -> None:
        """Send SIGTERM to those of the rest that have not had one."""
        fresh = [pid for pid in pids if pid not in self._terminated]
        self._terminated |= set(fresh)
        guarded(self.log, "SIGTERM", self.tree.signal_rest, fresh, signal.SIGTERM)

    def kill(self, pids: list[int]) -> None:
        """Send SIGKILL to the rest."""
        self._left = tuple(pids)
        guarded(self.log, "SIGKILL", self.tree.signal_rest, pids, signal.SIGKILL)

    def wait_after_kill(self, machine: Shutdown) -> None:
        """Pause before the next SIGKILL, and report it once if many had no effect."""
        pause = self.kill_pause(self._kills)
        self._kills += 1
        if self._kills == KILLS_BEFORE_WARNING:
            self.log.error(
                "processes of {session} do not die from SIGKILL{which}; its slot stays taken"
                " and they are tried again",
                session=self.label,
                which="".join(f", {pid}" for pid in self._left[:SHOWN_PROCESSES]),
            )
        self.wait(machine, pause)


def _build() -> Callable[[ShutdownActions], Shutdown]:
    builder = TypeMachineBuilder(Shutdown, ShutdownActions)

    running = builder.state("running")
    closing = builder.state("closing: stdin is closed")
    searching = builder.state("searching: the leader has exited by itself")
    terminating = builder.state("terminating: SIGTERM was sent, the leader lives")
    terminating_rest = builder.state("terminating the rest")
    killing = builder.state("killing: SIGKILL was sent, the leader lives")
    killing_rest = builder.state("killing the rest")
    gone = builder.state("gone")

    @pep614(running.upon(Shutdown.stop).to(closing))
    def close_stdin(machine: Shutdown, actions: ShutdownActions) -> None:
        guarded(actions.log, "closing a backend's stdin", actions.close_stdin)
        actions.wait(machine, actions.stop_grace)

    @pep614(running.upon(Shutdown.leader_exited).to(searching))
    @pep614(closing.upon(Shutdown.leader_exited).to(searching))
    def search(machine: Shutdown, actions: ShutdownActions) -> None:
        actions.stop_waiting()
        actions.terminate_group()
        actions.look(machine)

    @pep614(closing.upon(Shutdown.time_up).to(terminating))
    def terminate(machine: Shutdown, actions: ShutdownActions) -> None:
        actions.signal_leader(signal.SIGTERM)
        actions.wait(machine, actions.kill_grace)
        actions.look(machine)

    # Processes that have left the leader's group, while the leader lives.
    @pep614(terminating.upon(Shutdown.found_some).loop())
    def terminate_beside_leader(
        machine: Shutdown, actions: ShutdownActions, pids: list[int]
    ) -> None:
        actions.terminate(pids)

    @pep614(searching.upon(Shutdown.found_some).to(terminating_rest))
    def terminate_rest(machine: Shutdown, actions: ShutdownActions, pids: list[int]) -> None:
        actions.terminate(pids)
        actions.wait(machine, actions.kill_grace)
        actions.look(machine)

    # The kill grace goes on: it began with the first SIGTERM.
    @pep614(terminating_rest.upon(Shutdown.found_some).loop())
    def terminate_newborn(machine: Shutdown, actions: ShutdownActions, pids: list[int]) -> None:
        actions.terminate(pids)
        actions.look(machine)

    @pep614(terminating.upon(Shutdown.leader_exited).to(terminating_rest))
    @pep614(killing.upon(Shutdown.leader_exited).to(killing_rest))
    def look_for_rest(machine: Shutdown, actions: ShutdownActions) -> None:
        actions.look(machine)

    @pep614(terminating.upon(Shutdown.time_up).to(killing))
    @pep614(killing.upon(Shutdown.time_up).loop())
    def kill(machine: Shutdown, actions: ShutdownActions) -> None:
        actions.signal_leader(signal.SIGKILL)
        actions.wait_after_kill(machine)
        actions.look(machine)

    @pep614(terminating_rest.upon(Shutdown.time_up).to(killing_rest))
    @pep614(killing_rest.upon(Shutdown.time_up).loop())
    def look_before_kill(machine: Shutdown, actions: ShutdownActions) -> None:
        actions.look(machine)

    @pep614(killing.upon(Shutdown.found_some).loop())
    def kill_beside_leader(machine: Shutdown, actions: ShutdownActions, pids: list[int]) -> None:
        actions.kill(pids)

    @pep614(killing_rest.upon(Shutdown.found_some).loop())
    def kill_rest(machine: Shutdown, actions: ShutdownActions, pids: list[int]) -> None:
        actions.kill(pids)
        actions.wait_after_kill(machine)

    @pep614(searching.upon(Shutdown.found_none).to(gone))
    @pep614(terminating_rest.upon(Shutdown.found_none).to(gone))
    @pep614(killing_rest.upon(Shutdown.found_none).to(gone))
    def nothing_left(machine: Shutdown, actions: ShutdownActions) -> None:
        actions.stop_waiting()
        actions.gone()

    # A second `stop` changes nothing, nor does an empty look while the leader lives.
    for state, ignored in (
        (closing, (Shutdown.stop,)),
        (searching, (Shutdown.stop,)),
        (terminating, (Shutdown.stop, Shutdown.found_none)),
        (terminating_rest, (Shutdown.stop,)),
        (killing, (Shutdown.stop, Shutdown.found_none)),
        (killing_rest, (Shutdown.stop,)),
        (gone, (Shutdown.stop,)),
    ):
        for each in ignored:
            state.upon(each).loop().returns(None)

    return builder.build()


#: Make a state machine from its actions.
build_shutdown = _build()
