"""The open calls of a legacy client, and the bytes that are kept for them."""

from __future__ import annotations

import msgspec
import pytest

from mcpbridge.errors import SessionBusy
from mcpbridge.translation.client_calls import ClientCall, ClientCalls

MIB = 1024 * 1024


def new_call(number: int) -> ClientCall:
    return ClientCall(number, msgspec.Raw(b"%d" % number), "tools/call")


def test_calls_keep_64_mib_together() -> None:
    calls = ClientCalls()
    one, other = new_call(1), new_call(2)
    calls.add(one, 63 * MIB)
    calls.add(other, MIB)
    assert not calls.count(other, 1)
    with pytest.raises(SessionBusy):
        calls.add(new_call(3), 1)
    assert calls.with_id(3) is None
    calls.settle(one)
    calls.add(new_call(3), 63 * MIB)


def test_a_single_call_may_keep_more() -> None:
    calls = ClientCalls()
    call = new_call(1)
    calls.add(call, 65 * MIB)
    assert calls.count(call, MIB)
    with pytest.raises(SessionBusy):
        calls.add(new_call(2), 1)
