"""
What would run, in words, without secrets.

Knows settings; must not know files or this machine.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence

from mcpbridge.config.masking import MASK, masked_arguments, masked_text, masked_url
from mcpbridge.config.name_lists import NameLists
from mcpbridge.config.settings import BridgeSettings, ServerSettings, share_of
from mcpbridge.errors import SettingError

#: Returns what the file has in a place: the keys within the object of a server.
Raw = Callable[..., object]
Fact = tuple[str, Sequence[str]]
_DEFAULT = re.compile(r"(\$\{[^}]*?:-)[^}]*")
#: How many names of a list are shown.
SHOWN_NAMES = 8


def server_facts(settings: ServerSettings, raw: Raw) -> Iterator[Fact]:
    """Yield what would run of a server; its program and its callers are not known here."""
    base = settings.public_path if settings.public_path is not None else settings.base_uri
    yield "paths", [f"{base}/mcp  {base}/sse"]
    if settings.is_remote:
        yield "remote", [_url(settings.url or "", raw("url"))]
        yield "transport", [settings.remote_transport]
        if settings.headers:
            yield "headers", [f"{name}: {MASK}" for name in settings.headers]
    elif settings.launcher is None:
        line = [_shown(settings.command, raw("command"))]
        texts = [_unexpanded(raw("args", at)) or each for at, each in enumerate(settings.args)]
        line += masked_arguments(texts)
        yield "command", [shlex.join(line).replace("'***'", MASK)]
    if settings.cwd is not None:
        yield "cwd", [_shown(settings.cwd, raw("cwd"))]
    if settings.env:
        yield "env", [" ".join(f"{name}={MASK}" for name in settings.env)]
    if settings.pass_env:
        yield "pass_env", [" ".join(settings.pass_env)]
    if settings.env_from:
        rules = settings.env_from.items()
        yield "env_from", [f"{name} from {each.source}" for name, each in rules]
    yield from _lists(settings)
    yield from _extensions(settings)
    yield "limits", list(_limits(settings))


def _unexpanded(raw: object) -> str | None:
    """Return the text of a file if it has variables, whose values are not shown."""
    if not isinstance(raw, str) or "${" not in raw:
        return None
    return _DEFAULT.sub(rf"\1{MASK}", raw)


def _shown(value: str, raw: object) -> str:
    return masked_text(_unexpanded(raw) or value)


def _url(value: str, raw: object) -> str:
    text = _unexpanded(raw)
    if text is None:
        return masked_url(value)
    before, question, _ = text.partition("?")
    return f"{masked_text(before)}{f'?{MASK}' if question else ''}"


def _lists(settings: ServerSettings) -> Iterator[Fact]:
    for name in ("tools", "prompts", "resources"):
        lists: NameLists = getattr(settings, name)
        texts = []
        if lists.allow is not None and lists.restricts:
            texts.append(f"only {_named(lists.allow) or 'none'}")
        if lists.deny:
            texts.append(f"not {_named(lists.deny)}")
        if lists.identities:
            texts.append(f"other lists for {_named(tuple(lists.identities))}")
        if texts:
            yield name, texts


def _named(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_NAMES
    others = f" and {more} more" if more > 0 else ""
    return ", ".join(names[:SHOWN_NAMES]) + others


def _extensions(settings: ServerSettings) -> Iterator[Fact]:
    names = (settings.launcher, settings.limiter, settings.event_store)
    found = [each for each in (*names, *settings.observers, *settings.filters) if each]
    if found:
        yield "extensions", found


def _limits(settings: ServerSettings) -> Iterator[str]:
    share = share_of(settings.max_sessions, settings.max_sessions_per_address)
    yield f"{settings.max_sessions} processes, {share} for each client address"
    for each in ("new_sessions_per_second", "messages_per_second"):
        rate = getattr(settings, each)
        if rate:
            yield f"{rate:g} {each.replace('_', ' ')}"
    yield f"{settings.max_message_bytes} bytes a message"


def callers(settings: BridgeSettings, server: ServerSettings) -> list[str]:
    """Say who may use a server."""
    try:
        auth = settings.auth_of(server)
    except SettingError:
        return ["unknown, because of the errors"]
    if auth is None:
        return ["everybody who reaches the bridge"]
    found = []
    if auth.tokens:
        found.append(f"named tokens: {_named(tuple(auth.tokens))}")
    if auth.oauth is not None:
        found.append(f"access tokens of {masked_url(auth.oauth.issuer)}")
    if auth.certificates is not None:
        found.append(f"client certificates, by their {auth.certificates.subject}")
    if auth.proxy is not None:
        found.append(f"whom a proxy names in {auth.proxy.header}")
    if auth.authenticator is not None:
        found.append(f"whom {auth.authenticator} identifies")
    if auth.scopes:
        found.append("with scopes (auth.scopes)")
    return found


def bridge_facts(settings: BridgeSettings) -> Iterator[Fact]:
    """Yield what holds for all servers."""
    yield "listen", list(settings.listen) or ["nowhere"]
    if settings.admin_listen is not None:
        yield "admin", list(settings.admin_listen) or ["nowhere"]
    if settings.public_url is not None:
        yield "public URL", [settings.public_url]
    if settings.trusted_proxies:
        yield "proxies", [", ".join(settings.trusted_proxies)]
    if settings.audit_log is not None:
        yield "audit log", [settings.audit_log]
    yield (
        "limits",
        [
            f"{settings.session_limit} processes of all servers",
            f"{settings.connection_limit} connections",
        ],
    )
