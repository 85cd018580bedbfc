"""
Spread starts and ends of processes, and ends of connections, over iterations of the
reactor.

To start a process takes a millisecond, and the steps of its end nearly as long.
When hundreds start or end at one time, all other clients would wait for them.
Knows time; does not know what a step does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from mcpbridge.guard import guarded

#: The steps of one iteration begin within this time.
PACED_SECONDS = 0.002
#: The key of all steps by which processes end, and of those by which connections do.
ENDS = "ends"
LOST_CONNECTIONS = "lost connections"

Step = Callable[[], object]


class Pacer:
    """
    Runs steps at once while an iteration of the reactor has time for them, and others later.

    Steps of one key run in the order in which they came.  Different keys take
    turns, so that many steps of one do not delay the only one of another.  At
    least one step runs in each iteration.  There is no limit on their number
    here: each belongs to a process or to a connection, and these are limited.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        # Each access to `Logger` through an instance makes a new one.
        self._log = self.log
        #: The steps that wait, by key.  The key that is next comes first.
        self._waiting: dict[Hashable, deque[Step]] = {}
        #: Seconds that steps have taken in this iteration.
        self._spent = 0.0
        #: True from the first step of an iteration until the next iteration begins.
        self._counting = False
        #: True while a step runs; its time includes that of the steps that it asks for.
        self._running = False

    def run(self, key: Hashable, step: Step) -> None:
        """Run a step, which must not raise, at once or after those that wait."""
        if self._waiting or self._spent >= PACED_SECONDS:
            self._waiting.setdefault(key, deque()).append(step)
            self._count()
        else:
            self._run(step)

    def cancel(self, key: Hashable, step: Step) -> None:
        """Do not run a step that waits."""
        steps = self._waiting.get(key)
        if steps is not None and step in steps:
            steps.remove(step)
            if not steps:
                del self._waiting[key]

    def _run(self, step: Step) -> None:
        if self._running:
            guarded(self._log, "a paced step", step)
            return
        began = self._clock.seconds()
        self._running = True
        try:
            guarded(self._log, "a paced step", step)
        finally:
            # `guarded` lets KeyboardInterrupt and the like through, for the reactor to report.
            self._running = False
            self._spent += max(0.0, self._clock.seconds() - began)
            if self._spent:
                self._count()

    def _count(self) -> None:
        if not self._counting:
            self._counting = True
            self._clock.callLater(0, self._next_iteration)

    def _next_iteration(self) -> None:
        self._spent, self._counting = 0.0, False
        while self._waiting and self._spent < PACED_SECONDS:
            key, steps = next(iter(self._waiting.items()))
            # Behind the others, if it has more.
            del self._waiting[key]
            step = steps.popleft()
            if steps:
                self._waiting[key] = steps
            self._run(step)
        if self._waiting:
            self._count()
