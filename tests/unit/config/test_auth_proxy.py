"""The settings of an identity that a proxy sends."""

from __future__ import annotations

import pytest

from mcpbridge.config.auth import plain_name, read_auth
from mcpbridge.errors import SettingError


@pytest.mark.parametrize(
    ("proxy", "says"),
    [
        ({"header": "X-User", "addresses": []}, r"auth\.proxy\.addresses: .*an empty list"),
        ({"header": "X-User", "addresses": ["example.org"]}, r"auth\.proxy\.addresses: expected"),
        ({"header": "X-User", "addresses": ["10.0.0.1/33"]}, r"auth\.proxy\.addresses: expected"),
        ({"header": "Authorization", "addresses": ["unix"]}, r"auth\.proxy\.header: .*own"),
        ({"header": "x-forwarded-FOR", "addresses": ["unix"]}, r"auth\.proxy\.header: .*own"),
        (
            {"header": "X-User", "scopes_header": "Host", "addresses": ["unix"]},
            r"auth\.proxy\.scopes_header: .*own",
        ),
        (
            {"header": "X-User", "scopes_header": "x_user", "addresses": ["unix"]},
            r"auth\.proxy\.scopes_header: expected another header",
        ),
    ],
)
def test_identity_that_others_might_claim_is_an_error(proxy: object, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        read_auth({"proxy": proxy})


def test_addresses_networks_and_unix_sockets_are_accepted() -> None:
    addresses = ["10.0.0.1", "fd00::/8", "unix"]
    settings = {"header": "X-User", "scopes_header": "X-Scopes", "addresses": addresses}
    proxy = read_auth({"proxy": settings}).proxy
    assert proxy is not None
    assert proxy.addresses == tuple(addresses)


def test_names_that_software_confuses_have_one_plain_name() -> None:
    assert {plain_name(each) for each in ("X-User", "X_User", "x_USER")} == {"x-user"}
    assert plain_name("") == ""
