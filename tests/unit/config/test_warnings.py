"""Configuration warnings: valid settings that are hardly intended."""

import pytest

from mcpbridge.config.auth import Auth, ClientCertificates, ProxyIdentity
from mcpbridge.config.settings import BridgeSettings, ServerSettings
from mcpbridge.config.warnings import authentication_warnings, configuration_warnings

GONE = "server 'a': the environment variable GONE is not set (--pass-env, pass_env)"
LIKE = "server 'a': no environment variable matches th* (--pass-env, pass_env)"
WHOLE = "server 'a' gets the bridge's whole environment, including secrets; name only"
NOBODY = "server 'a': prompts.identities holds for nobody, because there is no `auth` that tells"
TOKENS = {"tokens": {"a": {"sha256": "0" * 64}}}
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
        ([server(env_from=RULES, user="nobody")], 1, []),
        ([server(tools={"deny": ["x"]})], 1, []),
        ([server(prompts={"identities": {"token#a": {"allow": []}}})], 1, [NOBODY]),
        ([server(tools={"identities": {"a": {"deny": ["x"]}}}, auth=TOKENS)], 1, []),
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
            ServerSettings(name="e", command="", url="https://remote.test/mcp"),
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


LOOPBACK = "has loopback addresses: every process on this machine, backends included, can claim"
EVERYBODY = "has every address: whoever reaches the bridge can claim in X-User to be anybody"


@pytest.mark.parametrize(
    ("addresses", "listen", "says"),
    [
        (("10.0.0.1", "unix"), ("tcp:8808",), None),
        (("unix",), ("tcp:8808:interface=127.0.0.1", "unix:/run/mcp.sock"), None),
        (("127.0.0.1",), ("unix:/run/mcp.sock",), None),
        (("127.0.0.1",), ("tcp:8808:interface=127.0.0.1",), LOOPBACK),
        (("127.0.0.1",), ("unix:/run/mcp.sock", "tcp:8808"), LOOPBACK),
        (("10.0.0.1", "::1"), (), LOOPBACK),
        (("0.0.0.0/1", "64.0.0.0/2"), ("tcp:8808",), LOOPBACK),
        (("126.0.0.0/7",), ("tcp:8808",), LOOPBACK),
        (("0.0.0.0/0",), ("tcp:8808",), EVERYBODY),
        (("::/0", "10.0.0.1"), ("tcp:8808",), EVERYBODY),
    ],
)
def test_identity_that_others_than_the_proxy_can_claim_is_warned_of(
    addresses: tuple[str, ...], listen: tuple[str, ...], says: str | None
) -> None:
    auth = Auth(proxy=ProxyIdentity(header="X-User", addresses=addresses))
    found = list(authentication_warnings("bridge.auth", auth, listen))
    assert len(found) == (says is not None)
    if says is not None:
        assert found[0].startswith(f"bridge.auth.proxy.addresses ({', '.join(addresses)}) {says}")


@pytest.mark.parametrize(
    ("listen", "warned"),
    [
        ((), False),
        (("https:8443:certificate=a:key=b:clientCA=c",), False),
        (("tcp:8808", "https:8443:clientCA=c:certificate=a"), False),
        (("https:8443:certificate=a:key=b",), True),
        (("tcp:8808", "ssl:8443:privateKey=clientCA"), True),
    ],
)
def test_client_certificates_that_no_listener_asks_for_are_warned_of(
    listen: tuple[str, ...], warned: bool
) -> None:
    auth = Auth(certificates=ClientCertificates())
    found = list(authentication_warnings("auth", auth, listen))
    assert len(found) == warned
    assert all("auth.certificates lets nobody in" in each for each in found)


def test_settings_of_auth_are_warned_of_where_they_are_given() -> None:
    loopback = {"proxy": {"header": "X-User", "addresses": ["127.0.0.1"]}}
    certificates: dict[str, object] = {"certificates": {}}
    settings = BridgeSettings(
        servers=(server("a", auth=certificates), server("b"), server("c", auth=False)),
        auth=loopback,
    )
    found = list(configuration_warnings(settings, {}))
    assert [each.split()[0] for each in found] == [
        "auth.proxy.addresses",
        "mcpServers.a.auth.certificates",
    ]
