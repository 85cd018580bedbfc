"""Checks of the settings of `auth.oauth`."""

from __future__ import annotations

from typing import Any

import pytest

from mcpbridge.config.auth import read_auth
from mcpbridge.config.oauth import SIGNATURE_ALGORITHMS, Origin, origin_of
from mcpbridge.errors import SettingError

ISSUER = "https://login.example.org"


@pytest.mark.parametrize(
    "settings",
    [
        {"issuer": ISSUER},
        {"issuer": f"{ISSUER}/tenant/"},
        {"issuer": "http://localhost:9000"},
        {"issuer": "http://127.0.0.1:9000/x"},
        {"issuer": "http://[::1]:9000"},
        {"issuer": "http://keycloak:8080/realms/x", "trusted_hosts": ["keycloak"]},
        {"issuer": "http://keycloak:8080/realms/x", "trusted_hosts": ["Keycloak:8080"]},
        {"issuer": ISSUER, "algorithms": list(SIGNATURE_ALGORITHMS)},
        {"issuer": ISSUER, "jwks_uri": "https://keys.example.org/?a=b"},
    ],
)
def test_good_settings(settings: dict[str, Any]) -> None:
    oauth = read_auth({"oauth": settings}).oauth
    assert oauth is not None
    assert oauth.issuer == settings["issuer"]


ASKED = {"client_id": "x", "client_secret_file": "x"}


@pytest.mark.parametrize(
    ("settings", "name", "expected"),
    [
        ({"issuer": "login.example.org"}, "issuer", "https"),
        ({"issuer": "ftp://login.example.org"}, "issuer", "https"),
        ({"issuer": "https://"}, "issuer", "without a host"),
        ({"issuer": "http://login.example.org"}, "issuer", "trusted_hosts"),
        ({"issuer": "http://128.0.0.1"}, "issuer", "trusted_hosts"),
        ({"issuer": "http://localhost.example.org"}, "issuer", "trusted_hosts"),
        ({"issuer": "http://keycloak", "trusted_hosts": ["keycloak:81"]}, "issuer", "http"),
        ({"issuer": f"{ISSUER}?"}, "issuer", "query"),
        ({"issuer": f"{ISSUER}#"}, "issuer", "fragment"),
        ({"issuer": "https://user@login.example.org"}, "issuer", "user"),
        ({"issuer": "https://user:s3cret@login.example.org"}, "issuer", "user"),
        ({"issuer": f"{ISSUER}/a b"}, "issuer", "characters"),
        ({"issuer": f"{ISSUER}/é"}, "issuer", "characters"),
        ({"issuer": f"{ISSUER}\\@evil"}, "issuer", "characters"),
        ({"issuer": f"{ISSUER}:port"}, "issuer", "https"),
        ({"issuer": "https://[::1"}, "issuer", "https"),
        ({"issuer": ISSUER, "jwks_uri": "http://x.example"}, "jwks_uri", "https"),
        (
            {"issuer": ISSUER, "introspection": {**ASKED, "endpoint": "http://x.example"}},
            "introspection.endpoint",
            "https",
        ),
        ({"issuer": ISSUER, "algorithms": []}, "algorithms", "at least one"),
        ({"issuer": ISSUER, "algorithms": ["HS256"]}, "algorithms", "secret"),
        ({"issuer": ISSUER, "algorithms": ["RS256", "hs512"]}, "algorithms", "secret"),
        ({"issuer": ISSUER, "algorithms": ["none"]}, "algorithms", "'none'"),
        ({"issuer": ISSUER, "algorithms": ["rs256"]}, "algorithms", "RS256"),
        ({"issuer": ISSUER, "trusted_hosts": ["https://x"]}, "trusted_hosts", "names of hosts"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], name: str, expected: str) -> None:
    with pytest.raises(SettingError) as caught:
        read_auth({"oauth": settings})
    assert caught.value.name == f"auth.oauth.{name}"
    assert expected in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_origins() -> None:
    assert origin_of("https://Example.org/x") == Origin("https", "example.org", 443)
    assert origin_of("http://[::1]:81") == Origin("http", "::1", 81)
    assert origin_of("http://a") == Origin("http", "a", 80)
    assert not Origin("http", "a", 80).is_in(())
    assert Origin("http", "::1", 80).is_in(("[::1]:80",))
