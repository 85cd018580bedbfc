"""
The revisions of MCP with a handshake, and how their transports differ.

Knows names of revisions; must not know messages or HTTP.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True)
class Revision:
    """
    One revision, as a server's transport sees it.

    `primes`: a stream begins with an event that has an id, no data, and the
    time after which to come back (2025-11-25, basic/transports, "Sending
    Messages to the Server").  Clients of earlier revisions fail on empty data.
    `batches`: a client may post arrays (2025-03-26, basic, "Batching";
    2025-06-18 removed them again).
    """

    name: str
    primes: bool = False
    batches: bool = False


_KNOWN = (
    # It has no Streamable HTTP, but an old server may choose it, and its client then
    # names it in each request.
    Revision("2024-11-05"),
    Revision("2025-03-26", batches=True),
    Revision("2025-06-18"),
    Revision("2025-11-25", primes=True),
)
_BY_NAME = {revision.name: revision for revision in _KNOWN}

#: The revisions with a handshake, as `MCP-Protocol-Version` names them, oldest first.
HANDSHAKE_PROTOCOL_VERSIONS = tuple(_BY_NAME)
#: The revision of a client that does not name any (2025-06-18,
#: basic/transports, "Protocol Version Header").
DEFAULT_PROTOCOL_VERSION = "2025-03-26"


def revision(negotiated: str | None) -> Revision:
    """
    Return the revision that a session speaks, by the version in the server's
    answer to `initialize`; None where it is not known.

    A revision that the bridge does not know behaves like the newest before
    it: versions are dates, and sort.
    """
    if negotiated is None:
        return _BY_NAME[DEFAULT_PROTOCOL_VERSION]
    known = _BY_NAME.get(negotiated)
    if known is None:
        before = _KNOWN[max(0, bisect_right(HANDSHAKE_PROTOCOL_VERSIONS, negotiated) - 1)]
        known = Revision(negotiated, before.primes, before.batches)
    return known


def is_accepted(header: str | None, negotiated: str | None) -> bool:
    """
    Tell whether a request with this `MCP-Protocol-Version` is served in a
    session that speaks `negotiated`.

    Any version that the bridge supports is, equal or not, and the session's
    own, whatever it is.
    """
    return header is None or header in _BY_NAME or header == negotiated
