"""Who may see and control the bridge, as the settings say it."""

from __future__ import annotations

from typing import Any

import pytest

from mcpbridge.config.admin import CONTROL, VIEW, read_admin_tokens
from mcpbridge.config.env_from import EnvironmentRule
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.errors import SettingError
from tests.unit.config.test_file import parsed

DIGEST = "ab" * 32


def test_a_token_views_unless_it_may_control() -> None:
    tokens = read_admin_tokens({"a": {"sha256": DIGEST}, "b": {"file": "/f", "role": "control"}})
    assert [each.role for each in tokens.values()] == [VIEW, CONTROL]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (1, "admin_tokens"),
        ({"a": 1}, "admin_tokens.a"),
        ({"a": {"sha256": "secret"}}, "admin_tokens.a.sha256"),
        ({"a": {"sha256": DIGEST, "role": "root"}}, "admin_tokens.a.role"),
        ({"a": {"sha256": DIGEST, "file": "f"}}, "admin_tokens.a"),
        ({"a": {}}, "admin_tokens.a"),
        ({"a": {"secret": 1}}, "admin_tokens.a"),
        ({"a b": {"file": "f"}}, "admin_tokens"),
    ],
)
def test_wrong_tokens_are_named_and_not_shown(value: Any, name: str) -> None:
    with pytest.raises(SettingError) as caught:
        read_admin_tokens(value)
    assert caught.value.name == name
    assert "secret:" not in str(caught.value)
    assert '"secret"' not in str(caught.value)


@pytest.mark.parametrize(
    ("listen", "needed"),
    [
        (None, False),
        ((), False),
        (("none",), False),
        (("unix:/run/a.sock",), False),
        (("tcp:9100:interface=127.0.0.1",), True),
        (("unix:/run/a.sock", "tcp:9100"), True),
    ],
)
def test_a_listener_that_others_reach_needs_a_token(
    listen: tuple[str, ...] | None, needed: bool
) -> None:
    BridgeSettings(admin_listen=listen, admin_tokens={"a": {"file": "/f"}})
    if needed:
        with pytest.raises(SettingError, match=r"admin_tokens: expected a token \(make one"):
            BridgeSettings(admin_listen=listen)
    else:
        BridgeSettings(admin_listen=listen)


def test_the_file_of_a_token_is_relative_to_the_configuration() -> None:
    settings = parsed(
        {
            "mcpServers": {"a": {"command": "cat"}},
            "bridge": {"admin_tokens": {"a": {"file": "token"}, "b": {"sha256": DIGEST}}},
        }
    )
    assert settings.admin_tokens["a"]["file"].endswith("/token")
    assert settings.admin_tokens["a"]["file"].startswith("/")
    assert settings.admin_tokens["b"] == {"sha256": DIGEST}


def test_a_canary_has_no_variables_of_a_client() -> None:
    with pytest.raises(SettingError, match="canary_interval"):
        ServerSettings(
            command="a", canary_interval=5.0, env_from={"A": EnvironmentRule(header="X-A")}
        )
