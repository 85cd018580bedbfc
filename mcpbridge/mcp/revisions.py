"""
What differs between the revisions of MCP that have Streamable HTTP, all of
it in one place.

Knows names of revisions; must not know messages or HTTP.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True)
class Revision:
    """
    One revision, as a server's transport has to see it.

    `primes`: a stream begins with an event that has an id and no data, and
    says how soon to come back (2025-11-25, basic/transports, "Sending
    Messages to the Server"); clients of before then fail on empty data.
    `batches`: a client may post arrays (2025-03-26, basic, "Batching";
    2025-06-18 has removed them again).
    """

    name: str
    primes: bool = False
    batches: bool = False


_KNOWN = (
    # It has no Streamable HTTP, but an old backend may choose it, and its
    # client then names it in each request.
    Revision("2024-11-05"),
    Revision("2025-03-26", batches=True),
    Revision("2025-06-18"),
    Revision("2025-11-25", primes=True),
)
_BY_NAME = {revision.name: revision for revision in _KNOWN}

#: What may stand in `MCP-Protocol-Version`, oldest first.
HANDSHAKE_PROTOCOL_VERSIONS = tuple(_BY_NAME)
#: What a client speaks of which nothing is known (2025-06-18,
#: basic/transports, "Protocol Version Header").
DEFAULT_PROTOCOL_VERSION = "2025-03-26"


def revision(negotiated: str | None) -> Revision:
    """
    The revision that a session speaks, by the version in the backend's
    answer to `initialize`; None where it is not known.

    One that the bridge has never heard of behaves like the newest before it:
    versions are dates, and sort.
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
    Whether a request with this `MCP-Protocol-Version` is served in a session
    that speaks `negotiated`: any version that the bridge supports, equal or
    not, and the session's own, whatever it is.
    """
    return header is None or header in _BY_NAME or header == negotiated
