"""A large message of a client is not read a second time, whatever the server's era is."""

from __future__ import annotations

from typing import Any

import pytest

from mcpbridge.jsonrpc.envelope import read_message
from mcpbridge.session import negotiation
from mcpbridge.session.negotiation import UndecidedAdapter
from tests.unit.processes.test_backend_session import CALL, Filter
from tests.unit.processes.test_backend_session import Made as Opened
from tests.unit.session.test_negotiation import Made, is_modern


@pytest.mark.parametrize("method", [b"x", b"\\ud800"])
def test_before_the_era_is_known(method: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    sent: list[bytes] = []

    class Backend:
        send = staticmethod(sent.append)

    class BackendSession:
        backend = Backend()

    def none(line: bytes) -> None:
        read.append(line)

    monkeypatch.setattr(negotiation, "peek", none)
    monkeypatch.setattr(negotiation, "peek_again", none)
    session: Any = BackendSession()
    nothing: Any = None
    undecided = UndecidedAdapter(session, nothing, nothing, nothing)
    line, envelope = read_message(b'{"jsonrpc":"2.0","method":"%b","params":{}}' % method)
    undecided.send([line], [envelope])
    assert (sent, read) == ([line], [])


def test_before_a_server_of_2026_07_28_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(is_modern()).opened()
    line, envelope = read_message(b'{"jsonrpc":"2.0","id":5,"method":"tools/list"}')
    read: list[bytes] = []
    monkeypatch.setattr(negotiation, "peek", read.append)
    made.session.send_to_backend([line], [envelope])
    assert (made.asked()["method"], read) == ("tools/list", [])
    made.end()


@pytest.mark.parametrize("changed", [True, False])
def test_a_filter_that_changes_nothing(changed: bool) -> None:
    made = Opened(filters=[Filter(b"sword", b"word")] if changed else [Filter()])
    told: list[object] = []

    class Told:
        def send(self, lines: list[bytes], envelopes: object = None) -> None:
            told.append(envelopes)

    adapter: Any = Told()
    made.session.adapter = adapter
    line, envelope = read_message(CALL)
    made.session.send_to_backend([line], [envelope])
    assert told == [None if changed else [envelope]]
