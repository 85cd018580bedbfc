"""
Content negotiation: JSON, events, or both; JSON or a page (RFC 9110, section 12.5.1).

Knows the header `Accept` alone; the response is for the endpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from werkzeug.http import parse_accept_header

JSON = "application/json"
EVENTS = "text/event-stream"
HTML = "text/html"


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
    qualities = _qualities(header)
    if not qualities:
        return ANYTHING
    return Accepted(json=_quality(JSON, qualities) > 0, events=_quality(EVENTS, qualities) > 0)


def preferred(header: str, offered: Sequence[str]) -> str | None:
    """
    Return which of the offered media types a client likes best, the first of several that
    it likes alike; None if it accepts none of them.
    """
    qualities = _qualities(header)
    if not qualities:
        return offered[0]
    best = max(offered, key=lambda media: _quality(media, qualities))
    return best if _quality(best, qualities) > 0 else None


def _qualities(header: str) -> dict[str, float]:
    qualities: dict[str, float] = {}
    for value, quality in parse_accept_header(header):
        media = value.partition(";")[0].strip().lower()
        qualities[media] = max(quality, qualities.get(media, 0))
    return qualities


def _quality(media: str, qualities: dict[str, float]) -> float:
    ranges = (media, f"{media.partition('/')[0]}/*", "*/*")
    return next((qualities[each] for each in ranges if each in qualities), 0)
