"""Lists of addresses and networks, as settings name them."""

from __future__ import annotations

import pytest

from mcpbridge.config.networks import Networks, parse_address


@pytest.mark.parametrize(
    ("host", "held"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("10.2.0.0", False),
        ("2001:db8::7", True),
        ("2001:db8::7%eth0", True),
        ("2001:db8::8", False),
        ("unix", True),
        ("", False),
        ("example.org", False),
        ("10.1.2.3:80", False),
        (" 10.1.2.3", False),
    ],
)
def test_host_is_held_by_its_address(host: str, held: bool) -> None:
    assert Networks(["10.1.0.0/16", "2001:db8::7", "unix"]).holds(host) is held


def test_empty_list_holds_nobody() -> None:
    nobody = Networks([])
    assert not any(map(nobody.holds, ("127.0.0.1", "::1", "unix", "")))
    assert not nobody.with_loopback
    assert not nobody.with_everybody


def test_unknown_name_is_an_error() -> None:
    with pytest.raises(ValueError):
        Networks(["example.org"])


def test_ipv4_address_within_ipv6_is_that_address() -> None:
    assert str(parse_address("::ffff:192.0.2.1")) == "192.0.2.1"
    assert parse_address("192.0.2") is None
