"""A client's message is not parsed a second time, whatever the era of the server is."""

from __future__ import annotations

from typing import Any

import pytest

from mcpbridge.jsonrpc.envelope import read_message
from mcpbridge.session import negotiation
from mcpbridge.session.negotiation import UndecidedAdapter
from tests.unit.processes.test_backend_session import CALL, Filter
from tests.unit.processes.test_backend_session import Made as BackendHarness
from tests.unit.session.test_negotiation import SessionHarness, is_modern


@pytest.mark.parametrize("method", [b"x", b"\\ud800"])
def test_message_is_not_parsed_again_before_the_era_is_known(
    method: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_message_is_not_parsed_again_for_a_modern_server(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = SessionHarness(is_modern()).initialized()
    line, envelope = read_message(b'{"jsonrpc":"2.0","id":5,"method":"tools/list"}')
    read: list[bytes] = []
    monkeypatch.setattr(negotiation, "peek", read.append)
    harness.session.send_to_backend([line], [envelope])
    assert (harness.sent_message()["method"], read) == ("tools/list", [])
    harness.end()


@pytest.mark.parametrize("changed", [True, False])
def test_message_is_parsed_again_only_if_a_filter_changed_it(changed: bool) -> None:
    harness = BackendHarness(filters=[Filter(b"sword", b"word")] if changed else [Filter()])
    received: list[object] = []

    class RecordingAdapter:
        def send(self, lines: list[bytes], envelopes: object = None) -> None:
            received.append(envelopes)

    adapter: Any = RecordingAdapter()
    harness.session.adapter = adapter
    line, envelope = read_message(CALL)
    harness.session.send_to_backend([line], [envelope])
    assert received == [None if changed else [envelope]]
