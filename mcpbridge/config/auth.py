"""
The settings of `auth`, of the bridge and of a server: who may come in.

They are objects within objects, so that their shapes are declared here and msgspec
checks them; no error shows a value.  Knows neither the reactor nor files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mcpbridge.config.checks import NETWORKS
from mcpbridge.config.oauth import SIGNATURE_ALGORITHMS, origin_of
from mcpbridge.config.shapes import shape_errors
from mcpbridge.errors import Described, SettingError

_Text = Annotated[
    str, Meta(min_length=1, max_length=2048, description="a string of 1 to 2048 characters")
]
#: RFC 6749, section 3.3.
Scope = Annotated[
    str,
    Meta(
        pattern=r"^[\x21\x23-\x5B\x5D-\x7E]+\Z",
        max_length=256,
        description="a scope of at most 256 ASCII characters, without spaces and quotes",
    ),
]
Scopes = Scope | tuple[Scope, ...]
TokenName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9._@-]{1,64}\Z",
        description="names of 1 to 64 letters, digits or any of `._@-`",
    ),
]
HeaderName = Annotated[
    str,
    Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}\Z", description="the name of an HTTP header"),
]
Sha256 = Annotated[
    str,
    Meta(
        pattern=r"^[0-9a-fA-F]{64}\Z",
        description="64 hexadecimal digits, as `mcpbridge token` prints them",
    ),
]


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
    subject: Annotated[
        str,
        Meta(
            pattern=r"^(common_name|email|dns|uri|fingerprint)\Z",
            description="`common_name`, `email`, `dns`, `uri` or `fingerprint`",
        ),
    ] = "common_name"
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


def read_auth(value: object, name: str = "auth") -> Auth:
    """
    Return the settings of an object.  Raises `SettingError`, which has all errors and shows
    no value.
    """
    SettingError.raise_all(shape_errors(Auth, value, name))
    auth = msgspec.convert(value, Auth)
    SettingError.raise_all(_contradictions(auth, name))
    return auth


def _contradictions(auth: Auth, name: str) -> Iterator[SettingError]:
    """Yield what is wrong with settings that are right by themselves."""
    for token, settings in auth.tokens.items():
        if (settings.sha256 is None) == (settings.file is None):
            yield SettingError(
                f"{name}.tokens.{token}",
                "either `sha256`, as `mcpbridge token` prints it, or `file`, which has the token",
                Described("both" if settings.sha256 else "neither"),
            )
    if auth.oauth is not None:
        yield from _wrong_oauth(auth.oauth, f"{name}.oauth")
    if auth.proxy is not None:
        yield from _wrong_proxy(auth.proxy, f"{name}.proxy")


def _wrong_oauth(settings: OAuth, name: str) -> Iterator[SettingError]:
    """Yield what cannot work, or would not be safe."""
    if "?" in settings.issuer:
        yield SettingError(f"{name}.issuer", "a URL without a query", Described("one with a query"))
    else:
        yield from _wrong_url(settings.issuer, settings, f"{name}.issuer")
    if settings.jwks_uri is not None:
        yield from _wrong_url(settings.jwks_uri, settings, f"{name}.jwks_uri")
    asked = settings.introspection
    if asked is not None and asked.endpoint is not None:
        yield from _wrong_url(asked.endpoint, settings, f"{name}.introspection.endpoint")
    if not settings.algorithms:
        yield SettingError(f"{name}.algorithms", "at least one algorithm", Described("none"))
    for algorithm in settings.algorithms:
        if algorithm not in SIGNATURE_ALGORITHMS:
            shared = algorithm.upper().startswith("HS")
            why = ", whose secret the bridge would share" if shared else ""
            expected = f"some of {', '.join(SIGNATURE_ALGORITHMS)}"
            got = Described(f"{algorithm[:40]!r}{why}")
            yield SettingError(f"{name}.algorithms", expected, got)
    for host in settings.trusted_hosts:
        if "/" in host or "@" in host or not host.isascii() or not host.isprintable():
            yield SettingError(f"{name}.trusted_hosts", "names of hosts, or `host:port`", host)


def _wrong_url(url: str, settings: OAuth, name: str) -> Iterator[SettingError]:
    """Yield an error for a URL whose answers could be forged on their way."""
    expected = "a URL of https"
    try:
        origin = origin_of(url)
    except ValueError as error:
        yield SettingError(name, expected, Described(str(error)))
        return
    if origin.scheme != "https" and not (
        origin.is_loopback or origin.is_in(settings.trusted_hosts)
    ):
        expected += "; http is only for this machine itself and for `trusted_hosts`"
        yield SettingError(name, expected, Described("one of http"))


def _wrong_proxy(proxy: ProxyIdentity, name: str) -> Iterator[SettingError]:
    """Yield errors for an identity that others than the proxies might claim."""
    if not proxy.addresses:
        yield SettingError(
            f"{name}.addresses",
            "the addresses of the proxies, such as `10.0.0.1`, or `unix`",
            Described("an empty list, with which anybody or nobody would be believed"),
        )
    yield from NETWORKS.errors(f"{name}.addresses", proxy.addresses)
    headers = {"header": proxy.header, "scopes_header": proxy.scopes_header}
    for key, header in headers.items():
        if header is not None and header.lower() in _OTHER_HEADERS:
            yield SettingError(f"{name}.{key}", "a header of the proxy's own", header)
    if plain_name(proxy.header) == plain_name(proxy.scopes_header or ""):
        yield SettingError(f"{name}.scopes_header", "another header than `header`", proxy.header)


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
