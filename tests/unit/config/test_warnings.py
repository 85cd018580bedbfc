"""Configuration warnings: valid settings that are hardly intended."""

import pytest

from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.warnings import configuration_warnings

GONE = "server 'a': the environment variable GONE is not set (--pass-env, pass_env)"
LIKE = "server 'a': no environment variable matches th* (--pass-env, pass_env)"
WHOLE = "server 'a' gets the bridge's whole environment, including secrets; name only"
RULES = {"TOKEN": {"header": "X-Token"}}
READABLE = "env_from of 'a': all local backends run as one user, so one that was taken over can"
READABLE_BOTH = "env_from of 'a', 'c': all local backends run as one user"
NO_ROOM = "server 'a': warm (3) leaves no room below max_sessions (3)"
NEVER_REACHED = "server 'a': max_sessions (200) is more than bridge.max_sessions (150)"
NO_ROOM_FOR_ALL = "warm of all servers together (4) leaves no room below bridge.max_sessions"


def server(name: str = "a", **settings: object) -> ServerSettings:
    values: dict[str, object] = {"command": "cat", "name": name, "base_uri": f"/{name}"}
    return ServerSettings(**{**values, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("servers", "limit", "says"),
    [
        ([server()], 1, []),
        ([server(pass_env=["THERE"])], 1, []),
        (
            [server(pass_env=["THERE", "GONE"])],
            1,
            [GONE],
        ),
        ([server(pass_env=["TH*", "*E"])], 1, []),
        (
            [server(pass_env=["th*"])],
            1,
            [LIKE],
        ),
        (
            [server(pass_env=["*"])],
            1,
            [WHOLE],
        ),
        ([server(env_from=RULES)], 1, [READABLE]),
        ([server(env_from=RULES), server("b"), server("c", env_from=RULES)], 1, [READABLE_BOTH]),
        ([server(env_from=RULES, launcher="a.b")], 1, []),
        ([server(warm=2, max_sessions=3)], 9, []),
        (
            [server(warm=3, max_sessions=3)],
            9,
            [NO_ROOM],
        ),
        ([server(warm=2), server("b", warm=2)], 5, []),
        (
            [server(warm=2), server("b", warm=2)],
            4,
            [NO_ROOM_FOR_ALL],
        ),
        ([server(warm=4)], 4, [NO_ROOM_FOR_ALL]),
        ([server(max_sessions=200), server("b", max_sessions=150)], 150, [NEVER_REACHED]),
        ([server(max_sessions=200), server("b", max_sessions=150)], None, []),
    ],
)
def test_unintended_settings_are_warned_of(
    servers: list[ServerSettings], limit: int | None, says: list[str]
) -> None:
    settings = BridgeSettings(servers=tuple(servers), max_sessions=limit)
    found = list(configuration_warnings(settings, {"THERE": ""}))
    assert len(found) == len(says)
    assert all(line.startswith(start) for line, start in zip(found, says, strict=True))


def test_a_withheld_variable_is_reported_without_its_value() -> None:
    """The line names the servers that do not get it, except those with a value of their own."""
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
        "HTTPS_PROXY holds a user name or a password, so it is not passed to 'a', 'b';"
        " to pass it, name it with --pass-env (pass_env)"
    )
