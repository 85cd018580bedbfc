"""
The handshake with a legacy server: `initialize` and its answer.

Knows the handshake of 2025-11-25 and before (basic/lifecycle); must not know
what comes after it.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from mcpbridge.errors import METHOD_NOT_FOUND, UNSUPPORTED_VERSION, BridgeError
from mcpbridge.jsonrpc.members import (
    Members,
    changed,
    encode,
    error_code_of,
    members_of,
    string_of,
    value_of,
)
from mcpbridge.mcp import revisions
from mcpbridge.mcp.capabilities import is_implementation, well_formed, with_extensions
from mcpbridge.mcp.modern_request import MODERN_PROTOCOL_VERSIONS
from mcpbridge.translation.to_modern import outcome_of, to_modern_result

#: The revision that a server is asked for; it may choose an older one.
ASKED_REVISION = revisions.HANDSHAKE_PROTOCOL_VERSIONS[-1]
#: The specification's capabilities, whose values are objects; other names may mean anything.
_CLIENT_CAPABILITIES = frozenset(
    {"elicitation", "experimental", "extensions", "roots", "sampling", "tasks"}
)
_SERVER_CAPABILITIES = frozenset(
    {
        "completions",
        "experimental",
        "extensions",
        "logging",
        "prompts",
        "resources",
        "tasks",
        "tools",
    }
)
#: The codes with which a server of 2026-07-28 alone usually refuses `initialize`, which
#: is an unknown method to it.
_MODERN_CODES = (UNSUPPORTED_VERSION, METHOD_NOT_FOUND)
#: How many of the revisions that a refusal names are read.
MAX_NAMED = 32


class HandshakeRefused(BridgeError):
    """
    The server refuses `initialize`; `code` is that of its error, and
    `supported` are the revisions that it names, as one of 2026-07-28 alone should.
    """

    def __init__(self, text: str, code: int | None = None, supported: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.code = code
        self.supported = supported

    @property
    def modern_only(self) -> bool:
        """
        Whether the server accepts only newer revisions (2026-07-28,
        basic/versioning).
        """
        if self.supported:
            return bool(set(self.supported) & set(MODERN_PROTOCOL_VERSIONS))
        return self.code in _MODERN_CODES


class Initialized(NamedTuple):
    """The server's answer to `initialize`; members of type Raw are as they stand."""

    protocol_version: str
    #: Without those of the specification that are no objects.
    capabilities: Members
    server_info: msgspec.Raw | None
    instructions: msgspec.Raw | None

    def discover_result(self) -> bytes:
        """
        Return the answer as a DiscoverResult of 2026-07-28.

        Tasks of 2025-11-25 have no counterpart there, and are not offered.
        """
        offered = changed(self.capabilities, {"tasks": msgspec.UNSET})
        result: dict[str, object] = {
            "supportedVersions": MODERN_PROTOCOL_VERSIONS,
            "capabilities": with_extensions(offered),
        }
        if self.instructions is not None:
            result["instructions"] = self.instructions
        whole = to_modern_result("server/discover", changed({}, result), self.server_info)
        return encode(whole)


def initialize_params(
    capabilities: bytes, client_info: msgspec.Raw | None, version: str
) -> dict[str, object]:
    """
    Return the parameters of `initialize` for clients with these capabilities.

    The bridge, of this `version`, takes the place of a client that does not
    say who it is, or not as an Implementation.
    """
    info: object = client_info
    if client_info is None or not is_implementation(client_info):
        info = {"name": "mcpbridge", "version": version}
    return {
        "protocolVersion": ASKED_REVISION,
        "capabilities": _declarable(members_of(capabilities)),
        "clientInfo": info,
    }


def read_answer(message: Members) -> Initialized:
    """
    Read the answer to `initialize`.

    Raise `HandshakeRefused` for an error, for what is no InitializeResult,
    and for a revision that the bridge does not know.
    """
    outcome = outcome_of(message)
    if outcome.error is not None:
        raise refusal(outcome.error)
    result = outcome.result or {}
    version = string_of(result.get("protocolVersion"))
    if version not in revisions.HANDSHAKE_PROTOCOL_VERSIONS:
        shown = "none" if version is None else repr(version[:40])
        raise HandshakeRefused(
            f"the server chose a revision that the bridge does not know: {shown}"
        )
    info, instructions = result.get("serverInfo"), result.get("instructions")
    return Initialized(
        version,
        well_formed(members_of(result.get("capabilities")), _SERVER_CAPABILITIES),
        info if is_implementation(info) else None,
        instructions if string_of(instructions) is not None else None,
    )


def refusal(error: Members) -> HandshakeRefused:
    """Return the refusal that an error means which answers `initialize`."""
    named = value_of(members_of(error.get("data")).get("supported"))
    listed = named[:MAX_NAMED] if isinstance(named, list) else []
    supported = tuple(each for each in listed if isinstance(each, str))
    shown = string_of(error.get("message")) or "no reason was given"
    return HandshakeRefused(
        f"the server refused initialize: {shown[:200]}", error_code_of(error), supported
    )


def _declarable(declared: Members) -> dict[str, object]:
    """
    Return the capabilities of a client, for a server of 2025-11-25 or before.

    Tasks are not translated, and changes of roots are never reported.
    Everything else passes: an extension is between the client and the server,
    and so is a capability that the bridge does not know.
    """
    known = well_formed(declared, _CLIENT_CAPABILITIES)
    known.pop("tasks", None)
    if "roots" in known:
        roots = members_of(known["roots"])
        roots.pop("listChanged", None)
        known["roots"] = msgspec.Raw(encode(roots))
    return dict(with_extensions(known))
