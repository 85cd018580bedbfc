"""Finding the answer that decides the era of a server."""

from __future__ import annotations

import pytest

from mcpbridge.jsonrpc.envelope import JsonRpcId
from mcpbridge.processes.era import find_answer

NOTE = b'{"jsonrpc":"2.0","method":"notifications/message","params":{}}'
ASKED = b'{"jsonrpc":"2.0","id":1,"method":"roots/list"}'
OTHER = b'{"jsonrpc":"2.0","id":2,"result":{}}'


@pytest.mark.parametrize(
    ("line", "ident"),
    [
        (b'{"jsonrpc":"2.0","id":1,"result":{}}', 1),
        (b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no"}}', 1),
        (b'{"jsonrpc":"2.0","id":"1","result":{}}', 1),
        (b'{"jsonrpc":"2.0","id":1,"result":{}}', "1"),
        # A lone surrogate, for which the envelope is decoded a second time.
        (b'{"jsonrpc":"2.0","id":"a","result":{"x":"\\ud800"}}', "a"),
    ],
)
def test_results_and_errors_are_answers_in_either_spelling(line: bytes, ident: JsonRpcId) -> None:
    found = find_answer([NOTE, ASKED, OTHER, line, line], ident)
    assert found is not None
    number, envelope = found
    assert number == 3
    assert str(envelope.id) == str(ident)


def test_requests_notifications_and_other_answers_are_skipped() -> None:
    assert find_answer([NOTE, ASKED, OTHER, b"no JSON"], 1) is None
    assert find_answer([], 1) is None
