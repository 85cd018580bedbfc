"""
A request of MCP 2026-07-28, which says everything about itself: its revision,
its client and the client's capabilities.

Knows the names of that revision and what a request must have; must not know
HTTP, a server or other requests.  Members are checked only as far as the
bridge acts on them: the rest is for the server to judge.
"""

from __future__ import annotations

import json
import re

import msgspec

from mcpbridge.errors import (
    HeaderMismatch,
    InvalidParams,
    NotJsonRpc,
    Refused,
    TooComplex,
    UnsupportedVersion,
)
from mcpbridge.jsonrpc.envelope import SECOND_PARSE_BYTES, Envelope, ProgressToken, is_json
from mcpbridge.jsonrpc.members import (
    Members,
    decode_members,
    decode_string,
    is_null,
    members,
    members_of,
    meta_of,
    number_of,
    string_of,
    value,
)
from mcpbridge.jsonrpc.parsed_message import ParsedMessage
from mcpbridge.mcp.revisions import HANDSHAKE_PROTOCOL_VERSIONS

#: The revisions without a handshake that the bridge speaks, oldest first.
MODERN_PROTOCOL_VERSIONS = ("2026-07-28",)

#: The keys of `_meta` (2026-07-28, basic/index, "_meta").
PREFIX = "io.modelcontextprotocol/"
PROTOCOL_VERSION = PREFIX + "protocolVersion"
CLIENT_INFO = PREFIX + "clientInfo"
CLIENT_CAPABILITIES = PREFIX + "clientCapabilities"
LOG_LEVEL = PREFIX + "logLevel"
SUBSCRIPTION_ID = PREFIX + "subscriptionId"
SERVER_INFO = PREFIX + "serverInfo"
PROGRESS_TOKEN = "progressToken"

#: Of RFC 5424, section 6.2.1, least severe first.
LOG_LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")

#: Methods that may be answered with `input_required` (basic/patterns/mrtr).
INPUT_REQUIRED_METHODS = frozenset({"tools/call", "prompts/get", "resources/read"})
#: The extension of tasks, and its methods, each about an existing task.
TASKS = PREFIX + "tasks"
TASK_METHODS = frozenset({"tasks/cancel", "tasks/get", "tasks/update"})
#: Methods that name something, and the parameter that does (basic/transports/
#: streamable-http, "Standard Request Headers"; for tasks the extension's "Routing Headers").
NAME_BEARING_METHODS = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    **dict.fromkeys(sorted(TASK_METHODS), "taskId"),
}
#: The request that opens a stream of notifications; its answer ends the stream.
LISTEN = "subscriptions/listen"
#: The first message of that stream.
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"
#: Methods of clients until 2025-11-25 that this revision does not have.
REMOVED = frozenset(
    {
        "initialize",
        "logging/setLevel",
        "notifications/initialized",
        "notifications/roots/list_changed",
        "ping",
        "resources/subscribe",
        "resources/unsubscribe",
        "tasks/list",
        "tasks/result",
    }
)

#: The largest `clientCapabilities`, in bytes of canonical JSON.
MAX_CAPABILITIES_BYTES = 64 * 1024
#: Capabilities that are written in more bytes than this are not even read.
_UNREAD_BYTES = 2 * MAX_CAPABILITIES_BYTES
#: The largest `clientInfo`, and the largest `subscriptions/listen`, in bytes as they are written.
MAX_CLIENT_INFO_BYTES = 256 * 1024
MAX_LISTEN_BYTES = 1024 * 1024

#: How many clients are cached, and how many bytes a `_meta` may have whose client is.
CLIENTS_KEPT = 64
META_KEPT_BYTES = 4096

#: The id of a request; null is none.
RequestId = str | int | float

_MISSING = "is missing"
_JSONRPC = b'"2.0"'
_decode_id = msgspec.json.Decoder(RequestId).decode
#: The members of `_meta` that describe the client, and their defaults in a cache key.
_CLIENT_MEMBERS = (PROTOCOL_VERSION, CLIENT_INFO, CLIENT_CAPABILITIES, LOG_LEVEL)
_ABSENT = (b"",) * len(_CLIENT_MEMBERS)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class _Client(msgspec.Struct, frozen=True, eq=False):
    """What a valid `_meta` says of the client; see `ModernRequest`."""

    version: str
    capabilities: bytes
    client_info: msgspec.Raw | None
    log_level: str | None


class ModernRequest(msgspec.Struct, frozen=True, eq=False):
    """
    One request, with the members that the bridge acts on.

    `outer`, `params` and `meta` are the members of the message, of its
    `params` and of its `_meta`, as they stand.  `capabilities` are the
    client's in canonical JSON (sorted keys, no spaces, ASCII), so that two
    spellings of the same are equal.  `name` is the value that `Mcp-Name` must
    have; None for a method without one.
    """

    outer: dict[str, msgspec.Raw]
    id: RequestId
    method: str
    params: dict[str, msgspec.Raw]
    meta: dict[str, msgspec.Raw]
    version: str
    capabilities: bytes
    client_info: msgspec.Raw | None
    log_level: str | None
    progress_token: ProgressToken | None
    name: str | None

    @property
    def arguments(self) -> msgspec.Raw | None:
        """The arguments of a tool or a prompt, as they stand; None where there are none."""
        return self.params.get("arguments")


def is_modern_version(header: str | None) -> bool:
    """
    Tell whether `MCP-Protocol-Version` names a revision without a handshake:
    one that is later than all that have it.
    """
    return (
        header is not None
        and _DATE.fullmatch(header) is not None
        and header > HANDSHAKE_PROTOCOL_VERSIONS[-1]
    )


def claims_modern(line: bytes) -> bool:
    """
    Tell whether a message says in `params._meta` that it is of a revision
    without a handshake (basic/versioning, "Backward Compatibility").  Never raises.
    """
    # Without the prefix, whose slash some encoders escape.  Most messages have no "V", and a
    # search for one byte is ten times as fast as one for a word.
    if b"V" not in line or b'protocolVersion"' not in line:
        return False
    if len(line) > SECOND_PARSE_BYTES and not is_json(line):
        # `read_message` refuses it: a second, slow parse would be in vain.
        return False
    return PROTOCOL_VERSION in meta_of(members_of(members_of(line).get("params")))


def try_read_request(line: bytes) -> ModernRequest | None:
    """
    Read one small request quickly, if it is valid and its client is cached, as with
    nearly all.  Return None otherwise: `read_request` reads any line, caches its
    client, and says what is wrong.

    No header is compared with it.
    """
    try:
        outer = decode_members(line)
        method = decode_string(outer["method"])
        ident = _decode_id(outer["id"])
        params = decode_members(outer["params"])
        meta = decode_members(params["_meta"])
        client = _known_clients[_client_key(meta)]
        named_by = NAME_BEARING_METHODS.get(method)
        name = None if named_by is None else decode_string(params[named_by])
        if bytes(outer["jsonrpc"]) != _JSONRPC:
            return None
        token = _token(meta) if PROGRESS_TOKEN in meta else None
        return _request(client, outer, ident, method, params, meta, token, name)
    except (KeyError, ValueError, RecursionError, msgspec.MsgspecError, InvalidParams):
        return None


def read_request(message: ParsedMessage, *, version_header: str | None) -> ModernRequest:
    """
    Read one request, with the `MCP-Protocol-Version` that it came with; None
    where there was no such header.

    The first mistake is reported, in this order: it is no request; `_meta`
    has no version; the header has another one; the bridge does not speak that
    version, so its rules are not known; then whatever the revision asks for.
    Raise, with the request's `ident`: `NotJsonRpc`, `InvalidParams`
    (basic/index, "Per-request protocol fields"), `HeaderMismatch` and
    `UnsupportedVersion` (basic/transports/streamable-http, "Protocol Version
    Header").
    """
    ident = _ident(message.envelope)
    try:
        return _read(message, ident, version_header)
    except InvalidParams as error:
        error.ident = ident
        if (
            version_header is not None
            and version_header.strip(" \t") not in MODERN_PROTOCOL_VERSIONS
        ):
            # The bridge cannot tell what is missing in a revision that it does not know.
            unknown = UnsupportedVersion(version_header, MODERN_PROTOCOL_VERSIONS)
            unknown.ident = ident
            raise unknown from None
        raise
    except Refused as error:
        error.ident = ident
        raise


def _ident(envelope: Envelope) -> RequestId:
    ident = envelope.id
    if not envelope.is_request or isinstance(ident, msgspec.UnsetType):
        raise NotJsonRpc("expected a request or a notification")
    if ident is None or (isinstance(ident, str) and not _is_unicode(ident)):
        raise NotJsonRpc("the id of a request must be a string or an integer")
    return ident


def _is_unicode(text: str) -> bool:
    """Tell whether a text can be encoded in UTF-8: it has no lone surrogate."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _read(message: ParsedMessage, ident: RequestId, header: str | None) -> ModernRequest:
    outer, method = message.outer, str(message.envelope.method)
    params = _known(message.params, outer.get("params"), "params")
    meta = _known(message.meta, params.get("_meta"), "params._meta")
    if method == LISTEN and len(message.line) > MAX_LISTEN_BYTES:
        raise TooComplex(f"{LISTEN} has more than {MAX_LISTEN_BYTES} bytes (MAX_LISTEN_BYTES)")
    if len(params["_meta"]) > META_KEPT_BYTES:
        client = _read_client(meta, header)
    else:
        client = _known_client(meta, header)
    # Before the name: the first mistake is reported.
    token = _token(meta) if PROGRESS_TOKEN in meta else None
    named_by = NAME_BEARING_METHODS.get(method)
    name = None if named_by is None else _text(params.get(named_by), f"params.{named_by}")
    return _request(client, outer, ident, method, params, meta, token, name)


def _request(
    client: _Client,
    outer: Members,
    ident: RequestId,
    method: str,
    params: Members,
    meta: Members,
    token: ProgressToken | None,
    name: str | None,
) -> ModernRequest:
    return ModernRequest(
        outer,
        ident,
        method,
        params,
        meta,
        client.version,
        client.capabilities,
        client.client_info,
        client.log_level,
        token,
        name,
    )


#: Clients by `_client_key`: a client describes itself in each request in the same bytes.
_known_clients: dict[bytes, _Client] = {}


def _known_client(meta: Members, header: str | None) -> _Client:
    """Return what `_read_client` returns, from the cache where possible."""
    key = _client_key(meta)
    known = _known_clients.get(key)
    if known is not None:
        _check_version(known.version, header)
        return known
    client = _read_client(meta, header)
    if len(_known_clients) >= CLIENTS_KEPT:
        del _known_clients[next(iter(_known_clients))]
    _known_clients[key] = client
    return client


def _client_key(meta: Members) -> bytes:
    return b",".join(map(meta.get, _CLIENT_MEMBERS, _ABSENT))


def _read_client(meta: Members, header: str | None) -> _Client:
    version = _text(meta.get(PROTOCOL_VERSION), PROTOCOL_VERSION)
    _check_version(version, header)
    capabilities = _read_capabilities(meta.get(CLIENT_CAPABILITIES))
    client_info = _optional(meta, CLIENT_INFO)
    if client_info is not None:
        if len(client_info) > MAX_CLIENT_INFO_BYTES:
            raise InvalidParams(
                f"{CLIENT_INFO} has more than {MAX_CLIENT_INFO_BYTES} bytes (MAX_CLIENT_INFO_BYTES)"
            )
        _object(client_info, CLIENT_INFO)
        # A copy, as it is kept for longer than the message, of which it is a view.
        client_info = client_info.copy()
    return _Client(version, capabilities, client_info, _log_level(meta))


def _check_version(version: str, header: str | None) -> None:
    if header == version and version in MODERN_PROTOCOL_VERSIONS:
        return
    if header is None:
        raise HeaderMismatch("the header MCP-Protocol-Version is missing")
    if header.strip(" \t") != version:
        raise HeaderMismatch(f"MCP-Protocol-Version does not match {PROTOCOL_VERSION}")
    if version not in MODERN_PROTOCOL_VERSIONS:
        # Only those that `server/discover` names: in the others this very request cannot
        # be made.
        raise UnsupportedVersion(version, MODERN_PROTOCOL_VERSIONS)


def _object(raw: msgspec.Raw | None, name: str) -> dict[str, msgspec.Raw]:
    return _known(None if raw is None else members(raw), raw, name)


def _known(found: Members | None, raw: msgspec.Raw | None, name: str) -> dict[str, msgspec.Raw]:
    if found is None:
        raise InvalidParams(f"{name} {_MISSING if raw is None else 'must be an object'}")
    return found


def _text(raw: msgspec.Raw | None, name: str) -> str:
    text = string_of(raw)
    if text is None:
        raise InvalidParams(f"{name} {_MISSING if raw is None else 'must be a string'}")
    return text


def _optional(meta: dict[str, msgspec.Raw], key: str) -> msgspec.Raw | None:
    """Return an optional member; null is as good as nothing."""
    raw = meta.get(key)
    return None if is_null(raw) else raw


def _log_level(meta: dict[str, msgspec.Raw]) -> str | None:
    raw = _optional(meta, LOG_LEVEL)
    level = string_of(raw)
    if raw is None or level in LOG_LEVELS:
        return level
    raise InvalidParams(f"{LOG_LEVEL} must be one of {', '.join(LOG_LEVELS)}")


def _token(meta: dict[str, msgspec.Raw]) -> ProgressToken | None:
    raw = _optional(meta, PROGRESS_TOKEN)
    text = string_of(raw)
    token = number_of(raw) if text is None else text
    if token is not None or raw is None:
        return token
    raise InvalidParams(f"{PROGRESS_TOKEN} must be a string or an integer")


def _read_capabilities(raw: msgspec.Raw | None) -> bytes:
    too_long = (
        f"{CLIENT_CAPABILITIES} has more than {MAX_CAPABILITIES_BYTES} bytes"
        " (MAX_CAPABILITIES_BYTES)"
    )
    if raw is not None and len(raw) > _UNREAD_BYTES:
        raise InvalidParams(too_long)
    found = _object(raw, CLIENT_CAPABILITIES)
    try:
        read = {name: value(each) for name, each in found.items()}
        # Not msgspec, which does not take lone surrogates.
        text = json.dumps(read, sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        raise InvalidParams(f"{CLIENT_CAPABILITIES} cannot be read") from None
    if len(text) > MAX_CAPABILITIES_BYTES:
        raise InvalidParams(too_long)
    return text.encode("ascii")
