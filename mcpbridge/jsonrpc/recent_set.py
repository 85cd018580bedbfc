"""
A set of the things that were added last, within a bound.

Knows order and number; must not know what the things are.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Recent(Generic[T]):
    """A set of the last `limit` additions; the oldest beyond that is forgotten."""

    __slots__ = ("_kept", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[T, None] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, each: object) -> bool:
        return each in self._kept

    def add(self, each: T) -> None:
        """Add a thing; one that is there already keeps its place."""
        if len(self._kept) >= self._limit and each not in self._kept:
            del self._kept[next(iter(self._kept))]
        self._kept[each] = None

    def discard(self, each: T) -> bool:
        """Remove a thing; return whether it was there."""
        if each not in self._kept:
            return False
        del self._kept[each]
        return True

    def clear(self) -> None:
        """Remove all."""
        self._kept.clear()
