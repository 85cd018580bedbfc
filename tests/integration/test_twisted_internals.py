"""The private names of Twisted that only a real process can test; unit tests cover the others."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import process
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from mcpbridge.twisted_internals import spawn_prepared


class Ended(ProcessProtocol):
    def __init__(self) -> None:
        self.output = b""
        self.ended: Deferred[Failure] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.output += data

    def processEnded(self, reason: Failure) -> None:
        self.ended.callback(reason.value)  # type: ignore[arg-type]


@pytest_twisted.ensureDeferred
async def test_prepared_process_is_spawned_without_a_look_at_descriptors_and_signals(
    running_reactor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No signal is ignored in it, though Python ignores some; its three pipes work."""

    def never() -> list[int]:
        raise AssertionError("it was called")

    monkeypatch.setattr(process, "_listOpenFDs", never)
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
    protocol = Ended()
    script = "read line; echo $line $X; grep SigIgn /proc/self/status; exit 7"
    transport: Any = spawn_prepared(
        running_reactor, protocol, ["/bin/sh", "-c", script], {"X": "\u00e9"}
    )
    transport.write(b"in\n")
    ended: Any = await protocol.ended
    first, second = protocol.output.decode().splitlines()
    assert first == "in \u00e9"
    assert int(second.split()[1], 16) & 0x7FFFFFFF == 0
    assert ended.exitCode == 7


@pytest_twisted.ensureDeferred
async def test_prepared_process_that_cannot_be_spawned(running_reactor: Any) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):
        spawn_prepared(running_reactor, Ended(), ["/nonexistent"], {})
    assert os.listdir("/proc/self/fd") == before
