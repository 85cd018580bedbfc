"""
What a client accepts: JSON, events, or both (RFC 9110, section 12.5.1).

Knows the header alone; what is answered is for the endpoints.
"""

from __future__ import annotations

from typing import NamedTuple

from werkzeug.http import parse_accept_header

JSON = "application/json"
EVENTS = "text/event-stream"


class Accepted(NamedTuple):
    """Whether a response may be JSON, and whether it may be an event stream."""

    json: bool
    events: bool

    @property
    def nothing(self) -> bool:
        """Whether the endpoint can send nothing that the client accepts."""
        return not (self.json or self.events)


#: Where a client does not say.
ANYTHING = Accepted(json=True, events=True)


def accepted(header: str) -> Accepted:
    """
    Read the values of `Accept`, joined as one.

    The most specific range decides, and `q=0` excludes what it names; other
    parameters do not matter.  A header that is missing, or of which nothing
    can be read, accepts anything.
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
