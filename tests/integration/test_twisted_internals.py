"""The private names of Twisted that only a real process can test; unit tests cover the others."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet import process
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from mcpbridge.twisted_internals import descriptors_closed_by_child


class Ended(ProcessProtocol):
    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()

    def processEnded(self, reason: Failure) -> None:
        self.ended.callback(None)


@pytest_twisted.ensureDeferred
async def test_spawned_process_closes_no_inherited_descriptors(
    running_reactor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`spawnProcess` looks up the replaced function by its name."""
    listed: list[int] = []
    original = process._listOpenFDs

    def counting() -> Any:
        listed.append(1)
        return original()

    monkeypatch.setattr(process, "_listOpenFDs", counting)
    program = "/bin/true"

    def spawn() -> Ended:
        protocol = Ended()
        running_reactor.spawnProcess(protocol, program, [program], {})
        return protocol

    await spawn().ended
    assert listed
    listed.clear()
    with descriptors_closed_by_child():
        assert list(process._listOpenFDs()) == [0, 1, 2]
        protocol = spawn()
    await protocol.ended
    assert listed == []
    assert process._listOpenFDs is counting
