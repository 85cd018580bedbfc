"""
The part of the bridge's environment that a backend gets.

Knows names and values of variables; must not know processes, nor the variables
that `env` adds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

#: What every backend gets, in addition to `LC_*` and `XDG_*`.
INHERITED_ENV = ("HOME", "PATH", "LANG", "TZ", "TMPDIR", "USER", "LOGNAME", "SHELL", "TERM")
#: What `npx`, `uvx` and HTTP clients need behind a company's proxy.  These hold
#: URLs, which may hold a password.
URL_ENV = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("UV_INDEX_URL", "NPM_CONFIG_REGISTRY", "npm_config_registry"),
)
#: Certificates and caches, which are paths.
PATH_ENV = (
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("NODE_EXTRA_CA_CERTS", "UV_CACHE_DIR", "NPM_CONFIG_CACHE", "npm_config_cache"),
)
_PREFIXES = ("LC_", "XDG_")
#: A desktop hands `XDG_ACTIVATION_TOKEN` to what it starts.
_SECRET_NAME = re.compile("TOKEN|AUTH|PASS|SECRET|COOKIE")

#: Some variables are lists of URLs.
_BETWEEN_URLS = re.compile(r"[\s,;|]+")
#: The scheme and the slashes before the authority, however many: clients are lenient.
_BEFORE_AUTHORITY = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:(?=[/\\]))?[/\\]*")
_AUTHORITY = re.compile(r"[^/\\?#]*")
_PORT = re.compile(r"(?:\[[^\]]*\]|[^:]*)(?::[0-9]*)?")


def passed_environment(
    own: Mapping[str, str], pass_env: Iterable[str]
) -> tuple[dict[str, str], list[str]]:
    """
    Select the variables of the bridge's `own` environment that a backend gets.

    Return them, and the names of those that are withheld because they hold a user
    name or password in a URL.  `pass_env` holds names, or patterns of names, of
    variables that are passed whatever they hold.
    """
    patterns = [name_pattern(each) for each in pass_env]
    passed: dict[str, str] = {}
    withheld: list[str] = []
    for name, value in own.items():
        if any(pattern.fullmatch(name) for pattern in patterns):
            passed[name] = value
        elif not _passes_by_default(name):
            continue
        elif name in INHERITED_ENV or not _holds_userinfo(name, value):
            passed[name] = value
        else:
            withheld.append(name)
    return passed, withheld


def name_pattern(text: str) -> re.Pattern[str]:
    """Compile a name in which `*` matches any characters; case matters."""
    return re.compile(".*".join(map(re.escape, text.split("*"))), re.DOTALL)


def _passes_by_default(name: str) -> bool:
    return (
        name in INHERITED_ENV
        or name in URL_ENV
        or name in PATH_ENV
        or (name.startswith(_PREFIXES) and not _SECRET_NAME.search(name))
    )


def _holds_userinfo(name: str, value: str) -> bool:
    """Tell whether a value may hold a user name or password (RFC 3986, section 3.2.1)."""
    if name.lower().endswith("_proxy"):
        # In the URL of a proxy an `@` can only follow a password, which may hold anything.
        return "@" in value
    return any(
        _url_has_userinfo(part)
        for part in _BETWEEN_URLS.split(value)
        # A path may hold an `@`.
        if name in URL_ENV or "://" in part
    )


def _url_has_userinfo(url: str) -> bool:
    if "@" not in url:
        return False
    start = _BEFORE_AUTHORITY.match(url).end()  # type: ignore[union-attr]
    authority = _AUTHORITY.match(url, start)[0]  # type: ignore[index]
    # In `user:pa/ss@host` the password was not encoded: `pa` is no port.
    return "@" in authority or not _PORT.fullmatch(authority)
