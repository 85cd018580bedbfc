"""
Descriptors that are closed while events for them are still pending.

`epoll_wait` returns a list of events, each with the number of a descriptor.
If a handler closes one descriptor of that list and opens another, the new one
gets the same number, and would receive the event of the old one.
"""

from __future__ import annotations

import os
import select
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from mcpbridge.config.settings import ServerSettings
from mcpbridge.stdio.launcher import LocalLauncher
from mcpbridge.stdio.process_tags import new_base
from mcpbridge.stdio.process_tracker import ProcessTracker

pytestmark = pytest.mark.slow


class Receiver:
    """Calls `heard` on a line of stdout."""

    def __init__(self) -> None:
        self.heard: Any = lambda: None

    def messages_received(self, lines: list[bytes]) -> None:
        self.heard()

    def message_lost(self, lost: Any) -> None:
        pass

    def misbehaved(self, fault: str, what: str, line: bytes) -> None:
        pass

    def diagnostics_received(self, lines: list[bytes]) -> None:
        pass

    def input_closed(self, reason: str) -> None:
        pass

    def output_closed(self, reason: str) -> None:
        pass


class RecordingPipe(FileDescriptor):
    """A pipe that has just been opened, and records its events."""

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self.reading, self.writing = os.pipe()
        self.events: list[str] = []
        self.connected = 1

    def fileno(self) -> int:
        return self.reading

    def doRead(self) -> None:
        self.events.append("read")

    def connectionLost(self, reason: Failure) -> None:
        self.events.append(f"lost: {reason.getErrorMessage()}")
        super().connectionLost(reason)

    def close(self) -> None:
        self.stopReading()
        os.close(self.reading)
        os.close(self.writing)


def _readable(*descriptors: int) -> None:
    """Wait, without the reactor, until each has an event."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    while len(poll.poll()) < len(descriptors):
        pass


@pytest_twisted.ensureDeferred
async def test_backend_stopped_inside_an_event_does_not_close_a_new_descriptor() -> None:
    """
    Two events in one list: a line of the first backend, on which the second
    is stopped and a pipe is opened; and the end of the second one's stdin.
    """
    from twisted.internet import reactor

    clock: Any = reactor
    tracker = ProcessTracker(clock, new_base())

    async def launch(script: str) -> tuple[Any, Receiver]:
        settings = ServerSettings(command="sh", args=("-c", script), stop_grace=0.1, kill_grace=5)
        receiver = Receiver()
        return await LocalLauncher(settings, clock, tracker).launch(receiver, "test"), receiver

    first, speaks = await launch("read _; echo '{}'; read _")
    second, _ = await launch("read _; exec <&-; sleep 60")
    opened: list[RecordingPipe] = []
    heard: Deferred[None] = Deferred()
    stopped: list[Deferred[None]] = []

    def stop_second() -> None:
        stopped.append(second.stop())
        opened.append(RecordingPipe(clock))
        opened[0].startReading()
        heard.callback(None)

    speaks.heard = stop_second
    # The next descriptor to be opened gets the number of the next to be closed.
    fillers = [os.dup(2)]
    while fillers[-1] < 1 + max(
        first.transport.pipes[0].fileno(), second.transport.pipes[2].fileno()
    ):
        fillers.append(os.dup(2))
    first_out = first.transport.pipes[1].fileno()
    second_in = second.transport.pipes[0].fileno()
    # Both events must be there when the reactor looks next, in this order.
    first.send(b"{}")
    _readable(first_out)
    second.send(b"{}")
    _readable(first_out, second_in)
    await heard
    await deferLater(clock, 0)
    await deferLater(clock, 0)
    try:
        assert opened[0].events == []
    finally:
        stopped.append(first.stop())
        for each in stopped:
            await each
        opened[0].close()
        for filler in fillers:
            os.close(filler)
