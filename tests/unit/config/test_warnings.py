"""What the settings may say, and is hardly meant."""

import pytest

from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.warnings import configuration_warnings


def server(name: str = "a", **settings: object) -> ServerSettings:
    values: dict[str, object] = {"command": "cat", "name": name, "base_uri": f"/{name}"}
    return ServerSettings(**{**values, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("servers", "limit", "says"),
    [
        ([server()], 1, []),
        ([server(pass_env=["THERE"])], 1, []),
        ([server(pass_env=["THERE", "GONE"])], 1, ["server 'a': GONE is not set here (pass_env)"]),
        ([server(pass_env=["TH*", "*E"])], 1, []),
        ([server(pass_env=["th*"])], 1, ["server 'a': nothing like th* is set here (pass_env)"]),
        ([server(pass_env=["*"])], 1, ["server 'a' gets the bridge's whole environment, secrets"]),
        ([server(warm=2, max_sessions=3)], 9, []),
        ([server(warm=3, max_sessions=3)], 9, ["server 'a': 3 processes ahead (warm) are all"]),
        ([server(warm=2), server("b", warm=2)], 5, []),
        ([server(warm=2), server("b", warm=2)], 4, ["4 processes ahead of all servers (warm)"]),
        ([server(warm=4)], 4, ["4 processes ahead of all servers (warm)"]),
    ],
)
def test_what_is_hardly_meant_is_said(
    servers: list[ServerSettings], limit: int, says: list[str]
) -> None:
    settings = BridgeSettings(servers=tuple(servers), max_sessions=limit)
    found = list(configuration_warnings(settings, {"THERE": ""}))
    assert len(found) == len(says)
    assert all(line.startswith(start) for line, start in zip(found, says, strict=True))


def test_a_withheld_variable_is_one_line_without_its_value() -> None:
    """It names the servers that do not get it, and not those that have a value of their own."""
    settings = BridgeSettings(
        servers=(
            server("a"),
            server("b"),
            server("c", pass_env=["HTTPS_PROXY"]),
            server("d", env={"HTTPS_PROXY": "http://other:3128"}),
        )
    )
    secret = "http://user:hush@proxy:3128"
    (line,) = configuration_warnings(
        settings, {"HTTPS_PROXY": secret, "HTTP_PROXY": "http://proxy:3128"}
    )
    assert line == (
        "HTTPS_PROXY holds a user name or a password, so the backends of 'a', 'b' do not get it;"
        " if they should, name it with --pass-env (pass_env)"
    )
