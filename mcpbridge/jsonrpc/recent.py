"""
What was added last, within a bound.

Knows order and number; must not know what it is.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Recent(Generic[T]):
    """The last `limit` that were added; the oldest beyond that is forgotten."""

    __slots__ = ("_kept", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[T, None] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, each: object) -> bool:
        return each in self._kept

    def add(self, each: T) -> None:
        """Keep it; what is there already stays in its place."""
        if len(self._kept) >= self._limit and each not in self._kept:
            del self._kept[next(iter(self._kept))]
        self._kept[each] = None

    def discard(self, each: T) -> bool:
        """Forget it; whether it was there."""
        if each not in self._kept:
            return False
        del self._kept[each]
        return True

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
