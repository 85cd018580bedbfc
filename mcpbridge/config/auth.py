"""
The settings of `auth`, of the bridge and of a server: who may come in.

They are objects within objects, so that their shapes are declared here and msgspec
checks them; no error shows a value.  Knows neither the reactor nor files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mcpbridge.config.checks import NETWORKS
from mcpbridge.config.oauth import SIGNATURE_ALGORITHMS, origin_of
from mcpbridge.errors import Described, SettingError

_Text = Annotated[str, Meta(min_length=1, max_length=2048)]
#: RFC 6749, section 3.3.
Scope = Annotated[str, Meta(pattern=r"^[\x21\x23-\x5B\x5D-\x7E]+\Z", max_length=256)]
Scopes = Scope | tuple[Scope, ...]
TokenName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._@-]{1,64}\Z")]
HeaderName = Annotated[str, Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}\Z")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}\Z")]


class _Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings that are an object, in which every key must be known."""


class NamedToken(_Settings, frozen=True):
    """
    A token that the operator has made: `sha256` of it, or a `file` that has it.

    It is good for `servers`, for all without them, and has `scopes`.
    """

    sha256: Sha256 | None = None
    file: _Text | None = None
    servers: tuple[_Text, ...] | None = None
    scopes: tuple[Scope, ...] = ()


class Introspection(_Settings, frozen=True):
    """How the bridge asks the issuer about an opaque token (RFC 7662)."""

    client_id: _Text
    client_secret_file: _Text
    #: Where to ask; by default, where the issuer's metadata says.
    endpoint: _Text | None = None


class OAuth(_Settings, frozen=True):
    """The authorization server whose access tokens are accepted."""

    issuer: _Text
    #: What the audience of a token must name; by default, an endpoint of the server.
    audience: tuple[_Text, ...] = ()
    algorithms: tuple[_Text, ...] = ("RS256", "ES256", "PS256", "EdDSA")
    #: The claim that has the scopes: `scope`, `scp`, `permissions`.
    scope_claim: _Text = "scope"
    #: Where the keys are; by default, where the issuer's metadata says.
    jwks_uri: _Text | None = None
    introspection: Introspection | None = None
    #: Certificates of the authorities that the issuer's TLS may use, in PEM, instead of
    #: those of the system.
    ca_file: _Text | None = None
    #: Hosts (`host` or `host:port`) that the issuer's metadata may name, and the settings
    #: with http, though they are not public or not https.
    trusted_hosts: tuple[_Text, ...] = ()


class ClientCertificates(_Settings, frozen=True):
    """Client certificates that a TLS listener has verified."""

    #: Which part of a certificate names the caller.
    subject: Annotated[str, Meta(pattern=r"^(common_name|email|dns|uri|fingerprint)\Z")] = (
        "common_name"
    )
    #: Callers who may come in, and the scopes of each; without it all of the authority's.
    allow: Mapping[str, tuple[Scope, ...]] | None = None
    scopes: tuple[Scope, ...] = ()


#: Headers of HTTP, of MCP and of tracing, which may differ in each request of one client:
#: none can say who the client is, nor what its processes get.
PROTOCOL_HEADERS = frozenset(
    (
        *("accept", "accept-encoding", "baggage", "connection", "content-encoding"),
        *("content-length", "content-type", "expect", "host", "keep-alive", "last-event-id"),
        *("mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id", "te", "trailer"),
        *("traceparent", "tracestate", "transfer-encoding", "upgrade"),
    )
)
#: Headers that say something else of the caller: a proxy that sends an identity in one of
#: them has no way to remove the client's.
_OTHER_HEADERS = PROTOCOL_HEADERS | {
    *("authorization", "cookie", "forwarded", "origin", "x-forwarded-for", "x-forwarded-proto")
}


class ProxyIdentity(_Settings, frozen=True):
    """An identity that a reverse proxy has found out and sends in a header."""

    header: HeaderName
    #: Addresses and networks of the proxies, or `unix`.
    addresses: tuple[_Text, ...]
    #: A header of the proxy with the scopes of the caller, separated by spaces or commas.
    scopes_header: HeaderName | None = None


class Auth(_Settings, frozen=True):
    """Who may come in, by what, and which scopes what needs."""

    tokens: Mapping[TokenName, NamedToken] = {}
    oauth: OAuth | None = None
    certificates: ClientCertificates | None = None
    proxy: ProxyIdentity | None = None
    #: The dotted name of an `IAuthenticator`, which is asked first.
    authenticator: _Text | None = None
    #: Scopes that requests need, by method; `*` is every request.  Of a method that names
    #: something, they may be given by the name, in which `*` matches any characters.
    scopes: Mapping[str, Scopes | Mapping[str, Scopes]] | Scopes = {}
    #: Scopes that a scope includes, such as `admin` all others.
    scope_hierarchy: Mapping[Scope, tuple[Scope, ...]] = {}

    @property
    def identifies(self) -> bool:
        """True if it can identify a caller."""
        ways = (self.tokens, self.oauth, self.certificates, self.proxy, self.authenticator)
        return any(each not in (None, {}) for each in ways)


_PLACE = re.compile(r"^(.*?)(?: - at (?:`key` in )?`\$(.*)`)?\Z", re.DOTALL)


def read_auth(value: object, name: str = "auth") -> Auth:
    """Return the settings of an object.  Raises `SettingError`, which shows no value."""
    try:
        auth = msgspec.convert(value, Auth)
    except msgspec.ValidationError as error:
        what, place = _PLACE.fullmatch(str(error)).groups()  # type: ignore[union-attr]
        where = name + (place or "").replace("[...]", ".*")
        raise _wrong(where, what) from None
    _check(auth, name)
    return auth


def _wrong(where: str, what: str) -> SettingError:
    """Make an error of one of msgspec's, which never shows a value."""
    unknown, missing, expected = (each.fullmatch(what) for each in (_UNKNOWN, _MISSING, _EXPECTED))
    if unknown is not None:
        return SettingError(where, "keys that are known", Described(f"the key {unknown[1]}"))
    if missing is not None:
        return SettingError(f"{where}.{missing[1]}", "a value", Described("none"))
    if expected is None:
        return SettingError(where, "something else", Described(what))
    return SettingError(where, expected[1], Described(expected[2] or "something else"))


_UNKNOWN = re.compile("Object contains unknown field (`.*`)", re.DOTALL)
_MISSING = re.compile("Object missing required field `(.*)`", re.DOTALL)
_EXPECTED = re.compile("Expected (.+?)(?:, got (.+))?", re.DOTALL)


def _check(auth: Auth, name: str) -> None:
    """Raise `SettingError` for settings that contradict each other."""
    for token, settings in auth.tokens.items():
        if (settings.sha256 is None) == (settings.file is None):
            raise SettingError(
                f"{name}.tokens.{token}",
                "either `sha256`, as `mcpbridge token` prints it, or `file`, which has the token",
                Described("both" if settings.sha256 else "neither"),
            )
    if auth.oauth is not None:
        _check_oauth(auth.oauth, f"{name}.oauth")
    if auth.proxy is not None:
        _check_proxy(auth.proxy, f"{name}.proxy")


def _check_oauth(settings: OAuth, name: str) -> None:
    """Raise `SettingError` for settings that cannot work, or that would not be safe."""
    if "?" in settings.issuer:
        raise SettingError(f"{name}.issuer", "a URL without a query", Described("one with a query"))
    _check_url(settings.issuer, settings, f"{name}.issuer")
    if settings.jwks_uri is not None:
        _check_url(settings.jwks_uri, settings, f"{name}.jwks_uri")
    asked = settings.introspection
    if asked is not None and asked.endpoint is not None:
        _check_url(asked.endpoint, settings, f"{name}.introspection.endpoint")
    if not settings.algorithms:
        raise SettingError(f"{name}.algorithms", "at least one algorithm", Described("none"))
    for algorithm in settings.algorithms:
        if algorithm not in SIGNATURE_ALGORITHMS:
            shared = algorithm.upper().startswith("HS")
            why = ", whose secret the bridge would share" if shared else ""
            expected = f"some of {', '.join(SIGNATURE_ALGORITHMS)}"
            got = Described(f"{algorithm[:40]!r}{why}")
            raise SettingError(f"{name}.algorithms", expected, got)
    for host in settings.trusted_hosts:
        if "/" in host or "@" in host or not host.isascii() or not host.isprintable():
            raise SettingError(f"{name}.trusted_hosts", "names of hosts, or `host:port`", host)


def _check_url(url: str, settings: OAuth, name: str) -> None:
    """Raise `SettingError` for a URL whose answers could be forged on their way."""
    expected = "a URL of https"
    try:
        origin = origin_of(url)
    except ValueError as error:
        raise SettingError(name, expected, Described(str(error))) from None
    if origin.scheme != "https" and not (
        origin.is_loopback or origin.is_in(settings.trusted_hosts)
    ):
        expected += "; http is only for this machine itself and for `trusted_hosts`"
        raise SettingError(name, expected, Described("one of http"))


def _check_proxy(proxy: ProxyIdentity, name: str) -> None:
    """Raise `SettingError` for an identity that others than the proxies might claim."""
    if not proxy.addresses:
        raise SettingError(
            f"{name}.addresses",
            "the addresses of the proxies, such as `10.0.0.1`, or `unix`",
            Described("an empty list, with which anybody or nobody would be believed"),
        )
    for error in NETWORKS.errors(f"{name}.addresses", proxy.addresses):
        raise error
    headers = {"header": proxy.header, "scopes_header": proxy.scopes_header}
    for key, header in headers.items():
        if header is not None and header.lower() in _OTHER_HEADERS:
            raise SettingError(f"{name}.{key}", "a header of the proxy's own", header)
    if plain_name(proxy.header) == plain_name(proxy.scopes_header or ""):
        raise SettingError(f"{name}.scopes_header", "another header than `header`", proxy.header)


def plain_name(header: str) -> str:
    """
    Return the name of a header in the one spelling that it shares with all names that
    some software takes for the same: in lower case, with `-` for `_` (RFC 3875, section 4.1.18).
    """
    return header.lower().replace("_", "-")


def merged(bridge: Mapping[str, Any], server: Mapping[str, Any]) -> dict[str, Any]:
    """Return what holds for a server: its own settings take the place of the bridge's."""
    return {**bridge, **server}


#: The keys of files in the settings.
_FILE_KEYS = frozenset({"file", "ca_file", "client_secret_file"})


def with_files(auth: Mapping[str, Any], resolve: Callable[[str], str]) -> dict[str, Any]:
    """Return valid settings in which each path of a file is resolved."""
    tokens = {name: _resolved(each, resolve) for name, each in auth.get("tokens", {}).items()}
    found = dict(auth) | ({"tokens": tokens} if tokens else {})
    if isinstance(auth.get("oauth"), Mapping):
        oauth = _resolved(auth["oauth"], resolve)
        if isinstance(oauth.get("introspection"), Mapping):
            oauth["introspection"] = _resolved(oauth["introspection"], resolve)
        found["oauth"] = oauth
    return found


def _resolved(settings: Mapping[str, Any], resolve: Callable[[str], str]) -> dict[str, Any]:
    return {
        key: resolve(value) if key in _FILE_KEYS and isinstance(value, str) else value
        for key, value in settings.items()
    }
