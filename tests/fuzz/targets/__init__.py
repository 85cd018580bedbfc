"""
What is fuzzed: functions of bytes that raise only if something is wrong.

Each has an oracle besides "no unexpected exception": a second parser, a model, or
something that must never be in the result.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from random import Random

Target = Callable[[bytes], None]

#: The targets by name, once `load` has imported them.
TARGETS: dict[str, Target] = {}
_MODULES = ("auth", "backend", "config", "http", "logs", "messages", "requests")


def target(function: Target) -> Target:
    """Register a target under its name."""
    TARGETS[function.__name__] = function
    return function


def load() -> dict[str, Target]:
    """Import all targets and return them by name."""
    for name in _MODULES:
        import_module(f"tests.fuzz.targets.{name}")
    return TARGETS


def fields_of(data: bytes, number: int) -> list[bytes]:
    """Return this many parts of an input: its first lines, and then all of the rest."""
    found = data.split(b"\n", number - 1)
    return found + [b""] * (number - len(found))


def pieces_of(data: bytes, seed: bytes) -> list[bytes]:
    """Return data in pieces of many sizes, always the same ones for the same seed."""
    random = Random(seed)
    pieces = []
    at = 0
    while at < len(data):
        size = random.choice((1, 1, 2, 3, 7, 20, 60, 200))
        pieces.append(data[at : at + size])
        at += size
    return pieces
