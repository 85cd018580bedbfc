"""The keys that a legacy server's requests have in `inputRequests`."""

from __future__ import annotations

import msgspec
import pytest

from mcpbridge.translation.server_requests import ServerRequests


@pytest.mark.parametrize("used", ["input-1", "input-2", "input-3"])
def test_id_that_equals_a_key_of_the_bridge_is_no_key(used: str) -> None:
    requests = ServerRequests()
    assert [requests.new_key() for _ in range(3)] == ["input-1", "input-2", "input-3"]
    assert requests.new_key(msgspec.Raw(b'"%b"' % used.encode())) == "input-4"


def test_key_of_the_bridge_passes_over_an_id_that_is_one() -> None:
    requests = ServerRequests()
    assert requests.new_key(msgspec.Raw(b'"input-2"')) == "input-2"
    assert [requests.new_key() for _ in range(2)] == ["input-1", "input-3"]
