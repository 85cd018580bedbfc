"""
Content negotiation: JSON, events, or both (RFC 9110, section 12.5.1).

Knows the header `Accept` alone; the response is for the endpoints.
"""

from __future__ import annotations

from typing import NamedTuple

from werkzeug.http import parse_accept_header

JSON = "application/json"
EVENTS = "text/event-stream"


class Accepted(NamedTuple):
    """What a response may be: JSON, an event stream, both or neither."""

    json: bool
    events: bool

    @property
    def nothing(self) -> bool:
        """True if the endpoint can send nothing that the client accepts."""
        return not (self.json or self.events)


#: For a client without `Accept`.
ANYTHING = Accepted(json=True, events=True)


def accepted(header: str) -> Accepted:
    """
    Return what `Accept`, its values joined, allows.

    The most specific range decides, and `q=0` excludes what it names; other
    parameters do not matter.  A header that is missing or invalid accepts
    anything.
    """
    qualities: dict[str, float] = {}
    for value, quality in parse_accept_header(header):
        media = value.partition(";")[0].strip().lower()
        qualities[media] = max(quality, qualities.get(media, 0))
    if not qualities:
        return ANYTHING
    return Accepted(json=_is_accepted(JSON, qualities), events=_is_accepted(EVENTS, qualities))


def _is_accepted(media: str, qualities: dict[str, float]) -> bool:
    ranges = (media, f"{media.partition('/')[0]}/*", "*/*")
    return next((qualities[each] for each in ranges if each in qualities), 0) > 0
