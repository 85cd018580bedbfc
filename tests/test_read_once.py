"""A large message of a client is not read a second time, whatever the server's era is."""

from __future__ import annotations

from typing import Any

import pytest

from mcpbridge.protocol.envelope import read_message
from mcpbridge.session import eras
from mcpbridge.session.eras import Undecided


@pytest.mark.parametrize("method", [b"x", b"\\ud800"])
def test_before_the_era_is_known(method: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    sent: list[bytes] = []

    class Backend:
        send = staticmethod(sent.append)

    class Session:
        backend = Backend()

    def none(line: bytes) -> None:
        read.append(line)

    monkeypatch.setattr(eras, "peek", none)
    monkeypatch.setattr(eras, "peek_again", none)
    session: Any = Session()
    nothing: Any = None
    undecided = Undecided(session, nothing, nothing, nothing)
    line, envelope = read_message(b'{"jsonrpc":"2.0","method":"%b","params":{}}' % method)
    undecided.send([line], [envelope])
    assert (sent, read) == ([line], [])
