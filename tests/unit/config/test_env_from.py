"""Rules of `env_from`: which are valid, and how a wrong one is named."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from mcpbridge.config.env_from import (
    REFUSED_NAMES,
    REFUSED_PREFIXES,
    EnvironmentRule,
    may_come_from_clients,
)
from mcpbridge.config.file import parse_config
from mcpbridge.config.settings import ServerSettings
from mcpbridge.config.tuning import ENV_FROM_VARIABLES
from mcpbridge.errors import SettingError, SettingErrors

GITHUB: dict[str, Any] = {"GITHUB_TOKEN": {"header": "X-GitHub-Token", "required": True}}


def settings(rules: Any, **others: Any) -> ServerSettings:
    return ServerSettings(command="cat", env_from=rules, **others)


def test_rules_are_read() -> None:
    """The settings may be copied with them."""
    rules = {**GITHUB, "USER": {"claim": "sub"}}
    expected = {
        "GITHUB_TOKEN": EnvironmentRule(header="X-GitHub-Token", required=True),
        "USER": EnvironmentRule(claim="sub"),
    }
    read = settings(rules)
    assert read.env_from == expected
    assert dataclasses.replace(read, max_sessions=7).env_from == expected
    assert [each.source for each in expected.values()] == [
        "the header X-GitHub-Token",
        "the claim 'sub'",
    ]


def test_a_file_has_rules() -> None:
    file = {"mcpServers": {"a": {"command": "cat", "env_from": GITHUB}}}
    [server] = parse_config(file, "/").servers
    assert server.env_from["GITHUB_TOKEN"].header == "X-GitHub-Token"


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ("hush", "env_from: expected an object of environment variables, each with an object that"),
        (
            {"A=hush": {"claim": "c"}},
            "env_from: expected names of letters, digits and `_` that do not begin with a digit",
        ),
        ({1: {"claim": "c"}}, "env_from: expected names of letters, digits and `_` that do not"),
        (
            {"LD_PRELOAD": {"header": "hush"}},
            "env_from.LD_PRELOAD: expected a variable that does not decide which program runs",
        ),
        ({"A": {}}, "env_from.A: expected either `header` or `claim`, got neither"),
        (
            {"A": {"header": "hush", "claim": "hush"}},
            "env_from.A: expected either `header` or `claim`, got both",
        ),
        (
            {"A": "hush"},
            "env_from.A: expected an object with `header` or `claim`, and perhaps `required`, got",
        ),
        ({"A": {"header": "hush:"}}, "env_from.A.header: expected an object with `header` or"),
        ({"A": {"claim": "hush" * 99}}, "env_from.A.claim: expected an object with `header` or"),
        ({"A": {"claim": "hush", "x": 1}}, "env_from.A: expected an object with `header` or"),
        ({"A": {"claim": "hush", "required": "hush"}}, "env_from.A.required: expected an object"),
    ],
)
def test_a_wrong_rule_is_named_and_its_values_are_not_shown(rules: Any, says: str) -> None:
    with pytest.raises(SettingError) as caught:
        settings(rules)
    assert str(caught.value).startswith(says)
    assert "hush" not in str(caught.value)


def test_a_file_names_every_wrong_rule() -> None:
    rules = {"A": {}, "PATH": {"claim": "c"}, "B": {"claim": "c"}}
    file = {"mcpServers": {"a": {"command": "cat", "env_from": rules}}}
    with pytest.raises(SettingErrors) as caught:
        parse_config(file, "/")
    assert [line.partition(":")[0] for line in caught.value.lines] == [
        "mcpServers.a.env_from.A",
        "mcpServers.a.env_from.PATH",
    ]


def test_the_number_of_variables_is_bounded() -> None:
    """`ENV_FROM_VARIABLES` may be set, and no more."""
    rules = {f"V{number}": {"claim": "c"} for number in range(ENV_FROM_VARIABLES)}
    assert len(settings(rules).env_from) == ENV_FROM_VARIABLES
    with pytest.raises(SettingError, match=rf"at most {ENV_FROM_VARIABLES} variables"):
        settings({**rules, "ONE_MORE": {"claim": "c"}})


def test_no_process_is_kept_warm() -> None:
    """It would have been started without its client's credentials."""
    with pytest.raises(SettingError, match=r"^warm: expected 0, because with `env_from`"):
        settings(GITHUB, warm=1)


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "path", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "GLIBC_TUNABLES"),
        *("NODE_OPTIONS", "NODE_PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "RUBYOPT"),
        *("PERL5OPT", "PERL5LIB", "JAVA_TOOL_OPTIONS", "BASH_ENV", "ENV", "HOME", "SHELL"),
        *("npm_config_registry", "UV_INDEX_URL", "PIP_INDEX_URL", "https_proxy", "SSL_CERT_FILE"),
        *("GIT_SSH_COMMAND", "GIT_CONFIG_COUNT", "DOCKER_HOST", "DYLD_INSERT_LIBRARIES"),
    ],
)
def test_no_client_decides_what_runs(name: str) -> None:
    assert not may_come_from_clients(name)


@pytest.mark.parametrize("name", ["GITHUB_TOKEN", "USER", "LANG", "TZ", "API_KEY", "PATH_PREFIX"])
def test_other_variables_may_come_from_clients(name: str) -> None:
    assert may_come_from_clients(name)


def test_what_is_refused_is_in_upper_case() -> None:
    """It is compared with names in upper case."""
    for each in (*REFUSED_NAMES, *REFUSED_PREFIXES):
        assert each == each.upper()
