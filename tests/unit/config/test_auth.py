"""Checks of the settings of `auth`: what is named, and that no value is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mcpbridge.config.auth import Auth, merged, read_auth
from mcpbridge.config.file import parse_config
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.warnings import configuration_warnings
from mcpbridge.errors import SettingError
from mcpbridge.web.request_parser import VARYING

DIGEST = "a1" * 32


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tokens": {"alice": {"sha256": DIGEST}}},
        {"tokens": {"alice": {"sha256": DIGEST.upper(), "servers": [], "scopes": ["a:b", "c"]}}},
        {"tokens": {"a.b_c@d-1": {"file": "/run/secrets/x"}}},
        {"scopes": "use"},
        {"scopes": ["use", "more"]},
        {"scopes": {"*": "use", "tools/call": {"add": ["a", "b"], "*": "c"}}},
        {"scope_hierarchy": {"admin": ["use"]}},
        {"authenticator": "package.module.Name"},
        {"proxy": {"header": "X-User", "addresses": ["127.0.0.1"]}},
        {"certificates": {}},
        {"certificates": {"subject": "dns", "allow": {"a": ["x"]}}},
    ],
)
def test_good_settings(settings: dict[str, Any]) -> None:
    read_auth(settings)


SECRET = "s3cret-value"


@pytest.mark.parametrize(
    ("settings", "name", "text"),
    [
        ([SECRET], "auth", "object"),
        (SECRET, "auth", "object"),
        ({"token": {}}, "auth", "the key `token`"),
        ({"tokens": [SECRET]}, "auth.tokens", "object"),
        ({"tokens": {"alice": SECRET}}, "auth.tokens.alice", "object"),
        ({"tokens": {"alice": {}}}, "auth.tokens.alice", "neither"),
        ({"tokens": {"alice": {"sha256": DIGEST, "file": "x"}}}, "auth.tokens.alice", "both"),
        ({"tokens": {"alice": {"token": SECRET}}}, "auth.tokens.alice", "the key `token`"),
        ({"tokens": {"alice": {"sha256": SECRET}}}, "auth.tokens.alice.sha256", "64 hexadecimal"),
        (
            {"tokens": {"alice": {"sha256": DIGEST + "a"}}},
            "auth.tokens.alice.sha256",
            "64 hexadecimal",
        ),
        (
            {"tokens": {"alice": {"sha256": DIGEST + "\n"}}},
            "auth.tokens.alice.sha256",
            "64 hexadecimal",
        ),
        ({"tokens": {"alice": {"sha256": 1}}}, "auth.tokens.alice.sha256", "str"),
        ({"tokens": {"al ice": {"sha256": DIGEST}}}, "auth.tokens", "str"),
        ({"tokens": {"a#b": {"sha256": DIGEST}}}, "auth.tokens", "str"),
        ({"tokens": {"": {"sha256": DIGEST}}}, "auth.tokens", "str"),
        ({"tokens": {"a" * 65: {"sha256": DIGEST}}}, "auth.tokens", "str"),
        (
            {"tokens": {"alice": {"sha256": DIGEST, "scopes": ["a b"]}}},
            "auth.tokens.alice.scopes[0]",
            "str",
        ),
        ({"tokens": {"alice\n": {"sha256": DIGEST}}}, "auth.tokens", "str"),
        ({"scopes": "a\n"}, "auth.scopes", "str"),
        ({"scopes": 'a"b'}, "auth.scopes", "str"),
        ({"scopes": ""}, "auth.scopes", "str"),
        ({"scopes": {"tools/call": {"add": 1}}}, "auth.scopes.tools/call.add", "str"),
        ({"scope_hierarchy": {"a": "b"}}, "auth.scope_hierarchy.a", "a list"),
        ({"oauth": {}}, "auth.oauth.issuer", "none"),
        ({"proxy": {"header": "X User", "addresses": []}}, "auth.proxy.header", "str"),
        ({"proxy": {"header": "X-User"}}, "auth.proxy.addresses", "none"),
        ({"certificates": {"subject": SECRET}}, "auth.certificates.subject", "common_name"),
    ],
)
def test_an_error_names_the_setting_and_shows_no_value(settings: Any, name: str, text: str) -> None:
    with pytest.raises(SettingError) as raised:
        read_auth(settings)
    assert raised.value.name == name
    assert text in str(raised.value)
    assert SECRET not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "identifies"),
    [
        ({}, False),
        ({"tokens": {}}, False),
        ({"scopes": "use", "scope_hierarchy": {"a": ["b"]}}, False),
        ({"tokens": {"a": {"sha256": DIGEST}}}, True),
        ({"authenticator": "x.y"}, True),
        ({"certificates": {}}, True),
        ({"proxy": {"header": "X-User", "addresses": ["unix"]}}, True),
        ({"oauth": {"issuer": "https://login.example.org"}}, True),
    ],
)
def test_what_identifies_callers(settings: dict[str, Any], identifies: bool) -> None:
    assert read_auth(settings).identifies is identifies


def test_settings_of_a_server_take_the_place_of_the_bridges() -> None:
    tokens = {"a": {"sha256": DIGEST}}
    both = merged({"tokens": tokens, "scopes": "x"}, {"scopes": "y"})
    assert both == {"tokens": tokens, "scopes": "y"}
    assert read_auth(both).scopes == "y"
    assert Auth().scopes == {}


def test_headers_that_may_differ_in_each_request_say_nothing_of_the_caller() -> None:
    """The fast path takes heads that differ in `VARYING` alone for one."""
    for name in (*VARYING, b"mcp-session-id", b"host", b"content-length"):
        header = name.decode().title()
        for key in ("header", "scopes_header"):
            proxy = {"header": "X-User", "addresses": ["10.0.0.1"], key: header}
            with pytest.raises(SettingError, match=f"auth.proxy.{key}: "):
                read_auth({"proxy": proxy})
        of_client: Any = {"KEY": {"header": header}}
        with pytest.raises(SettingError, match=r"env_from\.KEY\.header: "):
            ServerSettings(command="cat", env_from=of_client)


def test_files_of_a_configuration_are_beside_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("x" * 40)
    auth = {
        "tokens": {"alice": {"file": "token"}, "bob": {"sha256": "0" * 64}},
        "oauth": {
            "issuer": "https://login.example.org",
            "ca_file": "ca.pem",
            "introspection": {"client_id": "b", "client_secret_file": "/run/secret"},
        },
    }
    bridge = {"auth": auth, "public_url": "https://mcp.example.org"}
    servers = {"a": {"command": "cat", "auth": {"tokens": {"carol": {"file": "../token"}}}}}
    found = parse_config({"mcpServers": servers, "bridge": bridge}, str(tmp_path))
    given: Any = found.auth
    assert given["tokens"]["alice"]["file"] == str(tmp_path / "token")
    assert given["oauth"]["ca_file"] == str(tmp_path / "ca.pem")
    assert given["oauth"]["introspection"]["client_secret_file"] == "/run/secret"
    own: Any = found.servers[0].auth
    assert own["tokens"]["carol"]["file"] == str(tmp_path / "../token")


def test_settings_that_identify_nobody() -> None:
    with pytest.raises(SettingError, match="a way to tell who a caller is"):
        BridgeSettings(servers=(ServerSettings(command="cat"),), auth={})


def test_a_token_for_a_server_that_is_not_there_is_a_warning() -> None:
    auth = {"tokens": {"alice": {"sha256": "0" * 64, "servers": ["filez"]}}}
    settings = BridgeSettings(servers=(ServerSettings(command="cat", name="files"),), auth=auth)
    [line] = [each for each in configuration_warnings(settings, {}) if "filez" in each]
    assert line == (
        "auth.tokens.alice.servers names 'filez', which is not served; the servers are files"
    )
    alone = BridgeSettings(servers=settings.servers, audit_arguments=True)
    assert "no effect" in next(iter(configuration_warnings(alone, {})))
