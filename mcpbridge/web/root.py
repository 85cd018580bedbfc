"""
From a path to the server that it belongs to, segment by segment, literally.

Knows paths; must not know routes.
"""

from __future__ import annotations

from typing import Any

from twisted.web.resource import IResource, Resource

from mcpbridge.errors import NothingHere
from mcpbridge.web.answers import answer


class Branch(Resource):
    """
    A part of a base path.  What is below it and no other server's base is
    for its own leaf, if a server has its base here.
    """

    def __init__(self) -> None:
        super().__init__()
        self.leaf: IResource = _Nothing()

    def branch(self, segment: bytes) -> Branch:
        """The branch below this one, made if need be."""
        below = self.children.get(segment)
        if not isinstance(below, Branch):
            below = Branch()
            self.putChild(segment, below)
        return below

    def getChild(self, path: bytes, request: Any) -> IResource:
        """Not another branch: hand the rest of the path to the leaf."""
        request.prepath.pop()
        request.postpath.insert(0, path)
        return self.leaf if all(map(_is_plain, request.postpath)) else _Nothing()

    def render(self, request: Any) -> Any:
        """The base itself, without a slash."""
        return self.leaf.render(request)


def _is_plain(segment: bytes) -> bool:
    """Whether a decoded segment is UTF-8 and hides no slash."""
    try:
        return "/" not in segment.decode("utf-8")
    except UnicodeDecodeError:
        return False


class _Nothing(Resource):
    """Nothing is served here."""

    isLeaf = True

    def render(self, request: Any) -> bytes:
        return answer(request, NothingHere("nothing is served at this path"))
