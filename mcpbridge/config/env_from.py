"""
The rules of `env_from`: which headers of a request, or claims of its caller, become
environment variables of the process that works for that caller.

Knows rules, and which variables no client may set; must not know requests.  No error
shows a value of the setting but the name of a variable.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from mcpbridge.config.auth import PROTOCOL_HEADERS, HeaderName
from mcpbridge.config.backend_environment import PATH_ENV, URL_ENV
from mcpbridge.config.checks import Check, kind_of
from mcpbridge.config.shapes import shape_errors
from mcpbridge.config.tuning import ENV_FROM_VARIABLES
from mcpbridge.errors import Described, SettingError

#: Variables with which a client could choose the programs or libraries that run, the
#: files that configure them, or the host that they are downloaded from.  They are
#: compared without case: some programs read `http_proxy`, others `HTTP_PROXY`.
REFUSED_NAMES = frozenset(
    {each.upper() for each in (*URL_ENV, *PATH_ENV)}
    # Of shells, and of whatever looks for programs and files.
    | {"PATH", "HOME", "SHELL", "TMPDIR", "TMP", "TEMP", "ENV", "BASH_ENV", "SHELLOPTS"}
    | {"BASHOPTS", "IFS", "PS4", "PROMPT_COMMAND", "EDITOR", "VISUAL", "PAGER", "BROWSER"}
    # Of the dynamic loader and the C library; those with LD_ are below.
    | {"GLIBC_TUNABLES", "GCONV_PATH", "OPENSSL_CONF", "OPENSSL_MODULES", "OPENSSL_ENGINES"}
    # Of interpreters and virtual machines.
    | {"VIRTUAL_ENV", "RUBYOPT", "RUBYLIB", "GEM_HOME", "GEM_PATH", "BUNDLE_GEMFILE"}
    | {"CLASSPATH", "JAVA_HOME", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"}
    | {"LUA_INIT", "LUA_PATH", "LUA_CPATH", "PHPRC", "PHP_INI_SCAN_DIR"}
    # Of programs that start others.
    | {"GIT_SSH", "GIT_SSH_COMMAND", "GIT_EXEC_PATH", "GIT_ASKPASS", "GIT_EDITOR", "GIT_PAGER"}
    | {"GIT_EXTERNAL_DIFF", "GIT_PROXY_COMMAND", "GIT_TEMPLATE_DIR", "SSH_ASKPASS"}
    # By which a container engine's CLI finds its engine.
    | {"DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH"}
    | {"CONTAINER_HOST", "CONTAINER_CONNECTION", "STORAGE_DRIVER", "NERDCTL_TOML"}
)
#: The same, of whole families.
REFUSED_PREFIXES = (
    *("LD_", "DYLD_", "PYTHON", "NODE_", "NPM_CONFIG_", "UV_", "PIP_", "PERL5", "PERLLIB"),
    *("DENO_", "BUN_", "DOTNET_", "CORECLR_", "COMPLUS_", "BASH_FUNC_", "GIT_CONFIG", "XDG_"),
    *("CONTAINERS_", "CONTAINERD_"),
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_EXPECTED = (
    "an object of environment variables, each with an object that has `header` or `claim`, and"
    " may have `required`"
)


class EnvironmentRule(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """
    Where the value of one variable comes from: a request header, or a claim.

    Without a value, a request is refused if it is `required`; otherwise the variable
    stays as `env` sets it.
    """

    header: HeaderName | None = None
    claim: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    required: bool = False

    @property
    def source(self) -> str:
        """Name the header or the claim, for an error."""
        return f"the claim {self.claim!r}" if self.header is None else f"the header {self.header}"


def read_rules(value: Mapping[str, object]) -> Mapping[str, EnvironmentRule]:
    """Return the rules by variable.  Raises `msgspec.ValidationError`."""
    return {name: msgspec.convert(each, EnvironmentRule) for name, each in value.items()}


def may_come_from_clients(variable: str) -> bool:
    """Return False for a variable with which a client could choose what runs."""
    name = variable.upper()
    return name not in REFUSED_NAMES and not name.startswith(REFUSED_PREFIXES)


def _wrong(name: str, value: object) -> Iterator[SettingError]:
    """Yield what is wrong with the rules."""
    if not isinstance(value, Mapping):
        yield SettingError(name, _EXPECTED, kind_of(value))
        return
    if len(value) > ENV_FROM_VARIABLES:
        expected = f"at most {ENV_FROM_VARIABLES} variables (ENV_FROM_VARIABLES)"
        yield SettingError(name, expected, len(value))
    for variable, rule in value.items():
        yield from _wrong_rule(name, variable, rule)


def _wrong_rule(name: str, variable: object, value: object) -> Iterator[SettingError]:
    if not isinstance(variable, str) or not _NAME.fullmatch(variable):
        # Somebody may write NAME=VALUE for a name.
        shown = kind_of(variable) if not isinstance(variable, str) else variable.partition("=")[0]
        expected = "names of letters, digits and `_` that do not begin with a digit"
        yield SettingError(name, expected, Described(f"the name {shown!r}"))
        return
    place = f"{name}.{variable}"
    if not may_come_from_clients(variable):
        yield SettingError(
            place,
            "a variable that does not decide which program runs, since clients set its value",
            Described(repr(variable)),
        )
    wrong = [*shape_errors(EnvironmentRule, value, place)]
    for error in wrong:
        expected = "an object with `header` or `claim`, and perhaps `required`"
        yield SettingError(error.name, expected, error.got)
    if wrong:
        return
    rule = msgspec.convert(value, EnvironmentRule)
    if (rule.header is None) == (rule.claim is None):
        got = Described("neither" if rule.header is None else "both")
        yield SettingError(place, "either `header` or `claim`", got)
    if (rule.header or "").lower() in PROTOCOL_HEADERS:
        expected = "a header of the client's own, as this one is of the protocol"
        yield SettingError(f"{place}.header", expected, rule.header)


ENV_FROM = Check(
    _EXPECTED,
    lambda v: next(_wrong("", v), None) is None,
    complain=_wrong,
    form="json",
    metavar="JSON",
    schema={
        "type": "object",
        "maxProperties": ENV_FROM_VARIABLES,
        "propertyNames": {"pattern": f"^{_NAME.pattern}$"},
        "additionalProperties": {"$ref": "#/$defs/EnvironmentRule"},
    },
)
